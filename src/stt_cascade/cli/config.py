"""`stt config`: what a settings file means."""

from __future__ import annotations

import errno
import os
import re
import stat
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from stt_cascade.cli.terminal import Terminal, echo

if TYPE_CHECKING:
    from rich.table import Table

    from stt_cascade.config import TierConfig

Tier = Literal["primary", "fallback"]

app = typer.Typer(help="Look at settings files.", no_args_is_help=True)


@app.command()
def check(
    file: Annotated[Path, typer.Argument(help="A tier's .env file.", show_default=False)],
    tier: Annotated[
        Tier | None, typer.Option(help="Whose settings; default: as the file looks.")
    ] = None,
) -> None:
    """Show the settings in force, secrets masked; exit 1 with a line for each mistake."""

    from stt_cascade.admission.keys import check_keys
    from stt_cascade.config import ConfigError, FallbackConfig, PrimaryConfig
    from stt_cascade.config_file import load

    if why := _unreadable(file):
        echo(f"{file}: {why}", err=True)
        raise typer.Exit(1)
    tier = tier or guess(file)
    if tier is None:
        echo(f"{file}: whose settings are these? Say --tier primary or fallback.", err=True)
        raise typer.Exit(2)
    model = PrimaryConfig if tier == "primary" else FallbackConfig
    try:
        config = load(model, file)
        check_keys(config)
    except ConfigError as error:
        echo(str(error), err=True)
        raise typer.Exit(1) from None
    Terminal().print(in_force_table(config))
    echo(f"{file}: valid for the {tier}; * differs from the default.")


def _unreadable(file: Path) -> str | None:
    """Why there are no settings to read, if there are none."""
    try:
        mode = file.stat().st_mode
    except OSError as error:
        return error.strerror
    if stat.S_ISDIR(mode):
        return os.strerror(errno.EISDIR)
    # It is read twice, which a pipe cannot be.
    return None if stat.S_ISREG(mode) else "Not a regular file"


def guess(file: Path) -> Tier | None:
    """The tier whose settings a file holds: by the key of its model, else by the file's name."""
    from stt_cascade.config_file import contents

    text = ""
    with suppress(OSError):  # reading it for good will say what is wrong
        text = contents(file).decode("utf-8-sig", "replace")
    keys = set(re.findall(r"^\s*(?:export\s+)?(CT2_(?:SMALL|MEDIUM)_PATH)\s*=", text, re.MULTILINE))
    if keys == {"CT2_SMALL_PATH"}:
        return "primary"
    if keys == {"CT2_MEDIUM_PATH"}:
        return "fallback"
    named: list[Tier] = [tier for tier in ("primary", "fallback") if tier in file.name]
    return named[0] if len(named) == 1 else None


def in_force_table(config: TierConfig) -> Table:
    """The settings, with a mark and the default where they differ from it."""
    from rich.table import Table
    from rich.text import Text

    from stt_cascade.config_file import in_force

    fields = type(config).model_fields
    required = {
        name: getattr(config, name) for name, field in fields.items() if field.is_required()
    }
    defaults = in_force(type(config).model_construct(None, **required))
    table = Table("", "setting", box=None, pad_edge=False)
    table.add_column("in force", overflow="fold")
    table.add_column("default", overflow="fold")
    for (key, value), (name, field) in zip(in_force(config).items(), fields.items(), strict=True):
        if field.is_required():
            mark, default = "*", "(required)"
        elif getattr(config, name) != field.default:
            mark, default = "*", defaults[key] or "(none)"
        else:
            mark, default = "", ""
        table.add_row(mark, key, Text(value or "(none)"), Text(default))
    return table
