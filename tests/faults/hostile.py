"""Files that want more than to be decoded."""

from __future__ import annotations

import asyncio
import re
import shutil
import sys

from faults import load, procfs
from faults.files import long_flac, long_opus, odd_rate_flac, one_hertz_wav, playlists
from faults.lab import Lab, rated
from faults.report import Report, Row
from faults.tiers import TESTS, Tier

MIB = 1024 * 1024
# What is opened all the time: the settings, which are watched, libraries, and the kernel's views.
LIBRARIES = ("/usr/", "/lib", "/etc/ld.so", "/proc/", "/sys/", "/dev/null")
_CALL = re.compile(r"^(\d+) +(open|openat|creat|socket|connect|bind)\((.*)")
_PATH = re.compile(r'"((?:[^"\\]|\\.)*)"')


async def names_files(lab: Lab, report: Report) -> None:
    strace = shutil.which("strace")
    trace = lab.folder / "trace"
    calls = "trace=open,openat,creat,socket,connect,bind"
    command = [strace, "-f", "-o", str(trace), "-e", calls] if strace else []
    tier = await lab.traced(command)
    secret = tier.settings.parent / "secret.wav"
    secret.write_bytes(load.CLIP)
    heard = await load.call(tier.port, load.upload())
    report.check("a clip is heard before", heard.status, heard.status == 200)
    await asyncio.sleep(1.5)  # other decoders start, and the settings are looked at
    began = trace.stat().st_size if strace else 0
    slowest = 0.0
    answers = []
    for name, content in playlists(secret).items():
        for file in (name, "clip.wav"):
            answers.append(await load.call(tier.port, load.upload(content, file=file)))
            slowest = max(slowest, answers[-1].seconds)
    given = load.statuses(answers)
    report.check("answers", load.told(given), set(given) == {"400"})
    if strace is None:
        report.note("strace is not there: which files and sockets were opened was not seen")
        report.at_most("slowest", slowest, 0.2)
        return
    await asyncio.sleep(1.5)  # at least one look at the settings, which shows that strace sees
    with trace.open(encoding="utf-8", errors="replace") as lines:
        lines.seek(began)
        opened, sockets = opened_files(lines.read())
    looks = opened.pop(str(tier.settings), 0)
    report.check("looks at the settings seen by strace", looks, looks > 0)
    report.check("files opened outside libraries", sorted(opened) or "none", not opened)
    report.check("sockets made", sockets or "none", not sockets)
    report.note(f"slowest {slowest:.3f} s, under strace")


def opened_files(trace: str) -> tuple[dict[str, int], list[str]]:
    """Files outside libraries by how often they were opened, and calls that concern sockets."""
    ours = (*LIBRARIES, sys.prefix, sys.base_prefix, str(TESTS), str(TESTS.parent / "src"))
    opened: dict[str, int] = {}
    sockets = []
    for line in trace.splitlines():
        if not (call := _CALL.match(line)):
            continue
        if not call[2].startswith(("open", "creat")):
            sockets.append(line)
        elif (path := _PATH.search(call[3])) and not path[1].startswith(ours):
            opened[path[1]] = opened.get(path[1], 0) + 1
    return opened, sockets


async def bombs(lab: Lab, report: Report) -> None:
    tier = await lab.primary()
    files = {
        "1 Hz WAV": one_hertz_wav(),
        "15 h of silence in FLAC": long_flac(15 * 3600),
        "12 h in Opus": long_opus(12 * 3600),
        "655,350 Hz": odd_rate_flac(),
    }
    for name, content in files.items():
        before = procfs.cpu_seconds(tier.pid)
        answer = await load.call(tier.port, load.upload(content, file="clip.wav"))
        cpu = procfs.cpu_seconds(tier.pid) - before
        refused = answer.status in (400, 413)
        what = f"{name} ({len(content) / 1024:.0f} KB)"
        report.check(what, f"{answer.status or answer.how}", refused)
        report.at_most(f"{name}, processor time", cpu, 3.0)
    calm = procfs.resident(tier.pid)
    rate, _ = await rated(tier, 1.0)
    seconds = lab.pick(2, 10)
    sent = [load.upload(content, file="clip.wav") for content in files.values()] * 2
    undisturbed, _, _ = await _beside(tier, rate / 2, seconds, [], once=True)
    for what, once in (("once", True), ("again and again", False)):
        others, hostile, most = await _beside(tier, rate / 2, seconds, sent, once=once)
        given, served = load.statuses(hostile), load.statuses(others)
        report.check(f"eight at once, {what}", load.told(given), set(given) <= {"400", "413"})
        growth = (most - calm) / MIB
        report.check(f"memory, {what}", f"+ {growth:.0f} MB, at most 150", growth <= 150)
        report.check(f"other callers, {what}", load.told(served), set(served) == {"200"})
        ratio = load.quantile(others, 0.95) / load.quantile(undisturbed, 0.95)
        if once and lab.size != "short":  # else a moment is more than a twentieth of the time
            figure = f"{ratio:.2f} times that before, at most 1.5"
            report.timed("their p95", figure, ratio <= 1.5)
        else:
            report.note(f"p95 of other callers, {what}: {ratio:.2f} times that before")


async def _beside(
    tier: Tier, rate: float, seconds: float, hostile: list[bytes], *, once: bool
) -> tuple[list[load.Answer], list[load.Answer], int]:
    """Other callers while hostile files come, all at once; their answers, and the most memory.

    Args:
        once: else again and again, as long as the others ask.
    """
    others = asyncio.create_task(
        load.open_loop(tier.port, load.upload(), rate=rate, seconds=seconds)
    )
    attack = asyncio.create_task(_attack(tier.port, hostile, others, once=once))
    most = 0
    while not (others.done() and attack.done()):
        most = max(most, procfs.resident(tier.pid))
        await asyncio.sleep(0.05)
    return await others, await attack, most


async def _attack(
    port: int, hostile: list[bytes], others: asyncio.Task[list[load.Answer]], *, once: bool
) -> list[load.Answer]:
    answers: list[load.Answer] = []
    while hostile and not others.done():
        answers += await asyncio.gather(*(load.call(port, one) for one in hostile))
        if once:
            break
    return answers


ROWS = (
    Row(
        "playlists",
        "ffconcat (relative, absolute), SDP, m3u8, MPD, each also named .wav",
        "400; no file opened outside libraries, no socket",
        names_files,
    ),
    Row(
        "bombs",
        "1 Hz WAV, 15 h of silence in FLAC, 12 h in Opus, 655,350 Hz; then eight at once",
        "refused in <= 3 s of processor time each, memory + <= 150 MB, others' p95 <= 1.5 x",
        bombs,
    ),
)
