"""What a pool thinks of a host, from calls that fail and from asking it whether it is ready."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Literal

State = Literal["well", "busy", "ejected", "not_ready", "draining"]

FAILURES_TO_EJECT = 5
EJECTION_S = 30.0
# An ejection is forgotten after so long without another one.
FORGET_S = 300.0
# A refusal is news: who still refuses says so again when it is asked, each second. But a proxy may
# hide /v1/ready, and then nobody would ever hear that it is over.
REFUSAL_S = 5.0


class Health:
    """Of one host.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._failures = 0
        self._ejections = 0
        self._ejected_until = 0.0
        self._busy_until = 0.0
        self._refusal: Literal["not_ready", "draining"] = "not_ready"
        self._refused_until = 0.0

    @property
    def state(self) -> State:
        """`well`: it may be asked."""
        now = self._clock()
        if now < self._refused_until:
            return self._refusal
        if now < self._ejected_until:
            return "ejected"
        return "busy" if now < self._busy_until else "well"

    @property
    def well(self) -> bool:
        return self.state == "well"

    def answered(self) -> None:
        """A call was answered, be it with a refusal: the host works."""
        self._failures = 0

    def busy(self, seconds: float) -> None:
        """It answered that it takes nothing more for so long.

        Left among the others, it would attract calls: who refuses at once never has work waiting.
        """
        self._failures = 0
        self._busy_until = self._clock() + seconds

    def failed(self) -> None:
        """A call got no answer, or an internal error."""
        now = self._clock()
        if now < self._ejected_until:
            return  # it was sent before, and belongs to the same incident
        self._failures += 1
        if self._failures < FAILURES_TO_EJECT:
            return
        if now > self._ejected_until + FORGET_S:
            self._ejections = 0
        self._ejections += 1
        self._failures = 0
        self._ejected_until = now + EJECTION_S * self._ejections

    def refuses(self, how: Literal["not_ready", "draining"]) -> None:
        """It said, or showed, that it takes nothing now."""
        self._refusal = how
        self._refused_until = self._clock() + REFUSAL_S

    def ready(self) -> None:
        """It says that it is ready: this ends a refusal and an ejection.

        Calls that failed in a row still did: only a call shows that calls work.
        """
        now = self._clock()
        self._refused_until = min(self._refused_until, now)
        self._ejected_until = min(self._ejected_until, now)
