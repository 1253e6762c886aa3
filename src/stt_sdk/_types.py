"""What the service answers, as frozen values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Timestamps = Literal["none", "segment", "word"]
Task = Literal["transcribe", "translate"]


@dataclass(frozen=True)
class Word:
    """Times in seconds from the clip's start; `probability` 0 to 1."""

    start: float
    end: float
    word: str
    probability: float


@dataclass(frozen=True)
class Segment:
    """Times in seconds from the clip's start; `words` is filled with `timestamps="word"` only."""

    start: float
    end: float
    text: str
    avg_logprob: float
    no_speech_prob: float
    words: tuple[Word, ...]


@dataclass(frozen=True)
class Confidence:
    """Scores of the text, 0 to 1; None where nobody speaks."""

    logprob: float | None
    weakest: float | None
    words: int


@dataclass(frozen=True)
class Routing:
    """Whose text it is, and why: `below` names the gates that the primary's own text failed."""

    tier: str
    fallback_used: bool
    reason: str
    below: tuple[str, ...]
    degraded: bool


@dataclass(frozen=True)
class Timings:
    """Milliseconds; None: that did not happen, or, in an error, is not known."""

    queue_wait: float | None
    primary_infer: float | None
    fallback_infer: float | None
    total: float | None


@dataclass(frozen=True)
class Health:
    """`GET /v1/health`. Uptime in seconds."""

    ok: bool
    service: str
    model: str
    device: str
    commit: str
    version: str
    uptime_s: float


@dataclass(frozen=True)
class Readiness:
    """`GET /v1/ready`: whether a request would be taken now, and the state behind that."""

    ready: bool
    state: str


@dataclass(frozen=True)
class Transcription:
    """One clip's text and everything that is known about it. Durations in seconds.

    Attributes:
        language_checked: whether the language was detected, so that its gate applied; None: on a
            fallback, or where nobody speaks.
        fallback_error: why the fallback gave no text, in a degraded answer: `cause: sentence`.
        host: address that answered.
        attempts: how often the call was made.
        elapsed: seconds that the caller waited, all attempts included.
    """

    text: str
    language: str | None
    language_probability: float | None
    duration: float
    speech_duration: float
    model: str
    confidence: Confidence
    routing: Routing
    segments: tuple[Segment, ...]
    timings_ms: Timings
    request_id: str
    language_checked: bool | None = None
    fallback_error: str | None = None
    host: str = ""
    attempts: int = 1
    elapsed: float = 0.0

    @classmethod
    def from_json(
        cls, data: Mapping[str, Any], headers: Mapping[str, str] | None = None, **call: Any
    ) -> Transcription:
        """Read an answer.

        Args:
            headers: of the answer; names in any case.
            call: `host`, `attempts` and `elapsed`.

        Raises:
            KeyError, TypeError: it is not of the agreed form.
        """
        headers = {} if headers is None else headers
        checked = headers.get("X-Lang-Check-Applicable")
        confidence, routing, timings = data["confidence"], data["routing"], data["timings_ms"]
        return cls(
            text=data["text"],
            language=data["language"],
            language_probability=data["language_probability"],
            duration=data["duration"],
            speech_duration=data["speech_duration"],
            model=data["model"],
            confidence=Confidence(
                confidence["logprob"], confidence["weakest"], confidence["words"]
            ),
            routing=Routing(
                tier=routing["tier"],
                fallback_used=routing["fallback_used"],
                reason=routing["reason"],
                below=tuple(routing["below"]),
                degraded=routing["degraded"],
            ),
            segments=tuple(
                Segment(
                    start=segment["start"],
                    end=segment["end"],
                    text=segment["text"],
                    avg_logprob=segment["avg_logprob"],
                    no_speech_prob=segment["no_speech_prob"],
                    words=tuple(
                        Word(word["start"], word["end"], word["word"], word["probability"])
                        for word in segment["words"]
                    ),
                )
                for segment in data["segments"]
            ),
            timings_ms=Timings(
                timings["queue_wait"],
                timings["primary_infer"],
                timings["fallback_infer"],
                timings["total"],
            ),
            request_id=data["request_id"],
            language_checked=None if checked is None else checked == "true",
            fallback_error=headers.get("X-Fallback-Error"),
            **call,
        )
