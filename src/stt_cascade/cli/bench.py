"""`stt bench`: this project against its peers, on this machine."""

from __future__ import annotations

import asyncio
import os
import random
from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import typer

from stt_cascade.cli.measuring import JsonFile, as_json, keep, labelled_in, writable
from stt_cascade.cli.terminal import Terminal, echo

app = typer.Typer(help="Measure this project against its peers.", no_args_is_help=True)


@app.command("engine")
def engine(
    sets: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Folders with clips and a manifest.jsonl.", exists=True, file_okay=False
        ),
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(
            help="Where asterisk-core-sounds-*-wav is installed: /usr/share.",
            exists=True,
            file_okay=False,
        ),
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
    join: Annotated[
        list[float] | None,
        typer.Option(
            min=1, help="Join clips of a source to about so many seconds; may be repeated."
        ),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(min=1, help="That many clips of each source (and length), picked at random."),
    ] = None,
    peers: Annotated[
        list[str] | None, typer.Option("--contender", help="One of them; may be repeated.")
    ] = None,
    ablate: Annotated[
        bool, typer.Option(help="Ours alone, one constant changed at a time: docs/engine.md.")
    ] = False,
    plot: Annotated[
        Path | None,
        typer.Option(help="Write cost against clip length, as PNG.", callback=writable),
    ] = None,
    json_file: JsonFile = None,
) -> None:
    """Our engine against faster-whisper: same weights, threads and clips, in turns, in one run."""
    from rich.progress import Progress

    from stt_cascade.bench import engine as bench
    from stt_cascade.bench.contenders import ABLATIONS, CONTENDERS, PEERS, Setup, Unusable
    from stt_cascade.bench.plot import cost_by_length
    from stt_cascade.measure.page import png

    names = peers or list(ABLATIONS if ablate else PEERS)
    if unknown := [name for name in names if name not in CONTENDERS]:
        raise typer.BadParameter(f"{unknown[0]!r}; there are: {', '.join(CONTENDERS)}")
    if not (model / "model.bin").is_file():  # faster-whisper would ask the hub for one of that name
        raise typer.BadParameter(f"no CTranslate2 model in {model}", param_hint="--model")
    cores = len(os.sched_getaffinity(0))
    setup = Setup(model, device, compute_type, threads or max(1, cores // concurrency), concurrency)
    console = Terminal(stderr=True)
    clips = _clips(sets or [], prompts, max_seconds, join or [], limit)
    console.print(f"{len(clips)} clips, {setup}")
    try:
        with Progress(console=console, disable=not console.is_terminal) as progress:
            task = progress.add_task("clips", total=len(clips))
            results = bench.run(names, setup, clips, lambda done: progress.advance(task, done))
    except Unusable as error:
        echo(error, err=True)
        raise typer.Exit(1) from None
    baseline = "30 s encoding" if ablate else "faster-whisper tuned"
    report = bench.report(results, clips, baseline)
    report["setup"] = {name: str(value) for name, value in vars(setup).items()} | {
        "cores": cores,
        "max_seconds": max_seconds,
    }
    kept = keep(
        (json_file, lambda: as_json(report)),
        (plot, lambda: png(cost_by_length(results, clips))),
    )
    _print(report)
    raise typer.Exit(int(not kept))


@app.command("sdk")
def sdk(
    hosts: Annotated[
        list[int] | None,
        typer.Option(min=1, help="Primaries behind the pool; may be repeated: 1, 2, 4, 8."),
    ] = None,
    slots: Annotated[int, typer.Option(min=1, help="Of each primary.")] = 4,
    service_ms: Annotated[float, typer.Option(min=1, help="That a clip takes in its slot.")] = 50.0,
    seconds: Annotated[float, typer.Option(min=0.1, help="For each number of primaries.")] = 5.0,
    calls: Annotated[int, typer.Option(min=1, help="Of each contender in each round.")] = 500,
    rounds: Annotated[int, typer.Option(min=1)] = 15,
    callers: Annotated[int, typer.Option(min=1, help="At once, in the rounds.")] = 8,
    json_file: JsonFile = None,
) -> None:
    """What the SDK carries and costs, over stub primaries on real sockets: needs no model."""

    from stt_cascade.bench import sdk as bench

    console = Terminal(stderr=True)
    with console.status("starting") as status:
        report = asyncio.run(
            bench.run(
                hosts or [1, 2, 4, 8],
                bench.Work(slots, service_ms / 1000),
                seconds=seconds,
                calls=calls,
                rounds=rounds,
                callers=callers,
                progress=status.update,
            )
        )
    kept = keep((json_file, lambda: as_json(report)))
    _print_sdk(report)
    raise typer.Exit(int(not kept))


def _print_sdk(report: dict[str, Any]) -> None:
    from rich.table import Table

    setup = report["setup"]
    throughput = Table(
        "primaries",
        "calls/s",
        "of linear",
        "of the client's core",
        title=f"{setup['slots']} slots each, {setup['service_ms']:g} ms a clip",
    )
    for row in report["throughput"]:
        throughput.add_row(
            str(row["hosts"]),
            f"{row['calls_per_s']:.1f}",
            f"{row['of_linear']:.1%}",
            f"{row['client_core']:.0%}",
        )
    cost = Table(
        "a call",
        "us of processor",
        "more than the first",
        "ratio (least to most)",
        title=f"{setup['rounds']} rounds of {setup['calls']} calls, {setup['callers']} at once",
    )
    for name, row in report["cost"].items():
        cost.add_row(
            name,
            f"{row['us']:.0f}",
            f"{row['own_us']:+.0f}",
            f"{row['ratio']:.2f} ({row['ratio_least']:.2f}-{row['ratio_most']:.2f})",
        )
    Terminal(width=120).print(throughput, cost)


def _clips(
    sets: list[Path],
    prompts: Path | None,
    longest: float,
    lengths: list[float],
    limit: int | None,
) -> list[Any]:
    """The clips to measure with, and their samples.

    Raises:
        typer.BadParameter: one cannot be read, or in none of them somebody speaks.
    """
    from stt_cascade.engine.protocol import SAMPLE_RATE
    from stt_cascade.labelled import joined, read_prompts
    from stt_cascade.measure.versions import samples_of

    labelled = [clip for folder in sets for clip in labelled_in(folder)]
    if prompts is not None:
        labelled += read_prompts(prompts)
    if not labelled:
        raise typer.BadParameter("no clips: name a folder with a manifest.jsonl, or --prompts")
    # Neighbours in a set are alike; the order is the same in each run.
    shuffle = random.Random(1).shuffle
    shuffle(labelled)
    try:
        clips = [
            (clip, samples)
            for clip in labelled
            if len(samples := samples_of(clip.file)) <= longest * SAMPLE_RATE
        ]
    except (OSError, ValueError) as error:
        raise typer.BadParameter(str(error)) from None
    if lengths:
        rows = [_first(joined(clips, seconds), limit) for seconds in lengths]
        clips = [clip for row in rows for clip in row]
        shuffle(clips)
    else:
        clips = _first(clips, limit)
    if not any(clip.text for clip, _ in clips):
        few = " or there are too few to join" if lengths else ""
        raise typer.BadParameter(f"nobody speaks in a clip of at most {longest:g} s{few}")
    return clips


def _first(clips: list[Any], limit: int | None) -> list[Any]:
    """The first so many of each source."""
    taken: Counter[str] = Counter()
    chosen = []
    for clip, samples in clips:
        if limit is None or taken[clip.source] < limit:
            taken[clip.source] += 1
            chosen.append((clip, samples))
    return chosen


def _print(report: dict[str, Any]) -> None:
    from rich.table import Table

    table = Table(
        "",
        "clips/s",
        "RTFx",
        "p50 ms",
        "p95 ms",
        "WER % (95 %)",
        "minus baseline (95 %)",
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
            else "{value:+.2f} ({low:+.2f} to {high:+.2f})".format(**difference),
            str(row["inserted_words"]),
            str(row["invented_words"]),
            str(len(row["lost_clips"])),
            str(row["full_context_retries"]),
            str(row["peak_rss_mib"]),
        )
    console = Terminal(width=150)
    console.print(table, _by_language(rows), _by_length(rows))
    ours = next(iter(rows))
    for name, row in rows.items():
        if name != ours:
            console.print(
                f"{ours} against {name}: {rows[ours]['clips_per_s'] / row['clips_per_s']:.2f} x "
                f"the throughput, p95 {row['p95_ms'] / rows[ours]['p95_ms']:.2f} x lower, "
                f"memory {rows[ours]['peak_rss_mib'] / row['peak_rss_mib']:.2f} x"
            )


def _by_language(rows: dict[str, Any]) -> Any:
    from rich.table import Table

    languages = list(next(iter(rows.values()))["wer_by_language"])
    table = Table("WER %, minus baseline (95 %)", *languages)
    for name, row in rows.items():
        cells = []
        for language in languages:
            cell = f"{row['wer_by_language'][language]['value']:.1f}"
            if difference := row["wer_minus_baseline_by_language"].get(language):
                cell += "  {value:+.1f} ({low:+.1f} to {high:+.1f})".format(**difference)
            cells.append(cell)
        table.add_row(name, *cells)
    return table


def _by_length(rows: dict[str, Any]) -> Any:
    from rich.table import Table

    classes = next(iter(rows.values()))["cost"]["by_length"]
    columns = [
        f"{row['from_s']:g}-{row['to_s']:g} s" if row["to_s"] else f"over {row['from_s']:g} s"
        for row in classes
    ]
    table = Table("median cost, ms", *columns, "2 s / 28 s", "worst / median of its length")
    table.add_row("clips", *(str(row["clips"]) for row in classes), "", "")
    for name, row in rows.items():
        cost = row["cost"]
        ratio, worst = cost["of_2_s_to_28_s"], cost["worst_to_median_of_its_length"]
        table.add_row(
            name,
            *(f"{entry['median_ms']:.0f}" for entry in cost["by_length"]),
            "" if ratio is None else f"{ratio:.2f}",
            "" if worst is None else f"{worst['ratio']:.1f}  {worst['clip']}",
        )
    return table
