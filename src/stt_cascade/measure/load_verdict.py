"""What a load test comes to: whether the service came through the load that it can bear."""

from __future__ import annotations

import math
from collections.abc import Sequence

from stt_cascade.measure.capacity import Summary, holdup, knee, sustained

# How a service says that it is asked for too much, or is heard to be. Whatever else goes wrong
# beyond the knee is a service that breaks.
OVERLOAD = (
    *("overloaded", "rate_limited", "fallback_failed"),
    *("deadline_exceeded", "request_timeout", "TimedOut"),
)


def verdict(steps: Sequence[Summary], slo: float) -> tuple[str, bool]:
    """What it comes to, and whether that is good."""
    at = knee(steps)
    closed = [step for step in steps if step.kind == "closed"]
    parts = []
    if closed:
        best = max(closed, key=lambda step: step.throughput)
        where = f"the knee is at {at:g} callers" if at else "no knee within these steps"
        parts.append(f"At most {best.throughput:.2f} texts a second; {where}.")
    if (lacks := holdup(steps)) is not None:
        other = "primary" if lacks.tier == "fallback" else "fallback"
        parts.append(
            f"What it lacks is the {lacks.tier}: at {lacks.callers:g} callers a clip waits "
            f"{lacks.seconds:.2f} s longer for it (p95) than at {lacks.alone:g}, for the {other} "
            f"{lacks.other:.2f} s."
        )
    held = sustained(steps, slo)
    if any(step.kind == "open" for step in steps):
        parts.append(
            f"Up to {held.level:.3g} calls a second the p95 stays within {slo:g} s."
            if held
            else f"At none of these rates the p95 stays within {slo:g} s."
        )
    failed = failing(steps)
    if failed:
        kinds = {kind: count for kind, count in failed[0].outcomes.items() if kind != "ok"}
        told = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
        parts.append(f"Texts failed with {failed[0].name}: {told}.")
    late = any(step.late for step in steps)
    if late:
        parts.append("The generator was late: run it on a machine that has time for it.")
    return " ".join(parts), not failed and not late


def failing(steps: Sequence[Summary]) -> list[Summary]:
    """Steps that a service should have come through.

    A full queue is an answer, not a failure. Up to the knee there is no other excuse; beyond it
    whatever overload explains.
    """
    at = knee(steps)
    most = max((step.throughput for step in steps if step.kind == "closed"), default=math.inf)

    def excused(step: Summary) -> Sequence[str]:
        closed = step.kind == "closed"
        beyond = (at is not None and step.level > at) if closed else step.level >= most
        return OVERLOAD if beyond else OVERLOAD[:1]

    return [step for step in steps if set(step.outcomes) - {"ok", *excused(step)}]
