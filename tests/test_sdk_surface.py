"""What an application meets first: messages, arguments, deadlines."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx2
import pytest

import stt_sdk
from fakes import FakeEngine, ScriptedFallback, answer_of_fallback
from running import Tiers
from stt_sdk import (
    FallbackFailedError,
    RetryPolicy,
    STTClient,
    STTPool,
    SyncSTTClient,
    TimedOut,
)
from tones import wav


def test_a_message_says_once_what_became_of_the_fallback(tiers: Tiers, nobody: str) -> None:
    primary = tiers.primary(FakeEngine("hm"), fallback=nobody)
    with pytest.raises(FallbackFailedError) as caught:
        stt_sdk.transcribe(wav(), base_url=primary.url)
    message = str(caught.value)
    assert message.count("the fallback cannot be reached") == 1
    assert "(fallback: unreachable; after " in message
    other = FallbackFailedError("it failed", fallback_error="timeout: no answer within 3 s")
    assert str(other).startswith("fallback_failed: it failed (fallback: timeout: no answer within")


@pytest.mark.parametrize("deadline", [0, -1.5])
def test_a_deadline_that_has_passed_is_a_call_too_late_and_nothing_is_sent(
    scripted: Callable[..., ScriptedFallback], deadline: float
) -> None:
    service = scripted()
    with pytest.raises(TimedOut, match="the deadline had passed before anything") as caught:
        stt_sdk.transcribe(b"RIFF", base_url=service.url, deadline=deadline)
    assert caught.value.attempts == 0
    assert service.connections == 0


@pytest.mark.parametrize("seconds", [90_000, 1.1e9, 1e18, 1.7e308])
def test_a_service_is_told_of_a_day_at_most(
    scripted: Callable[..., ScriptedFallback], seconds: float
) -> None:
    service = scripted()
    with SyncSTTClient(service.url, timeout=seconds) as stt:
        stt.transcribe(b"RIFF")
        stt.transcribe(b"RIFF", deadline=seconds)
        stt.transcribe(b"RIFF", deadline=3600)
    told = [int(asked.headers["x-deadline-ms"]) for asked in service.asked]
    assert told[:2] == [86_400_000] * 2
    assert 3_500_000 < told[2] < 3_600_000


def test_the_synchronous_client_takes_another_way_to_the_wire() -> None:
    answers = httpx2.MockTransport(lambda _: httpx2.Response(200, json=answer_of_fallback("hello")))
    with SyncSTTClient("http://nowhere.invalid", transport=answers) as stt:
        assert stt.transcribe(b"RIFF").text == "hello"


@pytest.mark.parametrize(
    "wrong",
    [
        *[{"timeout": 10**400}, {"timeout": 10**9999}, {"timeout": b"1"}],
        *[{"api_key": b"sesame"}, {"api_key": 5}, {"transport": 5}, {"ssl_context": "ca.pem"}],
        *[{"telemetry": [None]}, {"telemetry": 5}, {"telemetry": [print, "print"]}],
        *[{"retries": "2"}, {"retries": None}, {"base_url": None}, {"base_url": 5}],
    ],
    ids=lambda wrong: next(iter(wrong)),
)
@pytest.mark.parametrize("client", [SyncSTTClient, STTClient, STTPool])
def test_an_argument_of_another_kind_is_a_type_error_or_a_value_error(
    client: Any, wrong: dict[str, Any]
) -> None:
    options = {"base_url": "http://127.0.0.1:9", **wrong}
    if client is STTPool:
        options["base_urls"] = [options.pop("base_url")]
    with pytest.raises((TypeError, ValueError)) as caught:
        client(**options)
    assert "sesame" not in str(caught.value)


def test_a_pool_looks_nothing_up_with_what_is_no_function() -> None:
    with pytest.raises(TypeError, match="resolve must be a function"):
        STTPool([], resolve=5)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["backoff", "max_backoff"])
@pytest.mark.parametrize("value", [10**400, 10**9999, -1, "1", None], ids=["1", "2", "3", "4", "5"])
def test_a_pause_that_no_clock_can_hold_is_a_value_error(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"^{name} must be a number of seconds"):
        RetryPolicy(**{name: value})


@pytest.mark.parametrize("deadline", [10**400, 10**9999, -(10**400)], ids=["1", "2", "3"])
def test_a_deadline_that_no_clock_can_hold_is_a_value_error(deadline: int) -> None:
    with pytest.raises(ValueError, match="deadline must be a number of seconds, not"):
        stt_sdk.transcribe(b"RIFF", base_url="http://127.0.0.1:9", deadline=deadline)
