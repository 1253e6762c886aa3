"""What a call tells while it runs, and how it reaches those who listen."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import logging
from collections import deque
from collections.abc import Awaitable, Iterable, MutableMapping
from dataclasses import dataclass, field
from typing import Protocol

from stt_sdk._errors import STTError
from stt_sdk._types import Transcription

logger = logging.getLogger("stt_sdk")

# Events that wait for asynchronous hooks; beyond them, they are dropped.
CAPACITY = 1000
# What asynchronous hooks get to finish when the client closes.
LAST_CALL_S = 1.0


@dataclass(frozen=True, slots=True)
class RequestStarted:
    """A call begins. The first event of each call.

    Attributes:
        request_id: joins the events of one call, and these with the service's logs.
        audio_seconds: length of the clip, where it is known before it is sent.
        audio_bytes: size of the clip, where it is known.
        headers: sent with every attempt. A hook may add to them; that is how a `traceparent`
            travels. An asynchronous hook comes too late for this.
    """

    request_id: str
    audio_seconds: float | None
    audio_bytes: int | None
    # Whoever logs an event must not log what others put in here.
    headers: MutableMapping[str, str] = field(repr=False)


@dataclass(frozen=True, slots=True)
class AttemptFinished:
    """One host answered, or failed to.

    Attributes:
        number: of the attempt, from 1.
        host: whom it went to.
        seconds: that it took.
        status: HTTP status; None: there was no answer.
        error: None: it gave a text.
    """

    request_id: str
    number: int
    host: str
    seconds: float
    status: int | None
    error: STTError | None


@dataclass(frozen=True, slots=True)
class Retried:
    """The call goes on after a failed attempt.

    Attributes:
        number: of the attempt that comes next.
        after: how the last one failed.
        wait: seconds until then.
    """

    request_id: str
    number: int
    after: STTError
    wait: float


@dataclass(frozen=True, slots=True)
class Escalated:
    """The service needed its fallback.

    Attributes:
        reason: why, as `routing.reason`; "" if it is not known.
        below: the gates that the primary's own text failed.
        fallback_ms: milliseconds of the round trip, if the fallback was asked.
        degraded: it gave no text, and the primary's doubtful one was returned.
    """

    request_id: str
    reason: str
    below: tuple[str, ...]
    fallback_ms: float | None
    degraded: bool


@dataclass(frozen=True, slots=True)
class RequestFinished:
    """A call is over. The last event of each call, whatever its end.

    Attributes:
        host: whom the last attempt went to; None: there was none.
        seconds: of the whole call.
        attempts: how many there were.
        result: None: there is no text.
        error: what the caller gets instead; `asyncio.CancelledError` if the call was cancelled.
    """

    request_id: str
    host: str | None
    seconds: float
    attempts: int
    # Nor may the text of a clip get into a log because somebody logs the event.
    result: Transcription | None = field(repr=False)
    error: BaseException | None


Event = RequestStarted | AttemptFinished | Retried | Escalated | RequestFinished


class TelemetryHook(Protocol):
    """Whatever takes an event: a function, a coroutine function or an object.

    A plain function is called at once, in the task of the call, which it holds up as long as it
    takes. What an asynchronous one does happens in the background.
    """

    def __call__(self, event: Event, /) -> Awaitable[None] | None: ...


_Late = tuple[TelemetryHook, Awaitable[None], contextvars.Context]


class Telemetry:
    """Hands events to hooks, in order. None can break a call, and no asynchronous one slow it.

    Attributes:
        dropped: events that asynchronous hooks did not get, or not in time.

    Raises:
        TypeError: a hook cannot be called.
    """

    def __init__(self, hooks: Iterable[TelemetryHook]) -> None:
        self._hooks = tuple(hooks)
        for hook in self._hooks:
            if not callable(hook):
                raise TypeError(f"a telemetry hook must be callable, not {hook!r}")
        self.dropped = 0
        self._failing: set[int] = set()
        self._waiting: deque[_Late] = deque()
        self._worker: asyncio.Task[None] | None = None  # there while something waits
        self._closed = False

    def emit(self, event: Event) -> None:
        """Tell every hook. Never waits, and raises nothing but what ends programs."""
        for hook in self._hooks:
            try:
                late = hook(event)
            except Exception as error:  # noqa: BLE001  # logged there; a call outlives its hooks
                self._failed(hook, error)
                continue
            if late is not None and inspect.isawaitable(late):
                self._await_later(hook, late)

    async def aclose(self) -> None:
        """Give asynchronous hooks up to `LAST_CALL_S` to finish, then cancel what is left."""
        if self._closed:
            return
        self._closed = True
        if self._worker is not None:
            try:
                await asyncio.wait({self._worker}, timeout=LAST_CALL_S)
            finally:
                self._worker.cancel()
            # A hook that refuses to be cancelled is left behind.
            await asyncio.wait({self._worker}, timeout=LAST_CALL_S)
        if self.dropped:
            logger.warning("telemetry: events dropped in all: %d", self.dropped)

    def _await_later(self, hook: TelemetryHook, late: Awaitable[None]) -> None:
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:  # nobody could wait for it
            self._drop(hook, late)
            return
        if self._closed or len(self._waiting) >= CAPACITY:
            self._drop(hook, late)
            return
        self._waiting.append((hook, late, contextvars.copy_context()))
        if self._worker is None or self._worker.done():
            self._worker = loop.create_task(self._work())
            self._worker.add_done_callback(self._ended)

    async def _work(self) -> None:
        while self._waiting:
            hook, late, context = self._waiting.popleft()
            # In the context of the call that it tells of. And in a task of its own: a hook that
            # cancels itself must not stop the others.
            running = context.run(asyncio.ensure_future, _awaited(late))
            try:
                await asyncio.wait({running})
            except asyncio.CancelledError:
                running.cancel()
                await asyncio.wait({running})
                if not running.cancelled() and (failure := running.exception()):
                    self._failed(hook, failure)
                self._drop(hook, late)  # which may not even have begun
                raise
            if running.cancelled():
                self._failed(hook, asyncio.CancelledError("it cancelled itself"))
            elif failure := running.exception():
                self._failed(hook, failure)

    def _ended(self, worker: asyncio.Task[None]) -> None:
        if worker.cancelled():
            while self._waiting:
                hook, late, _ = self._waiting.popleft()
                self._drop(hook, late)

    def _drop(self, hook: TelemetryHook, late: Awaitable[None]) -> None:
        if isinstance(late, asyncio.Future):
            late.cancel()
        elif inspect.iscoroutine(late):
            late.close()  # or Python complains that nobody awaited it
        self.dropped += 1
        if self.dropped % CAPACITY == 1:
            logger.warning(
                "telemetry: %s does not keep up; events dropped so far: %d",
                _name(hook),
                self.dropped,
            )

    def _failed(self, hook: TelemetryHook, error: BaseException) -> None:
        level = logging.DEBUG if id(hook) in self._failing else logging.WARNING
        self._failing.add(id(hook))
        logger.log(level, "telemetry: %s failed", _name(hook), exc_info=error)


async def _awaited(late: Awaitable[None]) -> None:
    await late


def _name(hook: TelemetryHook) -> str:
    return getattr(hook, "__qualname__", type(hook).__qualname__)
