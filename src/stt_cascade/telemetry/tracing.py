"""Traces: what became of a request, stage by stage and over both tiers, for OpenTelemetry.

Imported only where `OTLP_ENDPOINT` is set. Like the headers, the log line and the metrics, a trace
is made from the record when the answer is out; only its ids are drawn before, since the fallback
must be told them.

Spans go to the collector from a thread of the library's, in batches and out of a bounded queue: a
collector that is slow or down costs spans, never requests.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.cookiejar import DefaultCookiePolicy
from itertools import pairwise
from types import TracebackType

import requests
import structlog
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanLimits, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, ParentBased
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from starlette.types import Scope

from stt_cascade.config import TierConfig
from stt_cascade.errors import Refusal
from stt_cascade.record import Record, Stage
from stt_cascade.telemetry import spans
from stt_cascade.telemetry.metrics import TRANSCRIBE
from stt_sdk import __version__

log = structlog.get_logger("stt.tracing")

# Spans that may wait for the collector, that go there at once, and how often.
MAX_WAITING, BATCH, EVERY_S = 4096, 512, 2.0
# All attempts to send one batch together.
EXPORT_S = 5.0
# A stop waits so long for what is left.
FLUSH_S = 5.0
# And then so long for it to give up.
LAST_WORD_S = 0.2
# Trouble with the collector is logged once in so long.
SILENCE_S = 60.0
MAX_TEXT = 200


class Tracing:
    """The traces of one tier. An async context manager: within it they are sent.

    Args:
        endpoint: of the collector, without `/v1/traces`.
    """

    def __init__(self, config: TierConfig, endpoint: str) -> None:
        self._config = config
        self._endpoint = endpoint
        self._ids = _Ids()
        with _settings_of_the_file_alone():
            self._provider = TracerProvider(
                sampler=ParentBased(ALWAYS_ON),
                resource=Resource(spans.resource(config)),
                id_generator=self._ids,
                span_limits=SpanLimits(max_attributes=64, max_attribute_length=MAX_TEXT),
                shutdown_on_exit=False,
            )
        self._tracer = self._provider.get_tracer("stt_cascade", __version__)
        self._propagator = TraceContextTextMapPropagator()
        self._trouble = _Trouble(endpoint)

    async def __aenter__(self) -> Tracing:
        self._trouble.listen()
        session = requests.Session()
        session.trust_env = False
        session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=()))  # none at all
        with _settings_of_the_file_alone():
            self._exporter = OTLPSpanExporter(
                endpoint=self._endpoint.rstrip("/") + "/v1/traces",
                timeout=EXPORT_S,
                compression=Compression.Gzip,
                session=session,
            )
            processor = BatchSpanProcessor(
                self._exporter, MAX_WAITING, EVERY_S * 1000, BATCH, EXPORT_S * 1000
            )
        self._provider.add_span_processor(processor)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # A daemon: what a collector does not take must not keep the process.
        last = threading.Thread(target=self._provider.shutdown, name="last spans", daemon=True)
        last.start()
        await asyncio.to_thread(last.join, FLUSH_S)
        if last.is_alive():
            log.warning("spans are lost: the collector did not take them in time")
            self._exporter.shutdown()  # type: ignore[no-untyped-call]  # or it would try again
            await asyncio.to_thread(last.join, LAST_WORD_S)
        self._trouble.ignore()

    def begin(self, record: Record) -> Trace:
        """Continue the caller's trace, or begin one; the fallback will be told to continue it."""
        given = {"traceparent": record.traceparent, "tracestate": record.tracestate}
        carrier = {name: value for name, value in given.items() if value is not None}
        span = self._tracer.start_span(
            "request",
            # Of its own: what is ambient here is nobody's business.
            context=self._propagator.extract(carrier, Context()),
            kind=SpanKind.SERVER,
        )
        call = self._ids.generate_span_id()
        context = span.get_span_context()
        record.traceparent = f"00-{context.trace_id:032x}-{call:016x}-{context.trace_flags:02x}"
        record.tracestate = context.trace_state.to_header() or None
        return Trace(self, span, call)

    def child(
        self, name: str, parent: Span, kind: SpanKind, began: int, number: int | None
    ) -> Span:
        """A span below another one, with that id if there is one already."""
        self._ids.next = number
        context = set_span_in_context(parent, Context())
        return self._tracer.start_span(name, context, kind, start_time=began)

    @property
    def config(self) -> TierConfig:
        return self._config


class Trace:
    """One request's.

    Args:
        span: the request's own.
        call: the id that the span of the call to the fallback will have.
    """

    def __init__(self, tracing: Tracing, span: Span, call: int) -> None:
        self._tracing = tracing
        self._span = span
        self._call = call
        # One step between the two clocks for all of it, so that children stay within their parent.
        self._epoch = time.time_ns() - time.perf_counter_ns()

    def end(
        self, record: Record, scope: Scope, status: int | None, refusal: Refusal | None
    ) -> None:
        """The answer is out; `status` None: its caller went away before."""
        now = time.perf_counter()
        for stage, after in pairwise(record.stages):
            self._stage(stage, after.began, record)
        for stage in record.stages[-1:]:
            self._stage(stage, now, record, refusal)
        config = self._tracing.config
        self._span.update_name(spans.name_of(scope, record))
        facts = spans.of_http(scope, record, status) | spans.of_request(record, config)
        if refusal is not None:
            facts["error.type"] = refusal.type
        elif status is None:
            facts["error.type"] = "abandoned"
        if status is not None and status >= 500:
            self._span.set_status(Status(StatusCode.ERROR))
        _describe(self._span, facts)
        self._span.end(self._ns(now))

    def _stage(
        self, stage: Stage, ended: float, record: Record, refusal: Refusal | None = None
    ) -> None:
        config = self._tracing.config
        calls = stage.name == "fallback"
        span = self._tracing.child(
            f"POST {TRANSCRIBE}" if calls else stage.name,
            self._span,
            SpanKind.CLIENT if calls else SpanKind.INTERNAL,
            self._ns(stage.began),
            self._call if calls else None,
        )
        facts = spans.of_stage(stage, record, config)
        error = spans.error_in(stage, record, refusal)
        if error is not None:
            facts["error.type"], what = error
            span.set_status(Status(StatusCode.ERROR, what))
        _describe(span, facts)
        span.end(self._ns(ended))

    def _ns(self, seconds: float) -> int:
        return self._epoch + int(seconds * 1e9)


class _Ids(RandomIdGenerator):
    """Random ones, but for a span whose id had to be known before it was made."""

    next: int | None = None

    def generate_span_id(self) -> int:
        known, self.next = self.next, None
        return super().generate_span_id() if known is None else known


class _Trouble(logging.Handler):
    """Says what the library says of a collector in trouble, but not each time."""

    def __init__(self, endpoint: str) -> None:
        super().__init__(logging.WARNING)
        self._endpoint = endpoint
        self._logger = logging.getLogger("opentelemetry")
        self._silent_until = 0.0
        self._unsaid = 0

    def listen(self) -> None:
        self._logger.addHandler(self)
        self._logger.propagate = False

    def ignore(self) -> None:
        self._logger.removeHandler(self)
        others = (isinstance(each, _Trouble) for each in self._logger.handlers)
        self._logger.propagate = not any(others)

    def emit(self, record: logging.LogRecord) -> None:
        if record.name.startswith("opentelemetry.trace"):
            return  # a caller's odd `tracestate` is no trouble with the collector
        now = time.monotonic()
        if now < self._silent_until:
            self._unsaid += 1
            return
        log.warning(
            "traces cannot be sent",
            to=self._endpoint,
            reason=" ".join(record.getMessage().split()),
            unsaid=self._unsaid or None,
        )
        self._silent_until, self._unsaid = now + SILENCE_S, 0


@contextmanager
def _settings_of_the_file_alone() -> Iterator[None]:
    """Within it the library finds no variable of its own: some of them have no argument."""
    theirs = {name: value for name, value in os.environ.items() if name.startswith("OTEL_")}
    for name in theirs:
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(theirs)


def _describe(span: Span, facts: spans.Facts) -> None:
    """Give the span those attributes that are known."""
    span.set_attributes({name: value for name, value in facts.items() if value is not None})
