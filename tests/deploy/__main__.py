"""`make check-deploy`: install the engines, check every file, say what is wrong.

The exit status is 1 if something is, 2 if an engine cannot be had.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from deploy import engines, envoy, images, kubernetes, monitoring, systemd

# One a kind of file. Each gives a line a finding, which begins with the file.
CHECKS: dict[str, Callable[[Path], Iterator[str]]] = {
    "envoy": envoy.check,
    "images": images.check,
    "kubernetes": kubernetes.check,
    "monitoring": monitoring.check,
    "systemd": systemd.check,
}


def say(text: str) -> None:
    print(text, flush=True)  # noqa: T201  # what the command is for


def main() -> int:
    parser = argparse.ArgumentParser(prog="make check-deploy", description=__doc__)
    parser.add_argument("--only", action="append", choices=CHECKS, help="this kind of file")
    parser.add_argument("root", nargs="?", type=Path, default=engines.ROOT, help="the checkout")
    options = parser.parse_args()
    for name in engines.missing():
        say(f"==> To be installed: {name}")
    try:
        engines.install()
    except (engines.MissingEngine, subprocess.SubprocessError) as error:
        say(f"The engines could not be installed: {error}")
        return 2
    wrong = 0
    for name in options.only or CHECKS:
        found = list(CHECKS[name](options.root))
        wrong += len(found)
        say(f"==> {name}: {f'{len(found)} found' if found else 'nothing wrong'}")
        for line in found:
            say(f"    {line}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
