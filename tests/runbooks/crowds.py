"""Pages about too much, or too slow."""

from __future__ import annotations

from typing import Any

from faults.stub import Stub
from runbooks.shift import Row, Shift
from runbooks.traffic import clip, is_status

AGREED, GREEDY = "primary_key_abc", "greedy-key-0123456789"
OK = is_status(200)


async def high_tail_latency(shift: Shift) -> None:
    crowded = Stub(seconds=0.05, crowding=1.7)  # 8 at once take 1.7 s each, 2 take 0.16 s
    primary = await shift.primary(crowded, MAX_CONCURRENCY=8)
    await shift.watch()
    callers = await shift.callers(primary, callers=8, pause=0)
    await callers.see("all of them", OK, times=8)
    await shift.firing("SttHighTailLatency")
    await shift.check()
    await shift.do("How to mend", "Too many at once")
    await callers.see("all of them", OK, times=8)
    await shift.resolved("SttHighTailLatency")


async def latency_budget(shift: Shift) -> None:
    await shift.fallback(Stub(seconds=1.2))
    primary = await shift.primary(Stub(sure=0.5))
    await shift.watch()
    callers = await shift.callers(primary, callers=3)
    await callers.see("the gate", is_status(200, x_conf_below="logprob", x_fallback_used="true"))
    await shift.firing("SttLatencyBudgetBurn")
    await shift.check()
    await shift.do("How to mend", "Most clips go to the fallback")
    await callers.see("the primary's text", is_status(200, x_fallback_used="false"), times=5)
    await shift.resolved("SttLatencyBudgetBurn")


async def queue_grows(shift: Shift) -> None:
    primary = await shift.primary(Stub(seconds=0.2), API_KEYS=f"{AGREED},{GREEDY}")
    await shift.watch()
    greedy = await shift.callers(primary, request=clip(key=GREEDY), callers=30, pause=0)
    modest = await shift.callers(primary, request=clip(key=AGREED), callers=1, pause=1)
    refused = await greedy.see("a full queue", is_status(503, x_error_type="overloaded"))
    after = refused.headers.get("retry-after", "")
    shift.report.check("Retry-After", after, after.isdecimal() and int(after) >= 1)
    await shift.firing("SttQueueGrows")
    await shift.check()
    await shift.do("How to mend", "One caller sends it")
    await greedy.see("the limit", is_status(429, x_error_type="rate_limited"))
    await modest.see("a text", OK, times=3)
    await shift.resolved("SttQueueGrows")


async def key_near_rate_limit(shift: Shift) -> None:
    limit: dict[str, Any] = {"RATE_LIMIT_RPS": 5, "RATE_LIMIT_BURST": 10}
    primary = await shift.primary(API_KEYS=AGREED, **limit)
    await shift.watch()
    callers = await shift.callers(primary, request=clip(key=AGREED), callers=4)
    await callers.see("the limit", is_status(429, x_error_type="rate_limited"))
    await shift.firing("SttKeyNearRateLimit")
    await shift.check()
    await shift.do("How to mend", "It is honest load")
    await callers.see("a text", OK, times=10)
    await shift.resolved("SttKeyNearRateLimit")


async def ingress_5xx(shift: Shift) -> None:
    primary = await shift.primary()
    front = await shift.lab.balancer([primary.tier])
    await shift.watch(envoy=[f"127.0.0.1:{front.metrics_port}"])
    callers = await shift.callers(at=front.port, tls=front.client, callers=3)
    await callers.see("a text", OK)
    await primary.stop()
    answer = await callers.see("Envoy's own", is_status(503, x_error_type="not_ready"), times=5)
    told = answer.headers.get("x-error-message", "")
    own = "x-total-ms" not in answer.headers and told == "no primary takes requests now"
    shift.report.check("who says so", told, own)
    flags = sorted({str(line.get("flags")) for line in front.lines if line["status"] == 503})
    shift.report.check("access log", flags, bool(flags) and set(flags) <= {"UF", "UH"})
    await shift.firing("SttIngress5xx")
    await shift.check()
    await shift.do("How to mend", "Envoy reaches no primary")
    await callers.see("a text", OK, times=10)
    await shift.resolved("SttIngress5xx")


async def scale_out(shift: Shift) -> None:
    # Every clip's language is hard to tell, so that all of them need the fallback.
    stub = Stub(seconds=0.2, language_sure=0.4)
    fallback_limits: dict[str, Any] = {"RATE_LIMIT_RPS": 8, "RATE_LIMIT_BURST": 8}
    await shift.fallback(Stub(seconds=0.01), **fallback_limits)
    first = await shift.primary(stub)
    await shift.watch()
    callers = await shift.callers(first, callers=60, pause=3)
    await callers.see("a full queue", is_status(503, x_error_type="overloaded"))
    await shift.firing_elsewhere("SttQueueGrows")
    await shift.check()
    await shift.do("What to do", "Make room on the fallback")
    second = await shift.primary(stub)
    shift.aim()
    await shift.do("What to do", "Add a primary")
    third = await shift.primary(stub)
    shift.aim()
    callers.ports = [first.port, second.port, third.port]
    await callers.see("texts, all with the fallback's help", OK, times=48)
    await shift.do("What to do", "In an extreme spike")
    callers.request = clip(language="en")
    await callers.see("texts without it", is_status(200, x_fallback_used="false"), times=48)
    await shift.resolved("SttQueueGrows")
    shares = await shift.sees("sum by (instance) (increase(stt_requests_total[5m])) > 0")
    served = [series["metric"]["instance"] for series in shares]
    shift.report.check("the new one has its share", served, second.address in served)


ROWS = (
    Row(
        "high-tail-latency",
        "eight inferences at once, which slow each other down",
        high_tail_latency,
        ("SttHighTailLatency",),
    ),
    Row(
        "latency-budget-burn",
        "a threshold that sends most clips to a slow fallback",
        latency_budget,
        ("SttLatencyBudgetBurn",),
    ),
    Row(
        "queue-grows",
        "one caller sends thirty clips at once, again and again",
        queue_grows,
        ("SttQueueGrows",),
    ),
    Row(
        "ingress-5xx",
        "the only primary behind Envoy stops",
        ingress_5xx,
        ("SttIngress5xx",),
        needs=("prometheus", "envoy"),
    ),
    Row(
        "key-near-rate-limit",
        "a caller asks for more than its rate",
        key_near_rate_limit,
        ("SttKeyNearRateLimit",),
    ),
    Row(
        "scale-out",
        "more honest load than one primary can do, and a fallback that would refuse more",
        scale_out,
    ),
)
