"""Whether two services differ: tests on counts, so that noise does not pass for a change."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

# Of the bounds of a quantile and of a ratio of two, each by itself.
CONFIDENCE = 0.95
# Where the mean value of a bucket lies in it, at either end.
LEAST_PLACE = 0.02


@dataclass(frozen=True)
class Histogram:
    """What a histogram of seconds counted.

    Attributes:
        buckets: upper bounds, rising, the last one infinite, and how many were at or below each.
        sum: of all values; None: not known.
    """

    buckets: Sequence[tuple[float, float]] = ()
    sum: float | None = None

    @property
    def total(self) -> float:
        return self.buckets[-1][1] if self.buckets else 0.0

    @cached_property
    def bend(self) -> float:
        """How values lie within a bucket: the one of share u at u to this power of its width.

        1 spreads them evenly, as Prometheus does. But buckets are wide: a service whose times are
        all alike may have them at the low end of one, and with twice the time at the high end of
        another. So it is that power with which their sum comes out right.
        """
        if self.sum is None:
            return 1.0
        lows = widths = low = before = 0.0
        for bound, count in self.buckets:
            lows += (count - before) * low
            if math.isfinite(bound):
                widths += (count - before) * (bound - low)
                low = bound
            before = count
        if not widths:
            return 1.0
        mean = min(1 - LEAST_PLACE, max(LEAST_PLACE, (self.sum - lows) / widths))
        return 1 / mean - 1

    def at(self, rank: float) -> float:
        """The value of that rank, of 0 to `total`."""
        low = before = 0.0
        for bound, count in self.buckets:
            if math.isinf(bound):
                break
            if rank <= count and count > before:
                place = max(0.0, rank - before) / (count - before)
                return low + (bound - low) * math.pow(place, self.bend)
            low, before = bound, count
        return low


@dataclass(frozen=True)
class Estimate:
    """A value with its bounds; each of them holds with `CONFIDENCE`."""

    value: float
    low: float
    high: float


def quantile(counted: Histogram, share: float) -> float | None:
    """None: nothing was counted."""
    return counted.at(share * counted.total) if counted.total else None


def quantile_estimate(counted: Histogram, share: float) -> Estimate | None:
    """The same with bounds: those order statistics between which the true quantile lies, whatever
    the distribution is. None: nothing was counted.
    """
    from scipy.stats import binom

    value = quantile(counted, share)
    if value is None:
        return None
    lowest = float(binom.ppf(1 - CONFIDENCE, counted.total, share))
    highest = float(binom.ppf(CONFIDENCE, counted.total, share)) + 1
    finite = [count for bound, count in counted.buckets if math.isfinite(bound)]
    beyond = not finite or highest > finite[-1]
    high = math.inf if beyond else counted.at(highest)
    return Estimate(value, min(value, counted.at(lowest)), high)


def ratio(one: Histogram, other: Histogram, share: float) -> Estimate | None:
    """A quantile of one histogram by that of another; None: one of them has none.

    The bounds come from those of the two quantiles (MOVER: Zou and Donner 2008), on the scale of
    logarithms.
    """
    above, below = quantile_estimate(one, share), quantile_estimate(other, share)
    if above is None or below is None or not (above.value and below.value):
        return None
    value = above.value / below.value
    down = math.hypot(_span(above.low, above.value), _span(below.value, below.high))
    up = math.hypot(_span(above.value, above.high), _span(below.low, below.value))
    high = math.inf if math.isinf(up) else value * math.exp(up)
    return Estimate(value, value * math.exp(-down), high)


def chance(
    hits: float, of: float, other_hits: float, of_other: float, way: Literal["greater", "two-sided"]
) -> float:
    """How likely two shares are to differ by so much if they are the same: Fisher's exact test."""
    from scipy.stats import fisher_exact

    if not of or not of_other:
        return 1.0
    table = [[round(hits), round(of - hits)], [round(other_hits), round(of_other - other_hits)]]
    return float(fisher_exact(table, alternative=way)[1])


def _span(low: float, high: float) -> float:
    return math.inf if not low or math.isinf(high) else math.log(high / low)
