"""`stt demo`: real speech through the cascade, and what became of it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stt_cascade.cli.terminal import Terminal, echo
from stt_cascade.cli.up import Fallback, Models, Primary, Verbose, prepare, samples, say

if TYPE_CHECKING:
    from stt_cascade.cli.stack import Stack
    from stt_cascade.cli.transcribe import Outcome
    from stt_sdk import Transcription

# What a failed gate, or another reason to escalate, means.
WHY = {
    "logprob": "the primary's text as a whole was too doubtful",
    "weakest": "the primary's weakest words were too doubtful",
    "langprob": "the primary was not sure of the language",
    "words": "the primary heard too few words",
    "coverage": "the primary's text was too short for the speech",
    "loop": "the primary's text repeated itself",
    "language": "the primary does not know the language",
    "primary_error": "the primary failed",
}


def demo(
    files: Annotated[
        list[Path] | None,
        typer.Argument(help="Audio files; default: the samples.", exists=True, dir_okay=False),
    ] = None,
    primary: Primary = "base",
    fallback: Fallback = "base",
    models: Models = Path("models"),
    verbose: Verbose = False,
) -> None:
    """Start both tiers, transcribe speech through them, show what happened, stop them."""
    from stt_cascade.cli.stack import StackError, supervise

    clips = files or samples()
    if not clips:
        echo("there are no samples here: name some audio files", err=True)
        raise typer.Exit(2)
    stack = prepare(primary, fallback, models, verbose=verbose)
    try:
        failed = supervise(_show(stack, clips), say=say, kill=stack.kill)
    except asyncio.CancelledError:
        say("Stopped.")
        raise typer.Exit(130) from None
    except StackError as error:
        echo(error, err=True)
        raise typer.Exit(1) from None
    say("Both tiers are stopped.")
    raise typer.Exit(int(failed))


async def _show(stack: Stack, clips: Sequence[Path]) -> bool:
    """Transcribe and show; whether anything failed."""

    from stt_cascade.cli.endpoint import Endpoint
    from stt_cascade.cli.transcribe import gather, table

    async with stack:
        say(f"Transcribing {_count(len(clips), 'clip')} through the primary ...")
        rows = await gather(Endpoint(stack.url, stack.key), clips, [None] * len(clips))
        stack.check()
        Terminal().print(table(rows))
        say(told(rows))
        if failed := any(isinstance(outcome, Exception) for _, outcome in rows):
            say(stack.last_words())
        say("Stopping both tiers ...")
    return failed


def told(rows: Sequence[tuple[Path, Outcome]]) -> str:
    """What happened, in one sentence."""
    answered = failed = 0
    escalated = []
    for file, outcome in rows:
        if isinstance(outcome, Exception):
            failed += 1
        elif outcome.routing.fallback_used:
            escalated.append(f"{file.name}, because {_why(outcome)}")
        else:
            answered += 1
    parts = [f"{answered} answered by the primary"] if answered else []
    if escalated:
        parts.append(f"{len(escalated)} escalated to the fallback ({'; '.join(escalated)})")
    parts += [f"{failed} failed"] if failed else []
    return f"{_count(len(rows), 'clip')}: {', '.join(parts)}."


def _why(outcome: Transcription) -> str:
    causes = outcome.routing.below or (outcome.routing.reason,)
    return " and ".join(WHY.get(cause, cause) for cause in causes)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
