"""deploy/envoy/: what Envoy itself says of the files, and what has to fit the service."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import uvicorn
import yaml

from certificates import Authority
from deploy import engines
from stt_cascade.config import ENVELOPE_BYTES, MIB, PrimaryConfig
from stt_cascade.errors import Draining, Internal, NotReady
from stt_cascade.http.envelope import LAST_LOOK_S

FOLDER = "deploy/envoy"
INSTALLED = "/etc/envoy"
VALIDATE_S = 30
# What a line of the access log has to tell.
LOGGED = {
    *("%RESP(X-REQ-ID)%", "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%", "%RESPONSE_CODE%"),
    *("%BYTES_RECEIVED%", "%BYTES_SENT%", "%DURATION%", "%RESP(X-ERROR-TYPE)%"),
    *("%RESP(X-ERROR-MESSAGE)%", "%RESP(X-FALLBACK-ERROR)%", "%RESP(X-ROUTE-REASON)%"),
}
PATIENCE = ("request_headers_timeout", "request_timeout", "stream_idle_timeout")
# What no server has worked on, in Envoy's words and in ours.
UNPROCESSED = {"connect-failure", "retriable-headers"}
REFUSED = {Draining.type, NotReady.type}
BUDGET = 20
# A server that is busy, or whose fallback fails, is not to be left out; one that stops is, at once.
BROKEN = {Internal.type}
INGRESS_S = 65.0

Config = dict[str, Any]


def check(root: Path) -> Iterator[str]:
    """A line for each thing that is wrong with the files under `deploy/envoy/`."""
    folder = root / FOLDER
    read: dict[str, Config] = {}
    broken = False
    for file in sorted(folder.glob("*.yaml")):
        try:
            read[file.name] = yaml.safe_load(file.read_text())
        except yaml.YAMLError as error:
            broken = True
            yield f"{FOLDER}/{file.name}: no YAML: {' '.join(str(error).split())}"
    if broken:
        return
    for name, config in read.items():
        if "static_resources" not in config:
            continue  # secrets, which are looked at with what names them
        if problem := _said_by_envoy(folder, name):
            yield f"{FOLDER}/{name}: Envoy: {problem}"
            continue  # what it cannot read has no shape to rely on
        for finding in _findings(config, folder):
            yield f"{FOLDER}/{name}: {finding}"


def _said_by_envoy(folder: Path, file: str) -> str:
    """Its complaint about a file and the secrets that this names; empty: none."""
    with tempfile.TemporaryDirectory() as scratch:
        here = Path(scratch)
        named: set[str] = set()
        for source in folder.glob("*.yaml"):
            text = source.read_text().replace(INSTALLED, scratch)
            (here / source.name).write_text(text)
            named.update(_values(yaml.safe_load(text), "filename"))
        for path in map(Path, named):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(_anybody()[path.suffix == ".key"])
        config = yaml.safe_load((here / file).read_text())
        # It looks at secrets that come from a file when it runs, and at its own ones now.
        config["static_resources"]["secrets"] = [
            {key: value for key, value in secret.items() if key != "@type"}
            for path in sorted(
                {str(source["path"]) for source in _values(config, "path_config_source")}
            )
            if Path(path).is_file()
            for secret in yaml.safe_load(Path(path).read_text())["resources"]
        ]
        whole = here / "whole.json"
        whole.write_text(json.dumps(config))
        done = subprocess.run(
            [engines.path("envoy"), "--mode", "validate", "-c", whole, "--log-format", "%l %v"],
            capture_output=True,
            text=True,
            timeout=VALIDATE_S,
            check=False,
        )
    lines = [line for line in done.stderr.splitlines() if not line.startswith(("info", "debug"))]
    if done.returncode or lines:
        return " ".join(" ".join(lines or ["it refuses the file"]).replace(scratch, "").split())
    return ""


@cache
def _anybody() -> tuple[bytes, bytes]:
    """A certificate and its key."""
    with tempfile.TemporaryDirectory() as scratch:
        pair = Authority(Path(scratch)).issue("anybody")
        return pair.cert.read_bytes(), pair.key.read_bytes()


def _findings(config: Config, folder: Path) -> Iterator[str]:
    if config["admin"]["address"]["socket_address"]["address"] != "127.0.0.1":
        yield "the admin port can stop Envoy: it must listen on 127.0.0.1"
    for listener in config["static_resources"]["listeners"]:
        for chain in listener["filter_chains"]:
            for manager in _managers(chain):
                if manager["stat_prefix"] == "admin":
                    yield from _inside(manager)
                else:
                    yield from _tls(chain, config["node"]["id"], folder)
                    yield from _outside(manager)
    for cluster in config["static_resources"]["clusters"]:
        if cluster["name"] == "stt-primary":
            yield from _primaries(cluster)
        if cluster["name"] != "admin":
            yield from _connections(cluster)


def _managers(chain: Config) -> Iterator[Config]:
    for each in chain["filters"]:
        if each["name"] == "envoy.filters.network.http_connection_manager":
            yield each["typed_config"]


def _inside(manager: Config) -> Iterator[str]:
    for route in _values(manager, "routes"):
        for each in route:
            rewritten = each["route"].get("prefix_rewrite")
            if "path" not in each["match"] or rewritten != "/stats/prometheus":
                yield "of the admin port, nothing but /stats/prometheus may be passed on"


def _tls(chain: Config, node: str, folder: Path) -> Iterator[str]:
    socket = chain.get("transport_socket", {}).get("typed_config", {})
    common = socket.get("common_tls_context")
    if common is None:
        yield "callers must come with TLS"
        return
    if common.get("tls_params", {}).get("tls_minimum_protocol_version") not in (
        "TLSv1_2",
        "TLSv1_3",
    ):
        yield "tls_minimum_protocol_version must be TLSv1_2 or TLSv1_3"
    if "transport_socket_connect_timeout" not in chain:
        yield "without transport_socket_connect_timeout a handshake may take for ever"
    if "tls_certificate_sds_secret_configs" not in common:
        yield "certificates must come from a file of secrets, else a new one needs a restart"
        return
    secrets: list[Config] = []
    for wanted in _named(common):
        file = Path(wanted["sds_config"]["path_config_source"]["path"]).name
        there = yaml.safe_load((folder / file).read_text())["resources"]
        if [each["name"] for each in there] != [wanted["name"]]:
            yield f"{file} must hold exactly one secret, of the name {wanted['name']}"
        secrets += there
    for secret in secrets:
        for kind in ("tls_certificate", "validation_context"):
            if kind in secret and "watched_directory" not in secret[kind]:
                yield f"secret {secret['name']}: watched_directory is missing"
    if node == "envoy-fallback":
        if socket.get("require_client_certificate") is not True:
            yield "require_client_certificate must be true: only primaries may get in"
        if not list(_values(secrets, "match_typed_subject_alt_names")):
            yield "match_typed_subject_alt_names is missing: all that the authority signed get in"


def _named(common: Config) -> Iterator[Config]:
    """What says which secret is in which file."""
    yield from common["tls_certificate_sds_secret_configs"]
    yield from _values(common, "validation_context_sds_secret_config")


def _outside(manager: Config) -> Iterator[str]:
    for name in PATIENCE:
        if name not in manager:
            yield f"{name} is missing: a slow caller would hold his connection for ever"
    if "idle_timeout" not in manager.get("common_http_protocol_options", {}):
        yield "idle_timeout is missing: an idle caller would hold his connection for an hour"
    if manager.get("use_remote_address") is not True:
        yield "use_remote_address must be true, else callers make up their X-Forwarded-For"
    if manager.get("normalize_path") is not True:
        yield "normalize_path must be true: routes go by the path"
    logs = [text for log in manager.get("access_log", []) for text in _texts(log)]
    if missing := sorted(LOGGED - set(logs)):
        yield f"the access log lacks {', '.join(missing)}"
    if any("AUTHORIZATION" in text.upper() or "COOKIE" in text.upper() for text in logs):
        yield "the access log may not hold callers' keys"
    routes = [route for table in _values(manager, "routes") for route in table]
    for route in routes:
        if not {"path", "safe_regex"} & set(route["match"]):
            yield "routes must name their paths: the metrics are for the inside"
    yield from _transcribe(routes, _seconds(manager.get("stream_idle_timeout", "0s")))
    mappers = manager.get("local_reply_config", {}).get("mappers", [])
    broken = {
        flag
        for mapper in mappers
        if mapper.get("status_code", 503) != 503
        for flags in _values(mapper, "flags")
        for flag in flags
    }
    if not broken >= {"UC", "UR", "UPE"}:
        yield "a request that broke off may have been worked on: 503 would say that it has not"


def _transcribe(routes: list[Config], idle: float) -> Iterator[str]:
    fields = PrimaryConfig.model_fields
    body = fields["max_upload_mb"].default * MIB + ENVELOPE_BYTES
    ours = [each for each in routes if each["match"].get("path") == "/v1/transcribe"]
    for route in ours:
        if "direct_response" in route:
            (header,) = route["match"]["headers"]
            if header["range_match"]["start"] != body + 1:
                yield f"bodies must be refused from {body + 1} bytes on, as MAX_UPLOAD_MB says"
            continue
        timeout = _seconds(route["route"].get("timeout", "15s"))
        if not fields["request_timeout_s"].default < timeout == INGRESS_S < idle:
            yield (
                f"REQUEST_TIMEOUT_S < timeout = {INGRESS_S:g}s < stream_idle_timeout must hold, "
                "so that the service's own answer comes first"
            )
        if "retry_policy" in route["route"]:
            if route.get("request_body_buffer_limit") != body:
                yield f"request_body_buffer_limit must be {body}, else a clip cannot be sent again"
            yield from _retries(route["route"]["retry_policy"])
    if not any("route" in route for route in ours):
        yield "no route leads to /v1/transcribe"


def _retries(policy: Config) -> Iterator[str]:
    wrong = set(policy["retry_on"].split(",")) - UNPROCESSED
    if wrong:
        yield f"retry_on {', '.join(sorted(wrong))}: that may have been worked on"
    headers = {
        (each["name"], each["string_match"].get("exact")) for each in policy["retriable_headers"]
    }
    if headers != {("x-error-type", type_) for type_ in REFUSED}:
        yield f"retriable_headers must be x-error-type, exactly {' and '.join(sorted(REFUSED))}"


def _primaries(cluster: Config) -> Iterator[str]:
    if cluster.get("lb_policy") != "LEAST_REQUEST":
        yield "lb_policy must be LEAST_REQUEST: clips differ in what they cost"
    panic = cluster.get("common_lb_config", {}).get("healthy_panic_threshold", {}).get("value", 50)
    if panic:
        yield "healthy_panic_threshold must be 0, else requests go to hosts that are not ready"
    checks = cluster.get("health_checks", [])
    if [each.get("http_health_check", {}).get("path") for each in checks] != ["/v1/ready"]:
        yield "the health check must ask /v1/ready"
    elif _seconds(checks[0]["interval"]) >= LAST_LOOK_S:
        yield f"the health check must come in less than {LAST_LOOK_S:g} s, so that it sees a stop"
    if "outlier_detection" not in cluster:
        yield "outlier_detection is missing"
    matched = set(_values(list(_values(cluster, "error_matcher")), "exact"))
    if matched != BROKEN:
        yield f"error_matcher must match {', '.join(sorted(BROKEN))} and no other error"
    told = [text for text in _texts(cluster) if text.startswith("%CEL(")]
    if len(told) != 1 or not all(f"'{type_}'" in told[0] for type_ in REFUSED):
        yield "x-envoy-immediate-health-check-fail must be set by draining and not_ready"
    if cluster.get("common_lb_config", {}).get("update_merge_window") != "0s":
        yield "update_merge_window must be 0s, else a primary that stops gets requests for a second"
    budgets = [
        each.get("retry_budget", {}).get("budget_percent", {}).get("value")
        for each in cluster.get("circuit_breakers", {}).get("thresholds", [{}])
    ]
    if budgets != [BUDGET]:
        yield f"retry_budget must be {BUDGET} percent"
    # What a primary holds, it refuses at once when it stops.
    held = PrimaryConfig(CT2_SMALL_PATH="m", FALLBACK_URL="http://f").upload_places  # type: ignore[call-arg]  # names as in the file
    if list(_values(cluster, "min_retry_concurrency")) != [held]:
        yield f"min_retry_concurrency must be {held}, as MAX_UPLOADS of a primary"


def _connections(cluster: Config) -> Iterator[str]:
    theirs = uvicorn.Config("x").timeout_keep_alive
    idle = next(_values(cluster.get("typed_extension_protocol_options", {}), "idle_timeout"), "1h")
    if _seconds(idle) >= theirs:
        yield (
            f"cluster {cluster['name']}: idle_timeout must be less than the service's {theirs} s, "
            "which would close a connection just as it is used"
        )


def _values(node: Any, key: str) -> Iterator[Any]:
    """Everything that has this key, at any depth."""
    if isinstance(node, dict):
        if key in node:
            yield node[key]
        node = list(node.values())
    if isinstance(node, list):
        for each in node:
            yield from _values(each, key)


def _texts(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        node = list(node.values())
    if isinstance(node, list):
        for each in node:
            yield from _texts(each)
    elif isinstance(node, str):
        yield node


def _seconds(duration: str) -> float:
    return float(duration.removesuffix("s")) if duration.endswith("s") else float("inf")
