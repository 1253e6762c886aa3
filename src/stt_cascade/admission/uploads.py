"""Places for bodies: how many are held at once, and how slowly one may come."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from typing import Any

from stt_cascade.admission.deadline import Deadline
from stt_cascade.admission.slots import NOBODY
from stt_cascade.errors import Draining, Overloaded, Refusal, RequestTimeout
from stt_sdk._within import AGAIN_S

# A phone that changes its cell, or a few lost packets sent again, may be silent for this long.
GRACE_S = 8.0
# Slower than any codec: a client that sends while it records is never too slow. The deadline
# rejects what a slow line cannot send in time.
MIN_BYTES_PER_S = 1024
# A body that is this far behind gives its place to a newcomer, if none is free.
YIELDS_AFTER_S = 0.5
# The rate of uncompressed speech while it is recorded. Among the bodies of callers that hold too
# many places, the one that is furthest behind this rate goes first.
FAST_BYTES_PER_S = 32_000


class Pace:
    """For how long the next bytes of a body are waited for.

    The patience begins with `GRACE_S`, wears off while nothing comes, and each byte renews it by
    what it may take at `MIN_BYTES_PER_S`, up to `GRACE_S` again. So no silence is longer than the
    grace, and after it the average is no lower than the rate.
    """

    def __init__(self) -> None:
        self.patience = GRACE_S

    def waited(self, seconds: float, received: int) -> None:
        """Account for a wait, and the bytes that ended it."""
        self.patience = min(GRACE_S, self.patience - seconds + received / MIN_BYTES_PER_S)


class Body:
    """One body while its place is held: as it is received, and as the clip in it is worked on.

    Args:
        deadline: of the request.
        caller: whose it is.
        clock: monotonic seconds.

    Attributes:
        coming: whether more of it is to come.
        refused: why it has to give its place away, once it has to.
    """

    def __init__(self, deadline: Deadline, caller: str, clock: Callable[[], float]) -> None:
        self.caller = caller
        self.coming = True
        self.refused: asyncio.Future[Refusal] = asyncio.get_running_loop().create_future()
        self._deadline = deadline
        self._clock = clock
        self._pace = Pace()
        self._began = clock()
        self._received = 0
        self._waiting_since: float | None = None

    @property
    def behind(self) -> float:
        """By how many seconds it has used up its grace; 0 if nothing is being waited for."""
        if self._waiting_since is None:
            return 0.0
        return GRACE_S - self._pace.patience + self._clock() - self._waiting_since

    @property
    def lag(self) -> float:
        """Seconds that it has taken so far and would not have at `FAST_BYTES_PER_S`."""
        return self._clock() - self._began - self._received / FAST_BYTES_PER_S

    def refuse(self, refusal: Refusal) -> None:
        """End the wait for the rest of it, or the work on it."""
        if not self.refused.done():
            self.refused.set_result(refusal)

    async def next(self, chunks: AsyncIterator[bytes]) -> bytes:
        """The next bytes; none at the end.

        Raises:
            RequestTimeout: they come too slowly, or had not come by the deadline.
            Refusal: as `refuse` was told meanwhile.
        """
        since = self._waiting_since = self._clock()
        coming = asyncio.ensure_future(anext(chunks, b""))
        # Nobody looks at the error of a body that is refused.
        coming.add_done_callback(lambda late: late.cancelled() or late.exception())
        either: set[asyncio.Future[Any]] = {coming, self.refused}
        try:
            await asyncio.wait(
                either,
                timeout=min(max(0.0, self._pace.patience), self._deadline.remaining),
                return_when=asyncio.FIRST_COMPLETED,
            )
            if self.refused.done():
                raise self.refused.result()
            if not coming.done():
                raise RequestTimeout(self._complaint())
            chunk = coming.result()
        finally:
            self._waiting_since = None
            # Not awaited itself: what its cancellation raises could not be told from the caller's.
            while not coming.done():
                coming.cancel()
                await asyncio.wait({coming}, timeout=AGAIN_S)
        self._pace.waited(self._clock() - since, len(chunk))
        self._received += len(chunk)
        self.coming = bool(chunk)
        return chunk

    def _complaint(self) -> str:
        if not self._deadline.remaining:
            return "the body had not come by the deadline"
        return (
            f"the body came too slowly: no pause may exceed {GRACE_S:g} s, "
            f"and {MIN_BYTES_PER_S} bytes a second are the least"
        )


class Uploads:
    """At most `size` bodies are held at once, from before their first byte until the answer.

    Callers share the places: if none is free, one is taken from the callers that hold more than the
    newcomer then will, first that of the slowest body.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, size: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.size = size
        self._clock = clock
        # In the order in which they came.
        self._held: dict[Body, None] = {}
        self._empty = asyncio.Event()
        self._empty.set()

    @property
    def held(self) -> int:
        """Places that are taken."""
        return len(self._held)

    @contextmanager
    def place(self, deadline: Deadline, caller: str = NOBODY) -> Iterator[Body]:
        """A place within the block, for a body that is then received there.

        Raises:
            Overloaded: none is free, and none has to be given up for this caller.
        """
        if len(self._held) >= self.size:
            self._make_room(caller)
        body = Body(deadline, caller, self._clock)
        self._held[body] = None
        self._empty.clear()
        try:
            yield body
        finally:
            self._held.pop(body, None)
            if not self._held:
                self._empty.set()

    async def wait_until_empty(self) -> None:
        """Until no body is held: all of them are answered."""
        await self._empty.wait()

    def _make_room(self, caller: str) -> None:
        holds = Counter(body.caller for body in self._held)
        mine = holds[caller]
        body = self._slow([b for b in self._held if b.caller == caller or holds[b.caller] > mine])
        refusal: Refusal = RequestTimeout("the body came too slowly while others waited for room")
        if body is None:
            body = self._spare([b for b in self._held if holds[b.caller] > mine + 1], holds)
            refusal = Overloaded("this upload gave way to another caller's", retry_after=1)
        if body is None:
            raise Overloaded(f"{self.size} uploads are being worked on already", retry_after=1)
        body.refuse(refusal)
        del self._held[body]

    @staticmethod
    def _slow(bodies: list[Body]) -> Body | None:
        """The one that is furthest behind, if it is far behind."""
        last = max(bodies, key=lambda body: body.behind, default=None)
        return None if last is None or last.behind < YIELDS_AFTER_S else last

    @staticmethod
    def _spare(bodies: list[Body], holds: Counter[str]) -> Body | None:
        """One that comes slowly, or the latest of the caller who holds most."""
        if coming := [body for body in bodies if body.coming]:
            return max(coming, key=lambda body: body.lag)
        return max(reversed(bodies), key=lambda body: holds[body.caller], default=None)

    def drain(self) -> None:
        """Reject requests whose body is still coming; the others may wait for their answers."""
        for body in self._held:
            if body.coming:
                body.refuse(Draining("the service is stopping", retry_after=1))
