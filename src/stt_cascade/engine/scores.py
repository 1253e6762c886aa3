"""How sure a decode was of itself."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

# The mean over the lowest three ranks wrong texts above right ones better than the lowest alone
# or the mean over all tokens: docs/architecture.md, "Confidence".
WEAKEST_TOKENS = 3


@dataclass(frozen=True, slots=True)
class WindowScores:
    """The scores of one decoded window of at most 30 s.

    Attributes:
        avg_logprob: mean log-probability of the tokens, the end token included.
        tokens: how many tokens that mean is over.
        weakest: mean log-probability of the weakest text tokens.
        seconds: length of the window.
    """

    avg_logprob: float
    tokens: int
    weakest: float
    seconds: float


def weakest_logprob(text_logprobs: Sequence[float]) -> float:
    """Mean of the lowest log-probabilities; 0.0 (certain) where there is no text token."""
    lowest = sorted(text_logprobs)[:WEAKEST_TOKENS]
    return sum(lowest) / len(lowest) if lowest else 0.0


def chosen_logprobs(
    logits: Iterable[npt.NDArray[np.float32]], tokens: Sequence[int]
) -> list[float]:
    """Log-probability of each chosen token under its step's logits (shape (vocabulary,))."""
    result = []
    for step, token in zip(logits, tokens, strict=False):  # one step more: the end token's
        top = float(step.max())
        result.append(float(step[token]) - top - math.log(float(np.exp(step - top).sum())))
    return result


def combine(windows: Sequence[WindowScores]) -> tuple[float, float]:
    """The clip's `logprob` (windows weighted by tokens) and `weakest` (by duration), 0 to 1."""
    tokens = sum(window.tokens for window in windows)
    seconds = sum(window.seconds for window in windows)
    if not tokens or not seconds:
        return 0.0, 0.0
    logprob = math.exp(sum(w.avg_logprob * w.tokens for w in windows) / tokens)
    weakest = sum(math.exp(w.weakest) * w.seconds for w in windows) / seconds
    return logprob, weakest
