"""Slots: the right to run one piece of work in a thread, and the queue before them."""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

from stt_cascade.admission.deadline import Deadline
from stt_cascade.admission.pace import Pace
from stt_cascade.errors import DeadlineExceeded, Draining, Overloaded

Result = TypeVar("Result")


class _Waiting:
    """A caller in the queue; `admitted`: it only continues what was let in before."""

    def __init__(self, audio: float, admitted: bool) -> None:
        self.audio = audio
        self.admitted = admitted
        self.turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()


class _Running:
    """Work in a thread; `measured`: it tells how fast this machine is."""

    def __init__(self, audio: float, *, measured: bool) -> None:
        self.audio = audio
        self.measured = measured
        self.since = time.monotonic()


class _Promise:
    """Seconds of audio that a clip in work has still to bring."""

    def __init__(self, left: float) -> None:
        self.left = left

    def brought(self, seconds: float) -> None:
        self.left -= min(seconds, self.left)


class Slots:
    """At most `size` pieces of work at once; at most `queue` callers wait, first come first served.

    A slot belongs to the thread, not to the caller: who goes away leaves the queue, but work that
    has begun holds its slot until its thread ends, so never more than `size` of them run.

    Admission is on seconds of audio, since cost is: who could not be served in time, by what waits
    already and by how fast the work has gone so far, is told at once.

    Args:
        name: of the work, for messages and threads.
        size: slots.
        queue: callers that may wait.
        queue_seconds: seconds of audio that may wait; one piece of work may always.
        overhead: what a piece of work costs beyond its length, in seconds of audio.
    """

    def __init__(
        self,
        name: str,
        size: int,
        queue: int,
        *,
        queue_seconds: float = math.inf,
        overhead: float = 0.0,
    ) -> None:
        self._name = name
        self._executor = ThreadPoolExecutor(size, thread_name_prefix=name)
        self._free = size
        self._queue = queue
        self._queue_seconds = queue_seconds
        self._overhead = overhead
        self._pace = Pace()
        self._waiting: deque[_Waiting] = deque()
        self._running: dict[Future[Any], _Running] = {}
        self._promises: list[_Promise] = []
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
        return sum(work.audio for work in self._running.values())

    @property
    def queued_seconds(self) -> float:
        """Seconds of audio that wait."""
        promised = sum(promise.left for promise in self._promises)
        return promised + sum(waiting.audio for waiting in self._waiting)

    @property
    def predicted_wait(self) -> float:
        """Seconds that the next caller would wait for a slot."""
        if self._free and not self._waiting:
            return 0.0
        now = time.monotonic()
        ahead = sum(
            max(0.0, self._pace.predict(self._cost(work.audio)) - (now - work.since))
            for work in self._running.values()
        )
        ahead += sum(self._pace.predict(self._cost(waiting.audio)) for waiting in self._waiting)
        return ahead / self.size

    @property
    def oldest_seconds(self) -> float:
        """For how long the oldest work has been running; 0 if none is."""
        now = time.monotonic()
        # A copy: the watchdog asks from a thread of its own.
        return max((now - work.since for work in list(self._running.values())), default=0.0)

    def check(
        self, deadline: Deadline, audio_seconds: float = 0.0, further_seconds: float = 0.0
    ) -> None:
        """Whether a new caller would be let in now.

        Args:
            audio_seconds: length of its audio, as far as it is known.
            further_seconds: as in `run`.

        Raises:
            Overloaded: the queue is full, or the work would not be done by the deadline.
            Draining: the service stops.
        """
        if self._draining:
            raise Draining("the service is stopping", retry_after=1)
        if self._free and not self._waiting:
            return
        wait = self.predicted_wait
        if len(self._waiting) >= self._queue:
            raise Overloaded(
                f"{self.in_flight} requests are being worked on and {self.depth} wait already",
                retry_after=wait,
            )
        if self._waiting and self.queued_seconds + audio_seconds > self._queue_seconds:
            raise Overloaded(
                f"{self.queued_seconds:.0f} s of audio wait already; "
                f"at most {self._queue_seconds:g} s may",
                retry_after=wait,
            )
        needed = wait + self._pace.predict(self._cost(audio_seconds))
        # Clips in work take turns with what comes: each has as much of a turn as the new one, so
        # one of a single part waits for none of what a long one has still to bring.
        shared = sum(min(promise.left, further_seconds) for promise in self._promises)
        needed += self._pace.predict(shared) / self.size
        if needed > deadline.remaining:
            raise Overloaded(
                f"the {self._name} would be done in {needed:.1f} s; "
                f"the deadline is in {deadline.remaining:.1f} s",
                retry_after=wait,
            )

    @contextmanager
    def promise(self, audio_seconds: float) -> Iterator[Callable[[float], None]]:
        """Count audio as waiting that a clip in work has still to bring.

        Yields:
            to be told the seconds of each part as it comes.
        """
        promise = _Promise(audio_seconds)
        self._promises.append(promise)
        try:
            yield promise.brought
        finally:
            self._promises.remove(promise)

    async def run(
        self,
        work: Callable[[], Result],
        deadline: Deadline,
        *,
        audio_seconds: float = 0.0,
        further_seconds: float = 0.0,
        admitted: bool = False,
        waited: Callable[[float], None] = lambda seconds: None,
        begun: Callable[[], None] = lambda: None,
    ) -> Result:
        """Run `work` in a thread as soon as a slot is free, and give the slot back when it ends.

        Args:
            audio_seconds: length of the audio that the work is about.
            further_seconds: what its caller has promised to bring after it.
            admitted: this continues work that was let in before: the queue takes it, full or not.
            waited: told the seconds in the queue, as soon as they are known, refused or not.
            begun: told when the work begins.

        Raises:
            Overloaded: as `check`.
            Draining: the service stops, and the work had not begun.
            DeadlineExceeded: the deadline passed in the queue or during the work.
        """
        if not admitted:
            self.check(deadline, audio_seconds, further_seconds)
        await self._acquire(_Waiting(audio_seconds, admitted), deadline, waited)
        try:
            if not deadline.remaining:
                raise DeadlineExceeded("the deadline passed in the queue")
            thread = self._executor.submit(work)
        except BaseException:
            self._release()
            raise
        self._running[thread] = _Running(audio_seconds, measured=not admitted)
        begun()
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
        self, waiting: _Waiting, deadline: Deadline, waited: Callable[[float], None]
    ) -> None:
        if self._free and not self._waiting:
            self._free -= 1
            waited(0.0)
            return
        self._waiting.append(waiting)
        since = time.monotonic()
        turn = waiting.turn
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
        work = self._running.pop(thread)
        if work.measured and not thread.cancelled() and thread.exception() is None:
            self._pace.measure(time.monotonic() - work.since, self._cost(work.audio))
        self._release()

    def _cost(self, audio_seconds: float) -> float:
        return audio_seconds + self._overhead

    def _release(self) -> None:
        while self._waiting:
            turn = self._waiting.popleft().turn
            if not turn.done():
                turn.set_result(None)  # the slot passes from hand to hand
                return
        self._free += 1

    def drain(self) -> None:
        """Let nobody new in and send home who waits; what has begun goes on."""
        self._draining = True
        waiting = list(self._waiting)
        self._waiting.clear()
        for one in waiting:
            if one.admitted:
                self._waiting.append(one)
            elif not one.turn.done():
                one.turn.set_exception(Draining("the service is stopping", retry_after=1))

    def close(self) -> None:
        """Drop the threads as they end."""
        self.drain()
        self._executor.shutdown(wait=False, cancel_futures=True)
