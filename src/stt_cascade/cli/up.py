"""`stt up`: both tiers on this machine, until Ctrl-C."""

from __future__ import annotations

import asyncio
import os
import shlex
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stt_cascade.cli.terminal import echo

if TYPE_CHECKING:
    from stt_cascade.cli.stack import Stack

SAMPLES = Path(__file__).parents[3] / "samples"

Primary = Annotated[str, typer.Option("--primary", help="Model of the primary.")]
Fallback = Annotated[str, typer.Option("--fallback", help="Model of the fallback.")]
Models = Annotated[Path, typer.Option("--models", help="Folder that holds the models.")]
Port = Annotated[int, typer.Option("--port", min=1, max=65535, help="Wanted port.")]
FallbackPort = Annotated[
    int, typer.Option("--fallback-port", min=1, max=65535, help="Wanted port of the fallback.")
]
Verbose = Annotated[bool, typer.Option("--verbose", help="Show what both tiers log.")]


def up(
    primary: Primary = "base",
    fallback: Fallback = "base",
    models: Models = Path("models"),
    port: Port = 8081,
    fallback_port: FallbackPort = 8082,
    verbose: Verbose = False,
) -> None:
    """Start both tiers on this machine; Ctrl-C stops them.

    Brings the weights first if they are missing. Uses the GPU if there is one.
    """
    from stt_cascade.cli.stack import StackError, supervise

    stack = prepare(
        primary, fallback, models, port=port, fallback_port=fallback_port, verbose=verbose
    )
    try:
        supervise(_serve(stack), say=say, kill=stack.kill)
    except asyncio.CancelledError:
        say("Stopped.")
    except StackError as error:
        echo(error, err=True)
        raise typer.Exit(1) from None


def prepare(
    primary: str,
    fallback: str,
    models: Path,
    *,
    port: int = 8081,
    fallback_port: int = 8082,
    verbose: bool = False,
    primary_settings: Mapping[str, object] | None = None,
    tell: Callable[[str], None] | None = None,
) -> Stack:
    """Both tiers as this machine runs them best, their weights brought in; not yet started.

    Args:
        primary_settings: see `Stack`.
        tell: is told each step; by default it is printed.

    Raises:
        typer.Exit: there are no such weights.
    """
    from stt_cascade import weights
    from stt_cascade.cli import hardware
    from stt_cascade.cli.models import pull
    from stt_cascade.cli.stack import Stack

    tell = tell or say
    names = list(dict.fromkeys((primary, fallback)))
    here = weights.installed(models)
    if missing := [name for name in names if name not in here]:
        pull(missing, root=models)
    gpu, note = hardware.gpu()
    if note:
        tell(note)
    return Stack(
        *hardware.recipes(primary, fallback, cores=hardware.cores(), gpu=gpu),
        models,
        port=port,
        fallback_port=fallback_port,
        verbose=verbose,
        say=tell,
        primary_settings=primary_settings,
    )


def say(line: str) -> None:
    """Print a step. That nobody can read it any more must not keep the tiers from being stopped."""
    with suppress(OSError):
        echo(line)


def samples() -> list[Path]:
    """The repository's clips, as paths from here; none in an installed wheel."""
    here = Path.cwd()
    return [
        path.relative_to(here) if path.is_relative_to(here) else path
        for path in sorted(SAMPLES.glob("*.flac"))
    ]


async def _serve(stack: Stack) -> None:
    from stt_cascade.cli.endpoint import announce

    async with stack:
        with announce(stack.url, stack.key):
            say(_instructions(stack))
            await stack.wait()


def _instructions(stack: Stack) -> str:
    clip = os.fspath(next(iter(samples()), "FILE"))
    return "\n".join(
        (
            "",
            f"primary   {stack.url}",
            f"fallback  {stack.fallback_url}",
            "",
            "Try it, in another terminal:",
            f"  stt transcribe {shlex.quote(clip)}",
            f"  curl -s {stack.url}/v1/transcribe -H 'Authorization: Bearer {stack.key}'"
            f" -F {shlex.quote(f'audio=@{clip}')}",
            "",
            "Ctrl-C stops both.",
        )
    )
