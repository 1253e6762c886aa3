"""A calibration as a picture, and as a page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from stt_cascade.measure.calibration_text import env, good, sentences, tables
from stt_cascade.measure.page import Page, plot

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_GATES = {"logprob": "C0", "langprob": "C1", "words": "C2", "weakest": "C3"}
_TOGETHER = {"together, held out": "-", "together, held out, FINAL_PICK=best": "--"}
SAYS = (
    "Word error rate against the share of escalated clips, for each gate, their combination, the "
    "oracle and chance; below, the share of right texts against each score."
)


def picture(report: Mapping[str, Any]) -> Figure:
    """Two plots: errors against escalations, and the reliability diagram."""
    figure, (curves, reliability) = plot(2, height=4.6)
    _curves(curves, report)
    _reliability(reliability, report)
    return figure


def _curves(axes: Axes, report: Mapping[str, Any]) -> None:
    primary, fallback = (report[tier]["wer"]["value"] for tier in ("primary", "fallback"))
    lines = report["curves"]
    axes.plot(*_xy(lines["oracle"]), color="0.4", ls=":", label="oracle")
    axes.plot([0, 100], [primary, fallback], color="0.7", label="any clips (chance)")
    axes.axhline(fallback, color="k", lw=1, ls="--", label=f"fallback alone, {fallback:.1f} %")
    for gate, colour in _GATES.items():
        if len(lines[gate]) > 1:  # else it escalates nothing
            axes.plot(*_xy(lines[gate]), ".-", ms=3, lw=1, color=colour, label=gate)
    for name, style in _TOGETHER.items():
        axes.plot(*_xy(lines[name]), style, lw=2, color="C4", label=name)
    chosen = report["recommended"]
    x, y = chosen["escalation"], chosen["minus_fallback"]
    axes.errorbar(
        [x["value"]],
        [chosen["wer"]["value"]],
        xerr=[[max(0.0, x["value"] - x["low"])], [max(0.0, x["high"] - x["value"])]],
        yerr=[[max(0.0, y["value"] - y["low"])], [max(0.0, y["high"] - y["value"])]],
        fmt="*",
        ms=14,
        color="k",
        lw=1,
        label="recommended, 95 % against the fallback",
    )
    if report["now"] is not None:
        now = report["now"]
        axes.plot(now["escalation"]["value"], now["wer"]["value"], "kx", ms=9, label="in force")
    ends = [fallback + y["low"], fallback + y["high"], primary, fallback]
    ends += [point[1] for name in lines for point in lines[name]]
    room = max(ends) - min(ends) or 1
    axes.set(
        xlabel="escalated clips, %",
        ylabel="WER, %",
        xlim=(-2, 102),
        ylim=(min(ends) - 0.05 * room, max(ends) + 0.35 * room),  # the legend goes above
        title=f"What escalation buys: {report['clips']} clips, {report['words']} words",
    )
    axes.legend(fontsize=8, ncols=3, loc="upper center")


def _reliability(axes: Axes, report: Mapping[str, Any]) -> None:
    axes.plot([0, 1], [0, 1], color="0.7", label="a score that were a chance")
    for name, row in report["scores"].items():
        bins = row["diagram"]
        right = [each["right"] for each in bins]
        errors = [
            [max(0.0, each["right"] - each["low"]) for each in bins],
            [max(0.0, each["high"] - each["right"]) for each in bins],
        ]
        axes.errorbar(
            [each["score"] for each in bins],
            right,
            yerr=errors,
            fmt="o-",
            ms=4,
            lw=1,
            capsize=2,
            color=_GATES[name],
            label=f"{name}, AUROC {row['auroc']['value']:.2f}",
        )
    axes.set(
        xlabel="score of the primary's text",
        ylabel="texts without an error",
        xlim=(-0.02, 1.02),
        ylim=(-0.02, 1.02),
        title="Reliability: what a score says of a text",
    )
    axes.legend(fontsize=8)


def whole_page(report: Mapping[str, Any], figure: Figure) -> Page:
    """The whole report."""
    page = Page("Calibration")
    page.verdict("\n".join(sentences(report)), good=good(report))
    for warning in report["warnings"]:
        page.text(f"Warning: {warning}")
    page.heading("For the primary's .env file")
    page.code(env(report))
    page.heading("Picture")
    page.figure(figure, SAYS)
    for table in tables(report):
        page.heading(table.title)
        page.table(table.head, table.rows)
    return page


def _xy(points: list[list[float]]) -> tuple[list[float], list[float]]:
    return [point[0] for point in points], [point[1] for point in points]
