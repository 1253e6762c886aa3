"""Hours of steady load: figures of the service and of its callers, an interval at a time."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from stt_cascade.errors import is_failure
from stt_cascade.measure.load import Call, Generator, Watch
from stt_cascade.measure.page import Page, plot
from stt_cascade.measure.trend import WARM_UP_SHARE, Limit, Trend, trend
from stt_sdk import ServiceError, Transcription

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LIMITS = (
    Limit("rss_mb", "MiB", 20.0),
    Limit("descriptors", "", 5.0),
    Limit("threads", "", 3.0),
    Limit("p50", "s", 0.2, relative=True, least=0.05),
    Limit("p95", "s", 0.3, relative=True, least=0.1),
    Limit("error_rate", "", 0.01),
    Limit("escalation_rate", "", 0.1),
)
# Within which all errors together must stay, trend or not.
MOST_ERRORS = 0.001
# The last interval ends when the last call does, or a moment before.
ALL_OF_IT = 0.99


@dataclass(frozen=True)
class Interval:
    """What happened in one, which ends at `at`: seconds since the beginning.

    Attributes:
        errors: calls that the service failed, as the objective of availability counts them.
        refused: calls that it refused for what the caller did (4xx), which count for nothing else.
        rss_mb, descriptors, threads: None, if the service did not tell.
        p50, p95: seconds; None: no call ended.
    """

    at: float
    calls: int
    errors: int
    escalated: int
    p50: float | None
    p95: float | None
    rss_mb: float | None
    descriptors: float | None
    threads: float | None
    refused: int = 0

    @property
    def error_rate(self) -> float | None:
        served = self.calls - self.refused
        return self.errors / served if served else None

    @property
    def escalation_rate(self) -> float | None:
        texts = self.calls - self.refused - self.errors
        return self.escalated / texts if texts else None


@dataclass
class Soak:
    """A soak under way: bounded memory, however long it lasts.

    Args:
        say: is told of each interval.
        seconds: for which it is to last.

    Attributes:
        restarts: of the service, which hide what grows: its memory begins anew, too.
        outcomes: how many calls ended in what; `refusals`: those of them that are the caller's own.
    """

    say: Callable[[Interval], None] = lambda interval: None
    seconds: float = 0.0
    restarts: int = 0
    intervals: list[Interval] = field(default_factory=list)
    outcomes: dict[str, int] = field(default_factory=dict)
    refusals: set[str] = field(default_factory=set)
    _seconds: list[float] = field(default_factory=list)
    _errors: int = 0
    _refused: int = 0
    _escalated: int = 0
    _uptime: float = 0.0
    _began: float = field(default_factory=time.monotonic)

    def take(self, call: Call) -> None:
        self._seconds.append(call.seconds)
        result = call.result
        if isinstance(result, Transcription):
            kind = "ok"
            self._escalated += result.routing.reason not in ("accepted", "no_speech")
        else:
            kind = result.type or type(result).__name__
            # Without an answer, or with one of no agreed form, the caller has no text either.
            if isinstance(result, ServiceError) and not is_failure(result.status or 0):
                self.refusals.add(kind)
                self._refused += 1
            else:
                self._errors += 1
        self.outcomes[kind] = self.outcomes.get(kind, 0) + 1

    def close_interval(self, snapshot: dict[str, Any]) -> None:
        """What has been taken since the last one is an interval.

        Args:
            snapshot: the service's own figures; empty, if it gave none.
        """
        process, uptime = snapshot.get("process", {}), snapshot.get("uptime_s", self._uptime)
        self.restarts += uptime < self._uptime
        self._uptime = uptime
        quantiles = np.percentile(self._seconds, (50, 95)) if self._seconds else (None, None)
        p50, p95 = (None if one is None else float(one) for one in quantiles)
        self.intervals.append(
            Interval(
                time.monotonic() - self._began,
                len(self._seconds),
                self._errors,
                self._escalated,
                p50,
                p95,
                process.get("rss_mb"),
                process.get("descriptors"),
                process.get("threads"),
                self._refused,
            )
        )
        self._seconds, self._errors, self._refused, self._escalated = [], 0, 0, 0
        self.say(self.intervals[-1])

    def trends(self) -> list[Trend]:
        """Of every figure that there are enough of."""
        found = []
        for limit in LIMITS:
            points = [
                (one.at, value)
                for one in self.intervals
                if (value := getattr(one, limit.name)) is not None
            ]
            if tells := trend(limit, [at for at, _ in points], [value for _, value in points]):
                found.append(tells)
        return found

    def verdict(self) -> tuple[str, bool]:
        """What it comes to, and whether that is good."""
        trends, calls = self.trends(), sum(self.outcomes.values())
        refused = {kind: self.outcomes[kind] for kind in sorted(self.refusals)}
        failed = {k: n for k, n in self.outcomes.items() if k != "ok" and k not in refused}
        errors, served = sum(failed.values()), calls - sum(refused.values())
        hours = self.intervals[-1].at / 3600 if self.intervals else 0.0
        said = [f"{calls} calls in {hours:.2f} h, {errors} failed."]
        early = hours < ALL_OF_IT * self.seconds / 3600
        if early:
            said.append(f"Ended before its {self.seconds / 3600:.2f} h were over.")
        if self.restarts:
            said.append(f"The service began anew {self.restarts} x, and so did what it holds.")
        growing = [one for one in trends if one.grows]
        said += [f"It grows: {one}." for one in growing]
        missing = {"rss_mb", "p95"} - {one.limit.name for one in trends}
        if missing:
            said.append(f"Too little is known of {', '.join(sorted(missing))} to say that.")
        elif not growing:
            said.append("Nothing grows.")
        many = errors > MOST_ERRORS * served
        if many:
            said.append(f"More than {MOST_ERRORS:.1%} failed: {failed}.")
        slack = sum(refused.values()) > MOST_ERRORS * calls
        if slack:
            said.append(
                f"More than {MOST_ERRORS:.1%} were refused as the caller's mistake: {refused}. "
                "These are not failures, but the service was under less load than intended."
            )
        good = not (growing or many or slack or missing or early or self.restarts)
        return " ".join(said), good

    def figures(self) -> dict[str, Any]:
        said, good = self.verdict()
        return {
            "verdict": said,
            "good": good,
            "outcomes": self.outcomes,
            "restarts": self.restarts,
            "trends": [{**asdict(one), "grows": one.grows} for one in self.trends()],
            "intervals": [asdict(one) for one in self.intervals],
        }

    def page(self, title: str) -> Page:
        """The whole report."""
        said, good = self.verdict()
        made = Page(title)
        made.verdict(said, good=good)
        made.figure(self.picture(), "Each figure over time, with its trend")
        made.table(
            ("figure", "growth", "95 %", "allowed", "grows"),
            [
                (
                    f"{one.limit.name} {one.limit.unit}".strip(),
                    f"{one.growth:+.4g}",
                    f"{one.low:+.4g} to {one.high:+.4g}",
                    f"{one.allowed:.4g}",
                    "yes" if one.grows else "no",
                )
                for one in self.trends()
            ],
        )
        return made

    def picture(self) -> Figure:
        """Every figure over time, with its trend."""
        shown = [limit for limit in LIMITS if _points(self.intervals, limit.name)]
        figure, axes = plot(max(1, len(shown)), 1.9)
        trends = {one.limit.name: one for one in self.trends()}
        for limit, each in zip(shown, axes, strict=False):
            points = _points(self.intervals, limit.name)
            each.plot([at / 60 for at, _ in points], [value for _, value in points], lw=1)
            each.set_ylabel(f"{limit.name}\n{limit.unit}".strip())
            if tells := trends.get(limit.name):
                end = points[-1][0]
                begin = points[0][0] + WARM_UP_SHARE * (end - points[0][0])
                color = "tab:red" if tells.grows else "tab:green"
                half = tells.growth / 2
                each.plot(
                    [begin / 60, end / 60], [tells.level - half, tells.level + half], color=color
                )
                each.set_title(str(tells), fontsize=8, color=color)
        axes[len(shown) - 1].set_xlabel("minutes")
        return figure


async def run(
    generator: Generator,
    soak: Soak,
    *,
    seconds: float,
    interval: float,
    rate: float | None,
    callers: int,
) -> None:
    """Load the service steadily, and note an interval at a time.

    Args:
        rate: calls a second; None: `callers` at once.
    """

    async with Watch(generator.figures or generator.client, interval, soak.close_interval):
        if rate is None:
            await generator.closed(callers, seconds, soak.take)
        else:
            await generator.open(rate, seconds, soak.take)


def _points(intervals: Sequence[Interval], name: str) -> list[tuple[float, float]]:
    return [(one.at, value) for one in intervals if (value := getattr(one, name)) is not None]
