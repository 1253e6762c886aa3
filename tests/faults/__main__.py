"""`make faults`: run the rows, and say what was measured. The exit status is 1 if one fails."""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections.abc import Sequence

from faults.lab import Lab, Size
from faults.report import Report, Row
from faults.rows import ROWS
from stt_cascade.cli.stack import supervise
from stt_sdk._within import within

# Longer than any row takes; a soak has its own time on top.
ROW_S = {"short": 120.0, "usual": 300.0, "long": 1200.0}


def say(text: str) -> None:
    print(text, flush=True)  # noqa: T201  # what the command is for


async def run_row(row: Row, options: argparse.Namespace) -> Report:
    """One row in a lab of its own; what broke instead of failing is a failure too."""
    report = Report()
    limit = ROW_S[options.size] + row.extra_s + 120 * options.soak
    async with Lab(options.size, options.soak) as lab:
        try:
            await within(limit, row.run(lab, report))
        except TimeoutError:
            report.check("ends", f"not within {limit:g} s", False)
        except (RuntimeError, OSError) as error:
            report.check("can be tried", error, False)
    return report


async def run(rows: list[Row], options: argparse.Namespace) -> int:
    failed = []
    began = time.monotonic()
    for row in rows:
        say(f"\n== {row.name}: {row.tried}\n   promised: {row.promised}")
        since = time.monotonic()
        report = await run_row(row, options)
        for note in report.notes:
            say(f"      {note}")
        for check in report.checks:
            say(f"  {check}")
        if not report.holds:
            failed.append(row.name)
        say(f"   {row.name} {report.verdict}, {time.monotonic() - since:.0f} s")
    say(f"\n{len(rows) - len(failed)} of {len(rows)} hold, {time.monotonic() - began:.0f} s")
    if failed:
        say(f"these do not: {', '.join(failed)}")
    return 1 if failed else 0


def chosen(size: Size, named: Sequence[str] | None) -> list[Row]:
    """The rows to run."""
    if named:
        return [row for row in ROWS if row.name in named]
    return [row for row in ROWS if row.usual and (row.short or size != "short")]


def main() -> int:
    names = [row.name for row in ROWS]
    parser = argparse.ArgumentParser(prog="faults", description=__doc__)
    parser.add_argument("--only", action="append", choices=names, help="this row; may be repeated")
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--short", dest="size", action="store_const", const="short")
    size.add_argument("--long", dest="size", action="store_const", const="long")
    parser.add_argument("--soak", type=float, default=0.0, metavar="MINUTES", help="of a soak")
    parser.set_defaults(size="usual")
    options = parser.parse_args()
    try:
        return supervise(
            run(chosen(options.size, options.only), options), say=say, kill=lambda: sys.exit(130)
        )
    except asyncio.CancelledError:
        return 130


if __name__ == "__main__":
    sys.exit(main())
