"""What the commands that measure have in common: options, clips, Ctrl-C, what they leave behind."""

from __future__ import annotations

import asyncio
import json
import math
import os
import signal
import tempfile
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from stt_cascade.cli.endpoint import Endpoint, sendable
from stt_cascade.cli.terminal import Terminal, echo
from stt_cascade.labelled import MANIFEST, Labelled, read_manifest

Folder = Annotated[
    Path, typer.Argument(help="Folder with audio files.", exists=True, file_okay=False)
]
LabelledFolder = Annotated[
    Path,
    typer.Argument(help=f"Folder with clips and a {MANIFEST}.", exists=True, file_okay=False),
]
Url = Annotated[
    str | None, typer.Option(envvar="STT_URL", help="The primary; default: a running `stt up`.")
]
Key = Annotated[str | None, typer.Option(envvar="STT_API_KEY", help="Its bearer key.")]
MetricsKey = Annotated[
    str | None, typer.Option(help="A key of METRICS_KEYS, where they are not open.")
]


def writable(file: Path | None) -> Path | None:
    """For options, asked before anything is measured: after two hours it would be too late.

    Raises:
        typer.BadParameter: nothing can be written there.
    """
    try:
        if file is not None and file.is_dir():
            raise typer.BadParameter(f"{file} is a folder")
        if file is not None and not _is_special(file):
            with tempfile.TemporaryFile(dir=file.resolve().parent):
                pass
    except OSError as error:
        raise typer.BadParameter(f"{file} cannot be written: {error.strerror}") from None
    return file


def _is_special(file: Path) -> bool:
    # A pipe or a device is not replaced by a file.
    return file.exists() and not file.is_file()


JsonFile = Annotated[
    Path | None, typer.Option("--json", help="Write all figures there.", callback=writable)
]
HtmlFile = Annotated[
    Path | None, typer.Option("--html", help="Write the report there.", callback=writable)
]
PngFile = Annotated[
    Path | None, typer.Option("--png", help="Write the picture there.", callback=writable)
]


def finite(value: float | None) -> float | None:
    """For options: what is no number, or without end, limits nothing.

    Raises:
        typer.BadParameter: it is infinite, or no number.
    """
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter(f"{value} is not allowed here")
    return value


if TYPE_CHECKING:
    from stt_sdk import STTClient

# Suffixes of what the service takes.
AUDIO = frozenset(
    {".wav", ".flac", ".mp3", ".ogg", ".opus", ".webm", ".m4a", ".mp4", ".aiff", ".au", ".g722"}
)

# For these nobody waits longer, whatever has become of the service.
FIGURES_S = 5.0

Result = TypeVar("Result")


class Stop:
    """Whether somebody has had enough: what was measured until then is still reported."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    @property
    def asked(self) -> bool:
        return self._event.is_set()

    def ask(self) -> None:
        self._event.set()

    async def sleep(self, seconds: float) -> bool:
        """Wait so long, or until then; whether to go on."""
        waiting = asyncio.ensure_future(self._event.wait())
        try:
            await asyncio.wait({waiting}, timeout=seconds)
        finally:
            waiting.cancel()
        return not self.asked


def measure(work: Callable[[Stop], Coroutine[Any, Any, Result]]) -> Result:
    """Run what measures. The first Ctrl-C (or SIGTERM) ends it early, the second at once.

    Raises:
        typer.Exit: 130, at the second one.
    """

    async def run() -> Result:
        stop = Stop()
        task = asyncio.ensure_future(work(stop))
        loop = asyncio.get_running_loop()

        def heard() -> None:
            if stop.asked:
                task.cancel()
            else:
                echo("\nEnding early; once more: at once", err=True)
                stop.ask()

        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, heard)
        try:
            return await task
        finally:
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(number)

    try:
        return asyncio.run(run())
    except asyncio.CancelledError:
        raise typer.Exit(130) from None


def clips_in(folder: Path) -> list[Path]:
    """The audio files of a folder: those that its manifest names, else those it has, sorted.

    Raises:
        typer.BadParameter: there are none.
    """
    if (folder / MANIFEST).is_file():
        return [clip.file for clip in labelled_in(folder)]
    try:
        found = sorted(file for file in folder.rglob("*") if file.suffix.lower() in AUDIO)
    except OSError as error:
        raise typer.BadParameter(f"{folder}: {error}") from None
    if not found:
        raise typer.BadParameter(f"{folder} has no audio file ({', '.join(sorted(AUDIO))})")
    return found


def labelled_in(folder: Path) -> list[Labelled]:
    """The clips that a folder's manifest names.

    Raises:
        typer.BadParameter: it cannot be read.
    """
    try:
        return read_manifest(folder)
    except OSError as error:
        raise typer.BadParameter(f"{folder / MANIFEST}: {error.strerror}") from None
    except ValueError as error:
        raise typer.BadParameter(f"{folder / MANIFEST}: {error}") from None


def figures_of(endpoint: Endpoint, metrics_key: str | None) -> STTClient:
    """A client for the service's own figures, which may want another key."""
    from stt_sdk import STTClient

    key = sendable(metrics_key, "--metrics-key") or endpoint.key
    return STTClient(endpoint.url, api_key=key, timeout=FIGURES_S, retries=0)


async def warm_up(
    client: STTClient,
    files: Sequence[Path],
    lengths: tuple[float, float],
    most: int,
    *,
    deadline: float,
    seed: int,
    stop: Stop,
) -> Sequence[bytes | Path]:
    """The clips to measure with, as `choose_clips` has them; tells of those that failed.

    Raises:
        STTError: as there.
        typer.BadParameter: there are none.
    """

    from stt_cascade.measure.load import choose_clips

    with Terminal(stderr=True).status("Warming up, with each clip once"):
        chosen = await choose_clips(
            client, files, lengths, most, deadline=deadline, seed=seed, stop=lambda: stop.asked
        )
    failed = f"{chosen.failed} of them failed, the last with: {chosen.last}"
    if not chosen.clips and not stop.asked:
        raise typer.BadParameter(
            f"of {len(files)} files none gave a text and has {lengths[0]:g} to {lengths[1]:g} s"
            + (f"; {failed}" if chosen.failed else "")
        )
    if chosen.failed:
        echo(f"Left out of the files: {failed}", err=True)
    return chosen.clips


def as_json(figures: dict[str, Any]) -> bytes:
    """Figures as JSON, which has no infinite numbers: `null` stands for them."""
    text = json.dumps(_without_nan(figures), indent=2, ensure_ascii=False, allow_nan=False)
    return (text + "\n").encode("utf-8", "backslashreplace")


def _without_nan(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: _without_nan(each) for name, each in value.items()}
    return [_without_nan(each) for each in value] if isinstance(value, list | tuple) else value


def keep(*reports: tuple[Path | None, Callable[[], bytes]]) -> bool:
    """Write each report that somebody wants, whole or not at all.

    Before anything is printed, since who reads that may be gone: `stt load ... | head`.

    Returns:
        whether all are there. What could not be written is told.
    """
    well = True
    for file, made in reports:
        if file is not None:
            try:
                _write(file, made())
            except OSError as error:
                echo(f"{file} could not be written: {error.strerror}", err=True)
                well = False
    return well


def _write(file: Path, content: bytes) -> None:
    if _is_special(file):
        file.write_bytes(content)
        return
    file = file.resolve()  # of a link what it points to
    new = file.with_name(f".stt-{os.getpid()}.new")
    try:
        new.write_bytes(content)
        new.replace(file)
    finally:
        new.unlink(missing_ok=True)
