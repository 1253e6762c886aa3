"""What a canary may not do, tested on what both sides counted in a window of time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from stt_cascade.measure.compare import Estimate, chance, quantile, ratio
from stt_cascade.measure.counts import Tally

SHARE = 0.95
# A share beyond its limit is no longer taken for chance from here on, if not for a change either.
DOUBT = 0.05
# How many of them compare shares.
RATES = 4


@dataclass(frozen=True)
class Limits:
    """What a canary may do.

    Attributes:
        p95: its p95 may be so many times the baseline's.
        failures: by which its share of failed fallback calls may be higher; of decided requests.
        errors: the same of requests that the service fails, of those that it serves.
        escalation: by which its share of escalated requests may be off.
        disagreement: by which its share of texts that the fallback disagrees with may be off.
        least: requests that either side must have answered for a verdict.
    """

    p95: float = 1.5
    failures: float = 0.005
    errors: float = 0.01
    escalation: float = 0.05
    disagreement: float = 0.05
    least: int = 300


@dataclass(frozen=True)
class Point:
    """What both sides had counted by then: seconds since the watch began."""

    at: float
    baseline: Tally
    canary: Tally


# Its first point only says what had been counted before.
Window = Sequence[Point]


@dataclass(frozen=True)
class Finding:
    """One guardrail in one window.

    Attributes:
        baseline, canary: seconds, or shares; None: not known.
        says: how the two compare.
        beyond: the canary was beyond the limit, which the limit's own test may not find certain.
        breach: it is, for certain.
    """

    name: str
    unit: Literal["s", "share"]
    baseline: float | None
    canary: float | None
    says: str
    beyond: bool
    breach: bool


def findings(window: Window, limits: Limits, sustained: float, risk: float) -> list[Finding]:
    """Every guardrail.

    Args:
        sustained: seconds for which a p95 must be too long.
        risk: the chance that equal shares pass for different, of each test.
    """
    baseline, canary = _counted(window)
    decided = (baseline.decided, canary.decided)

    def rate(
        name: str, hits: tuple[float, float], of: tuple[float, float], limit: float, way: _Way
    ) -> Finding:
        return _rate(name, _Shares(hits, of), limit, way, risk)

    failed = baseline.failed, canary.failed
    faults = baseline.faults, canary.faults
    served = baseline.served, canary.served
    escalated = baseline.escalated, canary.escalated
    disagreeing = baseline.disagreeing, canary.disagreeing
    compared = baseline.compared, canary.compared
    return [
        _p95(window, limits.p95, sustained),
        rate("fallback failures", failed, decided, limits.failures, "greater"),
        rate("errors", faults, served, limits.errors, "greater"),
        rate("escalation", escalated, decided, limits.escalation, "two-sided"),
        rate("disagreement", disagreeing, compared, limits.disagreement, "two-sided"),
    ]


def times(factor: float) -> str:
    return f"{factor:.2f} x"


_Way = Literal["greater", "two-sided"]


@dataclass(frozen=True)
class _Shares:
    """Of the baseline, of the canary."""

    hits: tuple[float, float]
    of: tuple[float, float]

    @property
    def known(self) -> tuple[float | None, float | None]:
        one, other = (h / n if n else None for h, n in zip(self.hits, self.of, strict=True))
        return one, other


def _p95(window: Window, limit: float, sustained: float) -> Finding:
    """Too long for certain, for long enough, and in both halves of the time: not for a moment."""
    baseline, canary = _counted(window)
    found = ratio(canary.latency, baseline.latency, SHARE)
    beyond = (
        found is not None
        and found.value > limit
        and window[-1].at - window[0].at >= 0.999 * sustained
        and all(_longer(half, limit) for half in _halves(window))
    )
    breach = beyond and found is not None and found.low > limit
    values = quantile(baseline.latency, SHARE), quantile(canary.latency, SHARE)
    return Finding("p95", "s", *values, _told(found, limit), beyond, breach)


def _rate(name: str, shares: _Shares, limit: float, way: _Way, risk: float) -> Finding:
    theirs, ours = shares.known
    if theirs is None or ours is None:
        return Finding(name, "share", theirs, ours, "not known", beyond=False, breach=False)
    likely = chance(shares.hits[1], shares.of[1], shares.hits[0], shares.of[0], way)
    off = ours - theirs if way == "greater" else abs(ours - theirs)
    sign = "+" if way == "greater" else "±"
    says = f"{100 * (ours - theirs):+.1f} points ({sign}{100 * limit:g} allowed; p {likely:.2g})"
    more = off > limit
    return Finding(
        name, "share", theirs, ours, says, more and likely < DOUBT, more and likely < risk
    )


def _counted(window: Window) -> tuple[Tally, Tally]:
    first, last = window[0], window[-1]
    return last.baseline - first.baseline, last.canary - first.canary


def _longer(window: Window, limit: float) -> bool:
    baseline, canary = _counted(window)
    found = ratio(canary.latency, baseline.latency, SHARE)
    return found is not None and found.value > limit


def _halves(window: Window) -> tuple[Window, Window]:
    middle = (window[0].at + window[-1].at) / 2
    at = min(range(len(window)), key=lambda number: abs(window[number].at - middle))
    return window[: at + 1], window[at:]


def _told(found: Estimate | None, limit: float) -> str:
    if found is None:
        return "not known"
    return f"{times(found.value)} ({found.low:.2f} to {found.high:.2f}; {times(limit)} allowed)"
