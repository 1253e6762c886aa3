"""A fallback that misbehaves: each fault gets its answer in time, and none outlasts its cause."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from typing import Any

import httpx2
import numpy as np
import pytest

from fakes import FakeEngine, Reply, ScriptedFallback, answer_of_fallback, error
from running import RunningTier, Tiers, until
from stt_cascade.cascade import breaker as breaker_module
from stt_cascade.cascade.breaker import FAILURES_TO_OPEN, PROBE_INTERVAL_S
from stt_cascade.cascade.fallback_answer import CAUSES
from stt_cascade.engine.protocol import Options, Samples, Utterance
from tones import tone, wav

Scripted = Callable[..., ScriptedFallback]


def endless(status_line: bytes) -> bytes:
    return status_line + b"X-Filler: " + b"x" * 200_000 + b"\r\n\r\n"


WHOLE = json.dumps(answer_of_fallback()).encode()
INFORMED = b"HTTP/1.1 100 Continue\r\n\r\n" * 3 + b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n"
# name -> the reply, the cause that it is, and what the message says of it
FAULTS: dict[str, tuple[Reply, str, str]] = {
    "hangs up": (Reply(fault="cut"), "broken_off", "disconnected"),
    "reset": (Reply(fault="reset"), "broken_off", "broke off: ReadError"),
    "breaks off": (Reply(fault="truncate"), "broken_off", "broke off"),
    "no HTTP": (Reply(raw=b"SSH-2.0-OpenSSH_9.6\r\n"), "broken_off", "broke off"),
    "endless header": (Reply(raw=endless(b"HTTP/1.1 200 OK\r\n")), "broken_off", "broke off"),
    "never answers": (Reply(fault="silence"), "timeout", "did not answer in time"),
    "drips": (Reply(fault="drip"), "timeout", "did not answer in time"),
    "endless body": (Reply(fault="endless"), "invalid", "longer than 68136 bytes"),
    "half the JSON": (Reply(200, WHOLE[: len(WHOLE) // 2]), "invalid", "not of the agreed form"),
    "other JSON": (Reply(200, b'{"ok": true}'), "invalid", "not of the agreed form"),
    "compressed": (
        Reply(200, gzip.compress(WHOLE), {"Content-Encoding": "gzip"}),
        "invalid",
        "not of the agreed form",
    ),
    "redirect to nowhere": (Reply(307, b"", {"Location": "//:-1"}), "invalid", "cannot be read"),
    "redirect": (Reply(307, b"", {"Location": "/v1/transcribe"}), "invalid", "answered 307"),
    "no content": (Reply(204, b""), "invalid", "answered 204"),
    "another protocol": (
        Reply(raw=b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n"),
        "broken_off",
        "broke off: RemoteProtocolError",
    ),
    "error": (error(500, "internal"), "error", "answered 500 internal: as it says"),
    "proxy": (Reply(502, b"<html>Bad Gateway</html>"), "error", "answered 502"),
    "nobody behind the proxy": (Reply(503, b"no healthy upstream"), "error", "answered 503"),
    "busy": (error(503, "overloaded"), "overloaded", "answered 503 overloaded: as it says"),
    "stopping": (error(503, "draining"), "overloaded", "answered 503 draining: as it says"),
    "starting": (error(503, "not_ready"), "overloaded", "answered 503 not_ready: as it says"),
    "rate limit": (error(429, "rate_limited"), "overloaded", "answered 429 rate_limited"),
    "too slow": (error(504, "deadline_exceeded"), "timeout", "answered 504 deadline_exceeded"),
    "wrong key": (error(401, "unauthorized"), "rejected", "answered 401 unauthorized"),
    "too large": (error(413, "payload_too_large"), "rejected", "answered 413"),
}


def doubtful(tiers: Tiers, fallback: ScriptedFallback | str, **settings: Any) -> RunningTier:
    """A primary that needs its fallback for every clip."""
    return tiers.primary(FakeEngine("hm"), fallback=fallback, **settings)


def causes(primary: RunningTier) -> dict[str, float]:
    """Failures of the fallback by their cause, where there were any."""
    counted = {cause: primary.metric("stt_fallback_errors_total", cause=cause) for cause in CAUSES}
    failed = primary.metric("stt_fallback_total", result="failed")
    assert sum(counted.values()) == failed
    return {cause: count for cause, count in counted.items() if count}


@pytest.mark.parametrize("setting", ["error", "primary"])
@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_answered_as_configured_and_named_everywhere(
    tiers: Tiers, scripted: Scripted, fault: str, setting: str
) -> None:
    reply, cause, says = FAULTS[fault]
    timeout = 0.3 if cause == "timeout" else 20
    fallback = scripted(reply)
    primary = doubtful(tiers, fallback, on_fallback_failure=setting, fallback_timeout_s=timeout)

    answer = primary.transcribe()

    assert answer.headers["X-Fallback-Error"].startswith(f"{cause}: ")
    assert says in answer.headers["X-Fallback-Error"]
    assert answer.headers["X-Route-Reason"] == "low_confidence"  # why it was asked: another matter
    assert causes(primary) == {cause: 1}
    if setting == "error":
        assert (answer.status_code, answer.headers["X-Error-Type"]) == (502, "fallback_failed")
        assert says in answer.json()["error"]["message"]
    else:
        assert (answer.status_code, answer.json()["text"]) == (200, "hm")
        assert answer.json()["routing"]["degraded"] is True


def test_a_fallback_that_refuses_connections_is_unreachable(tiers: Tiers, nobody: str) -> None:
    primary = doubtful(tiers, nobody)
    answer = primary.transcribe()
    assert answer.status_code == 502
    assert answer.headers["X-Fallback-Error"].startswith("unreachable: ")
    assert causes(primary) == {"unreachable": 1}


def test_informational_answers_are_passed_over(tiers: Tiers, scripted: Scripted) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(WHOLE)
    primary = doubtful(tiers, scripted(Reply(raw=INFORMED + head + WHOLE)))
    assert primary.transcribe().json()["text"] == "from the fallback"


def test_a_fallback_of_many_words_is_cut_short(tiers: Tiers, scripted: Scripted) -> None:
    body = {"error": {"type": "t" * 10_000, "message": "m" * 1_000_000, "request_id": "theirs"}}
    answer = doubtful(tiers, scripted(Reply(500, body))).transcribe()
    assert answer.status_code == 502
    assert len(answer.content) < 2000


# The breaker, as callers and operators see it


def snapshot(primary: RunningTier) -> dict[str, Any]:
    breaker: dict[str, Any] = primary.get("/v1/metrics").json()["fallback_breaker"]
    return breaker


@pytest.mark.parametrize("setting", ["error", "primary"])
def test_a_broken_fallback_is_asked_five_times_and_then_left_alone(
    tiers: Tiers, scripted: Scripted, setting: str
) -> None:
    fallback = scripted(error(500, "internal"))
    primary = doubtful(tiers, fallback, on_fallback_failure=setting)
    assert primary.metric("stt_fallback_breaker_open") == 0
    assert snapshot(primary) == {"state": "closed", "failures": 0, "next_probe_s": None}

    answers = [primary.transcribe() for _ in range(8)]

    assert len(fallback.asked) == FAILURES_TO_OPEN
    assert causes(primary) == {"error": 5, "breaker_open": 3}
    assert primary.metric("stt_fallback_breaker_open") == 1
    shown = snapshot(primary)
    assert (shown["state"], shown["failures"]) == ("open", 5)
    assert 0 < shown["next_probe_s"] <= PROBE_INTERVAL_S
    last = answers[-1]
    says = last.headers["X-Fallback-Error"]
    assert says.startswith("breaker_open: the circuit breaker is open: 5 calls in a row failed")
    assert "the next one will be let through in" in says
    assert "X-Fallback-Infer-ms" not in last.headers  # there was no round trip
    assert primary.metric("stt_fallback_infer_seconds_count") == 5
    if setting == "error":
        assert (last.status_code, last.headers["X-Error-Type"]) == (502, "fallback_failed")
        assert "circuit breaker is open" in last.json()["error"]["message"]
    else:
        assert (last.status_code, last.json()["text"]) == (200, "hm")


class Picky(FakeEngine):
    """Fails on clips that begin loudly."""

    def transcribe(self, samples: Samples, options: Options) -> Utterance:
        if abs(samples[:100]).max() > 0.9:
            raise RuntimeError("an odd clip")
        return super().transcribe(samples, options)


def test_clips_on_which_the_fallback_fails_do_not_keep_it_from_other_clips(tiers: Tiers) -> None:
    """Nor do they make up for failures on all clips."""
    odd = wav(np.concatenate([np.full(100, 0.99, np.float32), tone(1.0)]))
    primary, fallback = tiers.cascade(FakeEngine(logprob=0.1), Picky("from the fallback"))
    for _ in range(2 * FAILURES_TO_OPEN):
        answer = primary.transcribe(odd)
        assert answer.status_code == 502
        assert answer.headers["X-Fallback-Error"].startswith("rejected: the fallback answered 400")
    assert snapshot(primary)["state"] == "closed"
    assert primary.transcribe().json()["text"] == "from the fallback"
    direct = fallback.transcribe(odd)
    assert (direct.status_code, direct.json()["error"]["type"]) == (400, "invalid_audio")
    assert "works on other audio" in direct.json()["error"]["message"]


def test_scores_that_are_no_numbers_are_no_error_of_the_fallback(tiers: Tiers) -> None:
    nan = FakeEngine(logprob=float("nan"), weakest=float("nan"))
    primary, fallback = tiers.cascade(FakeEngine(raises=RuntimeError()), nan)
    assert fallback.transcribe().status_code == 400
    for _ in range(2 * FAILURES_TO_OPEN):
        assert primary.transcribe().status_code == 502
    assert snapshot(primary)["state"] == "closed"


def test_a_fallback_that_fails_on_every_clip_opens_the_breaker(tiers: Tiers) -> None:
    primary, _ = tiers.cascade(FakeEngine(logprob=0.1), FakeEngine(raises=RuntimeError("broken")))
    for _ in range(FAILURES_TO_OPEN):
        assert "answered 500" in primary.transcribe().headers["X-Fallback-Error"]
    assert snapshot(primary)["state"] == "open"


def test_sure_texts_do_not_mind_an_open_breaker(tiers: Tiers, nobody: str) -> None:
    primary = doubtful(tiers, nobody)
    for _ in range(FAILURES_TO_OPEN):
        primary.transcribe()
    assert snapshot(primary)["state"] == "open"
    primary.fake.text = "a sure text"
    assert primary.transcribe().json()["routing"]["reason"] == "accepted"
    assert primary.get("/v1/ready").status_code == 200


def test_a_fallback_that_is_back_is_used_again(
    tiers: Tiers, scripted: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    fallback = scripted(*[error(500, "internal")] * (FAILURES_TO_OPEN + 1), Reply())
    primary = doubtful(tiers, fallback)
    monkeypatch.setattr(breaker_module, "PROBE_INTERVAL_S", 0)  # each call may be a probe

    failed = [primary.transcribe().status_code for _ in range(FAILURES_TO_OPEN + 1)]
    assert set(failed) == {502}
    assert snapshot(primary) == {"state": "open", "failures": 6, "next_probe_s": 0}

    assert [primary.transcribe().status_code for _ in range(3)] == [200, 200, 200]
    assert snapshot(primary) == {"state": "closed", "failures": 0, "next_probe_s": None}
    assert primary.metric("stt_fallback_breaker_open") == 0


def test_a_busy_fallback_is_not_a_broken_one(tiers: Tiers, scripted: Scripted) -> None:
    fallback = scripted(error(503, "overloaded", **{"Retry-After": "0"}))
    primary = doubtful(tiers, fallback)
    for _ in range(3 * FAILURES_TO_OPEN):
        assert primary.transcribe().headers["X-Fallback-Error"].startswith("overloaded: ")
    assert snapshot(primary) == {"state": "closed", "failures": 0, "next_probe_s": None}


def test_a_request_that_is_rejected_shows_that_the_fallback_works(
    tiers: Tiers, scripted: Scripted
) -> None:
    almost = [error(500, "internal")] * (FAILURES_TO_OPEN - 1)
    fallback = scripted(*almost, error(413, "payload_too_large"), *almost)
    primary = doubtful(tiers, fallback)
    for _ in fallback.replies:
        primary.transcribe()
    assert len(fallback.asked) == len(fallback.replies)
    assert snapshot(primary)["state"] == "closed"


def test_the_fallback_itself_has_no_breaker(tiers: Tiers) -> None:
    fallback = tiers.fallback()
    assert snapshot(fallback) is None
    assert fallback.metric("stt_fallback_breaker_open") == 0


def test_a_caller_who_hangs_up_ends_the_call_to_the_fallback(
    tiers: Tiers, scripted: Scripted
) -> None:
    fallback = scripted(*[Reply(fault="drip")] * 3, Reply())
    primary = doubtful(tiers, fallback)
    request = httpx2.Request(
        "POST", f"{primary.url}/v1/transcribe", files={"audio": ("clip.wav", wav())}
    )
    head = "".join(f"{name}: {value}\r\n" for name, value in request.headers.items())
    for number in range(3):
        whole = f"POST /v1/transcribe HTTP/1.1\r\n{head}\r\n".encode() + request.read()
        with primary.connect(whole):
            fallback.wait_for(number + 1)
    until(lambda: fallback.dripping == 0, "the fallback is left alone")
    assert primary.transcribe().status_code == 200
    assert snapshot(primary)["failures"] == 0
    until(lambda: primary.metric("stt_requests_abandoned_total") == 3, "they are counted")
    # A caller's patience is no round trip: a slow fallback would look as fast as it is short.
    assert primary.metric("stt_fallback_infer_seconds_count") == 1
