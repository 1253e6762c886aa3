"""Processes that end: asked to, or killed."""

from __future__ import annotations

import asyncio
import os
import signal

from faults import load, procfs
from faults.bodies import announced
from faults.lab import Lab, rated, until
from faults.report import Report, Row
from faults.tiers import Tier

STALLED = 20
GRACE_S = 10
# From the start of the process to ready, without what loading a model takes.
READY_S = 10.0
GONE_S = 5.0


async def stop(lab: Lab, report: Report) -> None:
    tier = await lab.primary(DRAIN_TIMEOUT_S=GRACE_S)
    rate, _ = await rated(tier, 1.0)
    clock = asyncio.get_running_loop().time
    head = b"".join([piece async for piece in announced(16384, 1_000_000)()])
    stalled = [asyncio.create_task(load.call(tier.port, head)) for _ in range(STALLED)]
    told = asyncio.Event()
    working = asyncio.create_task(
        load.open_loop(tier.port, load.upload(), rate=rate, seconds=30.0, until=told.is_set)
    )
    await asyncio.sleep(1.0)
    tier.process.send_signal(signal.SIGTERM)
    asked = clock()
    health, ready = await asyncio.gather(
        load.call(tier.port, load.get("/v1/health")), load.call(tier.port, load.get("/v1/ready"))
    )
    not_ready_after = clock() - asked
    status = await tier.process.wait()
    ended_after = clock() - asked
    told.set()
    answers = await working
    uploads = await asyncio.gather(*stalled)
    # At its very end the port closes: who comes then is refused, and was not accepted.
    late = [one for one in answers if not one.status and one.began > asked]
    lost = [one for one in answers if not one.status and one.began <= asked]
    report.note(f"R = {rate:.1f}/s; {load.told(load.statuses(answers))}")
    states = f"ready {ready.status}, health {health.status or health.how}"
    report.check("after the signal", states, ready.status in (503, 0))
    report.at_most("not ready after", not_ready_after, 1.0)
    wrong = {str(one.status) for one in answers if one.status} - {"200", "503"}
    report.check("other answers than 200 and 503", sorted(wrong) or "none", not wrong)
    report.check("begun before the signal and not answered", len(lost), not lost)
    # Connections are taken in their order: whoever came after the last one that was, found the
    # kernel's queue of a port that was just being closed.
    last = max((one.began for one in answers if one.status), default=asked)
    broken = [one for one in late if one.how != "refused" and one.began < last]
    report.note(f"of those that came after it {len(late)} found the port closed or closing")
    report.check("of these left without a word", len(broken), not broken)
    given = load.statuses(uploads)
    report.check(f"{STALLED} stalled uploads", load.told(given), set(given) == {"503"})
    right = status in (0, -signal.SIGTERM)
    report.check("exit status", status, right)
    report.at_most("exit after", ended_after, GRACE_S)


async def kill(lab: Lab, report: Report) -> None:
    tier = await lab.primary()
    clock = asyncio.get_running_loop().time
    slowest = longest = 0.0
    left: list[int] = []
    files: set[str] = set()
    number = lab.count(2, 20)
    answers = []
    for _ in range(number):
        seconds, still_there = await _kill(tier)
        longest = max(longest, seconds)
        left += still_there
        files |= set(tier.left_files())
        again = clock()
        await tier.start()
        slowest = max(slowest, clock() - again)
        answers.append(await load.call(tier.port, load.upload()))
    given = load.statuses(answers)
    report.check("clips afterwards", load.told(given), set(given) == {"200"})
    report.check("processes left", left or "none", not left)
    report.at_most("its decoders have ended after", longest, GONE_S)
    report.check("temporary files", sorted(files) or "none", not files)
    report.at_most("ready again after", slowest, READY_S)


async def _kill(tier: Tier) -> tuple[float, list[int]]:
    """Kill it in mid-request; seconds until all its processes had ended, and which have not."""
    begun = tier.counts.begun
    calls = [asyncio.create_task(load.call(tier.port, load.upload())) for _ in range(6)]
    assert await until(lambda: tier.counts.begun > begun)
    processes = procfs.tree(tier.pid)
    os.kill(tier.pid, signal.SIGKILL)
    killed = asyncio.get_running_loop().time()
    await tier.process.wait()
    await asyncio.gather(*calls)
    await until(lambda: not any(map(procfs.alive, processes)))
    seconds = asyncio.get_running_loop().time() - killed
    return seconds, list(filter(procfs.alive, processes))


ROWS = (
    Row(
        "stop",
        f"SIGTERM at R with {STALLED} stalled uploads",
        "not ready < 1 s; every accepted clip answered or 503; exit within the grace",
        stop,
    ),
    Row(
        "kill",
        "kill -9 in mid-request, 20 times",
        f"ready again within {READY_S:g} s; no temporary file, port or process left",
        kill,
    ),
)
