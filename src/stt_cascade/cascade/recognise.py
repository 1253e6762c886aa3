"""A clip through the engine, window by window."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from stt_cascade.admission.deadline import Deadline
from stt_cascade.admission.slots import NOBODY, Slots
from stt_cascade.engine.protocol import (
    SAMPLE_RATE,
    Clip,
    Engine,
    Options,
    Span,
    Utterance,
)
from stt_cascade.engine.transcript import Transcript, join
from stt_cascade.engine.windows import leading, windows, within

# Windows that are decoded together. More gain little, and hold a slot for longer.
BATCH = 4


async def recognise(
    engine: Engine,
    clip: Clip,
    options: Options,
    slots: Slots,
    deadline: Deadline,
    waited: Callable[[float], None],
    begun: Callable[[], None] = lambda: None,
    caller: str = NOBODY,
) -> Transcript:
    """Recognise a clip's speech, of which there is some.

    The first window tells the language; the others are encoded meanwhile where slots are free, and
    decoded in batches. Each step takes a slot of its own: between two steps of a long clip others
    get their turn, and a caller that goes away costs no inference but the one that runs.

    Args:
        waited: told the seconds that the clip waited for its first slot.
        begun: told when it has that slot.
        caller: who shares the slots with the others.

    Raises:
        Refusal: as `Slots.run`; any other exception is the engine's.
    """
    recognition = _Recognition(engine, clip, options, slots, deadline, caller)
    return await recognition.run(waited, begun)


class _Recognition:
    """A clip of which some windows are still left, and the others have become text.

    One task leads: it has a window long enough to tell the language. Those that follow encode the
    next ones meanwhile, and need the language to decode them.
    """

    def __init__(
        self,
        engine: Engine,
        clip: Clip,
        options: Options,
        slots: Slots,
        deadline: Deadline,
        caller: str,
    ) -> None:
        self._engine = engine
        self._samples = clip.samples
        self._options = options
        self._slots = slots
        self._deadline = deadline
        self._caller = caller
        self._speech = clip.speech
        others = windows(clip.speech)
        self._first = others.pop(leading(others))
        self._left = deque(others)
        self._batch = min(BATCH, max(1, math.ceil(len(others) / slots.size)))
        self._done: list[tuple[Span, Utterance]] = []
        # The first window has its slot: what follows is let in, too.
        self._admitted = asyncio.Event()
        self._language: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def run(self, waited: Callable[[float], None], begun: Callable[[], None]) -> Transcript:
        further = sum(span.seconds for span in self._left)
        with self._slots.promise(further, self._caller) as brought:
            followers = min(len(self._left), self._slots.size - 1)
            work = [
                self._lead(further, brought, waited, begun),
                *(self._follow(brought) for _ in range(followers)),
            ]
            tasks = [asyncio.ensure_future(part) for part in work]
            try:
                await asyncio.gather(*tasks)
            finally:
                for task in tasks:
                    task.cancel()
        return join(sorted(self._done, key=lambda item: item[0].start))

    async def _lead(
        self,
        further: float,
        brought: Callable[[float], None],
        waited: Callable[[float], None],
        begun: Callable[[], None],
    ) -> None:
        def admitted(seconds: float) -> None:
            waited(seconds)
            self._admitted.set()

        (utterance,) = await self._slots.run(
            lambda: self._engine.decode([self._encode(self._first)], self._options),
            self._deadline,
            caller=self._caller,
            audio_seconds=self._first.seconds,
            further_seconds=further,
            waited=admitted,
            begun=begun,
        )
        self._keep(self._first, utterance)
        self._language.set_result(utterance.language)
        await self._follow(brought)

    async def _follow(self, brought: Callable[[float], None]) -> None:
        # What was let in goes on, whatever the queue.
        in_turn = partial(
            self._slots.run, deadline=self._deadline, caller=self._caller, admitted=True
        )
        await self._admitted.wait()
        while self._left:
            # A batch is quick for its length, but long: not while others wait.
            size = 1 if self._slots.depth else self._batch
            batch = [self._left.popleft() for _ in range(min(size, len(self._left)))]
            encodings = []
            for span in batch:
                brought(span.seconds)
                step = partial(self._encode, span)
                encodings.append(await in_turn(step, audio_seconds=span.seconds))
            # One clip, one language: what comes after the first window need not detect it again.
            language = await asyncio.shield(self._language)
            assumed = self._options.language is None
            known = replace(self._options, language=language, assumed=assumed)
            utterances = await in_turn(
                partial(self._engine.decode, encodings, known),
                audio_seconds=sum(span.seconds for span in batch),
            )
            for span, utterance in zip(batch, utterances, strict=True):
                self._keep(span, utterance)

    def _encode(self, span: Span) -> Any:
        samples = self._samples[span.start : span.end]
        return self._engine.encode(samples, within(self._speech, span))

    def _keep(self, span: Span, utterance: Utterance) -> None:
        if utterance.heard_until is not None:
            middle = span.start + round(utterance.heard_until * SAMPLE_RATE)
            self._left.appendleft(Span(middle, span.end))
            span = Span(span.start, middle)
        self._done.append((span, utterance))
