"""How sure a decode was of itself."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

# The mean over the lowest three ranks wrong texts above right ones better than the lowest alone
# or the mean over all tokens: docs/architecture.md, "Confidence".
WEAKEST_TOKENS = 3


def weakest_logprob(text_logprobs: Sequence[float], share: float = 0.0) -> float:
    """Mean of the lowest log-probabilities; 0.0 (certain) where there is no text token.

    Args:
        share: of the tokens that count, but at least three.
    """
    count = max(WEAKEST_TOKENS, math.ceil(share * len(text_logprobs)))
    lowest = sorted(text_logprobs)[:count]
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
