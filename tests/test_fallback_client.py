"""The client of the fallback alone: real sockets, virtual time for its breaker."""

from __future__ import annotations

import asyncio
import inspect
import json
import random
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvicorn
from structlog.testing import capture_logs

from fakes import FALLBACK_KEY, Clock, Fault, Reply, ScriptedFallback, answer_of_fallback, error
from running import Tiers, primary_config
from stt_cascade.admission.deadline import Deadline
from stt_cascade.admission.keys import Secrets
from stt_cascade.cascade import fallback_client
from stt_cascade.cascade.breaker import FAILURES_TO_OPEN, PROBE_INTERVAL_S
from stt_cascade.cascade.fallback_answer import MAX_ANSWER_BYTES, FallbackError
from stt_cascade.cascade.fallback_client import KEEPALIVE_S, MAX_CALLS, FallbackClient
from stt_cascade.engine.decoding import MAX_TOKENS
from stt_cascade.engine.protocol import Options
from stt_cascade.record import Record
from stt_cascade.upload import Upload
from stt_sdk._budget import CALLS_PER_RETRY, RESERVE

Scripted = Callable[..., ScriptedFallback]


class Asking:
    """A client and its clock."""

    def __init__(self, client: FallbackClient, clock: Clock) -> None:
        self.client = client
        self.clock = clock

    async def ask(
        self,
        seconds: float = 20,
        audio: bytes = b"clip" * 10_000,
        lasts: float | None = None,
        caller: str = "",
    ) -> str:
        upload = Upload(audio, raw_g722=False, options=Options())
        record = Record("id", "/", "t", audio_seconds=lasts, caller=caller)
        return (await self.client.ask(upload, record, Deadline(seconds))).text

    def begin(self) -> asyncio.Task[str]:
        return asyncio.ensure_future(self.ask())

    async def outcome(self, seconds: float = 20, lasts: float | None = None) -> str:
        """`ok`, or the cause of the failure."""
        try:
            await self.ask(seconds, lasts=lasts)
        except FallbackError as error:
            return error.cause
        return "ok"

    async def outcomes(self, calls: int) -> list[str]:
        return [await self.outcome() for _ in range(calls)]

    @property
    def state(self) -> str:
        return self.client.breaker.state


@asynccontextmanager
async def asking(fallback: ScriptedFallback | str, **settings: Any) -> AsyncIterator[Asking]:
    url = fallback if isinstance(fallback, str) else fallback.url
    config = primary_config(fallback_url=url, **settings)
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


def test_a_retry_counts_as_a_call_and_is_not_made_once_the_breaker_is_open(nobody: str) -> None:
    async def scenario() -> list[str]:
        async with asking(nobody) as asked:
            return await asked.outcomes(4)

    assert asyncio.run(scenario()) == ["unreachable"] * 3 + ["breaker_open"]  # 2 + 2 + 1 calls


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
    async def scenario(fallback: ScriptedFallback, timeout_s: float) -> str:
        async with asking(fallback, fallback_timeout_s=timeout_s) as asked:
            for _ in range(FAILURES_TO_OPEN):
                assert await asked.outcome(seconds=0.1) == cause
            return asked.state

    assert asyncio.run(scenario(scripted(reply), 30)) == "closed"
    assert asyncio.run(scenario(scripted(reply), 0.1)) == "open"


@pytest.mark.parametrize(("lasts", "state"), [(30.0, "open"), (30.1, "closed"), (600.0, "closed")])
def test_a_clip_that_is_long_may_time_out_and_does_not_open_the_breaker(
    scripted: Scripted, lasts: float, state: str
) -> None:
    async def scenario() -> str:
        async with asking(scripted(Reply(fault="silence")), fallback_timeout_s=0.1) as asked:
            for _ in range(FAILURES_TO_OPEN):
                assert await asked.outcome(lasts=lasts) == "timeout"
            return asked.state

    assert asyncio.run(scenario()) == state


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


def test_a_callers_call_does_not_wait_for_those_of_another(
    scripted: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fallback_client, "MAX_CALLS", 1)
    hold = threading.Event()
    fallback = scripted(Reply(holds=hold))

    async def scenario() -> list[str]:
        order = list[str]()
        async with asking(fallback) as asked:

            async def one(caller: str) -> None:
                await asked.ask(caller=caller)
                order.append(caller)

            calls = []
            for caller in ("many", "many", "many", "other"):
                calls.append(asyncio.ensure_future(one(caller)))
                await asyncio.sleep(0)
            await came(fallback, 1)
            hold.set()
            await asyncio.gather(*calls)
        return order

    assert asyncio.run(scenario()) == ["many", "other", "many", "many"]


def test_a_busy_fallback_gets_no_more_calls_at_once_than_it_bears(scripted: Scripted) -> None:
    hold = threading.Event()
    busy = error(503, "overloaded", **{"Retry-After": "60"})
    fallback = scripted(*[Reply(holds=hold)] * 2, busy, *[Reply(holds=hold)] * 9)

    async def scenario() -> None:
        async with asking(fallback) as asked:
            first = [asked.begin() for _ in range(2)]
            await came(fallback, 2)
            assert await asked.outcome() == "overloaded"
            more = [asked.begin() for _ in range(4)]
            await asyncio.sleep(0)
            assert asked.client._under_way == 2
            hold.set()
            await asyncio.gather(*first, *more)
            assert asked.client._bears > 4

    asyncio.run(scenario())
    assert fallback.most_live <= 3


def test_an_open_breaker_needs_no_place_to_refuse(
    scripted: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fallback_client, "MAX_CALLS", 1)
    held = Reply(holds=threading.Event())
    fallback = scripted(*[error(500, "internal")] * FAILURES_TO_OPEN, held)

    async def scenario() -> None:
        async with asking(fallback) as asked:
            await asked.outcomes(FAILURES_TO_OPEN)
            asked.clock.now += PROBE_INTERVAL_S
            probe = asked.begin()
            await came(fallback, FAILURES_TO_OPEN + 1)
            assert await asked.outcome() == "breaker_open"
            assert not probe.done()
            probe.cancel()
            await asyncio.wait({probe})

    asyncio.run(scenario())


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
                went_away = call.cancel()
                await asyncio.wait({call})
                assert call.cancelled() is went_away

            for _ in range(0, cancelled, 100):  # in waves, each more than there are places
                await asyncio.gather(*[call_and_go_away() for _ in range(100)])
            assert fallback.asked  # some came as far as that
            hold.set()
            before = len(fallback.asked)
            all_there = threading.Event()
            fallback.replies = [Reply(holds=all_there)]
            calls = [asked.begin() for _ in range(100)]
            await came(fallback, before + MAX_CALLS)  # no place is lost
            all_there.set()
            assert await asyncio.gather(*calls) == ["from the fallback"] * 100
            assert asked.state == "closed"

    asyncio.run(scenario())


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


@pytest.mark.parametrize(
    ("key", "mb", "says"),
    [
        (FALLBACK_KEY, 1, "answered 413 payload_too_large"),
        ("another-key-0123456789", 16, "answered 401 unauthorized"),
    ],
)
def test_a_fallback_that_refuses_a_large_clip_before_it_is_sent_is_understood(
    tiers: Tiers, key: str, mb: float, says: str
) -> None:
    """It stops reading and hangs up; that is no fault of its own, and opens no breaker."""
    fallback = tiers.fallback(api_keys=(FALLBACK_KEY,), max_upload_mb=mb)

    async def scenario() -> None:
        async with asking(fallback.url, fallback_api_key=key) as asked:
            for _ in range(FAILURES_TO_OPEN):
                with pytest.raises(FallbackError, match=says) as caught:
                    await asked.ask(audio=bytes(15_000_000))
                assert caught.value.cause == "rejected"
            assert asked.state == "closed"

    asyncio.run(scenario())


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
