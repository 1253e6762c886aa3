"""The benchmark's arithmetic: what a table says must be what was measured."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from stt_cascade.bench.contenders import Batch, Heard
from stt_cascade.bench.cost import by_length, short_to_long, worst_stray
from stt_cascade.bench.engine import Result, report
from stt_cascade.engine.protocol import SAMPLE_RATE, Samples
from stt_cascade.labelled import Labelled, joined


def clip(text: str, seconds: float, *, language: str = "en", source: str = "a") -> Labelled:
    return Labelled(Path(f"{seconds}.wav"), text, language, source)


def audio(seconds: float, value: float = 0.0) -> Samples:
    return np.full(round(seconds * SAMPLE_RATE), value, np.float32)


def test_clips_are_joined_within_their_source_up_to_the_length() -> None:
    clips = [
        (clip("one", 4), audio(4, 0.1)),
        (clip("eins", 4, language="de", source="b"), audio(4, 0.5)),
        (clip("", 1), audio(1)),  # nobody speaks
        (clip("two", 5), audio(5, 0.2)),
        (clip("three", 3), audio(3, 0.3)),
        (clip("zwei", 7, language="de", source="b"), audio(7, 0.6)),
    ]
    first, second = joined(clips, 10)
    assert (first[0].text, first[0].language, len(first[1])) == ("one two", "en", 152_000)
    assert first[1][4 * SAMPLE_RATE - 1] == pytest.approx(0.1)
    assert not first[1][4 * SAMPLE_RATE : 4 * SAMPLE_RATE + SAMPLE_RATE // 2].any()
    assert first[1][-1] == pytest.approx(0.2)
    assert (second[0].text, second[0].language) == ("eins", "de")


def test_cost_is_told_by_length() -> None:
    lengths = np.array([0.5, 2.0, 2.2, 28.0, 29.0, 40.0])
    cost = np.array([0.1, 0.2, 0.4, 1.0, 2.0, 9.0])
    rows = {(row["from_s"], row["to_s"]): row for row in by_length(lengths, cost)}
    assert rows[0.0, 1.0]["median_ms"] == 100
    assert rows[26.0, 30.0]["clips"] == 2
    assert rows[30.0, None]["median_ms"] == 9000
    assert short_to_long(lengths, cost) == pytest.approx(0.3 / 1.5)
    assert short_to_long(lengths[:3], cost[:3]) is None


def test_the_clip_that_strays_most_is_found_unless_it_was_encoded_twice() -> None:
    lengths = np.full(10, 3.0)
    cost = np.array([1.0] * 8 + [2.5, 7.0])
    counted = np.ones(10, bool)
    worst = worst_stray(lengths, cost, counted)
    assert worst is not None
    assert (worst.index, worst.ratio) == (9, 7.0)
    counted[9] = False
    worst = worst_stray(lengths, cost, counted)
    assert worst is not None
    assert (worst.index, worst.ratio) == (8, 2.5)
    assert worst_stray(lengths[:7], cost[:7], counted[:7]) is None


def result(name: str, *heard: Heard) -> Result:
    ours = Result(name)
    ours.add(Batch(list(heard), 2.0, 100.0), [clip for clip, _ in CLIPS])
    return ours


CLIPS = [
    (clip("red green blue", 2), audio(2)),
    (clip("rot grün", 3, language="de"), audio(3)),
    (clip("", 1), audio(1)),
]


def test_errors_are_compared_with_the_baselines_language_by_language() -> None:
    ours = result("ours", Heard("red green"), Heard("rot grün", retries=1), Heard("you"))
    theirs = result("theirs", Heard("red green blue"), Heard(""), Heard(""))
    rows = report([ours, theirs], CLIPS, "theirs")["contenders"]
    row = rows["ours"]
    assert row["wer"]["value"] == 20.0
    assert row["wer_minus_baseline"]["value"] == -20.0
    assert row["wer_minus_baseline_by_language"]["en"]["value"] == pytest.approx(33.33)
    assert row["wer_minus_baseline_by_language"]["de"]["value"] == -100.0
    assert rows["theirs"]["wer_minus_baseline"] is None
    assert (row["invented_words"], row["full_context_retries"]) == (1, 1)
    assert rows["theirs"]["lost_clips"] == ["3.wav"]
    # Nobody speaks in the third clip, which costs next to nothing.
    assert sum(entry["clips"] for entry in row["cost"]["by_length"]) == 2
    assert row["clips_per_s"] == 1.5
