"""A canary as tables, a page and a picture."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from stt_cascade.measure.canary import CONFIRM, Held, Look, Watch
from stt_cascade.measure.compare import ratio
from stt_cascade.measure.guardrails import SHARE
from stt_cascade.measure.page import Page, plot

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LEAST_SHOWN_PCT = 1.0
HEAD = ("guardrail", "baseline", "canary", "the canary's by the baseline's", "state")


def row(held: Held) -> list[str]:
    """A guardrail as cells."""
    whole = held.whole
    values = [_value(value, whole.unit) for value in (whole.baseline, whole.canary)]
    return [whole.name, *values, held.says, state(held)]


def state(held: Held) -> str:
    """`ok`, `unknown`, `breach 2 of 3` or `abort`."""
    if held.run >= CONFIRM:
        return "abort"
    if held.run:
        return f"breach {held.run} of {CONFIRM}"
    return "unknown" if None in (held.whole.baseline, held.whole.canary) else "ok"


def head(look: Look, seconds: float) -> str:
    """Above a look's table."""
    point = look.point
    told = (
        f"{point.at:.0f} of {seconds:.0f} s; answered: baseline {point.baseline.answered:.0f}, "
        f"canary {point.canary.answered:.0f}"
    )
    return "; silent: ".join([told, *look.silent])


def picture(watch: Watch) -> Figure:
    """The ratio of the p95s with its bounds, and every share of both sides, over time."""
    shares = [
        number
        for number, held in enumerate(watch.history[-1].guardrails)
        if held.whole.unit == "share" and None not in (held.whole.baseline, held.whole.canary)
    ]
    figure, axes = plot(1 + len(shares), 2.3)
    points = [look.point for look in watch.history]
    found = [
        (point.at, estimate)
        for point in points
        if (estimate := ratio(point.canary.latency, point.baseline.latency, SHARE)) is not None
    ]
    limit = watch.limits.p95
    top = 1.2 * max([limit, *(estimate.value for _, estimate in found)])
    at = [seconds for seconds, _ in found]
    axes[0].plot(at, [one.value for _, one in found], "o-", ms=3, color="tab:orange")
    lows, highs = [one.low for _, one in found], [min(one.high, top) for _, one in found]
    axes[0].fill_between(at, lows, highs, color="tab:orange", alpha=0.25, lw=0)
    axes[0].axhline(limit, color="tab:red", ls="--", lw=1)
    axes[0].axhline(1, color="gray", lw=1)
    axes[0].set(ylim=(0, top), title=f"p95, by the baseline's; {limit:g} allowed")
    for number, each in zip(shares, axes[1:], strict=True):
        held = [(look.point.at, look.guardrails[number].whole) for look in watch.history]
        for name, color in (("baseline", "tab:blue"), ("canary", "tab:orange")):
            values = [(s, share) for s, one in held if (share := getattr(one, name)) is not None]
            each.plot(
                [seconds for seconds, _ in values],
                [100 * share for _, share in values],
                *("o-",),
                ms=3,
                color=color,
                label=name,
            )
        # Nothing at all is a line at the bottom, not a plot of its rounding.
        top = max(LEAST_SHOWN_PCT, 1.1 * each.get_ylim()[1])
        each.set(ylabel="%", title=held[0][1].name, ylim=(0, top))
        each.legend(fontsize=8)
    axes[-1].set_xlabel("seconds")
    return figure


def page(watch: Watch, title: str) -> Page:
    """The whole report."""
    verdict = watch.verdict()
    made = Page(title)
    made.verdict(verdict.says, good=verdict.outcome == "promote")
    for caution in watch.cautions():
        made.text(f"Caution: {caution}.")
    if watch.history:
        last = watch.history[-1]
        made.text(f"{head(last, watch.seconds)}.")
        made.table(HEAD, [row(held) for held in last.guardrails])
        made.figure(picture(watch), "The ratio of the p95s, and each share, over time")
    return made


def figures(watch: Watch) -> dict[str, Any]:
    """All of it, for machines."""
    verdict = watch.verdict()
    return {
        "verdict": verdict.says,
        "outcome": verdict.outcome,
        "limits": asdict(watch.limits),
        "cautions": watch.cautions(),
        "restarts": {"baseline": watch.baseline.restarts, "canary": watch.canary.restarts},
        "looks": [_look(look) for look in watch.history],
    }


def _look(look: Look) -> dict[str, Any]:
    point = look.point
    return {
        "at": point.at,
        "answered": {"baseline": point.baseline.answered, "canary": point.canary.answered},
        "silent": list(look.silent),
        "guardrails": [
            {**asdict(held.whole), "says": held.says, "breach": held.breach, "run": held.run}
            for held in look.guardrails
        ],
    }


def _value(value: float | None, unit: str) -> str:
    if value is None:
        return ""
    return f"{value:.3f} s" if unit == "s" else f"{value:.2%}"
