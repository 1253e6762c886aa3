"""Speech detection: Silero, as faster-whisper ships it. 15 to 30 ms for a short clip."""

from __future__ import annotations

from collections.abc import Generator

import numpy as np
from faster_whisper.vad import VadOptions, get_speech_timestamps

from stt_cascade.engine.protocol import SAMPLE_RATE, Samples, Span
from stt_cascade.engine.windows import MAX_WINDOW_SECONDS

# The detector listens for a while before it is sure; of a single word that begins with the clip it
# hears nothing without some silence around.
BEFORE_AND_AFTER = SAMPLE_RATE // 2
OPTIONS = VadOptions(
    # A single frame of 32 ms may cross the threshold in music; the shortest words have nine.
    min_speech_duration_ms=100,
    # Half a second ends a stretch, so that long audio can be cut at pauses.
    min_silence_duration_ms=500,
    # Word beginnings and ends are quiet; too much is cheap, too little loses words.
    speech_pad_ms=400,
    max_speech_duration_s=MAX_WINDOW_SECONDS,
)


def detect(samples: Samples) -> tuple[Span, ...]:
    """Where somebody speaks; samples as in `Clip`."""
    steps = detection(samples)
    try:
        while True:
            next(steps)
    except StopIteration as end:
        found: tuple[Span, ...] = end.value
        return found


def detection(samples: Samples) -> Generator[None, None, tuple[Span, ...]]:
    """The same in steps, between which it may be left waiting, or given up."""
    if found := _detect(samples, 0):
        return found
    yield
    return _detect(samples, BEFORE_AND_AFTER)


def _detect(samples: Samples, around: int) -> tuple[Span, ...]:
    """The same with so many samples of silence before and after."""
    padded = np.pad(samples, around)
    found = (
        (max(0, stretch["start"] - around), min(stretch["end"] - around, len(samples)))
        for stretch in get_speech_timestamps(padded, OPTIONS, SAMPLE_RATE)
    )
    return tuple(Span(start, end) for start, end in found if start < end)


def warm_up() -> None:
    """Load the detector, which the first call would otherwise wait for."""
    detect(np.zeros(SAMPLE_RATE, np.float32))
