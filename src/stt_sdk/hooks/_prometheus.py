"""Calls as Prometheus metrics."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stt_sdk._telemetry import AttemptFinished, Escalated, Event, RequestFinished, Retried
from stt_sdk.hooks._words import OTHER, OUTCOMES, needs, outcome, shown

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

# As the service names them.
REASONS = ("low_confidence", "primary_error", "language")
STAGES = ("total", "queue", "primary", "fallback")
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1, 1.5, 2, 3, 5, 8, 13, 20, 30, 60)
# Addresses behind a name come and go; each leaves series that are kept for good.
MAX_HOSTS = 100


class PrometheusHook:
    """Counts calls in `stt_client_*`; docs/sdk.md, "Prometheus", has the metrics.

    Args:
        registry: None: the process's own. It takes these metrics once: clients share the hook.

    Raises:
        ImportError: `prometheus-client` is not installed.
        ValueError: the registry has these metrics already.
    """

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        try:
            from prometheus_client import REGISTRY, Counter, Histogram
        except ImportError as error:
            raise ImportError(needs("PrometheusHook", "prometheus")) from error
        kept = REGISTRY if registry is None else registry

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"stt_client_{name}_total", text, labels, registry=kept)

        self._requests = counter("requests", "Calls, by their end.", "outcome")
        self._attempts = counter("attempts", "Attempts, by host and end.", "host", "outcome")
        self._retries = counter("retries", "Why calls were tried again.", "reason")
        self._escalations = counter("escalations", "Why a fallback was needed.", "reason")
        self._seconds = Histogram(
            "stt_client_seconds",
            "Calls that gave a text, and stages as the service measured them.",
            ["stage"],
            registry=kept,
            buckets=SECONDS,
        )
        self._hosts: set[str] = set()
        # A series that begins at 1 hides its first event from rate().
        for end in OUTCOMES:
            self._requests.labels(end)
        for reason in (*REASONS, OTHER):
            self._escalations.labels(reason)
        for stage in STAGES:
            self._seconds.labels(stage)

    def __call__(self, event: Event) -> None:
        match event:
            case RequestFinished():
                self._requests.labels(outcome(event.error)).inc()
                if event.result is not None:
                    times = event.result.timings_ms
                    self._seconds.labels("total").observe(event.seconds)
                    self._observe("queue", times.queue_wait)
                    self._observe("primary", times.primary_infer)
            case AttemptFinished():
                self._attempts.labels(self._host(event.host), outcome(event.error)).inc()
            case Retried():
                self._retries.labels(outcome(event.after)).inc()
            case Escalated():
                self._escalations.labels(event.reason if event.reason in REASONS else OTHER).inc()
                self._observe("fallback", event.fallback_ms)

    def _observe(self, stage: str, ms: float | None) -> None:
        if ms is not None:
            self._seconds.labels(stage).observe(ms / 1000)

    def _host(self, host: str) -> str:
        label = shown(host)
        if label in self._hosts:
            return label
        if len(self._hosts) >= MAX_HOSTS:
            return OTHER
        self._hosts.add(label)
        return label
