"""Calls as OpenTelemetry spans."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from stt_sdk._errors import ServiceError
from stt_sdk._telemetry import AttemptFinished, Escalated, Event, RequestFinished, RequestStarted
from stt_sdk._version import __version__
from stt_sdk.hooks._words import needs, one_line, outcome, shown

if TYPE_CHECKING:
    from opentelemetry.trace import Span, TracerProvider

PATH = "/v1/transcribe"
PORTS = {"http": 80, "https": 443}


class OpenTelemetryHook:
    """A CLIENT span for each call, below the caller's span, with a child for each attempt.

    The service gets the call's span as `traceparent`, and hands it on to the fallback. All attempts
    send the same headers, so the HTTP client span is the call's, and its children are INTERNAL.
    Names follow the semantic conventions for HTTP spans; our own begin with `stt.`. Calls under way
    at once with one `request_id` are told apart by their order only.

    Args:
        tracer_provider: None: the global one.

    Raises:
        ImportError: `opentelemetry-api` is not installed.
    """

    def __init__(self, tracer_provider: TracerProvider | None = None) -> None:
        try:
            from opentelemetry import trace
            from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
        except ImportError as error:
            raise ImportError(needs("OpenTelemetryHook", "otel")) from error
        self._trace = trace
        self._tracer = trace.get_tracer("stt_sdk", __version__, tracer_provider)
        # Not the global one: the service reads this form only, and baggage is not for it.
        self._propagator = TraceContextTextMapPropagator()
        self._spans: dict[str, list[Span]] = {}  # of the calls under way

    def __call__(self, event: Event) -> None:
        if isinstance(event, RequestStarted):
            self._start(event)
        elif spans := self._spans.get(event.request_id):
            match event:
                case AttemptFinished():
                    self._attempt(spans[0], event)
                case Escalated():
                    self._escalate(spans[0], event)
                case RequestFinished():
                    span = spans.pop(0)
                    if not spans:
                        del self._spans[event.request_id]
                    self._finish(span, event)

    def _start(self, event: RequestStarted) -> None:
        span = self._tracer.start_span(
            f"POST {PATH}",
            kind=self._trace.SpanKind.CLIENT,
            attributes={
                "http.request.method": "POST",
                "url.template": PATH,
                "stt.request_id": event.request_id,
            },
        )
        _describe(
            span,
            {"stt.audio_seconds": event.audio_seconds, "stt.audio_bytes": event.audio_bytes},
        )
        self._spans.setdefault(event.request_id, []).append(span)
        self._propagator.inject(event.headers, self._trace.set_span_in_context(span))

    def _attempt(self, call: Span, event: AttemptFinished) -> None:
        now = time.time_ns()
        span = self._tracer.start_span(
            "attempt",
            context=self._trace.set_span_in_context(call),
            start_time=now - int(event.seconds * 1e9),
        )
        _describe(span, _address(event.host))
        self._conclude(span, event.number, event.status, event.error)
        span.end(now)

    def _escalate(self, call: Span, event: Escalated) -> None:
        facts = {
            "stt.escalation.reason": event.reason or None,
            "stt.escalation.below": event.below,
            "stt.escalation.fallback_ms": event.fallback_ms,
            "stt.escalation.degraded": event.degraded,
        }
        _describe(call, facts)

    def _finish(self, call: Span, event: RequestFinished) -> None:
        status = event.error.status if isinstance(event.error, ServiceError) else None
        try:
            if event.result is not None:
                status = 200
                facts = {"stt.tier": event.result.routing.tier, "stt.model": event.result.model}
                _describe(call, facts)
            self._conclude(call, event.attempts, status, event.error)
            if event.host is not None:
                _describe(call, _address(event.host))
        finally:
            call.end()

    def _conclude(
        self, span: Span, attempts: int, status: int | None, error: BaseException | None
    ) -> None:
        _describe(
            span,
            {
                "http.request.resend_count": attempts - 1 if attempts > 1 else None,
                "http.response.status_code": status,
                "error.type": None if error is None else outcome(error),
            },
        )
        if error is not None:
            # The convention: no description where the HTTP status is one.
            said = one_line(error) if status is None else None
            span.set_status(self._trace.Status(self._trace.StatusCode.ERROR, said))


_Value = str | int | float | Sequence[str] | None


def _describe(span: Span, facts: Mapping[str, _Value]) -> None:
    """Give the span those attributes that are known."""
    span.set_attributes({name: value for name, value in facts.items() if value is not None})


def _address(host: str) -> dict[str, _Value]:
    """Attributes of `http://stt:8081`, or `http://stt:8081 (10.0.0.7)`."""
    url, _, peer = shown(host).partition(" (")
    parts = urlsplit(url if "//" in url else f"//{url}")
    return {
        "server.address": parts.hostname,
        "server.port": parts.port or PORTS.get(parts.scheme),
        "url.full": url.rstrip("/") + PATH if parts.scheme else None,
        "network.peer.address": peer.rstrip(")") or None,
    }
