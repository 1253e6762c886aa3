"""What the chart's objects ask of Prometheus."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import yaml

from deploy import engines
from deploy.kubernetes_objects import Object

# By their colon: what Prometheus' own rules record.
RECORDED = re.compile(r"\b[a-z_]+:[a-z0-9_:]+")


def queries(things: list[Object]) -> dict[str, str]:
    """Every query in PromQL that KEDA or Argo Rollouts will ask, by where it stands."""
    found: dict[str, str] = {}
    for thing in things:
        name = f"{thing['kind']} {thing['metadata']['name']}"
        if thing["kind"] == "ScaledObject":
            for trigger in thing["spec"]["triggers"]:
                found[f"{name} {trigger['name']}"] = trigger["metadata"]["query"]
        if thing["kind"] == "AnalysisTemplate":
            for metric in thing["spec"]["metrics"]:
                found[f"{name} {metric['name']}"] = metric["provider"]["prometheus"]["query"]
    return found


def check(asked: Mapping[str, str], rules: Path) -> Iterator[str]:
    """Whether promtool parses each query, and each recorded series is one of the rules'.

    Args:
        asked: where each query stands.
        rules: the folder of Prometheus' rules.
    """
    recorded = {
        rule["record"]
        for file in rules.glob("*.yml")
        for group in yaml.safe_load(file.read_text())["groups"]
        for rule in group["rules"]
        if "record" in rule
    }
    for query, name in asked.items():
        for series in sorted(set(RECORDED.findall(query)) - recorded):
            yield f"{name}: asks for {series}, which no rule records"
    named = [{"record": f"query_{i}", "expr": query} for i, query in enumerate(asked)]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "queries.yml")
        file.write_text(yaml.safe_dump({"groups": [{"name": "queries", "rules": named}]}))
        command = (engines.path("promtool"), "check", "rules", file)
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    if done.returncode:
        names = {f"query_{i}": name for i, name in enumerate(asked.values())}
        why = re.sub(r"query_\d+", lambda match: names[match[0]], done.stderr)
        yield " ".join(why.split())
