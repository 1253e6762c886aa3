"""What is known of one request so far.

Each stage writes down what it learns; the headers, the log line and the metrics are made from it
when the answer goes out, whatever the answer is.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field


@dataclass(slots=True)
class Record:
    """Times are in milliseconds; None means that the request never got there."""

    request_id: str
    endpoint: str
    client: str
    traceparent: str | None = None
    started: float = field(default_factory=time.perf_counter)
    key_id: str | None = None
    audio_seconds: float | None = None
    queue_wait_ms: float | None = None
    primary_infer_ms: float | None = None
    fallback_infer_ms: float | None = None
    fallback_used: bool | None = None
    fallback_error: str | None = None
    final_model: str | None = None
    reason: str | None = None
    below: tuple[str, ...] | None = None
    lang_check_applicable: bool | None = None
    degraded: bool = False
    primary_weakest: float | None = None
    fallback_weakest: float | None = None
    picked: str | None = None
    language: str | None = None
    text: str | None = None

    @property
    def total_ms(self) -> float:
        """Since the request's first byte was seen by the application."""
        return (time.perf_counter() - self.started) * 1000
