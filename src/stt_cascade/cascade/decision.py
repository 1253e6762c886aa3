"""Accept or escalate, and whose text it is then: pure functions of the scores and the policy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from stt_cascade.cascade.confidence import Scores, count_words
from stt_cascade.config import PrimaryConfig

Gate = Literal["logprob", "langprob", "words", "weakest", "coverage", "loop"]
GATES: tuple[Gate, ...] = get_args(Gate)
# These have thresholds in the settings; the others fail on facts, whatever the settings.
TUNABLE: tuple[Gate, ...] = ("logprob", "langprob", "words", "weakest")
Author = Literal["primary", "fallback"]
AUTHORS: tuple[Author, ...] = get_args(Author)
# Of two texts of one clip, the shorter has this share of the longer one's words, or one of them
# left something out or made something up.
COMPARABLE = 0.5


@dataclass(frozen=True, slots=True)
class Policy:
    """Thresholds of the gates; a score under its threshold escalates."""

    logprob: float
    langprob: float
    words: int
    weakest: float

    @classmethod
    def of(cls, config: PrimaryConfig) -> Policy:
        return cls(
            logprob=config.conf_logprob_threshold,
            langprob=config.conf_langprob_threshold,
            words=config.min_words_for_conf,
            weakest=config.conf_weakest_threshold,
        )


@dataclass(frozen=True, slots=True)
class Accept:
    """The primary's text is good enough."""


@dataclass(frozen=True, slots=True)
class Escalate:
    """The fallback shall be asked. `gates`: those that failed, in the order of `GATES`."""

    gates: tuple[Gate, ...]


def decide(scores: Scores, policy: Policy) -> Accept | Escalate:
    """Judge a transcript. A language that was given, not detected, is not checked."""
    probability = scores.language_probability
    failed: dict[Gate, bool] = {
        "logprob": scores.logprob < policy.logprob,
        "langprob": probability is not None and probability < policy.langprob,
        "words": scores.words < policy.words,
        "weakest": scores.weakest < policy.weakest,
        "coverage": not scores.covered,
        "loop": scores.looped,
    }
    gates = tuple(gate for gate in GATES if failed[gate])
    return Escalate(gates) if gates else Accept()


@dataclass(frozen=True, slots=True)
class Opinion:
    """What `pick` knows of a tier's text.

    Attributes:
        language: that the tier heard; None: nobody speaks.
        weakest: mean probability of the text's 3 weakest tokens, 0 to 1; None: unknown.
        words: how many the text has.
        suspect: the text looks like a loop, or like less than what was said.
    """

    language: str | None
    weakest: float | None
    words: int
    suspect: bool = False

    @classmethod
    def of(
        cls, text: str, language: str | None, weakest: float | None, *, suspect: bool = False
    ) -> Opinion:
        # As answers show it: a primary that is stronger by less is not seen to be.
        weakest = None if weakest is None else round(weakest, 4)
        return cls(language, weakest, count_words(text), suspect)


def pick(ours: Opinion, theirs: Opinion) -> Author:
    """Whose text answers a clip that the primary doubted: the one with the stronger weakest tokens.

    The fallback's, where that cannot be told. A score says how sure a text is of what it says: not
    whether that is the language spoken, and not whether it says all. A text without a word has no
    weak token, and one that breaks off after a clear beginning hides what it did not understand.
    """
    if ours.weakest is None or theirs.weakest is None or ours.language != theirs.language:
        return "fallback"
    if ours.suspect:
        return "fallback"
    shorter, longer = sorted((ours.words, theirs.words))
    if not shorter or shorter < COMPARABLE * longer:
        return "fallback"
    return "primary" if ours.weakest > theirs.weakest else "fallback"
