"""What systemd is told of a process that it started, by its protocol: sd_notify(3).

Its variables in the environment are no settings: they say where it listens, and how often.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Mapping

import structlog

log = structlog.get_logger("stt.service")

# While the model is being loaded systemd is asked for this much more time, over and over: the load
# may take as long as the disk needs, and a process that hangs is still noticed.
LOADING_S = 60.0
LONGEST_BETWEEN_S = 10.0
# Of the watchdog's limit: two words may get lost.
TIMES_PER_LIMIT = 3
# From the end of the drain to that of the process.
SPARE_S = 10.0


class Supervisor:
    """Tells systemd how the service is; without systemd, nobody.

    Args:
        environment: has `NOTIFY_SOCKET`, and with a watchdog `WATCHDOG_USEC`, if systemd started
            the process.
    """

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        address = environment.get("NOTIFY_SOCKET", "")
        # `@` is an abstract socket: one without a file.
        self._address = f"\0{address[1:]}" if address.startswith("@") else address
        limit_s = int(environment.get("WATCHDOG_USEC", "0")) / 1_000_000
        meant = environment.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        self._limit_s = limit_s if meant else 0.0

    def tell(self, **what: object) -> None:
        """Send it, each as `NAME=value`."""
        if not self._address:
            return
        message = "\n".join(f"{name}={value}" for name, value in what.items())
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as ours:
                ours.sendto(message.encode(), self._address)
        except OSError as error:
            log.warning("systemd cannot be told", reason=str(error), what=message)

    def ready(self) -> None:
        self.tell(READY=1, STATUS="ready")

    def stopping(self, timeout_s: float) -> None:
        """It ends, within that many seconds, however few its unit gives it."""
        wanted = int((timeout_s + SPARE_S) * 1_000_000)
        self.tell(STOPPING=1, STATUS="draining", EXTEND_TIMEOUT_USEC=wanted)

    async def keep_telling(self, state: Callable[[], str]) -> None:
        """Feed systemd's watchdog for as long as the event loop runs and no inference is stuck."""
        if not self._address:
            return
        told = ""
        while True:
            now = state()
            if now != told:
                self.tell(STATUS=now)
                told = now
            if now == "loading":
                self.tell(EXTEND_TIMEOUT_USEC=int(LOADING_S * 1_000_000))
            elif now != "wedged" and self._limit_s:
                self.tell(WATCHDOG=1)
            wait_s = self._limit_s / TIMES_PER_LIMIT or LONGEST_BETWEEN_S
            await asyncio.sleep(min(wait_s, LONGEST_BETWEEN_S))
