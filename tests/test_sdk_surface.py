"""What an application meets first: messages, arguments, deadlines."""

from __future__ import annotations

from collections.abc import Callable

import httpx2
import pytest

import stt_sdk
from fakes import FakeEngine, ScriptedFallback, answer_of_fallback
from running import Tiers
from stt_sdk import FallbackFailedError, SyncSTTClient, TimedOut
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


def test_the_synchronous_client_takes_another_way_to_the_wire() -> None:
    answers = httpx2.MockTransport(lambda _: httpx2.Response(200, json=answer_of_fallback("hello")))
    with SyncSTTClient("http://nowhere.invalid", transport=answers) as stt:
        assert stt.transcribe(b"RIFF").text == "hello"
