"""Work that may never end."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import TypeVar

Result = TypeVar("Result")


async def apart(work: Callable[[], Result], name: str) -> Result:
    """Do the work in a thread that a process which ends does not wait for, nor anything else.

    Args:
        name: of the thread.
    """
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[Result] = loop.create_future()

    def tell(how: Callable[[], None]) -> None:
        if not ended.done():
            how()

    def run() -> None:
        how: Callable[[], None]
        try:
            how = partial(ended.set_result, work())
        except BaseException as error:  # noqa: BLE001  # it is raised where the call waits
            how = partial(ended.set_exception, error)
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(tell, how)

    threading.Thread(target=run, name=name, daemon=True).start()
    return await ended
