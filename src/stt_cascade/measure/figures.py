"""Figures with their intervals: what a policy comes to, and how far other clips may differ."""

from __future__ import annotations

from typing import Any

import numpy as np

from stt_cascade.cascade.decision import Policy
from stt_cascade.measure.choosing import interval
from stt_cascade.measure.reliability import auroc
from stt_cascade.measure.routing import Clips, Floats, Pick, Worth, worth

RESAMPLES = 1000  # of a bootstrap over groups


def routed(clips: Clips, policy: Policy, pick: Pick, resampled: Floats) -> dict[str, Any]:
    """What a policy comes to, by the service's own decision, with 95 % intervals over groups."""
    escalated = clips.escalated(policy)[None]
    there = clips.final(pick)
    once, often = (worth(clips, escalated, weights, pick) for weights in (clips.once(), resampled))

    def minus(errors: Floats) -> dict[str, float]:
        return ratio(np.where(escalated[0], there, clips.primary) - errors, clips.words, resampled)

    def by_chance(all_: Worth, weights: Floats) -> Floats:
        # As many, but any of them.
        share = all_.escalation[0]
        errors = (1 - share) * (clips.primary @ weights) + share * (there @ weights)
        result: Floats = 100 * (all_.wer[0] - errors / (clips.words @ weights))
        return result

    let_through = 1.0 - escalated[0]
    return {
        "escalation": percent(once.escalation[0, 0], often.escalation[0]),
        "wer": percent(once.wer[0, 0], often.wer[0]),
        # Whether escalated texts are wrong more often than the others; 0.5: they are not.
        "tells": figure(
            auroc(let_through, clips.primary, clips.once())[0],
            auroc(let_through, clips.primary, resampled),
        ),
        "minus_fallback": minus(clips.fallback),
        "minus_primary": minus(clips.primary),
        "minus_chance": figure(
            float(by_chance(once, clips.once())[0]), by_chance(often, resampled)
        ),
        "ms": figure(float(once.ms[0, 0]), often.ms[0], 0),
    }


def alone(clips: Clips, errors: Floats, ms: Floats, resampled: Floats) -> dict[str, Any]:
    """What one tier comes to that answers all clips."""
    return {
        "wer": ratio(errors, clips.words, resampled),
        "ms": figure(float(ms.mean()), ms @ resampled / resampled.sum(axis=0), 0),
        "invented_words": int(errors[clips.words == 0].sum()),
    }


def ratio(errors: Floats, words: Floats, resampled: Floats) -> dict[str, float]:
    """Errors, or a difference of errors, in percent of the references' words."""
    return percent(errors.sum() / words.sum(), (errors @ resampled) / (words @ resampled))


def percent(value: float, sample: Floats) -> dict[str, float]:
    """A share, in percent."""
    return figure(100 * float(value), 100 * sample)


def figure(value: float, sample: Floats, digits: int = 2) -> dict[str, float]:
    """A value with its 95 % interval."""
    low, high = interval(sample)
    ends = {"value": value, "low": low, "high": high}
    return {name: round(float(end), digits) for name, end in ends.items()}


def spread(sample: Any, digits: int = 2) -> dict[str, float]:
    """The mean over splits, with what 95 % of them lie between."""
    sample = np.asarray(sample, float)
    return figure(float(sample.mean()), sample, digits)
