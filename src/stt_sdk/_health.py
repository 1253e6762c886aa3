"""What a pool thinks of a host, from calls that fail and from asking it whether it is ready."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Literal

State = Literal["well", "ejected", "not_ready", "draining"]

FAILURES_TO_EJECT = 5
EJECTION_S = 30.0
# An ejection is forgotten after so long without another one.
FORGET_S = 300.0


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
        self._refusal: Literal["not_ready", "draining"] | None = None

    @property
    def state(self) -> State:
        """`well`: it may be asked."""
        if self._refusal is not None:
            return self._refusal
        return "ejected" if self._clock() < self._ejected_until else "well"

    @property
    def well(self) -> bool:
        return self.state == "well"

    def answered(self) -> None:
        """A call was answered, be it with a refusal: the host works."""
        self._failures = 0

    def failed(self) -> None:
        """A call got no answer, or an internal error."""
        self._failures += 1
        if self._failures < FAILURES_TO_EJECT:
            return
        now = self._clock()
        if now > self._ejected_until + FORGET_S:
            self._ejections = 0
        self._ejections += 1
        self._failures = 0
        self._ejected_until = now + EJECTION_S * self._ejections

    def refuses(self, how: Literal["not_ready", "draining"]) -> None:
        """It said, or showed, that it takes nothing now."""
        self._refusal = how

    def ready(self) -> None:
        """It says that it is ready: this ends whatever kept it out."""
        self._refusal = None
        self._failures = 0
        self._ejected_until = min(self._ejected_until, self._clock())
