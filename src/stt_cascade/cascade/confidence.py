"""What a transcript is judged by."""

from __future__ import annotations

import re
from dataclasses import dataclass

from stt_cascade.engine.languages import UNSPACED
from stt_cascade.engine.transcript import Transcript

_WORD = re.compile(r"\w")


@dataclass(frozen=True, slots=True)
class Scores:
    """The facts that the gates look at.

    Attributes:
        logprob: mean token probability, 0 to 1.
        weakest: mean probability of the 3 weakest tokens, 0 to 1.
        words: how many words the text has.
        language_probability: None unless the language was detected.
        covered: whether the text accounts for the speech.
        looped: the text looks like a loop.
    """

    logprob: float
    weakest: float
    words: int
    language_probability: float | None
    covered: bool = True
    looped: bool = False

    @classmethod
    def of(cls, transcript: Transcript) -> Scores:
        return cls(
            logprob=transcript.logprob,
            weakest=transcript.weakest,
            words=count_words(transcript.text),
            language_probability=transcript.language_probability,
            covered=transcript.covered,
            looped=transcript.looped,
        )


def count_words(text: str) -> int:
    """Words in a text; characters / 2, rounded up, in scripts without spaces."""
    unspaced = len(UNSPACED.findall(text))
    spaced = sum(1 for word in UNSPACED.sub(" ", text).split() if _WORD.search(word))
    return spaced + (unspaced + 1) // 2
