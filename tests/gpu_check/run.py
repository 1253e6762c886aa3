"""Runs the sections, each in a process and a time of its own, and keeps what they find."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from gpu_check import report
from gpu_check.report import FAILED, PASSED, SKIPPED, Section
from gpu_check.sections import SECTIONS, Setting

ROOT = Path(__file__).parents[2]
SPEECH = ROOT.parent / "shared/speech"
# It ends within so much of its time; then it is ended.
GRACE_S = 2.0


def run(options: argparse.Namespace) -> int:
    """All sections, but those that have passed before; the exit status."""
    if unknown := set(options.only) - SECTIONS.keys():
        say(f"There is no section {', '.join(unknown)}; there are: {', '.join(SECTIONS)}")
        return 2
    try:
        setting = Setting(
            device=options.device,
            short=options.short,
            weights=str(options.weights.resolve()),
            clips=tuple(str(folder.resolve()) for folder in options.clips or _clips()),
        )
        setup = {**json.loads(setting.as_json()), **setting.models()}
    except FileNotFoundError as error:
        say(f"gpu-check: {error}")
        return 2
    file = options.out / "gpu-check.json"
    results = report.read(file)
    if results.get("setup") != setup:  # results of another machine's setup say nothing of this one
        results = {"setup": setup, "sections": {}}
    ends = time.monotonic() + options.seconds
    chosen = [name for name in SECTIONS if name in (options.only or SECTIONS)]
    for name in chosen:
        before = results["sections"].get(name)
        if before and before["status"] == PASSED and not options.again:
            say(f"{name}: has passed before")
            continue
        left = ends - time.monotonic()
        limit = min(SECTIONS[name].seconds, left) if setting.device == "cuda" else left
        section = _one(name, setting, options.out, limit)
        say(f"{name}: {section.status} in {section.seconds:.0f} s. {section.why}".rstrip())
        results["sections"][name] = section.as_dict()
        report.write(file, results)
    (options.out / "gpu-check.html").write_bytes(report.page(results))
    say(f"Results: {file} and {file.with_suffix('.html')}")
    missing = [name for name in chosen if name not in results["sections"]]
    return int(
        bool(missing) or any(results["sections"][name]["status"] == FAILED for name in chosen)
    )


def _one(name: str, setting: Setting, out: Path, limit: float) -> Section:
    if why := setting.lacks(SECTIONS[name]):
        return Section(name, SKIPPED, why)
    if limit <= GRACE_S:
        return Section(name, FAILED, "no time was left for it; run the command again for the rest")
    file = out / f".{name}.json"
    file.unlink(missing_ok=True)
    began = time.monotonic()
    with subprocess.Popen(
        [sys.executable, "-m", "gpu_check.sections", name, setting.as_json(), str(file)],
        # No model hub is asked for anything.
        env={**os.environ, "HF_HUB_OFFLINE": "1", **setting.environment(out)},
        start_new_session=True,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            _, said = process.communicate(timeout=limit)
            why = "" if process.returncode == 0 else _last_line(said, process.returncode)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)  # the section's own processes, too
            process.communicate()
            why = f"it took more than its {limit:.0f} s; what it had found is kept"
    kept: dict[str, Any] = report.read(file)
    file.unlink(missing_ok=True)
    section = Section.of(kept) if kept else Section(name)
    if why:
        section.status, section.why = FAILED, why
    section.seconds = round(time.monotonic() - began, 1)
    return section


def _last_line(said: str, status: int) -> str:
    lines = [line for line in said.splitlines() if line.strip()]
    return f"it ended with status {status}: {lines[-1].strip() if lines else 'without a word'}"


def _clips() -> list[Path]:
    return [SPEECH] if (SPEECH / "manifest.jsonl").is_file() else []


def say(text: str) -> None:
    print(text, flush=True)  # noqa: T201  # what the command is for
