"""The checks of the monitoring's files: they find what is wrong with a copy of them."""

from __future__ import annotations

import asyncio
import re
import shutil
import subprocess
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy import dashboards, engines, monitoring
from deploy.alertmanager import Alertmanager, inbox
from deploy.prometheus import Prometheus
from deploy.shorten import FAST, seconds, shorten
from pages import codes, page_command, rows
from servers import serving

pytestmark = pytest.mark.engines

RULES = "deploy/prometheus/rules"
ALERTS = f"{RULES}/alerts.yml"
SLO = f"{RULES}/slo.yml"
WATCHDOG = f"{RULES}/watchdog.yml"
TESTS = "deploy/prometheus/tests/alerts.yml"
TARGETS = "deploy/prometheus/targets/stt.yml"
PAGE = "docs/deploy.md"
ROUTES = "deploy/alertmanager/alertmanager.yml"
BOARD = "deploy/grafana/dashboards/stt-cascade.json"
DRAWN = "deploy/grafana/callers.py"
SOURCES = "deploy/grafana/provisioning/datasources/prometheus.yml"
NAMES = """SttHighTailLatency SttFallbackFailureSpike SttIngress5xx SttGpuSaturated
SttAvailabilityBudgetBurn SttLatencyBudgetBurn SttFallbackBudgetBurn SttQueueGrows SttBreakerOpen
SttEngineWedged SttDisagreementDrift SttKeyNearRateLimit SttAlwaysFallingBack SttTierDown
SttMemoryGrows SttGpuMemoryFull Watchdog"""

Part = Callable[[Path], Iterator[str]]
# What: who finds it, in which file, what is there, what is planted, what is said of it.
MISTAKES: dict[str, tuple[Part, str, str, str, str]] = {
    "a setting that Prometheus does not have": (
        monitoring.configuration,
        "deploy/prometheus/prometheus.yml",
        "job_name:",
        "job_nam:",
        "job_nam",
    ),
    "an expression that is none": (
        monitoring.configuration,
        ALERTS,
        "[10m]) >",
        "[10m) >",
        "alerts.yml",
    ),
    "a time that is none": (monitoring.configuration, SLO, "for: 2m", "for: soon", "slo.yml"),
    "a tier that nobody scrapes": (
        monitoring.configuration,
        TARGETS,
        "job: stt-fallback",
        "job: stt-falback",
        "no target of the job stt-fallback",
    ),
    "an Envoy whose requests nobody counts": (
        monitoring.configuration,
        "deploy/envoy/envoy.yaml",
        "stat_prefix: stt-primary",
        "stat_prefix: ingress",
        "no stat_prefix stt-primary",
    ),
    "a rule that no longer does what its test says": (
        monitoring.rule_tests,
        f"{RULES}/canary.yml",
        ">= 50",
        ">= 5",
        "canary.yml",
    ),
    "an alert that nobody would hear": (
        monitoring.alerts,
        ALERTS,
        "severity: page",
        "severity: loud",
        "alerts.yml",
    ),
    "an alert that is never pending": (
        monitoring.alerts,
        ALERTS,
        "        for: 5m\n",
        "",
        "no “for”",
    ),
    "a watchdog that may be quiet": (
        monitoring.alerts,
        WATCHDOG,
        "vector(1)",
        "max(up)",
        "it does not always fire",
    ),
    "a watchdog that no test sees firing": (
        monitoring.alerts,
        "deploy/prometheus/tests/watchdog.yml",
        "ALERTS{",
        "ALERTS_FOR_STATE{",
        "none in which Watchdog (none) is firing",
    ),
    "a watchdog that people are told of": (
        monitoring.routes,
        ROUTES,
        'alertname="Watchdog"',
        'alertname="Watchdg"',
        "Watchdog (watchdog) goes elsewhere",
    ),
    "an alert without a summary": (
        monitoring.alerts,
        ALERTS,
        "summary:",
        "sumary:",
        "no summary",
    ),
    "an alert with another's page": (
        monitoring.alerts,
        ALERTS,
        "runbooks/breaker-open",
        "runbooks/tier-down",
        "breaker-open.md, not",
    ),
    "an alert that no test sees firing": (
        monitoring.alerts,
        TESTS,
        'ALERTS{alertname="SttGpuSaturated", alertstate="firing"}',
        'up{alertname="SttGpuSaturated"}',
        "none in which SttGpuSaturated (ticket) is firing",
    ),
    "an alert that no test sees quiet": (
        monitoring.alerts,
        TESTS,
        'ALERTS{alertname="SttGpuSaturated"}',
        'up{alertname="SttGpuSaturated"}',
        "none in which SttGpuSaturated (ticket) is quiet",
    ),
    "a setting that Alertmanager does not have": (
        monitoring.routes,
        ROUTES,
        "group_wait:",
        "group_wail:",
        "group_wail",
    ),
    "a route that nothing takes": (
        monitoring.routes,
        ROUTES,
        '[severity="page"]\n      receiver',
        '[severity="pge"]\n      receiver',
        "goes elsewhere",
    ),
    "a file that gives Grafana nothing": (
        monitoring.grafana,
        SOURCES,
        "datasources:",
        "sources:",
        "no datasources",
    ),
    "a dashboard changed by hand": (
        dashboards.stale,
        BOARD,
        "Throughput",
        "Throughputs",
        "make dashboard",
    ),
    "a program that was changed, and the dashboard not": (
        dashboards.stale,
        DRAWN,
        "Throughput",
        "Throughputs",
        "make dashboard",
    ),
    "a program that draws nothing": (
        dashboards.stale,
        DRAWN,
        "figure(",
        "figurine(",
        "cannot be drawn",
    ),
    "a metric that nobody exports": (
        dashboards.unanswerable,
        BOARD,
        "stt_queue_depth{",
        "stt_queue_dept{",
        "stt_queue_dept",
    ),
    "a query that is none": (
        dashboards.unanswerable,
        BOARD,
        "rate(stt_requests_total",
        "rate((stt_requests_total",
        "parenthesis",
    ),
    "a variable that there is not": (
        dashboards.unanswerable,
        BOARD,
        "[$__rate_interval]",
        "[$__rate]",
        "$__rate",
    ),
    "a value that a label never has": (
        dashboards.unanswerable,
        BOARD,
        'result=\\"failed\\"',
        'result=\\"faild\\"',
        "never result=faild",
    ),
    "a rule with a label that its metric lacks": (
        dashboards.unanswerable,
        ALERTS,
        'reason="overloaded"',
        'cause="overloaded"',
        "no label cause",
    ),
    "a rule with a value among many": (
        dashboards.unanswerable,
        SLO,
        "internal|",
        "intern|",
        "never type=intern",
    ),
    "a bucket that there is not": (
        dashboards.unanswerable,
        SLO,
        'le="1.0"',
        'le="1"',
        "never le=1",
    ),
}


@pytest.fixture(autouse=True)
def installed() -> None:
    needed = ("prometheus", "promtool", "amtool", "promql-parser", "grafana-foundation-sdk")
    for name in needed:
        try:
            engines.path(name)
        except engines.MissingEngine as missing:
            pytest.skip(str(missing))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A copy of what is checked."""
    for folder in ("prometheus", "alertmanager", "grafana", "envoy"):
        shutil.copytree(engines.ROOT / "deploy" / folder, tmp_path / "deploy" / folder)
    return tmp_path


def plant(root: Path, file: str, right: str, wrong: str) -> None:
    path = root / file
    text = path.read_text(encoding="utf-8")
    assert right in text, f"{file} has no {right}"
    path.write_text(text.replace(right, wrong), encoding="utf-8")


def told(findings: Iterable[str]) -> str:
    return "\n".join(findings)


def test_nothing_is_wrong_with_the_files_themselves() -> None:
    assert told(monitoring.check(engines.ROOT)) == ""


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_planted_mistake_is_found(root: Path, mistake: str) -> None:
    part, file, right, wrong, says = MISTAKES[mistake]
    plant(root, file, right, wrong)
    if part is monitoring.rule_tests:  # the others take their time
        for tests in (root / "deploy/prometheus/tests").glob("*.yml"):
            if tests.name != Path(file).name:
                tests.unlink()
    assert says in told(part(root))


def test_a_missing_runbook_is_found_once_there_are_some(root: Path) -> None:
    assert told(monitoring.alerts(root)) == ""
    (root / "docs" / "runbooks").mkdir(parents=True)
    assert "there is no docs/runbooks/ingress-5xx.md" in told(monitoring.alerts(root))


def test_files_that_cannot_be_read_are_findings_too(root: Path) -> None:
    plant(root, ALERTS, "groups:", "groups: [")
    (root / BOARD).unlink()
    shutil.rmtree(root / "deploy/prometheus/tests")
    found = told(monitoring.check(root))
    assert "alerts.yml" in found
    assert "stt-cascade.json" in found


def test_there_is_an_alert_for_everything_that_was_promised() -> None:
    assert {rule["alert"] for _, rule in dashboards.rules(engines.ROOT) if "alert" in rule} == set(
        NAMES.split()
    )


def test_the_specification_s_expressions_are_kept() -> None:
    spec = {
        rule["alert"]: rule["expr"] for _, rule in dashboards.rules(engines.ROOT) if "alert" in rule
    }
    assert spec["SttFallbackFailureSpike"] == 'rate(stt_fallback_total{result="failed"}[5m]) > 0.5'
    assert spec["SttGpuSaturated"].startswith("avg_over_time(stt_gpu_utilization_pct[10m]) > 90\n")
    # Of each namespace; where there is none it is the same.
    assert (
        spec["SttIngress5xx"]
        .replace(" by (namespace) ", "")
        .startswith(
            'sum(rate(http_requests_total{status=~"5..", app="stt-primary"}[5m])) > 1\nor\n'
        )
    )


def test_the_three_objectives_have_the_same_arms() -> None:
    """So that what the unit tests hold of one of them holds of all."""
    budgets = {
        "SttAvailabilityBudgetBurn": ("availability_errors", "0.001"),
        "SttLatencyBudgetBurn": ("slow_answers", "0.05"),
        "SttFallbackBudgetBurn": ("fallback_failures", "0.005"),
    }
    arms: dict[str, list[str]] = {}
    for _, rule in dashboards.rules(engines.ROOT):
        if rule.get("alert") in budgets:
            record, budget = budgets[rule["alert"]]
            form = ""
            for arm in rule["expr"].split("\nor\n"):
                burns, enough = re.split(r"\n  and (?!stt:\w+:ratio)", arm, maxsplit=1)
                assert record in burns and f"* {budget}" in burns
                form += burns.replace(record, "bad").replace(f"* {budget}", "* budget") + "\n"
                # Ten in the window that the arm is about.
                (window,) = re.findall(r":ratio_rate(\w+)[^\n]*\n  and", burns)
                counted = re.findall(r"\[(\w+)\]|:rate(\w+) ", enough)
                assert {one or other for one, other in counted} == {window}
                assert re.search(r">= 10\n\)\s*$", enough)
            arms.setdefault(rule["labels"]["severity"], []).append(form)
    assert {severity: len(forms) for severity, forms in arms.items()} == {"page": 3, "ticket": 3}
    assert all(len(set(forms)) == 1 for forms in arms.values())


def test_shorter_rules_differ_in_their_times_alone(tmp_path: Path) -> None:
    source = engines.ROOT / RULES
    written = shorten(source, tmp_path)
    assert [file.name for file in written] == sorted(file.name for file in source.glob("*.yml"))
    times = re.compile(r"(?<=[\[:])\d+[smhdw]|(?<=offset )\d+[smhdw]")
    for file in written:
        groups = yaml.safe_load(file.read_text())["groups"]
        before = yaml.safe_load((source / file.name).read_text())["groups"]
        for old, new in zip(before, groups, strict=True):
            assert "interval" not in new
            for was, rule in zip(old["rules"], new["rules"], strict=True):
                shown = times.findall(rule["expr"])
                assert all(FAST.least <= seconds(each) <= FAST.most for each in shown)
                assert times.sub("", rule["expr"]) == times.sub("", was["expr"])
                assert seconds(rule.get("for", "3s")) <= FAST.most
                assert {**was, "expr": "", "for": ""} == {**rule, "expr": "", "for": ""}


PRIMARY = {"job": "stt-primary", "instance": "p1"}


def heard(folder: Path, alerts: list[dict[str, str]]) -> set[tuple[str, str]]:
    """The alerts that somebody is told of, of these that fire at once, and who is."""

    async def told_of() -> set[tuple[str, str]]:
        async with Alertmanager(folder) as alertmanager:
            await alertmanager.tell(alerts)

            async def quiet() -> list[dict[str, Any]]:
                found = await alertmanager.alerts()
                known = [one for one in found if one["status"]["state"] != "unprocessed"]
                return known if len(known) == len(alerts) else []

            found = await alertmanager.until("it knows all of them", quiet)
            return {
                (one["labels"]["alertname"], one["receivers"][0]["name"])
                for one in found
                if not one["status"]["inhibitedBy"]
            }

    return asyncio.run(told_of())


def test_a_cause_silences_what_it_brings_about(tmp_path: Path) -> None:
    alerts = [
        {"alertname": "SttTierDown", "severity": "page", "job": "stt-fallback"},
        {"alertname": "SttBreakerOpen", "severity": "page", **PRIMARY},
        {"alertname": "SttFallbackFailureSpike", "severity": "page", **PRIMARY},
        {"alertname": "SttGpuSaturated", "severity": "ticket", "job": "stt-fallback"},
        {"alertname": "SttLatencyBudgetBurn", "severity": "page", "job": "stt-primary"},
        {"alertname": "SttLatencyBudgetBurn", "severity": "ticket", "job": "stt-primary"},
        {"alertname": "SttKeyNearRateLimit", "severity": "ticket", **PRIMARY},
    ]
    assert heard(tmp_path, alerts) == {
        ("SttTierDown", "page"),
        ("SttLatencyBudgetBurn", "page"),
        ("SttKeyNearRateLimit", "ticket"),
    }


def test_an_installation_silences_nothing_of_another_one(tmp_path: Path) -> None:
    one, two = {"namespace": "one"}, {"namespace": "two"}
    alerts = [
        {"alertname": "SttTierDown", "severity": "page", "job": "stt-fallback", **one},
        {"alertname": "SttTierDown", "severity": "page", "job": "stt-primary", **one},
        {"alertname": "SttBreakerOpen", "severity": "page", **PRIMARY, **two},
        {"alertname": "SttLatencyBudgetBurn", "severity": "page", "job": "stt-primary", **one},
        {"alertname": "SttLatencyBudgetBurn", "severity": "ticket", "job": "stt-primary", **two},
    ]
    assert heard(tmp_path, alerts) == {
        ("SttTierDown", "page"),
        ("SttBreakerOpen", "page"),
        ("SttLatencyBudgetBurn", "ticket"),
    }


def test_what_callers_see_is_told_though_something_cannot_be_scraped(tmp_path: Path) -> None:
    alerts = [
        {"alertname": "SttTierDown", "severity": "page", "job": "stt-fallback"},
        {"alertname": "SttTierDown", "severity": "page", "job": "stt-primary"},
        {"alertname": "SttIngress5xx", "severity": "page", "job": "stt-primary"},
    ]
    assert ("SttIngress5xx", "page") in heard(tmp_path / "both", alerts)
    alerts[1:] = [{"alertname": "SttAvailabilityBudgetBurn", "severity": "page", **PRIMARY}]
    assert ("SttAvailabilityBudgetBurn", "page") in heard(tmp_path / "fallback", alerts)


def test_the_dead_man_s_service_alone_hears_the_watchdog_and_hears_it_again_and_again(
    tmp_path: Path,
) -> None:
    always = {"alertname": "Watchdog", "severity": "none"}
    down = {"alertname": "SttTierDown", "severity": "page", "job": "envoy", "namespace": "one"}

    async def heard_of() -> list[tuple[str, str]]:
        async with inbox() as told, Alertmanager(tmp_path, told.addresses) as alertmanager:
            await alertmanager.tell([always, down])
            await alertmanager.until(
                "it hears", lambda: told.has("page", "firing: SttTierDown in one")
            )
            assert [await told.again("watchdog", 60) for _ in range(3)] == [True] * 3
            return list(told.messages)

    messages = asyncio.run(heard_of())
    assert {to for to, text in messages if "Watchdog" in text} == {"watchdog"}
    assert {to for to, text in messages if "SttTierDown" in text} == {"page"}


def test_the_dead_man_s_service_is_off_until_its_address_is_filled_in() -> None:
    receivers = yaml.safe_load((engines.ROOT / ROUTES).read_text())["receivers"]
    assert {"name": "watchdog"} in receivers


def test_one_primary_s_breaker_does_not_silence_the_failures_of_another(tmp_path: Path) -> None:
    other = {"job": "stt-primary", "instance": "p2"}
    alerts = [
        {"alertname": "SttBreakerOpen", "severity": "page", **PRIMARY},
        {"alertname": "SttFallbackFailureSpike", "severity": "page", **other},
    ]
    assert ("SttFallbackFailureSpike", "page") in heard(tmp_path, alerts)


def test_an_alert_comes_and_goes_in_a_real_prometheus(tmp_path: Path) -> None:
    broken = asyncio.Event()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        status = b"500 Broken" if broken.is_set() else b"200 OK"
        writer.write(b"HTTP/1.1 %s\r\nConnection: close\r\nContent-Length: 0\r\n\r\n" % status)
        await writer.drain()

    async def watched() -> None:
        async with serving(handle) as server:
            there = [f"127.0.0.1:{server.port}"]
            targets = {"stt-primary": there, "stt-fallback": there}
            async with Prometheus(tmp_path, targets) as prometheus:
                there = [one["labels"]["alertname"] for one in await prometheus.alerts()]
                assert there == ["Watchdog"]
                broken.set()
                firing = await prometheus.alert(
                    "SttTierDown", "firing", severity="page", job="stt-primary"
                )
                assert firing["annotations"]["summary"] == "No stt-primary can be scraped"
                broken.clear()
                await prometheus.alert("SttTierDown", "resolved")
                states = await prometheus.went_through("SttTierDown", severity="page")
                assert states == {"pending", "firing"}

    asyncio.run(watched())


def test_the_page_s_table_has_every_alert_and_who_hears_of_it() -> None:
    heard: dict[str, set[str]] = {}
    for _, rule in dashboards.rules(engines.ROOT):
        if "alert" in rule:
            heard.setdefault(rule["alert"], set()).add(rule["labels"]["severity"])
    shown = {codes(row[0])[0]: set(row[1].split(", ")) for row in rows(PAGE, "### Alerts")}
    assert shown == heard


def test_the_page_leads_to_a_configuration_that_both_servers_read(tmp_path: Path) -> None:
    for line in (
        page_command("Monitoring", "cp -r deploy/prometheus/prometheus.yml"),
        page_command("Monitoring", "mkdir -p /etc/prometheus/targets"),
        page_command("Monitoring", "cp deploy/prometheus/one-box/stt.yml"),
        page_command("Monitoring", "cp deploy/alertmanager/alertmanager.yml"),
        page_command("Monitoring", "promtool check config"),
        page_command("Monitoring", "amtool check-config"),
    ):
        here = line.replace("/etc/prometheus", str(tmp_path))
        done = subprocess.run(
            ["/bin/bash", "-c", here], cwd=engines.ROOT, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
