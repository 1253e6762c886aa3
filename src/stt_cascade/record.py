"""What is known of one request so far.

Each stage writes down that it begins and what it learns; the headers, the log line, the metrics and
the trace are made from it when the answer goes out, whatever the answer is.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Literal

StageName = Literal["receive", "decode", "queue", "infer", "decide", "fallback", "answer"]


@dataclass(frozen=True, slots=True)
class Stage:
    """A part of the way; it ends where the next one begins, or with the request."""

    name: StageName
    began: float  # as `time.perf_counter`


@dataclass(slots=True)
class Record:
    """Times are in milliseconds; None means that the request never got there.

    Attributes:
        path: what was asked for, below the root path that a proxy may have taken away.
        endpoint: the same, or `other`.
        traceparent, tracestate: what the fallback is told; the caller's own unless this tier
            traces, too. The second goes with the first only.
        caller: who shares the service with others: the key's id, or where there are no keys the
            address as the rate limit counts it.
        stages: in the order of their beginning.
    """

    request_id: str
    endpoint: str
    client: str
    path: str = ""
    traceparent: str | None = None
    tracestate: str | None = None
    started: float = field(default_factory=time.perf_counter)
    stages: list[Stage] = field(default_factory=list)
    key_id: str | None = None
    caller: str = ""
    audio_seconds: float | None = None
    queue_wait_ms: float | None = None
    primary_infer_ms: float | None = None
    fallback_infer_ms: float | None = None
    primary_error: str | None = None
    fallback_used: bool | None = None
    fallback_error: str | None = None
    final_model: str | None = None
    reason: str | None = None
    below: tuple[str, ...] | None = None
    lang_check_applicable: bool | None = None
    degraded: bool = False
    warnings: tuple[str, ...] = ()
    primary_weakest: float | None = None
    fallback_weakest: float | None = None
    picked: str | None = None
    language: str | None = None
    text: str | None = None

    def enter(self, name: StageName) -> None:
        """A stage begins, and the one before it has ended."""
        self.stages.append(Stage(name, time.perf_counter()))

    @property
    def total_ms(self) -> float:
        """Since the request's first byte was seen by the application."""
        return (time.perf_counter() - self.started) * 1000
