"""When the caller stops caring."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from typing import Any, TypeVar

from stt_cascade.errors import InvalidRequest

HEADER = "X-Deadline-Ms"

Result = TypeVar("Result")


class Deadline:
    """A moment on the monotonic clock, which is also the event loop's.

    Args:
        seconds: from now.
    """

    def __init__(self, seconds: float) -> None:
        self.at = time.monotonic() + seconds

    @property
    def remaining(self) -> float:
        """Seconds left, never negative."""
        return max(0.0, self.at - time.monotonic())


def from_header(value: str | None, longest: float) -> Deadline:
    """The deadline of a request: `longest` seconds, or fewer if the caller's header says so.

    Raises:
        InvalidRequest: the header is no positive whole number.
    """
    if value is None:
        return Deadline(longest)
    if not (value.isascii() and value.isdigit()) or not 0 < len(value) <= 12 or int(value) == 0:
        raise InvalidRequest(f"{HEADER} must be a positive whole number of milliseconds")
    return Deadline(min(longest, int(value) / 1000))


async def within(seconds: float, work: Coroutine[Any, Any, Result]) -> Result:
    """Do the work, and stop it when the time is over or the caller is cancelled.

    As `asyncio.wait_for`, which up to Python 3.11 forgets a cancellation that comes in the same
    moment as the result: the work of a caller who went away would go on.

    Raises:
        asyncio.TimeoutError: the time was over.
    """
    working = asyncio.ensure_future(work)
    # If the caller is cancelled, nobody looks at what the work raises.
    working.add_done_callback(lambda late: late.cancelled() or late.exception())
    try:
        await asyncio.wait({working}, timeout=seconds)
        if not working.done():
            raise asyncio.TimeoutError
        return working.result()
    finally:
        working.cancel()
        await asyncio.wait({working})  # what it holds, it gives back first
