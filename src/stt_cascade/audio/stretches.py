"""A clip in stretches between digital silence, as gaps in a file are filled with it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from stt_cascade.engine.protocol import SAMPLE_RATE, Samples, Span

# Of shorter silence, the detector keeps what it knows of the voice.
SILENCE = SAMPLE_RATE // 2


def detect_apart(
    samples: Samples, detect: Callable[[Samples], tuple[Span, ...]]
) -> tuple[Span, ...]:
    """Where somebody speaks, looked for in each stretch by itself.

    The detector remembers what it heard: after some seconds without a single bit set it misses the
    first words that follow. In such silence nobody speaks anyway.
    """
    return tuple(
        Span(start + span.start, start + span.end)
        for start, end in _stretches(samples)
        for span in detect(samples[start:end])
    )


def _stretches(samples: Samples) -> Iterator[tuple[int, int]]:
    sounding = np.flatnonzero(samples)
    if not len(sounding):
        return
    breaks = np.flatnonzero(np.diff(sounding) > SILENCE)
    first = int(sounding[0]) if sounding[0] > SILENCE else 0
    starts = [first, *sounding[breaks + 1].tolist()]
    yield from zip(starts, [*(sounding[breaks] + 1).tolist(), len(samples)], strict=True)
