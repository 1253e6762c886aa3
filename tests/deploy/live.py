"""`make monitoring-check`: the rules and the dashboard in real Prometheuses, for two minutes.

One scrapes both tiers, with the real engine, while they work on real speech: every query of the
dashboard must give data. The other scrapes targets that show the symptom of every alert, with the
rules' times in seconds: each alert must be pending, fire and resolve, and an Alertmanager must tell
all receivers. (The runbooks' tests make the faults themselves, on running tiers.) The exit status
is 1 if something of that is missing.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import itertools
import json
import math
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path

from deploy import engines, scripted
from deploy.alertmanager import Alertmanager, Inbox, inbox
from deploy.dashboards import JSON, filled, queries, rules
from deploy.prometheus import Prometheus
from deploy.scripted import Target
from deploy.shorten import FAST
from faults import load
from faults.lab import Lab
from faults.real import Whisper
from faults.speech import CLIPS, WEIGHTS
from faults.tiers import Tier
from stt_cascade.cli.child import HOST
from stt_cascade.labelled import MANIFEST
from stt_sdk._within import within

LOAD_S = 80.0
CALLERS = 2
# Of all of it; a machine with nothing else to do takes half of that.
LIMIT_S = 300.0
# Until the longest range and the longest offset are filled.
WELL_S = 2.0 * FAST.most + 5
SAMPLES = engines.ROOT / "samples"
# NVML of a machine with a GPU, for the tiers to find in its place.
NVML = """
from types import SimpleNamespace as Some

class NVMLError(Exception): pass

def nvmlInit(): pass
def nvmlShutdown(): pass
def nvmlDeviceGetHandleByIndex(index): return index
def nvmlDeviceGetComputeRunningProcesses(handle): return []
def nvmlDeviceGetMemoryInfo(handle): return Some(used=3 * 1024**3, total=24 * 1024**3)
def nvmlDeviceGetUtilizationRates(handle): return Some(gpu=37, memory=12)
"""
# Alerts that there need not be.
MAY_BE_EMPTY = {"panel “Alerts”", "annotation “Pages”"}

# A query of the dashboard: where it is, and what it asks.
Where = tuple[str, str]
# What it gave: "" for data, else what was there instead.
Given = dict[Where, str]


def say(text: str) -> None:
    print(text, flush=True)  # noqa: T201  # what the command is for


def feign_gpu(folder: Path) -> None:
    """Have the tiers that this process starts find that NVML before any other."""
    folder.mkdir()
    (folder / "pynvml.py").write_text(NVML, encoding="utf-8")
    paths = [str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ["PYTHONPATH"] = os.pathsep.join(paths)


async def watch_real_tiers(folder: Path) -> tuple[list[str], Given]:
    """Both tiers under load.

    Returns:
        what the load was; what each query of the dashboard gave: "" where it gave data.
    """
    feign_gpu(folder)
    async with Lab() as lab:
        fallback = await lab.fallback(Whisper(WEIGHTS), DEVICE="auto")
        primary = await lab.primary(
            Whisper(WEIGHTS),
            FALLBACK_URL=f"http://{HOST}:{fallback.port}",
            DEVICE="auto",
            SHADOW_RATE=1,
            FINAL_PICK="best",
        )
        tiers = {f"stt-{tier.name}": [f"{HOST}:{tier.port}"] for tier in (primary, fallback)}
        async with Prometheus(folder / "prometheus", tiers) as prometheus:
            await prometheus.data("count(up == 1) == 2")
            given: Given = {}
            answers: list[load.Answer] = []
            # The fallback must find time for shadows, so nobody waits for a slot.
            callers = [asyncio.create_task(_speak(primary, answers)) for _ in range(CALLERS)]
            end = asyncio.get_running_loop().time() + LOAD_S
            while asyncio.get_running_loop().time() < end:
                await asyncio.sleep(2)
                given.update(await ask(prometheus, given))
            for caller in callers:
                caller.cancel()
            rss = await prometheus.query("stt_process_rss_mb")
    said = [f"{LOAD_S:g} s of real speech: {load.told(load.statuses(answers))}"]
    said += [f"memory of {one['metric']['job']}: {one['value'][1]} MB" for one in rss]
    return said, given


async def _speak(primary: Tier, answers: list[load.Answer]) -> None:
    """Real speech, one clip after the other, and nonsense now and then."""
    labelled = CLIPS if (CLIPS / MANIFEST).is_file() else SAMPLES
    clips = [
        load.upload(file.read_bytes(), file=file.name)
        for file in sorted(labelled.rglob("*"))
        if file.suffix in (".ogg", ".wav", ".flac")
    ]
    load.seeded(1).shuffle(clips)
    for number in itertools.count():
        nonsense = number % 7 == 6
        sent = load.upload(b"no audio") if nonsense else clips[number % len(clips)]
        answers.append(await load.call(primary.port, sent))


async def ask(prometheus: Prometheus, before: Given | None = None) -> Given:
    """Every query of the dashboard that has not given data before."""
    board = json.loads((engines.ROOT / JSON).read_text(encoding="utf-8"))
    found = {}
    for where, query in queries(board):
        if (before or {}).get((where, query)) == "":
            continue
        series = await prometheus.query(filled(query, window="20s"))
        values = [float(one["value"][1]) for one in series]
        known = [value for value in values if not math.isnan(value)]
        found[where, query] = "" if known else "only NaN" if values else "no data"
    return found


async def watch_alerts(folder: Path) -> tuple[list[str], Given]:
    """Targets that are well, then ill, then well again.

    Returns:
        one line an alert that was not pending, firing and resolved; what the queries gave.
    """
    async with AsyncExitStack() as stack:
        primary = await stack.enter_async_context(scripted.serving(Target(*scripted.WELL)))
        fallback = await stack.enter_async_context(scripted.serving(Target({}, {})))
        envoy = await stack.enter_async_context(scripted.serving(Target(*scripted.ENVOY_WELL)))
        well = {
            "stt-primary": [primary.address],
            "stt-fallback": [fallback.address],
            "envoy": [envoy.address],
        }
        told = await stack.enter_async_context(inbox())
        alertmanager = Alertmanager(folder / "alertmanager", told.addresses)
        await stack.enter_async_context(alertmanager)
        well["alertmanager"] = [f"{HOST}:{alertmanager.port}"]
        prometheus = await stack.enter_async_context(Prometheus(folder, well))
        await asyncio.sleep(WELL_S)
        there = [one["labels"] for one in await prometheus.alerts()]
        early = [labels for labels in there if labels["severity"] != "none"]
        primary.now(*scripted.ILL)
        envoy.now(*scripted.ENVOY_ILL)
        prometheus.aim({**well, "stt-fallback": [f"{HOST}:9"]})
        wrong = [f"{labels['alertname']}: there while all was well" for labels in early]
        wrong += await _each(prometheus, "firing")
        given = await ask(prometheus)
        wrong += await _told(alertmanager, told, "firing")
        primary.now(*scripted.WELL)
        envoy.now(*scripted.ENVOY_WELL)
        prometheus.aim(well)
        wrong += await _each(prometheus, "resolved")
        wrong += await _told(alertmanager, told, "resolved")
        for name, severity in _alerts():
            states = await prometheus.went_through(name, severity=severity)
            if states != {"pending", "firing"}:
                wrong.append(f"{name} ({severity}) was only {', '.join(states) or 'nothing'}")
    return wrong, given


async def _each(prometheus: Prometheus, state: str) -> list[str]:
    async def one(name: str, severity: str) -> list[str]:
        try:
            found = await prometheus.alert(name, state, severity=severity)
        except RuntimeError as error:
            return [f"{name} ({severity}): {str(error).splitlines()[0]}"]
        said = found.get("annotations", {}).values()
        # What a template becomes that could not be filled.
        broken = [text for text in said if "<no value>" in text or "<error" in text]
        return [f"{name} ({severity}) says: {text}" for text in broken]

    found = await asyncio.gather(*(one(*alert) for alert in _alerts()))
    return [line for lines in found for line in lines]


async def _told(alertmanager: Alertmanager, told: Inbox, state: str) -> list[str]:
    """Whether the receivers have heard of an alert of theirs, with its runbook."""
    wrong = []
    heard = [
        ("page", "SttTierDown", "tier-down"),
        ("ticket", "SttGpuMemoryFull", "gpu-memory-full"),
    ]
    if state == "firing":
        heard.append(("watchdog", "Watchdog", "watchdog"))
    for receiver, name, page in heard:
        words = (f"{state}: ", name, f"docs/runbooks/{page}.md")
        try:
            await alertmanager.until(
                f"{receiver} hears", functools.partial(told.has, receiver, *words)
            )
        except RuntimeError as error:
            wrong.append(f"{name} {state}: {str(error).splitlines()[0]} of it")
    return wrong


def _alerts() -> Iterator[tuple[str, str]]:
    """Those that come and go."""
    for _, rule in rules(engines.ROOT):
        if "alert" in rule and rule["labels"]["severity"] != "none":
            yield rule["alert"], rule["labels"]["severity"]


async def main() -> int:
    parser = argparse.ArgumentParser(prog="make monitoring-check", description=__doc__)
    parser.parse_args()
    if not (WEIGHTS / "model.bin").is_file():
        say(f"no weights in {WEIGHTS}: stt models pull base")
        return 1
    with tempfile.TemporaryDirectory(prefix="stt-monitoring-") as name:
        both = asyncio.gather(
            watch_real_tiers(Path(name, "real")), watch_alerts(Path(name, "scripted"))
        )
        try:
            (said, real), (wrong, made) = await within(LIMIT_S, both)
        except TimeoutError:
            say(f"not done after {LIMIT_S:g} s: is this machine busy?")
            return 1
    for line in said:
        say(line)
    full, elsewhere, empty = _sorted(real, made)
    say(f"queries of the dashboard: {len(full)} of {len(real)} with data from the real tiers")
    for where, query in elsewhere:
        say(f"  from the scripted targets: {where}: {query}")
    for where, query in empty:
        say(f"  NO DATA: {where}: {query}")
    names = list(_alerts())
    say(f"alerts: {len(names)} rules, seen pending, firing and resolved, but for {len(wrong)}")
    for line in wrong:
        say(f"  WRONG: {line}")
    return 1 if wrong or empty else 0


def _sorted(real: Given, made: Given) -> tuple[list[Where], list[Where], list[Where]]:
    """Queries with data from real tiers, with data from scripted targets alone, and without."""
    full = [where for where, gap in real.items() if not gap]
    rest = [where for where, gap in real.items() if gap]
    elsewhere = [where for where in rest if not made[where]]
    empty = [where for where in rest if made[where] and where[0] not in MAY_BE_EMPTY]
    return full, elsewhere, empty


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
