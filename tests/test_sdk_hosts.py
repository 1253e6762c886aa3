"""A pool's hosts come and go: by hand, by what a name stands for, and at its end. Real sockets."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from fakes import PATIENCE
from primaries import Primary, counts, until
from stt_sdk import ConnectionFailed, STTPool, TimedOut, _pool
from stt_sdk._pool import system_addresses
from stt_sdk._within import within

CLIP = b"clip" * 4000
LOOPBACKS = ("127.0.0.1", "127.0.0.2", "127.0.0.3")


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look at hosts and names more often, so that nobody waits for it."""
    monkeypatch.setattr(_pool, "PROBE_INTERVAL_S", 0.05)
    monkeypatch.setattr(_pool, "RESOLVE_INTERVAL_S", 0.01)


class Names:
    """Knows one name, and what it stands for; `resolve` of a pool."""

    def __init__(self, *addresses: str) -> None:
        self.addresses: list[str] | Exception = list(addresses)
        self.asked: list[tuple[str, int]] = []
        self.open = asyncio.Event()
        self.open.set()

    async def __call__(self, host: str, port: int) -> list[str]:
        self.asked.append((host, port))
        await self.open.wait()
        if isinstance(self.addresses, Exception):
            raise self.addresses
        return self.addresses

    async def asked_again(self) -> None:
        """Until two more look-ups have begun: the one before is over."""
        before = len(self.asked)
        await until(lambda: len(self.asked) >= before + 2)


@asynccontextmanager
async def three() -> AsyncIterator[list[Primary]]:
    """Primaries at three addresses and one port."""
    async with AsyncExitStack() as stack:
        primaries: list[Primary] = []
        for host in LOOPBACKS:
            port = primaries[0].port if primaries else 0
            primaries.append(await stack.enter_async_context(Primary(host=host, port=port)))
        yield primaries


def addresses(pool: STTPool) -> list[str]:
    return sorted(host.address or "" for host in pool.hosts)


async def call(pool: STTPool, times: int) -> Counter[str]:
    """How many calls each host answered."""
    results = await asyncio.gather(*(pool.transcribe(CLIP) for _ in range(times)))
    return Counter(result.host for result in results)


def test_a_name_with_several_addresses_is_as_many_hosts() -> None:
    async def scenario() -> None:
        async with three() as primaries:
            names = Names(*LOOPBACKS)
            url = f"http://stt.test:{primaries[0].port}/"
            async with STTPool([url], resolve=names) as pool:
                answered = await call(pool, 60)
                assert addresses(pool) == list(LOOPBACKS)
            assert set(names.asked) == {("stt.test", primaries[0].port)}
            assert sum(counts(primaries)) == 60
            assert answered == {
                f"{url.rstrip('/')} ({one.host})": len(one.asked) for one in primaries
            }
            assert all(counts(primaries))
            assert {headers["host"] for one in primaries for headers in one.headers} == {
                f"stt.test:{primaries[0].port}"
            }

    asyncio.run(scenario())


def test_addresses_come_and_go_and_no_call_is_lost() -> None:
    async def scenario() -> None:
        async with three() as (first, second, third):
            names = Names(*LOOPBACKS[:2])
            async with STTPool([f"http://stt.test:{first.port}"], resolve=names) as pool:
                first.gate.clear()
                held = [asyncio.ensure_future(pool.transcribe(CLIP)) for _ in range(20)]
                await until(lambda: len(first.asked) + len(second.asked) == 20)
                names.addresses = list(LOOPBACKS[1:])
                await names.asked_again()
                assert [host.state for host in pool.hosts if host.address == first.host] == [
                    "draining"
                ]
                before = len(first.asked)
                assert sum((await call(pool, 40)).values()) == 40
                assert len(first.asked) == before
                assert third.asked
                first.gate.set()
                await asyncio.gather(*held)
                await until(lambda: addresses(pool) == list(LOOPBACKS[1:]))

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "answer", [OSError("no answer"), KeyError("no such service"), []], ids=["OS", "own", "empty"]
)
def test_a_name_that_is_not_found_any_more_keeps_its_hosts(
    answer: list[str] | Exception, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        async with three() as (first, *_):
            names = Names(*LOOPBACKS)
            async with STTPool([f"http://stt.test:{first.port}"], resolve=names) as pool:
                names.addresses = answer
                await names.asked_again()
                assert addresses(pool) == list(LOOPBACKS)
                await call(pool, 10)

    asyncio.run(scenario())
    assert "stt.test was not found" in caplog.text


def test_a_name_that_is_found_later_is_used_from_then_on() -> None:
    async def scenario() -> None:
        async with Primary() as primary:
            names = Names()
            url = f"http://stt.test:{primary.port}"
            async with STTPool([url], resolve=names, retries=0) as pool:
                with pytest.raises(ConnectionFailed, match=r"stt\.test"):
                    await pool.transcribe(CLIP)
                names.addresses = [primary.host]
                await until(lambda: addresses(pool) == [primary.host])
                await call(pool, 1)

    asyncio.run(scenario())


def test_what_is_an_address_already_is_not_looked_up() -> None:
    async def scenario() -> None:
        async with Primary() as primary:
            names = Names()
            async with STTPool([primary.url], resolve=names) as pool:
                await call(pool, 1)
                await primary.came(ready=3)
            assert names.asked == []

    asyncio.run(scenario())


def test_calls_that_come_together_wait_for_one_look_up_even_if_the_first_goes_away() -> None:
    async def scenario() -> None:
        async with Primary() as primary:
            names = Names(primary.host)
            names.open.clear()
            pool = STTPool([f"http://stt.test:{primary.port}"], resolve=names)
            calls = [asyncio.ensure_future(pool.transcribe(CLIP)) for _ in range(50)]
            await until(lambda: bool(names.asked))
            calls[0].cancel()
            await asyncio.wait({calls[0]})
            assert len(names.asked) == 1
            names.open.set()
            await asyncio.gather(*calls[1:])
            assert len(primary.asked) == 49
            await pool.aclose()

    asyncio.run(scenario())


def test_a_look_up_that_hangs_holds_nobody_beyond_the_deadline(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_pool, "LOOK_UP_PATIENCE_S", 0.2)

    async def scenario() -> None:
        names = Names()
        names.open.clear()
        async with Primary() as primary:
            pool = STTPool(["http://stt.test:1"], resolve=names)
            with pytest.raises((ConnectionFailed, TimedOut)):
                await within(PATIENCE, pool.transcribe(CLIP, deadline=0.05))
            adding = asyncio.ensure_future(pool.add(primary.url))
            await until(lambda: any(host.url == primary.url for host in pool.hosts))
            await adding
            await call(pool, 10)
            assert len(names.asked) == 1
            await pool.aclose()

    asyncio.run(scenario())


def test_the_system_knows_this_machine() -> None:
    assert "127.0.0.1" in asyncio.run(system_addresses("127.0.0.1", 80))
    with pytest.raises(OSError):
        asyncio.run(system_addresses("stt.invalid", 80))


def test_a_pool_without_hosts_says_so_and_takes_some_later() -> None:
    async def scenario() -> None:
        async with Primary() as primary, STTPool([]) as pool:
            with pytest.raises(ConnectionFailed, match="the pool has no host"):
                await pool.transcribe(CLIP)
            with pytest.raises(ConnectionFailed, match="the pool has no host"):
                await pool.health()
            await pool.add(primary.url)
            await call(pool, 1)

    asyncio.run(scenario())


def test_a_host_is_removed_when_its_last_call_has_ended() -> None:
    async def scenario() -> None:
        async with Primary() as going, Primary() as staying:
            going.gate.clear()
            async with STTPool([going.url]) as pool:
                held = asyncio.ensure_future(pool.transcribe(CLIP))
                await going.came(1)
                await pool.add(staying.url)
                removing = asyncio.ensure_future(pool.remove(going.url + "/"))
                assert await call(pool, 20) == {staying.url: 20}
                assert not removing.done()
                going.gate.set()
                await removing
                assert (await held).host == going.url
                assert [host.url for host in pool.hosts] == [staying.url]
                await until(lambda: going.connections == 0)

    asyncio.run(scenario())


def test_who_does_not_wait_for_a_removal_has_removed_all_the_same() -> None:
    async def scenario() -> None:
        async with Primary() as going, Primary() as staying:
            going.gate.clear()
            async with STTPool([going.url, staying.url]) as pool:
                calls = [asyncio.ensure_future(pool.transcribe(CLIP)) for _ in range(20)]
                await until(lambda: len(going.asked) + len(staying.asked) == 20)
                with pytest.raises(TimeoutError):
                    await within(0.01, pool.remove(going.url))
                going.gate.set()
                await asyncio.gather(*calls)
                await until(lambda: [host.url for host in pool.hosts] == [staying.url])

    asyncio.run(scenario())


def test_what_is_not_in_the_pool_cannot_be_removed_nor_what_is_no_address_added() -> None:
    async def scenario() -> None:
        async with STTPool(["http://127.0.0.1:1"]) as pool:
            with pytest.raises(ValueError, match=r"http://127\.0\.0\.1:1"):
                await pool.remove("http://127.0.0.1:2")
            with pytest.raises(ValueError, match="no address"):
                await pool.add("127.0.0.1:2")
            await pool.remove("http://127.0.0.1:1")
            with pytest.raises(ValueError, match="not in the pool"):
                await pool.remove("http://127.0.0.1:1")

    asyncio.run(scenario())


def test_a_rolling_change_of_all_hosts_loses_no_call() -> None:
    async def scenario() -> None:
        async with three() as primaries:
            async with STTPool([primaries[0].url]) as pool:
                calls = []
                for _ in range(10):
                    for one, other in zip(primaries, primaries[1:] + primaries[:1], strict=True):
                        calls += [asyncio.ensure_future(pool.transcribe(CLIP)) for _ in range(5)]
                        await pool.add(other.url)
                        await pool.remove(one.url)
                await asyncio.gather(*calls)
            assert sum(counts(primaries)) == len(calls) == 150

    asyncio.run(scenario())


def test_a_closed_pool_leaves_nothing_and_takes_nothing() -> None:
    async def scenario() -> None:
        async with three() as primaries:
            names = Names(*LOOPBACKS)
            pool = STTPool([f"http://stt.test:{primaries[0].port}"], resolve=names)
            async with pool:
                await call(pool, 30)
                mine = asyncio.all_tasks()
            await pool.aclose()  # once more does no harm
            theirs = asyncio.all_tasks() - {asyncio.current_task()}
            assert not any("stt_sdk" in str(task.get_coro()) for task in theirs)
            assert len(theirs) < len(mine)
            await until(lambda: not any(one.connections for one in primaries))
            with pytest.raises(RuntimeError, match="closed"):
                await pool.transcribe(CLIP)
            with pytest.raises(RuntimeError, match="closed"):
                await pool.add(primaries[0].url)

    asyncio.run(scenario())


def test_a_pool_that_is_closed_while_it_starts_stays_closed() -> None:
    async def scenario() -> None:
        names = Names("127.0.0.1")
        names.open.clear()
        pool = STTPool(["http://stt.test:1"], resolve=names)
        starting = asyncio.ensure_future(pool.transcribe(CLIP))
        await until(lambda: bool(names.asked))
        await pool.aclose()
        names.open.set()
        with pytest.raises(RuntimeError, match="closed"):
            await within(PATIENCE, starting)
        assert asyncio.all_tasks() == {asyncio.current_task()}
        assert pool.hosts == ()

    asyncio.run(scenario())
