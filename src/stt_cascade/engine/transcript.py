"""A clip's transcript, joined from those of its windows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from stt_cascade.engine.languages import join_texts
from stt_cascade.engine.protocol import SAMPLE_RATE, Segment, Span, Utterance
from stt_cascade.warning_codes import WarningCode


@dataclass(frozen=True, slots=True)
class Transcript:
    """What was heard in a clip. Times in seconds from its first sample.

    Attributes:
        language_probability: None when the language was given or the model knows only one.
        logprob: mean token probability (geometric), end token included, as faster-whisper's
            `exp(avg_logprob)`; windows weighted by their tokens.
        weakest: probability (geometric mean) of the 3 least likely text tokens of a window;
            windows weighted by their duration.
        full_context_retries: windows that the short encoding made loop, encoded anew in full.
        second_looks: windows whose greedy text was in doubt, decoded again with a beam.
        looped: a window's text still looks like a loop after its retry.
        covered: whether every window's text accounts for its speech, as far as can be told.
        warnings: what is known to be missing from the text; each code once.
    """

    text: str
    language: str
    language_probability: float | None
    segments: tuple[Segment, ...]
    logprob: float
    weakest: float
    full_context_retries: int
    second_looks: int
    looped: bool = False
    covered: bool = True
    warnings: tuple[WarningCode, ...] = ()

    def later(self, seconds: float) -> Transcript:
        """The same with all times later by `seconds`."""
        return replace(self, segments=tuple(_moved(part, seconds) for part in self.segments))


def join(heard: Sequence[tuple[Span, Utterance]]) -> Transcript:
    """One transcript of a clip's windows, in order; its language is that of all of them.

    Raises:
        ArithmeticError: the scores are no numbers, so that no gate could judge them.
    """
    tokens = sum(utterance.tokens for _, utterance in heard)
    seconds = sum(span.seconds for span, _ in heard)
    segments = tuple(
        _moved(segment, span.start / SAMPLE_RATE)
        for span, utterance in heard
        for segment in utterance.segments
    )
    logprob = math.exp(sum(u.avg_logprob * u.tokens for _, u in heard) / tokens)
    weakest = sum(u.weakest * span.seconds for span, u in heard) / seconds
    if not all(map(math.isfinite, (logprob, weakest, *(s.avg_logprob for s in segments)))):
        raise ArithmeticError("the model's scores are no numbers")
    first = heard[0][1]
    return Transcript(
        text=join_texts(segment.text for segment in segments),
        language=first.language,
        language_probability=min(
            (u.language_probability for _, u in heard if u.language_probability is not None),
            default=None,
        ),
        segments=segments,
        logprob=logprob,
        weakest=weakest,
        full_context_retries=sum(utterance.full_context for _, utterance in heard),
        second_looks=sum(utterance.doubted for _, utterance in heard),
        looped=any(utterance.looped for _, utterance in heard),
        covered=all(utterance.covered for _, utterance in heard),
        warnings=tuple(dict.fromkeys(code for _, u in heard for code in u.warnings)),
    )


def _moved(segment: Segment, seconds: float) -> Segment:
    return replace(
        segment,
        start=round(segment.start + seconds, 3),
        end=round(segment.end + seconds, 3),
        words=tuple(
            replace(word, start=round(word.start + seconds, 3), end=round(word.end + seconds, 3))
            for word in segment.words
        ),
    )
