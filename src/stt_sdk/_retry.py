"""Whether a call that failed is made once more: a pure decision from the facts."""

from __future__ import annotations

import math
from dataclasses import dataclass

from stt_sdk._errors import ConnectionFailed, DrainingError, NotReadyError, STTError

# A service that asks for a longer wait than this is not believed.
LONGEST_RETRY_AFTER_S = 60.0
_MOST_DOUBLINGS = 64  # beyond any pause that makes sense, and still a float


@dataclass(frozen=True)
class RetryPolicy:
    """How a client repeats what the service did not work on.

    Attributes:
        retries: at most so many for one call, 0: none. Moving from a host that is down to one that
            is well does not count.
        backoff: seconds; before the n-th retry the client waits for a random time between 0 and
            backoff x 2^(n-1) ("full jitter").
        max_backoff: seconds, the most that this becomes.

    Raises:
        ValueError: a number that makes no sense.
    """

    retries: int = 2
    backoff: float = 0.2
    max_backoff: float = 5.0

    def __post_init__(self) -> None:
        if isinstance(self.retries, bool) or not isinstance(self.retries, int) or self.retries < 0:
            raise ValueError(f"retries must be a whole number, at least 0, not {self.retries!r}")
        for name in ("backoff", "max_backoff"):
            value = getattr(self, name)
            if not (finite(value) and value >= 0):
                raise ValueError(
                    f"{name} must be a number of seconds, at least 0, not {shown(value)}"
                )


@dataclass(frozen=True)
class Situation:
    """What is known after an attempt that failed.

    Attributes:
        error: how it failed.
        retries: made so far, moves not counted.
        lost: connections that broke after the request was on its way, this one included.
        remaining: seconds until the deadline.
        repeatable: the body can be sent again.
        well: there is a host in good health that was not asked yet.
        jitter: random, 0 to 1.
    """

    error: STTError
    retries: int
    lost: int
    remaining: float
    repeatable: bool
    well: bool
    jitter: float


@dataclass(frozen=True)
class Repeat:
    """Make the call once more.

    Attributes:
        wait: seconds before that.
        move: to a host in good health, from one that is down or going. No host sees the call
            twice, so the retry budget allows it on credit.
    """

    wait: float
    move: bool


@dataclass(frozen=True)
class GiveUp:
    """Tell the caller.

    Attributes:
        why: it could have been repeated and is not; "": that was never possible.
    """

    why: str = ""


def decide(policy: RetryPolicy, now: Situation) -> Repeat | GiveUp:
    """What to do after an attempt that failed."""
    error = now.error
    broke = isinstance(error, ConnectionFailed) and error.sent
    if not (error.retryable or broke):
        return GiveUp()
    if policy.retries == 0:
        return GiveUp("retries=0")
    if not now.repeatable:
        return GiveUp("a stream cannot be sent twice")
    if now.remaining <= 0:
        return GiveUp("the deadline has passed")
    if broke:
        # It may have been worked on. Once more is worth it, but not for the host that it broke.
        if now.lost > 1:
            return GiveUp("it may have been worked on, twice")
        if not now.well:
            return GiveUp("it may have been worked on, and there is no other host in good health")
        return Repeat(0.0, move=True)
    host_is_down = isinstance(error, (ConnectionFailed, DrainingError, NotReadyError))
    if now.well and host_is_down:
        return Repeat(0.0, move=True)
    if now.retries >= policy.retries:
        return GiveUp()
    doubled = 2 ** min(now.retries, _MOST_DOUBLINGS)
    wait = now.jitter * min(policy.max_backoff, policy.backoff * doubled)
    if not now.well:
        # What a host asks for says nothing of the next one.
        wait += believed(error.retry_after)
    if wait >= now.remaining:
        return GiveUp(f"the next attempt would begin {wait:.1f} s from now, after the deadline")
    return Repeat(wait, move=False)


def believed(retry_after: float | None) -> float:
    """Seconds that a service may ask for; 0, if it asked for nothing or for something absurd."""
    if retry_after is None or not 0 <= retry_after <= LONGEST_RETRY_AFTER_S:
        return 0.0
    return retry_after


def finite(value: object) -> bool:
    """Whether it is a number that a float can hold."""
    try:
        return isinstance(value, (int, float)) and math.isfinite(value)
    except OverflowError:
        return False


def shown(value: object) -> str:
    """For a message: Python refuses to write an int of more digits than 4300."""
    try:
        return repr(value)
    except ValueError:
        return type(value).__name__
