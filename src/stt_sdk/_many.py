"""Many clips, a few at a time."""

from __future__ import annotations

import asyncio
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
)
from dataclasses import dataclass
from typing import Any

from stt_sdk._errors import STTError
from stt_sdk._source import Source
from stt_sdk._types import Transcription


@dataclass(frozen=True)
class Clip:
    """A source with a language or prompt of its own."""

    source: Source
    language: str | None = None
    prompt: str | None = None


Sources = Iterable[Source | Clip] | AsyncIterable[Source | Clip]


@dataclass(frozen=True)
class Outcome:
    """What became of one of many clips.

    Attributes:
        index: its place among the sources, from 0.
        source: as it was given.
        value: its text, an STTError, or why the source could not be read.
    """

    index: int
    source: Source | Clip
    value: Transcription | Exception

    @property
    def error(self) -> Exception | None:
        """What went wrong, if something did."""
        return self.value if isinstance(self.value, Exception) else None

    @property
    def result(self) -> Transcription:
        """The text.

        Raises:
            Exception: the error, if there is one.
        """
        if isinstance(self.value, Exception):
            raise self.value
        return self.value


# What is wrong with one clip, and leaves the others as they are.
OF_ONE_CLIP = (STTError, OSError, TypeError, ValueError)


async def outcomes(
    sources: Sources, transcribe: Callable[[Clip], Awaitable[Transcription]], concurrency: int
) -> AsyncGenerator[Outcome, None]:
    """As they finish. Sources are taken only as there is room for them.

    Raises:
        ValueError: less than one at a time.
        Exception: what the iteration over the sources raises.
    """
    if concurrency < 1:
        raise ValueError(f"concurrency must be at least 1, not {concurrency!r}")

    async def one(index: int, source: Source | Clip) -> Outcome:
        clip = source if isinstance(source, Clip) else Clip(source)
        try:
            return Outcome(index, source, await transcribe(clip))
        except OF_ONE_CLIP as error:
            return Outcome(index, source, error)

    numbered = _numbered(sources)
    working: set[asyncio.Task[Outcome]] = set()
    coming: asyncio.Task[tuple[int, Source | Clip] | None] | None = _next(numbered)
    try:
        while working or coming:
            waiting: set[asyncio.Task[Any]] = {*working}
            if coming and len(working) < concurrency:
                waiting.add(coming)
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            if coming and coming.done() and len(working) < concurrency:
                found = coming.result()
                coming = None
                if found is not None:
                    working.add(asyncio.ensure_future(one(*found)))
                    coming = _next(numbered)
            for done in [task for task in working if task.done()]:
                working.remove(done)
                yield done.result()
    finally:
        left: list[asyncio.Task[Any]] = [*working, *([coming] if coming else [])]
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        await numbered.aclose()


def _next(
    numbered: AsyncIterator[tuple[int, Source | Clip]],
) -> asyncio.Task[tuple[int, Source | Clip] | None]:
    async def step() -> tuple[int, Source | Clip] | None:
        return await anext(numbered, None)

    return asyncio.ensure_future(step())


async def _numbered(sources: Sources) -> AsyncGenerator[tuple[int, Source | Clip], None]:
    index = 0
    if isinstance(sources, AsyncIterable):
        async for source in sources:
            yield index, source
            index += 1
    else:
        for source in sources:
            yield index, source
            index += 1
