"""What a clip costs by its length, and how far single clips stray from that."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

# Clips whose lengths differ by no more than this are of one length.
SAME_LENGTH_SECONDS = 0.5
SAME_LENGTH_RATIO = 0.1
# Fewer clips of a length have no median worth comparing with.
FEWEST_NEIGHBOURS = 8
CLASSES = (0.0, 1.0, 2.0, 3.0, 5.0, 8.0, 12.0, 20.0, 26.0, 30.0)  # seconds
SHORT, LONG = (1.5, 2.5), (26.0, 30.0)  # "a clip of 2 s", "a clip of 28 s"


@dataclass(frozen=True)
class Stray:
    """The clip that costs most for its length."""

    index: int
    ratio: float


def by_length(lengths: Floats, cost: Floats) -> list[dict[str, Any]]:
    """Median cost of each class of lengths that has clips.

    Args:
        lengths: seconds of audio, shape (clips,).
        cost: seconds of work, shape (clips,).
    """
    rows = []
    for low, high in zip(CLASSES, (*CLASSES[1:], np.inf), strict=True):
        chosen = (low < lengths) & (lengths <= high)
        if chosen.any():
            rows.append(
                {
                    "from_s": low,
                    "to_s": None if high == np.inf else high,
                    "clips": int(chosen.sum()),
                    "median_ms": round(1000 * float(np.median(cost[chosen])), 1),
                }
            )
    return rows


def short_to_long(lengths: Floats, cost: Floats) -> float | None:
    """What a 2 s clip costs of a 28 s one; None without clips of both lengths."""
    medians = []
    for low, high in (SHORT, LONG):
        chosen = (low <= lengths) & (lengths <= high)
        if not chosen.any():
            return None
        medians.append(float(np.median(cost[chosen])))
    return medians[0] / medians[1]


def worst_stray(lengths: Floats, cost: Floats, counted: npt.NDArray[np.bool_]) -> Stray | None:
    """The clip that costs most in terms of the median of clips of its length.

    Args:
        counted: which clips may be it; the others count in the medians only.

    Returns:
        None: no clip has enough neighbours.
    """
    worst: Stray | None = None
    for index in np.flatnonzero(counted):
        reach = max(SAME_LENGTH_SECONDS, SAME_LENGTH_RATIO * lengths[index])
        near = np.abs(lengths - lengths[index]) <= reach
        if near.sum() < FEWEST_NEIGHBOURS:
            continue
        ratio = float(cost[index] / np.median(cost[near]))
        if worst is None or ratio > worst.ratio:
            worst = Stray(int(index), ratio)
    return worst
