"""The figures behind a recommendation: by share, language and noise, of scores and curves."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np

from stt_cascade.cascade.decision import TUNABLE
from stt_cascade.measure.choosing import FAMILIES, Families, Target, held_curve
from stt_cascade.measure.figures import RESAMPLES, alone, figure, percent, routed
from stt_cascade.measure.plans import Plan, thresholds
from stt_cascade.measure.reliability import auroc, caught, diagram
from stt_cascade.measure.routing import PICKS, Bools, Clips, Floats, oracle, routes, worth

# With fewer, the next ten clips may turn any threshold around.
ENOUGH_GROUPS = 20
ENOUGH_WRONG = 20
SHARES = (0.1, 0.2, 0.3, 0.5)


def enough(clips: Clips) -> bool:
    """Whether thresholds can be chosen by these clips."""
    return clips.groups >= ENOUGH_GROUPS and int((clips.primary > 0).sum()) >= ENOUGH_WRONG


def at_shares(
    clips: Clips, found: Families, calibrate: Bools, resampled: Floats
) -> list[dict[str, Any]]:
    """For each share and each family: the best thresholds, and how they do on unseen clips."""
    rows = []
    for share in SHARES:
        for name, policies in found.items():
            row: dict[str, Any] = {"share": 100 * share, "gates": name}
            for pick in PICKS:
                all_ = worth(clips, policies.escalated, clips.once(), pick)
                index, reached = Target(share).choose(all_, clips.fallback @ clips.once())
                if not reached[0]:
                    break
                held = held_curve(clips, policies, calibrate, [share], pick)[0]
                row[pick] = {
                    "thresholds": asdict(policies.policy(int(index[0]))),
                    **routed(clips, policies.policy(int(index[0])), pick, resampled),
                    "held_escalation": round(100 * held[0], 1),
                    "held_wer": round(100 * held[1], 2),
                }
            else:
                rows.append(row)
    return rows


def languages(clips: Clips, plan: Plan, target: Target, seed: int) -> dict[str, Any]:
    """Each language's figures, and thresholds of its own where its clips suffice for that."""
    names = sorted({clip.language for clip in clips.rows if clip.language})
    rows: dict[str, Any] = {}
    for name in names:
        theirs = clips.of(name)
        resampled = theirs.resampled(RESAMPLES, seed)
        row: dict[str, Any] = {
            "clips": len(theirs),
            "groups": theirs.groups,
            "wrong": int((theirs.primary > 0).sum()),
            "primary": alone(theirs, theirs.primary, theirs.primary_ms, resampled),
            "fallback": alone(theirs, theirs.fallback, theirs.fallback_ms, resampled),
            **routed(theirs, plan.thresholds.policy, plan.pick, resampled),
            "enough": enough(theirs),
            "own": None,
        }
        if enough(theirs):
            policies = routes(theirs, FAMILIES[plan.gates])
            own = thresholds(theirs, policies, plan.gates, target, plan.pick, seed)
            row["own"] = own.figures(theirs, plan.pick, resampled)
        rows[name] = row
    return rows


def noise(clips: Clips, plan: Plan) -> list[dict[str, Any]]:
    """What the noise does, and what is routed then; clean clips first."""
    rows = []
    levels = dict.fromkeys(clip.snr for clip in clips.rows)
    for snr in sorted(levels, key=lambda level: -np.inf if level is None else -level):
        some = Clips([clip for clip in clips.rows if clip.snr == snr])
        words = some.words.sum()
        if words:
            all_ = worth(some, some.escalated(plan.thresholds.policy)[None], some.once(), plan.pick)
            rows.append(
                {
                    "snr": snr,
                    "clips": len(some),
                    "primary_wer": round(100 * float(some.primary.sum() / words), 2),
                    "fallback_wer": round(100 * float(some.fallback.sum() / words), 2),
                    "wer": round(100 * float(all_.wer[0, 0]), 2),
                    "escalation": round(100 * float(all_.escalation[0, 0]), 1),
                }
            )
    return rows


def scores(clips: Clips, resampled: Floats) -> dict[str, Any]:
    """How well each score tells a wrong text of the primary's, and its reliability diagram."""
    result: dict[str, Any] = {}
    for name in ("logprob", "langprob", "weakest"):
        field = "language_probability" if name == "langprob" else name
        values = [clip.scores and getattr(clip.scores, field) for clip in clips.rows]
        chosen = np.array([value is not None for value in values], bool)
        wrong = clips.primary[chosen] > 0
        if not wrong.any() or wrong.all():
            continue  # nothing to tell apart
        score = np.array([value for value in values if value is not None], float)
        errors, often = clips.primary[chosen], resampled[chosen]
        once = np.ones((len(score), 1))
        result[name] = {
            "clips": len(score),
            "auroc": figure(auroc(score, errors, once)[0], auroc(score, errors, often), 3),
            "caught_in_20": percent(caught(score, errors, once)[0], caught(score, errors, often)),
            "diagram": [asdict(each) for each in diagram(score, errors, clips.words[chosen])],
        }
    return result


def curves(clips: Clips, found: Families, calibrate: Bools) -> dict[str, list[list[float]]]:
    """Points of escalation and WER, of single gates with their threshold."""
    curves: dict[str, list[list[float]]] = {}
    for gate in TUNABLE:
        all_ = worth(clips, found[gate].escalated, clips.once())
        column = TUNABLE.index(gate)
        curves[gate] = [
            [round(float(value), 4) for value in point]
            for point in zip(
                100 * all_.escalation[:, 0],
                100 * all_.wer[:, 0],
                found[gate].thresholds[:, column],
                strict=True,
            )
        ]
    shares = [step / 20 for step in range(21)]
    for pick in PICKS:
        points = held_curve(clips, found["all"], calibrate, shares, pick)
        name = "together, held out" + (", FINAL_PICK=best" if pick == "best" else "")
        curves[name] = [[round(100 * x, 2), round(100 * y, 2)] for x, y in points]
    share, wer = oracle(clips)
    curves["oracle"] = [[100 * float(x), 100 * float(y)] for x, y in zip(share, wer, strict=True)]
    return curves
