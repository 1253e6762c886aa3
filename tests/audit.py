"""`make audit`: known holes in what is locked, and how old the FFmpeg is that reads callers' bytes.

pip-audit asks a vulnerability service. It is run from outside the locked packages, which it would
otherwise be one of.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import av

ROOT = Path(__file__).parent.parent
PIP_AUDIT = "pip-audit==2.10.1"
# The FFmpeg inside the newest wheel of av. Before 8.1 an MP4 could make it write out of bounds
# (CVE-2026-40962). 8.1.3 becomes the floor as soon as a wheel has it.
FFMPEG_FLOOR = (8, 1, 2)


def ffmpeg_version(text: str = av.ffmpeg_version_info) -> tuple[int, ...]:
    """The numbers of a version such as `8.1.2` or `n8.1.2-3`.

    Raises:
        ValueError: it is that of no release.
    """
    match = re.match(r"n?(\d+(?:\.\d+)+)", text)
    if match is None:
        raise ValueError(f"FFmpeg {text} is no release")
    return tuple(int(part) for part in match[1].split("."))


def old_ffmpeg(version: Sequence[int]) -> list[str]:
    """What is wrong with that version."""
    if tuple(version) >= FFMPEG_FLOOR:
        return []
    shown, floor = (".".join(map(str, each)) for each in (version, FFMPEG_FLOOR))
    return [f"av {av.__version__} has FFmpeg {shown}; at least {floor} is needed"]


def findings(report: str, complaint: str) -> list[str]:
    """What is wrong, a line each, by pip-audit's JSON.

    Args:
        complaint: what pip-audit wrote besides.
    """
    try:
        packages = json.loads(report)["dependencies"]
    except (ValueError, KeyError):
        last = (complaint.strip().splitlines() or ["it said nothing"])[-1]
        return [f"nothing was audited; pip-audit could not do its work: {last}"]
    skipped = [package["name"] for package in packages if "skip_reason" in package]
    if len(skipped) == len(packages):
        return [f"nothing was audited: the service knows none of the {len(packages)} packages"]
    found = [
        f"{package['name']} {package['version']}: {hole['id']}, "
        f"mended in {', '.join(hole['fix_versions']) or 'no version'}"
        for package in packages
        for hole in package.get("vulns", ())
    ]
    return found + ([f"not audited: {', '.join(skipped)}"] if skipped else [])


def audited(service: str) -> list[str]:
    """`findings` in requirements.txt, as a vulnerability service knows them."""
    ended = subprocess.run(
        [
            *(sys.executable, "-m", "uv", "tool", "run", "--quiet", PIP_AUDIT),
            *("--requirement", str(ROOT / "requirements.txt"), "--require-hashes", "--disable-pip"),
            *("--vulnerability-service", service, "--progress-spinner", "off", "--format", "json"),
        ],
        capture_output=True,
        text=True,
    )
    return findings(ended.stdout, ended.stderr)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--service", choices=("pypi", "osv"), default="pypi")
    service = parser.parse_args().service
    print(f"==> FFmpeg inside av: {av.ffmpeg_version_info}")
    wrong = old_ffmpeg(ffmpeg_version())
    print(f"==> pip-audit of requirements.txt, by {service}")
    wrong += audited(service)
    for line in wrong:
        print(f"FAILED: {line}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
