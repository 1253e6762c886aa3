"""The checks of the chart find what is planted; its values do what they say."""

from __future__ import annotations

import shlex
import shutil
import subprocess
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy import engines
from deploy.kubernetes import (
    CASES,
    CHART,
    GPU,
    KEYS,
    REFUSED,
    RUNBOOKS,
    Refused,
    check,
    objects,
    render,
)
from deploy.kubernetes_objects import Object, env_file, pod, promises, settings
from pages import page_command, typed
from stt_cascade.config import ENVELOPE_BYTES

pytestmark = pytest.mark.engines

ALL = {"all extras": CASES["all extras"]}
ONE_POD = CASES["one pod"]


@pytest.fixture(autouse=True)
def _installed() -> None:
    needed = ("helm", "kubernetes-validate", "keda", "argo-rollouts", "promtool")
    if missing := set(needed) & engines.missing().keys():
        pytest.skip(f"{', '.join(sorted(missing))}: `make check-deploy` installs them")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A copy of what deploys, to plant faults in."""
    shutil.copytree(engines.ROOT / "deploy", tmp_path / "deploy", symlinks=True)
    return tmp_path


def plant(root: Path, file: str, right: str, wrong: str) -> None:
    path = root / CHART / file
    assert right in path.read_text()
    path.write_text(path.read_text().replace(right, wrong, 1))


# What a schema can't see: a file, what stands there, a fault, values that show it, the finding.
PROMISES = [
    ("_pod.tpl", "httpGet: {path: /v1/ready", "httpGet: {path: /v1/health", (), "readiness probe"),
    ("_pod.tpl", "failureThreshold: 8", "failureThreshold: 1", (), "kills in less than 60 s"),
    ("_pod.tpl", "10 | ceil", "-1 | ceil", (), "killed before preStop and DRAIN"),
    ("_pod.tpl", "readOnlyRootFilesystem: true", "readOnlyRootFilesystem: false", (), "write to"),
    ("_pod.tpl", "drop: [ALL]", "drop: [NET_RAW]", (), "keeps capabilities"),
    ("_pod.tpl", "runAsNonRoot: true", "runAsNonRoot: false", (), "may run as root"),
    ("_pod.tpl", "type: RuntimeDefault", "type: Unconfined", (), "no filter of system calls"),
    ("_pod.tpl", "limits: {memory: 1Gi}", "limits: {}", (), "all of the node's memory"),
    ("_pod.tpl", "mountPath: /secrets", "subPath: k, mountPath: /secrets", (), "a single file"),
    ("_pod.tpl", '"nvidia.com/gpu.present" "true"', '"a" "b"', GPU, "a node without one"),
    ("_pod.tpl", '"key" "nvidia.com/gpu"', '"key" "gpu"', GPU, "does not tolerate the taint"),
    ("_pod.tpl", "}}-settings}", "}}-setting}", (), "ConfigMap stt-primary-setting, which is not"),
    ("_helpers.tpl", 'ternary "cuda" "cpu"', 'ternary "cuda" "cuda"', (), "not what the pod gets"),
    ("_helpers.tpl", '"API_KEYS_FILE" "/secrets/api.keys"', '"VAD" true', (), "lets everybody in"),
    ("_helpers.tpl", '"API_KEYS_FILE" "/secrets/', '"API_KEYS" "', (), "publishes a key"),
    ("_helpers.tpl", '"CACHE_DIR"', '"CACHEDIR"', (), "did you mean CACHE_DIR?"),
    ("services.yaml", 'port: {{ include "stt.port" $ctx }}', "port: 80", (), "no Service is"),
    ("services.yaml", 'include "stt.selector" $ctx', '"app: stt"', (), "the pods of 0 workloads"),
    ("disruption.yaml", ".min) 2", ".min) 1", ONE_POD, "its node can't be drained"),
    ("disruption.yaml", ".min) 2", ".min) 3", (), "has 0 disruption budgets"),
    ("network.yaml", "[Ingress, Egress]", "[Ingress]", (), "leaves a direction open"),
    ("network.yaml", "app: {{ $.Values.prefix }}-primary", "", (), "lets everybody in"),
    ("scaling.yaml", '"sum(%s{%s})"', '"%s{%s}"', ALL["all extras"], "more than one series"),
    ("scaling.yaml", 'ignoreNullValues: "false"', "x: y", ALL["all extras"], "an empty queue"),
    ("scaling.yaml", "kind: Rollout", "kind: Deployment", ALL["all extras"], "not there"),
    (
        "envoy.yaml",
        '"callers.yaml"))',
        '"caller.yaml"))',
        ALL["all extras"],
        "reads /etc/envoy/callers",
    ),
    ("envoy.yaml", "Values.envoy.resources", "Values.mtls.resources", ALL["all extras"], "768Mi"),
    ("canary.yaml", "-traffic}]", "-trafic}]", ALL["all extras"], "stt-primary-trafic, which is"),
]


@pytest.mark.parametrize(("file", "right", "wrong", "values", "finding"), PROMISES)
def test_what_no_schema_sees_is_found(
    root: Path, file: str, right: str, wrong: str, values: tuple[str, ...], finding: str
) -> None:
    assert not list(promises(objects(render(root, *values))))
    plant(root, f"templates/{file}", right, wrong)
    assert finding in "\n".join(promises(objects(render(root, *values))))


# What the engines see: one for each of them.
SEEN = [
    ("Chart.yaml", "version: 0.1.0", "version: one", "helm lint"),
    ("templates/services.yaml", "{{- range", "{{- rnge", 'function "rnge" not defined'),
    ("templates/_pod.tpl", "periodSeconds: 3", "periodSecond: 3", "'periodSecond' was unexpected"),
    ("templates/scaling.yaml", "pollingInterval", "pollInterval", "/spec/pollInterval: no such"),
    ("templates/canary.yaml", "interval: 1m", "intervall: 1m", "/metrics/0/intervall: no such"),
    ("templates/canary.yaml", "- setWeight: {{", "- setWeight: x{{", "/setWeight: type"),
    ("templates/monitors.yaml", "port: http", "port: 1", "/spec/endpoints/0/port: type"),
    ("templates/canary.yaml", "(min_over_time", "((min_over_time", "guardrails p95-ratio"),
    ("templates/canary.yaml", "(stt:canary_p95_ratio", "(stt:canary_p95", "no rule records"),
    ("values.yaml", "audioSeconds: 20", 'audioSeconds: "20"', "audioSeconds"),
]


@pytest.mark.parametrize(("file", "right", "wrong", "finding"), SEEN)
def test_what_an_engine_sees_is_found(
    root: Path, file: str, right: str, wrong: str, finding: str
) -> None:
    plant(root, file, right, wrong)
    assert finding in "\n".join(check(root, ALL, {}))


def test_a_schema_that_lets_a_misspelt_value_pass_is_found(root: Path) -> None:
    plant(root, "values.schema.json", '"additionalProperties": false', '"title": "all"')
    (line,) = (each for each in check(root, {}, {"primry.replicas=2": "primry"}))
    assert "primry.replicas=2 is taken" in line


def test_manifests_that_are_not_the_charts_are_found(root: Path) -> None:
    plant(root, "values.yaml", "MAX_CONCURRENCY: 2", "MAX_CONCURRENCY: 3")
    (root / "deploy/kubernetes/stt-gpu.yaml").unlink()
    found = "\n".join(check(root, {}, {}))
    assert "stt-cpu.yaml: is stale" in found
    assert "stt-gpu.yaml: is stale" in found


def test_a_setting_that_the_chart_does_not_know_is_found(root: Path) -> None:
    plant(root, "values.schema.json", '"MAX_QUEUE": ', '"MAX_QUEU": ')
    assert any("values.schema.json: is stale" in line for line in check(root, {}, {}))


def test_what_is_in_the_repository_passes(root: Path) -> None:
    few = dict(list(REFUSED.items())[::8])
    assert not list(check(root, ALL, few))


# The values that a release has, against what becomes of them.


def rendered(*options: str) -> list[Object]:
    return objects(render(engines.ROOT, *options))


def one(things: list[Object], kind: str, name: str) -> Any:
    (found,) = (e for e in things if e["kind"] == kind and e["metadata"]["name"] == name)
    return found


def named_secrets(tier: str, things: list[Object]) -> set[str]:
    """The files that the tier's settings expect in its Secret."""
    lines = env_file(tier, things).splitlines()
    return {line.split("/secrets/")[1] for line in lines if "/secrets/" in line}


def test_the_page_shows_how_to_look_at_a_change() -> None:
    """`helm template` as docs/deploy.md has it."""
    words = shlex.split(page_command("Kubernetes", "helm template"))
    done = subprocess.run(
        (engines.path("helm"), *words[1:]),
        cwd=engines.ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "kind: ScaledObject" in done.stdout


def test_the_values_that_the_page_sets_exist() -> None:
    lines = [shlex.split(each.line) for each in typed("docs/deploy.md")]
    upgrades = [words for words in lines if words[:2] == ["helm", "upgrade"]]
    assert upgrades
    for words in upgrades:
        pairs = [pair for pair in pairwise(words) if pair[0].startswith("--")]
        set_here = [word for flag, value in pairs if flag == "--set" for word in (flag, value)]
        files = [
            value for flag, value in pairs if flag == "--values" and value.startswith("deploy")
        ]
        assert rendered(*set_here, *(w for file in files for w in ("--values", Path(file).name)))


def test_the_secrets_that_the_page_makes_have_the_files_that_the_settings_name(
    tmp_path: Path,
) -> None:
    if "kubectl" in engines.missing():
        pytest.skip("kubectl: `make check-deploy` installs it")
    for name in ("caller.key", "fallback.key"):
        (tmp_path / name).write_text("key\n")
    for tier in ("primary", "fallback"):
        begins = f"kubectl -n stt create secret generic stt-{tier}-keys"
        line = next(t.line for t in typed("docs/deploy.md") if t.line.startswith(begins))
        words = (*shlex.split(line)[1:], "--dry-run=client", "--output=yaml")
        done = subprocess.run(
            (engines.path("kubectl"), *words),
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert yaml.safe_load(done.stdout)["data"].keys() == named_secrets(tier, rendered())


def test_new_settings_roll_the_pods_and_new_keys_do_not() -> None:
    def pods(*options: str) -> dict[str, Object]:
        things = rendered(*KEYS, *options)
        return {
            tier: pod(one(things, "Deployment", f"stt-{tier}")) for tier in ("primary", "fallback")
        }

    before = pods()
    keys = pods("--set", "primary.keys.api={other}")
    settings = pods("--set", "primary.settings.MAX_CONCURRENCY=1")
    assert keys == before
    assert settings["primary"] != before["primary"]
    assert settings["fallback"] == before["fallback"]


def test_the_files_of_a_secret_are_what_the_settings_name() -> None:
    things = rendered(*CASES["guarded metrics"])
    for tier in ("primary", "fallback"):
        files = one(things, "Secret", f"stt-{tier}-keys")["stringData"].keys()
        assert files == named_secrets(tier, things)


def test_large_numbers_arrive_as_they_are() -> None:
    things = rendered("--set", "primary.settings.MAX_QUEUE=10000000")
    text = one(things, "ConfigMap", "stt-primary-settings")["data"]["stt_primary.env"]
    assert "MAX_QUEUE=10000000" in text.splitlines()


@pytest.mark.parametrize("tier", ["primary", "fallback"])
def test_the_chart_and_the_images_agree(tier: str) -> None:
    image = (engines.ROOT / f"docker/Dockerfile.{tier}").read_text()
    spec = pod(one(rendered(), "Deployment", f"stt-{tier}"))["spec"]
    (container,) = spec["containers"]
    user, group = spec["securityContext"]["runAsUser"], spec["securityContext"]["runAsGroup"]
    assert f"\nUSER {user}:{group}\n" in image
    assert f"\nEXPOSE {container['ports'][0]['containerPort']}\n" in image
    assert f"\nENV CONFIG_PATH={container['env'][0]['value']}\n" in image


def test_on_gpu_nodes_an_update_needs_no_spare_gpu() -> None:
    for name in ("stt-primary", "stt-fallback"):
        strategy = one(rendered(*GPU), "Deployment", name)["spec"]["strategy"]["rollingUpdate"]
        assert strategy == {"maxSurge": 0, "maxUnavailable": 1}


def test_nothing_leaves_the_cluster_once_the_model_is_there() -> None:
    for policy in (each for each in rendered(*GPU) if each["kind"] == "NetworkPolicy"):
        assert "0.0.0.0/0" not in str(policy["spec"]["egress"])


def test_a_release_without_keys_waits_for_its_secret_and_makes_none() -> None:
    assert not [each for each in rendered() if each["kind"] == "Secret"]


def test_a_key_that_the_fallback_does_not_know_is_refused() -> None:
    with pytest.raises(Refused, match="the fallback would refuse the primary"):
        render(engines.ROOT, *KEYS, "--set", "fallback.keys.api={four}")


def test_envoy_has_the_checked_file_and_asks_each_primary_by_its_own_address() -> None:
    things = rendered(*CASES["envoy"])
    text = one(things, "ConfigMap", "stt-envoy-settings")["data"]["envoy.yaml"]
    (service,) = (
        e for e in things if e["kind"] == "Service" and e["spec"].get("clusterIP") == "None"
    )
    name = service["metadata"]["name"]
    checked = (engines.ROOT / "deploy/envoy/envoy.yaml").read_text()
    assert text.replace(f"address: {name},", "address: stt-primary,").strip() == checked.strip()
    assert f"address: {name}," in text


def test_envoy_takes_what_the_primaries_take() -> None:
    for size, largest in (("16", 16842752), ("0.5", 589824), ("100", 104923136)):
        options = (*CASES["envoy"], "--set-json", f"primary.settings.MAX_UPLOAD_MB={size}")
        things = rendered(*options)
        text = one(things, "ConfigMap", "stt-envoy-settings")["data"]["envoy.yaml"]
        config = settings("primary", things)
        assert largest == config.upload_limit + ENVELOPE_BYTES
        assert f"request_body_buffer_limit: {largest}\n" in text
        assert f"range_match: {{start: {largest + 1}, " in text


@pytest.mark.parametrize(
    "values", ["MAX_CONCURRENCY=1", "MAX_CONCURRENCY=4", "MAX_QUEUE=0", "MAX_UPLOADS=7"]
)
def test_envoy_may_send_again_what_a_primary_that_stops_refuses(values: str) -> None:
    things = rendered(*CASES["envoy"], "--set", f"primary.settings.{values}")
    text = one(things, "ConfigMap", "stt-envoy-settings")["data"]["envoy.yaml"]
    held = settings("primary", things).upload_places
    assert f"min_retry_concurrency: {held}}}" in text


@pytest.mark.parametrize("file", ["envoy.yaml", "callers.yaml"])
def test_a_new_file_of_envoys_rolls_its_pods(root: Path, file: str) -> None:
    def pods() -> Object:
        things = objects(render(root, *CASES["envoy"]))
        return pod(one(things, "Deployment", "stt-envoy"))

    before = pods()
    path = root / "deploy/envoy" / file
    path.write_text(path.read_text() + "# another one\n")
    assert pods() != before


def test_each_job_that_the_rules_name_is_scraped_where_its_counters_are() -> None:
    things = rendered(*ALL["all extras"])
    found = {
        (
            service["metadata"]["labels"][monitor["spec"]["jobLabel"]],
            port["port"],
            endpoint["path"],
        )
        for monitor in things
        if monitor["kind"] == "ServiceMonitor"
        for endpoint in monitor["spec"]["endpoints"]
        for service in things
        if service["kind"] == "Service"
        and monitor["spec"]["selector"]["matchLabels"].items()
        <= service["metadata"]["labels"].items()
        for port in service["spec"]["ports"]
        if port["name"] == endpoint["port"]
    }
    assert found == {
        ("stt-primary", 8081, "/metrics"),
        ("stt-fallback", 8082, "/metrics"),
        ("envoy", 9901, "/metrics"),
    }


def test_with_mtls_a_primary_gets_to_the_fallback_by_tls_only() -> None:
    things = rendered(*CASES["mtls"])
    assert "FALLBACK_URL=https://stt-fallback:8443" in str(
        one(things, "ConfigMap", "stt-primary-settings")["data"]
    )
    policy = one(things, "NetworkPolicy", "stt-fallback")["spec"]
    primary = {"podSelector": {"matchLabels": {"app": "stt-primary"}}}
    (rule,) = (each for each in policy["ingress"] if primary in each["from"])
    assert [each["port"] for each in rule["ports"]] == [8443]


def test_whoever_is_got_up_has_the_address_of_each_alert_s_page() -> None:
    def pages(name: str) -> list[tuple[str, str | None]]:
        groups = [
            group
            for thing in rendered(*CASES[name])
            if thing["kind"] == "PrometheusRule"
            for group in thing["spec"]["groups"]
        ]
        said = [rule["annotations"] for g in groups for rule in g["rules"] if "alert" in rule]
        return [(each["runbook"], each.get("runbook_url")) for each in said]

    assert all(url == page.replace("docs/runbooks/", RUNBOOKS) for page, url in pages("watchdog"))
    assert {url for _, url in pages("monitors")} == {None}


def test_nobody_is_got_up_for_a_fallback_that_the_release_does_not_have() -> None:
    def tier_down(*options: str) -> str:
        things = rendered("--set", "monitors.enabled=true", *options)
        groups = one(things, "PrometheusRule", "stt-alerts")["spec"]["groups"]
        rules = [rule for group in groups for rule in group["rules"]]
        found = (r["expr"] for r in rules if r["alert"] == "SttTierDown" and "absent" in r["expr"])
        return " ".join(next(found).split())

    elsewhere = "primary.fallbackUrl=http://elsewhere:8082,networkPolicy.enabled=false"
    without = ("--set", f"fallback.enabled=false,{elsewhere}")
    absent = ' or absent_over_time(up{job="stt-fallback"}[1d])'
    assert tier_down().removesuffix(absent) == tier_down(*without) != tier_down()
