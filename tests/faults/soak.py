"""Hours in minutes: what grows, and a build that leaks on purpose, which must be seen to."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from faults import load, procfs
from faults.lab import Lab, rated
from faults.report import Report, Row
from faults.stub import Stub
from faults.tiers import Tier

MIB = 1024 * 1024
SHARE = 0.8
GROWTH_MB = 20.0
SAMPLES = 60


@dataclass(frozen=True)
class Trend:
    """Of a soak's second half: growth from the median of its first third to that of its last.

    Attributes:
        memory: MB, of the process and all below it.
        descriptors: of the process.
    """

    memory: float
    descriptors: float

    @classmethod
    def of(cls, samples: list[tuple[int, int]]) -> Trend:
        """Of samples (bytes, descriptors) at equal distances."""
        half = samples[len(samples) // 2 :]
        third = max(1, len(half) // 3)
        early, late = half[:third], half[-third:]
        # What grows from the one median to the other does so in two thirds of the time.
        scale = len(half) / (len(half) - third)
        memory, descriptors = (
            scale * (_median([one[kind] for one in late]) - _median([one[kind] for one in early]))
            for kind in (0, 1)
        )
        return cls(memory / MIB, descriptors)

    @property
    def flat(self) -> bool:
        return self.memory <= GROWTH_MB and self.descriptors <= 3

    def __str__(self) -> str:
        return f"memory {self.memory:+.1f} MB, descriptors {self.descriptors:+.0f}"


def _median(values: list[int]) -> float:
    return float(sorted(values)[len(values) // 2])


async def _soak(tier: Tier, seconds: float) -> tuple[Trend, list[load.Answer], float]:
    rate, _ = await rated(tier, 1.0)
    sending = asyncio.create_task(
        load.open_loop(tier.port, load.upload(), rate=SHARE * rate, seconds=seconds)
    )
    samples = []
    while not sending.done():
        samples.append((procfs.resident(tier.pid), procfs.descriptors(tier.pid)))
        await asyncio.wait({sending}, timeout=seconds / SAMPLES)
    return Trend.of(samples), await sending, rate


async def soak(lab: Lab, report: Report) -> None:
    seconds = 60 * lab.soak_minutes or lab.pick(20, 90, 1800)
    leak_seconds = lab.pick(30, 60)
    tier = await lab.primary()
    trend, answers, rate = await _soak(tier, seconds)
    given = load.statuses(answers)
    report.note(f"{seconds / 60:.1f} min at {SHARE:g} R, R = {rate:.1f}/s")
    report.check("answers", load.told(given), set(given) == {"200"})
    report.check("second half", f"{trend}; at most +20 MB, +3", trend.flat)
    await tier.close()
    leaky = await lab.primary(Stub(keeps=True))
    trend, _, _ = await _soak(leaky, leak_seconds)
    report.check("a build that keeps every clip fails this", f"{trend}", not trend.flat)


ROWS = (
    Row(
        "soak",
        "0.8 R for minutes, and the same with a build that leaks on purpose",
        "memory growth <= 20 MB in the second half, descriptors flat; the leak is noticed",
        soak,
        short=False,
    ),
)
