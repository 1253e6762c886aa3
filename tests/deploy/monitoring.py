"""Prometheus, Alertmanager and Grafana: their files, by promtool, amtool and a parser of PromQL."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from deploy import engines
from deploy.dashboards import JSON, rules, stale, unanswerable

PROMETHEUS = Path("deploy/prometheus")
ENVOY = Path("deploy/envoy/envoy.yaml")
ALERTMANAGER = Path("deploy/alertmanager/alertmanager.yml")
PROVISIONING = Path("deploy/grafana/provisioning")
RUNBOOKS = Path("docs/runbooks")
# Who hears of an alert of that severity. An alert of none always fires.
RECEIVERS = {"page": "page", "ticket": "ticket", "none": "watchdog"}


def check(root: Path) -> Iterator[str]:
    """One line a finding."""
    for part in (configuration, rule_tests, alerts, routes, grafana, stale, unanswerable):
        try:
            yield from part(root)
        except (OSError, KeyError, TypeError, ValueError, yaml.YAMLError) as error:
            yield f"deploy: {part.__name__} cannot be checked: {type(error).__name__}: {error}"


def configuration(root: Path) -> Iterator[str]:
    """Prometheus's own view of its configuration, its rules and the files of targets."""
    file = PROMETHEUS / "prometheus.yml"
    yield from _complaints(root, file, ["promtool", "check", "config", "--lint=all"])
    for targets in sorted((root / PROMETHEUS).glob("*/stt.yml")):
        jobs = {group["labels"]["job"] for group in yaml.safe_load(targets.read_text())}
        for missing in {"stt-primary", "stt-fallback"} - jobs:
            yield f"{targets.relative_to(root)}: no target of the job {missing}"
    # The label by which http_requests_total is recorded from what Envoy counts.
    envoy = (root / ENVOY).read_text(encoding="utf-8")
    if not re.search(r"^ +stat_prefix: stt-primary$", envoy, re.MULTILINE):
        yield f"{ENVOY}: no stat_prefix stt-primary, so {PROMETHEUS}/rules count no requests there"


def rule_tests(root: Path) -> Iterator[str]:
    """The unit tests of the rules."""
    for file in sorted((root / PROMETHEUS / "tests").glob("*.yml")):
        yield from _complaints(root, file.relative_to(root), ["promtool", "test", "rules"])


def alerts(root: Path) -> Iterator[str]:
    """Every alert says what to do, and has tests in which it fires and in which it does not."""
    tested = _tested(root)
    for file, rule in rules(root):
        if "alert" not in rule:
            continue
        name, severity = rule["alert"], rule.get("labels", {}).get("severity")
        always = severity == "none"
        if severity not in RECEIVERS:
            yield f"{file}: {name}: severity is {severity}, not page, ticket or none"
        if always and (rule["expr"] != "vector(1)" or "for" in rule):
            yield f"{file}: {name}: severity is none, and it does not always fire"
        if "for" not in rule and not always:
            yield f"{file}: {name}: fires without being pending: no “for”"
        said = rule.get("annotations", {})
        for missing in {"summary", "description", "runbook"} - set(said):
            yield f"{file}: {name}: no {missing}"
        page = f"{RUNBOOKS}/{runbook(name)}.md"
        if said.get("runbook", page) != page:
            yield f"{file}: {name}: its runbook is {page}, not {said['runbook']}"
        if (root / RUNBOOKS).is_dir() and not (root / page).is_file():
            yield f"{file}: {name}: there is no {page}"
        for state, seen in tested.items():
            if (name, severity) not in seen and (state == "firing" or not always):
                yield f"{PROMETHEUS}/tests: none in which {name} ({severity}) is {state}"


def runbook(alert: str) -> str:
    """SttHighTailLatency -> high-tail-latency; a number is part of its word."""
    words = re.findall(r"[A-Z][a-z]*|\d\w*", alert.removeprefix("Stt"))
    return "-".join(words).lower()


def routes(root: Path) -> Iterator[str]:
    """Who is told, by amtool; the inhibitions are tried in a running Alertmanager elsewhere."""
    yield from _complaints(root, ALERTMANAGER, ["amtool", "check-config"])
    for _, rule in rules(root):
        if "alert" in rule:
            labels = {"alertname": rule["alert"], "job": "stt-primary", **rule.get("labels", {})}
            to = RECEIVERS.get(labels.get("severity", ""), "")
            test = ["amtool", "config", "routes", "test", f"--verify.receivers={to}"]
            words = [f"{name}={value}" for name, value in labels.items()]
            if said := _run(test, f"--config.file={root / ALERTMANAGER}", *words):
                yield f"{ALERTMANAGER}: {rule['alert']} ({to}) goes elsewhere: {said}"


def grafana(root: Path) -> Iterator[str]:
    """What Grafana is given at its start."""
    board = json.loads((root / JSON).read_text(encoding="utf-8"))
    numbers = [panel["id"] for panel in board["panels"]]
    if len(set(numbers)) != len(numbers):
        yield f"{JSON}: two panels have the same number"
    for file in sorted((root / PROVISIONING).glob("*/*.yml")):
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
        kind = file.parent.name.removesuffix("s") + "s"
        wanted = "providers" if kind == "dashboards" else kind
        if content.get("apiVersion") != 1 or not content.get(wanted):
            yield f"{file.relative_to(root)}: no {wanted} of apiVersion 1"


def _tested(root: Path) -> dict[str, set[tuple[str, str]]]:
    """The alerts, with their severity, that tests see pending, firing, and neither (`quiet`)."""
    found: dict[str, set[tuple[str, str]]] = {"pending": set(), "firing": set(), "quiet": set()}
    there = {
        (rule["alert"], rule["labels"]["severity"]) for _, rule in rules(root) if "alert" in rule
    }
    for file in sorted((root / PROMETHEUS / "tests").glob("*.yml")):
        for test in yaml.safe_load(file.read_text(encoding="utf-8"))["tests"]:
            for look in test.get("promql_expr_test") or ():
                if look["expr"].startswith("ALERTS{"):
                    labels = dict(re.findall(r'(\w+)="([^"]*)"', look["expr"]))
                    state = labels.get("alertstate", "quiet")
                    # That one is not yet firing says nothing of whether it is quiet.
                    if bool(look["exp_samples"]) is not (state == "quiet"):
                        found[state] |= {
                            (name, severity)
                            for name, severity in there
                            if name == labels["alertname"]
                            and severity == labels.get("severity", severity)
                        }
    return found


def _complaints(root: Path, file: Path, command: Sequence[str]) -> Iterator[str]:
    if said := _run(command, root / file):
        yield f"{file}: {said}"


def _run(command: Sequence[str], *arguments: str | Path) -> str:
    """What a program says that does not like what it reads; empty if it does."""
    program, *words = command
    done: subprocess.CompletedProcess[Any] = subprocess.run(
        [engines.path(program), *words, *arguments],
        capture_output=True,
        text=True,
        timeout=300,
    )
    if done.returncode == 0:
        return ""
    lines = [line.strip() for line in (done.stderr + done.stdout).splitlines()]
    telling = [line for line in lines if line and not line.startswith(("Checking", "SUCCESS"))]
    return "; ".join(telling[:6]) or f"{program} ends with {done.returncode}"
