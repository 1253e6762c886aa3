"""Long clips: how much memory they take, and that it comes back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import numpy as np

from faults import load, procfs
from faults.lab import Lab, until
from faults.report import Report, Row
from faults.stub import Stub
from faults.tiers import Tier
from tones import RATE, opus, voice, wav

MIB = 1024 * 1024
# Above the warm service: bodies, decoders and speech detection. Decoded clips that wait for a slot
# come on top; MAX_QUEUE bounds how many.
MOST_BYTES = 400 * MIB
# What is left afterwards, of what a warm service has.
MOST_LEFT = 0.15
FLOAT32 = 4


class _Watch:
    """The most memory that a tier has above `warm`, apart from the decoded clips that it holds."""

    def __init__(self, tier: Tier, warm: int, clip_bytes: int) -> None:
        self._tier = tier
        self._warm = warm
        self._clip_bytes = clip_bytes
        self.most = 0
        self.most_decoded = 0

    async def look(self) -> None:
        while True:
            now = await self._tier.snapshot()
            decoded = (now["in_flight"] + now["queue_depth"]) * self._clip_bytes
            above = procfs.resident(self._tier.pid) - self._warm
            self.most = max(self.most, above - decoded)
            self.most_decoded = max(self.most_decoded, decoded)
            await asyncio.sleep(0.05)


@asynccontextmanager
async def _watched(tier: Tier, warm: int, clip_bytes: int) -> AsyncIterator[_Watch]:
    watch = _Watch(tier, warm, clip_bytes)
    looking = asyncio.create_task(watch.look())
    try:
        yield watch
    finally:
        looking.cancel()
        await asyncio.gather(looking, return_exceptions=True)


async def long_clips(lab: Lab, report: Report) -> None:
    count, seconds = lab.count(6, 18), lab.count(300, 600)
    tier = await lab.primary(Stub(seconds=0.1), VAD="on", REQUEST_TIMEOUT_S=600)
    minute = voice(60.0)
    for short in (wav(minute[: 5 * RATE]), wav(minute), opus(minute)):
        await load.call(tier.port, load.upload(short))
    warm = procfs.resident(tier.pid)
    # Both lanes, so that as many as possible are decoded at once.
    long = np.tile(minute, seconds // 60)
    files = [load.upload(wav(long[::2], RATE // 2)), load.upload(opus(long))]
    async with _watched(tier, warm, seconds * RATE * FLOAT32) as watch:
        answers = await asyncio.gather(
            *(load.call(tier.port, files[n % 2], patience=600.0) for n in range(count))
        )
    given = load.statuses(answers)
    report.check(f"{count} clips of {seconds} s", load.told(given), set(given) == {"200"})
    decoded = f"decoded clips that wait: {watch.most_decoded // MIB} MiB"
    report.note(f"a warm tier has {warm // MIB} MiB; {decoded}")
    figure = f"{watch.most // MIB} MiB, at most {MOST_BYTES // MIB}"
    report.check("memory apart from decoded clips", figure, watch.most <= MOST_BYTES)
    await until(lambda: procfs.resident(tier.pid) <= warm * (1 + MOST_LEFT), 10.0)
    left = procfs.resident(tier.pid) / warm - 1
    report.check("left afterwards", f"{left:.0%}, at most {MOST_LEFT:.0%}", left <= MOST_LEFT)


ROWS = (
    Row(
        "long-clips",
        "18 clips of ten minutes at once, in both lanes of decoding",
        "the tier takes at most 400 MiB for them, apart from decoded clips, and gives it back",
        long_clips,
        extra_s=600.0,
    ),
)
