"""The chart and the manifests rendered from it, read by Helm and by the schemas of its objects.

`python -m deploy.kubernetes` (`make manifests`) writes what is made from something else: the
manifests, from the chart; the settings in the chart's schema, from the settings themselves.
"""

from __future__ import annotations

import copy
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import yaml

from deploy import engines, kubernetes_queries, kubernetes_settings
from deploy.kubernetes_objects import Object, promises
from deploy.kubernetes_queries import queries

CHART = Path("deploy/helm/stt-cascade")
SCHEMA = CHART / "values.schema.json"
RULES = Path("deploy/prometheus/rules")
CRDS = Path(__file__).with_name("crds.mjs")

# Of helm's; values files are the chart's.
Options = tuple[str, ...]

GPU: Options = ("--values", "values-gpu.yaml")
EXTRAS = ("keda", "rollouts", "envoy", "mtls", "monitors")
KEYS = (
    *("--set", "primary.keys.create=true,primary.keys.api={one,two},primary.keys.fallback=three"),
    *("--set", "fallback.keys.create=true,fallback.keys.api={three}"),
)
GUARDED = (
    *("--set", "primary.keys.guardMetrics=true,fallback.keys.guardMetrics=true"),
    *("--set", "primary.keys.metrics={four},fallback.keys.metrics={four}"),
)
# An alert that others bring, too, so the chart only if told.
WATCHDOG = "monitors.watchdog=true"
RUNBOOKS = "https://git.example.com/stt/docs/runbooks/"
VOLUME = "registry.example.com/models@sha256:" + 64 * "0"

# What of the chart's is rendered into deploy/kubernetes/.
MANIFESTS: dict[str, Options] = {"stt-cpu.yaml": (), "stt-gpu.yaml": GPU}
# Each is rendered, and everything in it checked.
CASES: dict[str, Options] = {
    "values.yaml": (),
    "values-gpu.yaml": GPU,
    **{extra: ("--set", f"{extra}.enabled=true") for extra in EXTRAS},
    "all extras": (*GPU, "--set", ",".join(f"{extra}.enabled=true" for extra in EXTRAS)),
    "keys": KEYS,
    "guarded metrics": (
        *(*KEYS, *GUARDED, "--set", "monitors.enabled=true"),
        *("--set", "monitors.credentials.name=stt-scrape,monitors.credentials.key=key"),
    ),
    "watchdog": ("--set", f"monitors.enabled=true,{WATCHDOG},monitors.runbooks={RUNBOOKS}"),
    "one pod": ("--set", "primary.replicas=1,fallback.replicas=1"),
    "claim": ("--set", "primary.model.source=claim,primary.model.claim=models"),
    "pull into a claim": ("--set", "primary.model.claim=models"),
    "image volume": ("--set", f"primary.model.source=image,primary.model.image={VOLUME}"),
    "unverified": (*GPU, "--set", "primary.model.verify=false,primary.model.name=our-own"),
    "fallback elsewhere": (
        *("--set", "fallback.enabled=false,primary.fallbackUrl=https://fallback.example.com"),
        *("--set", "monitors.enabled=true,keda.enabled=true"),
        *("--set-json", 'networkPolicy.egress=[{"ports":[{"port":443}]}]'),
    ),
    "all the pod's values": (
        *("--set", "imagePullSecrets={registry},primary.priorityClassName=high"),
        *("--set", "primary.runtimeClassName=nvidia,primary.nodeSelector.disk=ssd"),
        *("--set", "primary.tolerations[0].key=speech,primary.tolerations[0].operator=Exists"),
        *("--set", "primary.image.digest=sha256:" + 64 * "0"),
        *("--set-json", 'primary.affinity={"nodeAffinity":{}}'),
        *("--set-json", 'networkPolicy.egress=[{"ports":[{"port":4318}]}]'),
        *("--set", "keda.enabled=true,keda.authentication=stt-prometheus"),
    ),
}
# Kubernetes' versions that the objects must be right for; the oldest is the chart's kubeVersion.
NEWEST, OLDEST = "1.35", "1.30"
FOR_THE_OLDEST = ("values.yaml", "values-gpu.yaml")

# Values that must not be installed, and a word of the reason.
REFUSED: dict[str, str] = {
    "primry.replicas=2": "primry",
    "primary.replica=3": "replica",
    "primary.replicas=0": "replicas",
    "primary.gpu=1": "gpu",
    "primary.settings.MAX_CONCURENCY=3": "MAX_CONCURENCY",
    "primary.settings.MAX_CONCURRENCY=65": "MAX_CONCURRENCY",
    "primary.settings.COMPUTE_TYPE=int9": "COMPUTE_TYPE",
    "primary.settings.API_KEYS=secret": "API_KEYS",
    "primary.settings.FALLBACK_API_KEY=secret": "FALLBACK_API_KEY",
    "primary.settings.DEVICE=cuda": "DEVICE",
    "fallback.settings.CONF_LOGPROB_THRESHOLD=0.5": "CONF_LOGPROB_THRESHOLD",
    "primary.keys.secret=": "secret",
    "primary.keys.create=true": "api",
    "primary.keys.create=true,primary.keys.api={one}": "fallback",
    "primary.keys.create=true,primary.keys.api={a b},primary.keys.fallback=x": "api",
    "primary.model.source=s3": "source",
    "primary.model.source=claim": "claim",
    "primary.model.source=hostPath": "hostPath",
    "primary.model.source=image,primary.model.image=models:latest": "image",
    "primary.image.digest=sha256:123": "digest",
    "primary.resources.limits.memory=lots": "memory",
    "primary.surge=0": "update could not begin",
    "fallback.enabled=false": "fallbackUrl",
    "primary.fallbackUrl=http://10.0.0.1:8082": "networkPolicy.egress",
    "fallback.settings.OTLP_ENDPOINT=http://otel-collector:4318": "networkPolicy.egress",
    "monitors.enabled=true,primary.keys.guardMetrics=true": "monitors.credentials",
    "primary.settings.MAX_CONCURRENCY=64": "RATE_LIMIT_BURST",
    "monitors.runbooks=docs/runbooks/": "runbooks",
    "keda.enabled=true,keda.primary.max=100": "RATE_LIMIT_BURST",
    "keda.primary.min=7": "max is less than min",
    "keda.primary.replicasWithoutMetrics=7": "not between min and max",
    "rollouts.enabled=true,primary.replicas=1": "at least two",
    "mtls.enabled=true,networkPolicy.enabled=false": "at port 8082",
    "envoy.enabled=true,primary.settings.REQUEST_TIMEOUT_S=65": "gives up after 65 s",
    "mtls.enabled=true,fallback.settings.REQUEST_TIMEOUT_S=90": "gives up after 65 s",
    "rollouts.steps[0].weight=20,rollouts.steps[0].minutes=5": "minutes",
    "networkPolicy.clients=null": "clients",
    "envoy.service.type=ExternalName": "type",
    "prefix=Stt": "prefix",
    "user=0": "user",
}


class Refused(Exception):
    """Helm does not render the chart with these values; the message is Helm's."""


def _run(*command: str | Path, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=300)


def render(root: Path, *options: str) -> str:
    """The chart's manifests, as text.

    Raises:
        Refused: a template or the schema does not take the values.
        engines.MissingEngine: Helm is not installed.
    """
    helm, chart = engines.path("helm"), root / CHART
    options = tuple(
        str(chart / option) if option.startswith("values-") else option for option in options
    )
    done = _run(helm, "template", "stt", chart, "--namespace", "stt", *options)
    if done.returncode:
        # Besides, it tells of each link in the chart.
        lines = (line for line in done.stderr.splitlines() if not line.startswith("level=INFO"))
        raise Refused(" ".join(" ".join(lines).split()))
    return done.stdout


def objects(manifests: str) -> list[Object]:
    """Those in it."""
    return [each for each in yaml.safe_load_all(manifests) if each]


def check(
    root: Path, cases: Mapping[str, Options] = CASES, refused: Mapping[str, str] = REFUSED
) -> Iterator[str]:
    """A line a finding."""
    yield from _lint(root)
    rendered: dict[str, list[Object]] = {}
    for name, options in cases.items():
        try:
            rendered[name] = objects(render(root, *options))
        except Refused as error:
            yield f"{CHART}: {name}: {error}"
    for name, found in rendered.items():
        for line in promises(found):
            yield f"{CHART}: {name}: {line}"
        yield from _rules(root, name, found, watchdog=WATCHDOG in ",".join(cases[name]))
    yield from _schemas(rendered)
    asked = {query: name for found in rendered.values() for name, query in queries(found).items()}
    for line in kubernetes_queries.check(asked, root / RULES):
        yield f"{CHART}: {line}"
    for values, word in refused.items():
        try:
            render(root, "--set", values)
            yield f"{SCHEMA}: {values} is taken, and must be refused"
        except Refused as error:
            if word not in str(error):
                yield f"{SCHEMA}: {values} is refused without a word of {word!r}: {error}"
    yield from _stale(root)


def _lint(root: Path) -> Iterator[str]:
    for options in ((), ("--values", str(root / CHART / "values-gpu.yaml"))):
        done = _run(engines.path("helm"), "lint", "--strict", *options, root / CHART)
        if done.returncode:
            yield f"{CHART}: helm lint: {' '.join((done.stdout + done.stderr).split())}"


# Not asked where the fallback belongs to another release.
NO_FALLBACK = '\n          or absent_over_time(up{job="stt-fallback"}[1d])'


def _rules(root: Path, name: str, found: list[Object], *, watchdog: bool) -> Iterator[str]:
    """Whoever monitors has all of Prometheus' own rules, the watchdog if wanted, and no others."""
    groups = copy.deepcopy(
        [g for each in found if each["kind"] == "PrometheusRule" for g in each["spec"]["groups"]]
    )
    for group in groups:
        for rule in group["rules"]:
            rule.get("annotations", {}).pop("runbook_url", None)
    scraped = [
        each["metadata"]["labels"][each["spec"]["jobLabel"]]
        for each in found
        if each["kind"] == "ServiceMonitor"
    ]
    if not scraped:
        return
    files = sorted((root / RULES).glob("*.yml"))
    rules = [file.read_text() for file in files if watchdog or file.stem != "watchdog"]
    if "stt-fallback" not in scraped:
        rules = [text.replace(NO_FALLBACK, "") for text in rules]
    if groups != [g for text in rules for g in yaml.safe_load(text)["groups"]]:
        yield f"{CHART}: {name}: the rules are not those of {RULES}"


def is_custom(thing: Object) -> bool:
    """Whether it is none of Kubernetes' own."""
    group = str(thing.get("apiVersion", "")).split("/")[0]
    return "." in group and not group.endswith(".k8s.io")


def _schemas(rendered: dict[str, list[Object]]) -> Iterator[str]:
    own: dict[str, dict[str, Object]] = {NEWEST: {}, OLDEST: {}}
    custom: dict[str, Object] = {}
    for name, found in rendered.items():
        for thing in found:
            text = json.dumps(thing, sort_keys=True)
            if is_custom(thing):
                custom[text] = thing
                continue
            own[NEWEST][text] = thing
            if name in FOR_THE_OLDEST:
                own[OLDEST][text] = thing
    for version, things in own.items():
        yield from _own_schemas(version, list(things.values()))
    yield from _custom_schemas(list(custom.values()))


def _own_schemas(version: str, things: list[Object]) -> Iterator[str]:
    """kubernetes-validate only warns of a kind that it does not know; here that is a finding."""
    if not things:
        return
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "rendered.yaml")
        file.write_text(yaml.safe_dump_all(things))
        validate = (engines.path("kubernetes-validate"), "--strict", "--quiet")
        done = _run(*validate, "--kubernetes-version", version, file)
    for line in (done.stdout + done.stderr).splitlines():
        yield f"{CHART}: {line.replace(str(file), 'rendered')}"
    if done.returncode and not done.stdout + done.stderr:
        yield f"{CHART}: kubernetes-validate ended with {done.returncode}"


def _custom_schemas(things: list[Object]) -> Iterator[str]:
    modules = engines.path("keda").parents[1]
    done = _run(engines.path("node"), CRDS, modules, stdin=json.dumps(things))
    for line in (done.stdout + done.stderr).splitlines():
        yield f"{CHART}: {line}"


def _stale(root: Path) -> Iterator[str]:
    try:
        for path, text in _made(root):
            if not (root / path).is_file() or (root / path).read_text() != text:
                yield f"{path}: is stale; `make manifests` writes it anew"
    except Refused as error:
        yield f"{CHART}: {error}"


def _made(root: Path) -> Iterator[tuple[Path, str]]:
    """The files that are made from something else, and what should be in them."""
    yield SCHEMA, kubernetes_settings.written_into((root / SCHEMA).read_text())
    for name, options in MANIFESTS.items():
        head = "# Rendered from deploy/helm/stt-cascade by `make manifests`; change it there.\n"
        yield Path("deploy/kubernetes", name), head + render(root, *options)


def main() -> None:
    """Write them."""
    try:
        # The schema first: Helm reads it.
        for path, text in _made(engines.ROOT):
            file = engines.ROOT / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
            sys.stdout.write(f"==> {path}\n")
    except (engines.MissingEngine, Refused) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
