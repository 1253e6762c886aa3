"""What a section finds, and the one JSON and page that all of them end in."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from stt_cascade.cli.measuring import as_json
from stt_cascade.measure.page import Page

PASSED, FAILED, SKIPPED = "passed", "failed", "skipped"


@dataclass
class Check:
    """What must hold, and what was found."""

    name: str
    found: str
    holds: bool


@dataclass
class Section:
    """What one section found. `why`: in a sentence, if it did not pass."""

    name: str
    status: str = FAILED
    why: str = ""
    seconds: float = 0.0
    checks: list[Check] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)
    # Kept at each step, so that what runs out of time leaves what it has.
    keep: Callable[[Section], None] = lambda section: None

    def check(self, name: str, found: object, holds: bool) -> None:
        self.checks.append(Check(name, str(found), bool(holds)))
        self.keep(self)

    def figure(self, name: str, value: object) -> None:
        self.figures[name] = value
        self.keep(self)

    def settle(self) -> None:
        """Whether it has passed, by its checks."""
        failed = [f"{check.name}: {check.found}" for check in self.checks if not check.holds]
        self.status = FAILED if failed or not self.checks else PASSED
        self.why = "; ".join(failed) or ("" if self.checks else "nothing was checked")

    def as_dict(self) -> dict[str, Any]:
        kept = {name: value for name, value in vars(self).items() if name != "keep"}
        return kept | {"checks": [asdict(check) for check in self.checks]}

    @classmethod
    def of(cls, row: dict[str, Any]) -> Section:
        return cls(**{**row, "checks": [Check(**check) for check in row["checks"]]})


def read(file: Path) -> dict[str, Any]:
    """The results so far; none yet: an empty dict."""
    try:
        kept: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    return kept


def write(file: Path, results: dict[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    half = file.with_suffix(".half")
    half.write_bytes(as_json(results))
    half.replace(file)


def page(results: dict[str, Any]) -> bytes:
    """The results as a page that holds all of itself."""
    sheet = Page("GPU check")
    sections = [Section.of(row) for row in results["sections"].values()]
    failed = [section.name for section in sections if section.status == FAILED]
    said = f"failed: {', '.join(failed)}" if failed else "every section that ran has passed"
    sheet.verdict(said, good=not failed)
    sheet.table(("", ""), list(results["setup"].items()))
    for section in sections:
        sheet.heading(f"{section.name}: {section.status}, {section.seconds:.0f} s")
        if section.why:
            sheet.text(section.why)
        rows = [("yes" if c.holds else "NO", c.name, c.found) for c in section.checks]
        if rows:
            sheet.table(("holds", "what", "found"), rows)
        for name, value in section.figures.items():
            if isinstance(value, list) and value and isinstance(value[0], dict):
                sheet.text(name)
                sheet.table(list(value[0]), [list(row.values()) for row in value])
            else:
                sheet.text(f"{name}: {value}")
    return sheet.html()
