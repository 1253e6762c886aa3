"""Many clips, a few at a time."""

from __future__ import annotations

import asyncio
import os
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

from stt_sdk._apart import Apart
from stt_sdk._source import Source, reads_pieces
from stt_sdk._types import Transcription


@dataclass(frozen=True)
class Clip:
    """A source with a language or prompt of its own."""

    source: Source
    language: str | None = None
    prompt: str | None = None


Sources = Iterable[Source | Clip] | AsyncIterable[Source | Clip]

ONE = "this is one clip; transcribe_many takes several, such as a list"
# What has all of its items already needs no thread to give them.
_AT_HAND = (list, tuple, dict, set, frozenset, range, *map(type, ({}.keys(), {}.values())))


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


async def outcomes(
    sources: Sources, transcribe: Callable[[Clip], Awaitable[Transcription]], concurrency: int
) -> AsyncGenerator[Outcome, None]:
    """As they finish. A source is taken only when there is room for it.

    Raises:
        ValueError: less than one at a time.
        TypeError: this is one clip.
        Exception: what the iteration over the sources raises, once those before are done.
    """
    if concurrency < 1:
        raise ValueError(f"concurrency must be at least 1, not {concurrency!r}")
    if _is_one(sources):
        raise TypeError(ONE)
    numbered = _numbered(sources)
    working: dict[asyncio.Task[Transcription], _Numbered] = {}
    coming: asyncio.Task[_Numbered | _Broken | None] | None = None
    more, failure = True, None
    try:
        while True:
            if more and coming is None and len(working) < concurrency:
                coming = asyncio.ensure_future(_next(numbered))
            if coming is None and not working:
                break
            waited_for: set[asyncio.Task[Any]] = {*working, coming} if coming else {*working}
            await asyncio.wait(waited_for, return_when=asyncio.FIRST_COMPLETED)
            if coming and coming.done():
                found, coming = coming.result(), None
                if isinstance(found, _Broken):
                    more, failure = False, found.error
                elif found is None:
                    more = False
                else:
                    call = asyncio.ensure_future(_call(found[1], transcribe))
                    working[call] = found
            for done in [task for task in working if task.done()]:
                yield Outcome(*working.pop(done), _value(done))
        if failure is not None:
            raise failure
    finally:
        left: list[asyncio.Task[Any]] = [*working, *([coming] if coming else [])]
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        await numbered.aclose()


def apart(sources: Sources) -> Sources:
    """The same sources; if the next one might have to be waited for, a thread does it."""
    if isinstance(sources, AsyncIterable) or type(sources) in _AT_HAND or _is_one(sources):
        return sources
    return Apart(sources)


def _is_one(sources: Sources) -> bool:
    one = (str, os.PathLike, bytes, bytearray, memoryview)
    if isinstance(sources, AsyncIterable):
        # Of a queue that has some `read`, too, the first source tells: see `_numbered`.
        return isinstance(sources, asyncio.StreamReader)
    return isinstance(sources, one) or hasattr(sources, "read")


_Numbered = tuple[int, Source | Clip]


@dataclass(frozen=True)
class _Broken:
    """The iteration over the sources raised this."""

    error: BaseException


async def _call(
    source: Source | Clip, transcribe: Callable[[Clip], Awaitable[Transcription]]
) -> Transcription:
    return await transcribe(source if isinstance(source, Clip) else Clip(source))


def _value(done: asyncio.Task[Transcription]) -> Transcription | Exception:
    """What is wrong with one clip, whatever it is, leaves the others as they are."""
    if done.cancelled():
        return RuntimeError("the source waited for something that was cancelled")
    error = done.exception()
    if error is None:
        return done.result()
    if isinstance(error, Exception):
        return error
    raise error


async def _next(numbered: AsyncIterator[_Numbered]) -> _Numbered | _Broken | None:
    try:
        return await anext(numbered, None)
    except (Exception, SystemExit, KeyboardInterrupt) as error:  # noqa: BLE001  # raised where
        return _Broken(error)  # nothing is lost; the latter two would end the loop from a task


async def _numbered(sources: Sources) -> AsyncGenerator[_Numbered, None]:
    index = 0
    if isinstance(sources, AsyncIterable):
        reader = reads_pieces(sources)
        async for source in sources:
            if reader and isinstance(source, (bytes, bytearray, memoryview)):
                raise TypeError(ONE)  # an open file, which gives lines
            yield index, source
            index += 1
    else:
        for source in sources:
            yield index, source
            index += 1
