"""Envoy before the tiers: the files as they are, faults planted in them, and what they do."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from deploy.envoy import FOLDER, check
from faults.balancer import missing
from pages import ROOT

IN_HTTP = " " * 16
IN_RETRIES = " " * 32
HEADERS = f"{IN_HTTP}request_headers_timeout: 8s\n"
HANDSHAKE = "- transport_socket_connect_timeout: 8s\n          transport_socket:"
OTHERS = 'match: {safe_regex: {regex: "/v1/health|/v1/ready|/openapi\\\\.json"}}'
INGRESS = f"timeout: 65s\n{' ' * 28}# Only"
RETRIED = f"string_match: {{exact: draining}}}}\n{IN_RETRIES}-"
NAMES = """\
      match_typed_subject_alt_names:
        - {san_type: DNS, matcher: {exact: stt-primary}}
"""

pytestmark = [pytest.mark.engines, pytest.mark.skipif(bool(missing()), reason=missing())]


def test_nothing_is_wrong_with_the_files() -> None:
    assert list(check(ROOT)) == []


@pytest.mark.parametrize(
    ("file", "right", "wrong", "found"),
    [
        ("envoy.yaml", "lb_policy:", "lb_polici:", "Envoy: "),
        ("envoy.yaml", "admin:\n", "admin: [\n", "no YAML"),
        ("envoy.yaml", "cluster: stt-primary\n", "cluster: stt-primarry\n", "Envoy: "),
        ("envoy.yaml", "cluster_type:", "dns_refresh_rate: 2s\n      cluster_type:", "Deprecated"),
        ("envoy.yaml", "callers.yaml}", "caller.yaml}", "does not exist"),
        ("callers.yaml", "name: callers", "name: caller", "exactly one secret"),
        ("callers.yaml", "private_key:", "privatekey:", "Envoy: "),
        (
            "callers.yaml",
            "      watched_directory: {path: /etc/envoy/tls}\n",
            "",
            "watched_directory",
        ),
        (
            "envoy.yaml",
            "address: 127.0.0.1, port_value: 9900",
            "address: 0.0.0.0, port_value: 9900",
            "127.0.0.1",
        ),
        ("envoy.yaml", "/stats/prometheus", "/", "nothing but /stats/prometheus"),
        (
            "envoy.yaml",
            "match: {path: /metrics}",
            "match: {prefix: /}",
            "nothing but /stats/prometheus",
        ),
        ("envoy.yaml", OTHERS, "match: {prefix: /}", "must name their paths"),
        ("envoy.yaml", "TLSv1_2", "TLSv1_1", "tls_minimum_protocol_version"),
        ("envoy.yaml", HANDSHAKE, "- transport_socket:", "handshake"),
        ("envoy.yaml", HEADERS, "", "request_headers_timeout"),
        ("envoy.yaml", "                request_timeout: 65s\n", "", "request_timeout is missing"),
        ("envoy.yaml", "stream_idle_timeout: 70s", "stream_idle_timeout: 10s", "REQUEST_TIMEOUT_S"),
        ("envoy.yaml", "                  idle_timeout: 60s\n", "", "idle_timeout is missing"),
        ("envoy.yaml", "use_remote_address: true", "use_remote_address: false", "X-Forwarded-For"),
        ("envoy.yaml", "normalize_path: true", "normalize_path: false", "normalize_path"),
        (
            "envoy.yaml",
            'bytes_sent: "%BYTES_SENT%"',
            'key: "%REQ(AUTHORIZATION)%"',
            "lacks %BYTES_SENT%",
        ),
        (
            "envoy.yaml",
            'details: "%RESPONSE_CODE_DETAILS%"',
            'key: "%REQ(AUTHORIZATION)%"',
            "callers' keys",
        ),
        ("envoy.yaml", "start: 16842753", "start: 16777216", "refused from 16842753 bytes"),
        (
            "envoy.yaml",
            "request_body_buffer_limit: 16842752",
            "request_body_buffer_limit: 1048576",
            "request_body_buffer_limit",
        ),
        ("envoy.yaml", INGRESS, INGRESS.replace("65", "60"), "REQUEST_TIMEOUT_S"),
        (
            "envoy.yaml",
            "connect-failure,retriable-headers",
            "connect-failure,retriable-headers,reset",
            "retry_on reset",
        ),
        (
            "envoy.yaml",
            RETRIED,
            RETRIED.replace("draining", "overloaded"),
            "draining and not_ready",
        ),
        ("envoy.yaml", "status_code: 502", "status_code: 503", "may have been worked on"),
        ("envoy.yaml", "LEAST_REQUEST", "ROUND_ROBIN", "LEAST_REQUEST"),
        (
            "envoy.yaml",
            "healthy_panic_threshold: {value: 0}",
            "healthy_panic_threshold: {value: 50}",
            "healthy_panic_threshold",
        ),
        ("envoy.yaml", "path: /v1/ready}", "path: /v1/health}", "/v1/ready"),
        ("envoy.yaml", "          interval: 0.5s", "          interval: 5s", "sees a stop"),
        ("envoy.yaml", "exact: internal}}]}", "exact: overloaded}}]}", "error_matcher"),
        (
            "envoy.yaml",
            "budget_percent: {value: 20}",
            "budget_percent: {value: 100}",
            "retry_budget",
        ),
        ("envoy.yaml", "{idle_timeout: 2s}", "{idle_timeout: 60s}", "close a connection"),
        (
            "fallback.yaml",
            "require_client_certificate: true",
            "require_client_certificate: false",
            "only primaries",
        ),
        ("primaries.yaml", NAMES, "", "match_typed_subject_alt_names"),
        ("envoy.yaml", "min_retry_concurrency: 36", "min_retry_concurrency: 3", "MAX_UPLOADS"),
        ("envoy.yaml", "in ['draining', ", "in ['drained', ", "must be set by draining"),
        ("envoy.yaml", "        update_merge_window: 0s\n", "", "update_merge_window"),
        ("fallback.yaml", "status_code: 502", "status_code: 503", "may have been worked on"),
        ("fallback.yaml", "127.0.0.1, port_value: 9910", "0.0.0.0, port_value: 9910", "127.0.0.1"),
    ],
)
def test_a_planted_fault_is_found(
    tmp_path: Path, file: str, right: str, wrong: str, found: str
) -> None:
    folder = tmp_path / FOLDER
    shutil.copytree(ROOT / FOLDER, folder)
    text = (folder / file).read_text()
    assert right in text
    (folder / file).write_text(text.replace(right, wrong))
    findings = list(check(tmp_path))
    assert any(found in finding for finding in findings), findings
