"""The ready-made hooks: log lines, Prometheus metrics, OpenTelemetry spans."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
from collections.abc import Iterable
from typing import Any

import pytest
from opentelemetry import baggage, context, trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import SpanKind, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from prometheus_client import CollectorRegistry

from stt_sdk import (
    FallbackFailedError,
    OverloadedError,
    ServiceError,
    STTError,
    TimedOut,
    Transcription,
)
from stt_sdk._telemetry import (
    AttemptFinished,
    Escalated,
    Event,
    RequestFinished,
    RequestStarted,
    Retried,
    Telemetry,
    TelemetryHook,
)
from stt_sdk._types import Confidence, Routing, Timings
from stt_sdk.hooks import LoggingHook, OpenTelemetryHook, PrometheusHook

A, B = "http://a:8081", "http://b:8081"
TEXT = "my number is twelve"


def transcription(tier: str = "primary", fallback_ms: float | None = None) -> Transcription:
    return Transcription(
        text=TEXT,
        language="en",
        language_probability=0.9,
        duration=2.9,
        speech_duration=2.4,
        model="base",
        confidence=Confidence(0.9, 0.8, 4),
        routing=Routing(tier, tier == "fallback", "accepted", (), False),
        segments=(),
        timings_ms=Timings(4.0, 200.0, fallback_ms, 300.0),
        request_id="id",
    )


def overloaded() -> OverloadedError:
    return OverloadedError("the queue is full", status=503)


def answered(id_: str = "id", headers: dict[str, str] | None = None) -> list[Event]:
    """A call that one host answered."""
    return [
        RequestStarted(id_, 2.9, 46000, {} if headers is None else headers),
        AttemptFinished(id_, 1, A, 0.4, 200, None),
        RequestFinished(id_, A, 0.41, 1, transcription(), None),
    ]


def retried(id_: str = "id") -> list[Event]:
    """A call that the second host answered, with the fallback's help."""
    refused = overloaded()
    return [
        RequestStarted(id_, None, None, {}),
        AttemptFinished(id_, 1, A, 0.1, 503, refused),
        Retried(id_, 2, refused, 0.25),
        AttemptFinished(id_, 2, B, 0.4, 200, None),
        Escalated(id_, "low_confidence", ("weakest",), 2500.0, False),
        RequestFinished(id_, B, 0.75, 2, transcription("fallback", 2500.0), None),
    ]


def failed(error: BaseException, id_: str = "id") -> list[Event]:
    """A call that one host was asked for, in vain."""
    events: list[Event] = [RequestStarted(id_, 2.9, 46000, {})]
    if isinstance(error, STTError):
        status = error.status if isinstance(error, ServiceError) else None
        events.append(AttemptFinished(id_, 1, A, 0.1, status, error))
    return [*events, RequestFinished(id_, A, 0.1, 1, None, error)]


def tell(hook: TelemetryHook, events: Iterable[Event]) -> None:
    for event in events:
        assert hook(event) is None  # at once


@pytest.mark.process
def test_the_hooks_are_imported_neither_with_the_sdk_nor_with_what_they_need() -> None:
    code = """
import sys, stt_sdk
assert "stt_sdk.hooks" not in sys.modules
import stt_sdk.hooks
print([name for name in ("prometheus_client", "opentelemetry") if name in sys.modules])
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == "[]\n"


@pytest.mark.parametrize(
    ("hook", "module", "extra"),
    [
        (PrometheusHook, "prometheus_client", "prometheus"),
        (OpenTelemetryHook, "opentelemetry", "otel"),
    ],
)
def test_a_hook_whose_library_is_missing_says_what_to_install(
    hook: type[Any], module: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=rf"{hook.__name__} .*'\.\[{extra}\]'"):
        hook()


# Logging


def logged(
    caplog: pytest.LogCaptureFixture, events: Iterable[Event], level: int = logging.INFO
) -> list[Any]:
    with caplog.at_level(level, "stt_sdk"):
        tell(LoggingHook(), events)
    return caplog.records


def test_an_answered_call_is_one_line_with_its_facts(caplog: pytest.LogCaptureFixture) -> None:
    (line,) = logged(caplog, answered())
    assert line.levelname == "INFO"
    assert line.message == "request id: transcribed in 0.410 s by the primary (base)"
    assert (line.name, line.request_id, line.host) == ("stt_sdk", "id", A)
    assert (line.seconds, line.attempts, line.audio_seconds) == (0.41, 1, 2.9)
    assert (line.tier, line.model, line.reason, line.outcome) == (
        "primary",
        "base",
        "accepted",
        "ok",
    )


def test_a_retry_and_an_escalation_are_lines_of_their_own(caplog: pytest.LogCaptureFixture) -> None:
    retry, escalation, end = logged(caplog, retried())
    assert (retry.levelname, retry.attempt, retry.wait, retry.outcome) == (
        "WARNING",
        2,
        0.25,
        "overloaded",
    )
    assert "the queue is full" in retry.message
    assert escalation.levelname == "INFO"
    assert escalation.message == "request id: needed the fallback (low_confidence)"
    assert (escalation.below, escalation.fallback_ms) == (("weakest",), 2500)
    assert (end.tier, end.attempts) == ("fallback", 2)


def test_attempts_are_lines_at_debug_level(caplog: pytest.LogCaptureFixture) -> None:
    lines = logged(caplog, retried(), logging.DEBUG)
    first, second = [line for line in lines if line.levelname == "DEBUG"]
    assert first.message == f"request id: attempt 1 at {A}: overloaded after 0.100 s"
    assert (first.status, second.status, second.host, second.outcome) == (503, 200, B, "ok")


def test_a_degraded_answer_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    (line,) = logged(caplog, [Escalated("id", "primary_error", (), None, True)])
    assert line.levelname == "WARNING"
    assert "gave no text" in line.message


def test_a_failed_call_is_a_warning_that_says_why_in_one_line(
    caplog: pytest.LogCaptureFixture,
) -> None:
    (line,) = logged(caplog, failed(OverloadedError("full\nERROR forged", status=503)))
    assert line.levelname == "WARNING"
    assert "full ERROR forged" in line.message
    assert "\n" not in line.message
    assert line.outcome == "overloaded"


def test_a_cancelled_call_is_no_warning(caplog: pytest.LogCaptureFixture) -> None:
    (line,) = logged(caplog, failed(asyncio.CancelledError()))
    assert (line.levelname, line.outcome) == ("INFO", "cancelled")
    assert line.message == "request id: cancelled after 0.100 s"


def test_no_line_holds_a_text_or_a_password(caplog: pytest.LogCaptureFixture) -> None:
    host = "http://me:hunter2@a:8081"
    events = [
        *retried(),
        AttemptFinished("id", 1, host, 0.1, 200, None),
        RequestFinished("id", host, 0.1, 1, transcription(), None),
        RequestFinished("id", host, 0.1, 1, None, TimedOut(f"no answer from {host} in time")),
    ]
    lines = logged(caplog, events, logging.DEBUG)
    assert len(lines) == 8
    for line in lines:
        assert "twelve" not in str(vars(line))
        assert "hunter2" not in str(vars(line))


def test_lines_go_to_the_logger_that_was_given(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "mine"):
        tell(LoggingHook(logging.getLogger("mine")), answered())
    assert [record.name for record in caplog.records] == ["mine"]


# Prometheus


class Scraped:
    """A hook with a registry of its own, and what the registry has."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.hook = PrometheusHook(self.registry)

    def __call__(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(f"stt_client_{name}", labels)

    def values(self, name: str, label: str) -> set[str]:
        return {
            sample.labels[label]
            for family in self.registry.collect()
            for sample in family.samples
            if sample.name == f"stt_client_{name}"
        }


@pytest.fixture
def scraped() -> Scraped:
    return Scraped()


def test_a_call_is_counted_with_its_attempts_retries_escalation_and_seconds(
    scraped: Scraped,
) -> None:
    tell(scraped.hook, retried())
    tell(scraped.hook, answered())
    assert scraped("requests_total", outcome="ok") == 2
    assert scraped("attempts_total", host=A, outcome="overloaded") == 1
    assert scraped("attempts_total", host=A, outcome="ok") == 1
    assert scraped("attempts_total", host=B, outcome="ok") == 1
    assert scraped("retries_total", reason="overloaded") == 1
    assert scraped("escalations_total", reason="low_confidence") == 1
    for stage, count, total in (
        ("total", 2, 1.16),
        ("queue", 2, 0.008),
        ("primary", 2, 0.4),
        ("fallback", 1, 2.5),
    ):
        assert scraped("seconds_count", stage=stage) == count
        assert scraped("seconds_sum", stage=stage) == pytest.approx(total)


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (overloaded(), "overloaded"),
        (FallbackFailedError("no", status=502), "fallback_failed"),
        (ServiceError("what", status=418), "unknown"),
        (TimedOut("too late"), "timed_out"),
        (STTError("odd"), "other"),
        (FileNotFoundError("clip.wav"), "other"),
        (asyncio.CancelledError(), "cancelled"),
    ],
)
def test_a_call_without_a_text_is_counted_by_its_end_and_has_no_seconds(
    scraped: Scraped, error: BaseException, outcome: str
) -> None:
    assert scraped("requests_total", outcome=outcome) == 0  # from the start
    tell(scraped.hook, failed(error))
    assert scraped("requests_total", outcome=outcome) == 1
    assert scraped("requests_total", outcome="ok") == 0
    assert scraped("seconds_count", stage="total") == 0
    if isinstance(error, STTError):
        assert scraped("attempts_total", host=A, outcome=outcome) == 1


def test_a_reason_that_the_service_does_not_have_is_other(scraped: Scraped) -> None:
    tell(scraped.hook, [Escalated("id", f"made up {n}", (), None, False) for n in range(50)])
    assert scraped("escalations_total", reason="other") == 50
    assert len(scraped.values("escalations_total", "reason")) == 4
    assert scraped("seconds_count", stage="fallback") == 0


def test_hosts_beyond_the_hundredth_are_counted_together(scraped: Scraped) -> None:
    hosts = [f"http://stt:8081 (10.0.{n // 250}.{n % 250})" for n in range(1000)]
    for host in [*hosts, hosts[0]]:
        tell(scraped.hook, [AttemptFinished("id", 1, host, 0.1, 200, None)])
    assert scraped("attempts_total", host=hosts[0], outcome="ok") == 2
    assert scraped("attempts_total", host="other", outcome="ok") == 900
    assert len(scraped.values("attempts_total", "host")) == 101


def test_no_label_holds_a_password(scraped: Scraped) -> None:
    tell(scraped.hook, [AttemptFinished("id", 1, "http://me:x@a:8081", 0.1, 200, None)])
    assert scraped("attempts_total", host=A, outcome="ok") == 1


def test_a_registry_takes_one_hook_and_says_so() -> None:
    registry = CollectorRegistry()
    PrometheusHook(registry)
    with pytest.raises(ValueError, match="stt_client_requests"):
        PrometheusHook(registry)


# OpenTelemetry


class Traced:
    """A hook with a provider of its own, and what was exported."""

    def __init__(self, **options: Any) -> None:
        self.exporter = InMemorySpanExporter()
        self.provider = TracerProvider(shutdown_on_exit=False, **options)
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.tracer = self.provider.get_tracer("test")
        self.hook = OpenTelemetryHook(self.provider)

    def spans(self, name: str) -> list[ReadableSpan]:
        return [span for span in self.exporter.get_finished_spans() if span.name == name]

    @property
    def calls(self) -> list[ReadableSpan]:
        return self.spans("POST /v1/transcribe")

    @property
    def attempts(self) -> list[ReadableSpan]:
        return self.spans("attempt")


@pytest.fixture
def traced() -> Traced:
    return Traced()


def facts(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


def ids(span: ReadableSpan) -> tuple[int, int]:
    found = span.get_span_context()
    assert found is not None
    return found.trace_id, found.span_id


def parent(span: ReadableSpan) -> int | None:
    return span.parent and span.parent.span_id


def test_an_answered_call_is_a_client_span_with_its_attempt_below_it(traced: Traced) -> None:
    tell(traced.hook, answered())
    (call,), (attempt,) = traced.calls, traced.attempts
    assert call.kind is SpanKind.CLIENT
    assert call.status.status_code is StatusCode.UNSET
    assert facts(call) == {
        "http.request.method": "POST",
        "http.response.status_code": 200,
        "server.address": "a",
        "server.port": 8081,
        "url.full": "http://a:8081/v1/transcribe",
        "url.template": "/v1/transcribe",
        "stt.request_id": "id",
        "stt.audio_seconds": 2.9,
        "stt.audio_bytes": 46000,
        "stt.tier": "primary",
        "stt.model": "base",
    }
    assert attempt.kind is SpanKind.INTERNAL
    assert parent(attempt) == ids(call)[1]
    assert attempt.end_time is not None
    assert attempt.start_time is not None
    assert attempt.end_time - attempt.start_time == 400_000_000
    assert attempt.end_time <= (call.end_time or 0)


def test_the_service_gets_the_span_of_the_call_below_that_of_the_caller(traced: Traced) -> None:
    headers = {"X-Req-Id": "id"}
    token = context.attach(baggage.set_baggage("user", "secret"))
    with traced.tracer.start_as_current_span("handler") as handler:
        tell(traced.hook, answered(headers=headers))
    context.detach(token)
    (call,) = traced.calls
    assert parent(call) == handler.get_span_context().span_id
    told = trace.get_current_span(TraceContextTextMapPropagator().extract(headers))
    got = told.get_span_context()
    assert (got.trace_id, got.span_id) == ids(call)
    assert got.trace_flags.sampled
    assert set(headers) == {"X-Req-Id", "traceparent"}  # what else the caller carries stays here


def test_each_attempt_of_a_retried_call_tells_its_own_end(traced: Traced) -> None:
    tell(traced.hook, retried())
    (call,), (first, second) = traced.calls, traced.attempts
    assert facts(first) == {
        "http.response.status_code": 503,
        "error.type": "overloaded",
        "server.address": "a",
        "server.port": 8081,
        "url.full": "http://a:8081/v1/transcribe",
    }
    assert (first.status.status_code, first.status.description) == (StatusCode.ERROR, None)
    assert facts(second)["http.request.resend_count"] == 1
    assert second.status.status_code is StatusCode.UNSET
    assert call.status.status_code is StatusCode.UNSET
    assert facts(call)["http.request.resend_count"] == 1
    assert facts(call)["server.address"] == "b"
    assert {n: v for n, v in facts(call).items() if n.startswith("stt.escalation")} == {
        "stt.escalation.reason": "low_confidence",
        "stt.escalation.below": ("weakest",),
        "stt.escalation.fallback_ms": 2500,
        "stt.escalation.degraded": False,
    }


@pytest.mark.parametrize(
    ("error", "type_", "status", "said"),
    [
        (overloaded(), "overloaded", 503, None),  # the status says it
        (TimedOut("too late"), "timed_out", None, "too late"),
        (FileNotFoundError("clip.wav"), "other", None, "clip.wav"),
        (asyncio.CancelledError(), "cancelled", None, "CancelledError"),
    ],
)
def test_a_call_without_a_text_ends_its_span_as_an_error(
    traced: Traced, error: BaseException, type_: str, status: int | None, said: str | None
) -> None:
    tell(traced.hook, failed(error))
    (call,) = traced.calls
    assert call.status.status_code is StatusCode.ERROR
    if said is None:
        assert call.status.description is None
    else:
        assert said in (call.status.description or "")
    assert facts(call)["error.type"] == type_
    assert facts(call).get("http.response.status_code") == status
    assert "stt.tier" not in facts(call)


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("http://stt/base/", ("stt", 80, "http://stt/base/v1/transcribe", None)),
        ("https://stt", ("stt", 443, "https://stt/v1/transcribe", None)),
        (
            "http://stt:8081 (10.0.0.7)",
            ("stt", 8081, "http://stt:8081/v1/transcribe", "10.0.0.7"),
        ),
        ("http://[::1]:8081", ("::1", 8081, "http://[::1]:8081/v1/transcribe", None)),
        ("http://me:x@stt:1", ("stt", 1, "http://stt:1/v1/transcribe", None)),
        ("stt:8081", ("stt", 8081, None, None)),
    ],
)
def test_a_host_is_named_as_the_conventions_ask(
    traced: Traced, host: str, expected: tuple[object, ...]
) -> None:
    tell(
        traced.hook,
        [RequestStarted("id", 1, 1, {}), RequestFinished("id", host, 1, 1, transcription(), None)],
    )
    found = facts(traced.calls[0])
    names = ("server.address", "server.port", "url.full", "network.peer.address")
    assert tuple(found.get(name) for name in names) == expected


def test_a_span_ends_even_if_its_host_cannot_be_read(traced: Traced) -> None:
    telemetry = Telemetry([traced.hook])
    telemetry.emit(RequestStarted("id", 1, 1, {}))
    telemetry.emit(RequestFinished("id", "http://[", 1, 1, transcription(), None))
    (call,) = traced.calls
    assert call.end_time is not None
    assert traced.hook._spans == {}


def test_a_thousand_calls_at_once_of_which_half_are_cancelled_are_kept_apart(
    traced: Traced,
) -> None:
    telemetry = Telemetry([traced.hook])
    sent: dict[str, dict[str, str]] = {}

    async def call(id_: str, go_on: asyncio.Event) -> None:
        headers = sent[id_] = {}
        first, *rest = answered(id_, headers)
        with traced.tracer.start_as_current_span(f"caller of {id_}"):
            telemetry.emit(first)
            try:
                await go_on.wait()
            except asyncio.CancelledError as error:
                telemetry.emit(RequestFinished(id_, A, 0.1, 1, None, error))
                raise
            for event in rest:
                telemetry.emit(event)

    async def test() -> None:
        go_on = asyncio.Event()
        tasks = [asyncio.create_task(call(f"id-{n}", go_on)) for n in range(1000)]
        await asyncio.sleep(0)
        assert len(sent) == 1000  # all are under way
        for task in tasks[::2]:
            task.cancel()
        go_on.set()
        await asyncio.wait(tasks)

    asyncio.run(test())
    assert traced.hook._spans == {}
    calls = {facts(span)["stt.request_id"]: span for span in traced.calls}
    assert len(calls) == len(traced.calls) == 1000
    for n in range(1000):
        span = calls[f"id-{n}"]
        (caller,) = traced.spans(f"caller of id-{n}")
        assert parent(span) == ids(caller)[1]
        assert f"{ids(span)[1]:016x}" in sent[f"id-{n}"]["traceparent"]
        assert facts(span).get("error.type") == (None if n % 2 else "cancelled")
    assert {parent(span) for span in traced.attempts} == {
        ids(calls[f"id-{n}"])[1] for n in range(1, 1000, 2)
    }


def test_calls_that_share_a_request_id_all_end_their_spans(traced: Traced) -> None:
    begin, attempt, end = answered()
    tell(traced.hook, [begin, begin, attempt, end, attempt, end, end])
    assert len(traced.calls) == len({ids(span) for span in traced.calls}) == 2
    assert {parent(span) for span in traced.attempts} == {ids(span)[1] for span in traced.calls}
    assert traced.hook._spans == {}


def test_a_call_that_is_not_sampled_tells_the_service_so() -> None:
    traced = Traced(sampler=ALWAYS_OFF)
    headers: dict[str, str] = {}
    tell(traced.hook, answered(headers=headers))
    told = trace.get_current_span(TraceContextTextMapPropagator().extract(headers))
    assert told.get_span_context().is_valid
    assert not told.get_span_context().trace_flags.sampled
    assert traced.exporter.get_finished_spans() == ()


def test_without_a_provider_nothing_is_traced_and_nothing_sent() -> None:
    headers: dict[str, str] = {}
    hook = OpenTelemetryHook(trace.NoOpTracerProvider())
    tell(hook, answered(headers=headers))
    assert headers == {}
    assert hook._spans == {}
