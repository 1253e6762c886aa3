"""Every metric of a tier, behind functions that say what happened.

The Prometheus names are the contract (docs/api.md); the rolling quantiles feed `GET /v1/metrics`.
"""

from __future__ import annotations

from collections import Counter as Tally
from collections import deque
from collections.abc import Callable, Iterator

import numpy as np
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from stt_cascade.cascade.decision import AUTHORS, GATES
from stt_cascade.cascade.fallback_answer import CAUSES
from stt_cascade.cascade.shadow import RESULTS as SHADOW_RESULTS
from stt_cascade.engine.transcript import Transcript
from stt_cascade.errors import ERROR_TYPES
from stt_cascade.record import Record
from stt_cascade.telemetry import logs
from stt_cascade.telemetry.gpu import Reading
from stt_cascade.warning_codes import WARNING_CODES

# The contract names no *_created series.
disable_created_metrics()  # type: ignore[no-untyped-call]  # the library leaves it untyped

TRANSCRIBE = "/v1/transcribe"
ENDPOINTS = (TRANSCRIBE, "/v1/health", "/v1/ready", "/v1/metrics", "/metrics", "other")
RESULTS = ("used", "skipped", "failed")
REASONS = ("low_confidence", "primary_error", "language")
# Refusals before a slot was taken, for lack of room, time or permission.
REJECTIONS = (
    "unauthorized",
    "rate_limited",
    "payload_too_large",
    "audio_too_long",
    "overloaded",
    "draining",
    "not_ready",
    "deadline_exceeded",
    "request_timeout",
)
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1, 1.5, 2, 3, 5, 8, 13, 20, 30, 60)
RATIOS = tuple(step / 20 for step in range(1, 21))
WINDOW = 1024  # requests that the rolling quantiles look back on


class Metrics:
    """The metrics of one tier, in a registry of their own.

    Args:
        slo_clip_seconds: clips up to this length count towards `stt_slo_request_seconds`.
    """

    def __init__(self, slo_clip_seconds: float) -> None:
        self.registry = CollectorRegistry()
        self._slo_clip_seconds = slo_clip_seconds
        self._rolling: dict[str, deque[float]] = {
            stage: deque(maxlen=WINDOW)
            for stage in ("total", "queue_wait", "primary_infer", "fallback_infer")
        }
        self._counts: Tally[str] = Tally()

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(name, text, labels, registry=self.registry)

        def seconds(name: str, text: str) -> Histogram:
            return Histogram(name, text, registry=self.registry, buckets=SECONDS)

        self._requests = counter("stt_requests_total", "Requests to transcribe.", "endpoint")
        self._exceptions = counter(
            "stt_requests_exceptions_total", "Answers other than 200.", "endpoint", "type"
        )
        self._abandoned = counter(
            "stt_requests_abandoned_total", "Callers who went away before their answer."
        )
        self._fallback = counter(
            "stt_fallback_total",
            "Decided requests: the fallback answered (used), was not needed (skipped) or failed.",
            "result",
        )
        self._escalations = counter(
            "stt_escalations_total", "Why the fallback was needed.", "reason"
        )
        self._fallback_errors = counter(
            "stt_fallback_errors_total", "Why the fallback gave no text.", "cause"
        )
        self._final_picks = counter(
            "stt_final_picks_total", "With FINAL_PICK=best: the tier with the surer text.", "tier"
        )
        self._shadows = counter(
            "stt_shadow_total", "Accepted clips drawn for a comparison with the fallback.", "result"
        )
        self._disagreement = Histogram(
            "stt_shadow_disagreement",
            "Word difference between an accepted text and the fallback's, 0 to 1.",
            registry=self.registry,
            buckets=(0.0, *RATIOS),
        )
        self._conf_below = counter("stt_conf_below_total", "Gates that failed.", "gate")
        self._rejected = counter("stt_rejected_total", "Requests turned away.", "reason")
        self._no_speech = counter("stt_no_speech_total", "Clips in which nobody speaks.")
        self._full_context = counter(
            "stt_full_context_retries_total", "Windows encoded anew, in full, after a loop."
        )
        self._second_looks = counter(
            "stt_second_looks_total", "Windows decoded again with a beam, after a doubtful text."
        )
        self._warnings = counter(
            "stt_warnings_total", "Answers that warn of something missing from the text.", "code"
        )
        self._engine_failures = counter(
            "stt_engine_failures_total", "Inferences that the tier's own engine failed."
        )
        self._audio = counter("stt_audio_seconds_total", "Seconds of audio decoded.")
        self._total = seconds("stt_request_total_seconds", "End to end, answers 200.")
        self._slo = seconds("stt_slo_request_seconds", "The same, clips up to SLO_CLIP_SECONDS.")
        self._primary = seconds("stt_primary_infer_seconds", "Inference on the primary.")
        self._fallback_infer = seconds(
            "stt_fallback_infer_seconds",
            "Round trip to the fallback, retry included; on the fallback its inference.",
        )
        self._queue_wait = seconds("stt_queue_wait_seconds", "Wait for a slot.")
        self._confidence = Histogram(
            "stt_confidence",
            "Scores of the tier's own texts.",
            ["score"],
            registry=self.registry,
            buckets=RATIOS,
        )

        self._requests.labels(TRANSCRIBE)
        for type_ in ERROR_TYPES:
            self._exceptions.labels(TRANSCRIBE, type_)
        for metric, values in (
            (self._fallback, RESULTS),
            (self._escalations, REASONS),
            (self._fallback_errors, CAUSES),
            (self._final_picks, AUTHORS),
            (self._shadows, SHADOW_RESULTS),
            (self._conf_below, GATES),
            (self._rejected, REJECTIONS),
            (self._warnings, WARNING_CODES),
            (self._confidence, ("logprob", "weakest", "langprob")),
        ):
            for value in values:
                metric.labels(value)

    def request_started(self) -> None:
        self._requests.labels(TRANSCRIBE).inc()
        self._counts["requests"] += 1

    def request_refused(self, endpoint: str, type_: str) -> None:
        """An answer other than 200."""
        self._exceptions.labels(endpoint, type_).inc()
        if endpoint == TRANSCRIBE:
            self._counts["errors"] += 1
        if type_ in REJECTIONS:
            self._rejected.labels(type_).inc()

    def request_abandoned(self) -> None:
        """The caller of a request to transcribe went away before the answer."""
        self._abandoned.inc()
        self._counts["abandoned"] += 1

    def request_answered(self, record: Record) -> None:
        """An answer 200 to a request to transcribe."""
        total = record.total_ms / 1000
        self._total.observe(total)
        self._rolling["total"].append(record.total_ms)
        self._counts["answered"] += 1
        for code in record.warnings:
            if code in WARNING_CODES:  # a newer fallback may know more
                self._warnings.labels(code).inc()
        if record.audio_seconds is not None and record.audio_seconds <= self._slo_clip_seconds:
            self._slo.observe(total)

    def audio_decoded(self, seconds: float) -> None:
        self._audio.inc(seconds)

    def engine_failed(self) -> None:
        """An inference raised an exception."""
        self._engine_failures.inc()

    def no_speech(self) -> None:
        self._no_speech.inc()
        self._counts["no_speech"] += 1

    def queue_waited(self, seconds: float) -> None:
        self._queue_wait.observe(seconds)
        self._rolling["queue_wait"].append(seconds * 1000)

    def primary_inferred(self, seconds: float) -> None:
        self._primary.observe(seconds)
        self._rolling["primary_infer"].append(seconds * 1000)

    def fallback_inferred(self, seconds: float) -> None:
        self._fallback_infer.observe(seconds)
        self._rolling["fallback_infer"].append(seconds * 1000)

    def recognised(self, transcript: Transcript) -> None:
        """A text of this tier's own engine."""
        self._full_context.inc(transcript.full_context_retries)
        self._second_looks.inc(transcript.second_looks)
        self._confidence.labels("logprob").observe(transcript.logprob)
        self._confidence.labels("weakest").observe(transcript.weakest)
        if transcript.language_probability is not None:
            self._confidence.labels("langprob").observe(transcript.language_probability)

    def gates_failed(self, gates: tuple[str, ...]) -> None:
        for gate in gates:
            self._conf_below.labels(gate).inc()

    def escalated(self, reason: str) -> None:
        self._escalations.labels(reason).inc()

    def fallback_failed(self, cause: str) -> None:
        """Once for each request that needed the fallback and got no text of it."""
        self._fallback_errors.labels(cause).inc()

    def picked(self, tier: str) -> None:
        """Once for each request that had two texts to pick from."""
        self._final_picks.labels(tier).inc()

    def shadow_ended(self, result: str) -> None:
        """Once for each clip that was drawn: compared, skipped or failed."""
        self._shadows.labels(result).inc()

    def shadow_differed(self, ratio: float) -> None:
        self._disagreement.observe(ratio)

    def decided(self, result: str) -> None:
        """Once for each request that reached a decision: used, skipped or failed."""
        self._fallback.labels(result).inc()
        self._counts[f"fallback_{result}"] += 1

    def watch(
        self,
        gauges: dict[str, tuple[str, Callable[[], float]]],
        build: Callable[[], dict[str, str]],
        gpu: Callable[[], Reading | None],
    ) -> None:
        """Add what is read at each scrape: gauges, the build, and the GPU where there is one."""
        for name, (text, read) in gauges.items():
            Gauge(name, text, registry=self.registry).set_function(read)
        self.registry.register(_BuildCollector(build))
        self.registry.register(_GpuCollector(gpu))
        self.registry.register(_LogCollector())

    def counts(self) -> dict[str, int]:
        """Totals since the start, for the JSON snapshot."""
        names = ("requests", "answered", "errors", "abandoned", "no_speech")
        return {name: self._counts[name] for name in (*names, *(f"fallback_{r}" for r in RESULTS))}

    def quantiles(self) -> dict[str, dict[str, float | None]]:
        """p50, p95 and p99 in ms of the last requests, by stage; None where there were none."""
        return {stage: _quantiles(values) for stage, values in self._rolling.items()}


def _quantiles(values: deque[float]) -> dict[str, float | None]:
    names = ("p50", "p95", "p99")
    if not values:
        return dict.fromkeys(names)
    found = np.quantile(np.fromiter(values, float), (0.5, 0.95, 0.99))
    return {name: round(float(value), 1) for name, value in zip(names, found, strict=True)}


class _BuildCollector(Collector):
    """What is running: where the model runs is known once it is loaded."""

    def __init__(self, build: Callable[[], dict[str, str]]) -> None:
        self._build = build

    def collect(self) -> Iterator[Metric]:
        build = self._build()
        info = GaugeMetricFamily("stt_build_info", "What is running.", labels=list(build))
        info.add_metric(list(build.values()), 1)
        yield info


class _LogCollector(Collector):
    """What the log lost."""

    def collect(self) -> Iterator[Metric]:
        yield CounterMetricFamily(
            "stt_log_lines_dropped_total",
            "Log lines dropped because they could not be written.",
            value=logs.dropped(),
        )


class _GpuCollector(Collector):
    """The GPU's gauges; each is absent while it cannot be read."""

    def __init__(self, seen: Callable[[], Reading | None]) -> None:
        self._seen = seen

    def collect(self) -> Iterator[Metric]:
        reading = self._seen()
        if reading is None:
            return
        for name, text, value in (
            ("stt_gpu_utilization_pct", "GPU busy, percent.", reading.utilization_pct),
            ("stt_gpu_mem_used_mb", "GPU memory used, MB.", reading.mem_used_mb),
            ("stt_gpu_mem_total_mb", "GPU memory there is, MB.", reading.mem_total_mb),
        ):
            if value is not None:
                yield GaugeMetricFamily(name, text, value=value)
