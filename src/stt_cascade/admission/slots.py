"""Slots: the right to run one piece of work in a thread, and the queue before them."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from stt_cascade.admission.deadline import Deadline
from stt_cascade.errors import DeadlineExceeded, Draining, Overloaded

Result = TypeVar("Result")


class Slots:
    """At most `size` pieces of work at once; at most `queue` callers wait, first come first served.

    A slot belongs to the thread, not to the caller: who goes away leaves the queue, but work that
    has begun holds its slot until its thread ends, so never more than `size` of them run.

    Args:
        name: of the work, for messages and threads.
        size: slots.
        queue: callers that may wait.
    """

    def __init__(self, name: str, size: int, queue: int) -> None:
        self._name = name
        self._executor = ThreadPoolExecutor(size, thread_name_prefix=name)
        self._free = size
        self._queue = queue
        # Callers in the queue, and whether they only continue what was let in before.
        self._waiting: deque[tuple[asyncio.Future[None], bool]] = deque()
        self._running: dict[Future[Any], tuple[float, float]] = {}  # since when, audio seconds
        self._draining = False
        self.size = size

    @property
    def depth(self) -> int:
        """Callers that wait."""
        return len(self._waiting)

    @property
    def in_flight(self) -> int:
        """Slots that are taken."""
        return self.size - self._free

    @property
    def audio_seconds(self) -> float:
        """Seconds of audio being worked on."""
        return sum(audio for _, audio in self._running.values())

    @property
    def oldest_seconds(self) -> float:
        """For how long the oldest work has been running; 0 if none is."""
        now = time.monotonic()
        return max((now - since for since, _ in self._running.values()), default=0.0)

    async def run(
        self,
        work: Callable[[], Result],
        deadline: Deadline,
        *,
        audio_seconds: float = 0.0,
        admitted: bool = False,
        waited: Callable[[float], None] = lambda seconds: None,
    ) -> Result:
        """Run `work` in a thread as soon as a slot is free, and give the slot back when it ends.

        Args:
            audio_seconds: length of the audio that the work is about.
            admitted: this continues work that was let in before: the queue takes it, full or not.
            waited: told the seconds in the queue, as soon as they are known, refused or not.

        Raises:
            Overloaded: the queue is full.
            Draining: the service stops, and the work had not begun.
            DeadlineExceeded: the deadline passed in the queue or during the work.
        """
        await self._acquire(deadline, admitted, waited)
        try:
            thread = self._executor.submit(work)
        except BaseException:
            self._release()
            raise
        self._running[thread] = (time.monotonic(), audio_seconds)
        loop = asyncio.get_running_loop()

        def ended(thread: Future[Result]) -> None:
            if not loop.is_closed():  # a server that has given up waiting may be gone already
                loop.call_soon_threadsafe(self._end, thread)

        thread.add_done_callback(ended)
        outcome = asyncio.wrap_future(thread)
        # Who waits may go away or run out of time: then nobody looks at what the thread brings.
        outcome.add_done_callback(lambda late: late.cancelled() or late.exception())
        done, _ = await asyncio.wait({outcome}, timeout=deadline.remaining)
        if not done:
            raise DeadlineExceeded(f"the deadline passed during the {self._name}")
        return outcome.result()

    async def _acquire(
        self, deadline: Deadline, admitted: bool, waited: Callable[[float], None]
    ) -> None:
        if self._draining and not admitted:
            raise Draining("the service is stopping", retry_after=1)
        if self._free and not self._waiting:
            self._free -= 1
            waited(0.0)
            return
        if len(self._waiting) >= self._queue and not admitted:
            raise Overloaded(
                f"{self.in_flight} requests are being worked on and {self.depth} wait already",
                retry_after=1,
            )
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiting = (turn, admitted)
        self._waiting.append(waiting)
        since = time.monotonic()
        try:
            await asyncio.wait({turn}, timeout=deadline.remaining)
            if not turn.done():
                raise DeadlineExceeded("the deadline passed in the queue")
            turn.result()  # raises what `drain` put there
        except BaseException:
            if waiting in self._waiting:
                self._waiting.remove(waiting)
            elif turn.done() and turn.exception() is None:
                self._release()  # the slot was handed over in the moment the caller gave up
            raise
        finally:
            waited(time.monotonic() - since)

    def _end(self, thread: Future[Any]) -> None:
        del self._running[thread]
        self._release()

    def _release(self) -> None:
        while self._waiting:
            turn, _ = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)  # the slot passes from hand to hand
                return
        self._free += 1

    def drain(self) -> None:
        """Let nobody new in and send home who waits; what has begun goes on."""
        self._draining = True
        waiting = list(self._waiting)
        self._waiting.clear()
        for turn, admitted in waiting:
            if admitted:
                self._waiting.append((turn, admitted))
            elif not turn.done():
                turn.set_exception(Draining("the service is stopping", retry_after=1))

    def close(self) -> None:
        """Drop the threads as they end."""
        self.drain()
        self._executor.shutdown(wait=False, cancel_futures=True)
