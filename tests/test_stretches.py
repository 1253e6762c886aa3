"""Speech around digital silence."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from stt_cascade.audio.decode import read
from stt_cascade.audio.speech import detection
from stt_cascade.audio.stretches import SILENCE, Detection, Steps, detection_apart
from stt_cascade.engine.protocol import SAMPLE_RATE, Samples, Span

HOLE = Path(__file__).parents[2] / "shared/cases/webm_6s_gap.webm"


def everything(samples: Samples) -> Steps:
    yield
    return (Span(0, len(samples)),)


def detect_apart(samples: Samples, detection: Detection) -> tuple[Span, ...]:
    """All steps of it."""
    steps = detection_apart(samples, detection)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            found: tuple[Span, ...] = end.value
            return found


@pytest.mark.parametrize(
    ("lengths", "found"),
    [
        ([9], [(0, 9)]),
        ([9, -SILENCE, 9], [(0, 9), (SILENCE + 9, SILENCE + 18)]),
        ([9, 1 - SILENCE, 9], [(0, SILENCE + 17)]),
        ([-SILENCE - 1, 9], [(SILENCE + 1, SILENCE + 10)]),
        ([-10, 9, -20], [(0, 39)]),
        ([-SILENCE], []),
    ],
)
def test_each_stretch_is_looked_at_by_itself(
    lengths: list[int], found: list[tuple[int, int]]
) -> None:
    """Silence is negative."""
    samples = np.concatenate([np.full(abs(n), n > 0, np.float32) for n in lengths])
    spans = detect_apart(samples, everything)
    assert [(span.start, span.end) for span in spans] == found


@pytest.mark.parametrize("seconds", [1, 6, 20])
def test_words_right_behind_a_hole_are_speech(seconds: int) -> None:
    if not HOLE.exists():
        pytest.skip(f"{HOLE} is missing: it is not in the repository")
    clip = read(HOLE.read_bytes(), max_seconds=60).samples
    before, after = clip[:51_000], clip[round(9.213 * SAMPLE_RATE) :]
    spans = detect_apart(
        np.concatenate([before, np.zeros(seconds * SAMPLE_RATE, np.float32), after]), detection
    )
    begins = [span.start / SAMPLE_RATE for span in spans if span.start >= len(before)]
    assert begins[0] == pytest.approx(51_000 / SAMPLE_RATE + seconds, abs=0.1)
