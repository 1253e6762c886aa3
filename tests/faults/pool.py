"""Several primaries behind the SDK's pool: killed, restarted, busy, slow; and callers who leave."""

from __future__ import annotations

import asyncio
import os
import signal
from collections import Counter
from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

from faults import load, procfs
from faults.calls import (
    Call,
    ask,
    half,
    logged,
    offer,
    pool_of,
    primaries,
    quantile,
    through,
    told,
    url,
)
from faults.lab import Lab, until
from faults.report import Report, Row
from faults.stub import SLOTS, Stub
from faults.tiers import Tier
from stt_sdk import STTClient, STTPool

OUT_S, BACK_S = 2.0, 5.0
LEAST_SHARE = 0.995
EQUAL = Stub()
SLOW = 5  # times slower
# Of what a slow host can take, when each of three gets as much.
BEARABLE = 0.95
# The pool gives it at most so much of that.
LEAST_RELIEF = 0.7
BUSY_RATE = 50.0
AT_ONCE = 20
MIB = 1024 * 1024


async def pool_kill(lab: Lab, report: Report) -> None:
    tiers = await primaries(lab, *[EQUAL] * 3)
    victim, clock, over = tiers[0], asyncio.get_running_loop().time, asyncio.Event()
    rate = await half(tiers)
    inferred = -sum(tier.counts.begun for tier in tiers)
    async with pool_of(tiers) as pool:
        calling = asyncio.create_task(offer(through(pool), rate=rate, until=over.is_set))
        await asyncio.sleep(lab.pick(1, 3))
        os.kill(victim.pid, signal.SIGKILL)
        killed = clock()
        out = await until(lambda: state(pool, victim) != "well")
        out_after = clock() - killed
        await victim.process.wait()
        await asyncio.sleep(lab.pick(2, 5))
        inferred += victim.counts.begun  # it begins to count anew
        victim.counts.write(0, 0, 0)
        await victim.start()
        returned = clock()
        back = await until(lambda: state(pool, victim) == "well")
        back_after = clock() - returned
        await asyncio.sleep(lab.pick(2, 5))
        over.set()
        calls = await calling
    inferred += sum(tier.counts.begun for tier in tiers)
    report.note(f"{rate:.1f} calls a second to three primaries, one of them killed: {told(calls)}")
    _succeed(report, calls, LEAST_SHARE)
    moved = [call for call in calls if call.attempts > 1]
    report.note(
        f"{len(moved)} calls went on to another host; {inferred - len(calls)} inferred again"
    )
    answered_once(report, calls, tiers)
    report.check("the dead host is out", out, out)
    report.at_most("out after", out_after, OUT_S)
    report.check("and back", back, back)
    report.at_most("back after its return", back_after, BACK_S)
    again = [call for call in calls if call.host == url(victim) and call.began > returned]
    report.check("calls that it answers again", len(again), bool(again))


async def pool_rolling(lab: Lab, report: Report) -> None:
    tiers = await primaries(lab, *[EQUAL] * 3)
    rate, over = await half(tiers), asyncio.Event()
    async with pool_of(tiers) as pool:
        calling = asyncio.create_task(offer(through(pool), rate=rate, until=over.is_set))
        await asyncio.sleep(1.0)
        restarts = 0
        for tier in tiers * lab.count(1, 2):
            tier.process.send_signal(signal.SIGTERM)
            await tier.process.wait()
            await tier.start()
            restarts += 1
        began = asyncio.get_running_loop().time()
        await asyncio.sleep(lab.pick(2, 5))
        over.set()
        calls = await calling
    report.note(f"{rate:.1f} calls a second, {restarts} restarts: {told(calls)}")
    _succeed(report, calls, 1.0)
    moved = sum(call.attempts > 1 for call in calls)
    report.note(f"{moved} calls went on to another host")
    answered_once(report, calls, tiers)
    since = Counter(call.host for call in calls if call.began > began)
    figure = ", ".join(str(since[url(tier)]) for tier in tiers)
    report.check("afterwards all take part", figure, all(since[url(tier)] for tier in tiers))


async def pool_busy(lab: Lab, report: Report) -> None:
    settings: dict[str, Any] = {"MAX_QUEUE": 0, "REQUEST_TIMEOUT_S": 3000, "INFER_TIMEOUT_S": 3000}
    tiers = await primaries(lab, *[Stub(seconds=3600)] * 3, **settings)
    holding = [
        asyncio.create_task(load.call(tier.port, load.upload(), patience=3000))
        for tier in tiers
        for _ in range(SLOTS)
    ]
    await until(lambda: all(tier.counts.live == SLOTS for tier in tiers))
    seconds = lab.pick(4, 10, 60)
    async with pool_of(tiers) as pool:
        calls = await offer(through(pool), rate=BUSY_RATE, seconds=seconds)
    attempts, most = len(list(logged(tiers))), int(1.2 * len(calls)) + 3
    report.note(f"all say 503 for {seconds:g} s, {BUSY_RATE:g} calls a second: {told(calls)}")
    figure = f"{attempts} for {len(calls)} calls, at most {most}"
    report.check("attempts", figure, len(calls) <= attempts <= most)
    wrong = sum(call.how != "OverloadedError" for call in calls)
    report.check("calls that do not say so", wrong, not wrong)

    stuck, *others = tiers
    before = len(list(logged([stuck])))
    for tier in others:
        await tier.close()
    free = await primaries(lab, EQUAL, EQUAL)
    async with pool_of([stuck, *free]) as pool:
        calls = await offer(through(pool), rate=await half(free), seconds=seconds)
    asked = len(list(logged([stuck]))) - before
    report.note(f"one of three says 503: {told(calls)}; it is asked {asked} times")
    _succeed(report, calls, LEAST_SHARE)
    for one in holding:
        one.cancel()
    await asyncio.gather(*holding, return_exceptions=True)


async def pool_skew(lab: Lab, report: Report) -> None:
    slower = Stub(SLOW * EQUAL.seconds)
    tiers = await primaries(lab, slower, EQUAL, EQUAL)
    slow = url(tiers[0])
    rate = BEARABLE * 3 * SLOTS / slower.seconds
    seconds = lab.pick(3, 20, 60)
    ours: list[Call] = []
    theirs: list[Call] = []
    peers = [STTClient(url(tier), timeout=load.PATIENCE_S, retries=0) for tier in tiers]
    turn = cycle(peers)

    def round_robin(id_: str) -> Any:
        return next(turn).transcribe(load.CLIP, request_id=id_)

    async with pool_of(tiers) as pool:
        for seed in range(2):  # in turns: other work of the machine meets both
            ours += await offer(through(pool), rate=rate, seconds=seconds, seed=seed)
            theirs += await offer(round_robin, rate=rate, seconds=seconds, seed=seed)
    for peer in peers:
        await peer.aclose()
    for name, calls in (("the pool", ours), ("round robin", theirs)):
        p50, p99 = quantile(calls, 0.5), quantile(calls, 0.99)
        on_slow = sum(call.host == slow for call in calls) / len(calls)
        report.note(
            f"{name}: {told(calls)} at {rate:.1f} a second; p50 {p50:.3f} s, p99 {p99:.3f} s; "
            f"{on_slow:.0%} of them on the slow host"
        )
        _succeed(report, calls, 1.0)
    ratio = quantile(theirs, 0.99) / quantile(ours, 0.99)
    report.timed("p99 of round robin", f"{ratio:.1f} times the pool's, at least 2", ratio >= 2)
    shares = [sum(call.host == slow for call in calls) / len(calls) for calls in (ours, theirs)]
    figure = f"{shares[0]:.0%} of {shares[1]:.0%}, at most {LEAST_RELIEF:.0%} of that"
    report.check("calls on the slow host", figure, shares[0] <= LEAST_RELIEF * shares[1])


async def pool_cancel(lab: Lab, report: Report) -> None:
    tiers = await primaries(lab, *[EQUAL] * 3)
    number, chance = lab.count(300, 1000), load.seeded(3)
    large = lab.folder / "large.wav"
    large.write_bytes(load.CLIP + bytes(2 * MIB))  # read while it is sent
    clips: list[bytes | Path] = [load.CLIP, large]
    tasks, descriptors = len(asyncio.all_tasks()), procfs.descriptors(os.getpid())

    async def give_up(pool: STTPool) -> str:
        call = asyncio.ensure_future(pool.transcribe(chance.choice(clips)))
        await asyncio.wait({call}, timeout=chance.uniform(0, 2 * EQUAL.seconds))
        call.cancel()
        await asyncio.wait({call})
        return "cancelled" if call.cancelled() else "ended before"

    async with pool_of(tiers) as pool:
        ends: Counter[str] = Counter()
        for _ in range(number // AT_ONCE):
            ends.update(await asyncio.gather(*(give_up(pool) for _ in range(AT_ONCE))))
        quiet = [await tier.until_quiet() for tier in tiers]
        good: list[Call] = []
        for _ in range(10):
            good += await asyncio.gather(*(ask(through(pool)) for _ in range(10)))
        working = sum(host.calls for host in pool.hosts)
    report.note(f"{load.told(dict(sorted(ends.items())))}; then {told(good)}")
    _succeed(report, good, 1.0)
    report.check("slots, places and queues", set(quiet), set(quiet) == {"all given back"})
    report.check("calls under way in the pool's books", working, not working)
    await until(lambda: len(asyncio.all_tasks()) <= tasks, patience=5.0)
    left = len(asyncio.all_tasks()) - tasks
    report.check("tasks left", left, left <= 0)
    await until(lambda: procfs.descriptors(os.getpid()) <= descriptors, patience=5.0)
    left = procfs.descriptors(os.getpid()) - descriptors
    report.check("descriptors left, connections and files", left, left <= 0)


def state(pool: STTPool, tier: Tier) -> str:
    return next(host.state for host in pool.hosts if host.url == url(tier))


def _succeed(report: Report, calls: Sequence[Call], least: float) -> None:
    share = sum(call.how == "ok" for call in calls) / len(calls)
    report.check("succeed", f"{share:.2%} of {len(calls)}, at least {least:.1%}", share >= least)
    for call in [call for call in calls if call.how != "ok"][:3]:
        report.note(str(call.answer))


def answered_once(report: Report, calls: Sequence[Call], tiers: Sequence[Tier]) -> None:
    """That no call has two answers, and no caller the answer to another call."""
    ids = {call.id for call in calls}
    answers = Counter(id_ for id_, status in logged(tiers) if status == 200 and id_ in ids)
    twice = sum(number > 1 for number in answers.values())
    report.check("answered with a text by two hosts", twice, not twice)
    mixed = sum(
        call.how == "ok" and getattr(call.answer, "request_id", "") != call.id for call in calls
    )
    report.check("callers with somebody else's answer", mixed, not mixed)


ROWS = (
    Row(
        "pool-kill",
        "three primaries at half load through the SDK's pool; kill -9 one, start it again",
        ">= 99.5 % of calls succeed, none is answered twice; out in <= 2 s, back <= 5 s after",
        pool_kill,
    ),
    Row(
        "pool-rolling",
        "the same; SIGTERM to one, start it again when it has ended, then the next",
        "0 failed calls",
        pool_rolling,
    ),
    Row(
        "pool-busy",
        "three primaries that answer 503 to all; then one of three",
        "attempts <= 1.2 x calls + 3; with one that does, >= 99.5 % of calls succeed",
        pool_busy,
    ),
    Row(
        "pool-skew",
        f"three primaries, one of which is {SLOW} times slower; round robin over the same ones",
        "p99 at least 2 times better than round robin's",
        pool_skew,
        short=False,
    ),
    Row(
        "pool-cancel",
        "1,000 calls through the pool that are cancelled on their way, then 100 good ones",
        "all of these succeed; no connection, task or descriptor is left",
        pool_cancel,
    ),
)
