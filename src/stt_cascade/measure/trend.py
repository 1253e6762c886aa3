"""Whether something grows: a slope and its interval, not an eyeball."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

# Caches fill and pools reach their size at first: that is no leak.
WARM_UP_SHARE = 0.25
CONFIDENCE = 0.95
# However much neighbouring points are alike, together they tell as much as so many that are not:
# a leak that comes in bursts is one all the same.
INDEPENDENT = 3
LEAST_POINTS = 8


@dataclass(frozen=True)
class Limit:
    """What a figure may grow by, from the end of the warm-up to the end of the run.

    Attributes:
        name: of the figure.
        unit: of it, and of `most`.
        most: of growth.
        relative: `most` is a share of the figure's median.
        least: growth that matters to nobody, whatever share it is.
    """

    name: str
    unit: str
    most: float
    relative: bool = False
    least: float = 0.0


@dataclass(frozen=True)
class Trend:
    """Growth over the run without its warm-up, in the figure's own unit.

    Attributes:
        growth: estimated (Theil and Sen: the median of all slopes, which outliers do not move).
        low, high: its 95 % interval, with regard to how much neighbouring points are alike.
        allowed: what it may be.
        level: median of the figure.
    """

    limit: Limit
    growth: float
    low: float
    high: float
    allowed: float
    level: float

    @property
    def grows(self) -> bool:
        """It grows for certain, and by more than is allowed."""
        return self.low > 0 and self.growth > self.allowed

    def __str__(self) -> str:
        unit = self.limit.unit
        return (
            f"{self.limit.name} {self.growth:+.3g} {unit} "
            f"({self.low:+.3g} to {self.high:+.3g}), {self.allowed:.3g} allowed, "
            f"at {self.level:.4g} {unit}"
        )


def trend(limit: Limit, seconds: Sequence[float], values: Sequence[float]) -> Trend | None:
    """The trend of a figure; None: there are too few points.

    Args:
        seconds: since the beginning, rising.
        values: of the figure then.
    """
    from scipy.stats import theilslopes

    if not seconds:
        return None
    since = seconds[0] + WARM_UP_SHARE * (seconds[-1] - seconds[0])
    points = [(at, value) for at, value in zip(seconds, values, strict=True) if at >= since]
    if len(points) < LEAST_POINTS:
        return None
    times, figures = [at for at, _ in points], [value for _, value in points]
    found = theilslopes(figures, times, alpha=CONFIDENCE)
    slope, span = float(found.slope), times[-1] - times[0]
    wider = _wider([y - slope * x for x, y in zip(times, figures, strict=True)])
    level = sorted(figures)[len(figures) // 2]
    return Trend(
        limit,
        growth=slope * span,
        low=(slope + wider * (float(found.low_slope) - slope)) * span,
        high=(slope + wider * (float(found.high_slope) - slope)) * span,
        allowed=max(limit.least, limit.most * abs(level) if limit.relative else limit.most),
        level=float(level),
    )


def _wider(residuals: Sequence[float]) -> float:
    """By what the interval must be wider than that of points which know nothing of each other.

    Memory, or the latency of a busy hour, is the next time much what it was. Points of which
    neighbours correlate by r tell as much as n (1 - r) / (1 + r) independent ones.
    """
    count = len(residuals)
    mean = sum(residuals) / count
    off = [value - mean for value in residuals]
    square = sum(value * value for value in off)
    if not square:
        return 1.0
    alike = sum(one * next_ for one, next_ in pairwise(off)) / square
    # What is left when a line has been taken away correlates less than what it was taken from.
    alike = max(0.0, alike + (2 + 4 * alike) / count)
    most = count / INDEPENDENT
    return math.sqrt(min((1 + alike) / (1 - alike), most) if alike < 1 else most)
