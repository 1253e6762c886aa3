"""What a score says about a text: does it rank wrong ones lower, and may it be read as a chance?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stt_cascade.measure.routing import Floats

# Enough of them to see a shape, few enough to hold some clips each.
BINS = 10


@dataclass(frozen=True)
class Bin:
    """Clips of similar scores.

    Attributes:
        score: their mean.
        right: share of texts without an error, with the 95 % interval `low` to `high` (Wilson's).
        words_right: share of the references' words that no error is set against, at least 0; None
            where there are no words.
    """

    clips: int
    score: float
    right: float
    low: float
    high: float
    words_right: float | None


def diagram(score: Floats, errors: Floats, words: Floats) -> list[Bin]:
    """Clips by score, in bins of the same size; shape (clips,) each."""
    order = np.argsort(score, kind="stable")
    bins = []
    for chosen in np.array_split(order, min(BINS, len(order))):
        count, right = len(chosen), float(np.mean(errors[chosen] == 0))
        low, high = wilson(right, count)
        said = words[chosen].sum()
        bins.append(
            Bin(
                count,
                float(score[chosen].mean()),
                right,
                low,
                high,
                max(0.0, 1 - float(errors[chosen].sum() / said)) if said else None,
            )
        )
    return bins


def wilson(share: float, count: int, z: float = 1.96) -> tuple[float, float]:
    """The 95 % interval of a share."""
    middle = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z / (1 + z**2 / count) * np.sqrt(share * (1 - share) / count + (z / (2 * count)) ** 2)
    return max(0.0, float(middle - half)), min(1.0, float(middle + half))


def auroc(score: Floats, errors: Floats, weights: Floats) -> Floats:
    """How often a wrong text has a lower score than a right one; ties count half.

    Args:
        score, errors: shape (clips,).
        weights: how often each clip counts; shape (clips, k).

    Returns:
        shape (k,); 0.5 if the score tells nothing, or all texts are wrong, or all right.
    """
    order = np.argsort(score, kind="stable")
    _, starts = np.unique(score[order], return_index=True)
    wrong = (errors[order] > 0)[:, None]
    bad = np.add.reduceat(np.where(wrong, weights[order], 0.0), starts, axis=0)
    good = np.add.reduceat(np.where(wrong, 0.0, weights[order]), starts, axis=0)
    higher = good.sum(axis=0) - np.cumsum(good, axis=0)
    pairs = bad.sum(axis=0) * good.sum(axis=0)
    won = (bad * (higher + good / 2)).sum(axis=0)
    result: Floats = np.divide(won, pairs, out=np.full_like(won, 0.5), where=pairs > 0)
    return result


def caught(score: Floats, errors: Floats, weights: Floats, share: float = 0.2) -> Floats:
    """Which part of all word errors lies in the clips with the lowest scores.

    Args:
        share: of the clips; the one on the border counts in part.

    Returns:
        shape (k,); 0 where there are no errors.
    """
    order = np.argsort(score, kind="stable")
    sorted_ = weights[order]
    before = np.cumsum(sorted_, axis=0) - sorted_
    taken = np.clip(share * sorted_.sum(axis=0) - before, 0, sorted_)
    found, total = errors[order] @ taken, errors[order] @ sorted_
    result: Floats = np.divide(found, total, out=np.zeros_like(found), where=total > 0)
    return result
