"""Calls as lines in the log."""

from __future__ import annotations

import asyncio
import logging

from stt_sdk._telemetry import AttemptFinished, Escalated, Event, RequestFinished, Retried
from stt_sdk._types import Transcription
from stt_sdk.hooks._words import one_line, outcome, shown


class LoggingHook:
    """A line for each call that ended, retry and escalation; attempts at debug level.

    Failed calls, retries and degraded answers are warnings. The facts are in `extra`, too, as
    `request_id`, `host`, `seconds` and so on, for handlers that write JSON. No line has the text.

    Args:
        logger: None: `stt_sdk`.
    """

    def __init__(self, logger: logging.Logger | None = None) -> None:
        self._logger = logger or logging.getLogger("stt_sdk")

    def __call__(self, event: Event) -> None:
        match event:
            case RequestFinished(result=Transcription() as result):
                self._answered(event, result)
            case RequestFinished(error=asyncio.CancelledError()):
                self._ended(event, logging.INFO, f"cancelled after {event.seconds:.3f} s")
            case RequestFinished():
                said = f"failed after {event.seconds:.3f} s: {one_line(event.error)}"
                self._ended(event, logging.WARNING, said)
            case Retried():
                self._retried(event)
            case Escalated():
                self._escalated(event)
            case AttemptFinished() if self._logger.isEnabledFor(logging.DEBUG):
                self._attempted(event)

    def _answered(self, event: RequestFinished, result: Transcription) -> None:
        tier, model = result.routing.tier, result.model
        self._ended(
            event,
            logging.INFO,
            f"transcribed in {event.seconds:.3f} s by the {tier} ({model})",
            audio_seconds=result.duration,
            tier=tier,
            model=model,
            reason=result.routing.reason,
        )

    def _ended(self, event: RequestFinished, level: int, said: str, **facts: object) -> None:
        self._say(
            level,
            event.request_id,
            said,
            host=event.host and shown(event.host),
            seconds=event.seconds,
            attempts=event.attempts,
            outcome=outcome(event.error),
            **facts,
        )

    def _retried(self, event: Retried) -> None:
        self._say(
            logging.WARNING,
            event.request_id,
            f"attempt {event.number} comes in {event.wait:.3f} s, after: {one_line(event.after)}",
            attempt=event.number,
            wait=event.wait,
            outcome=outcome(event.after),
        )

    def _escalated(self, event: Escalated) -> None:
        end = ", which gave no text; the primary's was returned" if event.degraded else ""
        self._say(
            logging.WARNING if event.degraded else logging.INFO,
            event.request_id,
            f"needed the fallback ({event.reason or 'nobody knows why'}){end}",
            reason=event.reason,
            below=event.below,
            fallback_ms=event.fallback_ms,
            degraded=event.degraded,
        )

    def _attempted(self, event: AttemptFinished) -> None:
        word, host = outcome(event.error), shown(event.host)
        self._say(
            logging.DEBUG,
            event.request_id,
            f"attempt {event.number} at {host}: {word} after {event.seconds:.3f} s",
            attempt=event.number,
            host=host,
            seconds=event.seconds,
            status=event.status,
            outcome=word,
        )

    def _say(self, level: int, request_id: str, said: str, **facts: object) -> None:
        extra = {"request_id": request_id, **facts}
        self._logger.log(level, "request %s: %s", request_id, said, extra=extra)
