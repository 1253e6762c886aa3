"""Work within a time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

Result = TypeVar("Result")

# A cancellation can get lost on its way: in anyio before 4.16 and in `asyncio.wait_for` before
# Python 3.12, if it comes together with something else.
AGAIN_S = 1.0


class OverTime(TimeoutError):
    """The time was over. What the work itself raises is none of these."""


async def within(seconds: float, work: Awaitable[Result]) -> Result:
    """Do the work, and stop it when the time is over or the caller is cancelled.

    As `asyncio.wait_for`, which up to Python 3.11 forgets a cancellation that comes in the same
    moment as the result: the work of a caller who went away would go on.

    Raises:
        OverTime: the time was over.
    """
    working = asyncio.ensure_future(work)
    # If the caller is cancelled, nobody looks at what the work raises.
    working.add_done_callback(lambda late: late.cancelled() or late.exception())
    try:
        await asyncio.wait({working}, timeout=seconds)
        if not working.done():
            raise OverTime
        return working.result()
    finally:
        while not working.done():  # what it holds, it gives back first
            working.cancel()
            await asyncio.wait({working}, timeout=AGAIN_S)
