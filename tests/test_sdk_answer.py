"""What the SDK reads in an answer of a service that is older or newer than it."""

from __future__ import annotations

import copy

import pytest

from fakes import answer_of_fallback
from stt_sdk import Transcription, TranscriptionWarning

SEGMENT = {
    "start": 0.0,
    "end": 1.0,
    "text": "one",
    "avg_logprob": -0.1,
    "no_speech_prob": 0.0,
    "words": [],
}


def test_an_older_service_that_knows_no_warnings_is_understood() -> None:
    result = Transcription.from_json(answer_of_fallback(segments=[SEGMENT]))
    assert result.warnings == ()
    assert result.segments[0].suspect is False


def test_gates_reasons_and_codes_that_are_not_known_yet_are_passed_on() -> None:
    answer = copy.deepcopy(answer_of_fallback())
    answer["routing"] |= {"below": ["melody"], "reason": "sung"}
    answer["warnings"] = [{"code": "out_of_tune", "message": "It is sung.", "more": 1}]
    answer["segments"] = [SEGMENT | {"suspect": True}]
    result = Transcription.from_json(answer)
    assert result.routing.below == ("melody",)
    assert result.routing.reason == "sung"
    assert result.warnings == (TranscriptionWarning("out_of_tune", "It is sung."),)
    assert result.segments[0].suspect is True


@pytest.mark.parametrize(
    "warnings", ["text", [1], [{"code": "x"}], None, [{"code": 1, "message": ""}]]
)
def test_warnings_of_another_form_are_an_invalid_answer(warnings: object) -> None:
    with pytest.raises((KeyError, TypeError)):
        Transcription.from_json(answer_of_fallback(warnings=warnings))
