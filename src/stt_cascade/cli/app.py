"""The commands of `stt`, one module each."""

from __future__ import annotations

import typer

app = typer.Typer(
    name="stt",
    help="Run, feed and measure a two-tier speech-to-text cascade.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
