"""What steps of load say of a service: its knee, and how to set it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from stt_cascade.measure.load import MOST_LAG_S, Step
from stt_sdk import Transcription

# The two sides of Little's law, measured apart, may differ by so much.
LITTLES_TOLERANCE = 0.25
# Without steps beyond it, a knee is the end of the table.
MIN_STEPS = 3
# Who gives this share of the most gives the most: the rest is chance.
PLATEAU = 0.9
# What is looked at of a service's own figures.
SNAPSHOT = {"in_flight", "queue_depth", "uptime_s", "process", "gpu"}
# Room above what was measured, for traffic that does not come evenly.
HEADROOM = 1.5


@dataclass(frozen=True)
class Quantiles:
    """Seconds."""

    p50: float
    p95: float
    p99: float
    max: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Quantiles | None:
        known = np.fromiter(values, float)
        if not len(known):
            return None
        p50, p95, p99 = np.percentile(known, (50, 95, 99))
        return cls(float(p50), float(p95), float(p99), float(known.max()))


@dataclass(frozen=True)
class Summary:
    """One step in figures.

    Attributes:
        level: callers, or calls a second.
        throughput: texts a second.
        outcomes: calls by `ok` or type of error.
        total, queue, primary, fallback: seconds; of texts alone, but `total`, which has all calls.
        escalated: share of the texts' clips that needed the fallback.
        lag_p99: seconds by which the generator was late.
        littles: clips in the service, as counted there, by throughput x time there; None: the
            service did not give its figures.
        cores: of the processor, on average; `rss_mb`, `gpu_pct`, `gpu_mb`: at most.
    """

    kind: str
    level: float
    calls: int
    throughput: float
    outcomes: dict[str, int]
    total: Quantiles | None
    queue: Quantiles | None
    primary: Quantiles | None
    fallback: Quantiles | None
    escalated: float
    lag_p99: float
    littles: float | None
    cores: float | None
    rss_mb: float | None
    gpu_pct: float | None
    gpu_mb: float | None

    @property
    def name(self) -> str:
        return f"{self.level:g} at once" if self.kind == "closed" else f"{self.level:.3g} a second"

    @property
    def of_fallback(self) -> bool:
        """It was a fallback that was called, so its inferences are what its slots are for."""
        return self.primary is None and self.fallback is not None and not self.escalated

    @property
    def inference(self) -> Quantiles | None:
        """In the slots of the service that was called."""
        return self.fallback if self.of_fallback else self.primary

    @property
    def late(self) -> bool:
        """The generator could not keep to its schedule, so that this step says nothing."""
        return self.kind == "open" and self.lag_p99 > MOST_LAG_S


def summarize(step: Step) -> Summary:
    """A step in figures."""
    # Whatever else answers there has none of these.
    step = replace(step, snapshots=[one for one in step.snapshots if set(one) >= SNAPSHOT])
    texts = [call.result for call in step.calls if isinstance(call.result, Transcription)]

    def stage(pick: Callable[[Transcription], float | None]) -> Quantiles | None:
        return Quantiles.of(ms / 1000 for text in texts if (ms := pick(text)) is not None)

    # What ends after the last call was made would make a queue look like capacity.
    within = sum(
        isinstance(call.result, Transcription) and call.ended <= step.seconds for call in step.calls
    )
    lags = [call.lag for call in step.calls]
    return Summary(
        kind=step.kind,
        level=step.level,
        calls=len(step.calls),
        throughput=within / step.seconds if step.seconds else 0.0,
        outcomes=dict(Counter(_outcome(call.result) for call in step.calls).most_common()),
        total=Quantiles.of(call.seconds for call in step.calls),
        queue=stage(lambda text: text.timings_ms.queue_wait),
        primary=stage(lambda text: text.timings_ms.primary_infer),
        fallback=stage(lambda text: text.timings_ms.fallback_infer),
        escalated=(
            sum(text.routing.reason not in ("accepted", "no_speech") for text in texts) / len(texts)
            if texts
            else 0.0
        ),
        lag_p99=float(np.percentile(lags, 99)) if lags else 0.0,
        littles=_littles(step, texts),
        **_resources(step),
    )


def _outcome(result: Any) -> str:
    if isinstance(result, Transcription):
        return "ok"
    return result.type or type(result).__name__


def _littles(step: Step, texts: Sequence[Transcription]) -> float | None:
    """L / (lambda x W) of slots and queue: both sides come from different counters."""
    inside = [one["in_flight"] + one["queue_depth"] for one in step.snapshots[1:-1]]
    times = [(text.timings_ms.queue_wait or 0) + _held_ms(text) for text in texts]
    if not inside or not sum(times):
        return None
    ended = max(call.ended for call in step.calls)
    return float(np.mean(inside) / (sum(times) / 1000 / ended))


def _held_ms(text: Transcription) -> float:
    """For how long the clip held a slot of the service that was called."""
    timings, routing = text.timings_ms, text.routing
    # A primary that escalates has given its slot back.
    of_fallback = routing.tier == "fallback" and not routing.fallback_used
    return (timings.fallback_infer if of_fallback else timings.primary_infer) or 0.0


def _resources(step: Step) -> dict[str, float | None]:
    shots = step.snapshots
    if len(shots) < 2:
        return dict.fromkeys(("cores", "rss_mb", "gpu_pct", "gpu_mb"))
    first, last = shots[0], shots[-1]
    passed = last["uptime_s"] - first["uptime_s"]
    gpus = [shot["gpu"] for shot in shots if shot["gpu"]]
    spent = last["process"]["cpu_s"] - first["process"]["cpu_s"]
    return {
        "cores": spent / passed if passed else None,
        "rss_mb": max(shot["process"]["rss_mb"] for shot in shots),
        "gpu_pct": _most(gpu["utilization_pct"] for gpu in gpus),
        "gpu_mb": _most(gpu["mem_used_mb"] for gpu in gpus),
    }


def _most(values: Iterable[float | None]) -> float | None:
    return max((value for value in values if value is not None), default=None)


def knee(steps: Sequence[Summary]) -> float | None:
    """Where more callers bring no more texts a second; None: not within these steps.

    Kneedle (Satopaa et al., 2011) over throughput against callers, or where the plateau begins
    before that.
    """
    closed = sorted((step for step in steps if step.kind == "closed"), key=lambda one: one.level)
    if len(closed) < MIN_STEPS:
        return None
    from kneed import KneeLocator

    levels = [step.level for step in closed]
    given = [step.throughput for step in closed]
    # Stretched over the whole height, as Kneedle looks at it, the noise of a plateau has knees too.
    flat = next(
        level for level, one in zip(levels, given, strict=True) if one >= PLATEAU * max(given)
    )
    found = KneeLocator(levels, given, curve="concave", direction="increasing").knee
    first = min(flat, found or flat)
    # At the last step nothing shows that it is not going on.
    return None if first == levels[-1] or not max(given) else float(first)


def sustained(steps: Sequence[Summary], slo: float) -> Summary | None:
    """The fastest arrivals at which 95 % of the calls, errors included, met the SLO."""
    met = [
        step
        for step in steps
        if step.kind == "open"
        and not step.late
        and step.total is not None
        and step.total.p95 <= slo
        and step.outcomes.get("ok", 0) >= 0.95 * step.calls
    ]
    return max(met, key=lambda step: step.level, default=None)


@dataclass(frozen=True)
class Holdup:
    """The tier for which clips wait longer under load.

    Attributes:
        callers, alone: at once, where it was seen, and the fewest there were.
        seconds: more at the p95; `other`: of the other tier.
    """

    tier: str
    callers: float
    alone: float
    seconds: float
    other: float


def holdup(steps: Sequence[Summary]) -> Holdup | None:
    """What the service lacks when it gives most; None: neither tier takes longer than alone."""
    closed = [step for step in steps if step.kind == "closed" and step.total is not None]
    if not closed:
        return None
    alone = min(closed, key=lambda step: step.level)
    best = max(closed, key=lambda step: step.throughput)

    def grown(*stages: str) -> float:
        return sum(_stage_p95(best, stage) - _stage_p95(alone, stage) for stage in stages)

    if best.of_fallback:
        grew = {"primary": 0.0, "fallback": grown("queue", "fallback")}
    else:
        grew = {"primary": grown("queue", "primary"), "fallback": grown("fallback")}
    tier, other = sorted(grew, key=lambda each: grew[each], reverse=True)
    if alone.total is None or grew[tier] <= 0.1 * alone.total.p95:
        return None
    return Holdup(tier, best.level, alone.level, grew[tier], max(0.0, grew[other]))


def _stage_p95(step: Summary, stage: str) -> float:
    found: Quantiles | None = getattr(step, stage)
    return 0.0 if found is None else found.p95


@dataclass(frozen=True)
class Advice:
    """A setting, and the sum behind it."""

    setting: str
    value: str
    because: str


def advise(
    steps: Sequence[Summary], *, slots: int | None, slo: float, replicas: int
) -> list[Advice]:
    """How to set the service so that it behaves as well as it was measured to be able to."""
    closed = [step for step in steps if step.kind == "closed" and step.throughput]
    if not closed:
        return []
    at = knee(steps)
    best = max(closed, key=lambda step: step.throughput)
    advice = [_slots(at, slots, best)]
    one = min(closed, key=lambda step: step.level)
    # An escalated clip may be late already; what the queue may cost is for the others.
    stage = one.inference or one.total
    alone = stage.p95 if stage else 0.0
    room = max(0.0, slo - alone)
    queue = max(1, math.floor(best.throughput * room))
    advice.append(
        Advice(
            "MAX_QUEUE",
            str(queue),
            f"{best.throughput:.2f} clips/s x ({slo:g} s of the SLO - {alone:.2f} s, the p95 of an "
            f"inference at {one.level:g} at once) = {best.throughput * room:.1f}: who waits longer "
            "is late",
        )
    )
    if best.of_fallback:
        return advice  # its limits follow from what its primaries ask
    rate = best.throughput * best.escalated * replicas
    rps = max(1, math.ceil(HEADROOM * rate))
    at_once = slots or int(at or best.level)
    burst = max(2 * at_once * replicas, 2 * rps)
    advice += [
        Advice(
            "RATE_LIMIT_RPS (fallback)",
            str(rps),
            f"{best.throughput:.2f} clips/s x {best.escalated:.0%} escalated x {replicas} "
            f"primaries x {HEADROOM:g} = {HEADROOM * rate:.2f}",
        ),
        Advice(
            "RATE_LIMIT_BURST (fallback)",
            str(burst),
            f"the larger of 2 x {at_once} slots x {replicas} primaries and 2 x {rps} a second",
        ),
    ]
    return advice


def _slots(at: float | None, slots: int | None, best: Summary) -> Advice:
    if at is None:
        return Advice(
            "MAX_CONCURRENCY",
            str(slots or "?"),
            "throughput still grows at the last step: measure with more callers",
        )
    busy = f", {best.cores:.1f} cores busy" if best.cores is not None else ""
    if slots is not None and at >= slots:
        return Advice(
            "MAX_CONCURRENCY",
            str(slots),
            f"the knee, at {at:g} callers, is that of the {slots} slots{busy}: raise it only if "
            "processor or GPU have room, and measure again",
        )
    return Advice(
        "MAX_CONCURRENCY",
        f"{at:g}",
        f"more than {at:g} callers bring nothing{busy}; {slots or 'the present'} slots only make "
        "inferences share what there is",
    )
