"""What the service answers, as frozen values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from stt_sdk._text import harmless, one_line

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
class TranscriptionWarning:
    """What is known to be missing from a text: a code to branch on, and a sentence.

    A newer service may send codes that this client does not know.
    """

    code: str
    message: str


@dataclass(frozen=True)
class Segment:
    """Times in seconds from the clip's start; `words` is filled with `timestamps="word"` only.

    Attributes:
        suspect: the text looks like a loop, or like less than what was said.
    """

    start: float
    end: float
    text: str
    avg_logprob: float
    no_speech_prob: float
    words: tuple[Word, ...]
    suspect: bool = False


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

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Health:
        """Read an answer.

        Raises:
            KeyError, TypeError: it is not of the agreed form.
        """
        return cls(
            ok=_read(data, "ok", bool),
            service=_read(data, "service", str),
            model=_read(data, "model", str),
            device=_read(data, "device", str),
            commit=_read(data, "commit", str),
            version=_read(data, "version", str),
            uptime_s=_read(data, "uptime_s", *_NUMBER),
        )


@dataclass(frozen=True)
class Readiness:
    """`GET /v1/ready`: whether a request would be taken now, and the state behind that."""

    ready: bool
    state: str

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Readiness:
        """Read an answer.

        Raises:
            KeyError, TypeError: it is not of the agreed form.
        """
        return cls(_read(data, "ready", bool), _read(data, "state", str))


@dataclass(frozen=True)
class Transcription:
    """One clip's text and everything that is known about it. Durations in seconds.

    Attributes:
        warnings: what is known to be missing from the text.
        language_checked: whether the language was detected, so that its gate applied; a fallback
            has no gates. None: the service did not say.
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
    warnings: tuple[TranscriptionWarning, ...] = ()
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
            headers: of the answer, as httpx2 has them: it finds names in any case.
            call: `host`, `attempts` and `elapsed`.

        Raises:
            KeyError, TypeError: it is not of the agreed form.
        """
        headers = {} if headers is None else headers
        checked = headers.get("X-Lang-Check-Applicable")
        failed = headers.get("X-Fallback-Error")
        confidence = _read(data, "confidence", dict)
        routing = _read(data, "routing", dict)
        timings = _read(data, "timings_ms", dict)
        return cls(
            text=_read(data, "text", str),
            language=_name(data, "language", _NoneType),
            language_probability=_read(data, "language_probability", *_NUMBER, _NoneType),
            duration=_read(data, "duration", *_NUMBER),
            speech_duration=_read(data, "speech_duration", *_NUMBER),
            model=_name(data, "model"),
            confidence=Confidence(
                _read(confidence, "logprob", *_NUMBER, _NoneType),
                _read(confidence, "weakest", *_NUMBER, _NoneType),
                _read(confidence, "words", int),
            ),
            routing=Routing(
                tier=_name(routing, "tier"),
                fallback_used=_read(routing, "fallback_used", bool),
                reason=_name(routing, "reason"),
                below=_names(_read(routing, "below", list)),
                degraded=_read(routing, "degraded", bool),
            ),
            segments=tuple(_segment(segment) for segment in _read(data, "segments", list)),
            timings_ms=Timings(
                *(
                    _read(timings, name, *_NUMBER, _NoneType)
                    for name in ("queue_wait", "primary_infer", "fallback_infer", "total")
                )
            ),
            request_id=_name(data, "request_id"),
            warnings=tuple(
                TranscriptionWarning(_name(warning, "code"), _name(warning, "message"))
                for warning in data.get("warnings", ())
            ),
            language_checked=None if checked is None else checked == "true",
            fallback_error=None if failed is None else one_line(failed),
            **call,
        )


_NoneType = type(None)
_NUMBER = (int, float)
_LARGEST = 1e15
_MOST_GATES = 32


def _read(data: Mapping[str, Any], name: str, *kinds: type) -> Any:
    """A value of JSON, which must be of one of these kinds; a truth value is no number."""
    value = data[name]
    if type(value) not in kinds:
        raise TypeError(f"{name} is {type(value).__name__}")
    if isinstance(value, str):
        return harmless(value)
    if type(value) in _NUMBER and not -_LARGEST < value < _LARGEST:  # NaN is not, either
        raise TypeError(f"{name} is no number of a reasonable size")
    return value


def _name(data: Mapping[str, Any], name: str, *kinds: type) -> Any:
    """A text that is shown in logs and labels: one line of reasonable length."""
    value = _read(data, name, str, *kinds)
    return value if value is None else one_line(value)


def _names(values: list[Any]) -> tuple[str, ...]:
    """Gates. A newer service may know more, but not hundreds."""
    return tuple(_name({"below": value}, "below") for value in values[:_MOST_GATES])


def _segment(data: Mapping[str, Any]) -> Segment:
    return Segment(
        start=_read(data, "start", *_NUMBER),
        end=_read(data, "end", *_NUMBER),
        text=_read(data, "text", str),
        avg_logprob=_read(data, "avg_logprob", *_NUMBER),
        no_speech_prob=_read(data, "no_speech_prob", *_NUMBER),
        words=tuple(
            Word(
                _read(word, "start", *_NUMBER),
                _read(word, "end", *_NUMBER),
                _read(word, "word", str),
                _read(word, "probability", *_NUMBER),
            )
            for word in _read(data, "words", list)
        ),
        suspect=data.get("suspect") is True,
    )
