"""The pages of documentation, as the tests read them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
SRC = ROOT / "src"
PAGES = sorted(
    page for pattern in ("*.md", "docs/**/*.md", "samples/**/*.md") for page in ROOT.glob(pattern)
)


def prose(page: Path) -> str:
    """A page without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def blocks(page: Path | str, language: str, under: str | None = None) -> list[str]:
    """The fenced blocks of that language; of a section only, if a heading is given."""
    fenced = rf"^```{language}\n(.*?)^```$"
    text = (ROOT / page).read_text()
    if under is not None:
        _, heading, rest = text.partition(f"\n{under}\n")
        assert heading, f"{page} has no heading {under!r}"
        text = rest.partition("\n## ")[0]
    return re.findall(fenced, text, re.MULTILINE | re.DOTALL)


def codes(text: str) -> list[str]:
    """What stands between backticks."""
    return re.findall(r"`([^`\n]+)`", text)


def rows(page: str, under: str, table: int = 0) -> list[list[str]]:
    """The cells of a table under a heading, by default of the first one; its header left out."""
    _, heading, rest = f"\n{prose(ROOT / page)}".partition(f"\n{under}\n")
    assert heading, f"{page} has no heading {under!r}"
    lines = re.findall(r"(?:^\|.*\n)+", rest, re.MULTILINE)[table].splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def named(page: str, under: str, table: int = 0) -> list[str]:
    """What the first cells of that table name, in order."""
    return [code for row in rows(page, under, table) for code in codes(row[0])]


def shell_lines() -> list[str]:
    """Every command that a page tells to type, continuation lines joined."""
    return [
        line.removeprefix("$ ")
        for page in PAGES
        for text in blocks(page, "console")
        for line in text.replace("\\\n", " ").splitlines()
        if line.startswith("$ ")
    ]


def mentions() -> Iterator[tuple[str, str]]:
    """Everything between backticks, with the page where it stands."""
    for page in PAGES:
        yield from ((page.name, code) for code in codes(prose(page)))
