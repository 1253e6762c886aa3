"""The dashboard: whether it is what its program writes, and whether its queries can be answered."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from deploy import engines, promql
from deploy.known import Labels, exported

FOLDER = Path("deploy/grafana")
JSON = FOLDER / "dashboards" / "stt-cascade.json"
RULES = Path("deploy/prometheus/rules")
# What a target, and not the service, is the source of.
OF_TARGETS = {"namespace", "job", "instance", "role"}
# What is neither the service's nor recorded: Prometheus's own, and Envoy 1.40's.
OF_OTHERS = {"up", "ALERTS", "envoy_http_downstream_rq_xx"}
SIMPLE = re.compile(r"[\w./ -]+")


def stale(root: Path) -> Iterator[str]:
    """Whether the committed dashboard is another than its program writes."""
    engines.path("grafana-foundation-sdk")
    done = subprocess.run(
        [engines.PYTHON / "bin/python", "-B", root / FOLDER / "dashboard.py"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["?"])[-1]
        yield f"{FOLDER}/dashboard.py: it cannot be drawn: {last}"
    elif done.stdout != (root / JSON).read_text(encoding="utf-8"):
        yield f"{JSON}: not what dashboard.py draws: make dashboard"


def queries(board: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Where each query is, and the query, variables and all."""
    for panel in board["panels"]:
        for target in panel.get("targets") or ():
            yield f"panel “{panel['title']}”", target["expr"]
    for mark in board["annotations"]["list"]:
        yield f"annotation “{mark['name']}”", mark["expr"]
    for variable in board["templating"]["list"]:
        if match := re.fullmatch(r"label_values\((.*), (\w+)\)", str(variable.get("query"))):
            yield f"variable “{variable['name']}”", f"count by ({match[2]}) ({match[1]})"


def filled(query: str, window: str = "5m") -> str:
    """With values in the place of Grafana's variables: all that there is."""
    query = query.replace("$__rate_interval", window)
    for name in ("$namespace", "$job", "$instance"):
        query = query.replace(name, ".*")
    return query


def recorded(root: Path) -> set[str]:
    """Names that the rules record."""
    return {rule["record"] for _, rule in rules(root) if "record" in rule}


def rules(root: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Every rule, with the file that it is in."""
    for file in sorted((root / RULES).glob("*.yml")):
        for group in yaml.safe_load(file.read_text(encoding="utf-8"))["groups"]:
            for rule in group["rules"]:
                yield file.relative_to(root), rule


def unanswerable(root: Path) -> Iterator[str]:
    """What in the queries of the dashboard and in the rules nobody exports or records."""
    board = json.loads((root / JSON).read_text(encoding="utf-8"))
    found = [(f"{JSON}: {where}", filled(query)) for where, query in queries(board)]
    found += [(f"{file}: {_name(rule)}", rule["expr"]) for file, rule in rules(root)]
    parsed = promql.parse([query for _, query in found])
    names = recorded(root)
    for (where, query), what in zip(found, parsed, strict=True):
        if what.error:
            yield f"{where}: {what.error}: {query}"
        for mistake in _mistakes(what.selectors, names, exported()):
            yield f"{where}: {mistake}"
        # In a rule it is a group of a regular expression.
        if "$" in query and where.startswith(str(JSON)):
            yield f"{where}: a variable that there is not: {query}"


def _name(rule: Mapping[str, Any]) -> str:
    return str(rule.get("alert") or rule["record"])


def _mistakes(
    selectors: Iterable[promql.Selector], names: set[str], known: Labels
) -> Iterator[str]:
    for selector in selectors:
        if selector.metric in known:
            yield from _wrong_labels(selector, known[selector.metric])
        elif selector.metric not in names | OF_OTHERS:
            yield f"nobody exports or records “{selector.metric}”"


def _wrong_labels(selector: promql.Selector, known: Mapping[str, set[str]]) -> Iterator[str]:
    for label, operator, value in selector.labels:
        if label in OF_TARGETS:
            continue
        if label not in known:
            yield f"{selector.metric} has no label {label}"
            continue
        wanted = value.split("|") if operator in ("=~", "!~") else [value]
        for one in wanted:
            if SIMPLE.fullmatch(one) and one not in known[label]:
                yield f"{selector.metric} is never {label}={one}"
