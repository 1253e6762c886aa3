"""How a panel of ours looks, whatever is in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from grafana_foundation_sdk.builders import common, heatmap, prometheus, stat, table, timeseries
from grafana_foundation_sdk.builders.dashboard import ThresholdsConfig
from grafana_foundation_sdk.models.common import (
    BigValueGraphMode,
    HeatmapCellLayout,
    LegendDisplayMode,
    LegendPlacement,
    SortOrder,
    StackingMode,
    TooltipDisplayMode,
    VisibilityMode,
)
from grafana_foundation_sdk.models.dashboard import DataSourceRef, Threshold, ThresholdsMode
from grafana_foundation_sdk.models.heatmap import HeatmapColorMode
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

SOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")
HEIGHT = 8
LETTERS = "ABCDEFGH"

Panel = timeseries.Panel | stat.Panel | heatmap.Panel | table.Panel


@dataclass(frozen=True)
class Query:
    """PromQL, and what its series are called; `{{label}}` is the label's value."""

    expression: str
    legend: str = ""


def graph(
    title: str,
    unit: str,
    queries: Sequence[Query],
    *,
    text: str,
    width: int = 8,
    stack: bool = False,
    limit: float | None = None,
    top: float | None = None,
) -> timeseries.Panel:
    """Lines over time.

    Args:
        text: for the mouse over the title: what to see in it.
        width: of 24 columns.
        limit: drawn as a line, in red.
        top: of the axis.
    """
    panel = (
        timeseries.Panel()
        .title(title)
        .description(text)
        .unit(unit)
        .min(0)
        .height(HEIGHT)
        .span(width)
        .datasource(SOURCE)
        .fill_opacity(60 if stack else 8)
        .line_width(1)
        .show_points(VisibilityMode.NEVER)
        .legend(
            common.VizLegendOptions()
            .display_mode(LegendDisplayMode.LIST)
            .placement(LegendPlacement.BOTTOM)
            .show_legend(True)
        )
        .tooltip(
            common.VizTooltipOptions().mode(TooltipDisplayMode.MULTI).sort(SortOrder.DESCENDING)
        )
    )
    if stack:
        panel.stacking(common.StackingConfig().mode(StackingMode.NORMAL))
    if top is not None:
        panel.max(top)
    if limit is not None:
        panel.thresholds(_thresholds(("green", None), ("red", limit)))
        panel.thresholds_style(common.GraphThresholdsStyleConfig().mode("dashed"))
    for letter, query in zip(LETTERS, queries, strict=False):
        panel.with_target(_target(query, letter))
    return panel


def figure(
    title: str,
    unit: str,
    query: Query,
    *,
    text: str,
    colours: Sequence[tuple[str, float | None]],
    decimals: int | None = None,
) -> stat.Panel:
    """One number now; its colour says whether it is well."""
    panel = (
        stat.Panel()
        .title(title)
        .description(text)
        .unit(unit)
        .height(4)
        .span(4)
        .datasource(SOURCE)
        .graph_mode(BigValueGraphMode.AREA)
        .no_value("no data")
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
        .thresholds(_thresholds(*colours))
        .with_target(_target(query, "A"))
    )
    return panel if decimals is None else panel.decimals(decimals)


def heat(title: str, query: Query, *, text: str, width: int = 12) -> heatmap.Panel:
    """A histogram over time: the query gives its buckets."""
    return (
        heatmap.Panel()
        .title(title)
        .description(text)
        .height(HEIGHT)
        .span(width)
        .datasource(SOURCE)
        .calculate(False)
        .color(
            heatmap.HeatmapColorOptions().mode(HeatmapColorMode.SCHEME).scheme("Oranges").steps(64)
        )
        .rows_frame(heatmap.RowsHeatmapOptions().layout(HeatmapCellLayout.LE))
        .with_target(_target(query, "A").format(PromQueryFormat.HEATMAP))
    )


def listing(title: str, query: Query, *, text: str, width: int = 24) -> table.Panel:
    """The series that there are now, a line each."""
    return (
        table.Panel()
        .title(title)
        .description(text)
        .height(5)
        .span(width)
        .datasource(SOURCE)
        .no_value("none")
        .with_target(_target(query, "A").instant().format(PromQueryFormat.TABLE))
    )


def _target(query: Query, letter: str) -> prometheus.Dataquery:
    target = prometheus.Dataquery().ref_id(letter).datasource(SOURCE).expr(query.expression)
    return target.legend_format(query.legend) if query.legend else target


def _thresholds(*steps: tuple[str, float | None]) -> ThresholdsConfig:
    made = [Threshold(color=colour, value=value) for colour, value in steps]
    return ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps(made)
