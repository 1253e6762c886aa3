"""Who waits, who is turned away, and what a caller who goes away leaves behind."""

from __future__ import annotations

import gc
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import httpx2
import pytest
from structlog.testing import capture_logs

from fakes import PRIMARY_KEY, FakeEngine, Reply, ScriptedFallback
from running import TRANSCRIBE, RunningTier, Tiers, until
from tones import silence, wav

OTHER_KEY = "other-key-9876543210"


def upload(clip: bytes | None = None) -> bytes:
    """A whole request, to be sent on a socket that the test can close."""
    body = (
        b'--x\r\nContent-Disposition: form-data; name="audio"; filename="a.wav"\r\n\r\n'
        + (clip or wav())
        + b"\r\n--x--\r\n"
    )
    return (
        f"POST {TRANSCRIBE} HTTP/1.1\r\nHost: t\r\nContent-Length: {len(body)}\r\n"
        "Content-Type: multipart/form-data; boundary=x\r\n\r\n"
    ).encode() + body


@contextmanager
def who_hangs_up(
    tier: RunningTier, clip: bytes | None = None, followed_by: bytes = b""
) -> Iterator[socket.socket]:
    """A caller who goes away at the block's end, which is left when the service knows it."""
    with capture_logs() as lines:
        with tier.connect(upload(clip) + followed_by) as connection:
            yield connection
        until(lambda: any(line.get("status") == 499 for line in lines), "the caller is missed")


def statuses(tier: RunningTier, count: int, key: str | None) -> list[int]:
    tier.key = key
    return [tier.transcribe().status_code for _ in range(count)]


def test_each_key_has_a_rate_of_its_own(tiers: Tiers) -> None:
    keys = (PRIMARY_KEY, OTHER_KEY)
    tier = tiers.fallback(api_keys=keys, rate_limit_burst=2, rate_limit_rps=0.01)
    assert statuses(tier, 3, PRIMARY_KEY) == [200, 200, 429]
    assert statuses(tier, 3, OTHER_KEY) == [200, 200, 429]


def test_callers_without_a_key_do_not_use_up_anybodys_rate(tiers: Tiers) -> None:
    tier = tiers.fallback(api_keys=(PRIMARY_KEY,), rate_limit_burst=1, rate_limit_rps=0.01)
    assert statuses(tier, 3, "wrong") == [401, 401, 401]
    assert statuses(tier, 2, PRIMARY_KEY) == [200, 429]


def test_without_keys_each_address_has_a_rate_of_its_own(tiers: Tiers) -> None:
    tier = tiers.fallback(rate_limit_burst=1, rate_limit_rps=0.01)

    def call(address: str) -> int:
        transport = httpx2.HTTPTransport(local_address=address)
        with httpx2.Client(transport=transport, base_url=tier.url) as client:
            return client.post(TRANSCRIBE, files={"audio": wav()}).status_code

    assert [call("127.0.0.1"), call("127.0.0.1")] == [200, 429]
    assert [call("127.0.0.2"), call("127.0.0.2")] == [200, 429]


def test_the_rate_concerns_transcriptions_only(tiers: Tiers) -> None:
    tier = tiers.fallback(rate_limit_burst=1, rate_limit_rps=0.01)
    assert [tier.get("/v1/health").status_code for _ in range(5)] == [200] * 5
    assert tier.transcribe().status_code == 200
    assert tier.get("/v1/ready").status_code == 200


def test_the_fullest_bucket_shows_in_the_metrics(tiers: Tiers) -> None:
    tier = tiers.fallback(rate_limit_burst=4, rate_limit_rps=0.0001)
    assert tier.metric("stt_rate_limit_fullest_ratio") == 0
    tier.transcribe()
    tier.transcribe()
    assert tier.metric("stt_rate_limit_fullest_ratio") == pytest.approx(0.5, abs=0.01)


def test_never_more_inferences_than_slots(tiers: Tiers) -> None:
    engine = FakeEngine(holds=threading.Event())
    tier = tiers.fallback(engine, max_concurrency=2)
    calls = [tier.begin() for _ in range(6)]
    engine.wait_for(2)
    tier.wait_for_queue(4)
    assert engine.live == 2
    engine.let_go()
    assert [call.result().status_code for call in calls] == [200] * 6
    assert (engine.most_live, len(engine.heard)) == (2, 6)


def test_the_queue_is_served_in_the_order_of_arrival(tiers: Tiers) -> None:
    engine = FakeEngine(holds=threading.Event())
    tier = tiers.fallback(engine, max_concurrency=1)
    calls = [tier.begin(wav(silence(1)))]
    engine.wait_for(1)
    for seconds in (2, 3, 4, 5):
        calls.append(tier.begin(wav(silence(seconds))))
        tier.wait_for_queue(seconds - 1)
    engine.let_go()
    assert [call.result().status_code for call in calls] == [200] * 5
    assert [clip.duration for clip, _ in engine.heard] == [1, 2, 3, 4, 5]


def test_who_waits_is_told_for_how_long(tiers: Tiers) -> None:
    engine = FakeEngine(holds=threading.Event())
    tier = tiers.fallback(engine, max_concurrency=1)
    first = tier.begin()
    engine.wait_for(1)
    second = tier.begin()
    tier.wait_for_queue(1)
    engine.let_go()
    waits = [float(call.result().headers["X-Queue-Wait-ms"]) for call in (first, second)]
    assert waits[0] == 0 < waits[1]


def test_the_queue_is_eight_times_the_slots_by_default(tiers: Tiers) -> None:
    engine = FakeEngine(holds=threading.Event())
    tier = tiers.fallback(engine, max_concurrency=1)
    calls = [tier.begin()]
    engine.wait_for(1)
    calls += [tier.begin() for _ in range(8)]
    tier.wait_for_queue(8)
    assert tier.transcribe().json()["error"]["type"] == "overloaded"
    engine.let_go()
    assert [call.result().status_code for call in calls] == [200] * 9


ANOTHER = b"GET /v1/health HTTP/1.1\r\nHost: t\r\n\r\n"


@pytest.mark.parametrize(
    ("at_once", "later"),
    [(b"", b""), (ANOTHER, b""), (b"", ANOTHER), (b"", b"rubbish\r\n\r\n")],
    ids=["nothing else", "another request", "later another request", "later rubbish"],
)
def test_a_caller_who_goes_away_leaves_the_queue_whatever_else_he_sent(
    tiers: Tiers, at_once: bytes, later: bytes
) -> None:
    engine = FakeEngine(holds=threading.Event())
    tier = tiers.fallback(engine, max_concurrency=1)
    first = tier.begin(wav(silence(1)))
    engine.wait_for(1)
    with who_hangs_up(tier, wav(silence(2)), at_once) as connection:
        tier.wait_for_queue(1)
        connection.sendall(later)
    tier.wait_for_queue(0)
    last = tier.begin(wav(silence(3)))
    tier.wait_for_queue(1)
    engine.let_go()
    assert [first.result().status_code, last.result().status_code] == [200, 200]
    assert [clip.duration for clip, _ in engine.heard] == [1, 3]


def test_a_caller_who_goes_away_during_the_inference_frees_no_slot(tiers: Tiers) -> None:
    engine = FakeEngine(holds=threading.Event())
    tier = tiers.fallback(engine, max_concurrency=1)
    with who_hangs_up(tier):
        engine.wait_for(1)
    second = tier.begin()
    tier.wait_for_queue(1)
    assert tier.get("/v1/metrics").json()["in_flight"] == 1
    assert len(engine.heard) == 1
    engine.let_go()
    assert second.result().status_code == 200
    assert engine.most_live == 1


def test_who_closes_only_his_sending_side_has_gone_away_too(tiers: Tiers) -> None:
    engine = FakeEngine(holds=threading.Event())
    tier = tiers.fallback(engine)
    with tier.connect(upload()) as connection:
        engine.wait_for(1)
        connection.shutdown(socket.SHUT_WR)
        until(lambda: tier.metric("stt_requests_abandoned_total") == 1, "he counts as gone")
        engine.let_go()
        assert connection.recv(1) == b""


def test_an_inference_that_outlasts_its_deadline_frees_no_slot(tiers: Tiers) -> None:
    engine = FakeEngine(holds=threading.Event())
    tier = tiers.fallback(engine, max_concurrency=1)
    assert tier.transcribe(headers={"X-Deadline-Ms": "500"}).status_code == 504
    second = tier.begin()
    tier.wait_for_queue(1)
    engine.let_go()
    assert second.result().status_code == 200
    assert engine.most_live == 1


def test_slots_come_back_after_every_kind_of_end(tiers: Tiers) -> None:
    engine = FakeEngine()
    tier = tiers.fallback(engine, max_concurrency=1, max_queue=0)
    for _ in range(3):
        engine.raises = ValueError("odd clip")
        assert tier.transcribe().status_code == 500
        engine.raises = None
        assert tier.transcribe().status_code == 200
    until(lambda: tier.get("/v1/metrics").json()["in_flight"] == 0, "the slot is free")


def test_each_request_is_answered_refused_or_abandoned(tiers: Tiers) -> None:
    engine = FakeEngine(holds=threading.Event())
    tier = tiers.fallback(engine, max_concurrency=1)
    with who_hangs_up(tier):
        engine.wait_for(1)
    with who_hangs_up(tier):
        tier.wait_for_queue(1)
    engine.let_go()
    assert [tier.transcribe().status_code, tier.transcribe(b"no").status_code] == [200, 400]
    counts = tier.get("/v1/metrics").json()["counts"]
    assert (counts["answered"], counts["errors"], counts["abandoned"]) == (1, 1, 2)
    assert counts["requests"] == tier.metric("stt_requests_total", endpoint=TRANSCRIBE) == 4
    assert tier.metric("stt_requests_abandoned_total") == 2


def test_abandoned_requests_are_no_decided_ones(tiers: Tiers) -> None:
    engine = FakeEngine(holds=threading.Event())
    primary, _ = tiers.cascade(engine)
    with who_hangs_up(primary):
        engine.wait_for(1)
    engine.let_go()
    engine.wait_until_idle()
    until(lambda: primary.metric("stt_in_flight") == 0, "the slot is free")
    for result in ("used", "skipped", "failed"):
        assert primary.metric("stt_fallback_total", result=result) == 0


def test_a_caller_who_goes_away_takes_his_call_to_the_fallback_with_him(
    tiers: Tiers, scripted: Callable[..., ScriptedFallback]
) -> None:
    fallback = scripted(Reply(holds=threading.Event()))
    primary = tiers.primary(FakeEngine("hm"), fallback=fallback)
    with who_hangs_up(primary):
        until(lambda: len(fallback.asked) == 1, "the fallback is asked")
    for result in ("used", "skipped", "failed"):
        assert primary.metric("stt_fallback_total", result=result) == 0


def test_an_inference_that_fails_for_nobody_leaves_no_noise(
    tiers: Tiers, caplog: pytest.LogCaptureFixture
) -> None:
    engine = FakeEngine(raises=ValueError("odd clip"), holds=threading.Event())
    tier = tiers.fallback(engine)
    with who_hangs_up(tier):
        engine.wait_for(1)
    engine.let_go()
    engine.wait_until_idle()
    until(lambda: tier.metric("stt_in_flight") == 0, "the slot is free")
    gc.collect()
    tier.get("/v1/health")
    assert not [record for record in caplog.records if record.name == "asyncio"]
