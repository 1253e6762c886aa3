"""A fallback that misbehaves: each fault gets its answer in time, and none outlasts its cause."""

from __future__ import annotations

import asyncio
import gzip
import inspect
import json
import random
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx2
import pytest
import uvicorn
from structlog.testing import capture_logs

from fakes import FakeEngine, Fault, Reply, ScriptedFallback, answer_of_fallback
from running import RunningTier, Tiers, primary_config, until
from stt_cascade.admission.deadline import Deadline
from stt_cascade.admission.keys import Secrets
from stt_cascade.cascade import breaker as breaker_module
from stt_cascade.cascade import fallback_client
from stt_cascade.cascade.breaker import FAILURES_TO_OPEN, PROBE_INTERVAL_S
from stt_cascade.cascade.fallback_answer import CAUSES, MAX_ANSWER_BYTES, FallbackError
from stt_cascade.cascade.fallback_client import KEEPALIVE_S, MAX_CALLS, FallbackClient
from stt_cascade.cascade.retry_budget import CALLS_PER_RETRY, RESERVE
from stt_cascade.engine.decoding import MAX_TOKENS
from stt_cascade.engine.protocol import Options
from stt_cascade.record import Record
from stt_cascade.upload import Upload
from tones import wav

Scripted = Callable[..., ScriptedFallback]


def error(status: int, type_: str, **headers: str) -> Reply:
    """An error as a fallback of ours answers it."""
    body = {"error": {"type": type_, "message": "as it says", "request_id": "theirs"}}
    return Reply(status, body, headers)


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
    "endless body": (Reply(fault="endless"), "invalid", "longer than 16777216 bytes"),
    "half the JSON": (Reply(200, WHOLE[: len(WHOLE) // 2]), "invalid", "not of the agreed form"),
    "other JSON": (Reply(200, b'{"ok": true}'), "invalid", "not of the agreed form"),
    "compressed": (
        Reply(200, gzip.compress(WHOLE), {"Content-Encoding": "gzip"}),
        "invalid",
        "not of the agreed form",
    ),
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
    assert "the next one will be made in" in says
    assert "X-Fallback-Infer-ms" not in last.headers  # there was no round trip
    assert primary.metric("stt_fallback_infer_seconds_count") == 5
    if setting == "error":
        assert (last.status_code, last.headers["X-Error-Type"]) == (502, "fallback_failed")
        assert "circuit breaker is open" in last.json()["error"]["message"]
    else:
        assert (last.status_code, last.json()["text"]) == (200, "hm")


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


# The client alone: virtual time for the breaker, real sockets


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Asking:
    """A client and its clock."""

    def __init__(self, client: FallbackClient, clock: Clock) -> None:
        self.client = client
        self.clock = clock

    async def ask(self, seconds: float = 20) -> str:
        upload = Upload(b"clip" * 10_000, raw_g722=False, options=Options())
        return (await self.client.ask(upload, Record("id", "/", "t"), Deadline(seconds))).text

    def begin(self) -> asyncio.Task[str]:
        return asyncio.ensure_future(self.ask())

    async def outcome(self, seconds: float = 20) -> str:
        """`ok`, or the cause of the failure."""
        try:
            await self.ask(seconds)
        except FallbackError as error:
            return error.cause
        return "ok"

    async def outcomes(self, calls: int) -> list[str]:
        return [await self.outcome() for _ in range(calls)]

    @property
    def state(self) -> str:
        return self.client.breaker.state


@asynccontextmanager
async def asking(fallback: ScriptedFallback, **settings: Any) -> AsyncIterator[Asking]:
    config = primary_config(fallback_url=fallback.url, **settings)
    clock = Clock()
    async with FallbackClient(config, Secrets(config), clock=clock) as client:
        yield Asking(client, clock)


async def came(fallback: ScriptedFallback, calls: int) -> None:
    await asyncio.to_thread(fallback.wait_for, calls)


def test_one_probe_an_interval_until_it_works_and_a_log_line_for_each_change(
    scripted: Scripted,
) -> None:
    fallback = scripted(*[Reply(fault="reset")] * (FAILURES_TO_OPEN + 2), Reply())

    async def scenario() -> list[list[str]]:
        async with asking(fallback) as asked:
            seen = [await asked.outcomes(FAILURES_TO_OPEN)]
            for _ in range(4):
                asked.clock.now += PROBE_INTERVAL_S - 1
                seen.append(await asked.outcomes(2))
                asked.clock.now += 1
                seen.append(await asked.outcomes(3))
            return seen

    with capture_logs() as lines:
        first, *intervals = asyncio.run(scenario())

    off = "breaker_open"
    assert first == ["broken_off"] * 5
    assert intervals[:4] == [[off, off], ["broken_off", off, off]] * 2
    assert intervals[4:] == [[off, off], ["ok", "ok", "ok"], ["ok", "ok"], ["ok", "ok", "ok"]]
    opened, closed = [line for line in lines if "circuit breaker" in line["event"]]
    assert opened["event"] == "the fallback's circuit breaker opened"
    assert (opened["log_level"], opened["failures"], opened["cause"]) == (
        "warning",
        5,
        "broken_off",
    )
    assert "ReadError" in opened["last_error"]
    assert (closed["event"], closed["log_level"]) == (
        "the fallback's circuit breaker closed",
        "info",
    )


def test_while_a_probe_is_under_way_nobody_else_asks_and_who_goes_away_gives_the_place_back(
    scripted: Scripted,
) -> None:
    held = Reply(holds=threading.Event())
    fallback = scripted(*[error(500, "internal")] * FAILURES_TO_OPEN, held, Reply())

    async def scenario() -> None:
        async with asking(fallback) as asked:
            await asked.outcomes(FAILURES_TO_OPEN)
            asked.clock.now += PROBE_INTERVAL_S
            probe = asked.begin()
            await came(fallback, FAILURES_TO_OPEN + 1)
            asked.clock.now += 2 * PROBE_INTERVAL_S
            with pytest.raises(FallbackError, match="failed, one that tries it is under way"):
                await asked.ask()
            assert asked.state == "half_open"
            probe.cancel()
            await asyncio.wait({probe})
            assert asked.state == "open"
            assert await asked.outcomes(2) == ["ok", "ok"]

    asyncio.run(scenario())
    assert len(fallback.asked) == FAILURES_TO_OPEN + 3


def test_callers_who_go_away_do_not_open_the_breaker(scripted: Scripted) -> None:
    fallback = scripted(*[Reply(holds=threading.Event())] * (2 * FAILURES_TO_OPEN), Reply())

    async def scenario() -> None:
        async with asking(fallback) as asked:
            for number in range(2 * FAILURES_TO_OPEN):
                call = asked.begin()
                await came(fallback, number + 1)
                call.cancel()
                await asyncio.wait({call})
            assert await asked.outcome() == "ok"

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("reply", "cause"),
    [(Reply(fault="silence"), "timeout"), (error(504, "deadline_exceeded"), "timeout")],
)
def test_hasty_callers_do_not_open_the_breaker_but_a_fallback_that_had_its_time_does(
    scripted: Scripted, reply: Reply, cause: str
) -> None:
    async def scenario(fallback: ScriptedFallback, timeout: float) -> str:
        async with asking(fallback, fallback_timeout_s=timeout) as asked:
            for _ in range(FAILURES_TO_OPEN):
                assert await asked.outcome(seconds=0.1) == cause
            return asked.state

    assert asyncio.run(scenario(scripted(reply), timeout=30)) == "closed"
    assert asyncio.run(scenario(scripted(reply), timeout=0.1)) == "open"


def test_a_fallback_that_stays_busy_sees_a_fifth_more_calls_not_twice_as_many(
    scripted: Scripted,
) -> None:
    fallback = scripted(error(503, "overloaded", **{"Retry-After": "0"}))

    async def scenario() -> list[str]:
        async with asking(fallback) as asked:
            says = []
            for _ in range(100):
                with pytest.raises(FallbackError) as caught:
                    await asked.ask()
                says.append(str(caught.value))
            return says

    says = asyncio.run(scenario())
    assert 100 + RESERVE <= len(fallback.asked) <= 100 + 100 / CALLS_PER_RETRY + RESERVE
    assert "retry budget" not in says[0]
    assert says[-1].endswith("(not asked again: the retry budget is spent)")


def test_a_lone_failure_is_tried_again_at_any_time(scripted: Scripted) -> None:
    calm = [Reply()] * CALLS_PER_RETRY
    busy = error(503, "overloaded", **{"Retry-After": "0"})
    fallback = scripted(*[busy] * 100, *calm, busy, Reply())

    async def scenario() -> None:
        async with asking(fallback) as asked:
            while len(fallback.asked) < 100:
                await asked.outcome()
            assert await asked.outcomes(CALLS_PER_RETRY + 1) == ["ok"] * (CALLS_PER_RETRY + 1)

    asyncio.run(scenario())
    assert len(fallback.asked) == len(fallback.replies)


# Places and connections


def test_no_more_calls_are_made_at_once_than_there_are_places(scripted: Scripted) -> None:
    hold = threading.Event()
    fallback = scripted(Reply(holds=hold))

    async def scenario() -> list[str]:
        async with asking(fallback) as asked:
            calls = [asked.begin() for _ in range(MAX_CALLS + 20)]
            await came(fallback, MAX_CALLS)
            # One more waits, as long as its deadline allows, and says what it waited for.
            with pytest.raises(FallbackError, match="left no place in time") as caught:
                await asked.ask(seconds=0.1)
            assert caught.value.cause == "overloaded"
            assert asked.state == "closed"
            assert len(fallback.asked) == MAX_CALLS
            hold.set()
            return await asyncio.gather(*calls)

    assert len(asyncio.run(scenario())) == MAX_CALLS + 20
    assert fallback.most_live == MAX_CALLS


def test_who_waits_for_a_place_learns_that_the_breaker_has_opened(scripted: Scripted) -> None:
    hold = threading.Event()
    fallback = scripted(Reply(holds=hold, fault="cut"))

    async def scenario() -> Counter[str]:
        async with asking(fallback) as asked:
            calls = [asyncio.ensure_future(asked.outcome()) for _ in range(MAX_CALLS + 20)]
            await came(fallback, MAX_CALLS)
            hold.set()
            return Counter(await asyncio.gather(*calls))

    outcomes = asyncio.run(scenario())
    assert set(outcomes) == {"broken_off", "breaker_open"}
    assert len(fallback.asked) == outcomes["broken_off"] < MAX_CALLS + FAILURES_TO_OPEN


def test_after_many_calls_that_were_cancelled_anywhere_the_next_hundred_succeed(
    scripted: Scripted, request: pytest.FixtureRequest
) -> None:
    """Waiting for a place, connecting, sending, waiting for the answer, or reading it."""
    cancelled = request.config.getoption("--cancelled-calls")
    chance = random.Random(4)
    hold = threading.Event()
    held: list[Reply] = [Reply(), Reply(holds=hold), Reply(fault="drip")]
    fallback = scripted(*chance.choices(held, k=10 * cancelled))

    async def scenario() -> None:
        async with asking(fallback) as asked:

            async def call_and_go_away() -> None:
                before = len(fallback.asked)
                call = asked.begin()
                if chance.random() < 0.5:
                    for _ in range(chance.randrange(40)):
                        await asyncio.sleep(0)
                else:
                    await came(fallback, before + 1)
                    await asyncio.sleep(chance.uniform(0, 0.1))
                call.cancel()
                await asyncio.wait({call})

            for _ in range(0, cancelled, 100):  # in waves, each more than there are places
                await asyncio.gather(*[call_and_go_away() for _ in range(100)])
            assert fallback.asked  # some came as far as that
            hold.set()
            fallback.replies = [Reply()]
            calls = [asked.begin() for _ in range(100)]
            assert await asyncio.gather(*calls) == ["from the fallback"] * 100
            assert asked.state == "closed"

    asyncio.run(scenario())


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


def test_connections_are_kept_for_a_shorter_time_than_the_server_keeps_them(
    scripted: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = inspect.signature(uvicorn.Config).parameters["timeout_keep_alive"].default
    assert theirs > KEEPALIVE_S

    async def connections(fallback: ScriptedFallback) -> int:
        async with asking(fallback) as asked:
            assert await asked.outcomes(3) == ["ok"] * 3
        return fallback.connections

    assert asyncio.run(connections(scripted())) == 1
    monkeypatch.setattr(fallback_client, "KEEPALIVE_S", 0)
    assert asyncio.run(connections(scripted())) == 3


@pytest.mark.parametrize("fault", ["truncate", "drip", "endless", "reset"])
def test_a_connection_on_which_an_answer_went_wrong_is_not_used_again(
    scripted: Scripted, fault: Fault
) -> None:
    fallback = scripted(Reply(fault=fault), Reply())

    async def scenario() -> list[str]:
        async with asking(fallback, fallback_timeout_s=1) as asked:
            return await asked.outcomes(2)

    first, second = asyncio.run(scenario())
    assert (first == "ok", second) == (False, "ok")
    assert fallback.connections == 2


def test_the_longest_answer_there_can_be_is_read(scripted: Scripted) -> None:
    """4 hours, every window at the token limit, each token a word with its times."""
    word = {"start": 14399.12, "end": 14399.88, "word": " word", "probability": 0.1234}
    segment = {
        **{"start": 14370.0, "end": 14400.0, "text": " word" * MAX_TOKENS},
        **{"avg_logprob": -0.1234, "no_speech_prob": 0.1234, "words": [word] * MAX_TOKENS},
    }
    windows = 14400 // 30
    body = answer_of_fallback(segments=[segment] * windows, text=" word" * MAX_TOKENS * windows)
    longest = json.dumps(body).encode()
    assert len(longest) < MAX_ANSWER_BYTES
    fallback = scripted(Reply(200, longest))

    async def scenario() -> str:
        async with asking(fallback) as asked:
            return await asked.ask()

    assert asyncio.run(scenario()) == body["text"]
