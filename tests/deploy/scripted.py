"""A target for Prometheus whose series do what a script says: the symptoms without the faults."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from stt_cascade.cli.child import HOST

# Gauges by value and counters by rate, as `Target` has them.
Symptoms = tuple[dict[str, float], dict[str, float]]


class Target:
    """One that answers `/metrics`.

    Attributes:
        gauges: values by series.
        rates: of counters, in units a second, by series; `name{label="value"}` is a series.
    """

    def __init__(self, gauges: Mapping[str, float], rates: Mapping[str, float]) -> None:
        self.gauges = dict(gauges)
        self.rates = dict(rates)
        self._totals: dict[str, float] = {}
        self._since = time.monotonic()
        self.address = ""

    def now(self, gauges: Mapping[str, float], rates: Mapping[str, float]) -> None:
        """From now on they are these; those not named stay as they are."""
        self._count()
        self.gauges.update(gauges)
        self.rates.update(rates)

    def _count(self) -> None:
        now = time.monotonic()
        for series, rate in self.rates.items():
            self._totals[series] = self._totals.get(series, 0.0) + rate * (now - self._since)
        self._since = now

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readuntil(b"\r\n\r\n")
            self._count()
            lines = [
                f"{series} {value}\n" for series, value in {**self.gauges, **self._totals}.items()
            ]
            body = "".join(lines).encode()
            head = f"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
            writer.write(head.encode() + body)
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # who asked has gone
        finally:
            writer.close()


@asynccontextmanager
async def serving(target: Target) -> AsyncIterator[Target]:
    """The same, with an address."""
    server = await asyncio.start_server(target._serve, HOST, 0)
    async with server:
        target.address = f"{HOST}:{server.sockets[0].getsockname()[1]}"
        yield target


ENDPOINT = 'endpoint="/v1/transcribe"'
ENVOY = 'envoy_http_conn_manager_prefix="stt-primary",envoy_response_code_class'


def _answers(seconds: float) -> dict[str, float]:
    """20 answers a second, each of which takes so long."""
    found: dict[str, float] = {}
    for name in ("stt_request_total_seconds", "stt_slo_request_seconds"):
        for edge in (0.5, 1.0, 2.0):
            found[f'{name}_bucket{{le="{edge}"}}'] = 20.0 * (seconds <= edge)
        found[f'{name}_bucket{{le="+Inf"}}'] = found[f"{name}_count"] = 20.0
    return found


def _decided(failed: float, used: float, skipped: float) -> dict[str, float]:
    counted = {"failed": failed, "used": used, "skipped": skipped}
    return {f'stt_fallback_total{{result="{name}"}}': rate for name, rate in counted.items()}


# A primary that is well, and one that has every symptom at once.
WELL: Symptoms = (
    {
        "stt_queue_depth": 1,
        "stt_max_queue": 16,
        "stt_oldest_inference_seconds": 0.3,
        "stt_infer_timeout_seconds": 120,
        "stt_fallback_breaker_open": 0,
        "stt_rate_limit_fullest_ratio": 0.1,
        "stt_process_rss_mb": 500,
        "stt_gpu_utilization_pct": 40,
        "stt_gpu_mem_used_mb": 8000,
        "stt_gpu_mem_total_mb": 16000,
    },
    {
        **_answers(0.4),
        **_decided(failed=0, used=2, skipped=18),
        f"stt_requests_total{{{ENDPOINT}}}": 20,
        f'stt_requests_exceptions_total{{{ENDPOINT},type="internal"}}': 0,
        'stt_rejected_total{reason="overloaded"}': 0,
        'stt_fallback_errors_total{cause="unreachable"}': 0,
        "stt_shadow_disagreement_count": 12,
        "stt_shadow_disagreement_sum": 1.2,
    },
)
ILL: Symptoms = (
    {
        "stt_queue_depth": 15,
        "stt_oldest_inference_seconds": 90,
        "stt_fallback_breaker_open": 1,
        "stt_rate_limit_fullest_ratio": 0.98,
        "stt_process_rss_mb": 900,
        "stt_gpu_utilization_pct": 99,
        "stt_gpu_mem_used_mb": 15800,
    },
    {
        **_answers(1.8),
        **_decided(failed=4, used=12, skipped=4),
        f'stt_requests_exceptions_total{{{ENDPOINT},type="internal"}}': 5,
        'stt_rejected_total{reason="overloaded"}': 3,
        'stt_fallback_errors_total{cause="unreachable"}': 4,
        "stt_shadow_disagreement_sum": 4.8,
    },
)
ENVOY_WELL: Symptoms = (
    {},
    {
        f'envoy_http_downstream_rq_xx{{{ENVOY}="{one}"}}': rate
        for one, rate in (("2", 20.0), ("5", 0.0))
    },
)
ENVOY_ILL: Symptoms = ({}, {f'envoy_http_downstream_rq_xx{{{ENVOY}="5"}}': 5.0})
