"""An engine that hangs or is broken: the process says so, and ends itself if nobody restarts it."""

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
    """Watches how long the oldest work has been going on, and whether the engine works.

    A thread in CTranslate2 or on a GPU can't be interrupted from within. At half the limit the
    service is not ready any more, so that callers go elsewhere; at the limit it is not healthy, so
    that its supervisor restarts it; and since not every supervisor does, a while later it ends.

    A broken engine makes it not ready at once, so that callers go elsewhere before it is not
    healthy, and ends it a while after that.

    Args:
        oldest_s: seconds that the oldest work has been going on, 0 if there is none.
        limit_s: seconds that it may.
        exit_s: seconds after which an unhealthy process ends itself, and one whose engine is
            broken is not healthy.
        broken_s: seconds that the engine has been broken, 0 if it is not.
    """

    def __init__(
        self,
        oldest_s: Callable[[], float],
        limit_s: float,
        exit_s: float,
        broken_s: Callable[[], float],
    ) -> None:
        self._oldest_s = oldest_s
        self._broken_s = broken_s
        self._limit_s = limit_s
        self._exit_s = exit_s

    @property
    def slow(self) -> bool:
        """Whether callers had better go elsewhere."""
        return self._oldest_s() > self._limit_s / 2

    @property
    def broken(self) -> bool:
        """Whether the engine gives no texts."""
        return self._broken_s() > 0

    @property
    def wedged(self) -> bool:
        """Whether the process can't recover by itself."""
        return self._oldest_s() > self._limit_s or self._broken_s() > self._exit_s

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
        warned = told = gave_up = False
        while not over.wait(min(LONGEST_BETWEEN_CHECKS_S, self._limit_s / CHECKS_PER_LIMIT)):
            seconds, broken_s = self._oldest_s(), self._broken_s()
            if seconds > self._limit_s / 2 and not warned:
                log.warning("work on a clip takes long: not ready", seconds=round(seconds, 1))
            if seconds > self._limit_s and not told:
                log.error("work on a clip does not end: not healthy", seconds=round(seconds, 1))
            if broken_s > self._exit_s and not gave_up:
                log.error("the engine is still broken: not healthy", seconds=round(broken_s, 1))
            warned, told = seconds > self._limit_s / 2, seconds > self._limit_s
            gave_up = broken_s > self._exit_s
            if seconds > self._limit_s + self._exit_s or broken_s > 2 * self._exit_s:
                log.critical("nobody has restarted the process: ending it", status=EX_SOFTWARE)
                logs.finish()
                os._exit(EX_SOFTWARE)
