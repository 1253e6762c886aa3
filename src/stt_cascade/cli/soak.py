"""`stt soak`: whether anything grows in hours of steady load."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

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
    from stt_cascade.measure.load import Generator
    from stt_cascade.measure.soak import Soak

# So many points has a trend.
INTERVALS = 240
LEAST_INTERVAL_S = 1.0


def soak(
    folder: Folder,
    hours: Annotated[float, typer.Option(min=0.001, help="How long.", callback=finite)] = 2.0,
    callers: Annotated[int, typer.Option("--concurrency", min=1, help="Callers at once.")] = 2,
    rate: Annotated[
        float | None,
        typer.Option(
            min=0.001, help="Calls a second, instead of callers at once.", callback=finite
        ),
    ] = None,
    longest: Annotated[float, typer.Option(help="Longest clip, s.", callback=finite)] = 30.0,
    most_clips: Annotated[int, typer.Option("--clips", min=1, help="At most so many.")] = 100,
    deadline: Annotated[
        float, typer.Option(min=0.1, help="Of each call, s.", callback=finite)
    ] = 30.0,
    seed: Annotated[int, typer.Option(help="Of the choice of clips and the arrivals.")] = 1,
    html_file: HtmlFile = None,
    png_file: PngFile = None,
    json_file: JsonFile = None,
    url: Url = None,
    key: Key = None,
    metrics_key: MetricsKey = None,
) -> None:
    """Load the service steadily for hours, and test for growth: memory, descriptors, threads,
    latency, errors, escalation.

    The exit status is 1 if something grows, if calls fail, if the service restarts or does not tell
    of its memory, or if it was ended early.
    """

    from stt_cascade.measure.load import Generator
    from stt_cascade.measure.page import png
    from stt_sdk import STTClient, STTError

    files, endpoint = clips_in(folder), find(url, key)

    async def work(stop: Stop) -> Soak:
        async with (
            STTClient(endpoint.url, api_key=endpoint.key, retries=0) as client,
            figures_of(endpoint, metrics_key) as figures,
        ):
            clips = await warm_up(
                client, files, (0.0, longest), most_clips, deadline=deadline, seed=seed, stop=stop
            )
            generator = Generator(client, clips, deadline, lambda: stop.asked, seed, figures)
            return await _run(generator, 3600 * hours, callers, rate)

    try:
        done: Soak = measure(work)
    except STTError as error:
        echo(error, err=True)
        raise typer.Exit(1) from None
    said, good = done.verdict()
    kept = keep(
        (json_file, lambda: as_json(done.figures())),
        (html_file, lambda: done.page(f"Soak of {endpoint.url}").html()),
        (png_file, lambda: png(done.picture())),
    )
    console = Terminal()
    console.print(said, style="green" if good else "red", highlight=False, markup=False)
    for one in done.trends():
        console.print(f"  {one}", style="red" if one.grows else "", highlight=False)
    raise typer.Exit(int(not (good and kept)))


async def _run(generator: Generator, seconds: float, callers: int, rate: float | None) -> Soak:
    from rich.progress import Progress, TextColumn

    from stt_cascade.measure.soak import Interval, Soak, run

    console = Terminal(stderr=True)
    columns = (*Progress.get_default_columns(), TextColumn("{task.fields[now]}"))
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("soaking", total=seconds, now="")

        def say(one: Interval) -> None:
            now = f"p95 {one.p95 or 0:.2f} s, {one.rss_mb or 0:.0f} MiB, {one.errors} errors"
            progress.update(task, completed=one.at, now=now)

        soaking = Soak(say, seconds)
        interval = max(LEAST_INTERVAL_S, seconds / INTERVALS)
        await run(
            generator, soaking, seconds=seconds, interval=interval, rate=rate, callers=callers
        )
    return soaking
