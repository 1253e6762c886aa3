"""The commands of `stt`, each of which has its module."""

from __future__ import annotations

import typer

from stt_cascade.cli import bench, config, models
from stt_cascade.cli.calibrate import calibrate
from stt_cascade.cli.canary import canary
from stt_cascade.cli.demo import demo
from stt_cascade.cli.load import load
from stt_cascade.cli.score import score
from stt_cascade.cli.soak import soak
from stt_cascade.cli.transcribe import transcribe
from stt_cascade.cli.up import up

app = typer.Typer(
    name="stt",
    help="Run, feed and measure a two-tier speech-to-text cascade.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

app.command()(up)
app.command()(demo)
app.command()(transcribe)
app.command()(score)
app.command()(calibrate)
app.command()(load)
app.command()(soak)
app.command()(canary)
app.add_typer(models.app, name="models")
app.add_typer(config.app, name="config")
app.add_typer(bench.app, name="bench")
