"""What the commands that measure have in common: options, clips, Ctrl-C, what they leave behind."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from stt_cascade.labelled import MANIFEST, read_manifest

Url = Annotated[
    str | None, typer.Option(envvar="STT_URL", help="The primary; default: a running `stt up`.")
]
Key = Annotated[str | None, typer.Option(envvar="STT_API_KEY", help="Its bearer key.")]
JsonFile = Annotated[Path | None, typer.Option("--json", help="Write all figures there.")]
HtmlFile = Annotated[Path | None, typer.Option("--html", help="Write the report there.")]
PngFile = Annotated[Path | None, typer.Option("--png", help="Write the picture there.")]

# Suffixes of what the service takes.
AUDIO = frozenset(
    {".wav", ".flac", ".mp3", ".ogg", ".opus", ".webm", ".m4a", ".mp4", ".aiff", ".au", ".g722"}
)

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
                typer.echo("\nEnding early; once more: at once", err=True)
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
    try:
        if (folder / MANIFEST).is_file():
            return [clip.file for clip in read_manifest(folder)]
        found = sorted(file for file in folder.rglob("*") if file.suffix.lower() in AUDIO)
    except (OSError, ValueError) as error:
        raise typer.BadParameter(f"{folder}: {error}") from None
    if not found:
        raise typer.BadParameter(f"{folder} has no audio file ({', '.join(sorted(AUDIO))})")
    return found


def write_json(file: Path | None, figures: dict[str, Any]) -> None:
    """Write the figures, whole or not at all, where somebody wants them."""
    if file is not None:
        new = file.with_name(f".{file.name}.new")
        new.write_text(json.dumps(figures, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        new.replace(file)
