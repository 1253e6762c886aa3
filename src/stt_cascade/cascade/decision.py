"""Accept or escalate: a pure function of the scores and the policy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from stt_cascade.cascade.confidence import Scores
from stt_cascade.config import PrimaryConfig

Gate = Literal["logprob", "langprob", "words", "weakest"]
GATES: tuple[Gate, ...] = ("logprob", "langprob", "words", "weakest")


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
    }
    gates = tuple(gate for gate in GATES if failed[gate])
    return Escalate(gates) if gates else Accept()
