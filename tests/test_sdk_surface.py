"""What an application meets first: messages, arguments, deadlines."""

from __future__ import annotations

import pytest

import stt_sdk
from fakes import FakeEngine
from running import Tiers
from stt_sdk import FallbackFailedError
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
