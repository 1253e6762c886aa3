"""What a row tries and promises, what it measured, and whether that holds."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from faults.lab import Lab


@dataclass(frozen=True)
class Check:
    """One figure; `timed`: it is a stopwatch's, which a busy machine may spoil."""

    what: str
    figure: str
    holds: bool
    timed: bool = False

    def __str__(self) -> str:
        return f"{'ok  ' if self.holds else 'FAIL'}  {self.what}: {self.figure}"


@dataclass
class Report:
    """What one row measured.

    Attributes:
        missing: what it needs and is not here, so that it could not be tried.
    """

    checks: list[Check] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    missing: str = ""

    def check(self, what: str, figure: object, holds: bool) -> None:
        self.checks.append(Check(what, str(figure), holds))

    def at_most(self, what: str, seconds: float, limit: float) -> None:
        """A time."""
        figure = f"{seconds:.3f} s, at most {limit:g} s"
        self.checks.append(Check(what, figure, seconds <= limit, timed=True))

    def timed(self, what: str, figure: object, holds: bool) -> None:
        """What follows from times: a throughput, a ratio of them."""
        self.checks.append(Check(what, str(figure), holds, timed=True))

    def note(self, text: str) -> None:
        """A figure without a promise, or what could not be tried here."""
        self.notes.append(text)

    @property
    def holds(self) -> bool:
        return bool(self.checks) and all(check.holds for check in self.checks)

    @property
    def verdict(self) -> str:
        if self.missing:
            return f"CANNOT BE TRIED here: {self.missing}"
        return "holds" if self.holds else "FAILS"


@dataclass(frozen=True)
class Row:
    """One try.

    Attributes:
        tried, promised: for people.
        run: does it, and writes down what it measures.
        short: part of the short form; else it takes its time, whatever the size.
        usual: it runs unasked; else only where it is named.
        extra_s: seconds that it may take beyond what others may.
    """

    name: str
    tried: str
    promised: str
    run: Callable[[Lab, Report], Awaitable[None]]
    short: bool = True
    usual: bool = True
    extra_s: float = 0.0
