"""`stt canary`: whether a new version may take over from the old one."""

from __future__ import annotations

import re
import time
from contextlib import nullcontext
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from stt_cascade.cli.endpoint import address, sendable
from stt_cascade.cli.measuring import (
    HtmlFile,
    JsonFile,
    PngFile,
    Stop,
    as_json,
    finite,
    keep,
    measure,
)
from stt_cascade.cli.terminal import Terminal

if TYPE_CHECKING:
    from rich.console import Group

    from stt_cascade.measure.canary import Look, Watch
    from stt_cascade.measure.scrape import Source

# What the rules, the targets and the chart of deploy/ tell the two by.
STABLE, CANARY = 'job="stt-primary",role="stable"', 'job="stt-primary",role="canary"'
WIDTH = 120
# Addresses and labels are no markup.
PLAIN: dict[str, Any] = {"highlight": False, "markup": False}
LOOKS = 20
MOST_BETWEEN_S = 30.0
UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0}


def duration(text: str) -> float:
    """Seconds of `90`, `90s`, `10m` or `2h`.

    Raises:
        typer.BadParameter: it is none of these.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text.strip())
    if match is None or not (seconds := float(match[1]) * UNITS[match[2]]):
        raise typer.BadParameter(f"{text!r} is no time such as 90s, 10m or 2h")
    return seconds


def canary(
    baselines: Annotated[
        list[str] | None, typer.Option("--baseline", help="Address of an old one; repeatable.")
    ] = None,
    canaries: Annotated[
        list[str] | None, typer.Option("--canary", help="Address of a new one; repeatable.")
    ] = None,
    prometheus: Annotated[
        str | None, typer.Option(help="Ask this Prometheus instead of the services.")
    ] = None,
    baseline_selector: Annotated[str, typer.Option(help="Its labels of the old ones.")] = STABLE,
    canary_selector: Annotated[str, typer.Option(help="Its labels of the new ones.")] = CANARY,
    lasts: Annotated[str, typer.Option("--for", help="How long: 90s, 10m, 2h.")] = "10m",
    every: Annotated[
        str | None, typer.Option(help="Between two looks; default: a 20th, at most 30 s.")
    ] = None,
    sustained: Annotated[
        str | None, typer.Option(help="For how long a p95 must be too long; default: half of it.")
    ] = None,
    p95: Annotated[
        float, typer.Option(min=1, help="Allowed: so many times the old p95.", callback=finite)
    ] = 1.5,
    failures: Annotated[
        float,
        typer.Option(
            min=0, max=1, help="Allowed: so many more failed fallback calls.", callback=finite
        ),
    ] = 0.005,
    errors: Annotated[
        float,
        typer.Option(min=0, max=1, help="So many more failed requests, 5xx.", callback=finite),
    ] = 0.01,
    escalation: Annotated[
        float,
        typer.Option(min=0, max=1, help="So many escalations more or fewer.", callback=finite),
    ] = 0.05,
    disagreement: Annotated[
        float,
        typer.Option(min=0, max=1, help="So much more or less disagreement.", callback=finite),
    ] = 0.05,
    least: Annotated[
        int, typer.Option(min=1, help="Answers that either side must have given.")
    ] = 300,
    on_too_little: Annotated[
        Literal["fail", "pass"], typer.Option(help="Exit status where there were fewer.")
    ] = "fail",
    key: Annotated[
        str | None, typer.Option(help="A key of METRICS_KEYS, or the Prometheus' bearer token.")
    ] = None,
    html_file: HtmlFile = None,
    png_file: PngFile = None,
    json_file: JsonFile = None,
) -> None:
    """Watch a new version beside the old one, and say whether to promote it.

    The exit status is 0 to promote, 1 to abort or if nothing can be said.
    """

    from stt_cascade.measure import canary_report, scrape
    from stt_cascade.measure.canary import Watch
    from stt_cascade.measure.guardrails import Limits
    from stt_cascade.measure.page import png

    seconds = duration(lasts)
    between = duration(every) if every else min(MOST_BETWEEN_S, seconds / LOOKS)
    part = duration(sustained) if sustained else seconds / 2
    if not between <= part <= seconds:
        raise typer.BadParameter("--every, --sustained and --for must rise")
    named = (bool(prometheus), bool(baselines), bool(canaries))
    if named not in ((True, False, False), (False, True, True)):
        raise typer.BadParameter("name --baseline and --canary, or else --prometheus")
    baselines = [address(url, "--baseline") for url in baselines or ()]
    canaries = [address(url, "--canary") for url in canaries or ()]
    if prometheus is not None:
        prometheus = address(prometheus, "--prometheus")
    key = sendable(key, "--key")
    old, new = set(baselines), set(canaries)
    if prometheus is not None:
        old, new = {baseline_selector}, {canary_selector}
    if both := old & new:  # it would be promoted, whatever it is
        raise typer.BadParameter(f"{', '.join(sorted(both))} is on both sides")
    limits = Limits(p95, failures, errors, escalation, disagreement, least)
    watch = Watch(seconds, max(1, round(seconds / between)), part, limits)
    console = Terminal()
    if not console.is_terminal:
        console = Terminal(width=WIDTH)  # a file has no edge

    async def work(stop: Stop) -> None:
        sources = (
            scrape.services(baselines, canaries, key=key)
            if prometheus is None
            else scrape.prometheus(prometheus, baseline_selector, canary_selector, key=key)
        )
        async with sources as sides:
            await _look_on(watch, sides, between, stop, console)

    measure(work)
    verdict = watch.verdict()
    good = verdict.outcome == "promote"
    kept = keep(
        (json_file, lambda: as_json(canary_report.figures(watch))),
        (html_file, lambda: canary_report.page(watch, "Canary").html()),
        (png_file if watch.history else None, lambda: png(canary_report.picture(watch))),
    )
    console.print(verdict.says, style="green" if good else "red", **PLAIN)
    for caution in watch.cautions():
        console.print(f"Caution: {caution}.", **PLAIN)
    passes = good or (verdict.too_little and on_too_little == "pass")
    raise typer.Exit(int(not (passes and kept)))


async def _look_on(
    watch: Watch, sides: list[Source], between: float, stop: Stop, console: Any
) -> None:
    """Look again and again, until the time is over or there is a verdict."""
    import asyncio

    from rich.live import Live

    began = time.monotonic()
    live = Live(console=console) if console.is_terminal else None
    with live or nullcontext():
        for number in range(watch.looks + 1):
            due = began + min(number * between, watch.seconds)
            if not await stop.sleep(max(0.0, due - time.monotonic())):
                return
            at = time.monotonic() - began
            try:
                baseline, canary = await asyncio.gather(*(side.look() for side in sides))
            except LookupError as error:
                watch.miss(str(error))
            else:
                shown = _table(watch.take(at, baseline, canary), watch)
                if live is None:
                    console.print(shown)
                else:
                    live.update(shown, refresh=True)
            if watch.over:
                return


def _table(look: Look, watch: Watch) -> Group:
    from rich.console import Group
    from rich.table import Table

    from stt_cascade.measure import canary_report

    table = Table(*canary_report.HEAD)
    for held in look.guardrails:
        table.add_row(*canary_report.row(held), style="red" if held.breach else "")
    return Group(canary_report.head(look, watch.seconds), table)
