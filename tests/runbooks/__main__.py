"""`make runbooks`: follow every page, and say what was seen. The exit status is 1 if one fails."""

from __future__ import annotations

import argparse
import asyncio
import sys
import time

from deploy import engines
from runbooks.rows import ROWS
from runbooks.shift import Row, run
from stt_cascade.cli.stack import supervise


def say(text: str) -> None:
    print(text, flush=True)  # noqa: T201  # what the command is for


async def follow(rows: list[Row]) -> int:
    failed, left_out = [], []
    began = time.monotonic()
    for row in rows:
        say(f"\n== {row.page}: {row.fault}")
        if missing := [name for name in row.needs if name in engines.missing()]:
            say(f"   CANNOT BE TRIED here: {', '.join(missing)} not installed")
            left_out.append(row.page)
            continue
        since = time.monotonic()
        report = await run(row)
        for note in report.notes:
            say(f"      {note}")
        for check in report.checks:
            say(f"  {check}")
        if not report.holds:
            failed.append(row.page)
        say(f"   {row.page} {report.verdict}, {time.monotonic() - since:.0f} s")
    held = len(rows) - len(failed) - len(left_out)
    say(f"\n{held} of {len(rows)} hold, {time.monotonic() - began:.0f} s")
    if failed:
        say(f"these do not: {', '.join(failed)}")
    if left_out:
        say(f"these were not tried: {', '.join(left_out)}")
    return 1 if failed or left_out else 0


def main() -> int:
    names = [row.page for row in ROWS]
    parser = argparse.ArgumentParser(prog="runbooks", description=__doc__)
    parser.add_argument("--only", action="append", choices=names, help="this page; may be repeated")
    parser.add_argument("--short", action="store_true", help="those that `make test` follows")
    options = parser.parse_args()
    rows = [
        row
        for row in ROWS
        if (row.page in options.only if options.only else row.short or not options.short)
    ]
    try:
        return supervise(follow(rows), say=say, kill=lambda: sys.exit(130))
    except asyncio.CancelledError:
        return 130


if __name__ == "__main__":
    sys.exit(main())
