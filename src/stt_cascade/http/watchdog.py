"""Work on a clip that never ends: the process says so, and ends itself if nobody restarts it."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import structlog

from stt_cascade.telemetry import logs

log = structlog.get_logger("stt.service")

# Of sysexits.h: an internal software error.
EX_SOFTWARE = 70
CHECKS_PER_LIMIT = 20
LONGEST_BETWEEN_CHECKS_S = 1.0


class Watchdog:
    """Watches how long the oldest work has been going on.

    A thread in CTranslate2 or on a GPU can't be interrupted from within. At half the limit the
    service is not ready any more, so that callers go elsewhere; at the limit it is not healthy, so
    that its supervisor restarts it; and since not every supervisor does, a while later it ends.

    Args:
        oldest_s: seconds that the oldest work has been going on, 0 if there is none.
        limit_s: seconds that it may.
        exit_s: seconds after which an unhealthy process ends itself.
    """

    def __init__(self, oldest_s: Callable[[], float], limit_s: float, exit_s: float) -> None:
        self._oldest_s = oldest_s
        self._limit_s = limit_s
        self._exit_s = exit_s

    @property
    def slow(self) -> bool:
        """Whether callers had better go elsewhere."""
        return self._oldest_s() > self._limit_s / 2

    @property
    def wedged(self) -> bool:
        """Whether the process can't recover by itself."""
        return self._oldest_s() > self._limit_s

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Within it, a thread looks, and ends the process if it has to."""
        over = threading.Event()
        thread = threading.Thread(target=self._watch, args=(over,), name="watchdog", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()

    def _watch(self, over: threading.Event) -> None:
        warned = told = False
        while not over.wait(min(LONGEST_BETWEEN_CHECKS_S, self._limit_s / CHECKS_PER_LIMIT)):
            seconds = self._oldest_s()
            if seconds > self._limit_s / 2 and not warned:
                log.warning("work on a clip takes long: not ready", seconds=round(seconds, 1))
            if seconds > self._limit_s and not told:
                log.error("work on a clip does not end: not healthy", seconds=round(seconds, 1))
            warned, told = seconds > self._limit_s / 2, seconds > self._limit_s
            if seconds > self._limit_s + self._exit_s:
                log.critical("nobody has restarted the process: ending it", status=EX_SOFTWARE)
                logs.finish()
                os._exit(EX_SOFTWARE)
