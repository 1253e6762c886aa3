"""Thresholds that are recommended, with all that is known of them."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from stt_cascade.cascade.decision import TUNABLE, Gate, Policy
from stt_cascade.measure.choosing import (
    FAMILIES,
    Families,
    Held,
    Target,
    best_family,
    cross_validate,
    interval,
)
from stt_cascade.measure.figures import routed, spread
from stt_cascade.measure.routing import Bools, Clips, Floats, Pick, Routes, worth

# A choice among thousands of policies takes longer than counting one.
RESAMPLED_CHOICES = 300


@dataclass(frozen=True)
class Thresholds:
    """The best of a family of gates.

    Attributes:
        reached: whether they reach the target.
        ranges: what 95 % of resamples would choose, of each gate of the family.
    """

    policy: Policy
    reached: bool
    ranges: dict[Gate, tuple[float, float]]

    def figures(self, clips: Clips, pick: Pick, resampled: Floats) -> dict[str, Any]:
        """They, and what they come to."""
        return {
            "thresholds": asdict(self.policy),
            "ranges": {gate: [round(end, 3) for end in ends] for gate, ends in self.ranges.items()},
            "reached": self.reached,
            **routed(clips, self.policy, pick, resampled),
        }


@dataclass(frozen=True)
class Plan:
    """What is recommended if escalated clips are answered by this pick.

    Attributes:
        gates: the family.
    """

    pick: Pick
    gates: str
    thresholds: Thresholds
    held: Held

    def figures(self, clips: Clips, resampled: Floats) -> dict[str, Any]:
        return {
            "pick": self.pick,
            "gates": self.gates,
            **self.thresholds.figures(clips, self.pick, resampled),
            "held": _held(self.held),
        }


def plan(
    clips: Clips, found: Families, calibrate: Bools, target: Target, pick: Pick, seed: int
) -> Plan:
    """Gates by cross-validation, thresholds by all clips."""
    everybody = np.ones(len(clips), bool)
    gates = best_family(clips, found, calibrate, everybody, target, pick)
    return Plan(
        pick,
        gates,
        thresholds(clips, found[gates], gates, target, pick, seed),
        cross_validate(clips, found, calibrate, target, pick, seed),
    )


def thresholds(
    clips: Clips, policies: Routes, gates: str, target: Target, pick: Pick, seed: int
) -> Thresholds:
    """Of this family, by all clips; their ranges by resampling."""

    def chosen(weights: Floats) -> tuple[Any, Bools]:
        all_ = worth(clips, policies.escalated, weights, pick)
        return target.choose(all_, clips.fallback @ weights)

    index, reached = chosen(clips.once())
    again, _ = chosen(clips.resampled(RESAMPLED_CHOICES, seed))
    return Thresholds(
        policies.policy(int(index[0])),
        bool(reached[0]),
        {
            gate: interval(policies.thresholds[again, column])
            for column, gate in enumerate(TUNABLE)
            if gate in FAMILIES[gates]
        },
    )


def _held(held: Held) -> dict[str, Any]:
    off, excess = 100 * held.off, 100 * (held.wer - held.fallback_wer)
    return {
        "splits": len(off),
        "off": round(float(np.abs(off).mean()), 2),
        "off_mean": spread(off),
        "promised": spread(100 * held.promised),
        "escalation": spread(100 * held.escalation),
        "wer": spread(100 * held.wer),
        "minus_fallback": spread(excess),
        "ms": spread(held.ms, 0),
        "gates": dict(Counter(held.families).most_common()),
    }
