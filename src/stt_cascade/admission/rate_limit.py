"""Token buckets, one for each caller."""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Callable

from stt_cascade.errors import RateLimited

MAX_BUCKETS = 10_000
# The bucket of all callers for whom there is no room.
SHARED = ""


class RateLimiter:
    """Lets each caller make `burst` requests at once and `rate` a second after that.

    Holds at most `MAX_BUCKETS` buckets. Only full ones are forgotten, which changes nothing for
    their callers; where none is full, new callers share the last one.

    Over any schedule of calls a caller is let in at most `burst` + `rate` x seconds times, the
    seconds being the clock's furthest reading after its first: a clock that goes back gives nothing
    until it has caught up.

    Args:
        rate: tokens a second.
        burst: tokens that a full bucket holds.
        clock: monotonic seconds.
    """

    def __init__(
        self, rate: float, burst: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._rate = rate
        self._burst = float(burst)
        self._clock = clock
        self._latest = clock()
        # caller -> (tokens, as of when), the one not used for longest first
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, caller: str) -> None:
        """Take a token of the caller's.

        Raises:
            RateLimited: there is none; `retry_after` says when there will be.
        """
        now = self._now()
        if caller not in self._buckets and not self._room:
            self._forget_full(now)
            if not self._room:
                caller = SHARED
        tokens = self._tokens(caller, now)
        if tokens < 1:
            raise RateLimited(
                f"more than {self._rate:g} requests a second (or {self._burst:g} at once)",
                retry_after=max(1, math.ceil((1 - tokens) / self._rate)),
            )
        self._buckets[caller] = (tokens - 1, now)
        self._buckets.move_to_end(caller)

    @property
    def fullest_ratio(self) -> float:
        """How much of its burst the busiest caller has used up, 0 to 1."""
        now = self._now()
        least = min((self._tokens(caller, now) for caller in self._buckets), default=self._burst)
        return 1 - least / self._burst

    @property
    def _room(self) -> bool:
        return len(self._buckets) < MAX_BUCKETS - (SHARED not in self._buckets)

    def _tokens(self, caller: str, now: float) -> float:
        if caller not in self._buckets:
            return self._burst
        tokens, since = self._buckets[caller]
        return min(self._burst, tokens + (now - since) * self._rate)

    def _now(self) -> float:
        self._latest = max(self._latest, self._clock())
        return self._latest

    def _forget_full(self, now: float) -> None:
        # The buckets not used for longest have refilled most: look no further than the first
        # that has not.
        while self._buckets:
            caller = next(iter(self._buckets))
            if self._tokens(caller, now) < self._burst:
                return
            del self._buckets[caller]
