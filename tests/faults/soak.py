"""Hours in minutes: what grows, and a build that leaks on purpose, which must be seen to."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from faults import load, procfs
from faults.lab import Lab, rated
from faults.report import Report, Row
from faults.stub import Stub
from faults.tiers import Tier

MIB = 1024 * 1024
SHARE = 0.8
GROWTH_MB = 20.0
# So many, and one so often.
SAMPLES, SAMPLE_S = 60, 1.0
# Longer than the deadline of a request: who has no answer by then gets none.
PATIENCE_S = 90.0


@dataclass(frozen=True)
class Trend:
    """Of a soak's second half: growth from its first third to its last, by their medians.

    Attributes:
        memory: MB, of the process and all below it.
        descriptors: of the process, by their least instead: callers hold some for a moment, but
            what leaks never comes back.
    """

    memory: float
    descriptors: float

    @classmethod
    def of(cls, samples: list[tuple[int, int]]) -> Trend:
        """Of samples (bytes, descriptors) at equal distances."""
        half = samples[len(samples) // 2 :]
        third = max(1, len(half) // 3)
        early, late = half[:third], half[-third:]
        # What grows from the one third to the other does so in two thirds of the time.
        scale = len(half) / (len(half) - third)
        memory = _median([one[0] for one in late]) - _median([one[0] for one in early])
        descriptors = min(one[1] for one in late) - min(one[1] for one in early)
        return cls(scale * memory / MIB, scale * descriptors)

    @property
    def flat(self) -> bool:
        return self.memory <= GROWTH_MB and self.descriptors <= 3

    def __str__(self) -> str:
        return f"memory {self.memory:+.1f} MB, descriptors {self.descriptors:+.0f}"


def _median(values: list[int]) -> float:
    return float(sorted(values)[len(values) // 2])


async def soaked(
    tiers: Sequence[Tier], requests: load.Requests, rate: float, seconds: float
) -> tuple[list[Trend], list[load.Answer]]:
    """Send the first tier so many requests a second: how each tier grew, and the answers."""
    sending = asyncio.create_task(
        load.open_loop(tiers[0].port, requests, rate=rate, seconds=seconds, patience=PATIENCE_S)
    )
    samples: list[list[tuple[int, int]]] = [[] for _ in tiers]
    while not sending.done():
        for tier, own in zip(tiers, samples, strict=True):
            own.append((procfs.resident(tier.pid), procfs.descriptors(tier.pid)))
        await asyncio.wait({sending}, timeout=min(seconds / SAMPLES, SAMPLE_S))
    return [Trend.of(own) for own in samples], await sending


async def _soak(tier: Tier, seconds: float) -> tuple[Trend, list[load.Answer], float]:
    rate, _ = await rated(tier, 1.0)
    (trend,), answers = await soaked([tier], load.upload(), SHARE * rate, seconds)
    return trend, answers, rate


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
