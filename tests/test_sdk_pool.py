"""Several primaries behind one client: hosts that fail, refuse, come and go. Real sockets."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from contextlib import AsyncExitStack

import httpx2
import pytest

from fakes import FakeEngine, Reply, error
from primaries import (
    BROKEN,
    DRAINING,
    HIDDEN,
    LOADING,
    OVERLOADED,
    READY,
    SILENT,
    TEXT,
    Primary,
    counts,
    until,
)
from running import Tiers, primary_config
from stt_sdk import (
    ConnectionFailed,
    Event,
    InternalError,
    InvalidAnswerError,
    RequestStarted,
    RetryPolicy,
    STTError,
    STTPool,
    TimedOut,
    _pool,
)
from stt_sdk._health import FAILURES_TO_EJECT
from tones import wav

CLIP = b"clip" * 4000
INTERNAL = error(500, "internal", **{"X-Error-Type": "internal"})
PROXYS_OWN = Reply(503, b"no healthy upstream")
NONSENSE = Reply(body=b"<html>welcome</html>")


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look at the hosts more often, so that nobody waits for it."""
    monkeypatch.setattr(_pool, "PROBE_INTERVAL_S", 0.05)


def states(pool: STTPool) -> list[str]:
    return [host.state for host in pool.hosts]


async def fail(pool: STTPool, times: int = FAILURES_TO_EJECT) -> list[STTError]:
    """Calls one after the other, each of which fails."""
    errors = []
    for _ in range(times):
        with pytest.raises(STTError) as caught:
            await pool.transcribe(CLIP, deadline=5)
        errors.append(caught.value)
    return errors


def test_no_call_is_lost_while_a_host_is_not_there(nobody: str) -> None:
    async def scenario() -> None:
        async with Primary() as there, STTPool([nobody, there.url]) as pool:
            results = await asyncio.gather(*(pool.transcribe(CLIP) for _ in range(50)))
            assert {result.host for result in results} == {there.url}
            assert len(there.asked) == len(set(there.asked)) == 50
            await until(lambda: states(pool) == ["not_ready", "well"])
            assert (await pool.transcribe(CLIP)).attempts == 1

    asyncio.run(scenario())


def test_a_call_whose_host_dies_under_it_is_answered_by_another_one() -> None:
    async def scenario() -> None:
        async with Primary() as first, Primary() as second, STTPool([first.url]) as pool:
            first.gate.clear()
            calls = [asyncio.ensure_future(pool.transcribe(CLIP)) for _ in range(20)]
            await first.came(20)
            await pool.add(second.url)
            await first.die()
            results = await asyncio.gather(*calls)
            assert {(result.host, result.attempts) for result in results} == {(second.url, 2)}
            assert sorted(second.asked) == sorted(first.asked)

    asyncio.run(scenario())


def test_a_call_that_broke_two_hosts_is_not_given_to_a_third() -> None:
    async def scenario() -> None:
        async with AsyncExitStack() as stack:
            primaries = [await stack.enter_async_context(Primary(BROKEN)) for _ in range(3)]
            async with STTPool([one.url for one in primaries]) as pool:
                (failure,) = await fail(pool, 1)
            assert isinstance(failure, ConnectionFailed)
            assert (failure.sent, failure.attempts) == (True, 2)
            assert sorted(counts(primaries)) == [0, 1, 1]

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("says", "expected"),
    [(INTERNAL, InternalError), (NONSENSE, InvalidAnswerError), (PROXYS_OWN, STTError)],
    ids=["internal", "nonsense", "proxy"],
)
def test_a_host_is_out_after_five_bad_answers_however_fast_they_come(
    says: Reply, expected: type[STTError]
) -> None:
    async def scenario() -> None:
        good = Primary()
        async with Primary(says, HIDDEN) as bad, STTPool([bad.url], retries=0) as pool:
            for failure in await fail(pool):
                assert isinstance(failure, expected)
            assert states(pool) == ["ejected"]
            async with good:
                await pool.add(good.url)
                for _ in range(30):
                    assert (await pool.transcribe(CLIP)).host == good.url
            assert len(bad.asked) == FAILURES_TO_EJECT

    asyncio.run(scenario())


def test_readiness_ends_an_ejection() -> None:
    async def scenario() -> None:
        async with Primary(INTERNAL, HIDDEN) as primary, STTPool([primary.url]) as pool:
            await fail(pool)
            assert states(pool) == ["ejected"]
            primary.readiness = READY
            await until(lambda: states(pool) == ["well"])

    asyncio.run(scenario())


def test_the_last_host_is_asked_however_often_it_failed() -> None:
    async def scenario() -> None:
        async with Primary(BROKEN, HIDDEN) as primary, STTPool([primary.url]) as pool:
            await fail(pool)
            assert states(pool) == ["ejected"]
            primary.says = TEXT
            assert (await pool.transcribe(CLIP)).attempts == 1

    asyncio.run(scenario())


def test_when_all_are_out_the_one_that_is_back_is_found() -> None:
    async def scenario() -> None:
        async with AsyncExitStack() as stack:
            primaries = [await stack.enter_async_context(Primary()) for _ in range(3)]
            policy = RetryPolicy(retries=2, backoff=0)
            async with STTPool([one.url for one in primaries], retries=policy) as pool:
                for one in primaries:
                    await one.die()
                await until(lambda: states(pool) == ["not_ready"] * 3)
                primaries[1].readiness = HIDDEN  # nobody hears that it is back
                await primaries[1].listen()
                assert (await pool.transcribe(CLIP)).host == primaries[1].url

    asyncio.run(scenario())


def test_a_host_that_asks_to_wait_is_left_alone_while_others_have_room() -> None:
    async def scenario() -> None:
        async with Primary(OVERLOADED) as busy, Primary() as free:
            async with STTPool([busy.url, free.url]) as pool:
                for _ in range(50):
                    await pool.transcribe(CLIP)
                assert states(pool) == ["busy", "well"]
            assert counts([busy, free]) == [1, 50]

    asyncio.run(scenario())


def test_callers_in_a_hurry_do_not_take_a_host_from_the_others() -> None:
    async def scenario() -> None:
        async with Primary(SILENT, HIDDEN) as slow, STTPool([slow.url]) as pool:
            for _ in range(2 * FAILURES_TO_EJECT):
                with pytest.raises(TimedOut):
                    await pool.transcribe(CLIP, deadline=0.02)
            assert states(pool) == ["well"]

    asyncio.run(scenario())


def test_a_header_that_cannot_be_sent_is_no_hosts_fault() -> None:
    def hook(event: Event) -> None:
        if isinstance(event, RequestStarted):
            event.headers["traceparent"] = "two\nlines"

    async def scenario() -> None:
        async with Primary() as primary, STTPool([primary.url], telemetry=hook) as pool:
            for _ in range(FAILURES_TO_EJECT):
                with pytest.raises(ValueError, match="cannot be sent"):
                    await pool.transcribe(CLIP)
            assert states(pool) == ["well"]
            assert primary.asked == []

    asyncio.run(scenario())


def test_long_clips_count_for_what_they_are() -> None:
    async def scenario() -> None:
        async with Primary() as first, Primary() as second:
            first.gate.clear()
            async with STTPool([first.url]) as pool:
                long = asyncio.ensure_future(pool.transcribe(100 * CLIP))
                await first.came(1)
                await pool.add(second.url)
                for _ in range(20):
                    assert (await pool.transcribe(CLIP)).host == second.url
                assert [host.outstanding for host in pool.hosts] == [200.0, 0.0]
                first.gate.set()
                assert (await long).host == first.url
                assert [host.calls for host in pool.hosts] == [0, 0]

    asyncio.run(scenario())


def test_what_the_service_says_of_itself_comes_from_a_host_that_is_there(nobody: str) -> None:
    async def scenario() -> None:
        async with Primary() as there, STTPool([nobody, nobody, there.url]) as pool:
            for _ in range(20):
                assert (await pool.ready()).ready

    asyncio.run(scenario())


def test_a_draining_tier_gets_nothing_new_and_no_call_is_lost(tiers: Tiers, nobody: str) -> None:
    going, staying = (tiers.primary(fallback=nobody) for _ in range(2))

    async def scenario() -> None:
        async with STTPool([going.url, staying.url]) as pool:
            await pool.transcribe(wav())
            going.service.drain()
            for _ in range(20):
                await pool.transcribe(wav())
            await until(lambda: states(pool) == ["draining", "well"])
            before = len(staying.fake.heard)
            results = await asyncio.gather(*(pool.transcribe(wav()) for _ in range(20)))
            assert {(result.host, result.attempts) for result in results} == {(staying.url, 1)}
            assert len(staying.fake.heard) == before + 20

    asyncio.run(scenario())


def test_a_tier_that_loads_its_model_gets_calls_when_it_is_ready(tiers: Tiers, nobody: str) -> None:
    ready = tiers.primary(fallback=nobody)
    loads = threading.Event()
    config = primary_config(fallback_url=nobody)
    loading = tiers.run(config, FakeEngine(loads=loads), wait=False)

    async def scenario() -> None:
        async with STTPool([loading.url, ready.url]) as pool:
            await until(lambda: states(pool) == ["not_ready", "well"])
            for _ in range(10):
                assert (await pool.transcribe(wav())).host == ready.url
            loads.set()
            await until(lambda: states(pool) == ["well", "well"])
            hosts = Counter([(await pool.transcribe(wav())).host for _ in range(40)])
            assert hosts[loading.url] > 0

    asyncio.run(scenario())


def test_readiness_is_asked_again_and_again_and_believed() -> None:
    async def scenario() -> None:
        async with Primary() as primary, STTPool([primary.url]) as pool:
            for readiness, state in (
                (DRAINING, "draining"),
                (LOADING, "not_ready"),
                (READY, "well"),
                (SILENT, "not_ready"),
                (BROKEN, "not_ready"),
                (READY, "well"),
            ):
                primary.readiness = readiness
                await until(lambda state=state: states(pool) == [state])  # type: ignore[misc]

    asyncio.run(scenario())


def test_a_host_says_how_its_attempts_went(nobody: str) -> None:
    async def scenario() -> None:
        async with Primary() as good, Primary(INTERNAL) as bad:
            async with STTPool([good.url, bad.url], retries=0) as pool:
                failed = 0
                for _ in range(20):
                    try:
                        await pool.transcribe(CLIP)
                    except InternalError:
                        failed += 1
                stats = [host.stats for host in pool.hosts]
            assert [one.count for one in stats] == [20 - failed, failed] == counts([good, bad])
            assert [one.errors for one in stats] == [0, failed]
            assert (pool.stats.count, pool.stats.errors) == (20, failed)

    asyncio.run(scenario())


class Flaky(httpx2.AsyncBaseTransport):
    """Asking whether a host is ready raises what nobody expects, twice; then it is draining."""

    def __init__(self) -> None:
        self.asked = 0
        self.closed = False

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        if request.url.path == "/v1/transcribe":
            return httpx2.Response(200, json=TEXT.body)
        self.asked += 1
        if self.asked <= 2:
            raise KeyError("unexpected")
        return httpx2.Response(503, json=DRAINING.body)

    async def aclose(self) -> None:
        self.closed = True


def test_a_pool_goes_on_watching_whatever_goes_wrong(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        async with STTPool(["http://one"], transport=Flaky()) as pool:
            await until(lambda: states(pool) == ["draining"])

    asyncio.run(scenario())
    assert sum("watching the hosts failed" in record.message for record in caplog.records) == 2


def test_a_transport_of_the_callers_own_outlives_the_hosts_that_leave() -> None:
    async def scenario() -> None:
        transport = Flaky()
        async with STTPool(["http://one", "http://two"], transport=transport) as pool:
            await pool.remove("http://one")
            assert not transport.closed
            assert (await pool.transcribe(CLIP)).host == "http://two"
        assert transport.closed

    asyncio.run(scenario())
