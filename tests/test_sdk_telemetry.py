"""Telemetry hooks hear everything in order, and neither break nor slow a call."""

from __future__ import annotations

import asyncio
import contextvars
import dataclasses
import gc
import logging
from collections.abc import Awaitable, Coroutine
from typing import Any

import pytest

from stt_sdk import OverloadedError, TimedOut, Transcription
from stt_sdk import _telemetry as telemetry_module
from stt_sdk._telemetry import (
    CAPACITY,
    AttemptFinished,
    Event,
    RequestFinished,
    RequestStarted,
    Retried,
    Telemetry,
)
from stt_sdk._types import Confidence, Routing, Timings
from stt_sdk._within import within

PATIENCE = 20.0


def numbered(number: int) -> Retried:
    return Retried("id", number, TimedOut("too late"), 0.1)


def numbers(events: list[Event]) -> list[int]:
    return [event.number for event in events if isinstance(event, Retried)]


class Slow:
    """An asynchronous hook that waits to be let go, and remembers what it heard."""

    def __init__(self) -> None:
        self.heard: list[Event] = []
        self.called = asyncio.Event()
        self.may_go = asyncio.Event()
        self.cancelled = False

    async def __call__(self, event: Event) -> None:
        self.called.set()
        try:
            await self.may_go.wait()
        except asyncio.CancelledError:
            self.cancelled = True
            raise
        self.heard.append(event)


def run(test: Coroutine[Any, Any, None]) -> None:
    """Run a test, which must leave no task behind."""

    async def whole() -> None:
        await within(PATIENCE, test)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(whole())
    gc.collect()  # a coroutine that nobody awaited complains now


def failures(caplog: pytest.LogCaptureFixture) -> list[tuple[str, bool]]:
    """Level of each line about a hook that failed, and whether it shows how."""
    return [
        (record.levelname, record.exc_info is not None)
        for record in caplog.records
        if record.name == "stt_sdk" and "failed" in record.message
    ]


def test_plain_hooks_are_called_at_once_and_in_their_order() -> None:
    heard: list[tuple[str, Event]] = []
    telemetry = Telemetry(
        [lambda event: heard.append(("a", event)), lambda event: heard.append(("b", event))]
    )
    first, second = numbered(1), numbered(2)
    telemetry.emit(first)
    telemetry.emit(second)
    assert heard == [("a", first), ("b", first), ("a", second), ("b", second)]


def test_an_asynchronous_hook_hears_everything_in_order_after_the_call_went_on() -> None:
    async def test() -> None:
        hook = Slow()
        telemetry = Telemetry([hook])
        for number in range(100):
            telemetry.emit(numbered(number))
        await hook.called.wait()
        assert hook.heard == []
        hook.may_go.set()
        await telemetry.aclose()
        assert numbers(hook.heard) == list(range(100))
        assert telemetry.dropped == 0

    run(test())


def test_all_events_share_one_task_in_the_background_which_ends_with_the_last() -> None:
    async def test() -> None:
        hook = Slow()
        telemetry = Telemetry([hook, hook])
        before = asyncio.all_tasks()

        async def call(number: int) -> None:
            telemetry.emit(numbered(number))

        await asyncio.gather(*(call(number) for number in range(50)))
        await hook.called.wait()
        # The one that hands out, and what it waits for.
        background = asyncio.all_tasks() - before
        assert len(background) == 2
        hook.may_go.set()
        await asyncio.wait(background)
        while len(hook.heard) < 100:
            await asyncio.wait(asyncio.all_tasks() - before)
        assert asyncio.all_tasks() == before
        telemetry.emit(numbered(50))
        await telemetry.aclose()
        assert len(hook.heard) == 102

    run(test())


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_hook_that_raises_is_logged_in_full_once_and_the_others_hear_everything(
    asynchronous: bool, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(event: Event) -> None:
        raise RuntimeError("broken hook")

    async def broken_later(event: Event) -> None:
        await asyncio.sleep(0)
        raise RuntimeError("broken hook")

    heard: list[Event] = []

    async def test() -> None:
        telemetry = Telemetry([broken_later if asynchronous else broken, heard.append])
        for number in range(3):
            telemetry.emit(numbered(number))
        await telemetry.aclose()

    with caplog.at_level(logging.DEBUG, "stt_sdk"):
        run(test())
    assert numbers(heard) == [0, 1, 2]
    assert failures(caplog) == [("WARNING", True), ("DEBUG", True), ("DEBUG", True)]
    assert "broken_later" in caplog.text or not asynchronous
    assert "broken hook" in caplog.text  # the traceback


def test_two_hooks_that_raise_are_each_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    class Broken:
        def __call__(self, event: Event) -> None:
            raise ValueError

    telemetry = Telemetry([Broken(), Broken()])
    telemetry.emit(numbered(1))
    assert failures(caplog) == [("WARNING", True)] * 2


def test_what_ends_programs_passes() -> None:
    def interrupted(event: Event) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Telemetry([interrupted]).emit(numbered(1))


def test_beyond_a_thousand_waiting_events_new_ones_are_dropped_counted_and_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def test() -> None:
        hook = Slow()
        telemetry = Telemetry([hook])
        telemetry.emit(numbered(0))
        await hook.called.wait()  # this one does not wait any more
        for number in range(1, CAPACITY + 501):
            telemetry.emit(numbered(number))
        assert telemetry.dropped == 500
        hook.may_go.set()
        await telemetry.aclose()
        assert numbers(hook.heard) == list(range(CAPACITY + 1))

    run(test())
    lines = [record.message for record in caplog.records]
    assert len(lines) == 2
    assert "Slow does not keep up; events dropped so far: 1" in lines[0]
    assert "events dropped in all: 500" in lines[1]


def test_closing_cancels_a_hook_that_hangs_and_drops_what_waits_behind_it(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(telemetry_module, "LAST_CALL_S", 0.01)

    async def test() -> None:
        hook = Slow()
        telemetry = Telemetry([hook])
        for number in range(3):
            telemetry.emit(numbered(number))
        await telemetry.aclose()
        assert (hook.cancelled, hook.heard, telemetry.dropped) == (True, [], 3)
        await telemetry.aclose()  # once more does no harm

    run(test())
    assert "events dropped in all: 3" in caplog.text
    assert not failures(caplog)


def test_what_a_cancelled_hook_raises_meanwhile_is_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(telemetry_module, "LAST_CALL_S", 0.01)

    async def hook(event: Event) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            raise OSError("disk full")

    async def test() -> None:
        telemetry = Telemetry([hook])
        telemetry.emit(numbered(1))
        await telemetry.aclose()

    run(test())
    assert "disk full" in caplog.text


def test_closing_does_not_wait_for_a_hook_that_refuses_to_be_cancelled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(telemetry_module, "LAST_CALL_S", 0.01)

    async def test() -> None:
        may_go = asyncio.Event()

        async def stubborn(event: Event) -> None:
            while not may_go.is_set():
                try:
                    await may_go.wait()
                except asyncio.CancelledError:
                    continue

        telemetry = Telemetry([stubborn])
        before = asyncio.all_tasks()
        telemetry.emit(numbered(1))
        await telemetry.aclose()
        may_go.set()
        await asyncio.wait(asyncio.all_tasks() - before)

    run(test())


def test_who_is_cancelled_while_closing_leaves_no_task() -> None:
    async def test() -> None:
        hook = Slow()
        telemetry = Telemetry([hook])
        before = asyncio.all_tasks()
        telemetry.emit(numbered(1))
        closing = asyncio.create_task(telemetry.aclose())
        await hook.called.wait()
        background = asyncio.all_tasks() - before - {closing}
        closing.cancel()
        await asyncio.wait({closing})
        assert closing.cancelled()
        await asyncio.wait(background)
        assert hook.cancelled

    run(test())


def test_a_loop_that_ends_without_closing_ends_quietly(caplog: pytest.LogCaptureFixture) -> None:
    hooks: list[Slow] = []

    async def whole(begun: bool) -> None:
        hooks.append(Slow())
        telemetry = Telemetry([hooks[-1]])
        for number in range(3):
            telemetry.emit(numbered(number))
        if begun:
            await hooks[-1].called.wait()

    for begun in (True, False):
        asyncio.run(whole(begun))
        gc.collect()
    assert [hook.cancelled for hook in hooks] == [True, False]
    assert all(hook.heard == [] for hook in hooks)


def test_after_closing_plain_hooks_still_hear_and_asynchronous_ones_do_not() -> None:
    heard: list[Event] = []
    late: list[Event] = []

    async def later(event: Event) -> None:
        late.append(event)

    async def test() -> None:
        telemetry = Telemetry([heard.append, later])
        await telemetry.aclose()
        telemetry.emit(numbered(1))
        await asyncio.sleep(0)
        assert (len(heard), late, telemetry.dropped) == (1, [], 1)

    run(test())


def test_without_a_loop_plain_hooks_hear_and_asynchronous_ones_do_not() -> None:
    heard: list[Event] = []

    async def later(event: Event) -> None:
        raise AssertionError

    telemetry = Telemetry([later, heard.append])
    telemetry.emit(numbered(1))
    gc.collect()
    assert (len(heard), telemetry.dropped) == (1, 1)


def test_a_hook_that_cancels_itself_keeps_nothing_from_the_others(
    caplog: pytest.LogCaptureFixture,
) -> None:
    heard: list[Event] = []

    async def cancels_itself(event: Event) -> None:
        raise asyncio.CancelledError

    async def later(event: Event) -> None:
        heard.append(event)

    async def test() -> None:
        telemetry = Telemetry([cancels_itself, later])
        for number in range(3):
            telemetry.emit(numbered(number))
        await telemetry.aclose()

    run(test())
    assert numbers(heard) == [0, 1, 2]
    assert failures(caplog) == [("WARNING", True)]


def test_an_asynchronous_hook_runs_in_the_context_of_the_call_that_it_hears_of() -> None:
    """So its log lines carry what the caller bound, and its spans hang below the caller's."""
    user = contextvars.ContextVar("user", default="nobody")
    seen: list[str] = []

    async def hook(event: Event) -> None:
        seen.append(user.get())

    async def test() -> None:
        telemetry = Telemetry([hook])

        async def call(name: str) -> None:
            user.set(name)
            telemetry.emit(numbered(1))

        await asyncio.gather(call("ann"), call("bob"))
        await telemetry.aclose()

    run(test())
    assert seen == ["ann", "bob"]


def test_whatever_can_be_awaited_is_and_whatever_else_is_returned_is_ignored(
    caplog: pytest.LogCaptureFixture,
) -> None:
    heard: list[int] = []

    async def work(number: int) -> None:
        heard.append(number)

    def begins_a_task(event: Event) -> Awaitable[None]:
        return asyncio.create_task(work(1))

    def hands_a_coroutine(event: Event) -> Awaitable[None]:
        return work(2)

    def returns_a_number(event: Event) -> Any:
        return 3

    async def test() -> None:
        telemetry = Telemetry([begins_a_task, hands_a_coroutine, returns_a_number])
        telemetry.emit(numbered(1))
        await telemetry.aclose()

    run(test())
    assert heard == [1, 2]
    assert caplog.records == []


def test_a_task_that_a_hook_began_is_cancelled_with_the_rest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(telemetry_module, "LAST_CALL_S", 0.01)

    async def test() -> None:
        def hook(event: Event) -> Awaitable[Any]:
            return asyncio.create_task(asyncio.Event().wait())

        telemetry = Telemetry([hook])
        before = asyncio.all_tasks()
        for number in range(3):
            telemetry.emit(numbered(number))
        await telemetry.aclose()
        if left := asyncio.all_tasks() - before:
            await asyncio.wait(left)

    run(test())


def test_a_hook_may_add_headers_to_a_request() -> None:
    def hook(event: Event) -> None:
        if isinstance(event, RequestStarted):
            event.headers["X-Extra"] = "1"

    headers = {"X-Req-Id": "id"}
    Telemetry([hook]).emit(RequestStarted("id", 1.0, 100, headers))
    assert headers == {"X-Req-Id": "id", "X-Extra": "1"}


def test_an_event_cannot_be_changed_and_shows_neither_headers_nor_text() -> None:
    result = Transcription(
        text="my number is 1234",
        language="en",
        language_probability=0.9,
        duration=1.0,
        speech_duration=1.0,
        model="base",
        confidence=Confidence(0.9, 0.8, 4),
        routing=Routing("primary", False, "accepted", (), False),
        segments=(),
        timings_ms=Timings(0.0, 1.0, None, 2.0),
        request_id="id",
    )
    started = RequestStarted("id", 1.0, 100, {"Authorization": "Bearer secret"})
    finished = RequestFinished("id", "http://a", 0.1, 1, result, None)
    assert "secret" not in repr(started)
    assert "1234" not in repr(finished)
    error = OverloadedError("full", status=503)
    attempt = AttemptFinished("id", 1, "http://a", 0.1, 503, error)
    assert repr(error) in repr(attempt)
    with pytest.raises(dataclasses.FrozenInstanceError):
        attempt.number = 2  # type: ignore[misc]
    assert not hasattr(attempt, "__dict__")
