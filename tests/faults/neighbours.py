"""Two keys: one attacks with many connections, and the other wants its clips to be heard."""

from __future__ import annotations

import asyncio
import itertools
import statistics
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass

from faults import load
from faults.files import long_opus, tiny_frames
from faults.lab import Lab
from faults.report import Report, Row
from faults.stub import Stub
from faults.tiers import Tier
from tones import voice, wav

HOSTILE = 40
SLOWED = 3.0
# One inference, whatever was said: as Whisper base takes it for a window of 30 s on two cores.
WINDOW_S = 1.0
# For each caller; a body may come no more slowly than 1 KiB/s.
DRIP_BYTES_PER_S = 1300
LEAVES_AFTER_S = 0.1
KEYS = {"theirs": "key-of-the-hostile-one", "ours": "key-of-the-other-one"}
SHORT, LONG = wav(voice(2.0)), wav(voice(30.0))
# Between an attacker's attacks: who is refused could else send so much that this process, on the
# same processor, would be what slows the others down.
AT_LEAST_S = 0.5
BEGUN_S = 1.5  # by then the attack is under way

Attack = Callable[[int, int], Awaitable[object]]


def upload(key: str, audio: bytes, *headers: str) -> bytes:
    body = load.part("audio", audio, "clip.wav") + load.END
    return load.request(body, load.FORM, f"Authorization: Bearer {KEYS[key]}", *headers)


def sends(audio: bytes) -> Attack:
    """Again and again the same file."""
    sent = upload("theirs", audio)

    async def attack(port: int, number: int) -> object:
        return await load.call(port, sent)

    return attack


def leaves(audio: bytes) -> Attack:
    """Sends and goes away, with a deadline that is over by then."""
    sent = upload("theirs", audio, f"X-Deadline-Ms: {round(LEAVES_AFTER_S * 1000)}")

    async def attack(port: int, number: int) -> object:
        return await load.call(port, sent, leaves_after=LEAVES_AFTER_S)

    return attack


async def drips(port: int, number: int) -> object:
    """Announces a file, and sends it as slowly as it may."""
    sent = upload("theirs", SHORT)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    answered = asyncio.ensure_future(reader.read(1))
    try:
        writer.write(sent[:1000])
        for at in range(1000, len(sent), DRIP_BYTES_PER_S // 4):
            writer.write(sent[at : at + DRIP_BYTES_PER_S // 4])
            await asyncio.wait({answered}, timeout=0.25)
            if answered.done():
                break
        return answered.done()
    finally:
        answered.cancel()
        with suppress(ConnectionError, asyncio.CancelledError):
            await answered
        writer.transport.abort()


def mixed(attacks: dict[str, Attack]) -> Attack:
    """A share of the callers does each."""
    each = list(attacks.values())

    async def attack(port: int, number: int) -> object:
        return await each[number % len(each)](port, number)

    return attack


def attacks() -> dict[str, Attack]:
    bomb = long_opus(598)
    found: dict[str, Attack] = {
        "drips": drips,
        "silence of 598 s in Opus": sends(bomb),
        "frames of one sample": sends(tiny_frames()),
        "clips of 30 s": sends(LONG),
        "callers who leave": leaves(bomb),
    }
    return {**found, "all of these": mixed(found)}


@dataclass(frozen=True)
class Heard:
    """How the other key's clips fared."""

    answers: list[load.Answer]

    @property
    def median(self) -> float:
        return statistics.median(one.seconds for one in self.answers)

    @property
    def all(self) -> bool:
        return all(one.status == 200 for one in self.answers)

    def __str__(self) -> str:
        return f"{load.told(load.statuses(self.answers))}, median {self.median:.3f} s"


async def heard(port: int, seconds: float) -> Heard:
    """The other key's clips, one after the other."""
    return Heard(await load.closed_loop(port, upload("ours", SHORT), callers=1, seconds=seconds))


async def under(attack: Attack, port: int, seconds: float) -> Heard:
    """The same while others attack, each as soon as its last attack has ended."""
    numbers = itertools.count()

    async def hostile() -> None:
        number = next(numbers)
        while True:
            pause = asyncio.ensure_future(asyncio.sleep(AT_LEAST_S))
            with suppress(OSError):
                await attack(port, number)
            await pause

    running = [asyncio.ensure_future(hostile()) for _ in range(HOSTILE)]
    try:
        await asyncio.sleep(BEGUN_S)
        return await heard(port, seconds)
    finally:
        for one in running:
            one.cancel()
        await asyncio.gather(*running, return_exceptions=True)


async def neighbours(lab: Lab, report: Report) -> None:
    tier = await lab.primary(
        Stub(seconds=WINDOW_S), VAD="on", API_KEYS=",".join(KEYS.values()), REQUEST_TIMEOUT_S=20
    )
    kinds = attacks()
    if lab.size == "short":
        kinds = {name: kinds[name] for name in ("drips", "all of these")}
    await tried(tier, report, lab.pick(3, 8, 20), kinds)


async def tried(tier: Tier, report: Report, seconds: float, kinds: dict[str, Attack]) -> None:
    """Each attack, and what it does to the other key."""
    await heard(tier.port, 1.0)  # what is begun with the first clips
    alone = await heard(tier.port, seconds)
    report.check("alone", alone, alone.all)
    limit = max(SLOWED * alone.median, alone.median + WINDOW_S)
    for name, attack in kinds.items():
        other = await under(attack, tier.port, seconds)
        report.check(name, other, other.all)
        report.timed(
            f"{name}, median",
            f"{other.median / alone.median:.1f} x alone",
            other.median <= limit,
        )
        quiet = await tier.until_quiet()
        report.check(f"{name}, afterwards", quiet, quiet == "all given back")


ROWS = (
    Row(
        "neighbours",
        f"{HOSTILE} connections of one key: dripping bodies, tiny bombs, long clips, all of them",
        "another key's clips all succeed; median <= 3 x alone, or alone + a window's inference",
        neighbours,
    ),
)
