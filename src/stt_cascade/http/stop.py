"""How a process ends: from the first signal to its last moment.

signal ──▶ DRAIN_TIMEOUT_S begins, in a thread that waits for nothing else
   ▼
the event loop ──▶ nothing new is taken, what has begun goes on; the port stays open and says so
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
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

import structlog

from stt_cascade.telemetry import logs
from stt_sdk._within import within

log = structlog.get_logger("stt.service")

SIGNALS = (signal.SIGTERM, signal.SIGINT)
# Kept of the time for the server: to send the last answers and close what is open.
LAST_WORDS_S = 1.0
# The port stays open this long even without work: load balancers ask about as often whether the
# service is ready, and what they send meanwhile is answered, not reset.
SEEN_S = 1.0
HANGUP = (
    "SIGHUP is ignored: changed keys and certificates are noticed, other settings need a restart"
)


class Stop:
    """The end of one service, as SIGTERM and Ctrl-C ask for it. A second signal ends it at once.

    SIGHUP asks for it only where it says that the terminal was closed.

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
        hangup = signal.getsignal(signal.SIGHUP)
        heard = 0
        asked: queue.SimpleQueue[bool] = queue.SimpleQueue()

        def handle(number: int, frame: FrameType | None) -> None:
            nonlocal heard
            heard += 1
            if heard > 1:
                signal.signal(number, signal.SIG_DFL)
                signal.raise_signal(number)
                os._exit(128 + number)  # the first process of a container survives that
            asked.put(True)
            loop.call_soon_threadsafe(self._begin, hand_on, number)

        def hand_on(number: int) -> None:
            server = servers[signal.Signals(number)]
            if callable(server):
                server(number, None)
            else:
                signal.signal(number, server)
                signal.raise_signal(number)

        def hung_up(number: int, frame: FrameType | None) -> None:
            if sys.stdin is not None and sys.stdin.isatty():
                handle(signal.SIGTERM, frame)  # its terminal was closed
            else:
                loop.call_soon_threadsafe(log.info, HANGUP)

        # Started beforehand: a signal may come while another thread is being started, and starting
        # this one would have to wait for that. It outlives the server and the lifespan, because an
        # inference that never ends keeps its thread, and with it the process, alive.
        threading.Thread(target=self._end_in_time, args=(asked,), name="stop", daemon=True).start()
        for number in SIGNALS:
            signal.signal(number, handle)
        if hangup == signal.SIG_DFL:  # `nohup` ignores it
            signal.signal(signal.SIGHUP, hung_up)
        try:
            yield
        finally:
            if not heard:
                asked.put(False)
            for number, server in servers.items():
                signal.signal(number, server)
            signal.signal(signal.SIGHUP, hangup)

    def _begin(self, hand_on: Callable[[int], None], number: int) -> None:
        self._drain()
        self._finishing = asyncio.create_task(self._finish(hand_on, number))

    def _end_in_time(self, asked: queue.SimpleQueue[bool]) -> None:
        if not asked.get():
            return
        last_lines_s = min(logs.LAST_LINES_S, self._timeout_s / 4)
        time.sleep(self._timeout_s - last_lines_s)
        log.error("DRAIN_TIMEOUT_S is over: ending with work unfinished")
        logs.finish(last_lines_s)
        os._exit(0)

    async def _finish(self, hand_on: Callable[[int], None], number: int) -> None:
        grace = max(self._timeout_s - LAST_WORDS_S, self._timeout_s / 2)
        with suppress(TimeoutError):
            await within(grace, asyncio.gather(self._idle(), asyncio.sleep(SEEN_S)))
        self.over.set()
        hand_on(number)
