"""Work within a time."""

from __future__ import annotations

import asyncio

import pytest

from stt_sdk import _within
from stt_sdk._within import OverTime, within


def test_work_that_ends_in_time_gives_its_result_or_raises() -> None:
    async def work(divisor: int) -> int:
        await asyncio.sleep(0)
        return 6 // divisor

    assert asyncio.run(within(5, work(2))) == 3
    with pytest.raises(ZeroDivisionError):
        asyncio.run(within(5, work(0)))


@pytest.mark.parametrize("how", ["time", "cancelled"])
def test_work_that_is_stopped_has_cleaned_up_when_its_caller_goes_on(how: str) -> None:
    clean = False

    async def work() -> None:
        nonlocal clean
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            clean = True

    async def scenario() -> None:
        call = asyncio.ensure_future(within(0.01 if how == "time" else 5, work()))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        if how == "cancelled":
            call.cancel()
        with pytest.raises(OverTime if how == "time" else asyncio.CancelledError):
            await call
        assert clean

    asyncio.run(scenario())


@pytest.mark.parametrize("turns", range(6))
def test_a_cancellation_that_comes_with_the_result_is_not_forgotten(turns: int) -> None:
    async def scenario() -> None:
        result: asyncio.Future[str] = asyncio.get_running_loop().create_future()

        async def work() -> str:
            return await result

        call = asyncio.ensure_future(within(5, work()))
        for _ in range(3):
            await asyncio.sleep(0)
        result.set_result("here it is")
        for _ in range(turns):
            await asyncio.sleep(0)
        was_under_way = call.cancel()
        await asyncio.wait({call})
        assert call.cancelled() is was_under_way

    asyncio.run(scenario())


def test_who_is_cancelled_twice_does_not_disturb_the_cleaning_up() -> None:
    async def scenario() -> None:
        cleaning, go_on, clean = asyncio.Event(), asyncio.Event(), asyncio.Event()

        async def work() -> None:
            try:
                await asyncio.Event().wait()
            finally:
                cleaning.set()
                await go_on.wait()
                clean.set()

        call = asyncio.ensure_future(within(5, work()))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        call.cancel()
        await cleaning.wait()
        call.cancel()
        await asyncio.wait({call})
        go_on.set()
        await within(5, clean.wait())

    asyncio.run(scenario())


def test_work_that_loses_a_cancellation_is_stopped_by_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_within, "AGAIN_S", 0.01)
    lost = 0

    async def work() -> None:
        nonlocal lost
        while lost < 3:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                lost += 1
        await asyncio.Event().wait()

    with pytest.raises(OverTime):
        asyncio.run(within(0.01, work()))
    assert lost == 3


def test_what_the_work_raises_is_not_taken_for_the_time_being_over() -> None:
    async def work() -> None:
        raise TimeoutError("its own")

    with pytest.raises(TimeoutError, match="its own") as caught:
        asyncio.run(within(5, work()))
    assert not isinstance(caught.value, OverTime)
