"""Makes texts of others safe to show in logs, exceptions and terminals."""

from __future__ import annotations

import re

# Control characters but for tab and newline; separators of lines and paragraphs; what turns the
# direction of writing; and halves of characters, which cannot be encoded.
_HARMFUL = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]+"
)
MAX_LINE = 300


def harmless(text: str) -> str:
    """The text with blanks for what controls a terminal, or shows as something else there."""
    return _HARMFUL.sub(" ", text)


def one_line(text: str, most: int = MAX_LINE) -> str:
    """A text as one line of reasonable length."""
    line = " ".join(harmless(text[: 4 * most]).split())
    return line if len(line) <= most else f"{line[:most]}…"
