"""A roll-out watched: whether a canary is worse than, or other than, what it would replace.

Every look asks two windows, all that was seen and the last part of it. A guardrail aborts when one
of them is breached at `CONFIRM` looks in a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from stt_cascade.measure.compare import ratio
from stt_cascade.measure.counts import Looked, Side
from stt_cascade.measure.guardrails import (
    RATES,
    SHARE,
    Finding,
    Limits,
    Point,
    findings,
    times,
)

CONFIRM = 3
# The chance that a canary which is the same as the baseline is aborted for one of its rates, over
# all looks: each look, guardrail and window has an equal part of it (Bonferroni).
RISK = 0.05
WINDOWS = 2
# More restarts than this within the time are a crash loop.
MOST_RESTARTS = 2
# Clips that are longer by this factor, on average, explain a longer p95.
OTHER_CLIPS = 1.25

Outcome = Literal["promote", "abort", "undecided"]


@dataclass(frozen=True)
class Held:
    """A guardrail at one look.

    Attributes:
        whole: over all that was seen.
        late: over the last part of it.
        run: looks in a row at which one of them was breached.
    """

    whole: Finding
    late: Finding
    run: int

    @property
    def breach(self) -> bool:
        return self.whole.breach or self.late.breach

    @property
    def says(self) -> str:
        """How the sides compare; in the last part, if only that is breached."""
        if self.late.breach and not self.whole.breach:
            return f"lately {self.late.says}"
        return self.whole.says


@dataclass(frozen=True)
class Look:
    """One look.

    Attributes:
        silent: instances of the canary that told nothing, and why.
    """

    point: Point
    guardrails: Sequence[Held]
    silent: Sequence[str]


@dataclass(frozen=True)
class Verdict:
    """What it comes to.

    Attributes:
        too_little: there was too little traffic to tell, and nothing else is wrong.
    """

    outcome: Outcome
    why: str
    too_little: bool = False

    @property
    def says(self) -> str:
        return f"{self.outcome.capitalize()}: {self.why}."


@dataclass
class Watch:
    """Both sides over time.

    Args:
        seconds: for which they are to be watched.
        looks: how many there are to be.
        sustained: seconds for which a p95 must be too long; the length of the last part.

    Attributes:
        blind: looks in a row at which nobody could be asked, since what would know was away; and
            why.
    """

    seconds: float
    looks: int
    sustained: float
    limits: Limits = field(default_factory=Limits)
    history: list[Look] = field(default_factory=list)
    baseline: Side = field(default_factory=Side)
    canary: Side = field(default_factory=Side)
    blind: tuple[int, str] = (0, "")
    _points: list[Point] = field(default_factory=list)
    _runs: dict[tuple[str, str], int] = field(default_factory=dict)
    _alone: dict[str, int] = field(default_factory=dict)

    def take(self, at: float, baseline: Looked, canary: Looked) -> Look:
        """Note what both sides told at that time, seconds since the first look."""
        self.blind = 0, ""
        for name, side, looked in (
            ("baseline", self.baseline, baseline),
            ("canary", self.canary, canary),
        ):
            side.take(looked)
            self._alone[name] = 0 if side.well else self._alone.get(name, 0) + 1
        self._points.append(Point(at, self.baseline.total, self.canary.total))
        risk = RISK / (self.looks * RATES * WINDOWS)
        of = [
            findings(self._since(begin), self.limits, self.sustained, risk)
            for begin in (0.0, at - self.sustained)
        ]
        held = [
            Held(whole, late, max(self._run("whole", whole), self._run("late", late)))
            for whole, late in zip(*of, strict=True)
        ]
        silent = [f"{name}: {why}" for name, (_, why) in self.canary.silent.items()]
        self.history.append(Look(self._points[-1], held, silent))
        return self.history[-1]

    def miss(self, why: str) -> None:
        """A look at which nobody could be asked."""
        self.blind = self.blind[0] + 1, why

    @property
    def over(self) -> bool:
        """What is known is enough for a verdict."""
        return self._abort() is not None or self._blind() is not None

    def verdict(self) -> Verdict:
        """What it comes to, as things are now."""
        if why := self._abort():
            return Verdict("abort", why)
        if why := self._blind():
            return Verdict("undecided", why)
        at = self._points[-1].at if self._points else 0.0
        if at < 0.999 * self.seconds:
            return Verdict("undecided", f"ended after {at:.0f} s of {self.seconds:.0f} s")
        if why := self.too_little():
            return Verdict("undecided", why, too_little=True)
        beyond = [held.whole for held in self.history[-1].guardrails if held.whole.beyond]
        if beyond:
            why = "; ".join(f"{one.name} {one.says}" for one in beyond)
            return Verdict("undecided", f"beyond a limit, though not for certain: {why}")
        answered = self._points[-1].canary.answered
        return Verdict(
            "promote",
            f"in {at:.0f} s and {answered:.0f} answers the canary stayed within all limits",
        )

    def too_little(self) -> str | None:
        """Which side has answered too few requests, if any."""
        last = self._points[-1]
        for name, tally in (("canary", last.canary), ("baseline", last.baseline)):
            if tally.answered < self.limits.least:
                return (
                    f"the {name} answered {tally.answered:.0f} requests in {last.at:.0f} s, and "
                    f"{self.limits.least} are needed"
                )
        return None

    def cautions(self) -> list[str]:
        """What the verdict does not say."""
        if not self._points:
            return []
        found, last = [], self._points[-1]
        p95 = ratio(last.canary.latency, last.baseline.latency, SHARE)
        if p95 is not None and p95.value <= self.limits.p95 < p95.high:
            found.append(
                f"the p95 may still be {times(p95.high)} the baseline's: more requests would tell"
            )
        ours, theirs = last.canary.mean_seconds, last.baseline.mean_seconds
        if ours and theirs and max(ours / theirs, theirs / ours) > OTHER_CLIPS:
            found.append(
                f"the canary's clips last {ours:.1f} s on average and the baseline's {theirs:.1f} "
                "s, so their times do not compare"
            )
        for name, side in (("canary", self.canary), ("baseline", self.baseline)):
            if side.restarts:
                found.append(
                    f"the {name} began anew {side.restarts} x: what it counted between the last "
                    "look and its end is lost"
                )
        if not (last.canary.shadowed and last.baseline.shadowed):
            found.append("disagreement is not known: not both sides count it")
        return found

    def _abort(self) -> str | None:
        for name, (looks, why) in self.canary.silent.items():
            if looks >= CONFIRM or len(self.history) == 1:
                return f"the canary {name} cannot be asked ({why})"
        if len(self.history) > 1 and self._alone["canary"] >= CONFIRM:
            return "no canary is left"
        if self.canary.restarts > MOST_RESTARTS:
            return f"the canary began anew {self.canary.restarts} times"
        held = self.history[-1].guardrails if self.history else ()
        return (
            "; ".join(f"{one.whole.name} {one.says}" for one in held if one.run >= CONFIRM) or None
        )

    def _blind(self) -> str | None:
        if self.blind[0] >= CONFIRM or (self.blind[0] and not self.history):
            return self.blind[1]
        if both := self.baseline.names & self.canary.names:
            return f"{', '.join(sorted(both))} counts on both sides"
        for name, side in (("baseline", self.baseline), ("canary", self.canary)):
            alone = self._alone.get(name, 0)
            if alone >= CONFIRM or (alone and len(self.history) == 1):
                silent = "; ".join(f"{of}: {why}" for of, (_, why) in side.silent.items())
                return f"no {name} can be asked" + (f" ({silent})" if silent else "")
        return None

    def _since(self, begin: float) -> Sequence[Point]:
        """The points from the last one that is not after that time."""
        points = self._points
        first = next((n for n in range(len(points) - 1, 0, -1) if points[n].at <= begin), 0)
        return points[first:]

    def _run(self, window: str, finding: Finding) -> int:
        key = window, finding.name
        self._runs[key] = self._runs.get(key, 0) + 1 if finding.breach else 0
        return self._runs[key]
