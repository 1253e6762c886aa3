"""`stt transcribe`: files in, a table out."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from stt_cascade.cli.endpoint import Endpoint, find
from stt_cascade.cli.terminal import Terminal, echo, json_text
from stt_sdk import Clip, STTClient, Transcription
from stt_sdk._text import harmless

# Enough to keep a small box busy without filling its queue.
CONCURRENCY = 2
# From here on a bar is worth its line.
MANY = 4

Outcome = Transcription | Exception


def transcribe(
    files: Annotated[list[Path], typer.Argument(help="Audio files.", show_default=False)],
    language: Annotated[
        str | None, typer.Option(help="ISO 639 code such as en, pt-BR or nb; without it: detect.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
    url: Annotated[
        str | None, typer.Option(envvar="STT_URL", help="The primary; default: a running `stt up`.")
    ] = None,
    key: Annotated[str | None, typer.Option(envvar="STT_API_KEY", help="Its bearer key.")] = None,
) -> None:
    """Transcribe audio files through the running primary."""
    endpoint = find(url, key)
    raise typer.Exit(
        transcribe_files(endpoint.url, endpoint.key, files, language=language, as_json=as_json)
    )


def transcribe_files(
    url: str,
    key: str | None,
    files: Sequence[Path],
    *,
    language: str | None = None,
    as_json: bool = False,
) -> int:
    """Transcribe files and print what became of them.

    Returns:
        exit status: 1 if any of them failed.
    """
    outcomes = run(Endpoint(url, key), files, language)
    console = Terminal()
    if as_json:
        for file, outcome in outcomes:
            echo(json_text(_as_json(file, outcome)))
    else:
        console.print(table(outcomes))
    return int(any(isinstance(outcome, Exception) for _, outcome in outcomes))


def run(
    endpoint: Endpoint, files: Sequence[Path], language: str | None
) -> list[tuple[Path, Outcome]]:
    """Transcribe files, a few at a time, with a progress bar if they are many; in their order."""

    return asyncio.run(gather(endpoint, files, [language] * len(files)))


async def gather(
    endpoint: Endpoint,
    files: Sequence[Path],
    languages: Sequence[str | None],
    concurrency: int = CONCURRENCY,
) -> list[tuple[Path, Outcome]]:
    """What became of each file, in their order; a progress bar if they are many."""
    found: dict[int, Outcome] = {}
    clips = [Clip(file, language) for file, language in zip(files, languages, strict=True)]
    console = Terminal(stderr=True)
    with Progress(
        TextColumn("transcribing"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        disable=len(files) < MANY or not console.is_terminal,
    ) as progress:
        task = progress.add_task("", total=len(files))
        async with STTClient(endpoint.url, api_key=endpoint.key) as client:
            async for done in client.transcribe_many(clips, concurrency=concurrency):
                found[done.index] = done.value
                progress.advance(task)
    return [(file, found[index]) for index, file in enumerate(files)]


def _as_json(file: Path, outcome: Outcome) -> dict[str, object]:
    if isinstance(outcome, Transcription):
        return {"file": str(file), **asdict(outcome)}
    return {"file": str(file), "error": str(outcome)}


def table(rows: Sequence[tuple[Path, Outcome]]) -> Table:
    shown = Table(show_lines=True)
    shown.add_column("file", overflow="fold", ratio=2)
    shown.add_column("text", ratio=5)
    # One column for all the rest: a text needs the room of a terminal 80 characters wide.
    shown.add_column("answered by, why, ms", no_wrap=True)
    for file, outcome in rows:
        if isinstance(outcome, Transcription):
            text = Text(outcome.text) if outcome.text else Text("(nobody speaks)", "dim")
            for segment in outcome.segments:
                if segment.suspect:
                    span = f"{segment.start:.1f} to {segment.end:.1f} s"
                    text.append(f"\nsuspect: {span}", "yellow")
            for warning in outcome.warnings:
                text.append(f"\n{warning.message}", "yellow")
            shown.add_row(file.name, text, "\n".join(_how(outcome)))
        else:
            shown.add_row(file.name, Text(harmless(str(outcome)), "red"), Text("failed", "red"))
    return shown


def _how(result: Transcription) -> Iterator[str]:
    """The tier, the gates, the confidence and the timings of an answer, a line each."""
    routing, scores, times = result.routing, result.confidence, result.timings_ms
    yield f"{routing.tier} ({result.model})" + (", degraded" if routing.degraded else "")
    yield f"{routing.reason}: {', '.join(routing.below)}" if routing.below else routing.reason
    if scores.logprob is not None and scores.weakest is not None:
        yield f"mean {scores.logprob:.2f}, weakest {scores.weakest:.2f}"
    if result.language_probability is not None:
        yield f"language {result.language} {result.language_probability:.2f}"
    for name, value in (
        ("queue", times.queue_wait),
        ("primary", times.primary_infer),
        ("fallback", times.fallback_infer),
        ("total", times.total),
    ):
        if value is not None:
            yield f"{name:<8} {value:>6.0f}"
