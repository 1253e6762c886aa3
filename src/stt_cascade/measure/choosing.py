"""Thresholds for a target, and whether they keep on unseen clips what they promise."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from stt_cascade.cascade.decision import Gate, Policy
from stt_cascade.measure.routing import (
    Bools,
    Clips,
    Floats,
    Pick,
    Routes,
    Worth,
    per_word,
    routes,
    worth,
)

FINE = tuple(step / 100 for step in range(1, 101))
# A threshold of 1 escalates whatever is not certain.
GRID: dict[Gate, tuple[float, ...]] = {
    "logprob": (*(step / 20 for step in range(8, 20)), 1.0),
    "langprob": (0.3, 0.5, 0.7, 0.8, 0.9, 0.95),
    "words": (1, 2, 3, 4),
    "weakest": (*(step / 40 for step in range(1, 37)), 1.0),
}
# The gates that may be used together. A single one is tried in finer steps.
FAMILIES: dict[str, dict[Gate, tuple[float, ...]]] = {
    "logprob": {"logprob": FINE},
    "langprob": {"langprob": FINE},
    "words": {"words": tuple(range(1, 11))},
    "weakest": {"weakest": FINE},
    "all but words": {gate: GRID[gate] for gate in GRID if gate != "words"},
    "all": GRID,
}
# To choose a family within a split, without a look at what the split holds back.
INNER_SPLITS = 6
# Gates keep the fallback's quality on held clips if they have at most this part of its errors more:
# by chance any that ask it less often than always have some.
TOLERANCE = 0.05
# Less than a word in any set.
EPSILON = 1e-4


@dataclass(frozen=True)
class Target:
    """What the thresholds are for.

    Attributes:
        share: the largest share of clips that may be escalated, 0 to 1, with the fewest word
            errors; None: no more word errors than the fallback alone makes, at the lowest cost.
    """

    share: float | None

    @classmethod
    def parse(cls, text: str) -> Target:
        """`fallback`, or a share such as `15%`.

        Raises:
            ValueError: neither.
        """
        if text == "fallback":
            return cls(None)
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*%", text)
        if match is None or float(match[1]) > 100:
            raise ValueError(f"{text!r} is neither 'fallback' nor a share such as 15%")
        return cls(float(match[1]) / 100)

    def __str__(self) -> str:
        if self.share is None:
            return "no worse than the fallback alone at the lowest cost"
        return f"at most {100 * self.share:g} % escalation with the fewest errors"

    def choose(self, found: Worth, fallback_errors: Floats) -> tuple[npt.NDArray[np.intp], Bools]:
        """The policy that suits best, for each column of weights.

        Args:
            fallback_errors: of the fallback alone; shape (weights,).

        Returns:
            indices, and whether the target is reached; shape (weights,) each.
        """
        errors = np.round(found.errors, 3)
        limited, limit = errors, fallback_errors
        first, second = found.ms, errors
        if self.share is not None:
            limited, limit = found.escalation, np.full(len(fallback_errors), self.share)
            first, second = errors, found.ms
        least = limited.min(axis=0)
        # Where nothing reaches it, what comes next to it.
        allowed = limited <= np.maximum(limit, least) + EPSILON
        first = np.where(allowed, first, np.inf)
        second = np.where(first <= first.min(axis=0) * (1 + 1e-6), second, np.inf)
        return second.argmin(axis=0), least <= limit + EPSILON


Families = Mapping[str, Routes]


def families(clips: Clips) -> dict[str, Routes]:
    return {name: routes(clips, grid) for name, grid in FAMILIES.items()}


def splits(clips: Clips, count: int, seed: int, within: Bools | None = None) -> Bools:
    """Which clips are calibrated on; shape (clips, count). The others are held back.

    All clips of a group are on one side, and half of the groups of each stratum. Each second split
    is the one before it turned round, so that every clip is held back equally often.

    Args:
        within: split these only; the others are on neither side.
    """
    random = np.random.default_rng(seed)
    members = np.ones(len(clips), bool) if within is None else within
    strata: dict[str, list[int]] = {}
    for group in dict.fromkeys(clips.group[members].tolist()):
        row = clips.rows[int(np.flatnonzero(clips.group == group)[0])]
        strata.setdefault(row.stratum, []).append(group)
    chosen = np.zeros((len(clips), count), bool)
    for number in range(count):
        if number % 2:
            chosen[:, number] = members & ~chosen[:, number - 1]
            continue
        side = np.zeros(clips.groups, bool)
        odd = bool(random.integers(2))
        for groups in strata.values():
            half = (len(groups) + odd) // 2
            # Of the odd ones one goes here, the next one there.
            odd ^= len(groups) % 2 == 1
            side[random.permutation(groups)[:half]] = True
        chosen[:, number] = members & side[clips.group]
    return chosen


@dataclass(frozen=True)
class Held:
    """What became on unseen clips of thresholds that were chosen on the others; shape (splits,).

    Attributes:
        families: the gates that were chosen.
        policies: the thresholds.
        promised: escalation on the clips that they were chosen on, 0 to 1.
        escalation, wer, ms: on the held ones.
        fallback_wer: of the fallback alone on these.
    """

    families: tuple[str, ...]
    policies: tuple[Policy, ...]
    promised: Floats
    escalation: Floats
    wer: Floats
    ms: Floats
    fallback_wer: Floats

    @property
    def off(self) -> Floats:
        """Held minus promised escalation, -1 to 1."""
        return self.escalation - self.promised


def best_family(
    clips: Clips, found: Families, calibrate: Bools, members: Bools, target: Target, pick: Pick
) -> str:
    """The gates whose thresholds do best on clips that they were not chosen on.

    For a share: those with the fewest errors. For the fallback's quality: the cheapest of those
    that keep it, and if none does, the one that comes nearest.

    Args:
        calibrate: splits of `members`, as `splits` makes them.
    """
    sides = np.hstack([calibrate, members[:, None] & ~calibrate]).astype(float)
    alone = clips.fallback @ sides
    count = calibrate.shape[1]
    rank: dict[str, tuple[float, ...]] = {}
    for name, policies in found.items():
        all_ = worth(clips, policies.escalated, sides, pick)
        index, _ = target.choose(_columns(all_, slice(None, count)), alone[:count])
        held = _at(_columns(all_, slice(count, None)), index)
        size = len(FAMILIES[name])
        if target.share is not None:
            rank[name] = (round(float(held.errors.sum()), 3), size)
        else:
            excess = float((held.errors - alone[count:]).mean())
            spare = max(1.0, TOLERANCE * float(alone[count:].mean()))
            rank[name] = (max(0.0, round(excess - spare, 3)), float(held.ms.mean()), size)
    return min(rank, key=lambda name: rank[name])


def cross_validate(
    clips: Clips,
    found: Families,
    calibrate: Bools,
    target: Target,
    pick: Pick,
    seed: int,
    only: str | None = None,
) -> Held:
    """Choose gates and thresholds on one side of each split, and count on the other.

    Args:
        only: this family, instead of the best one.
    """
    chosen: list[tuple[str, int]] = []
    held: list[Worth] = []
    promised: list[float] = []
    for number in range(calibrate.shape[1]):
        side = calibrate[:, number]
        inner = splits(clips, INNER_SPLITS, seed + number, side)
        family = only or best_family(clips, found, inner, side, target, pick)
        both = np.column_stack([side, ~side]).astype(float)
        all_ = worth(clips, found[family].escalated, both, pick)
        index, _ = target.choose(_columns(all_, slice(0, 1)), clips.fallback @ both[:, :1])
        chosen.append((family, int(index[0])))
        promised.append(float(all_.escalation[index[0], 0]))
        held.append(_at(_columns(all_, slice(1, 2)), index))
    rest = (~calibrate).astype(float)
    return Held(
        tuple(family for family, _ in chosen),
        tuple(found[family].policy(index) for family, index in chosen),
        np.array(promised),
        np.concatenate([each.escalation for each in held]),
        np.concatenate([each.wer for each in held]),
        np.concatenate([each.ms for each in held]),
        per_word(clips.fallback @ rest, clips.words @ rest),
    )


def held_curve(
    clips: Clips, policies: Routes, calibrate: Bools, shares: Sequence[float], pick: Pick
) -> list[tuple[float, float]]:
    """Escalation and WER on held clips, over all splits, of the best policy for each share."""
    count = calibrate.shape[1]
    sides = np.hstack([calibrate, ~calibrate]).astype(float)
    all_ = worth(clips, policies.escalated, sides, pick)
    alone = clips.fallback @ sides[:, :count]
    sizes, words = sides[:, count:].sum(axis=0), clips.words @ sides[:, count:]
    points = []
    for share in shares:
        index, _ = Target(share).choose(_columns(all_, slice(None, count)), alone)
        held = _at(_columns(all_, slice(count, None)), index)
        points.append(
            (
                float(held.escalation @ sizes / max(1.0, sizes.sum())),
                float(held.errors.sum() / max(1.0, words.sum())),
            )
        )
    return points


def interval(values: Any, level: float = 0.95) -> tuple[float, float]:
    """The middle of a sample."""
    tail = 50 * (1 - level)
    low, high = np.percentile(np.asarray(values, float), (tail, 100 - tail))
    return float(low), float(high)


def _columns(all_: Worth, columns: slice) -> Worth:
    return Worth(
        all_.escalation[:, columns],
        all_.errors[:, columns],
        all_.wer[:, columns],
        all_.ms[:, columns],
    )


def _at(all_: Worth, index: npt.NDArray[np.intp]) -> Worth:
    """Of each column the chosen policy; shape (weights,)."""
    columns = np.arange(len(index))
    return Worth(
        all_.escalation[index, columns],
        all_.errors[index, columns],
        all_.wer[index, columns],
        all_.ms[index, columns],
    )
