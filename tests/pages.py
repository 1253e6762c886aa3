"""The pages of documentation, as the tests read them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Typed:
    """A command that a page tells to type, continuation lines joined.

    Attributes:
        section: the heading of second order above it.
        needs: what the remark `# needs ...` above it, in its block, says that it takes; else empty.
    """

    page: str
    section: str
    line: str
    needs: str


def typed(page: Path | str) -> Iterator[Typed]:
    """Every command of a page, in order."""
    section, needs, fence = "", "", None
    for line in (ROOT / page).read_text().replace("\\\n", " ").splitlines():
        if line.startswith("```"):
            fence, needs = (line.removeprefix("```") if fence is None else None), ""
        elif fence is None and line.startswith("## "):
            section = line.removeprefix("## ")
        elif fence == "console" and line.startswith("# needs "):
            needs = line.removeprefix("# needs ")
        elif fence == "console" and line.startswith("$ "):
            name = str((ROOT / page).relative_to(ROOT))
            yield Typed(name, section, line.removeprefix("$ "), needs)


def shell_lines(pages: Iterable[Path] = PAGES) -> list[str]:
    """Every command that these pages tell to type."""
    return [each.line for page in pages for each in typed(page)]


def page_command(section: str, begins: str, page: str = "docs/deploy.md") -> str:
    """The one command of that section that is this or begins so, for a test that runs it.

    `test_docs_deploy.py` looks these calls up in the tests' source: their words are literals.
    """
    lines = {each.line for each in typed(page) if each.section == section}
    found = lines & {begins} or {line for line in lines if line.startswith(begins)}
    assert len(found) == 1, f"{page}, {section}: {len(found)} commands begin with {begins!r}"
    return found.pop()


def mentions() -> Iterator[tuple[str, str]]:
    """Everything between backticks, with the page where it stands."""
    for page in PAGES:
        yield from ((page.name, code) for code in codes(prose(page)))
