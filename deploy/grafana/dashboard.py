"""The dashboard, as a program: prints what is in dashboards/stt-cascade.json.

`make dashboard` writes that file. It takes grafana-foundation-sdk, which `make check-deploy` puts
into `.engines/`. The rows are in the order in which somebody asks who was
got up at 3 am: do callers get their texts, how fast, what fails, is there room, what must the
fallback bear, are the texts good, how is the machine.
"""

from __future__ import annotations

import json
import sys

from asking import PAGES, WITHIN
from callers import failures, now, speed
from drawing import SOURCE
from grafana_foundation_sdk.builders import dashboard
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import (
    DashboardCursorSync,
    VariableRefresh,
    VariableSort,
)
from inside import machines, room, routing, texts

ROWS = {
    "Do callers get their texts?": now,
    "How fast?": speed,
    "What fails?": failures,
    "Is there room?": room,
    "What must the fallback bear, and what does it save?": routing,
    "Are the texts good?": texts,
    "The machines": machines,
}


def choices(name: str, label: str, query: str) -> dashboard.QueryVariable:
    return (
        dashboard.QueryVariable(name)
        .label(label)
        .datasource(SOURCE)
        .query(query)
        .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(VariableSort.ALPHABETICAL_ASC)
        .multi(True)
        .include_all(True)
        .all_value(".*")
    )


def mark(name: str, colour: str, expression: str) -> dashboard.AnnotationQuery:
    return (
        dashboard.AnnotationQuery()
        .name(name)
        .datasource(SOURCE)
        .enable(True)
        .icon_color(colour)
        .expr(expression)
    )


def build() -> dashboard.Dashboard:
    board = (
        dashboard.Dashboard("stt-cascade")
        .uid("stt-cascade")
        .description("Both tiers: what callers get, why not, and at what cost.")
        .tags(["stt"])
        .readonly()
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .refresh("30s")
        .time("now-3h", "now")
        .timezone("browser")
        .with_variable(
            dashboard.DatasourceVariable("datasource").label("Prometheus").type("prometheus")
        )
        .with_variable(choices("namespace", "Namespace", "label_values(stt_build_info, namespace)"))
        .with_variable(choices("job", "Tier", f"label_values(stt_build_info{{{WITHIN}}}, job)"))
        .with_variable(
            choices(
                "instance",
                "Instance",
                f'label_values(stt_build_info{{{WITHIN}, job=~"$job"}}, instance)',
            )
        )
        .annotation(mark("Pages", "red", PAGES))
        .annotation(
            mark(
                "New versions",
                "blue",
                f"count by (job, version, commit) (stt_build_info{{{WITHIN}}}) "
                f"unless count by (job, version, commit) (stt_build_info{{{WITHIN}}} offset 5m)",
            )
        )
    )
    number = 1
    for title, panels in ROWS.items():
        board.with_row(dashboard.Row(title).id(number))
        number += 1
        for panel in panels():
            board.with_panel(panel.id(number))
            number += 1
    return board


def main() -> None:
    text = json.dumps(
        build().build(), cls=JSONEncoder, indent=2, sort_keys=True, ensure_ascii=False
    )
    sys.stdout.write(text + "\n")


if __name__ == "__main__":
    main()
