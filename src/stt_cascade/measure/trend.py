"""Whether something grows: a slope and its interval, not an eyeball."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

# Caches fill and pools reach their size at first: that is no leak.
WARM_UP_SHARE = 0.25
CONFIDENCE = 0.95
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
        low, high: its 95 % interval.
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
    span = times[-1] - times[0]
    level = sorted(figures)[len(figures) // 2]
    return Trend(
        limit,
        growth=float(found.slope) * span,
        low=float(found.low_slope) * span,
        high=float(found.high_slope) * span,
        allowed=max(limit.least, limit.most * abs(level) if limit.relative else limit.most),
        level=float(level),
    )
