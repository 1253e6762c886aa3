"""What any thresholds would have routed, and what that would have cost in words and in time.

Both tiers' texts of all clips are known; which of them counts, only the thresholds decide.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt

from stt_cascade.cascade.confidence import Scores
from stt_cascade.cascade.decision import TUNABLE, Escalate, Gate, Opinion, Policy, decide, pick

Floats: TypeAlias = npt.NDArray[np.float64]
Bools: TypeAlias = npt.NDArray[np.bool_]
# Whose text answers an escalated clip: the fallback's, or the one with the stronger weakest tokens.
Pick = Literal["fallback", "best"]
PICKS: tuple[Pick, ...] = get_args(Pick)

OFF = Policy(logprob=0.0, langprob=0.0, words=0, weakest=0.0)
# Values of the matrix that are worked on at a time.
CHUNK = 1 << 24


@dataclass(frozen=True)
class Routable:
    """A clip with both texts: word errors, scores, and milliseconds of inference.

    Attributes:
        group: clips that belong together: of one file, or of one speaker.
        stratum: groups that are alike; a split takes as many of them to either side.
        language: of the reference; empty where nobody speaks.
        snr: dB; None: no noise was added.
        words: of the reference.
        scores: of the primary's text; None: the gates are not asked.
        always: the primary asks the fallback, whatever the scores.
        ours, theirs: how sure each tier is of its text.
    """

    group: str
    stratum: str
    language: str
    snr: float | None
    words: int
    scores: Scores | None
    always: bool
    ours: Opinion
    theirs: Opinion
    primary_errors: int
    fallback_errors: int
    primary_ms: float
    fallback_ms: float

    @property
    def best_errors(self) -> int:
        """Of the text that the service would answer with under `FINAL_PICK=best`."""
        doubted = self.scores is not None and not self.always
        best = pick(self.ours, self.theirs) if doubted else "fallback"
        return self.primary_errors if best == "primary" else self.fallback_errors


class Clips:
    """The same as columns: shape (n,) each. `group` counts from 0."""

    def __init__(self, clips: Sequence[Routable]) -> None:
        self.rows = tuple(clips)
        groups = {name: n for n, name in enumerate(dict.fromkeys(clip.group for clip in clips))}
        self.group = np.array([groups[clip.group] for clip in clips], int)
        self.groups = len(groups)
        self.words = _column(clip.words for clip in clips)
        self.primary = _column(clip.primary_errors for clip in clips)
        self.fallback = _column(clip.fallback_errors for clip in clips)
        self.best = _column(clip.best_errors for clip in clips)
        self.primary_ms = _column(clip.primary_ms for clip in clips)
        self.fallback_ms = _column(clip.fallback_ms for clip in clips)

    def __len__(self) -> int:
        return len(self.rows)

    def of(self, language: str) -> Clips:
        """Those of one language."""
        return Clips([clip for clip in self.rows if clip.language == language])

    def escalated(self, policy: Policy) -> Bools:
        """Which of them the service would escalate."""
        return np.array(
            [
                clip.always
                or (clip.scores is not None and isinstance(decide(clip.scores, policy), Escalate))
                for clip in self.rows
            ],
            bool,
        )

    def final(self, pick: Pick) -> Floats:
        """Word errors of each, if it is escalated."""
        return self.best if pick == "best" else self.fallback

    def once(self) -> Floats:
        """Weights: each clip counts once; shape (n, 1)."""
        return np.ones((len(self), 1))

    def resampled(self, times: int, seed: int) -> Floats:
        """Weights of a bootstrap over groups; shape (n, times)."""
        random = np.random.default_rng(seed)
        counts = random.multinomial(self.groups, np.full(self.groups, 1 / self.groups), times)
        weights: Floats = counts.T[self.group].astype(float)
        # A resample without a single word has no error rate.
        return weights[:, self.words @ weights > 0]


@dataclass(frozen=True)
class Routes:
    """Policies, and what each escalates.

    Attributes:
        thresholds: shape (policies, gates), in the order of `TUNABLE`.
        escalated: shape (policies, clips).
    """

    thresholds: Floats
    escalated: Bools

    def __len__(self) -> int:
        return len(self.thresholds)

    def policy(self, index: int) -> Policy:
        row = dict(zip(TUNABLE, self.thresholds[index].tolist(), strict=True))
        return Policy(row["logprob"], row["langprob"], int(row["words"]), row["weakest"])


def routes(clips: Clips, grid: Mapping[Gate, Sequence[float]]) -> Routes:
    """All combinations of these thresholds; of those that escalate the same clips the lowest.

    A clip is escalated if one gate fails, so each gate is asked by itself, once.
    """
    thresholds = np.zeros((1, len(TUNABLE)))
    escalated = clips.escalated(OFF)[None]
    for column, gate in enumerate(TUNABLE):
        values = sorted({0.0, *grid.get(gate, ())})
        fails = np.array([clips.escalated(alone(gate, value)) for value in values])
        escalated = (escalated[:, None] | fails[None]).reshape(-1, len(clips))
        thresholds = np.repeat(thresholds, len(values), axis=0)
        thresholds[:, column] = np.tile(values, len(thresholds) // len(values))
        packed = np.packbits(escalated, axis=1)
        _, first = np.unique(packed, axis=0, return_index=True)
        kept = np.sort(first)
        thresholds, escalated = thresholds[kept], escalated[kept]
    return Routes(thresholds, escalated)


def alone(gate: Gate, threshold: float) -> Policy:
    """A policy with one gate."""
    values = {**dict.fromkeys(TUNABLE, 0.0), gate: threshold}
    return Policy(values["logprob"], values["langprob"], int(values["words"]), values["weakest"])


@dataclass(frozen=True)
class Worth:
    """What policies come to under weights: shape (policies, weights) each.

    Attributes:
        escalation: share of clips, 0 to 1.
        errors: word errors.
        wer: errors per word of the references.
        ms: inference a clip, both tiers together.
    """

    escalation: Floats
    errors: Floats
    wer: Floats
    ms: Floats


def worth(clips: Clips, escalated: Bools, weights: Floats, pick: Pick = "fallback") -> Worth:
    """Count.

    Args:
        escalated: shape (policies, clips).
        weights: how often each clip counts; shape (clips, weights).
    """
    change = (clips.final(pick) - clips.primary)[:, None] * weights
    columns = np.hstack([weights, change, clips.fallback_ms[:, None] * weights]).astype(np.float32)
    step = max(1, CHUNK // len(clips))
    sums = np.vstack(
        [
            escalated[start : start + step].astype(np.float32) @ columns
            for start in range(0, len(escalated), step)
        ]
    ).astype(float)
    asked, changed, ms = np.split(sums, 3, axis=1)
    count = np.maximum(weights.sum(axis=0), 1)
    # Whole numbers in the end, which float32 holds exactly on the way.
    errors = clips.primary @ weights + changed
    return Worth(
        escalation=asked / count,
        errors=errors,
        wer=per_word(errors, clips.words @ weights),
        ms=(clips.primary_ms @ weights + ms) / count,
    )


def per_word(errors: Floats, words: Floats) -> Floats:
    """Error rates; 0 where there are no words, as on one side of a split of very few clips."""
    return np.divide(errors, words, out=np.zeros_like(errors), where=words > 0)


def oracle(clips: Clips) -> tuple[Floats, Floats]:
    """Escalation and WER of who knows all texts, and asks for the clips that gain the most."""
    gain = np.sort(clips.primary - clips.fallback)[::-1]
    errors = clips.primary.sum() - np.concatenate([[0.0], np.cumsum(gain)])
    return np.arange(len(clips) + 1) / len(clips), errors / clips.words.sum()


def _column(values: Iterable[float]) -> Floats:
    return np.array(list(values), np.float64)
