"""What an answer says of a clip's own clock, and of what could not be read."""

from __future__ import annotations

import random

import pytest

from fakes import FakeEngine
from recordings import stamped
from running import Tiers
from tones import encoded


@pytest.mark.parametrize("logprob", [0.9, 0.1], ids=["the primary's", "the fallback's"])
def test_times_and_warnings_are_the_files_own_on_both_tiers(tiers: Tiers, logprob: float) -> None:
    primary, _ = tiers.cascade(FakeEngine(logprob=logprob))
    late = primary.transcribe(stamped("webm", "libopus", [(5, 2)]), timestamps="segment").json()
    (segment,) = late["segments"]
    assert (segment["start"], segment["end"]) == pytest.approx((5, 7), abs=0.05)
    assert late["duration"] == pytest.approx(7, abs=0.05)
    assert late["speech_duration"] == pytest.approx(2, abs=0.05)
    assert late["warnings"] == []

    gap = primary.transcribe(stamped("webm", "libopus", [(0, 1), (4, 1)])).json()
    assert gap["duration"] == pytest.approx(5, abs=0.05)

    unread = primary.transcribe(encoded("ogg-opus") + random.Random(1).randbytes(9000)).json()
    assert [warning["code"] for warning in unread["warnings"]] == ["audio_incomplete"]
    assert primary.metric("stt_warnings_total", code="audio_incomplete") == 1
