"""Printing what others wrote, so that it shows as text and does not control the terminal."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any

import typer
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from stt_sdk._text import harmless


class Terminal(Console):
    """A console that prints `[red]` as it is, and foreign escape sequences as blanks."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"markup": False, "emoji": False, **options})

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(harmless(text), **options)  # before it is measured

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=harmless(segment.text))


def echo(message: object, *, err: bool = False, nl: bool = True) -> None:
    """Print a line without any form."""
    typer.echo(harmless(str(message)), err=err, nl=nl)


def json_text(value: object, **options: Any) -> str:
    """JSON with everything escaped that a terminal would not show."""
    text = json.dumps(value, ensure_ascii=False, **options)
    return re.sub(r"[^\n]", lambda one: _escaped(one[0]), text)


def _escaped(char: str) -> str:
    return char if char.isprintable() else json.dumps(char)[1:-1]
