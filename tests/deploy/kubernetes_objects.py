"""What the chart promises, whatever the values, beyond what a schema can see."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from stt_cascade.config import ConfigError, FallbackConfig, PrimaryConfig, TierConfig
from stt_cascade.config_file import load

# As YAML has it.
Object = dict[str, Any]

TIERS: dict[str, type[TierConfig]] = {"primary": PrimaryConfig, "fallback": FallbackConfig}
# A pod that says nothing for less than this may be busy.
PATIENCE_S = 60
# Until every node's proxy, and every load balancer, knows that a pod is going.
LEAST_REMOVAL_S = 5


def promises(things: list[Object]) -> Iterator[str]:
    """A line for each that is not kept by what was rendered together."""
    workloads = [each for each in things if each["kind"] in ("Deployment", "Rollout")]
    for workload in workloads:
        name = f"{workload['kind']} {workload['metadata']['name']}"
        for line in (
            *_restricted(workload),
            *_references(workload, things),
            *_disruption(workload, things),
            *_isolated(workload, things),
            *_envoy(workload, things),
        ):
            yield f"{name}: {line}"
        if tier := tier_of(workload):
            try:
                config = settings(tier, things)
            except ConfigError as error:
                yield f"{name}: does not start: {error}"
                continue
            for line in (*_settings(config, things), *_tier(workload, config)):
                yield f"{name}: {line}"
    for thing in things:
        for line in (*_selects(thing, workloads), *_scaling(thing, workloads)):
            yield f"{thing['kind']} {thing['metadata']['name']}: {line}"


def tier_of(workload: Object) -> str | None:
    """`primary` or `fallback`; None: Envoy."""
    name = str(pod(workload)["metadata"]["labels"]["app.kubernetes.io/name"])
    tier = name.removeprefix("stt-")
    return tier if tier in TIERS else None


def pod(workload: Object) -> Object:
    """Its pod template."""
    template: Object = workload["spec"]["template"]
    return template


def env_file(tier: str, things: list[Object]) -> str:
    """The text of the tier's .env file."""
    (text,) = (
        each["data"][f"stt_{tier}.env"]
        for each in things
        if each["kind"] == "ConfigMap" and f"stt_{tier}.env" in each["data"]
    )
    return str(text)


def settings(tier: str, things: list[Object]) -> TierConfig:
    """The tier's settings, read as it will.

    Raises:
        ConfigError: it would not start.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, f"stt_{tier}.env")
        file.write_text(env_file(tier, things))
        return load(TIERS[tier], file)


def _settings(config: TierConfig, things: list[Object]) -> Iterator[str]:
    if config.api_keys or config.metrics_keys or getattr(config, "fallback_api_key", None):
        yield "publishes a key in its ConfigMap"
    if not config.api_keys_file:
        yield "lets everybody in: no API_KEYS_FILE"
    if isinstance(config, PrimaryConfig):
        address = urlsplit(config.fallback_url)
        services = {
            each["metadata"]["name"]: each["spec"]["ports"]
            for each in things
            if each["kind"] == "Service"
        }
        if "." not in str(address.hostname) and address.port not in [
            port["port"] for port in services.get(address.hostname, ())
        ]:
            yield f"asks for a fallback at {config.fallback_url}, which no Service is"


def _tier(workload: Object, config: TierConfig) -> Iterator[str]:
    spec = pod(workload)["spec"]
    (container,) = (each for each in spec["containers"] if each["name"].endswith(config.tier))
    wanted = {"startup": "/v1/health", "readiness": "/v1/ready", "liveness": "/v1/health"}
    for kind, path in wanted.items():
        probe = container.get(f"{kind}Probe")
        if not probe or probe["httpGet"]["path"] != path:
            yield f"its {kind} probe does not ask {path}"
        elif (
            kind != "readiness" and probe["periodSeconds"] * probe["failureThreshold"] < PATIENCE_S
        ):
            yield f"its {kind} probe kills in less than {PATIENCE_S} s"
    removal = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    if removal < LEAST_REMOVAL_S:
        yield f"stops {removal} s after it was told to: still in somebody's list of endpoints"
    if spec["terminationGracePeriodSeconds"] <= removal + config.drain_timeout_s:
        yield "is killed before preStop and DRAIN_TIMEOUT_S are over"
    for mount in container["volumeMounts"]:
        if "subPath" in mount:
            yield f"mounts a single file at {mount['mountPath']}: it would never change"
    if _takes_a_gpu(container):
        if spec.get("nodeSelector", {}).get("nvidia.com/gpu.present") != "true":
            yield "needs a GPU and may be put on a node without one"
        if "nvidia.com/gpu" not in [each.get("key") for each in spec.get("tolerations", ())]:
            yield "needs a GPU and does not tolerate the taint of the nodes that have one"
    if _takes_a_gpu(container) != (config.device == "cuda"):
        yield "DEVICE is not what the pod gets"


def _takes_a_gpu(container: Object) -> bool:
    return bool(container["resources"].get("limits", {}).get("nvidia.com/gpu"))


def _restricted(workload: Object) -> Iterator[str]:
    """As the Pod Security Standard `restricted`, and with a read-only root."""
    spec = pod(workload)["spec"]
    whole = spec.get("securityContext", {})
    if not whole.get("runAsNonRoot") or not whole.get("runAsUser"):
        yield "may run as root"
    if whole.get("seccompProfile", {}).get("type") != "RuntimeDefault":
        yield "has no filter of system calls"
    if spec.get("automountServiceAccountToken") is not False:
        yield "has a token of the cluster's API"
    for container in (*spec.get("initContainers", ()), *spec["containers"]):
        own = container.get("securityContext", {})
        if own.get("allowPrivilegeEscalation") is not False:
            yield f"{container['name']} may gain privileges"
        if not own.get("readOnlyRootFilesystem"):
            yield f"{container['name']} may write to its image"
        if own.get("capabilities", {}).get("drop") != ["ALL"]:
            yield f"{container['name']} keeps capabilities"
        if "memory" not in container.get("resources", {}).get("limits", {}):
            yield f"{container['name']} may take all of the node's memory"


def _references(workload: Object, things: list[Object]) -> Iterator[str]:
    """ConfigMaps and analyses are the chart's own; Secrets and claims may be the user's."""
    there = {(each["kind"], each["metadata"]["name"]) for each in things}
    for volume in pod(workload)["spec"]["volumes"]:
        name = volume.get("configMap", {}).get("name")
        if name and ("ConfigMap", name) not in there:
            yield f"mounts the ConfigMap {name}, which is not there"
    canary = workload["spec"]["strategy"].get("canary")
    if canary:
        analyses = [
            canary["analysis"],
            *(s["analysis"] for s in canary["steps"] if "analysis" in s),
        ]
        for analysis in analyses:
            for template in analysis["templates"]:
                if ("AnalysisTemplate", template["templateName"]) not in there:
                    yield f"is judged by {template['templateName']}, which is not there"


def _replicas(workload: Object, things: list[Object]) -> int:
    for each in things:
        if each["kind"] == "ScaledObject":
            target = each["spec"]["scaleTargetRef"]
            if (target["kind"], target["name"]) == (workload["kind"], workload["metadata"]["name"]):
                return int(each["spec"]["minReplicaCount"])
    return int(workload["spec"].get("replicas", 1))


def _disruption(workload: Object, things: list[Object]) -> Iterator[str]:
    labels = pod(workload)["metadata"]["labels"]
    budgets = [
        each
        for each in things
        if each["kind"] == "PodDisruptionBudget"
        and each["spec"]["selector"]["matchLabels"].items() <= labels.items()
    ]
    if _replicas(workload, things) < 2 and budgets:
        yield "has one pod and a disruption budget: its node can't be drained"
    if _replicas(workload, things) >= 2 and len(budgets) != 1:
        yield f"has {len(budgets)} disruption budgets"


def _isolated(workload: Object, things: list[Object]) -> Iterator[str]:
    labels = pod(workload)["metadata"]["labels"]
    policies = [
        each["spec"]
        for each in things
        if each["kind"] == "NetworkPolicy"
        and each["spec"]["podSelector"].get("matchLabels", {}).items() <= labels.items()
    ]
    if not policies:
        yield "is reached by everybody: no NetworkPolicy selects it"
    for policy in policies:
        if set(policy["policyTypes"]) != {"Ingress", "Egress"}:
            yield "its NetworkPolicy leaves a direction open"
        for rule in policy["ingress"]:
            if not rule.get("ports") or not all(map(_is_somebody, rule.get("from") or [{}])):
                yield "its NetworkPolicy lets everybody in"


def _is_somebody(peer: Object) -> bool:
    """Whether it selects by an address or a label; an empty selector takes all."""
    return "ipBlock" in peer or any(
        selector.get("matchLabels") or selector.get("matchExpressions")
        for selector in peer.values()
    )


def _envoy(workload: Object, things: list[Object]) -> Iterator[str]:
    """Whatever file Envoy's configuration names is there, and so is the memory."""
    spec = pod(workload)["spec"]
    data = {e["metadata"]["name"]: e["data"] for e in things if e["kind"] == "ConfigMap"}
    mapped = {e["name"]: e["configMap"]["name"] for e in spec["volumes"] if "configMap" in e}
    for container in (*spec.get("initContainers", ()), *spec["containers"]):
        if container["name"] == "envoy":
            mounts = {each["mountPath"]: each for each in container["volumeMounts"]}
            texts = [*container["command"]]
            for mount in mounts.values():
                if mount["name"] in mapped:
                    texts.append(data[mapped[mount["name"]]].get(mount["subPath"], ""))
            for path in sorted(set(re.findall(r"/etc/envoy/[\w.-]+", " ".join(texts)))):
                if path not in mounts:
                    yield f"its Envoy reads {path}, which is not mounted"
            heaps = re.findall(r"max_heap_size_bytes: (\d+)", " ".join(texts))
            limit = container["resources"]["limits"]["memory"]
            if any(int(heap) >= _bytes(limit) for heap in heaps):
                yield f"its Envoy is killed at {limit}, before it sheds load by itself"


def _bytes(quantity: str) -> int:
    number, unit = quantity[:-2], quantity[-2:]
    return int(number) << 10 * (["Ki", "Mi", "Gi"].index(unit) + 1)


def _selects(thing: Object, workloads: list[Object]) -> Iterator[str]:
    selector = {
        "Service": lambda: thing["spec"]["selector"],
        "Deployment": lambda: thing["spec"]["selector"]["matchLabels"],
        "Rollout": lambda: thing["spec"]["selector"]["matchLabels"],
        "PodDisruptionBudget": lambda: thing["spec"]["selector"]["matchLabels"],
        "NetworkPolicy": lambda: thing["spec"]["podSelector"]["matchLabels"],
    }.get(thing["kind"])
    if selector:
        found = [
            each
            for each in workloads
            if selector().items() <= pod(each)["metadata"]["labels"].items()
        ]
        if len(found) != 1:
            yield f"selects the pods of {len(found)} workloads"


def _scaling(thing: Object, workloads: list[Object]) -> Iterator[str]:
    if thing["kind"] != "ScaledObject":
        return
    target = thing["spec"]["scaleTargetRef"]
    known = {(each["apiVersion"], each["kind"], each["metadata"]["name"]) for each in workloads}
    if (target["apiVersion"], target["kind"], target["name"]) not in known:
        yield f"scales {target['kind']} {target['name']}, which is not there"
    if not thing["spec"].get("fallback", {}).get("replicas"):
        yield "does not say how many pods there should be without metrics"
    for trigger in thing["spec"]["triggers"]:
        asks = trigger["metadata"]
        if not asks["query"].startswith("sum("):
            yield f"{trigger['name']}: more than one series is an error to KEDA"
        if asks.get("ignoreNullValues") != "false":
            yield f"{trigger['name']}: takes a lost metric for an empty queue"
