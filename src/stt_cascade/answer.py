"""The JSON of `POST /v1/transcribe`: what a tier answers, and what the primary reads."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, FailFast, Field

from stt_cascade.cascade.confidence import Scores
from stt_cascade.engine.protocol import Segment
from stt_cascade.engine.transcript import Transcript
from stt_cascade.record import Record
from stt_cascade.warning_codes import MESSAGES, WarningCode
from stt_sdk._text import harmless, one_line

Reason = Literal["accepted", "no_speech", "low_confidence", "primary_error", "language"]


# A hostile server in the fallback's place may write these: reading stops at the first wrong item of
# a list, and no text can control a terminal or add lines to a log.
Item = TypeVar("Item")
Items = Annotated[list[Item], FailFast()]
Text = Annotated[str, AfterValidator(harmless)]
Name = Annotated[str, AfterValidator(one_line)]


class _Part(BaseModel):
    # A newer fallback may say more than this primary knows; NaN is no JSON.
    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)


class WordPart(_Part):
    start: float = Field(description="Seconds on the clip's own clock.")
    end: float = Field(description="Seconds on the clip's own clock.")
    word: Text
    probability: float = Field(description="0 to 1, mean over the word's tokens.")


class SegmentPart(_Part):
    start: float = Field(description="Seconds on the clip's own clock.")
    end: float = Field(description="Seconds on the clip's own clock.")
    text: Text
    avg_logprob: float = Field(description="Mean log-probability of the segment's tokens.")
    no_speech_prob: float = Field(description="0 to 1, Whisper's own view.")
    words: Items[WordPart] = Field(description="Filled with `timestamps=word` only.")
    suspect: bool = Field(
        default=False, description="It looks like a loop, or like less than what was said."
    )


class Confidence(_Part):
    logprob: float | None = Field(description="Mean token probability, 0 to 1.")
    weakest: float | None = Field(description="Mean probability of the 3 weakest tokens, 0 to 1.")
    words: int


class Routing(_Part):
    tier: Literal["primary", "fallback"] = Field(description="Whose text this is.")
    fallback_used: bool = Field(description="Whether the fallback was asked, and answered.")
    reason: Reason = Field(description="Why that tier.")
    below: Items[Name] = Field(description="The gates that the primary's text failed.")
    degraded: bool = Field(description="A doubtful text, given because the fallback failed.")


class Timings(_Part):
    queue_wait: float | None
    primary_infer: float | None
    fallback_infer: float | None
    total: float


class WarningPart(_Part):
    code: Name = Field(description="One of a closed set; a newer service may know more.")
    message: Name


class Answer(_Part):
    """Times are in seconds, except `timings_ms`."""

    text: Text
    language: Name | None = Field(description="Whisper's code; null where nobody speaks.")
    language_probability: float | None = Field(description="Null unless it was detected.")
    duration: float
    speech_duration: float
    model: Name
    confidence: Confidence
    routing: Routing
    segments: Items[SegmentPart]
    warnings: Items[WarningPart] = Field(
        default=[], description="What is known to be missing from the text."
    )
    timings_ms: Timings
    request_id: Name


class ErrorPart(_Part):
    type: Name
    message: Name
    request_id: Name


class ErrorAnswer(_Part):
    error: ErrorPart


def heard(transcript: Transcript | None) -> dict[str, Any]:
    """The parts of an answer that an engine decides; without a transcript, nobody speaks."""
    if transcript is None:
        return {
            "text": "",
            "language": None,
            "language_probability": None,
            "confidence": Confidence(logprob=None, weakest=None, words=0),
            "segments": [],
        }
    scores = Scores.of(transcript)
    return {
        "text": transcript.text,
        "language": transcript.language,
        "language_probability": _rounded(transcript.language_probability, 4),
        "confidence": Confidence(
            logprob=round(scores.logprob, 4), weakest=round(scores.weakest, 4), words=scores.words
        ),
        "segments": [_segment(segment) for segment in transcript.segments],
    }


def _segment(segment: Segment) -> SegmentPart:
    return SegmentPart(
        start=segment.start,
        end=segment.end,
        text=segment.text,
        avg_logprob=round(segment.avg_logprob, 4),
        no_speech_prob=round(segment.no_speech_prob, 4),
        words=[
            WordPart(
                start=word.start,
                end=word.end,
                word=word.word,
                probability=round(word.probability, 4),
            )
            for word in segment.words
        ],
        suspect=segment.suspect,
    )


def warnings(codes: Iterable[WarningCode]) -> list[WarningPart]:
    """The warnings of an answer, each once."""
    return [WarningPart(code=code, message=MESSAGES[code]) for code in dict.fromkeys(codes)]


def timings(record: Record) -> Timings:
    """The record's times as the answer shows them."""
    return Timings(
        queue_wait=_rounded(record.queue_wait_ms, 1),
        primary_infer=_rounded(record.primary_infer_ms, 1),
        fallback_infer=_rounded(record.fallback_infer_ms, 1),
        total=round(record.total_ms, 1),
    )


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)
