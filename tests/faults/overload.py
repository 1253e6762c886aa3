"""Too many callers, callers who go away, and connections that go bad under them."""

from __future__ import annotations

import asyncio

from faults import load
from faults.lab import Lab, rated
from faults.proxy import LATENCY_S, Fault
from faults.report import Report, Row
from faults.stub import SLOTS

# Each as often as it is there.
BETWEEN: tuple[Fault, ...] = (
    *("none", "none", "none", "none", "none"),
    *("latency", "reset", "drip", "truncate", "blackhole"),
)
IN_FRONT: tuple[Fault, ...] = (
    *("none", "none", "none", "none", "none", "none"),
    *("latency", "latency", "reset", "blackhole", "truncate"),
)
ALLOWED = {200, 429, 502, 503, 504}
OVERLOAD = 3  # times the rated load


async def disconnects(lab: Lab, report: Report) -> None:
    tier = await lab.primary()
    number, random = lab.count(150, 500), load.seeded(1)
    rate, _ = await rated(tier, lab.pick(1, 3))
    live: list[int] = []
    calls: list[asyncio.Task[load.Answer]] = []
    left = late = 0
    for _ in range(number):
        fate = random.random()
        deadline = random.uniform(0.001, 0.06) if 0.3 <= fate < 0.5 else None
        leaves = random.uniform(0.0, 0.5) if fate < 0.3 else None
        left, late = left + (leaves is not None), late + (deadline is not None)
        sent = load.upload(deadline_s=deadline)
        calls.append(asyncio.create_task(load.call(tier.port, sent, leaves_after=leaves)))
        live.append(tier.counts.live)
        await asyncio.sleep(random.expovariate(1.5 * rate))
    answers = await asyncio.gather(*calls)
    quiet = await tier.until_quiet()
    after, again = await rated(tier, lab.pick(1, 3))
    report.note(f"{number} requests, {left} left, {late} past their deadline")
    report.note(load.told(load.statuses(answers)))
    most = tier.counts.most_live
    report.check("inferences at once", f"at most {most}, gate {SLOTS}", most <= SLOTS)
    report.check("at every sample", f"at most {max(live)} in {len(live)}", max(live) <= SLOTS)
    stayed = [one for one in answers if one.how != "left"]
    lost = [one for one in stayed if not one.status]
    report.check("who stayed and got nothing", len(lost), not lost)
    report.check("slots, places and queue", quiet, quiet == "all given back")
    all_served = all(one.status == 200 for one in again)
    report.check("served afterwards", load.told(load.statuses(again)), all_served)
    report.timed("throughput afterwards", f"{after:.1f} of {rate:.1f}/s", after >= 0.9 * rate)


async def mixed(lab: Lab, report: Report) -> None:
    number, random = lab.count(100, 2000), load.seeded(2)
    deadline_s = lab.pick(2, 3)
    fallback = await lab.fallback()
    broken = await lab.proxy(fallback.port, BETWEEN)
    tier = await lab.primary(FALLBACK_URL=f"http://127.0.0.1:{broken.port}", FALLBACK_TIMEOUT_S=1)
    rate, _ = await rated(tier, 1.0)
    doors = {fault: await lab.proxy(tier.port, [fault]) for fault in sorted(set(IN_FRONT))}

    async def one(fault: Fault, doubt: bool) -> tuple[Fault, load.Answer]:
        sent = load.upload(deadline_s=deadline_s, doubt=doubt)
        patience = deadline_s + 1 + (0 if fault == "none" else 4 * LATENCY_S)
        return fault, await load.call(doors[fault].port, sent, patience=patience)

    calls = []
    for _ in range(number):
        calls.append(asyncio.create_task(one(random.choice(IN_FRONT), random.random() < 0.3)))
        await asyncio.sleep(random.expovariate(1.2 * rate))
    answers = await asyncio.gather(*calls)
    quiet = await tier.until_quiet()
    connected = [one for fault, one in answers if fault in ("none", "latency")]
    cut = [one for fault, one in answers if fault not in ("none", "latency")]
    report.note(f"{len(connected)} whose connection held: {load.told(load.statuses(connected))}")
    report.note(f"{len(cut)} whose connection broke: {load.told(load.statuses(cut))}")
    odd = [one for one in connected if one.status not in ALLOWED and not 400 <= one.status < 500]
    report.check("without one whole answer of the agreed kinds", len(odd), not odd)
    hanging = [one for one in connected if one.how == "hanging"]
    report.check("hanging", len(hanging), not hanging)
    report.at_most("slowest answer", load.quantile(connected, 1.0), deadline_s + 1)
    report.check("slots, places and queue", quiet, quiet == "all given back")
    most = tier.counts.most_live
    report.check("inferences at once", f"at most {most}, gate {SLOTS}", most <= SLOTS)


async def overload(lab: Lab, report: Report) -> None:
    tier = await lab.primary(REQUEST_TIMEOUT_S=2)
    seconds = lab.pick(3, 30, 180)
    rate, before = await rated(tier, lab.pick(1.5, 4))
    answers = await load.open_loop(tier.port, load.upload(), rate=OVERLOAD * rate, seconds=seconds)
    good = [one for one in answers if one.status == 200]
    refused = [one for one in answers if one.status == 503]
    report.note(f"R = {rate:.1f}/s; {len(answers)} requests in {seconds:g} s")
    report.note(load.told(load.statuses(answers)))
    # The queue's worth that is answered after the last question does not count.
    in_time = sum(one.began + one.seconds <= answers[0].began + seconds for one in good)
    share = in_time / seconds / rate
    report.timed("good throughput", f"{share:.0%} of R, at least 90 %", share >= 0.9)
    report.at_most("refusals' p99", load.quantile(refused, 0.99), 0.1)
    silent = [one for one in refused if int(one.headers.get("retry-after", 0)) < 1]
    report.check("refusals without Retry-After", len(silent), bool(refused) and not silent)
    others = len(answers) - len(good) - len(refused)
    report.check("neither 200 nor 503", others, not others)
    report.at_most("slowest answer with a text", load.quantile(good, 1.0), 2.0)
    quiet = await tier.until_quiet(10.0)
    report.check("10 s after", quiet, quiet == "all given back")
    after_rate, after = await rated(tier, lab.pick(1.5, 4))
    ratio = load.quantile(after, 0.95) / load.quantile(before, 0.95)
    report.timed("p95 afterwards", f"{ratio:.2f} times that before, at most 1.5", ratio <= 1.5)
    report.timed("throughput afterwards", f"{after_rate:.1f}/s", after_rate >= 0.9 * rate)


ROWS = (
    Row(
        "disconnects",
        "500 requests at 1.5 R, 30 % of which disconnect and 20 % of which are past their deadline",
        "live inferences <= gate at every sample; all slots back",
        disconnects,
    ),
    Row(
        "mixed",
        "2,000 requests at 1.2 R, faults in front of the primary and between the tiers",
        "each connected caller gets exactly one of 200/4xx/429/502/503/504 by its deadline + 1 s",
        mixed,
    ),
    Row(
        "overload",
        f"{OVERLOAD} R, whatever becomes of it",
        "good throughput >= 90 % of R; refusals' p99 < 0.1 s with Retry-After; normal 10 s after",
        overload,
    ),
)
