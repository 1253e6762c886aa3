"""What the chart asks of Prometheus: it judges a canary rightly, and sees the load as a number."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy import engines
from deploy.kubernetes import CASES, objects, render
from deploy.kubernetes_queries import queries

pytestmark = pytest.mark.engines

HERE = '{namespace="stt"}'
RATIO, EXCESS = f"stt:canary_p95_ratio{HERE}", f"stt:canary_fallback_failure_excess{HERE}"
POD = 'job="stt-primary", namespace="stt", role="canary", instance="one"'
ANSWERED = f'stt_requests_total{{{POD}, endpoint="/v1/transcribe"}}'
FAILED = f'stt_requests_exceptions_total{{{POD}, endpoint="/v1/transcribe", type="internal"}}'
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
    (
        "every answer is 500",
        f"{GUARDRAILS} errors",
        {ANSWERED: "0+60x12", FAILED: "0+60x12"},
        12,
        1,
    ),
    ("no answer is 500", f"{GUARDRAILS} errors", {ANSWERED: "0+60x12", FAILED: "0x12"}, 12, 0),
    ("a few requests", f"{GUARDRAILS} errors", {ANSWERED: "0+5x12", FAILED: "0+5x12"}, 12, None),
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
def asked() -> dict[str, str]:
    if missing := {"helm", "promtool"} & engines.missing().keys():
        pytest.skip(f"{', '.join(sorted(missing))}: `make check-deploy` installs them")
    return queries(objects(render(engines.ROOT, *CASES["all extras"])))


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
