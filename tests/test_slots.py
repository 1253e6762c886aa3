"""Slots and their queue, without a server around them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fakes import PATIENCE
from stt_cascade.admission.deadline import Deadline, from_header
from stt_cascade.admission.slots import Slots
from stt_cascade.errors import DeadlineExceeded, Draining, InvalidRequest, Overloaded
from stt_sdk._within import within


class Work:
    """Blocks until it is let go; counts itself."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.live = 0
        self.most_live = 0
        self.done: list[str] = []
        self._lock = threading.Lock()

    def named(self, name: str) -> Callable[[], str]:
        def work() -> str:
            with self._lock:
                self.live += 1
                self.most_live = max(self.most_live, self.live)
            assert self.go.wait(PATIENCE)
            with self._lock:
                self.live -= 1
                self.done.append(name)
            return name

        return work


@pytest.fixture
def work() -> Iterator[Work]:
    work = Work()
    yield work
    work.go.set()


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(within(PATIENCE, test()))


async def soon(true: Callable[[], bool]) -> None:
    while not true():  # noqa: ASYNC110  # threads are waited for, and no event of theirs is ours
        await asyncio.sleep(0)


def start(awaitable: Coroutine[Any, Any, str]) -> asyncio.Task[str]:
    return asyncio.get_running_loop().create_task(awaitable)


def test_the_result_comes_back_and_the_slot_too(work: Work) -> None:
    async def test() -> None:
        slots = Slots("t", 1, 0)
        work.go.set()
        for _ in range(3):
            assert await slots.run(work.named("a"), Deadline(5)) == "a"
            await soon(lambda: slots.in_flight == 0)
        slots.close()

    run(test)


def test_what_the_work_raises_comes_back(work: Work) -> None:
    async def test() -> None:
        slots = Slots("t", 1, 0)
        with pytest.raises(ZeroDivisionError):
            await slots.run(lambda: 1 // 0, Deadline(5))
        await soon(lambda: slots.in_flight == 0)
        slots.close()

    run(test)


def test_a_full_queue_turns_callers_away_at_once(work: Work) -> None:
    async def test() -> None:
        slots = Slots("t", 1, 1)
        tasks = [start(slots.run(work.named(name), Deadline(5))) for name in "ab"]
        await soon(lambda: (slots.in_flight, slots.depth) == (1, 1))
        with pytest.raises(Overloaded, match="1 requests are being worked on and 1 wait"):
            await slots.run(work.named("c"), Deadline(5))
        work.go.set()
        assert await asyncio.gather(*tasks) == ["a", "b"]
        slots.close()

    run(test)


def test_the_waits_are_reported_refused_or_not(work: Work) -> None:
    async def test() -> None:
        slots, waits = Slots("t", 1, 9), list[float]()
        first = start(slots.run(work.named("a"), Deadline(5), waited=waits.append))
        await soon(lambda: slots.in_flight == 1)
        with pytest.raises(DeadlineExceeded, match="in the queue"):
            await slots.run(work.named("b"), Deadline(0.05), waited=waits.append)
        assert waits[0] == 0.0
        assert waits[1] > 0
        work.go.set()
        await first
        assert work.done == ["a"]
        slots.close()

    run(test)


def test_a_deadline_during_the_work_leaves_the_slot_taken(work: Work) -> None:
    async def test() -> None:
        slots = Slots("t", 1, 9)
        with pytest.raises(DeadlineExceeded, match="during the t"):
            await slots.run(work.named("a"), Deadline(0.02), audio_seconds=3)
        assert (slots.in_flight, slots.audio_seconds) == (1, 3)
        assert slots.oldest_seconds > 0
        work.go.set()
        await soon(lambda: slots.in_flight == 0)
        assert (slots.audio_seconds, slots.oldest_seconds) == (0, 0)
        slots.close()

    run(test)


def test_who_could_not_be_served_in_time_is_told_at_once(work: Work) -> None:
    """As fast as the work went so far: here one second for ten seconds of audio."""

    async def test() -> None:
        slots = Slots("t", 1, 9)
        slots._pace.measure(1.0, 10.0)
        first = start(slots.run(work.named("a"), Deadline(60), audio_seconds=100))
        second = start(slots.run(work.named("b"), Deadline(60), audio_seconds=50))
        await soon(lambda: (slots.in_flight, slots.depth) == (1, 1))
        assert slots.queued_seconds == 50
        assert slots.predicted_wait == pytest.approx(15, abs=1)
        with pytest.raises(Overloaded, match=r"would be done in 1[678]") as refused:
            await slots.run(work.named("c"), Deadline(10), audio_seconds=30)
        assert refused.value.retry_after == pytest.approx(15, abs=1)
        third = start(slots.run(work.named("d"), Deadline(60), audio_seconds=30))
        work.go.set()
        assert [await task for task in (first, second, third)] == ["a", "b", "d"]
        assert "c" not in work.done
        slots.close()

    run(test)


def test_who_need_not_wait_is_let_in_whatever_the_prediction(work: Work) -> None:
    async def test() -> None:
        slots = Slots("t", 1, 9)
        slots._pace.measure(100.0, 1.0)
        work.go.set()
        assert await slots.run(work.named("a"), Deadline(5), audio_seconds=10) == "a"
        slots.close()

    run(test)


def test_the_queue_is_bounded_in_seconds_of_audio_too(work: Work) -> None:
    async def test() -> None:
        slots = Slots("t", 1, 9, queue_seconds=60)
        tasks = [start(slots.run(work.named("a"), Deadline(5), audio_seconds=5))]
        await soon(lambda: slots.in_flight == 1)
        # One may always wait, however long it is.
        tasks.append(start(slots.run(work.named("b"), Deadline(5), audio_seconds=50)))
        await soon(lambda: slots.depth == 1)
        with pytest.raises(Overloaded, match="50 s of audio wait already; at most 60 s may"):
            await slots.run(work.named("c"), Deadline(5), audio_seconds=11)
        work.go.set()
        await asyncio.gather(*tasks)
        slots.close()

    run(test)


def test_audio_that_a_clip_in_work_will_bring_counts_as_waiting() -> None:
    async def test() -> None:
        slots = Slots("t", 1, 9)
        with slots.promise(30) as brought:
            assert slots.queued_seconds == 30
            brought(12)
            assert slots.queued_seconds == 18
            brought(40)  # a part that was cut anew counts once
            assert slots.queued_seconds == 0
        with pytest.raises(KeyError), slots.promise(7):
            raise KeyError
        assert slots.queued_seconds == 0
        slots.close()

    run(test)


def test_a_short_clip_does_not_wait_for_all_that_a_long_one_has_still_to_bring(work: Work) -> None:
    """They take turns; a second long one has to share each of them."""

    async def test() -> None:
        slots = Slots("t", 1, 9)
        slots._pace.measure(1.0, 10.0)
        with slots.promise(600):
            long = start(slots.run(work.named("long"), Deadline(90), audio_seconds=30))
            await soon(lambda: slots.in_flight == 1)
            assert slots.predicted_wait == pytest.approx(3, abs=1)
            slots.check(Deadline(10))  # its length is not known before its body has come
            short = start(slots.run(work.named("short"), Deadline(10), audio_seconds=5))
            await soon(lambda: slots.depth == 1)
            with slots.promise(300), pytest.raises(Overloaded, match=r"would be done in 6\d"):
                await slots.run(
                    work.named("too long"), Deadline(50), audio_seconds=30, further_seconds=300
                )
            work.go.set()
            assert [await task for task in (long, short)] == ["long", "short"]
        slots.close()

    run(test)


def test_only_work_that_succeeded_tells_the_pace(work: Work) -> None:
    async def test() -> None:
        slots = Slots("t", 1, 9, overhead=5)
        work.go.set()
        with pytest.raises(ZeroDivisionError):
            await slots.run(lambda: 1 // 0, Deadline(5), audio_seconds=1)
        await soon(lambda: slots.in_flight == 0)
        assert slots._pace.predict(1) == 0
        await slots.run(work.named("a"), Deadline(5), audio_seconds=1)
        await soon(lambda: slots.in_flight == 0)
        assert slots._pace.predict(1) > 0
        slots.close()

    run(test)


def test_a_slot_that_comes_after_the_deadline_is_not_used(work: Work) -> None:
    """Both can happen in one turn of the loop; the engine must not see the request."""

    async def test() -> None:
        slots, late = Slots("t", 1, 9), Deadline(60)
        first = start(slots.run(work.named("a"), Deadline(5)))
        await soon(lambda: slots.in_flight == 1)
        second = start(slots.run(work.named("b"), late))
        await soon(lambda: slots.depth == 1)
        late.at = 0.0
        work.go.set()
        assert await first == "a"
        with pytest.raises(DeadlineExceeded, match="in the queue"):
            await second
        await soon(lambda: slots.in_flight == 0)
        assert work.done == ["a"]
        slots.close()

    run(test)


def test_draining_sends_home_who_waits_and_lets_the_rest_end(work: Work) -> None:
    async def test() -> None:
        slots = Slots("t", 1, 9)
        tasks = [start(slots.run(work.named(name), Deadline(5))) for name in "abc"]
        await soon(lambda: slots.depth == 2)
        slots.drain()
        for task in tasks[1:]:
            with pytest.raises(Draining):
                await task
        with pytest.raises(Draining):
            await slots.run(work.named("d"), Deadline(5))
        work.go.set()
        assert await tasks[0] == "a"
        slots.close()

    run(test)


def test_a_slot_handed_to_somebody_who_just_left_goes_to_the_next(work: Work) -> None:
    """The hand-over and the caller's cancellation fall into the same turn of the loop."""

    async def test() -> None:
        slots = Slots("t", 1, 9)
        first, second, third = (start(slots.run(work.named(n), Deadline(5))) for n in "abc")
        await soon(lambda: slots.depth == 2)
        work.go.set()
        # This sees the hand-over before the second caller does: his task is woken a turn later.
        await soon(lambda: slots.depth == 1)
        second.cancel()
        assert (await first, await third) == ("a", "c")
        assert second.cancelled()
        assert work.done == ["a", "c"]
        await soon(lambda: slots.in_flight == 0)
        slots.close()

    run(test)


@given(st.data())
def test_no_slot_is_ever_lost_or_lent_twice(data: st.DataObject) -> None:
    """Callers come, are cancelled or run out of time in any order."""
    work = Work()
    size = data.draw(st.integers(1, 3))
    fates = data.draw(
        st.lists(st.sampled_from(["stays", "leaves", "leaves later", "times out"]), max_size=10)
    )

    async def caller(slots: Slots, fate: str, number: int) -> None:
        deadline = Deadline(0.005 if fate == "times out" else 10)
        with suppress(DeadlineExceeded, asyncio.CancelledError):
            await slots.run(work.named(str(number)), deadline)

    async def test() -> None:
        slots = Slots("t", size, 100)
        tasks: list[Awaitable[None]] = []
        for number, fate in enumerate(fates):
            task = asyncio.get_running_loop().create_task(caller(slots, fate, number))
            tasks.append(task)
            if fate != "leaves":
                await asyncio.sleep(0)
            if fate.startswith("leaves"):
                task.cancel()
        work.go.set()
        await asyncio.gather(*tasks, return_exceptions=True)
        await soon(lambda: slots.in_flight == 0)
        assert slots.depth == 0
        assert work.most_live <= size
        stayed = {str(number) for number, fate in enumerate(fates) if fate == "stays"}
        assert stayed <= set(work.done)
        slots.close()

    run(test)


def test_a_deadline_never_goes_below_zero() -> None:
    assert Deadline(-5).remaining == 0
    assert 4 < Deadline(5).remaining <= 5


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (None, 60),
        ("1", 0.001),
        ("1500", 1.5),
        (" 1500\t", 1.5),
        ("999999999999", 60),
        ("1" * 13, 60),
    ],
)
def test_a_callers_deadline_shortens_only(header: str | None, seconds: float) -> None:
    assert from_header(header, 60).remaining == pytest.approx(seconds, abs=0.01)


@pytest.mark.parametrize("header", ["", "0", "000", "-1", "+1", "1.0", "1e3", "1 5", "٣"])
def test_any_other_deadline_is_refused(header: str) -> None:
    with pytest.raises(InvalidRequest, match="X-Deadline-Ms"):
        from_header(header, 60)


def test_a_caller_does_not_wait_for_what_another_one_has_queued(work: Work) -> None:
    async def test() -> None:
        slots = Slots("t", 1, 9, overhead=1)
        calls = [start(slots.run(work.named(n), Deadline(5), caller="many")) for n in "abcd"]
        await soon(lambda: slots.depth == 3)
        calls.append(start(slots.run(work.named("other"), Deadline(5), caller="other")))
        await soon(lambda: slots.depth == 4)
        work.go.set()
        await asyncio.gather(*calls)
        assert work.done == ["a", "other", "b", "c", "d"]
        slots.close()

    run(test)


def test_in_a_full_queue_the_latest_of_the_caller_with_most_gives_way(work: Work) -> None:
    async def test() -> None:
        slots = Slots("t", 1, 2, overhead=1)
        first, second, third = (
            start(slots.run(work.named(n), Deadline(5), caller="many")) for n in "abc"
        )
        await soon(lambda: slots.depth == 2)
        slots.check(Deadline(5), caller="other")
        other = start(slots.run(work.named("other"), Deadline(5), caller="other"))
        with pytest.raises(Overloaded, match="gave way to another caller's"):
            await third
        with pytest.raises(Overloaded, match="1 requests are being worked on and 2 wait"):
            await slots.run(work.named("d"), Deadline(5), caller="many")
        work.go.set()
        await asyncio.gather(first, second, other)
        assert work.done == ["a", "other", "b"]
        slots.close()

    run(test)


def test_what_was_let_in_gives_way_to_nobody(work: Work) -> None:
    async def test() -> None:
        slots = Slots("t", 1, 1, overhead=1)
        first = start(slots.run(work.named("a"), Deadline(5), caller="many"))
        steps = [
            start(slots.run(work.named(n), Deadline(5), caller="many", admitted=True)) for n in "bc"
        ]
        await soon(lambda: slots.depth == 2)
        with pytest.raises(Overloaded):
            await slots.run(work.named("x"), Deadline(5), caller="other")
        work.go.set()
        assert await asyncio.gather(first, *steps) == ["a", "b", "c"]
        slots.close()

    run(test)


def test_a_wait_is_predicted_for_each_caller(work: Work) -> None:
    """Here one second for ten seconds of audio."""

    async def test() -> None:
        slots = Slots("t", 1, 9)
        slots._pace.measure(1.0, 10.0)
        calls = [
            start(slots.run(work.named(n), Deadline(60), audio_seconds=100, caller="many"))
            for n in "abc"
        ]
        await soon(lambda: slots.depth == 2)
        with pytest.raises(Overloaded, match=r"would be done in 3\d"):
            await slots.run(work.named("d"), Deadline(25), audio_seconds=20, caller="many")
        slots.check(Deadline(14), audio_seconds=20, caller="other")
        with pytest.raises(Overloaded, match=r"would be done in 1[12]"):
            slots.check(Deadline(10), audio_seconds=20, caller="other")
        assert slots.predicted_wait == pytest.approx(30, abs=1)
        work.go.set()
        await asyncio.gather(*calls)
        slots.close()

    run(test)


def test_one_callers_audio_in_the_queue_leaves_room_for_anothers(work: Work) -> None:
    async def test() -> None:
        slots = Slots("t", 1, 9, queue_seconds=60)
        calls = [
            start(slots.run(work.named(n), Deadline(5), audio_seconds=30, caller="many"))
            for n in "abc"
        ]
        await soon(lambda: slots.depth == 2)
        with pytest.raises(Overloaded, match="60 s of audio wait already"):
            slots.check(Deadline(5), 1, caller="many")
        calls += [
            start(slots.run(work.named("x"), Deadline(5), audio_seconds=15, caller="other"))
            for _ in range(2)
        ]
        await soon(lambda: slots.depth == 4)
        with pytest.raises(Overloaded):
            slots.check(Deadline(5), 1, caller="other")
        work.go.set()
        await asyncio.gather(*calls)
        slots.close()

    run(test)
