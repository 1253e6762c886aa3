"""A clip through the engine, window by window."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from stt_cascade.admission.deadline import Deadline
from stt_cascade.admission.slots import Slots
from stt_cascade.engine.protocol import (
    SAMPLE_RATE,
    Clip,
    Engine,
    Options,
    Samples,
    Span,
    Utterance,
)
from stt_cascade.engine.transcript import Transcript, join
from stt_cascade.engine.windows import windows

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
) -> Transcript:
    """Recognise a clip's speech, of which there is some.

    The first window tells the language; the others are encoded meanwhile where slots are free, and
    decoded in batches. Each step takes a slot of its own: between two steps of a long clip others
    get their turn, and a caller that goes away costs no inference but the one that runs.

    Args:
        waited: told the seconds that the clip waited for its first slot.
        begun: told when it has that slot.

    Raises:
        Refusal: as `Slots.run`; any other exception is the engine's.
    """
    first, *others = windows(clip.speech)
    left = deque(others)
    further = sum(span.seconds for span in others)
    share = min(BATCH, max(1, math.ceil(len(left) / slots.size)))
    heard: list[tuple[Span, Utterance]] = []
    admitted = asyncio.Event()
    language: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    def samples(span: Span) -> Samples:
        return clip.samples[span.start : span.end]

    def told(seconds: float) -> None:
        waited(seconds)
        admitted.set()

    def keep(span: Span, utterance: Utterance) -> None:
        if utterance.heard_until is not None:
            middle = span.start + round(utterance.heard_until * SAMPLE_RATE)
            left.appendleft(Span(middle, span.end))
            span = Span(span.start, middle)
        heard.append((span, utterance))

    async def lead() -> None:
        (utterance,) = await slots.run(
            lambda: engine.decode([engine.encode(samples(first))], options),
            deadline,
            audio_seconds=first.seconds,
            further_seconds=further,
            waited=told,
            begun=begun,
        )
        keep(first, utterance)
        language.set_result(utterance.language)
        await follow()

    async def follow() -> None:
        # What was let in goes on, whatever the queue.
        in_turn = partial(slots.run, deadline=deadline, admitted=True)
        await admitted.wait()
        while left:
            # A batch is quick for its length, but long: not while others wait.
            size = 1 if slots.depth else share
            batch = [left.popleft() for _ in range(min(size, len(left)))]
            encodings = []
            for span in batch:
                brought(span.seconds)
                step = partial(engine.encode, samples(span))
                encodings.append(await in_turn(step, audio_seconds=span.seconds))
            # One clip, one language: what comes after the first window need not detect it again.
            known = replace(options, language=await asyncio.shield(language))
            utterances = await in_turn(
                partial(engine.decode, encodings, known),
                audio_seconds=sum(span.seconds for span in batch),
            )
            for span, utterance in zip(batch, utterances, strict=True):
                keep(span, utterance)

    work = [lead(), *(follow() for _ in range(min(len(left), slots.size - 1)))]
    tasks = [asyncio.ensure_future(part) for part in work]
    with slots.promise(further) as brought:
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
    return join(sorted(heard, key=lambda item: item[0].start))
