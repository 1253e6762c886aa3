"""All that labelled clips say about the thresholds, in figures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from stt_cascade.cascade.decision import Policy
from stt_cascade.labelled import unit
from stt_cascade.measure.breakdown import (
    ENOUGH_GROUPS,
    ENOUGH_WRONG,
    at_shares,
    curves,
    enough,
    languages,
    noise,
    scores,
)
from stt_cascade.measure.choosing import Families, Target, cross_validate, families, splits
from stt_cascade.measure.figures import RESAMPLES, alone, ratio, routed, spread
from stt_cascade.measure.plans import plan
from stt_cascade.measure.routing import PICKS, Bools, Clips, Floats, Pick, oracle, worth

# Points of escalation that unseen clips may be off on average.
OFF_LIMIT = 5.0
MIN_WORDS = (0, 1, 2, 3)


def analyse(
    clips: Clips, target: Target, *, number: int, seed: int, now: Policy | None = None
) -> dict[str, Any]:
    """The figures. Shares, error rates and their differences are in percent.

    Args:
        number: of splits.
        seed: of splits and resamples.
        now: thresholds to compare with.
    """
    found = families(clips)
    calibrate = splits(clips, number, seed)
    resampled = clips.resampled(RESAMPLES, seed)
    plans = {pick: plan(clips, found, calibrate, target, pick, seed) for pick in PICKS}
    difference = _best_pick(clips, plans["fallback"].thresholds.policy, resampled)
    best = difference is not None and difference["high"] < 0
    chosen = plans["best" if best else "fallback"]
    policy = chosen.thresholds.policy
    report: dict[str, Any] = {
        "clips": len(clips),
        "groups": clips.groups,
        "words": int(clips.words.sum()),
        "unit": unit(clip.language for clip in clips.rows),
        "target": str(target),
        "primary": alone(clips, clips.primary, clips.primary_ms, resampled),
        "fallback": alone(clips, clips.fallback, clips.fallback_ms, resampled),
        "fallback_minus_primary": ratio(clips.fallback - clips.primary, clips.words, resampled),
        "oracle_wer": round(100 * float(oracle(clips)[1].min()), 2),
        "recommended": chosen.figures(clips, resampled),
        "other_pick": plans["fallback" if best else "best"].figures(clips, resampled),
        "best_minus_fallback_pick": difference,
        "words_gate": [
            {
                "min_words": count,
                **routed(clips, replace(policy, words=count), chosen.pick, resampled),
            }
            for count in MIN_WORDS
        ],
        "at": at_shares(clips, found, calibrate, resampled),
        "now": None
        if now is None
        else _compared(clips, found, calibrate, now, chosen.pick, seed, resampled),
        "languages": languages(clips, chosen, target, seed),
        "noise": noise(clips, chosen),
        "scores": scores(clips, resampled),
        "curves": curves(clips, found, calibrate),
    }
    report["enough"] = enough(clips)
    report["steady"] = report["recommended"]["held"]["off"] <= OFF_LIMIT
    report["tells"] = (
        report["recommended"]["escalation"]["value"] == 0
        or report["recommended"]["tells"]["low"] > 0.5
    )
    report["warnings"] = list(_warnings(clips, report))
    return report


def _compared(
    clips: Clips,
    found: Families,
    calibrate: Bools,
    now: Policy,
    pick: Pick,
    seed: int,
    resampled: Floats,
) -> dict[str, Any]:
    """Thresholds in force against those that cross-validation finds for as many escalations."""
    escalated = clips.escalated(now)[None]
    figures: dict[str, Any] = {"thresholds": asdict(now), **routed(clips, now, pick, resampled)}
    share = float(worth(clips, escalated, clips.once(), pick).escalation[0, 0])
    rest = (~calibrate).astype(float)
    theirs = worth(clips, escalated, rest, pick)
    for name in (None, "weakest"):
        held = cross_validate(clips, found, calibrate, Target(share), pick, seed, name)
        difference = 100 * (held.wer - theirs.wer[0])
        figures["held" if name is None else f"held_{name}"] = {
            "splits": len(difference),
            "wer_minus_now": spread(difference),
            "fewer_errors_in": int((difference < 0).sum()),
            "escalation_minus_now": spread(100 * (held.escalation - theirs.escalation[0])),
            "weakest_threshold": spread([policy.weakest for policy in held.policies]),
            "gates": dict(Counter(held.families).most_common()),
        }
    return figures


def _warnings(clips: Clips, report: dict[str, Any]) -> Iterator[str]:
    chosen = report["recommended"]
    if not report["enough"]:
        yield (
            f"{clips.groups} files or speakers with {int((clips.primary > 0).sum())} wrong texts "
            f"are too few: thresholds need at least {ENOUGH_GROUPS} and {ENOUGH_WRONG}."
        )
    if not chosen["reached"]:
        yield f"No thresholds reach the target ({report['target']}); these come nearest."
    if not report["steady"]:
        yield (
            f"On held files the escalation is {chosen['held']['off']:.1f} points off on average: "
            f"more than {OFF_LIMIT:g}. More clips make it steadier."
        )
    if report["fallback_minus_primary"]["high"] >= 0:
        yield "These clips do not show that the fallback is better than the primary."
    if not report["tells"]:
        yield (
            "The gates do not find wrong texts: what they escalate is not shown to be worse than "
            "what they let through."
        )
    elif chosen["escalation"]["value"] and chosen["minus_chance"]["high"] >= 0:
        yield "These clips do not show that escalating any others would not save as many errors."
    if chosen["ms"]["value"] > report["fallback"]["ms"]["value"]:
        yield "The cascade costs more inference than the fallback alone."
    few = [name for name, row in report["languages"].items() if not row["enough"]]
    if few:
        yield (
            f"Too few clips for thresholds of their own: {', '.join(few)} "
            f"(each needs {ENOUGH_GROUPS} files or speakers and {ENOUGH_WRONG} wrong texts)."
        )


def _best_pick(clips: Clips, policy: Policy, resampled: Floats) -> dict[str, float] | None:
    """WER with FINAL_PICK=best minus that with `fallback`; None if nothing is escalated."""
    escalated = clips.escalated(policy)
    if not escalated.any():
        return None
    return ratio(np.where(escalated, clips.best - clips.fallback, 0.0), clips.words, resampled)
