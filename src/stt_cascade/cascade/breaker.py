"""The circuit breaker: stop asking a fallback that is broken, and notice when it works again."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Literal

# Calls that fail in a row before the breaker opens.
FAILURES_TO_OPEN = 5
PROBE_INTERVAL_S = 5.0

State = Literal["closed", "open", "half_open"]


class CircuitBreaker:
    """Closed, it lets every call through; open, one call for each interval: the probe.

    It opens after `FAILURES_TO_OPEN` failures in a row. From then on one call at a time is let
    through, `PROBE_INTERVAL_S` after the last one began or later (half-open); its success closes
    the breaker, its failure leaves it open, and so does a caller who goes away: else callers in a
    hurry would send a broken fallback one probe after the other. What calls from before the last
    change still bring does not count: a hundred calls that hung together must not open it again
    once a probe has shown that the fallback is back.

    Each call that `enter` lets through ends with exactly one of `succeeded`, `failed` and
    `abandoned`.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._era = 0  # counts the changes between open and closed
        self._probe_at: float | None = None  # when the next probe may begin; None: it is closed
        self._probing = False
        self.failures = 0

    @property
    def state(self) -> State:
        if self._probe_at is None:
            return "closed"
        return "half_open" if self._probing else "open"

    @property
    def seconds_to_probe(self) -> float | None:
        """Until the next probe may begin, if none is under way; None if the breaker is closed."""
        return None if self._probe_at is None else max(0.0, self._probe_at - self._clock())

    @property
    def refuses(self) -> bool:
        """Whether a call would not be let through now."""
        return self._probing or bool(self.seconds_to_probe)

    def enter(self) -> int | None:
        """Begin a call: the permit that its end is told with, or None if it must not be made."""
        if self.refuses:
            return None
        if self._probe_at is not None:
            self._probing = True
            self._probe_at = self._clock() + PROBE_INTERVAL_S
        return self._era

    def succeeded(self, permit: int) -> bool:
        """A call has shown that the fallback works; True if that closed the breaker."""
        if permit != self._era:
            return False
        self.failures = 0
        if self._probe_at is None:
            return False
        self._change(None)
        return True

    def failed(self, permit: int) -> bool:
        """A call has shown that the fallback does not work; True if that opened the breaker."""
        if permit != self._era:
            return False
        self.failures += 1
        self._probing = False
        if self._probe_at is not None or self.failures < FAILURES_TO_OPEN:
            return False
        self._change(self._clock() + PROBE_INTERVAL_S)
        return True

    def abandoned(self, permit: int) -> None:
        """A call has shown nothing. If it was the probe, there is another in the next interval."""
        if permit == self._era:
            self._probing = False

    def _change(self, probe_at: float | None) -> None:
        self._era += 1
        self._probe_at = probe_at
        self._probing = False
