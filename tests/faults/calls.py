"""Calls through the SDK, and the primaries that get them."""

from __future__ import annotations

import asyncio
import json
import math
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import count
from typing import Any

from faults import load
from faults.lab import Lab, rated
from faults.stub import Stub
from faults.tiers import Tier
from stt_sdk import STTError, STTPool, Transcription

DEADLINE_S = 10.0
Ask = Callable[[str], Any]  # makes the call with that request id


@dataclass(frozen=True)
class Call:
    """What a caller got.

    Attributes:
        how: `ok`, or the error's class.
        began: on the event loop's clock.
    """

    id: str
    how: str
    seconds: float
    began: float
    host: str
    attempts: int
    answer: Transcription | STTError


async def primaries(lab: Lab, *stubs: Stub, **settings: Any) -> list[Tier]:
    """One for each stub."""
    # A machine that has other things to do for a moment is not what these rows are about.
    settings = {"MAX_QUEUE": 1000, **settings}
    return list(await asyncio.gather(*(lab.primary(stub, **settings) for stub in stubs)))


def url(tier: Tier) -> str:
    return f"http://127.0.0.1:{tier.port}"


@asynccontextmanager
async def pool_of(tiers: Sequence[Tier], **options: Any) -> AsyncIterator[STTPool]:
    async with STTPool([url(tier) for tier in tiers], timeout=DEADLINE_S, **options) as pool:
        yield pool


async def half(tiers: Sequence[Tier]) -> float:
    """Half of the calls a second that all of them sustain together."""
    rate, _ = await rated(tiers[0], 1.0)
    return rate * len(tiers) / 2


_IDS = count()


async def ask(transcribe: Ask) -> Call:
    """One call with an id of its own."""
    clock = asyncio.get_running_loop().time
    id_, began = f"call-{next(_IDS)}", clock()
    answer: Transcription | STTError
    try:
        answer = await transcribe(id_)
    except STTError as error:
        answer = error
    how = "ok" if isinstance(answer, Transcription) else type(answer).__name__
    return Call(id_, how, clock() - began, began, answer.host, answer.attempts, answer)


def through(pool: STTPool, clip: bytes = load.CLIP) -> Ask:
    return lambda id_: pool.transcribe(clip, request_id=id_)


async def offer(
    transcribe: Ask,
    *,
    rate: float,
    seconds: float = math.inf,
    until: Callable[[], bool] = lambda: False,
    seed: int = 1,
) -> list[Call]:
    """Calls at random moments, so many a second, whatever becomes of those before."""
    clock = asyncio.get_running_loop().time
    chance = random.Random(seed)
    due = clock()
    end = due + seconds
    calls: list[asyncio.Task[Call]] = []
    while due < end and not until():
        await asyncio.sleep(max(0.0, due - clock()))
        calls.append(asyncio.create_task(ask(transcribe)))
        due += chance.expovariate(rate)
    return list(await asyncio.gather(*calls))


def told(calls: Sequence[Call]) -> str:
    return load.told(dict(sorted(Counter(call.how for call in calls).items())))


def quantile(calls: Sequence[Call], share: float) -> float:
    """Seconds within which that share of the calls was over."""
    ordered = sorted(call.seconds for call in calls)
    return ordered[math.ceil(share * len(ordered)) - 1]


def logged(tiers: Sequence[Tier]) -> Iterator[tuple[str, int]]:
    """The request id and status of each upload that the services have answered."""
    for tier in tiers:
        for line in tier.log.read_text(errors="replace").splitlines():
            if line.startswith("{"):
                said = json.loads(line)
                if said.get("path") == "/v1/transcribe" and "status" in said:
                    yield said["request_id"], said["status"]
