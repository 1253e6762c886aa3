"""The commands of `stt`, one module each."""

from __future__ import annotations

import typer

from stt_cascade.cli import models
from stt_cascade.cli.score import score
from stt_cascade.cli.transcribe import transcribe

app = typer.Typer(
    name="stt",
    help="Run, feed and measure a two-tier speech-to-text cascade.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

app.add_typer(models.app, name="models")
app.command()(transcribe)
app.command()(score)
