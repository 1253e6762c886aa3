"""How a process ends: from the first signal to its last moment.

signal ──▶ nothing new is taken, what has begun goes on; the port stays open and says so
   │       all answered and SEEN_S over, or the grace is over: what is left gets its 503
   ▼
the server's own handler ──▶ port closed, last answers sent, lifespan ended
   │
   ▼
DRAIN_TIMEOUT_S ──▶ the process ends, whatever is left
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

import structlog

from stt_sdk._within import within

log = structlog.get_logger("stt.service")

SIGNALS = (signal.SIGTERM, signal.SIGINT)
# Kept of the time for the server: to send the last answers and close what is open.
LAST_WORDS_S = 1.0
# For so long the port is open even if nothing is worked on: who chooses among several services asks
# each so often whether it is ready, and what he sends meanwhile is answered, not reset.
SEEN_S = 1.0


class Stop:
    """The end of one service, as SIGTERM and Ctrl-C ask for it. A second signal ends it at once.

    Args:
        timeout_s: from the signal to the end of the process, at most.
        drain: told that the end has begun.
        idle: returns when nothing is being worked on any more.

    Attributes:
        over: set when what has begun can no longer be finished.
    """

    def __init__(
        self,
        timeout_s: float,
        drain: Callable[[], None],
        idle: Callable[[], Coroutine[Any, Any, None]],
    ) -> None:
        self.over = asyncio.Event()
        self._timeout_s = timeout_s
        self._drain = drain
        self._idle = idle
        self._finishing: asyncio.Task[None] | None = None

    @contextmanager
    def on_signals(self) -> Iterator[None]:
        """Within it, the signals come here first, and reach the server when the work is done."""
        if threading.current_thread() is not threading.main_thread():
            yield  # only the main thread may handle signals; the server here does without, too
            return
        loop = asyncio.get_running_loop()
        servers = {number: signal.getsignal(number) for number in SIGNALS}
        heard = 0

        def handle(number: int, frame: FrameType | None) -> None:
            nonlocal heard
            heard += 1
            if heard > 1:
                signal.signal(number, signal.SIG_DFL)
                signal.raise_signal(number)
                os._exit(128 + number)  # the first process of a container survives that
            loop.call_soon_threadsafe(self._begin, hand_on, number)

        def hand_on(number: int) -> None:
            server = servers[signal.Signals(number)]
            if callable(server):
                server(number, None)
            else:
                signal.signal(number, server)
                signal.raise_signal(number)

        for number in SIGNALS:
            signal.signal(number, handle)
        try:
            yield
        finally:
            for number, server in servers.items():
                signal.signal(number, server)

    def _begin(self, hand_on: Callable[[int], None], number: int) -> None:
        # It outlives the server and the lifespan: an inference that never ends keeps its thread,
        # and a thread keeps the process.
        last = threading.Timer(self._timeout_s, _give_up)
        last.daemon = True
        last.start()
        self._drain()
        self._finishing = asyncio.create_task(self._finish(hand_on, number))

    async def _finish(self, hand_on: Callable[[int], None], number: int) -> None:
        grace = max(self._timeout_s - LAST_WORDS_S, self._timeout_s / 2)
        with suppress(TimeoutError):
            await within(grace, asyncio.gather(self._idle(), asyncio.sleep(SEEN_S)))
        self.over.set()
        hand_on(number)


def _give_up() -> None:
    log.error("the grace is over: ending with work unfinished")
    sys.stdout.flush()
    os._exit(0)
