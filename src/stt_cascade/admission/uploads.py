"""Places for bodies: how many are held at once, and how slowly one may come."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from typing import Any

from stt_cascade.admission.deadline import Deadline
from stt_cascade.errors import Draining, Overloaded, Refusal, RequestTimeout
from stt_sdk._within import AGAIN_S

# A phone that changes its cell, or a few lost packets sent again, may be silent for this long.
GRACE_S = 8.0
# Slower than any codec speaks: a caller who sends while he records is never too slow. What a slow
# line takes longer for than the deadline allows, the deadline refuses.
MIN_BYTES_PER_S = 1024
# A body that is this far behind gives its place to a newcomer, if none is free.
YIELDS_AFTER_S = 0.5


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
    """One body while it is received.

    Args:
        deadline: of the request.
        clock: monotonic seconds.
    """

    def __init__(self, deadline: Deadline, clock: Callable[[], float]) -> None:
        self._deadline = deadline
        self._clock = clock
        self._pace = Pace()
        self._waiting_since: float | None = None
        self._refused: asyncio.Future[Refusal] = asyncio.get_running_loop().create_future()

    @property
    def behind(self) -> float:
        """By how many seconds it has used up its grace; 0 if nothing is being waited for."""
        if self._waiting_since is None:
            return 0.0
        return GRACE_S - self._pace.patience + self._clock() - self._waiting_since

    def refuse(self, refusal: Refusal) -> None:
        """End the wait for the rest of it, if there is one."""
        if not self._refused.done():
            self._refused.set_result(refusal)

    async def next(self, chunks: AsyncIterator[bytes]) -> bytes:
        """The next bytes; none at the end.

        Raises:
            RequestTimeout: they come too slowly, or had not come by the deadline.
            Refusal: as `refuse` was told meanwhile.
        """
        since = self._waiting_since = self._clock()
        coming = asyncio.ensure_future(anext(chunks, b""))
        # Of a body that is refused nobody looks at what it failed with.
        coming.add_done_callback(lambda late: late.cancelled() or late.exception())
        either: set[asyncio.Future[Any]] = {coming, self._refused}
        try:
            await asyncio.wait(
                either,
                timeout=min(max(0.0, self._pace.patience), self._deadline.remaining),
                return_when=asyncio.FIRST_COMPLETED,
            )
            if self._refused.done():
                raise self._refused.result()
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

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, size: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.size = size
        self._clock = clock
        self._held: set[Body] = set()
        self._empty = asyncio.Event()
        self._empty.set()

    @property
    def held(self) -> int:
        """Places that are taken."""
        return len(self._held)

    @contextmanager
    def place(self, deadline: Deadline) -> Iterator[Body]:
        """A place within the block, for a body that is then received there.

        Raises:
            Overloaded: none is free, and no body is far enough behind to give up its own.
        """
        if len(self._held) >= self.size:
            self._make_room()
        body = Body(deadline, self._clock)
        self._held.add(body)
        self._empty.clear()
        try:
            yield body
        finally:
            self._held.discard(body)
            if not self._held:
                self._empty.set()

    async def wait_until_empty(self) -> None:
        """Until no body is held: all of them are answered."""
        await self._empty.wait()

    def _make_room(self) -> None:
        last = max(self._held, key=lambda body: body.behind)
        if last.behind < YIELDS_AFTER_S:
            raise Overloaded(f"{self.size} uploads are being worked on already", retry_after=1)
        last.refuse(RequestTimeout("the body came too slowly while others waited for room"))
        self._held.discard(last)

    def drain(self) -> None:
        """Send home whose body is still coming; who has sent it may wait for the answer."""
        for body in self._held:
            body.refuse(Draining("the service is stopping", retry_after=1))
