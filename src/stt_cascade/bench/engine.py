"""The engine's benchmark: contenders in turn, batch by batch, and what their answers are worth."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from stt_cascade.bench.contenders import Batch, Contender, Heard, Setup
from stt_cascade.bench.cost import by_length, short_to_long, worst_stray
from stt_cascade.engine.protocol import SAMPLE_RATE, Samples
from stt_cascade.labelled import UNKNOWN, Labelled, WordErrors, word_errors

BATCH = 8  # clips that a contender gets before the next one's turn
RESAMPLES = 2000
SEED = 20261122  # of the bootstrap, so that one run's intervals can be had again


@dataclass
class Result:
    """A contender's answers, clip by clip."""

    name: str
    heard: list[Heard] = field(default_factory=list)
    errors: list[WordErrors] = field(default_factory=list)
    seconds: float = 0.0
    peak_rss_mib: float = 0.0

    def add(self, batch: Batch, clips: Sequence[Labelled]) -> None:
        self.heard += batch.heard
        self.errors += [
            word_errors(clip.text, heard.text, clip.language)
            for clip, heard in zip(clips, batch.heard, strict=True)
        ]
        self.seconds += batch.seconds
        self.peak_rss_mib = max(self.peak_rss_mib, batch.peak_rss_mib)


def run(
    names: Sequence[str],
    setup: Setup,
    clips: Sequence[tuple[Labelled, Samples]],
    progress: Callable[[int], None] = lambda done: None,
) -> list[Result]:
    """Let each contender transcribe all clips, in turns: noise of the machine meets them all.

    Args:
        clips: in one of which somebody speaks at least.

    Raises:
        Unusable: one cannot run the model as the setup says, or a clip.
    """
    contenders = [Contender(name, setup) for name in names]
    results = [Result(name) for name in names]
    try:
        with ThreadPoolExecutor(len(contenders)) as starting:
            list(starting.map(Contender.start, contenders))
        warm_up = clips[: max(2, setup.concurrency)]
        for contender in contenders:
            contender.run([(samples, clip.language) for clip, samples in warm_up])
        size = max(BATCH, setup.concurrency)  # else some callers would have nothing to ask
        for number, start in enumerate(range(0, len(clips), size)):
            batch = clips[start : start + size]
            work = [(samples, clip.language) for clip, samples in batch]
            turns = list(zip(contenders, results, strict=True))
            for contender, result in turns[:: 1 if number % 2 else -1]:
                result.add(contender.run(work), [clip for clip, _ in batch])
            progress(len(batch))
    finally:
        for contender in contenders:
            contender.close()
    return results


def report(
    results: Sequence[Result], clips: Sequence[tuple[Labelled, Samples]], baseline: str
) -> dict[str, Any]:
    """The figures of a run.

    Args:
        baseline: the contender whose errors the others' are compared with, clip by clip.
    """
    durations = np.array([len(samples) / SAMPLE_RATE for _, samples in clips])
    spoken = np.array([bool(clip.text) for clip, _ in clips])
    languages = np.array([clip.language or UNKNOWN for clip, _ in clips])
    reference = next((result for result in results if result.name == baseline), None)
    return {
        "clips": len(clips),
        "audio_s": round(float(durations.sum()), 1),
        "contenders": {
            result.name: {
                "clips_per_s": round(len(clips) / result.seconds, 3),
                "rtfx": round(float(durations.sum()) / result.seconds, 2),
                "p50_ms": _ms(result, 50),
                "p95_ms": _ms(result, 95),
                "wer": _wer(result, spoken),
                "wer_by_language": {
                    str(language): _wer(result, spoken & (languages == language))
                    for language in np.unique(languages[spoken])
                },
                "wer_minus_baseline": None
                if reference is None or result is reference
                else _difference(result, reference, spoken),
                "wer_minus_baseline_by_language": {}
                if reference is None or result is reference
                else {
                    str(language): _difference(result, reference, spoken & (languages == language))
                    for language in np.unique(languages[spoken])
                },
                "inserted_words": sum(errors.insertions for errors in result.errors),
                "invented_words": sum(
                    errors.insertions
                    for errors, speaks in zip(result.errors, spoken, strict=True)
                    if not speaks
                ),
                "lost_clips": [
                    clip.file.name
                    for (clip, _), heard in zip(clips, result.heard, strict=True)
                    if clip.text and not heard.text
                ],
                "full_context_retries": sum(heard.retries for heard in result.heard),
                "cost": _cost(result, clips, durations, spoken),
                "peak_rss_mib": round(result.peak_rss_mib),
            }
            for result in results
        },
    }


def _cost(
    result: Result,
    clips: Sequence[tuple[Labelled, Samples]],
    durations: np.ndarray[Any, Any],
    spoken: np.ndarray[Any, Any],
) -> dict[str, Any]:
    """What a spoken clip costs by its length; see `cost.py`."""
    # A clip without speech costs next to nothing, and tells nothing of those with it.
    chosen = np.flatnonzero(spoken)
    durations = durations[chosen]
    seconds = np.array([result.heard[index].seconds for index in chosen])
    once = np.array([not result.heard[index].retries for index in chosen])
    ratio, worst = short_to_long(durations, seconds), worst_stray(durations, seconds, once)
    return {
        "by_length": by_length(durations, seconds),
        "of_2_s_to_28_s": None if ratio is None else round(ratio, 3),
        "worst_to_median_of_its_length": None
        if worst is None
        else {"ratio": round(worst.ratio, 2), "clip": clips[chosen[worst.index]][0].file.name},
    }


def _ms(result: Result, percentile: float) -> float:
    seconds = [heard.seconds for heard in result.heard]
    return round(1000 * float(np.percentile(seconds, percentile)), 1)


def _counts(result: Result, chosen: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Errors and words of the chosen clips, shape (clips, 2)."""
    rows = [(errors.errors, errors.words) for errors in result.errors]
    counts: np.ndarray[Any, Any] = np.array(rows, float).reshape(-1, 2)[chosen]
    return counts


def _wer(result: Result, chosen: np.ndarray[Any, Any]) -> dict[str, float]:
    """WER in percent with the 95 % interval of a bootstrap over clips."""
    counts = _counts(result, chosen)
    errors, words = _resampled(counts)
    low, high = np.percentile(100 * errors / words, (2.5, 97.5))
    value = 100 * counts[:, 0].sum() / counts[:, 1].sum()
    return {
        name: round(float(x), 2)
        for name, x in zip(("value", "low", "high"), (value, low, high), strict=True)
    }


def _difference(result: Result, other: Result, chosen: np.ndarray[Any, Any]) -> dict[str, float]:
    """WER minus the other's in points, with the 95 % interval of a paired bootstrap."""
    mine, theirs = _counts(result, chosen), _counts(other, chosen)
    paired = np.column_stack([mine[:, 0] - theirs[:, 0], mine[:, 1]])
    errors, words = _resampled(paired)
    low, high = np.percentile(100 * errors / words, (2.5, 97.5))
    value = 100 * paired[:, 0].sum() / paired[:, 1].sum()
    return {
        name: round(float(x), 2)
        for name, x in zip(("value", "low", "high"), (value, low, high), strict=True)
    }


def _resampled(counts: np.ndarray[Any, Any]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Sums of both columns over resampled clips, each of shape (RESAMPLES,)."""
    random = np.random.default_rng(SEED)
    picks = random.integers(0, len(counts), (RESAMPLES, len(counts)))
    sums = counts[picks].sum(axis=1)
    return sums[:, 0], sums[:, 1]
