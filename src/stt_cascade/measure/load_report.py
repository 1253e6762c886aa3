"""A load test as a page and a picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from stt_cascade.measure.capacity import (
    LITTLES_TOLERANCE,
    Advice,
    Quantiles,
    Summary,
    knee,
    sustained,
)
from stt_cascade.measure.page import Page, plot

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

HEAD = (
    "step",
    "calls",
    "texts/s",
    "p50",
    "p95",
    "p99",
    "queue p95",
    "primary p95",
    "fallback p95",
    "escalated",
    "errors",
    "lag p99, ms",
    "Little",
    "cores",
    "MiB",
    "GPU %",
)


def row(step: Summary) -> list[str]:
    """A step as cells; seconds, where nothing else is said."""
    errors = {kind: count for kind, count in step.outcomes.items() if kind != "ok"}
    total = step.total
    return [
        step.name,
        str(step.calls),
        f"{step.throughput:.2f}",
        *(("", "", "") if total is None else (_s(total.p50), _s(total.p95), _s(total.p99))),
        *(_p95(stage) for stage in (step.queue, step.primary, step.fallback)),
        f"{step.escalated:.0%}",
        ", ".join(f"{count} {kind}" for kind, count in errors.items()),
        f"{1000 * step.lag_p99:.1f}",
        _known(step.littles, ".2f"),
        _known(step.cores, ".2f"),
        _known(step.rss_mb, ".0f"),
        _known(step.gpu_pct, ".0f"),
    ]


def doubts(steps: Sequence[Summary]) -> list[str]:
    """Why these figures may not be what they seem."""
    found = [
        f"at {step.level:.3g} calls a second the generator was {1000 * step.lag_p99:.0f} ms late "
        "(p99): this step says more of it than of the service"
        for step in steps
        if step.late
    ]
    found += [
        f"at {step.level:g} callers Little's law is off by a factor of {step.littles:.2f}: what "
        "the service counts and what its callers see do not agree, so others may be using it"
        for step in steps
        if step.kind == "closed"
        and step.littles is not None
        and abs(step.littles - 1) > LITTLES_TOLERANCE
    ]
    if steps and all(step.rss_mb is None for step in steps):
        found.append(
            "the service gave no figures of its own (its METRICS_KEYS want another key): "
            "no processor, memory or Little's law"
        )
    return found


def picture(steps: Sequence[Summary], slo: float) -> Figure:
    """Throughput and latency against callers, and latency against arrivals.

    Args:
        slo: the p95 that callers want, s.
    """
    closed = [step for step in steps if step.kind == "closed"]
    opened = [step for step in steps if step.kind == "open" and not step.late]
    figure, axes = plot(max(1, 2 * bool(closed) + bool(opened)), 3.2)
    if closed:
        _closed(axes[0], axes[1], closed)
    if opened:
        _latency(axes[-1], opened, "calls a second", "What callers wait who do not wait for others")
    for each in axes[bool(closed) :]:
        each.axhline(slo, color="tab:green", ls="--", lw=1, label=f"SLO, p95 of {slo:g} s")
        each.legend(fontsize=8)
    if (held := sustained(steps, slo)) is not None:
        axes[-1].axvline(held.level, color="tab:green", ls="--", lw=1)
    return figure


def page(
    steps: Sequence[Summary],
    advice: Sequence[Advice],
    verdict: str,
    *,
    slo: float,
    good: bool,
    title: str,
) -> Page:
    """The whole report."""
    made = Page(title)
    made.verdict(verdict, good=good)
    for doubt in doubts(steps):
        made.text(f"Caution: {doubt}.")
    made.figure(picture(steps, slo), "Throughput and latency by load")
    made.heading("Settings")
    made.table(
        ("setting", "value", "because"), [(one.setting, one.value, one.because) for one in advice]
    )
    made.heading("Steps")
    made.text("Times in seconds; of all calls, and in the stages of those that got a text.")
    made.table(HEAD, [row(step) for step in steps])
    return made


def _closed(above: Axes, below: Axes, closed: Sequence[Summary]) -> None:
    above.plot([s.level for s in closed], [s.throughput for s in closed], "o-", color="tab:green")
    above.set(ylabel="texts a second", title="What it gives, by callers at once", ylim=(0, None))
    _latency(below, closed, "callers at once", "What callers wait")
    at = knee(closed)
    for each in (above, below):
        each.set_xscale("log", base=2)
        each.set_xticks([step.level for step in closed], [f"{step.level:g}" for step in closed])
        if at is not None:
            each.axvline(at, color="tab:red", ls="--", lw=1)
            each.annotate(
                f"knee: {at:g}", (at, 0), (4, 4), textcoords="offset points", color="tab:red"
            )


def _latency(axes: Axes, steps: Sequence[Summary], label: str, title: str) -> None:
    for name, style in (("p99", ":"), ("p95", "--"), ("p50", "-")):
        values = [(s.level, getattr(s.total, name)) for s in steps if s.total is not None]
        axes.plot(*zip(*values, strict=True), style, marker="o", color="tab:blue", label=name)
    for name, color in (("queue", "tab:orange"), ("primary", "tab:purple"), ("fallback", "gray")):
        stages = [(s.level, stage.p95) for s in steps if (stage := getattr(s, name)) is not None]
        if stages:
            axes.plot(*zip(*stages, strict=True), lw=1, color=color, label=f"{name}, p95")
    axes.set(xlabel=label, ylabel="s", title=title, ylim=(0, None))


def _p95(stage: Quantiles | None) -> str:
    return "" if stage is None else _s(stage.p95)


def _s(seconds: float) -> str:
    return f"{seconds:.3f}"


def _known(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)
