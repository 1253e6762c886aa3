"""Work that may not end for a long time, in threads that nobody waits for."""

from __future__ import annotations

import asyncio
import contextvars
import threading
import weakref
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import suppress
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

Item = TypeVar("Item")
_Waiting = tuple[asyncio.AbstractEventLoop, "asyncio.Future[Any]"]

_END = object()


async def once(work: Callable[[], Item], name: str) -> Item:
    """What the work gives or raises.

    Who is cancelled waits no longer; the thread stays until the work is done, but keeps no process
    alive.

    Args:
        name: of the thread.
    """
    waiting = _waiting()
    _thread(lambda: _do(work, waiting), name)
    result: Item = await waiting[1]
    return result


async def in_thread(work: Callable[[], Item]) -> Item:
    """What the work gives or raises, from a thread of the event loop's executor.

    Once the main thread has ended, Python's executors take no more work, while other threads, and
    a `SyncSTTClient` in one of them, go on. Then the work gets a thread of its own.
    """
    begin = contextvars.copy_context().run
    try:
        working = asyncio.get_running_loop().run_in_executor(None, begin, work)
    except RuntimeError:
        return await once(work, "stt_sdk")
    return await working


class Apart(AsyncIterator[Item], Generic[Item]):
    """A plain iterable whose items are taken in one thread, each when it is asked for.

    Of one that is given up, the thread stays until the item has come that is being waited for.
    """

    def __init__(self, items: Iterable[Item]) -> None:
        self._items: Iterable[Item] | None = items
        self._wanted: SimpleQueue[_Waiting | None] = SimpleQueue()
        self._end = weakref.finalize(self, self._wanted.put, None)
        self._end.atexit = False

    async def __anext__(self) -> Item:
        if not self._end.alive:
            raise StopAsyncIteration
        if self._items is not None:
            # In the caller's context, and all in one thread: a database may insist on its own.
            context, taking = contextvars.copy_context(), _each(self._items)
            wanted = self._wanted
            _thread(lambda: context.run(_take, wanted, taking), "stt_sdk source")
            self._items = None
        waiting = _waiting()
        self._wanted.put(waiting)
        try:
            item = await waiting[1]
        except BaseException:
            self._end()
            raise
        if item is _END:
            self._end()
            raise StopAsyncIteration
        found: Item = item
        return found


def _each(items: Iterable[Item]) -> Iterator[Item]:
    """Where even the beginning, `iter`, happens when the first one is wanted."""
    for item in items:  # noqa: UP028  # `yield from` would close an iterator that is the caller's
        yield item


def _take(wanted: SimpleQueue[_Waiting | None], taking: Iterator[Any]) -> None:
    while (waiting := wanted.get()) is not None:
        _do(lambda: next(taking, _END), waiting)


def _do(work: Callable[[], Any], waiting: _Waiting) -> None:
    loop, ended = waiting
    result: Any = None
    error: BaseException | None = None
    try:
        result = work()
    except StopIteration as stop:  # which no future takes
        error = RuntimeError("it raised StopIteration")
        error.__cause__ = stop
    except BaseException as raised:  # noqa: BLE001  # it is raised where somebody waits
        error = raised
    with suppress(RuntimeError):  # the loop is closed: nobody waits any more
        loop.call_soon_threadsafe(_tell, ended, result, error)
    del result, error  # an error would hold this frame, and that the error


def _tell(ended: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
    if ended.done():
        return
    if error is None:
        ended.set_result(result)
    else:
        ended.set_exception(error)


def _waiting() -> _Waiting:
    loop = asyncio.get_running_loop()
    return loop, loop.create_future()


def _thread(work: Callable[[], Any], name: str) -> None:
    # At its end a process waits for no daemon.
    threading.Thread(target=work, name=name, daemon=True).start()
