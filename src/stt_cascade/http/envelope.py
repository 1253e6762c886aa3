"""The outermost layer: what every answer has, whatever happened inside.

It makes the request's record, turns refusals and accidents into the error body, adds the headers,
writes the log line and the trace, and counts.
"""

from __future__ import annotations

import asyncio
import math
import re
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import structlog
from starlette._utils import get_route_path  # what routes are matched by
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from stt_cascade.config import Proxy
from stt_cascade.errors import (
    Internal,
    InvalidRequest,
    MethodNotAllowed,
    RateLimited,
    Refusal,
    RequestTimeout,
    Unauthorized,
)
from stt_cascade.http.caller import client_address, peer_of
from stt_cascade.record import Record
from stt_cascade.telemetry.metrics import ENDPOINTS, TRANSCRIBE, Metrics
from stt_sdk._within import within

if TYPE_CHECKING:
    from stt_cascade.telemetry.tracing import Tracing

log = structlog.get_logger("stt.request")

_TOKEN = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_TRACE = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
# What goes on is whole: of a longer one nothing does, as with OpenTelemetry's own propagator.
_TRACE_STATE = re.compile(r"[\t -~]{1,8192}")
_LENGTH = re.compile(r"[0-9]{1,19}")
_MAX_HEADER = 200
# Of a path in the log.
_MAX_PATH = 1000
# A connection that is closed under a caller who is still sending may take the answer with it. So
# the rest of a refused body may come and is thrown away for this long, if its length was announced
# and is within what the service reads anyway.
LINGER_S = 5.0
# Otherwise no more of it is read, which stops the client from sending. This is how long a client
# may take to read the response after we stop reading.
LAST_LOOK_S = 1.0
# In a request's scope: why it was refused before it became one (`http/protocol.py`).
REFUSED = "stt.refused"
# And: what came after its body is no request.
FOLLOWED = "stt.followed"
# What a caller without a valid key may make the service read.
STRANGER_BYTES = 64 * 1024
# What every answer may carry, errors included.
EXPOSED_HEADERS = (
    "X-Req-Id",
    "X-Total-ms",
    "X-Queue-Wait-ms",
    "X-Primary-Infer-ms",
    "X-Fallback-Infer-ms",
    "X-Fallback-Used",
    "X-Final-Model",
    "X-Conf-Below",
    "X-Lang-Check-Applicable",
    "X-Route-Reason",
    "X-Fallback-Error",
    "X-Error-Type",
    "X-Error-Message",
    "Retry-After",
)
# Looked at so often that a line or a trace for each would drown the others. What they would say of
# the state, the lines of its changes say.
_QUIET = frozenset(ENDPOINTS) - {TRANSCRIBE, "other"}
# Not an HTTP status: how logs name a caller that went away before the answer (nginx's number).
_ABANDONED = 499


class Abandoned(Exception):
    """The caller went away before the answer."""


def record_of(scope: Scope) -> Record:
    """The record that the envelope made for this request."""
    record: Record = scope["stt.record"]
    return record


class Envelope:
    """Pure ASGI middleware; see the module."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        tier: str,
        metrics: Metrics,
        log_text: bool,
        upload_bytes: int,
        draining: Callable[[], bool] = lambda: False,
        trusted_proxies: Sequence[Proxy] = (),
        tracing: Tracing | None = None,
    ) -> None:
        self._app = app
        self._tier = tier
        self._metrics = metrics
        self._log_text = log_text
        self._upload_bytes = upload_bytes
        self._draining = draining
        self._trusted_proxies = trusted_proxies
        self._tracing = tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close"})  # there are none here, whatever the path
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        forwarded = headers.getlist("X-Forwarded-For")
        given, parent = headers.get("X-Req-Id", ""), headers.get("traceparent", "")
        continued = _TRACE.fullmatch(parent) is not None
        path = get_route_path(scope)
        state = ",".join(headers.getlist("tracestate"))  # as RFC 9110 joins a list's lines
        record = Record(
            request_id=given if _TOKEN.fullmatch(given) else uuid.uuid4().hex,
            endpoint=path if path in ENDPOINTS else "other",
            client=client_address(peer_of(scope), forwarded, self._trusted_proxies),
            path=path,
            traceparent=parent if continued else None,
            tracestate=state if continued and _TRACE_STATE.fullmatch(state) else None,
        )
        scope["stt.record"] = record
        trace = None if self._tracing is None else self._tracing.begin(record)
        status: int | None = None
        refused: Refusal | None = scope.get(REFUSED)
        length: int | None = None
        try:
            length = None if refused else _announced(headers)
        except InvalidRequest as error:
            refused = error
        body = _Body(receive, scope, length)

        async def send_in_envelope(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                for name, value in _headers(record).items():
                    headers[name] = value
                # A caller of a service that stops shall find another one.
                if self._draining() or not body.ends_within(allowed):
                    headers["Connection"] = "close"
            await send(message)

        transcribes = record.endpoint == TRANSCRIBE
        allowed = self._upload_bytes if transcribes else STRANGER_BYTES
        if transcribes:
            self._metrics.request_started()
        refusal: Refusal | None = None
        unfinished = False
        try:
            if refused is not None:
                raise refused
            await self._app(scope, body, send_in_envelope)
        except Refusal as error:
            refusal = error
        except Abandoned:
            status = _ABANDONED
            self._metrics.request_abandoned()
        except Exception as error:
            log.exception("unexpected error", request_id=record.request_id)
            refusal = Internal("an unexpected error; the service's log has it by the request id")
            refusal.__cause__ = error
        if refusal is not None:
            self._metrics.request_refused(record.endpoint, refusal.type)
            if isinstance(refusal, Unauthorized):
                allowed = STRANGER_BYTES
            if unfinished := status is None:
                await _send_unfinished(_refuse(refusal, record), send_in_envelope)
        elif status == 200 and transcribes:
            self._metrics.request_answered(record)
        if record.endpoint not in _QUIET or refusal is not None:
            self._log(scope, record, status, refusal)
            if trace is not None:
                trace.end(record, scope, None if status == _ABANDONED else status, refusal)
        if unfinished:
            hurry = isinstance(refusal, RequestTimeout) or self._draining()
            if refusal is not None:
                # Its frames hold the upload, which has no place any more.
                refusal.__traceback__ = None
                refusal = None
            await body.discard(allowed, LAST_LOOK_S if hurry else LINGER_S)
            await send({"type": "http.response.body", "body": b""})

    def _log(
        self, scope: Scope, record: Record, status: int | None, refusal: Refusal | None
    ) -> None:
        line: dict[str, Any] = {
            "request_id": record.request_id,
            "tier": self._tier,
            "method": scope["method"] or None,
            "path": record.path[:_MAX_PATH] or None,
            "status": status,
            "client": record.client,
            "key_id": record.key_id,
            "audio_seconds": record.audio_seconds,
            "language": record.language,
            "model": record.final_model,
            "reason": record.reason,
            "below": record.below,
            "fallback_used": record.fallback_used,
            "degraded": record.degraded or None,
            "warnings": record.warnings or None,
            "primary_weakest": record.primary_weakest,
            "fallback_weakest": record.fallback_weakest,
            "picked": record.picked,
            "queue_wait_ms": record.queue_wait_ms,
            "primary_infer_ms": record.primary_infer_ms,
            "fallback_infer_ms": record.fallback_infer_ms,
            "total_ms": record.total_ms,
            "fallback_error": record.fallback_error,
        }
        if refusal is not None:
            line |= {"error_type": refusal.type, "error_message": refusal.message}
        if self._log_text:
            line["text"] = record.text
        known = {
            name: round(value, 3) if isinstance(value, float) else value
            for name, value in line.items()
            if value is not None
        }
        failed = status is None or status >= 500
        (log.error if failed else log.info)("request", **known)


class _Body:
    """A request's `receive`, which knows how much of the body is still to come.

    Args:
        length: of the body, in bytes; None: nobody knows.
    """

    def __init__(self, receive: Receive, scope: Scope, length: int | None) -> None:
        self._receive = receive
        self._scope = scope
        self._left = length

    async def __call__(self) -> Message:
        message = await self._receive()
        if not message.get("more_body", False):
            self._left = 0  # that was its end, or the caller went away
        elif self._left is not None:
            self._left -= len(message["body"])
        return message

    def ends_within(self, size: int) -> bool:
        """Whether no more than so many bytes are sure to come."""
        return self._left is not None and self._left <= size and FOLLOWED not in self._scope

    async def discard(self, size: int, seconds: float) -> None:
        """Let the rest come, for a while, if it ends within so many bytes; else read no more."""
        if not self.ends_within(size):
            await asyncio.sleep(LAST_LOOK_S)
            return
        with suppress(TimeoutError):
            await within(seconds, self._discard())

    async def _discard(self) -> None:
        while self._left:
            await self()


def _announced(headers: Headers) -> int | None:
    """How many bytes of body will come; None: it comes in chunks.

    Raises:
        InvalidRequest: the headers leave that open, so that another server could read another body.
    """
    codings, lengths = headers.getlist("Transfer-Encoding"), headers.getlist("Content-Length")
    if codings:
        if lengths or [coding.strip(" \t").lower() for coding in codings] != ["chunked"]:
            raise InvalidRequest(
                "with Transfer-Encoding, which may be chunked only, no Content-Length is allowed"
            )
        return None
    length = lengths[0].strip(" \t") if lengths else "0"
    if len(lengths) > 1 or not _LENGTH.fullmatch(length):
        raise InvalidRequest("Content-Length must be one whole number of at most 19 digits")
    return int(length)


async def _send_unfinished(response: JSONResponse, send: Send) -> None:
    """Send the whole response, but leave the connection to the caller for now."""
    start = {"status": response.status_code, "headers": response.raw_headers}
    await send({"type": "http.response.start", **start})
    await send({"type": "http.response.body", "body": response.body, "more_body": True})


def _refuse(refusal: Refusal, record: Record) -> JSONResponse:
    body = {"type": refusal.type, "message": refusal.message, "request_id": record.request_id}
    headers = {
        "X-Error-Type": refusal.type,
        "X-Error-Message": header_value(refusal.message),
        # The rest of the body, if any, is not wanted any more.
        "Connection": "close",
    }
    if refusal.retry_after is not None:
        headers["Retry-After"] = str(max(1, math.ceil(refusal.retry_after)))
    if isinstance(refusal, MethodNotAllowed):
        headers["Allow"] = refusal.allow
    if refusal.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if isinstance(refusal, RateLimited):
        del headers["Connection"]  # a busy caller that has to connect anew costs more, not less
    return JSONResponse({"error": body}, refusal.status, headers)


def _headers(record: Record) -> dict[str, str]:
    known = {
        "X-Req-Id": record.request_id,
        "X-Total-ms": _ms(record.total_ms),
        "X-Queue-Wait-ms": _ms(record.queue_wait_ms),
        "X-Primary-Infer-ms": _ms(record.primary_infer_ms),
        "X-Fallback-Infer-ms": _ms(record.fallback_infer_ms),
        "X-Fallback-Used": _flag(record.fallback_used),
        "X-Final-Model": record.final_model,
        "X-Conf-Below": None if record.below is None else ",".join(record.below) or "none",
        "X-Lang-Check-Applicable": _flag(record.lang_check_applicable),
        "X-Route-Reason": record.reason,
        "X-Fallback-Error": record.fallback_error,
    }
    return {name: header_value(value) for name, value in known.items() if value is not None}


def header_value(text: str) -> str:
    """Any text as one line of printable ASCII, at most 200 characters long."""
    line = "".join(char if " " <= char <= "~" else "?" for char in " ".join(text.split()))
    return line if len(line) <= _MAX_HEADER else line[: _MAX_HEADER - 3] + "..."


def _ms(value: float | None) -> str | None:
    return None if value is None else f"{value:.1f}"


def _flag(value: bool | None) -> str | None:
    return None if value is None else ("true" if value else "false")
