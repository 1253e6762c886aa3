"""How fast this machine works, measured: what a wait can be predicted from."""

from __future__ import annotations

# Of what was measured before, this much counts after another piece of work: some twenty count.
MEMORY = 0.95


class Pace:
    """The real-time factor of the last pieces of work, long ones counting for more."""

    def __init__(self) -> None:
        self._seconds = 0.0
        self._cost = 0.0

    def measure(self, seconds: float, cost: float) -> None:
        """A piece of work that cost `cost` seconds of audio took `seconds`."""
        self._seconds = MEMORY * self._seconds + seconds
        self._cost = MEMORY * self._cost + cost

    def predict(self, cost: float) -> float:
        """Seconds for that many seconds of audio; 0 as long as nothing has been measured."""
        return cost * self._seconds / self._cost if self._cost else 0.0

    def cost(self, seconds: float, *, default: float) -> float:
        """The cost of work that takes so long; the default as long as nothing has been measured."""
        return seconds * self._cost / self._seconds if self._seconds else default
