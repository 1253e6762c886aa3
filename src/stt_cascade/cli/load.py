"""`stt load`: what a service gives, what its callers wait, and how to set it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from stt_cascade.cli.endpoint import find
from stt_cascade.cli.measuring import (
    HtmlFile,
    JsonFile,
    Key,
    PngFile,
    Stop,
    Url,
    clips_in,
    measure,
    write_json,
)

if TYPE_CHECKING:
    from stt_cascade.measure.capacity import Summary
    from stt_cascade.measure.load import Generator

WIDTH = 160
# Of what the closed loop gave at most, the open loop offers these shares.
SHARES = (0.25, 0.5, 0.7, 0.8, 0.9, 1.0)


def load(
    folder: Annotated[Path, typer.Argument(help="Folder with audio files.")],
    callers: Annotated[
        str, typer.Option("--concurrency", help="Callers at once, a step each; empty: none.")
    ] = "1,2,4,8,16",
    rates: Annotated[
        str,
        typer.Option(help="Calls a second, a step each; auto: shares of what callers got; empty."),
    ] = "auto",
    seconds: Annotated[float, typer.Option(min=1, help="Of each step.")] = 20.0,
    shortest: Annotated[float, typer.Option(help="Shortest clip, s.")] = 0.0,
    longest: Annotated[float, typer.Option(help="Longest clip, s.")] = 30.0,
    most_clips: Annotated[int, typer.Option("--clips", min=1, help="At most so many.")] = 40,
    deadline: Annotated[float, typer.Option(min=0.1, help="Of each call, s.")] = 30.0,
    slo: Annotated[float, typer.Option(min=0.01, help="The p95 that callers want, s.")] = 1.0,
    replicas: Annotated[int, typer.Option(min=1, help="Primaries that share the fallback.")] = 1,
    seed: Annotated[int, typer.Option(help="Of the arrivals.")] = 1,
    html_file: HtmlFile = None,
    png_file: PngFile = None,
    json_file: JsonFile = None,
    url: Url = None,
    key: Key = None,
) -> None:
    """Raise the load step by step: throughput, latency, the knee, and settings that follow.

    The exit status is 1 if texts failed below the knee, or if the generator was late.
    """
    from rich.console import Console
    from rich.table import Table

    from stt_cascade.measure import capacity, load_report
    from stt_cascade.measure.load import Generator, choose_clips
    from stt_sdk import ServiceError, STTClient, STTError

    levels = [int(level) for level in _numbers(callers, "--concurrency")]
    wanted = None if rates == "auto" else _numbers(rates, "--rates")
    files, endpoint = clips_in(folder), find(url, key)

    async def work(stop: Stop) -> tuple[list[Summary], int | None]:
        async with STTClient(endpoint.url, api_key=endpoint.key, retries=0) as client:
            try:
                slots: int | None = (await client.metrics())["max_concurrency"]
            except ServiceError:
                slots = None  # it keeps its figures for others
            clips = await choose_clips(client, files, shortest, longest, most_clips, seed)
            if not clips:
                raise typer.BadParameter(
                    f"of {len(files)} files none gave a text and has {shortest:g} to {longest:g} s"
                )
            generator = Generator(client, clips, deadline, stop=lambda: stop.asked, seed=seed)
            return await _steps(generator, levels, wanted, seconds, stop), slots

    try:
        steps, slots = measure(work)
    except STTError as error:
        typer.echo(error, err=True)
        raise typer.Exit(1) from None
    if not steps:
        typer.echo("nothing was measured", err=True)
        raise typer.Exit(1)
    advice = capacity.advise(steps, slots=slots, slo=slo, replicas=replicas)
    verdict, good = _verdict(steps, slo)
    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDTH)  # a file has no edge
    console.print(verdict, style="green" if good else "red", highlight=False)
    for doubt in load_report.doubts(steps):
        console.print(f"Caution: {doubt}.", highlight=False)
    table = Table(*load_report.HEAD)
    for step in steps:
        table.add_row(*load_report.row(step))
    console.print(table)
    for one in advice:
        console.print(f"{one.setting}={one.value}: {one.because}", highlight=False)
    title = f"Load on {endpoint.url}"
    if html_file is not None:
        load_report.page(steps, advice, verdict, slo=slo, good=good, title=title).write(html_file)
    if png_file is not None:
        load_report.picture(steps, slo).savefig(png_file, dpi=110)
    write_json(
        json_file,
        {
            "verdict": verdict,
            "good": good,
            "knee": capacity.knee(steps),
            "holdup": None if (lacks := capacity.holdup(steps)) is None else asdict(lacks),
            "steps": [{**asdict(step), "late": step.late} for step in steps],
            "advice": [asdict(one) for one in advice],
            "doubts": load_report.doubts(steps),
        },
    )
    raise typer.Exit(int(not good))


async def _steps(
    generator: Generator,
    levels: Sequence[int],
    rates: Sequence[float] | None,
    seconds: float,
    stop: Stop,
) -> list[Summary]:
    from rich.console import Console
    from rich.progress import Progress

    from stt_cascade.measure.capacity import summarize
    from stt_cascade.measure.load import step

    steps: list[Summary] = []
    console = Console(stderr=True)
    with Progress(console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=None)

        async def one(kind: Literal["closed", "open"], level: float, name: str) -> None:
            if not stop.asked:
                progress.update(task, description=name, completed=0)

                def say(count: int) -> None:
                    progress.update(task, completed=count)

                steps.append(summarize(await step(generator, kind, level, seconds, say)))

        for level in levels:
            await one("closed", level, f"{level} at once")
        if rates is None:
            most = max((done.throughput for done in steps), default=0.0)
            rates = [share * most for share in SHARES if most]
        for rate in rates:
            await one("open", rate, f"{rate:.3g} a second")
    return [done for done in steps if done.calls]


def _verdict(steps: Sequence[Summary], slo: float) -> tuple[str, bool]:
    from stt_cascade.measure import capacity

    at = capacity.knee(steps)
    closed = [step for step in steps if step.kind == "closed"]
    parts = []
    if closed:
        best = max(closed, key=lambda step: step.throughput)
        where = f"the knee is at {at:g} callers" if at else "no knee within these steps"
        parts.append(f"At most {best.throughput:.2f} texts a second; {where}.")
    if (lacks := capacity.holdup(steps)) is not None:
        other = "primary" if lacks.tier == "fallback" else "fallback"
        parts.append(
            f"What it lacks is the {lacks.tier}: at {lacks.callers:g} callers a clip waits "
            f"{lacks.seconds:.2f} s longer for it (p95) than at {lacks.alone:g}, for the {other} "
            f"{lacks.other:.2f} s."
        )
    held = capacity.sustained(steps, slo)
    if any(step.kind == "open" for step in steps):
        parts.append(
            f"Up to {held.level:.3g} calls a second the p95 stays within {slo:g} s."
            if held
            else f"At none of these rates the p95 stays within {slo:g} s."
        )
    failed = [step for step in closed if _failures(step) and (at is None or step.level <= at)]
    if failed:
        parts.append(f"Texts failed at {failed[0].level:g} callers: {failed[0].outcomes}.")
    late = [step for step in steps if step.late]
    if late:
        parts.append("The generator was late: run it on a machine that has time for it.")
    return " ".join(parts), not failed and not late


def _failures(step: Summary) -> int:
    # A full queue is an answer, not a failure.
    return sum(count for kind, count in step.outcomes.items() if kind not in ("ok", "overloaded"))


def _numbers(text: str, option: str) -> list[Any]:
    try:
        found = [float(number) for number in text.split(",") if number.strip()]
    except ValueError:
        found = [0.0]
    if any(not 0 < number < 1e5 for number in found):
        raise typer.BadParameter("must be positive numbers with commas between", param_hint=option)
    return found
