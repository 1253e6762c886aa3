"""`stt score`: how right the running cascade is on labelled clips, and what it cost."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import quantiles
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from stt_cascade.cli.endpoint import find
from stt_cascade.cli.measuring import LabelledFolder, labelled_in
from stt_cascade.cli.terminal import Terminal, echo, json_text
from stt_cascade.cli.transcribe import CONCURRENCY, Outcome, gather
from stt_cascade.labelled import UNKNOWN, Labelled, unit, word_errors
from stt_sdk import Transcription


@dataclass(frozen=True)
class Scored:
    """A clip's outcome, and its words or characters: wrong ones, and those of the reference."""

    clip: Labelled
    outcome: Outcome
    errors: int
    words: int


def score(
    folder: LabelledFolder,
    as_json: Annotated[
        bool, typer.Option("--json", help="Everything, as one JSON object.")
    ] = False,
    forced: Annotated[
        bool, typer.Option("--force-language", help="Send each clip's language along.")
    ] = False,
    concurrency: Annotated[int, typer.Option(min=1, max=64)] = CONCURRENCY,
    url: Annotated[
        str | None, typer.Option(envvar="STT_URL", help="The primary; default: a running `stt up`.")
    ] = None,
    key: Annotated[str | None, typer.Option(envvar="STT_API_KEY", help="Its bearer key.")] = None,
) -> None:
    """Score the running cascade on labelled clips: WER, invented words, routing, latency.

    In Chinese, Japanese, Thai and other languages without spaces, characters are counted.
    The manifest has one JSON object a line: file, text, language, source.
    """
    clips = labelled_in(folder)
    endpoint = find(url, key)
    languages = [clip.language if forced and clip.text else None for clip in clips]

    files = [clip.file for clip in clips]
    found = asyncio.run(gather(endpoint, files, languages, concurrency))
    scored = [_scored(clip, outcome) for clip, (_, outcome) in zip(clips, found, strict=True)]
    report = summarize(scored)
    if as_json:
        echo(json_text(report, indent=2))
    else:
        _print(report)
    raise typer.Exit(int(bool(report["failed"])))


def _scored(clip: Labelled, outcome: Outcome) -> Scored:
    heard = outcome.text if isinstance(outcome, Transcription) else ""
    counts = word_errors(clip.text, heard, clip.language)
    return Scored(clip, outcome, counts.errors, counts.words)


def summarize(scored: Sequence[Scored]) -> dict[str, Any]:
    """The figures of a run: WER by language and source, invented words, routing, latency in ms."""
    answered = [item for item in scored if isinstance(item.outcome, Transcription)]
    spoken = [item for item in answered if item.clip.text]
    silent = [item for item in answered if not item.clip.text]
    groups: dict[str, list[Scored]] = defaultdict(list)
    for item in spoken:
        groups[f"language {item.clip.language or UNKNOWN}"].append(item)
        groups[f"source {item.clip.source}"].append(item)
    results = [item.outcome for item in answered if isinstance(item.outcome, Transcription)]
    return {
        "clips": len(scored),
        "failed": [
            {"file": item.clip.file.name, "error": str(item.outcome)}
            for item in scored
            if not isinstance(item.outcome, Transcription)
        ],
        "wer": {"all": _wer(spoken), **{name: _wer(groups[name]) for name in sorted(groups)}},
        "no_speech": {"clips": len(silent), "invented_words": sum(item.errors for item in silent)},
        "lost_clips": [item.clip.file.name for item in spoken if _lost(item)],
        "routing": {
            reason: sum(1 for result in results if result.routing.reason == reason)
            for reason in ("accepted", "low_confidence", "primary_error", "language", "no_speech")
        },
        "fallback_used": sum(1 for result in results if result.routing.fallback_used),
        "fallback_text": sum(1 for result in results if result.routing.tier == "fallback"),
        "latency_ms": {
            "total": _percentiles(result.timings_ms.total for result in results),
            "primary_infer": _percentiles(r.timings_ms.primary_infer for r in results),
            "fallback_infer": _percentiles(r.timings_ms.fallback_infer for r in results),
        },
    }


def _lost(item: Scored) -> bool:
    return isinstance(item.outcome, Transcription) and not item.outcome.text


def _wer(items: Sequence[Scored]) -> dict[str, float | int | str]:
    words = sum(item.words for item in items)
    errors = sum(item.errors for item in items)
    return {
        "clips": len(items),
        "unit": unit(item.clip.language for item in items),
        "words": words,
        "errors": errors,
        "wer": round(errors / words, 4) if words else 0.0,
    }


def _percentiles(values: Iterable[float | None]) -> dict[str, float] | None:
    known = sorted(value for value in values if value is not None)
    if len(known) < 2:
        return {"p50": known[0], "p95": known[0], "max": known[0]} if known else None
    cuts = quantiles(known, n=100, method="inclusive")
    return {"p50": round(cuts[49], 1), "p95": round(cuts[94], 1), "max": known[-1]}


def _print(report: dict[str, Any]) -> None:
    console = Terminal()
    table = Table("", "clips", "counted in", "count", "wrong", "WER %", title="Word error rate")
    for name, row in report["wer"].items():
        table.add_row(
            name,
            str(row["clips"]),
            row["unit"],
            str(row["words"]),
            str(row["errors"]),
            f"{100 * row['wer']:.1f}",
        )
    console.print(table)
    silent = report["no_speech"]
    console.print(
        f"without speech: {silent['clips']} clips, {silent['invented_words']} invented words; "
        f"spoken clips without text: {', '.join(report['lost_clips']) or 'none'}"
    )
    routing = ", ".join(f"{reason} {count}" for reason, count in report["routing"].items())
    console.print(
        f"routing: {routing}; the fallback answered {report['fallback_used']}, "
        f"and the text is its own in {report['fallback_text']}"
    )
    for stage, values in report["latency_ms"].items():
        if values:
            figures = ", ".join(f"{name} {value:.0f}" for name, value in values.items())
            console.print(f"{stage} ms: {figures}")
    for failure in report["failed"]:
        console.print(Text("failed", "red"), f"{failure['file']}: {failure['error']}")
