"""A clip in stretches between digital silence, as gaps in a file are filled with it."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator

import numpy as np

from stt_cascade.engine.protocol import SAMPLE_RATE, Samples, Span

Steps = Generator[None, None, tuple[Span, ...]]
Detection = Callable[[Samples], Steps]
# Across a shorter silence, the detector remembers the voice.
SILENCE = SAMPLE_RATE // 2
PIECE = 1 << 18


def detection_apart(samples: Samples, detection: Detection) -> Steps:
    """Where somebody speaks, looked for in each stretch by itself, step by step.

    The detector remembers what it heard: after some seconds without a single bit set it misses the
    first words that follow. In such silence nobody speaks anyway.
    """
    found: list[Span] = []
    for number, (start, end) in enumerate(_stretches(samples)):
        if number:
            yield
        spans = yield from detection(samples[start:end])
        found += (Span(start + span.start, start + span.end) for span in spans)
    return tuple(found)


def _stretches(samples: Samples) -> Iterator[tuple[int, int]]:
    start = end = -1
    # In pieces: the places of all samples would take twice the memory of the samples.
    for offset in range(0, len(samples), PIECE):
        sounding = np.flatnonzero(samples[offset : offset + PIECE]) + offset
        breaks = np.flatnonzero(np.diff(sounding) > SILENCE)
        if not len(sounding):
            continue
        firsts = [int(sounding[0]), *sounding[breaks + 1].tolist()]
        lasts = [*sounding[breaks].tolist(), int(sounding[-1])]
        for first, last in zip(firsts, lasts, strict=True):
            if start < 0:
                start = first if first > SILENCE else 0
            elif first - end > SILENCE:
                yield start, end + 1
                start = first
            end = last
    if start >= 0:
        yield start, len(samples)
