"""What the chart asks of Prometheus: it judges a canary rightly, and sees the load as a number."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy import engines
from deploy.kubernetes import CASES, RULES, objects, render
from deploy.kubernetes_objects import Object
from deploy.kubernetes_queries import queries
from pages import codes
from pages import rows as page_rows
from stt_cascade.cli.canary import CANARY, STABLE
from stt_cascade.errors import ERROR_TYPES, FAILURES

pytestmark = pytest.mark.engines

HERE = '{namespace="stt"}'
RATIO, EXCESS = f"stt:canary_p95_ratio{HERE}", f"stt:canary_fallback_failure_excess{HERE}"
ERRORS = f"stt:canary_availability_error_excess{HERE}"
QUEUES = [
    'stt_queue_depth{job="stt-primary", namespace="stt", instance="one"}',
    'stt_queue_depth{job="stt-primary", namespace="stt", instance="two"}',
    'stt_queue_depth{job="stt-primary", namespace="other", instance="three"}',
]
GUARDRAILS = "AnalysisTemplate stt-primary-guardrails"

# The query; what Prometheus has, a sample a minute; after how many minutes; the answer, if any.
ASKED: list[tuple[str, str, dict[str, str], int, float | None]] = [
    ("slow for 10 minutes ends it", f"{GUARDRAILS} p95-ratio", {RATIO: "2x15"}, 12, 1),
    ("slow, but fast a moment ago", f"{GUARDRAILS} p95-ratio", {RATIO: "2x6 1x0 2x6"}, 12, 0),
    ("slow, with a gap of 3 minutes", f"{GUARDRAILS} p95-ratio", {RATIO: "2x5 _x3 2x5"}, 14, 0),
    ("slow since 8 minutes only", f"{GUARDRAILS} p95-ratio", {RATIO: "_x5 2x7"}, 13, 0),
    (
        "slow in another namespace",
        f"{GUARDRAILS} p95-ratio",
        {RATIO.replace('stt"', 'test"'): "2x15", RATIO: "1x15"},
        12,
        0,
    ),
    ("nothing to compare", f"{GUARDRAILS} p95-ratio", {RATIO: "_x15"}, 12, None),
    ("slower within the limit", f"{GUARDRAILS} p95-ratio", {RATIO: "1.4x15"}, 12, 0),
    ("a spike of failures", f"{GUARDRAILS} fallback-failures", {EXCESS: "0x8 0.2x3"}, 12, 1),
    ("a failure", f"{GUARDRAILS} fallback-failures", {EXCESS: "0x8 0.2x0 0x3"}, 11, 0),
    ("no decisions", f"{GUARDRAILS} fallback-failures", {EXCESS: 12 * "NaN "}, 12, 0),
    ("a spike of errors", f"{GUARDRAILS} errors", {ERRORS: "0x8 0.02x3"}, 12, 1),
    ("an error", f"{GUARDRAILS} errors", {ERRORS: "0x8 0.02x0 0x3"}, 11, 0),
    ("errors within the limit", f"{GUARDRAILS} errors", {ERRORS: "0.005x12"}, 12, 0),
    ("too few requests or errors", f"{GUARDRAILS} errors", {ERRORS: "_x12"}, 12, None),
    (
        "judged",
        "AnalysisTemplate stt-primary-traffic judged-for-10-minutes",
        {RATIO: "1x15"},
        12,
        11,  # both ends of the 10 minutes
    ),
    (
        "not judged",
        "AnalysisTemplate stt-primary-traffic judged-for-10-minutes",
        {RATIO: "1x5"},
        12,
        None,
    ),
    ("two queues", "ScaledObject stt-primary queue-depth", dict.fromkeys(QUEUES, "3x5"), 3, 6),
    ("no metric", "ScaledObject stt-primary queue-depth", {QUEUES[2]: "3x5"}, 3, None),
]


@pytest.fixture(scope="module")
def chart() -> list[Object]:
    if missing := {"helm", "promtool"} & engines.missing().keys():
        pytest.skip(f"{', '.join(sorted(missing))}: `make check-deploy` installs them")
    return objects(render(engines.ROOT, *CASES["all extras"]))


@pytest.fixture(scope="module")
def asked(chart: list[Object]) -> dict[str, str]:
    return queries(chart)


def labels_of(selector: str) -> dict[str, str]:
    return dict(re.findall(r'(\w+)=~?"([^"]*)"', selector))


def test_stt_canary_asks_for_the_pods_that_the_chart_labels(chart: list[Object]) -> None:
    """Prometheus gives a pod's series the label of the pod, and the job of its service."""
    found = {(thing["kind"], thing["metadata"]["name"]): thing for thing in chart}
    monitor = found["ServiceMonitor", "stt-primary"]["spec"]
    service = found["Service", "stt-primary"]["metadata"]["labels"]
    rollout = found["Rollout", "stt-primary"]["spec"]["strategy"]["canary"]
    for selector, pods in ((CANARY, "canaryMetadata"), (STABLE, "stableMetadata")):
        labels = {name: rollout[pods]["labels"][name] for name in monitor["podTargetLabels"]}
        assert labels_of(selector) == {"job": service[monitor["jobLabel"]], **labels}


def test_stt_canary_and_the_rules_tell_the_two_by_the_same_labels() -> None:
    canary, stable = labels_of(CANARY), labels_of(STABLE)
    assert canary["job"] == stable["job"]
    rules = (engines.ROOT / RULES / "canary.yml").read_text()
    selectors = [labels_of(found) for found in re.findall(r"\{([^}]*job=[^}]*)\}", rules)]
    assert selectors
    for found in selectors:
        assert (found["job"], found["role"]) == (
            canary["job"],
            f"{canary['role']}|{stable['role']}",
        )
    targets = (engines.ROOT / "deploy/prometheus/targets/stt.yml").read_text()
    for side in (canary, stable):
        assert f"`role: {side['role']}`" in targets
        assert f"{{job: {side['job']}}}" in targets


def test_what_counts_as_failed_is_the_same_everywhere() -> None:
    """The rules and the page name the types that the service has for it; nobody has others."""
    for file in ("slo.yml", "canary.yml"):
        rules = (engines.ROOT / RULES / file).read_text()
        named = re.findall(r'stt_requests_exceptions_total\{[^}]*\btype=~"([^"]*)"', rules)
        assert len(named) == rules.count("stt_requests_exceptions_total")
        assert {frozenset(each.split("|")) for each in named} == {frozenset(FAILURES)}, file
    (row,) = (
        row for row in page_rows("docs/deploy.md", "### Objectives") if row[0] == "availability"
    )
    assert set(codes(row[1])) & set(ERROR_TYPES) == set(FAILURES)


@pytest.mark.parametrize(
    ("name", "series", "minutes", "answer"),
    [pytest.param(*rest, id=sentence) for sentence, *rest in ASKED],
)
def test_the_chart_asks_what_it_means(
    asked: dict[str, str],
    name: str,
    series: dict[str, str],
    minutes: int,
    answer: float | None,
    tmp_path: Path,
) -> None:
    labels = HERE if ":canary_" in asked[name] else "{}"
    test: dict[str, Any] = {
        "interval": "1m",
        "input_series": [{"series": key, "values": values} for key, values in series.items()],
        "promql_expr_test": [
            {
                "expr": asked[name],
                "eval_time": f"{minutes}m",
                "exp_samples": [] if answer is None else [{"labels": labels, "value": answer}],
            }
        ],
    }
    file = tmp_path / "test.yml"
    file.write_text(yaml.safe_dump({"evaluation_interval": "1m", "tests": [test]}))
    command = (engines.path("promtool"), "test", "rules", file)
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
