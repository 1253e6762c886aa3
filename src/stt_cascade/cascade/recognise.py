"""A clip through the engine, window by window."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from stt_cascade.admission.deadline import Deadline
from stt_cascade.admission.slots import Slots
from stt_cascade.engine.protocol import SAMPLE_RATE, Clip, Engine, Options, Span, Utterance
from stt_cascade.engine.transcript import Transcript, join
from stt_cascade.engine.windows import windows


async def recognise(
    engine: Engine,
    clip: Clip,
    options: Options,
    slots: Slots,
    deadline: Deadline,
    waited: Callable[[float], None],
) -> tuple[Transcript, int]:
    """Recognise a clip's speech, of which there is some; also counts the full-context retries.

    Each window has a slot of its own: between two windows of a long clip others get their turn, and
    a caller that goes away costs no inference but the one that runs. Where slots are free, a long
    clip's windows use them side by side.

    Args:
        waited: told the seconds that the clip waited for its first slot.

    Raises:
        Refusal: as `Slots.run`; any other exception is the engine's.
    """
    left = deque(windows(clip.speech))
    heard: list[tuple[Span, Utterance]] = []

    async def next_window(options: Options, **first: Callable[[float], None]) -> Utterance:
        span = left.popleft()
        utterance = await slots.run(
            partial(engine.transcribe, clip.samples[span.start : span.end], options),
            deadline,
            audio_seconds=span.seconds,
            admitted=not first,
            **first,
        )
        if utterance.heard_until is not None:
            middle = span.start + round(utterance.heard_until * SAMPLE_RATE)
            left.appendleft(Span(middle, span.end))
            span = Span(span.start, middle)
        heard.append((span, utterance))
        return utterance

    # One clip, one language: what comes after the first window need not detect it again.
    language = (await next_window(options, waited=waited)).language
    options = replace(options, language=language)

    async def work() -> None:
        while left:
            await next_window(options)

    workers = [asyncio.ensure_future(work()) for _ in range(min(len(left), slots.size))]
    try:
        await asyncio.gather(*workers)
    finally:
        for worker in workers:
            worker.cancel()
    retries = sum(utterance.full_context for _, utterance in heard)
    return join(sorted(heard, key=lambda item: item[0].start)), retries
