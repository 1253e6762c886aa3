"""`SHADOW_RATE`: accepted clips that the fallback hears too, in nobody's way."""

from __future__ import annotations

import asyncio
import gc
import socket
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from starlette.types import Message

from fakes import FakeEngine, Reply, ScriptedFallback, answer_of_fallback, error
from running import POOLS, TRANSCRIBE, RunningTier, Tiers, primary_config, until
from stt_cascade.cascade.breaker import FAILURES_TO_OPEN
from stt_cascade.cascade.shadow import AT_ONCE, MAX_REQUEST_ID
from stt_cascade.http.app import create_app
from stt_cascade.http.service import Service
from stt_cascade.upload import Upload
from tones import silence, tone, wav

Scripted = Callable[..., ScriptedFallback]
TEXT = "one two three four"


def said(text: str) -> Reply:
    return Reply(200, answer_of_fallback(text))


def shadowed(
    tiers: Tiers,
    fallback: ScriptedFallback | RunningTier | str,
    engine: FakeEngine | None = None,
    **settings: Any,
) -> RunningTier:
    """A primary that sends every accepted clip to its fallback, too."""
    return tiers.primary(engine, fallback=fallback, **{"shadow_rate": 1, **settings})


def ended(tier: RunningTier) -> dict[str, float]:
    """The shadows by what became of them."""
    return {
        result: tier.metric("stt_shadow_total", result=result)
        for result in ("compared", "skipped", "failed")
    }


def held(tier: RunningTier) -> int:
    count: int = tier.get("/v1/metrics").json()["shadows"]
    return count


def wait_for(tier: RunningTier, **counts: int) -> None:
    expected = {"compared": 0, "skipped": 0, "failed": 0, **counts}
    until(lambda: ended(tier) == expected, f"the shadows ended as {counts}")


def request(audio: bytes, *headers: str) -> bytes:
    body = b'--x\r\nContent-Disposition: form-data; name="audio"\r\n\r\n' + audio + b"\r\n--x--\r\n"
    lines = (
        "POST /v1/transcribe HTTP/1.1",
        "Host: t",
        "Content-Type: multipart/form-data; boundary=x",
        f"Content-Length: {len(body)}",
        *headers,
    )
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


# What it is


def test_an_accepted_clip_goes_to_the_fallback_too_and_the_texts_are_compared(
    tiers: Tiers, scripted: Scripted
) -> None:
    primary = shadowed(tiers, scripted(said("One two, three FIVE.")), FakeEngine(TEXT))
    answer = primary.transcribe()
    assert answer.json()["text"] == TEXT
    assert answer.json()["routing"]["reason"] == "accepted"
    assert answer.headers["X-Fallback-Used"] == "false"
    assert answer.json()["timings_ms"]["fallback_infer"] is None
    wait_for(primary, compared=1)
    assert primary.metric("stt_shadow_disagreement_count") == 1
    assert primary.metric("stt_shadow_disagreement_sum") == 1 / 4


def test_texts_that_say_the_same_have_a_bucket_of_their_own(
    tiers: Tiers, scripted: Scripted
) -> None:
    primary = shadowed(tiers, scripted(said("One, two, three, four!")), FakeEngine(TEXT))
    primary.transcribe()
    wait_for(primary, compared=1)
    assert primary.metric("stt_shadow_disagreement_bucket", le="0.0") == 1


def test_the_fallback_hears_what_the_caller_sent_in_a_request_of_its_own(
    tiers: Tiers, scripted: Scripted
) -> None:
    fallback = scripted()
    primary = shadowed(tiers, fallback, fallback_api_key="sesame")
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    clip = wav() + b"LIST\x00\r\n--trailing bytes"
    headers = {"traceparent": trace, "tracestate": "a=1"}
    headers |= {"X-Deadline-Ms": "5000", "X-Req-Id": "r-1"}
    primary.transcribe(clip, headers=headers, language="pt", prompt="São Paulo", timestamps="word")
    wait_for(primary, compared=1)
    (asked,) = fallback.asked
    assert asked.parts == {
        "audio": clip,
        "language": b"pt",
        "prompt": "São Paulo".encode(),
        "timestamps": b"word",
        "task": b"transcribe",
    }
    assert asked.headers["authorization"] == "Bearer sesame"
    assert asked.headers["x-req-id"] == "shadow-r-1"
    assert not {"traceparent", "tracestate"} & set(asked.headers)
    assert int(asked.headers["x-deadline-ms"]) > 5000  # the caller has long been answered


def test_the_longest_request_id_makes_no_odd_one(tiers: Tiers) -> None:
    fallback = tiers.fallback()
    primary = shadowed(tiers, fallback)
    primary.transcribe(headers={"X-Req-Id": "r" * MAX_REQUEST_ID})
    wait_for(primary, compared=1)
    assert fallback.get("/v1/metrics").json()["counts"]["answered"] == 1


def test_a_shadow_counts_as_nothing_else(tiers: Tiers, scripted: Scripted) -> None:
    primary = shadowed(tiers, scripted())
    primary.transcribe()
    wait_for(primary, compared=1)
    assert primary.metric("stt_fallback_total", result="skipped") == 1
    assert primary.metric("stt_fallback_total", result="used") == 0
    assert primary.metric("stt_fallback_infer_seconds_count") == 0
    assert primary.metric("stt_escalations_total", reason="low_confidence") == 0
    assert primary.get("/v1/metrics").json()["latency_ms"]["fallback_infer"]["p50"] is None


def test_by_default_there_are_none(tiers: Tiers, scripted: Scripted) -> None:
    fallback = scripted()
    primary = tiers.primary(fallback=fallback)
    primary.transcribe()
    assert (fallback.asked, held(primary)) == ([], 0)
    assert set(ended(primary).values()) == {0}


@pytest.mark.parametrize(
    ("engine", "settings", "calls"),
    [
        (FakeEngine("hm"), {}, 1),
        (FakeEngine("hm", weakest=1.0), {"final_pick": "best"}, 1),
        (FakeEngine(raises=RuntimeError()), {}, 1),
        (FakeEngine(), {"vad": True}, 0),
    ],
    ids=["escalated", "picked", "primary error", "no speech"],
)
def test_only_accepted_clips_have_a_shadow(
    tiers: Tiers, scripted: Scripted, engine: FakeEngine, settings: dict[str, Any], calls: int
) -> None:
    fallback = scripted()
    primary = shadowed(tiers, fallback, engine, **settings)
    assert primary.transcribe(wav(silence(1))).status_code == 200
    assert held(primary) == 0
    assert set(ended(primary).values()) == {0}
    assert len(fallback.asked) == calls


def test_a_doubtful_text_that_had_to_do_has_no_shadow(tiers: Tiers, nobody: str) -> None:
    primary = shadowed(tiers, nobody, FakeEngine("hm"), on_fallback_failure="primary")
    assert primary.transcribe().json()["routing"]["degraded"] is True
    assert set(ended(primary).values()) == {0}


# In nobody's way


def test_the_answer_is_out_while_the_shadow_goes_on_and_nothing_of_the_callers_is_held(
    tiers: Tiers, scripted: Scripted
) -> None:
    hold = threading.Event()
    fallback = scripted(Reply(holds=hold))
    primary = shadowed(tiers, fallback, max_concurrency=1, max_queue=0, max_uploads=1)

    assert primary.transcribe().status_code == 200
    fallback.wait_for(1)

    snapshot = primary.get("/v1/metrics").json()
    assert (snapshot["uploads"], snapshot["in_flight"], snapshot["shadows"]) == (0, 0, 1)
    assert primary.transcribe().status_code == 200  # in the only place and the only slot
    hold.set()
    until(lambda: held(primary) == 0, "both are given back")


class OwnServer:
    """A primary's application below a server of the test's own, which takes answers as it likes."""

    def __init__(self, fallback: ScriptedFallback) -> None:
        config = primary_config(fallback_url=fallback.url, shadow_rate=1)
        self._app = create_app(config, FakeEngine(), POOLS)
        self._service: Service = self._app.state.service

    @asynccontextmanager
    async def ready(self) -> AsyncIterator[None]:
        async with self._service.lifespan():
            await asyncio.to_thread(until, lambda: self._service.state == "ready", "it is ready")
            yield

    async def until_held(self, clips: int) -> None:
        await asyncio.to_thread(until, lambda: self._service.tier.shadows == clips, "it holds them")

    async def post(self, name: str, take: Callable[[], Awaitable[object]]) -> None:
        head, _, body = request(wav(), f"X-Req-Id: {name}").partition(b"\r\n\r\n")
        lines = [line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:]]
        whole: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive() -> Message:
            return whole.pop() if whole else await asyncio.Future()

        async def send(message: Message) -> None:
            if message["type"] == "http.response.body":
                await take()

        scope = {"type": "http", "method": "POST", "path": TRANSCRIBE, "headers": lines}
        await self._app({**scope, "client": None, "query_string": b""}, receive, send)


async def at_once() -> None:
    pass


def test_the_shadow_begins_only_when_the_whole_answer_has_been_handed_over(
    scripted: Scripted,
) -> None:
    fallback = scripted()
    server = OwnServer(fallback)

    async def scenario() -> list[str]:
        async with server.ready():
            late = asyncio.Event()
            first = asyncio.ensure_future(server.post("first", late.wait))
            await server.until_held(1)
            await server.post("second", at_once)
            await asyncio.to_thread(fallback.wait_for, 1)
            before = [asked.headers["x-req-id"] for asked in fallback.asked]
            late.set()
            await first
            await asyncio.to_thread(fallback.wait_for, 2)
            return before

    assert asyncio.run(scenario()) == ["shadow-second"]
    assert [asked.headers["x-req-id"] for asked in fallback.asked][1:] == ["shadow-first"]


@pytest.mark.parametrize("how", ["fails", "is cancelled"])
def test_an_answer_that_cannot_be_sent_keeps_no_place(scripted: Scripted, how: str) -> None:
    server = OwnServer(scripted())

    async def fail() -> None:
        raise OSError("gone")

    async def scenario() -> None:
        async with server.ready():
            for _ in range(2 * AT_ONCE):
                take = fail if how == "fails" else asyncio.Event().wait
                answering = asyncio.ensure_future(server.post("r", take))
                if how == "is cancelled":
                    await server.until_held(1)
                    answering.cancel()
                await asyncio.wait({answering})
                await server.until_held(0)

    asyncio.run(scenario())


def test_no_more_clips_are_held_than_there_is_room_for(tiers: Tiers, scripted: Scripted) -> None:
    hold = threading.Event()
    fallback = scripted(Reply(holds=hold))
    primary = shadowed(tiers, fallback)
    for _ in range(AT_ONCE):
        primary.transcribe()
    fallback.wait_for(AT_ONCE)
    for _ in range(3):
        assert primary.transcribe().status_code == 200
    assert held(primary) == AT_ONCE
    wait_for(primary, skipped=3)
    hold.set()
    wait_for(primary, skipped=3, compared=AT_ONCE)
    assert len(fallback.asked) == AT_ONCE


class Turnstile(threading.Event):
    """Lets one through at a time; `set` lets all through."""

    def __init__(self) -> None:
        super().__init__()
        self._through = threading.Semaphore(0)

    def wait(self, timeout: float | None = None) -> bool:
        return self._through.acquire(timeout=timeout)

    def one(self) -> None:
        self._through.release()

    def set(self) -> None:
        self._through.release(1000)


def test_while_requests_wait_there_are_none(tiers: Tiers, scripted: Scripted) -> None:
    turnstile, fallback = Turnstile(), scripted()
    engine = FakeEngine(holds=turnstile)
    primary = shadowed(tiers, fallback, engine, max_concurrency=1)
    calls = [primary.begin() for _ in range(3)]
    primary.wait_for_queue(2)

    turnstile.one()
    wait_for(primary, skipped=1)  # the second one is inferred, and the third one waits
    assert fallback.asked == []
    turnstile.one()
    wait_for(primary, skipped=1, compared=1)
    turnstile.one()
    wait_for(primary, skipped=1, compared=2)
    assert [call.result().status_code for call in calls] == [200] * 3


def test_while_the_breaker_is_open_there_are_none(tiers: Tiers, scripted: Scripted) -> None:
    fallback = scripted(error(500, "internal"))
    primary = shadowed(tiers, fallback, FakeEngine("hm"))
    for _ in range(FAILURES_TO_OPEN):
        primary.transcribe()
    assert primary.metric("stt_fallback_breaker_open") == 1
    primary.fake.text = TEXT
    primary.transcribe()
    wait_for(primary, skipped=1)
    assert len(fallback.asked) == FAILURES_TO_OPEN


def test_while_the_fallback_is_needed_there_are_none(tiers: Tiers, scripted: Scripted) -> None:
    hold = threading.Event()
    fallback = scripted(Reply(holds=hold))
    primary = shadowed(tiers, fallback, FakeEngine("hm"))
    escalated = primary.begin()
    fallback.wait_for(1)
    primary.fake.text = TEXT
    primary.transcribe()
    wait_for(primary, skipped=1)
    hold.set()
    assert escalated.result().json()["routing"]["tier"] == "fallback"
    assert len(fallback.asked) == 1


@pytest.mark.parametrize("engine", [FakeEngine("hm"), FakeEngine(TEXT)], ids=["asked", "shadow"])
def test_a_fallback_that_said_it_is_busy_is_spared_for_a_while(
    tiers: Tiers, scripted: Scripted, engine: FakeEngine
) -> None:
    fallback = scripted(error(503, "overloaded", **{"Retry-After": "60"}))
    primary = shadowed(tiers, fallback, engine, request_timeout_s=30)
    primary.transcribe()
    fallback.wait_for(1)
    shadows = int(engine.text == TEXT)
    wait_for(primary, skipped=shadows)  # a shadow that finds it busy has not failed
    primary.fake.text = TEXT
    primary.transcribe()
    wait_for(primary, skipped=shadows + 1)
    assert len(fallback.asked) == 1


def test_a_request_that_needs_the_fallback_ends_the_shadows(
    tiers: Tiers, scripted: Scripted
) -> None:
    fallback = scripted(*[Reply(holds=threading.Event())] * AT_ONCE, Reply())
    primary = shadowed(tiers, fallback)
    for _ in range(AT_ONCE):
        primary.transcribe()
    fallback.wait_for(AT_ONCE)
    primary.fake.text = "hm"
    assert primary.transcribe().json()["routing"]["tier"] == "fallback"
    wait_for(primary, skipped=AT_ONCE)
    assert held(primary) == 0


def test_a_real_fallback_drops_the_work_for_a_shadow_that_is_given_up(tiers: Tiers) -> None:
    """What waits for its slot there; what runs there cannot be interrupted."""
    slow = FakeEngine("from the fallback", holds=threading.Event())
    fallback = tiers.fallback(slow, max_concurrency=1)
    primary = shadowed(tiers, fallback)
    for _ in range(AT_ONCE):
        primary.transcribe()
    slow.wait_for(1)
    fallback.wait_for_queue(AT_ONCE - 1)
    primary.fake.text = "hm"
    escalated = primary.begin()
    wait_for(primary, skipped=AT_ONCE)
    fallback.wait_for_queue(1)  # the escalation alone
    slow.let_go()
    assert escalated.result().json()["routing"]["tier"] == "fallback"
    assert len(slow.heard) == 2


# When it goes wrong


@pytest.mark.parametrize(
    "reply",
    [
        error(500, "internal"),
        error(401, "unauthorized"),
        Reply(fault="cut"),
        Reply(200, b"<html>"),
        Reply(fault="drip"),
    ],
    ids=["error", "rejected", "cut", "invalid", "drip"],
)
def test_a_shadow_that_fails_is_counted_and_no_breaker_hears_of_it(
    tiers: Tiers, scripted: Scripted, reply: Reply
) -> None:
    primary = shadowed(tiers, scripted(reply), fallback_timeout_s=0.3)
    assert primary.transcribe().status_code == 200
    wait_for(primary, failed=1)
    breaker = primary.get("/v1/metrics").json()["fallback_breaker"]
    assert (breaker["state"], breaker["failures"]) == ("closed", 0)
    assert primary.metric("stt_fallback_total", result="failed") == 0
    assert primary.metric("stt_shadow_disagreement_count") == 0
    assert held(primary) == 0


def test_a_caller_who_goes_away_before_the_answer_has_no_shadow(
    tiers: Tiers, scripted: Scripted
) -> None:
    fallback = scripted()
    engine = FakeEngine(holds=threading.Event())
    primary = shadowed(tiers, fallback, engine)
    with primary.connect(request(wav())):
        engine.wait_for(1)
    until(lambda: primary.get("/v1/metrics").json()["uploads"] == 0, "nobody waits for it")
    engine.let_go()
    engine.wait_until_idle()
    assert (held(primary), fallback.asked) == (0, [])
    assert set(ended(primary).values()) == {0}


def test_a_caller_who_goes_away_after_the_answer_changes_nothing(
    tiers: Tiers, scripted: Scripted
) -> None:
    hold = threading.Event()
    fallback = scripted(Reply(holds=hold))
    primary = shadowed(tiers, fallback)
    assert primary.exchange(request(wav()))[0] == 200
    fallback.wait_for(1)
    hold.set()
    wait_for(primary, compared=1)


@pytest.mark.process
def test_a_caller_who_takes_nothing_of_the_answer_leaves_nothing_behind(
    tiers: Tiers, scripted: Scripted
) -> None:
    """More of it than fits into the buffers of a connection whose caller takes nothing."""
    primary = shadowed(tiers, scripted(), FakeEngine("x" * 8_000_000), min_words_for_conf=1)
    for _ in range(AT_ONCE + 1):
        with socket.socket() as deaf:
            deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            deaf.connect(("127.0.0.1", primary.port))
            deaf.sendall(request(wav()))
            assert deaf.recv(1)
        until(lambda: held(primary) == 0, "nothing is held")
    wait_for(primary, compared=AT_ONCE + 1)


@pytest.mark.process
def test_a_thousand_shadows_leave_nothing_behind(tiers: Tiers, scripted: Scripted) -> None:
    fallback = scripted(said(TEXT))
    primary = shadowed(tiers, fallback, FakeEngine(TEXT))
    clip = wav(tone(0.123))
    for _ in range(1000):
        assert primary.transcribe(clip).status_code == 200
    until(lambda: sum(ended(primary).values()) == 1000, "each has ended, once")
    outcomes = ended(primary)
    assert outcomes["compared"] == primary.metric("stt_shadow_disagreement_count") > 0
    assert outcomes["failed"] == 0
    assert (held(primary), primary.get("/v1/metrics").json()["uploads"]) == (0, 0)
    assert fallback.connections <= AT_ONCE
    gc.collect()
    kept = [each for each in gc.get_objects() if isinstance(each, Upload) and each.audio == clip]
    assert kept == []
