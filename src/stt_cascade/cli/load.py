"""`stt load`: what a service gives, what its callers wait, and how to set it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from stt_cascade.cli.endpoint import find
from stt_cascade.cli.measuring import (
    Folder,
    HtmlFile,
    JsonFile,
    Key,
    MetricsKey,
    PngFile,
    Stop,
    Url,
    as_json,
    clips_in,
    figures_of,
    finite,
    keep,
    measure,
    warm_up,
)
from stt_cascade.cli.terminal import Terminal, echo

if TYPE_CHECKING:
    from stt_cascade.measure.capacity import Summary
    from stt_cascade.measure.load import Generator

WIDTH = 160
# Of what the closed loop gave at most, the open loop offers these shares.
SHARES = (0.25, 0.5, 0.7, 0.8, 0.9, 1.0)


def load(
    folder: Folder,
    callers: Annotated[
        str, typer.Option("--concurrency", help="Callers at once, a step each; empty: none.")
    ] = "1,2,4,8,16",
    rates: Annotated[
        str,
        typer.Option(help="Calls a second, a step each; auto: shares of what callers got; empty."),
    ] = "auto",
    seconds: Annotated[float, typer.Option(min=1, help="Of each step.", callback=finite)] = 20.0,
    shortest: Annotated[float, typer.Option(help="Shortest clip, s.", callback=finite)] = 0.0,
    longest: Annotated[float, typer.Option(help="Longest clip, s.", callback=finite)] = 30.0,
    most_clips: Annotated[int, typer.Option("--clips", min=1, help="At most so many.")] = 40,
    deadline: Annotated[
        float, typer.Option(min=0.1, help="Of each call, s.", callback=finite)
    ] = 30.0,
    slo: Annotated[
        float, typer.Option(min=0.01, help="The p95 that callers want, s.", callback=finite)
    ] = 1.0,
    replicas: Annotated[int, typer.Option(min=1, help="Primaries that share the fallback.")] = 1,
    seed: Annotated[int, typer.Option(help="Of the arrivals.")] = 1,
    html_file: HtmlFile = None,
    png_file: PngFile = None,
    json_file: JsonFile = None,
    url: Url = None,
    key: Key = None,
    metrics_key: MetricsKey = None,
) -> None:
    """Raise the load step by step: throughput, latency, the knee, and settings that follow.

    The exit status is 1 if texts failed below the knee or the service broke beyond it, if the
    generator was late, or if it was ended early.
    """
    from rich.table import Table

    from stt_cascade.measure import capacity, load_report, load_verdict
    from stt_cascade.measure.load import Generator
    from stt_cascade.measure.page import png
    from stt_sdk import InvalidAnswerError, ServiceError, STTClient, STTError

    levels = _numbers(callers, "--concurrency", whole=True)
    wanted = None if rates == "auto" else _numbers(rates, "--rates")
    files, endpoint = clips_in(folder), find(url, key)

    async def work(stop: Stop) -> tuple[list[Summary], int | None, bool]:
        async with (
            STTClient(endpoint.url, api_key=endpoint.key, retries=0) as client,
            figures_of(endpoint, metrics_key) as figures,
        ):
            try:
                slots: int | None = (await figures.metrics()).get("max_concurrency")
            except (ServiceError, InvalidAnswerError):
                slots = None  # it keeps its figures for others
            clips = await warm_up(
                client,
                files,
                (shortest, longest),
                most_clips,
                deadline=deadline,
                seed=seed,
                stop=stop,
            )
            generator = Generator(client, clips, deadline, lambda: stop.asked, seed, figures)
            return await _steps(generator, levels, wanted, seconds, stop), slots, stop.asked

    try:
        steps, slots, early = measure(work)
    except STTError as error:
        echo(error, err=True)
        raise typer.Exit(1) from None
    if not steps:
        echo("nothing was measured", err=True)
        raise typer.Exit(1)
    advice = capacity.advise(steps, slots=slots, slo=slo, replicas=replicas)
    verdict, good = load_verdict.verdict(steps, slo)
    if early:
        verdict, good = f"Ended early. {verdict}", False
    figures = {
        "verdict": verdict,
        "good": good,
        "knee": capacity.knee(steps),
        "holdup": None if (lacks := capacity.holdup(steps)) is None else asdict(lacks),
        "steps": [{**asdict(step), "late": step.late} for step in steps],
        "advice": [asdict(one) for one in advice],
        "doubts": load_report.doubts(steps),
    }

    def page() -> bytes:
        title = f"Load on {endpoint.url}"
        return load_report.page(steps, advice, verdict, slo=slo, good=good, title=title).html()

    kept = keep(
        (json_file, lambda: as_json(figures)),
        (html_file, page),
        (png_file, lambda: png(load_report.picture(steps, slo))),
    )
    console = Terminal()
    if not console.is_terminal:
        console = Terminal(width=WIDTH)  # a file has no edge
    console.print(verdict, style="green" if good else "red", highlight=False, markup=False)
    for doubt in load_report.doubts(steps):
        console.print(f"Caution: {doubt}.", highlight=False, markup=False)
    table = Table(*load_report.HEAD)
    for step in steps:
        table.add_row(*load_report.row(step))
    console.print(table)
    for one in advice:
        console.print(f"{one.setting}={one.value}: {one.because}", highlight=False)
    raise typer.Exit(int(not (good and kept)))


async def _steps(
    generator: Generator,
    levels: Sequence[float],
    rates: Sequence[float] | None,
    seconds: float,
    stop: Stop,
) -> list[Summary]:
    from rich.progress import Progress

    from stt_cascade.measure.capacity import summarize
    from stt_cascade.measure.load import step

    steps: list[Summary] = []
    console = Terminal(stderr=True)
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


def _numbers(text: str, option: str, *, whole: bool = False) -> list[float]:
    try:
        found = [float(number) for number in text.split(",") if number.strip()]
    except ValueError:
        found = [0.0]
    if any(not 0 < number < 1e5 or (whole and number % 1) for number in found):
        what = "positive numbers, whole ones," if whole else "positive numbers"
        raise typer.BadParameter(f"must be {what} with commas between", param_hint=option)
    return found
