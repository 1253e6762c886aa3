"""Slots: the right to run one piece of work in a thread, and the queue before them."""

from __future__ import annotations

import asyncio
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

from stt_cascade.admission.deadline import Deadline
from stt_cascade.admission.fair import Entry, FairQueue
from stt_cascade.admission.pace import Pace
from stt_cascade.errors import DeadlineExceeded, Draining, Overloaded, Refusal

Result = TypeVar("Result")
# Where there is only one caller, or none is known.
NOBODY = ""


class _Work:
    """Work that waits or runs; `admitted`: it only continues what was let in before."""

    def __init__(self, audio: float, *, admitted: bool) -> None:
        self.audio = audio
        self.admitted = admitted
        self.turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.since = 0.0

    def refuse(self, refusal: Refusal) -> None:
        if not self.turn.done():
            self.turn.set_exception(refusal)


class _Promise:
    """Seconds of audio that a clip in work has still to bring."""

    def __init__(self, caller: str, left: float) -> None:
        self.caller = caller
        self.left = left

    def brought(self, seconds: float) -> None:
        self.left -= min(seconds, self.left)


class Slots:
    """At most `size` pieces of work at once; at most `queue` wait, shared fairly by their callers.

    A `FairQueue` decides whose turn it is, by the seconds that the work of each caller has taken.
    So a caller waits for what runs and for its own work, not for what others have queued. When the
    queue is full, the caller with the most waiting gives way.

    A slot belongs to the thread, not to the caller: a caller that goes away leaves the queue, but
    work that has begun holds its slot until its thread ends, so never more than `size` of them run.

    Admission counts seconds of audio, since these are the cost: a request that cannot finish by
    its deadline, judged by the work before it and by the measured pace, is rejected immediately.

    Args:
        name: of the work, for messages and threads.
        size: slots.
        queue: pieces of work that may wait.
        queue_seconds: seconds of audio that may wait; a caller's first piece of work may always,
            and so may an equal share of them for each caller.
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
        self._queue_limit = queue
        self._queue_seconds = queue_seconds
        self._overhead = overhead
        self._pace = Pace()
        self._queue: FairQueue[_Work] = FairQueue()
        self._running: dict[Future[Any], Entry[_Work]] = {}
        self._promises: list[_Promise] = []
        self._draining = False
        self.size = size

    @property
    def depth(self) -> int:
        """Pieces of work that wait."""
        return len(self._queue)

    @property
    def in_flight(self) -> int:
        """Slots that are taken."""
        return self.size - self._free

    @property
    def audio_seconds(self) -> float:
        """Seconds of audio being worked on."""
        return sum(entry.item.audio for entry in self._running.values())

    @property
    def queued_seconds(self) -> float:
        """Seconds of audio that wait."""
        return sum(self._queued().values())

    @property
    def predicted_wait(self) -> float:
        """Seconds that the next request would wait for a slot, whoever of the callers sends it."""
        return max(self._wait(caller) for caller in [*self._queue.callers, NOBODY])

    @property
    def oldest_seconds(self) -> float:
        """For how long the oldest work has been running; 0 if none is."""
        now = time.monotonic()
        # A copy: the watchdog asks from a thread of its own.
        return max((now - entry.item.since for entry in list(self._running.values())), default=0.0)

    def check(
        self,
        deadline: Deadline,
        audio_seconds: float = 0.0,
        further_seconds: float = 0.0,
        caller: str = NOBODY,
    ) -> None:
        """Whether work would be let in now.

        Args:
            audio_seconds: length of its audio, as far as it is known.
            further_seconds, caller: as in `run`.

        Raises:
            Overloaded: the queue is full, or the work would not be done by the deadline.
            Draining: the service stops.
        """
        if self._draining:
            raise Draining("the service is stopping", retry_after=1)
        if self._free and not self._queue:
            return
        wait = self._wait(caller)
        if self.depth >= self._queue_limit and self._gives_way(caller) is None:
            raise Overloaded(
                f"{self.in_flight} requests are being worked on and {self.depth} wait already",
                retry_after=wait,
            )
        if self._brings_too_much(caller, audio_seconds):
            raise Overloaded(
                f"{self.queued_seconds:.0f} s of audio wait already; "
                f"at most {self._queue_seconds:g} s may",
                retry_after=wait,
            )
        # Clips in work take turns with what comes: each has as much of a turn as the new one, so
        # one of a single part waits for none of what a long one has still to bring.
        mine = [promise.left for promise in self._promises if promise.caller == caller]
        own = self._cost(audio_seconds)
        ahead = self._ahead(caller, own + further_seconds)
        ahead += sum(min(left, further_seconds) for left in mine)
        needed = self._rest() + self._pace.predict(ahead / self.size + own)
        if needed > deadline.remaining:
            raise Overloaded(
                f"the {self._name} would be done in {needed:.1f} s; "
                f"the deadline is in {deadline.remaining:.1f} s",
                retry_after=wait,
            )

    @contextmanager
    def promise(
        self, audio_seconds: float, caller: str = NOBODY
    ) -> Iterator[Callable[[float], None]]:
        """Count audio as waiting that a clip in work has still to bring.

        Yields:
            to be told the seconds of each part as it comes.
        """
        promise = _Promise(caller, audio_seconds)
        self._promises.append(promise)
        self._queue.hold(caller)
        try:
            yield promise.brought
        finally:
            self._promises.remove(promise)
            self._queue.let_go(caller)

    async def run(
        self,
        work: Callable[[], Result],
        deadline: Deadline,
        *,
        caller: str = NOBODY,
        audio_seconds: float = 0.0,
        further_seconds: float = 0.0,
        admitted: bool = False,
        waited: Callable[[float], None] = lambda seconds: None,
        begun: Callable[[], None] = lambda: None,
    ) -> Result:
        """Run `work` in a thread as soon as it is its turn, and give the slot back when it ends.

        Args:
            caller: who shares the slots with the others.
            audio_seconds: length of the audio that the work is about.
            further_seconds: what its caller has promised to bring after it.
            admitted: this continues work that was let in before: the queue takes it, full or not.
            waited: told the seconds in the queue, as soon as they are known, refused or not.
            begun: told when the work begins.

        Raises:
            Overloaded: as `check`, or it had to give way in the queue.
            Draining: the service stops, and the work had not begun.
            DeadlineExceeded: the deadline passed in the queue or during the work.
        """
        if not admitted:
            self.check(deadline, audio_seconds, further_seconds, caller)
        entry = await self._acquire(
            caller, _Work(audio_seconds, admitted=admitted), deadline, waited
        )
        try:
            if not deadline.remaining:
                raise DeadlineExceeded("the deadline passed in the queue")
            entry.item.since = time.monotonic()
            thread = self._executor.submit(work)
        except BaseException:
            self._release(entry, 0.0)
            raise
        self._running[thread] = entry
        begun()
        loop = asyncio.get_running_loop()

        def ended(thread: Future[Result]) -> None:
            if not loop.is_closed():  # a server that has given up waiting may be gone already
                loop.call_soon_threadsafe(self._end, thread)

        thread.add_done_callback(ended)
        outcome = asyncio.wrap_future(thread)
        # The caller may go away or run out of time: then nobody looks at the thread's result.
        outcome.add_done_callback(lambda late: late.cancelled() or late.exception())
        done, _ = await asyncio.wait({outcome}, timeout=deadline.remaining)
        if not done:
            raise DeadlineExceeded(f"the deadline passed during the {self._name}")
        return outcome.result()

    async def _acquire(
        self, caller: str, work: _Work, deadline: Deadline, waited: Callable[[float], None]
    ) -> Entry[_Work]:
        cost = self._cost(work.audio)
        if self._free and not self._queue:
            self._free -= 1
            waited(0.0)
            return self._queue.begin(caller, cost, work)
        if not work.admitted and self.depth >= self._queue_limit:
            self._make_room(caller)
        entry = self._queue.put(caller, cost, work)
        since = time.monotonic()
        turn = work.turn
        try:
            await asyncio.wait({turn}, timeout=deadline.remaining)
            if not turn.done():
                raise DeadlineExceeded("the deadline passed in the queue")
            turn.result()  # raises what `refuse` put there
        except BaseException:
            if not self._queue.remove(entry) and turn.done() and turn.exception() is None:
                # The slot was handed over in the moment the caller gave up.
                self._release(entry, 0.0)
            raise
        finally:
            waited(time.monotonic() - since)
        return entry

    def _end(self, thread: Future[Any]) -> None:
        entry = self._running.pop(thread)
        seconds = time.monotonic() - entry.item.since
        error = None if thread.cancelled() else thread.exception()
        # A file that is refused has taken its time; an engine that breaks says nothing of its pace.
        if not entry.item.admitted and (error is None or isinstance(error, Refusal)):
            self._pace.measure(seconds, entry.cost)
        self._release(entry, self._pace.cost(seconds, default=entry.cost))

    def _release(self, entry: Entry[_Work], cost: float) -> None:
        """Work of that cost has ended: its slot passes from hand to hand."""
        self._queue.end(entry, cost)
        while self._queue:
            following = self._queue.take()
            if not following.item.turn.done():
                following.item.turn.set_result(None)
                return
            self._queue.end(following, 0.0)
        self._free += 1

    def _cost(self, audio_seconds: float) -> float:
        return audio_seconds + self._overhead

    def _rest(self) -> float:
        """Seconds until a slot is free, on average, if nobody waited."""
        now = time.monotonic()
        left = (
            max(0.0, self._pace.predict(entry.cost) - (now - entry.item.since))
            for entry in self._running.values()
        )
        return sum(left) / self.size

    def _wait(self, caller: str) -> float:
        """Seconds that this caller's next piece of work would wait for a slot."""
        if self._free and not self._queue:
            return 0.0
        return self._rest() + self._pace.predict(self._ahead(caller, 0.0)) / self.size

    def _ahead(self, caller: str, own: float) -> float:
        return self._queue.ahead(caller, own, self._promised())

    def _promised(self) -> defaultdict[str, float]:
        """Seconds of audio that clips in work have still to bring, by caller."""
        promised = defaultdict[str, float](float)
        for promise in self._promises:
            promised[promise.caller] += promise.left
        return promised

    def _queued(self) -> defaultdict[str, float]:
        """Seconds of audio that wait, by caller."""
        queued = self._promised()
        for entry in self._queue.waiting:
            queued[entry.caller] += entry.item.audio
        return queued

    def _brings_too_much(self, caller: str, audio_seconds: float) -> bool:
        if all(entry.caller != caller for entry in self._queue.waiting):
            return False
        queued = self._queued()
        queued[caller] += audio_seconds
        most = self._queue_seconds
        return sum(queued.values()) > most and queued[caller] > most / len(queued)

    def _gives_way(self, caller: str) -> Entry[_Work] | None:
        return self._queue.gives_way(caller, lambda entry: not entry.item.admitted)

    def _make_room(self, caller: str) -> None:
        if (entry := self._gives_way(caller)) is not None:
            self._queue.remove(entry)
            refusal = "the queue is full, and this request gave way to another caller's"
            entry.item.refuse(Overloaded(refusal, retry_after=self._wait(entry.caller)))

    def drain(self) -> None:
        """Take no new work and reject what is queued; work that has begun goes on."""
        self._draining = True
        for entry in self._queue.waiting:
            if not entry.item.admitted:
                self._queue.remove(entry)
                entry.item.refuse(Draining("the service is stopping", retry_after=1))

    def close(self) -> None:
        """Drop the threads as they end."""
        self.drain()
        self._executor.shutdown(wait=False, cancel_futures=True)
