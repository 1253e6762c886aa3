"""Several primaries behind the Envoy of deploy/envoy/envoy.yaml, and callers without an SDK."""

from __future__ import annotations

import asyncio
import shutil
import signal
from collections import Counter
from collections.abc import Sequence

from faults import balancer, load
from faults.calls import half, logged, primaries
from faults.lab import Lab, until
from faults.pool import BEARABLE, EQUAL, SLOW
from faults.report import Report, Row
from faults.stub import SLOTS, Stub
from faults.tiers import Tier

# More than a row lasts.
LONG_S = 600.0
# Some of the clips are larger than what Envoy reads ahead, and than what a primary decodes quickly.
LARGE = load.CLIP + bytes(3 * 512 * 1024)
LARGE_EACH = 50
FIELDS = ("request_id", "client", "status", "bytes_received", "bytes_sent", "duration_ms")
# Enough to keep the fast ones busy whatever the slow one does.
CALLERS = 12 * SLOTS
# Of each kind of slow caller; fewer than MAX_UPLOADS, so that others find room for theirs.
AT_ONCE = 20
CLOSED_S = 10.0
IDLE_S = 62.0


def numbered(number: int) -> bytes:
    """A whole request with an id of its own."""
    audio = LARGE if number % LARGE_EACH == LARGE_EACH - 1 else load.CLIP
    body = load.part("audio", audio, "clip.wav") + load.END
    return load.request(body, load.FORM, f"X-Req-Id: {_id(number)}")


def _id(number: int) -> str:
    return f"envoy-{number}"


async def envoy_rolling(lab: Lab, report: Report) -> None:
    if _lacks(report):
        return
    tiers = await primaries(lab, *[EQUAL] * 3)
    front = await lab.balancer(tiers)
    # In short it runs beside other tests, and a stop shall not find a queue that these have made.
    rate, over = await half(tiers) * lab.pick(0.5, 1), asyncio.Event()
    calling = asyncio.create_task(
        load.open_loop(
            front.port, numbered, rate=rate, seconds=LONG_S, until=over.is_set, tls=front.client
        )
    )
    await asyncio.sleep(1.0)
    restarts = 0
    for tier in tiers * lab.count(1, 2):
        tier.process.send_signal(signal.SIGTERM)
        await tier.process.wait()
        await tier.start()
        restarts += 1
        # Whoever rolls out waits for this, too.
        await front.until_healthy(len(tiers))
    since = Counter(_served(tiers))
    await asyncio.sleep(lab.pick(2, 5))
    over.set()
    answers = await calling
    stats = await front.stats()
    report.note(
        f"{rate:.1f} calls a second without retries of their own, {restarts} restarts: "
        f"{load.told(load.statuses(answers))}; Envoy sent "
        f"{stats.get('envoy_cluster_upstream_rq_retry', 0):.0f} of them again"
    )
    _all_answered(report, answers)
    _answered_once(report, tiers)
    now = Counter(_served(tiers))
    served = [now[tier.port] - since[tier.port] for tier in tiers]
    report.check("afterwards all take part", ", ".join(map(str, served)), all(served))
    await until(lambda: len(front.lines) >= len(answers), patience=5.0)
    lines = [line for line in front.lines if line.get("path") == "/v1/transcribe"]
    told = sum(all(name in line for name in FIELDS) for line in lines)
    figure = f"{told} lines for {len(answers)} calls"
    report.check("access log", figure, told == len(lines) == len(answers))


async def envoy_skew(lab: Lab, report: Report) -> None:
    if _lacks(report):
        return
    slower = Stub(SLOW * EQUAL.seconds)
    tiers = await primaries(lab, slower, EQUAL, EQUAL)
    least = await lab.balancer(tiers)
    turns = await lab.balancer(tiers, lb_policy="ROUND_ROBIN")
    rate = BEARABLE * 3 * SLOTS / slower.seconds
    seconds = lab.pick(3, 20, 60)
    offered: dict[str, list[load.Answer]] = {"least request": [], "round robin": []}
    pushed: dict[str, list[load.Answer]] = {"least request": [], "round robin": []}
    on_slow: Counter[str] = Counter()
    for turn in range(2):  # in turns: other work of the machine meets both
        for name, front in (("least request", least), ("round robin", turns)):
            before = tiers[0].counts.begun
            offered[name] += await load.open_loop(
                front.port, load.upload(), rate=rate, seconds=seconds, tls=front.client, seed=turn
            )
            on_slow[name] += tiers[0].counts.begun - before
            pushed[name] += await load.closed_loop(
                front.port, load.upload(), callers=CALLERS, seconds=seconds / 2, tls=front.client
            )
    rates = {name: _rate(answers, seconds / 2) for name, answers in pushed.items()}
    for name, answers in offered.items():
        p50, p99 = load.quantile(answers, 0.5), load.quantile(answers, 0.99)
        report.note(
            f"{name}: {load.told(load.statuses(answers))} at {rate:.1f} a second; "
            f"p50 {p50:.3f} s, p99 {p99:.3f} s; {on_slow[name] / len(answers):.0%} of them on the "
            f"slow host; {CALLERS} callers who never wait get {rates[name]:.1f} a second"
        )
        _all_answered(report, answers)
    tails = {name: load.quantile(answers, 0.99) for name, answers in offered.items()}
    ratio = tails["round robin"] / tails["least request"]
    report.timed("p99 of round robin", f"{ratio:.1f} times least request's, at least 2", ratio >= 2)
    more = rates["least request"] / rates["round robin"]
    figure = f"{more:.1f} times round robin's, at least 1.5"
    report.timed("throughput of least request", figure, more >= 1.5)


async def envoy_slow(lab: Lab, report: Report) -> None:
    if _lacks(report):
        return
    (tier,) = await primaries(lab, EQUAL)
    front = await lab.balancer([tier])
    whole = numbered(0)
    kinds = {
        "no handshake": (b"", None),
        "half headers": (whole[:40], front.client),
        "half bodies": (whole[: len(whole) // 2], front.client),
        "idle": (b"", front.client),
    }
    over = asyncio.Event()
    others = asyncio.create_task(
        load.open_loop(
            front.port, numbered, rate=5.0, seconds=LONG_S, until=over.is_set, tls=front.client
        )
    )

    async def hold(kind: str) -> list[load.Answer]:
        sent, tls = kinds[kind]
        calls = [load.call(front.port, sent, tls=tls, patience=2 * IDLE_S) for _ in range(AT_ONCE)]
        return list(await asyncio.gather(*calls))

    held = dict(zip(kinds, await asyncio.gather(*map(hold, kinds)), strict=True))
    over.set()
    for kind, answers in held.items():
        expected = {"408"} if kind.startswith("half") else {"closed"}
        got = load.statuses(answers)
        report.check(kind, load.told(got), set(got) == expected)
        slowest = max(one.seconds for one in answers)
        report.at_most(f"{kind}, gone after", slowest, IDLE_S if kind == "idle" else CLOSED_S)
    _all_answered(report, await others)


def _lacks(report: Report) -> bool:
    report.missing = balancer.missing() or ("" if shutil.which("openssl") else "openssl")
    return bool(report.missing)


def _served(tiers: Sequence[Tier]) -> dict[int, int]:
    return {tier.port: sum(status == 200 for _, status in logged([tier])) for tier in tiers}


def _rate(answers: Sequence[load.Answer], seconds: float) -> float:
    """Of two turns of so many seconds."""
    return sum(one.status == 200 for one in answers) / (2 * seconds)


def _all_answered(report: Report, answers: Sequence[load.Answer]) -> None:
    failed = [one for one in answers if one.status != 200]
    report.check("failed requests", f"{len(failed)} of {len(answers)}", not failed)
    for one in failed[:3]:
        report.note(f"{one.status} {one.how} {one.body[:200]!r}")


def _answered_once(report: Report, tiers: Sequence[Tier]) -> None:
    answers = Counter(id_ for id_, status in logged(tiers) if status == 200)
    twice = sum(number > 1 for id_, number in answers.items() if id_.startswith("envoy-"))
    report.check("answered with a text by two hosts", twice, not twice)


ROWS = (
    Row(
        "envoy-rolling",
        "three primaries at half load behind Envoy, callers that never try again; SIGTERM to one, "
        "start it again when it has ended, then the next",
        "0 failed requests",
        envoy_rolling,
        usual=False,
    ),
    Row(
        "envoy-skew",
        f"the same, one of which is {SLOW} times slower; round robin over the same ones",
        "p99 at least 2 times better than round robin's, throughput at least 1.5 times",
        envoy_skew,
        short=False,
        usual=False,
    ),
    Row(
        "envoy-slow",
        "20 each of callers who begin no TLS, send half of the headers or of the body, or nothing",
        "gone by 10 s, idle ones by 62 s; others untouched",
        envoy_slow,
        short=False,
        usual=False,
    ),
)
