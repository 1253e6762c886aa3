"""What a span is called and says.

Names are those of OpenTelemetry's semantic conventions for HTTP; our own begin with `stt.`, as in
the SDK's hook. What somebody said is not among them, nor a key.
"""

from __future__ import annotations

import socket
import uuid
from collections.abc import Sequence
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import Scope

from stt_cascade.config import PrimaryConfig, TierConfig
from stt_cascade.errors import Refusal
from stt_cascade.record import Record, Stage
from stt_cascade.telemetry.metrics import TRANSCRIBE
from stt_sdk import __version__

METHODS = {"GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"}
PORTS = {"http": 80, "https": 443}

# A fact that is None is not known, and left out.
Facts = dict[str, str | int | float | bool | Sequence[str] | None]


def name_of(scope: Scope, record: Record) -> str:
    """Of a request's span."""
    method = scope["method"] if scope["method"] in METHODS else "HTTP"
    return method if record.endpoint == "other" else f"{method} {record.endpoint}"


def resource(config: TierConfig) -> dict[str, str]:
    """Of all spans of one process."""
    return {
        "service.name": f"stt-{config.tier}",
        "service.version": __version__,
        "service.instance.id": str(uuid.uuid4()),
        "host.name": socket.gethostname(),
        "stt.commit": config.server_commit,
    }


def of_http(scope: Scope, record: Record, status: int | None) -> Facts:
    """By OpenTelemetry's semantic conventions for HTTP server spans."""
    method = scope["method"]
    host, port = scope.get("server") or (None, None)
    peer, peer_port = scope.get("client") or (None, None)
    return {
        "http.request.method": method if method in METHODS else "_OTHER",
        "http.route": None if record.endpoint == "other" else record.endpoint,
        "http.response.status_code": status,
        "url.path": scope["path"],
        "url.scheme": scope.get("scheme"),
        "network.protocol.version": scope.get("http_version"),
        "server.address": host,
        "server.port": port,
        "client.address": record.client,
        "network.peer.address": peer,
        "network.peer.port": peer_port,
        "user_agent.original": Headers(scope=scope).get("User-Agent"),
    }


def of_request(record: Record, config: TierConfig) -> Facts:
    return {
        "stt.request_id": record.request_id,
        "stt.tier": config.tier,
        "stt.key_id": record.key_id,
        "stt.audio_seconds": record.audio_seconds,
        "stt.language": record.language,
        "stt.model": record.final_model,
        "stt.reason": record.reason,
        "stt.below": record.below or None,
        "stt.fallback_used": record.fallback_used,
        "stt.degraded": record.degraded or None,
        "stt.warnings": record.warnings or None,
        "stt.picked": record.picked,
    }


def of_stage(stage: Stage, record: Record, config: TierConfig) -> Facts:
    if stage.name == "decode":
        return {"stt.audio_seconds": record.audio_seconds}
    if stage.name == "infer":
        return {"stt.model": config.model}
    if stage.name == "decide":
        return {"stt.reason": record.reason, "stt.below": record.below or None}
    if stage.name == "fallback" and isinstance(config, PrimaryConfig):
        url = urlsplit(config.fallback_url)
        return {
            "http.request.method": "POST",
            "url.full": f"{url.scheme}://{url.netloc.rpartition('@')[2]}{TRANSCRIBE}",
            "server.address": url.hostname,
            "server.port": url.port or PORTS[url.scheme],
            "stt.reason": record.reason,
            "stt.below": record.below or None,
        }
    return {}


def error_in(stage: Stage, record: Record, refusal: Refusal | None) -> tuple[str, str] | None:
    """What went wrong in a stage: a word for it, and a sentence.

    Args:
        refusal: of the request, if it ended in this stage.
    """
    if stage.name == "infer" and record.primary_error is not None:
        return record.primary_error, "the inference failed"
    if stage.name == "fallback" and record.fallback_error is not None:
        cause, _, message = record.fallback_error.partition(": ")
        return cause, message
    return None if refusal is None else (refusal.type, refusal.message)
