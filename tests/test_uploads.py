"""Places for bodies, and the pace at which one has to come."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fakes import Clock
from stt_cascade.admission import uploads
from stt_cascade.admission.deadline import Deadline
from stt_cascade.admission.uploads import GRACE_S, MIN_BYTES_PER_S, YIELDS_AFTER_S, Pace, Uploads
from stt_cascade.errors import Draining, Overloaded, RequestTimeout


async def silence() -> AsyncIterator[bytes]:
    """A body of which nothing comes."""
    await asyncio.Event().wait()
    yield b""


async def chunks(*sizes: int) -> AsyncIterator[bytes]:
    for size in sizes:
        yield bytes(size)


def later() -> Deadline:
    return Deadline(600)


def test_the_patience_lasts_for_the_grace_and_no_silence_is_longer() -> None:
    pace = Pace()
    assert pace.patience == GRACE_S
    pace.waited(1, 16 * 1024 * 1024)
    assert pace.patience == GRACE_S  # what came fast cannot be saved up for a long silence


@pytest.mark.parametrize(("share", "lasts"), [(1.0, True), (1.2, True), (0.8, False)])
def test_who_keeps_to_the_least_rate_goes_on_and_who_is_slower_does_not(
    share: float, lasts: bool
) -> None:
    pace = Pace()
    for _ in range(1000):
        if pace.patience <= 0.5:
            break
        pace.waited(0.5, int(MIN_BYTES_PER_S * share / 2))
    assert (pace.patience > 0.5) == lasts


@given(st.lists(st.tuples(st.floats(0, 20), st.integers(0, 100_000)), max_size=50))
def test_no_way_of_dripping_stays_below_the_rate_for_longer_than_the_grace(
    waits: list[tuple[float, int]],
) -> None:
    pace, elapsed, received = Pace(), 0.0, 0
    for seconds, size in waits:
        if seconds > pace.patience:
            return  # refused
        pace.waited(seconds, size)
        elapsed, received = elapsed + seconds, received + size
        assert elapsed <= GRACE_S + received / MIN_BYTES_PER_S + 1e-6


def test_a_silent_body_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads, "GRACE_S", 0.0)

    async def receive() -> None:
        with Uploads(1).place(later()) as body:
            await body.next(silence())

    with pytest.raises(RequestTimeout, match="too slowly"):
        asyncio.run(receive())


def test_the_bytes_come_as_they_were_sent() -> None:
    async def receive() -> list[int]:
        source = chunks(3, 5)
        with Uploads(1).place(later()) as body:
            return [len(await body.next(source)) for _ in range(4)]

    assert asyncio.run(receive()) == [3, 5, 0, 0]


def test_a_place_is_held_until_the_block_ends_however_it_ends() -> None:
    async def hold() -> None:
        places = Uploads(1)
        for _ in range(3):
            with pytest.raises(ZeroDivisionError), places.place(later()):
                assert places.held == 1
                with pytest.raises(Overloaded, match="1 uploads") as refused:
                    places.place(later()).__enter__()
                assert refused.value.retry_after == 1
                raise ZeroDivisionError
            assert places.held == 0

    asyncio.run(hold())


async def receiving(places: Uploads) -> asyncio.Task[None]:
    """A caller whose body does not come, and who waits in a place."""

    async def receive() -> None:
        with places.place(later()) as body:
            await body.next(silence())

    before = places.held
    task = asyncio.create_task(receive())
    await asyncio.sleep(0)  # it runs until it waits
    assert places.held == before + 1
    return task


def test_a_body_that_is_behind_gives_its_place_to_a_newcomer() -> None:
    async def crowd() -> None:
        clock = Clock()
        places = Uploads(2, clock)
        first = await receiving(places)
        clock.now += 0.6 * YIELDS_AFTER_S
        second = await receiving(places)
        clock.now += 0.3 * YIELDS_AFTER_S
        with pytest.raises(Overloaded), places.place(later()):
            pass  # neither is far behind
        clock.now += 0.2 * YIELDS_AFTER_S
        with places.place(later()):
            with pytest.raises(RequestTimeout, match="others waited"):
                await first
            assert (second.done(), places.held) == (False, 2)
        second.cancel()
        await asyncio.wait({second})
        assert places.held == 0

    asyncio.run(crowd())


def test_a_body_that_has_come_keeps_its_place() -> None:
    async def crowd() -> None:
        clock = Clock()
        places = Uploads(1, clock)
        source = chunks(3)
        with places.place(later()) as body:
            while await body.next(source):
                pass
            clock.now += 1000  # the clip is being worked on
            with pytest.raises(Overloaded), places.place(later()):
                pass

    asyncio.run(crowd())


def test_a_stop_sends_home_who_is_still_sending_and_nobody_else() -> None:
    async def stop() -> None:
        places = Uploads(2)
        sending = await receiving(places)
        with places.place(later()):
            places.drain()
            with pytest.raises(Draining):
                await sending
            assert places.held == 1

    asyncio.run(stop())


def test_who_is_cancelled_while_a_refused_body_winds_down_is_cancelled() -> None:
    async def cancel() -> None:
        winding_down = asyncio.Event()

        async def slow_to_end() -> AsyncIterator[bytes]:
            try:
                await asyncio.Event().wait()
                yield b""
            finally:
                winding_down.set()
                await asyncio.Event().wait()

        with Uploads(1).place(later()) as body:
            receiving = asyncio.create_task(body.next(slow_to_end()))
            await asyncio.sleep(0)  # it runs until it waits
            body.refuse(Draining("the service is stopping"))
            await winding_down.wait()
            receiving.cancel()
            await asyncio.wait({receiving})
            assert receiving.cancelled()

    asyncio.run(cancel())


def test_a_body_that_fails_in_the_moment_of_its_refusal_leaves_no_complaint() -> None:
    complaints: list[dict[str, Any]] = []

    async def fail() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, complaint: complaints.append(complaint))
        line: asyncio.Future[None] = loop.create_future()

        waits = asyncio.Event()

        async def broken() -> AsyncIterator[bytes]:
            waits.set()
            await line
            yield b""

        with Uploads(1).place(later()) as body:
            receiving = asyncio.create_task(body.next(broken()))
            await waits.wait()
            line.set_exception(ConnectionResetError())
            body.refuse(Draining("the service is stopping"))
            with pytest.raises(Draining):
                await receiving

    asyncio.run(fail())
    gc.collect()  # a task complains when it goes
    assert complaints == []


async def sending(places: Uploads, caller: str, *sizes: int) -> asyncio.Task[None]:
    """A caller whose body comes so far, and then no further."""

    async def body() -> AsyncIterator[bytes]:
        for size in sizes:
            yield bytes(size)
        await asyncio.Event().wait()

    async def receive() -> None:
        source = body()
        with places.place(later(), caller) as place:
            while await place.next(source):
                pass

    task = asyncio.create_task(receive())
    for _ in range(3 + 5 * len(sizes)):
        await asyncio.sleep(0)
    return task


def test_another_callers_body_gets_the_place_of_the_one_that_comes_most_slowly() -> None:
    async def crowd() -> None:
        clock = Clock()
        places = Uploads(3, clock)
        slow = await sending(places, "many", 1300)
        quick = await sending(places, "many", 1_000_000)
        own = await sending(places, "other", 10)
        clock.now += 0.4  # nobody is too slow
        with places.place(later(), "third"):
            with pytest.raises(Overloaded, match="gave way to another caller's"):
                await slow
            assert not quick.done()
            assert not own.done()
            with pytest.raises(Overloaded, match="3 uploads"):
                places.place(later(), "many").__enter__()
        for task in (quick, own):
            task.cancel()
        await asyncio.wait({quick, own})

    asyncio.run(crowd())


def test_where_all_have_come_the_latest_of_the_caller_with_most_gives_way() -> None:
    async def crowd() -> None:
        places = Uploads(3)
        with (
            places.place(later(), "other") as other,
            places.place(later(), "many") as first,
            places.place(later(), "many") as second,
        ):
            for body in (other, first, second):
                assert not await body.next(chunks())
            with places.place(later(), "third"):
                assert isinstance(second.refused.result(), Overloaded)
            assert not other.refused.done()
            assert not first.refused.done()

    asyncio.run(crowd())


def test_a_caller_with_most_places_takes_none_of_another_whose_body_pauses() -> None:
    async def crowd() -> None:
        clock = Clock()
        places = Uploads(3, clock)
        many = [await sending(places, "many", 10) for _ in range(2)]
        other = await sending(places, "other", 10)
        clock.now += 2 * YIELDS_AFTER_S
        with places.place(later(), "many"):
            await asyncio.wait(many, return_when=asyncio.FIRST_COMPLETED)
            assert not other.done()
        for task in (*many, other):
            task.cancel()
        await asyncio.wait({*many, other})

    asyncio.run(crowd())
