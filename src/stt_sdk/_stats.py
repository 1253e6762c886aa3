"""How the last minute went, in bounded memory."""

from __future__ import annotations

import math
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass

RELATIVE_ERROR = 0.05
LEAST_MS = 0.01  # up to this, it is 0
MOST_MS = 1e7  # beyond this, nearly three hours, it is this
_GROWTH = (1 + RELATIVE_ERROR) / (1 - RELATIVE_ERROR)


@dataclass(frozen=True)
class Quantiles:
    """Milliseconds, at most 5 % off (nearest rank); None: there was nothing."""

    count: int
    p50: float | None
    p95: float | None
    p99: float | None


@dataclass(frozen=True)
class Stats:
    """What ended in the last `window_s` seconds: stages in milliseconds, rates 0 to 1."""

    window_s: float
    count: int
    errors: int
    error_rate: float
    escalated: int
    escalation_rate: float
    total: Quantiles
    queue: Quantiles
    primary: Quantiles
    fallback: Quantiles


class RollingStats:
    """Counts in log-spaced buckets, in slices of time that fall out one by one.

    The current slice has only begun, so the window is up to one slice shorter than it says.
    Threads may share an object.

    Args:
        window_s: seconds to look back on.
        slices: of the window.
        clock: monotonic seconds.

    Source of the buckets: Masson, Rim and Lee, "DDSketch", 2019.
    """

    def __init__(
        self, window_s: float = 60.0, slices: int = 12, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._window_s, self._slice_s, self._clock = window_s, window_s / slices, clock
        self._slices: deque[tuple[int, Counter[tuple[str, int]]]] = deque(maxlen=slices)
        self._lock = threading.Lock()

    def record(
        self,
        *,
        total_ms: float | None = None,
        queue_ms: float | None = None,
        primary_ms: float | None = None,
        fallback_ms: float | None = None,
        error: bool = False,
        escalated: bool = False,
    ) -> None:
        """Count a call, with the milliseconds of the stages that it reached."""
        stages = {"total": total_ms, "queue": queue_ms, "primary": primary_ms}
        stages["fallback"] = fallback_ms
        with self._lock:
            now = self._now()
            if not self._slices or self._slices[-1][0] < now:
                self._slices.append((now, Counter()))
            counts = self._slices[-1][1]
            counts["calls", 0] += 1
            counts["errors", 0] += error
            counts["escalated", 0] += escalated
            for stage, ms in stages.items():
                if ms is not None:
                    counts[stage, _bucket(ms)] += 1

    def snapshot(self) -> Stats:
        """The window as it is now."""
        merged: Counter[tuple[str, int]] = Counter()
        with self._lock:
            fallen = self._now() - (self._slices.maxlen or 0)
            for number, counts in self._slices:
                if number > fallen:
                    merged.update(counts)
        calls = merged["calls", 0]
        errors, escalated = merged["errors", 0], merged["escalated", 0]
        return Stats(
            *(self._window_s, calls, errors, errors / max(calls, 1)),
            *(escalated, escalated / max(calls, 1)),
            *(_quantiles(merged, stage) for stage in ("total", "queue", "primary", "fallback")),
        )

    def _now(self) -> int:
        return int(self._clock() // self._slice_s)


def _bucket(ms: float) -> int:
    return math.ceil(math.log(min(ms, MOST_MS) / LEAST_MS, _GROWTH)) if ms > LEAST_MS else 0


def _quantiles(counts: Counter[tuple[str, int]], stage: str) -> Quantiles:
    buckets = sorted((bucket, n) for (name, bucket), n in counts.items() if name == stage)
    count = sum(n for _, n in buckets)

    def value(percent: int) -> float | None:
        rank = -(-count * percent // 100)
        for bucket, n in buckets:
            rank -= n
            if rank <= 0:  # as far off from the bucket's lower end as from its upper one
                return LEAST_MS * 2 * _GROWTH**bucket / (1 + _GROWTH) if bucket else 0.0
        return None

    return Quantiles(count, value(50), value(95), value(99))
