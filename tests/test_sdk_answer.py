"""What the SDK reads in an answer of a service that is older or newer than it."""

from __future__ import annotations

import asyncio
import copy
import json
import math
import threading
import time
from types import SimpleNamespace
from typing import Any

import httpx2
import pytest

from fakes import answer_of_fallback
from stt_sdk import InvalidAnswerError, Transcription, TranscriptionWarning, _answer

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


EVIL = "\x1b[2J\x9b31m\u202e\u2028\x7f\ud800"


def test_no_text_of_a_service_commands_a_terminal() -> None:
    answer = copy.deepcopy(answer_of_fallback(f"hi{EVIL}there", model=EVIL + "m" * 9000))
    answer["routing"] |= {"below": [EVIL] * 1000, "reason": "r\n" * 9000}
    answer["segments"] = [SEGMENT | {"text": EVIL}]
    answer["warnings"] = [{"code": EVIL, "message": f"a\nb{EVIL}"}]
    result = Transcription.from_json(answer, {"X-Fallback-Error": f"{EVIL}: {EVIL}"})
    assert result.text == "hi [2J 31m there"
    assert str(result).isprintable()
    assert repr(EVIL)[1:5] not in str(result)
    assert max(len(result.model), len(result.routing.reason), len(result.routing.below)) <= 301
    assert result.warnings[0].message == "a b [2J 31m"


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf, 10**400, -1e300])
def test_a_number_that_is_none_is_an_invalid_answer(number: float) -> None:
    with pytest.raises(TypeError, match="no number of a reasonable size"):
        Transcription.from_json(answer_of_fallback(duration=number))


@pytest.mark.parametrize("item", ["{}", "0", "[]", '{"":{}}', '""'])
def test_megabytes_of_nothing_cost_no_more_than_that(item: str) -> None:
    nothing = ",".join([item] * (15_000_000 // (len(item) + 1)))
    body = f'{{"segments": [{nothing}]}}'.encode()
    for reading in (_answer.readiness, _answer.health, _answer.snapshot, transcription):
        began = time.process_time()
        with pytest.raises(InvalidAnswerError, match="more than 1000000 values"):
            reading(httpx2.Response(200, content=body))
        assert time.process_time() - began < 1


def transcription(response: httpx2.Response) -> Transcription:
    return asyncio.run(_answer.transcription(response))


def test_a_large_answer_is_read_while_others_are_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[str] = []

    def load(body: bytes) -> Any:
        threads.append(threading.current_thread().name)
        return json.loads(body)

    monkeypatch.setattr(_answer, "json", SimpleNamespace(loads=load))
    for size in (1, 10_000):
        body = json.dumps(answer_of_fallback(segments=[SEGMENT] * size)).encode()
        assert len(transcription(httpx2.Response(200, content=body)).segments) == size
    assert threads == ["MainThread", "stt_sdk answer"]


def test_an_error_is_one_line_of_reasonable_length_whatever_its_headers_hold() -> None:
    names = ("X-Req-Id", "X-Fallback-Error", "X-Error-Type", "X-Route-Reason", "X-Conf-Below")
    headers = [(name.encode(), b"\x9b31m: \xc2\x9b" + b"x" * 9000) for name in names]
    for body in (b"", json.dumps({"error": {"type": EVIL, "message": EVIL * 9000}}).encode()):
        error = _answer.error_of(httpx2.Response(500, headers=headers, content=body))
        assert str(error).isprintable()
        assert len(str(error)) < 2000
        parts = (error.message, error.request_id, error.reason, error.fallback_error, *error.below)
        assert all(part is not None and part.isprintable() for part in parts)
