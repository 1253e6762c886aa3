"""Speech detection: Silero, as faster-whisper ships it. 15 to 30 ms for a short clip."""

from __future__ import annotations

import numpy as np
from faster_whisper.vad import VadOptions, get_speech_timestamps

from stt_cascade.engine.protocol import SAMPLE_RATE, Samples, Span
from stt_cascade.engine.windows import MAX_WINDOW_SECONDS

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
    return tuple(
        Span(stretch["start"], min(stretch["end"], len(samples)))
        for stretch in get_speech_timestamps(samples, OPTIONS, SAMPLE_RATE)
    )


def warm_up() -> None:
    """Load the detector, which the first call would otherwise wait for."""
    detect(np.zeros(SAMPLE_RATE, np.float32))
