"""A runbook, as a machine reads it: its sections, and in them what is to be run."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "docs" / "runbooks"
ALERT = ("What you see", "How to check", "How to mend", "When it is over")
OPERATION = ("When", "Before", "What to do", "When it is over")

_FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """What stands between two fences."""

    language: str
    text: str


@dataclass(frozen=True)
class Command:
    """A line to type, and the lines that the page says come back; … stands for anything."""

    line: str
    shows: tuple[str, ...]


@dataclass(frozen=True)
class Page:
    """`docs/runbooks/NAME.md`."""

    name: str
    text: str

    @classmethod
    def read(cls, name: str) -> Page:
        return cls(name, (FOLDER / f"{name}.md").read_text(encoding="utf-8"))

    @property
    def alerts(self) -> set[str]:
        """The alerts that its title names."""
        return set(re.findall(r"`(Stt\w+|Watchdog)`", self.text.splitlines()[0]))

    @property
    def headings(self) -> list[str]:
        return re.findall(r"^## (.+)$", self.text, re.MULTILINE)

    def section(self, heading: str, part: str | None = None) -> str:
        """The text under a heading, or under one of its own headings.

        Raises:
            LookupError: there is none.
        """
        text = _under(self.text, "##", heading)
        return text if part is None else _under(text, "###", part)

    def blocks(self, heading: str, part: str | None = None) -> list[Block]:
        return [Block(*found) for found in _FENCE.findall(self.section(heading, part))]


def _under(text: str, level: str, heading: str) -> str:
    _, found, rest = f"\n{text}".partition(f"\n{level} {heading}\n")
    if not found:
        raise LookupError(f"there is no heading {level} {heading}")
    return re.split(rf"^#{{2,{len(level)}}} ", rest, maxsplit=1, flags=re.MULTILINE)[0]


def commands(text: str) -> list[Command]:
    """Of a console block."""
    found: list[tuple[str, list[str]]] = []
    for line in text.replace("\\\n", " ").splitlines():
        if line.startswith("$ "):
            found.append((line.removeprefix("$ "), []))
        elif found:
            found[-1][1].append(line)
    return [Command(line, tuple(shows)) for line, shows in found]


def settings(text: str) -> tuple[str, dict[str, str]]:
    """Of an ini block: the tier whose file it is, by the comment above, and what it sets."""
    first, *lines = text.splitlines()
    named = re.fullmatch(r"# /opt/stt/stt_(primary|fallback)\.env", first)
    if named is None:
        raise LookupError(f"whose settings are these? {first}")
    return named[1], dict(line.split("=", 1) for line in lines if line)


def matches(shown: str, output: str) -> bool:
    """Whether a line of the page is in what came back."""
    return re.search(re.escape(shown.strip()).replace("…", ".*"), output) is not None
