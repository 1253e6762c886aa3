"""A fallback that is refused, silent, broken or something else, and comes back."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

from faults import load
from faults.lab import Lab
from faults.proxy import Fault, FaultProxy
from faults.report import Report, Row
from faults.tiers import Tier
from stt_cascade.cascade.breaker import FAILURES_TO_OPEN, PROBE_INTERVAL_S

TIMEOUT_S = 1.0
RATE = 8.0  # a second, of clips that the primary doubts
Refused = Literal["refused"]
FAULTS: tuple[Fault | Refused, ...] = (
    "refused",
    "blackhole",
    "reset",
    "error",
    "drip",
    "truncate",
    "endless",
    "nonsense",
)
SHORT: tuple[Fault | Refused, ...] = ("truncate",)


@dataclass(frozen=True)
class Side:
    """A primary with its own way to the fallback."""

    tier: Tier
    way: FaultProxy
    expected: int  # the status while the fallback fails


async def escalation(lab: Lab, report: Report) -> None:
    fallback = await lab.fallback()
    sides = []
    for failure, expected in (("error", 502), ("primary", 200)):
        way = await lab.proxy(fallback.port)
        settings: dict[str, Any] = {
            "FALLBACK_URL": f"http://127.0.0.1:{way.port}",
            "FALLBACK_TIMEOUT_S": TIMEOUT_S,
            "ON_FALLBACK_FAILURE": failure,
        }
        sides.append(Side(await lab.primary(**settings), way, expected))
    seconds = lab.pick(3, 10, 60)
    for fault in SHORT if lab.size == "short" else FAULTS:
        await asyncio.gather(*(_suffer(side, fault, seconds, report) for side in sides))


async def _suffer(side: Side, fault: Fault | Refused, seconds: float, report: Report) -> None:
    """Let the fallback fail for so long, and heal."""
    clock = asyncio.get_running_loop().time
    what = f"{fault}, {'502' if side.expected == 502 else 'degraded'}"
    if fault == "refused":
        await side.way.refuse()
    else:
        side.way.faults = [fault]
    asked, failing_since = len(side.way.requests), clock()
    doubt = load.upload(doubt=True)
    answers = await load.open_loop(side.tier.port, doubt, rate=RATE, seconds=seconds)
    given = load.statuses(answers)
    report.check(what, load.told(given), set(given) == {str(side.expected)})
    if side.expected == 200:
        honest = all(b'"degraded":true' in one.body for one in answers)
        report.check(f"{what}, said so", f"in {len(answers)} answers", honest)
    report.at_most(f"{what}, slowest", load.quantile(answers, 1.0), TIMEOUT_S + 1)
    breaker = (await side.tier.snapshot())["fallback_breaker"]["state"]
    report.check(f"{what}, breaker", breaker, breaker in ("open", "half_open"))
    if fault != "refused":  # of what was refused the proxy knows nothing
        _probes(what, side.way.requests[asked:], failing_since, seconds, report)
    if fault == "refused":
        await side.way.listen()
    side.way.faults = ["none"]
    healed_since = clock()
    while True:
        answer = await load.call(side.tier.port, doubt)
        if answer.headers.get("x-fallback-used") == "true":
            break
        if clock() > healed_since + load.PATIENCE_S:
            report.check(f"{what}, closes again", "never", False)
            return
        await asyncio.sleep(0.1)
    closed = (await side.tier.snapshot())["fallback_breaker"]["state"]
    report.check(f"{what}, closes again", closed, closed == "closed")
    report.at_most(f"{what}, closed after", clock() - healed_since, PROBE_INTERVAL_S + 1)


def _probes(what: str, requests: list[float], since: float, seconds: float, report: Report) -> None:
    """What reached the fallback once the breaker had opened."""
    # Until the fifth failure is known, more are on their way: those of one timeout.
    opening = FAILURES_TO_OPEN + round(RATE * TIMEOUT_S) + 1
    most = opening + round(seconds / PROBE_INTERVAL_S)
    figure = f"{len(requests)} in {seconds:g} s, at most {most}"
    report.check(f"{what}, requests to it", figure, FAILURES_TO_OPEN <= len(requests) <= most)
    probes = [time for time in requests if time > since + opening / RATE + TIMEOUT_S]
    gaps = [later - earlier for earlier, later in pairwise(probes)]
    if gaps:
        figure = f"{len(probes)}, the closest two {min(gaps):.1f} s apart"
        report.check(f"{what}, probes", figure, min(gaps) >= PROBE_INTERVAL_S - 0.5)


ROWS = (
    Row(
        "escalation",
        "each fallback fault: " + ", ".join(FAULTS),
        "502 or the degraded text, in time; the breaker opens and closes; <= 1 probe per interval",
        escalation,
    ),
)
