"""How often calls that failed may be made once more."""

from __future__ import annotations

# One retry for so many calls: 20 %.
CALLS_PER_RETRY = 5
# Retries in hand at the start, and the most that calls without trouble can save up.
RESERVE = 3


class RetryBudget:
    """A token bucket counted in calls: a service in trouble sees 1.2 times the calls, not twice.

    In any stretch of n calls there are at most n / `CALLS_PER_RETRY` + `RESERVE` retries. It needs
    no clock: the share is the same whether calls come once a minute or a hundred times a second.
    """

    def __init__(self) -> None:
        self._calls = RESERVE * CALLS_PER_RETRY  # not yet spent, in whole numbers

    def earn(self) -> None:
        """A first call is made."""
        self._calls = min(self._calls + 1, RESERVE * CALLS_PER_RETRY)

    def spend(self, credit: int = 0) -> bool:
        """Take a retry; False: there is none.

        Args:
            credit: retries that may be owed, until calls have earned them.
        """
        if self._calls + credit * CALLS_PER_RETRY < CALLS_PER_RETRY:
            return False
        self._calls -= CALLS_PER_RETRY
        return True
