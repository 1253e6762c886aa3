"""Pages about processes, memory and GPUs."""

from __future__ import annotations

import asyncio
from typing import Any

from faults import load
from faults.stub import HANG, Stub
from runbooks.shift import Row, Shift
from runbooks.traffic import clip, is_status

OK = is_status(200)
WEDGED_STATUS = 70
KEY, OTHER_KEY = "metrics-key-0123456789", "another-key-0123456789"


async def tier_down(shift: Shift) -> None:
    await shift.fallback()
    primary = await shift.primary()
    await shift.watch(key=KEY)
    callers = await shift.callers(primary)
    await callers.see("a text", OK)
    await primary.kill()
    await callers.see("nobody", lambda answer: answer.how == "refused")
    await shift.firing("SttTierDown")
    await shift.check()
    await shift.do("How to mend", "It does not run")
    await callers.see("a text", OK)
    await shift.resolved("SttTierDown")

    primary.write(METRICS_KEYS=OTHER_KEY)
    await primary.restart()
    await shift.firing("SttTierDown")
    await callers.see("a text all the same", OK)
    shift.prometheus.key(OTHER_KEY)  # as the page says: read at the next scrape
    await shift.resolved("SttTierDown")


async def engine_wedged(shift: Shift) -> None:
    times: dict[str, Any] = {"INFER_TIMEOUT_S": 12, "WEDGED_EXIT_S": 12}
    primary = await shift.primary(**times)
    await shift.watch()
    hanging = asyncio.create_task(load.call(primary.port, clip(prompt=HANG), patience=60))
    await primary.tier.until("/v1/ready", 503)
    await shift.firing("SttEngineWedged")
    await shift.check()
    await primary.tier.until("/v1/health", 503)
    status = await primary.ended(60)
    shift.report.check("ends by itself with", status, status == WEDGED_STATUS)
    await hanging
    await shift.do("How to mend", "Once")  # what a supervisor does
    callers = await shift.callers(primary)
    await callers.see("a text", OK)
    await shift.resolved("SttEngineWedged")


async def memory_grows(shift: Shift) -> None:
    primary = await shift.primary(Stub(seconds=0.01, keeps=True))
    await shift.watch()
    await shift.sees("stt_process_rss_mb offset 1d")  # a past to compare with
    callers = await shift.callers(primary, request=clip(seconds=240), callers=1, pause=0.3)
    await shift.firing("SttMemoryGrows")
    await shift.check()
    grown = (await primary.tier.snapshot())["process"]["rss_mb"]
    await shift.do("How to mend", "Before the machine runs out")
    given_back = grown - (await primary.tier.snapshot())["process"]["rss_mb"]
    shift.report.check("a restart gives back", f"{given_back:.0f} MB", given_back > 200)
    await callers.see("a text", OK)
    await shift.do("How to mend", "Long clips")
    await callers.see("the limit", is_status(413, x_error_type="audio_too_long"))
    await shift.resolved("SttMemoryGrows")


async def gpu_saturated(shift: Shift) -> None:
    stub = Stub(seconds=0.4, gpu_mb=1000)
    first = await shift.primary(stub)
    await shift.watch()
    callers = await shift.callers(first, callers=8, pause=0.8)
    await callers.see("a text", OK)
    await shift.firing("SttGpuSaturated")
    await shift.check()
    second = await shift.primary(stub)
    shift.aim()
    shift.report.note("another primary has started")
    callers.ports = [first.port, second.port]
    await callers.see("texts from both", OK, times=6)
    await shift.resolved("SttGpuSaturated")


async def gpu_memory_full(shift: Shift) -> None:
    primary = await shift.primary(Stub(gpu_mb=5500), MAX_CONCURRENCY=4)
    await shift.watch()
    await shift.firing("SttGpuMemoryFull")
    await shift.check()
    await shift.do("How to mend", "Too many slots")
    await shift.resolved("SttGpuMemoryFull")
    callers = await shift.callers(primary)
    await callers.see("a text", OK)


ROWS = (
    Row(
        "tier-down",
        "the primary is killed; then Prometheus has a key that it does not take",
        tier_down,
        ("SttTierDown",),
    ),
    Row(
        "engine-wedged",
        "an inference that never ends",
        engine_wedged,
        ("SttEngineWedged",),
    ),
    Row(
        "memory-grows",
        "an engine that keeps every clip, and clips of four minutes",
        memory_grows,
        ("SttMemoryGrows",),
    ),
    Row(
        "gpu-saturated",
        "a GPU that is not there, busy all the time",
        gpu_saturated,
        ("SttGpuSaturated",),
    ),
    Row(
        "gpu-memory-full",
        "the same, with more slots than its memory has room for",
        gpu_memory_full,
        ("SttGpuMemoryFull",),
    ),
)
