"""`stt bench`: this project against its peers, on this machine."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(help="Measure this project against its peers.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Measure this project against its peers."""


@app.command("engine")
def engine(
    sets: Annotated[
        list[Path] | None, typer.Argument(help="Folders with clips and a manifest.jsonl.")
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(help="Where asterisk-core-sounds-*-wav is installed: /usr/share."),
    ] = None,
    model: Annotated[Path, typer.Option(help="The weights, for all.")] = Path(
        "models/whisper-base-ct2"
    ),
    compute_type: Annotated[str, typer.Option(help="CTranslate2's number format.")] = "int8",
    device: Annotated[str, typer.Option()] = "cpu",
    concurrency: Annotated[int, typer.Option(min=1)] = 2,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Of one inference; default: cores / concurrency.")
    ] = None,
    max_seconds: Annotated[float, typer.Option(help="Longest clip.")] = 10.0,
    limit: Annotated[
        int | None, typer.Option(min=1, help="That many clips of each source, picked at random.")
    ] = None,
    peers: Annotated[
        list[str] | None, typer.Option("--contender", help="One of them; may be repeated.")
    ] = None,
    ablate: Annotated[
        bool, typer.Option(help="Ours alone, one constant changed at a time: docs/engine.md.")
    ] = False,
    plot: Annotated[
        Path | None, typer.Option(help="Write cost against clip length, as PNG.")
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the figures there.")
    ] = None,
) -> None:
    """Our engine against faster-whisper: same weights, threads and clips, in turns, in one run."""
    from rich.console import Console
    from rich.progress import Progress

    from stt_cascade.bench import engine as bench
    from stt_cascade.bench.contenders import ABLATIONS, CONTENDERS, PEERS, Setup

    names = peers or list(ABLATIONS if ablate else PEERS)
    if unknown := [name for name in names if name not in CONTENDERS]:
        raise typer.BadParameter(f"{unknown[0]!r}; there are: {', '.join(CONTENDERS)}")
    cores = len(os.sched_getaffinity(0))
    setup = Setup(model, device, compute_type, threads or max(1, cores // concurrency), concurrency)
    console = Console(stderr=True)
    clips = _clips(sets or [], prompts, max_seconds, limit)
    if not clips:
        raise typer.BadParameter("no clips: name a folder with a manifest.jsonl, or --prompts")
    console.print(f"{len(clips)} clips of at most {max_seconds:g} s, {setup}")
    with Progress(console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("clips", total=len(clips))
        results = bench.run(names, setup, clips, lambda done: progress.advance(task, done))
    baseline = "30 s encoding" if ablate else "faster-whisper tuned"
    report = bench.report(results, clips, baseline)
    report["setup"] = {name: str(value) for name, value in vars(setup).items()} | {
        "cores": cores,
        "max_seconds": max_seconds,
    }
    _print(report)
    if json_file is not None:
        json_file.write_text(json.dumps(report, indent=2, ensure_ascii=False))
    if plot is not None:
        from stt_cascade.bench.plot import cost_by_length

        cost_by_length(results, clips, plot)


def _clips(sets: list[Path], prompts: Path | None, longest: float, limit: int | None) -> list[Any]:
    from stt_cascade.audio.decode import decode
    from stt_cascade.engine.protocol import SAMPLE_RATE
    from stt_cascade.labelled import read_manifest, read_prompts

    labelled = [clip for folder in sets for clip in read_manifest(folder)]
    if prompts is not None:
        labelled += read_prompts(prompts)
    # Neighbours in a set are alike; the order is the same in each run.
    random.Random(1).shuffle(labelled)
    taken: dict[str, int] = {}
    clips = []
    for clip in labelled:
        if limit is not None and taken.get(clip.source, 0) >= limit:
            continue
        samples = decode(clip.file.read_bytes(), max_seconds=3600)
        if len(samples) <= longest * SAMPLE_RATE:
            taken[clip.source] = taken.get(clip.source, 0) + 1
            clips.append((clip, samples))
    return clips


def _print(report: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(
        "",
        "clips/s",
        "RTFx",
        "p50 ms",
        "p95 ms",
        "WER % (95 %)",
        "minus baseline",
        "inserted",
        "invented",
        "lost",
        "retries",
        "RSS MiB",
        title=f"{report['clips']} clips, {report['audio_s']} s of audio",
    )
    rows = report["contenders"]
    for name, row in rows.items():
        wer, difference = row["wer"], row["wer_minus_baseline"]
        table.add_row(
            name,
            f"{row['clips_per_s']:.2f}",
            f"{row['rtfx']:.1f}",
            f"{row['p50_ms']:.0f}",
            f"{row['p95_ms']:.0f}",
            f"{wer['value']:.1f} ({wer['low']:.1f}-{wer['high']:.1f})",
            ""
            if difference is None
            else f"{difference['value']:+.2f} to {difference['high']:+.2f}",
            str(row["inserted_words"]),
            str(row["invented_words"]),
            str(len(row["lost_clips"])),
            str(row["full_context_retries"]),
            str(row["peak_rss_mib"]),
        )
    console = Console(width=150)
    console.print(table)
    ours = next(iter(rows))
    for name, row in rows.items():
        if name != ours:
            console.print(
                f"{ours} against {name}: {rows[ours]['clips_per_s'] / row['clips_per_s']:.2f} x "
                f"the throughput, p95 {row['p95_ms'] / rows[ours]['p95_ms']:.2f} x lower"
            )
