"""Load: so many callers at once, or so many calls a second, and what became of each call.

A closed loop asks for the most that a service gives; an open loop for how it fares with callers
who do not wait for each other. In an open loop a call's time runs from the moment at which it was
due, so that a service that stalls cannot hide the calls it kept from being made ("coordinated
omission").
"""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from stt_sdk import (
    AudioTooLongError,
    InvalidAudioError,
    PayloadTooLargeError,
    STTClient,
    STTError,
    Transcription,
)

# How often the service is asked for its own figures.
SAMPLE_S = 0.25
# A generator that is later than this at its 99th percentile measures itself.
MOST_LAG_S = 0.010
# How long somebody who wants to end it waits for the next call to be due.
STOP_S = 0.2
WARM_UP_CALLERS = 2
# Only its name tells what it is.
RAW = ".g722"
# Calls that fail without any text, and not for their files' sake, before nothing more is tried.
MOST_FAILURES = 8
OF_THE_FILE = (OSError, InvalidAudioError, AudioTooLongError, PayloadTooLargeError)


@dataclass(frozen=True)
class Call:
    """One call.

    Attributes:
        due: seconds from the step's beginning to the moment at which it should be made.
        began: to the moment at which it was.
        ended: to its answer.
        result: its text, or why there is none.
    """

    due: float
    began: float
    ended: float
    result: Transcription | STTError

    @property
    def seconds(self) -> float:
        """What its caller waited."""
        return self.ended - self.due

    @property
    def lag(self) -> float:
        return self.began - self.due


@dataclass(frozen=True)
class Step:
    """One level of load.

    Attributes:
        kind: `closed`: `level` callers; `open`: `level` calls a second on average.
        seconds: for which calls were made.
        snapshots: of the service's JSON, while it lasted; none, if it would not give them.
    """

    kind: Literal["closed", "open"]
    level: float
    seconds: float
    calls: Sequence[Call]
    snapshots: Sequence[dict[str, Any]] = ()


Take = Callable[[Call], None]


@dataclass
class Generator:
    """Makes the load.

    Args:
        client: without retries, so that refusals are seen.
        clips: audio files, as bytes where these say what they are; they are sent in turn.
        deadline: seconds, of each call.
        stop: whether to end early.
        seed: of the arrivals.
        figures: who may read the service's own figures, if not `client`.
    """

    client: STTClient
    clips: Sequence[bytes | Path]
    deadline: float
    stop: Callable[[], bool] = lambda: False
    seed: int = 1
    figures: STTClient | None = None
    _next: Iterator[bytes | Path] = field(init=False)

    def __post_init__(self) -> None:
        self._next = itertools.cycle(self.clips)

    async def closed(self, callers: int, seconds: float, take: Take) -> float:
        """So many callers, each of whom calls again as soon as it has its answer.

        Args:
            take: gets each call as it ends.

        Returns:
            seconds for which calls were made.
        """
        began = time.monotonic()

        async def one() -> None:
            while (due := time.monotonic() - began) < seconds and not self.stop():
                take(await self._call(began, due))

        await asyncio.gather(*(one() for _ in range(callers)))
        return min(seconds, time.monotonic() - began)

    async def open(self, rate: float, seconds: float, take: Take) -> float:
        """Poisson arrivals, whatever becomes of the calls before; else as `closed`."""
        tasks: set[asyncio.Task[None]] = set()
        began = time.monotonic()

        async def one(due: float) -> None:
            take(await self._call(began, due))

        for due in arrivals(rate, seconds, random.Random(self.seed)):
            await self._sleep_until(began + due)
            if self.stop():
                break
            task = asyncio.ensure_future(one(due))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        lasted = min(seconds, time.monotonic() - began)
        await asyncio.gather(*tasks)
        return lasted

    async def _sleep_until(self, moment: float) -> None:
        while (left := moment - time.monotonic()) > 0 and not self.stop():  # noqa: ASYNC110  # who stops it sets no event here
            await asyncio.sleep(min(left, STOP_S))

    async def _call(self, origin: float, due: float) -> Call:
        began = time.monotonic() - origin
        result: Transcription | STTError
        try:
            result = await self.client.transcribe(next(self._next), deadline=self.deadline)
        except STTError as error:
            result = error
        return Call(due, began, time.monotonic() - origin, result)


async def step(
    generator: Generator,
    kind: Literal["closed", "open"],
    level: float,
    seconds: float,
    say: Callable[[int], None] = lambda count: None,
) -> Step:
    """Make one level of load.

    Args:
        level: callers, or calls a second.
        say: is told after each call how many there have been.
    """
    calls: list[Call] = []

    def take(call: Call) -> None:
        calls.append(call)
        say(len(calls))

    async with Watch(generator.figures or generator.client, SAMPLE_S) as watch:
        if kind == "closed":
            lasted = await generator.closed(int(level), seconds, take)
        else:
            lasted = await generator.open(level, seconds, take)
    return Step(kind, level, lasted, calls, watch.snapshots)


class Watch:
    """Takes the service's snapshot again and again, while it is entered.

    Args:
        interval: seconds between two.
        see: is told of each, besides; of an empty one, where there was none.

    Attributes:
        snapshots: all of them; none, if the service would not give them.
    """

    def __init__(
        self,
        client: STTClient,
        interval: float,
        see: Callable[[dict[str, Any]], None] = lambda snapshot: None,
    ) -> None:
        self.snapshots: list[dict[str, Any]] = []
        self._client = client
        self._interval = interval
        self._see = see

    async def __aenter__(self) -> Watch:
        await self._look()
        self._task = asyncio.ensure_future(self._again_and_again())
        return self

    async def __aexit__(self, *error: object) -> None:
        self._task.cancel()
        await asyncio.wait({self._task})
        await self._look()

    async def _again_and_again(self) -> None:
        while True:
            await asyncio.sleep(self._interval)
            await self._look()

    async def _look(self) -> None:
        snapshot: dict[str, Any] = {}
        with suppress(STTError):  # without them the report says less, and says so
            snapshot = await self._client.metrics()
            self.snapshots.append(snapshot)
        self._see(snapshot)


def arrivals(rate: float, seconds: float, rng: random.Random) -> Iterator[float]:
    """Moments of a Poisson process: independent callers, so many a second on average."""
    at = rng.expovariate(rate)
    while at < seconds:
        yield at
        at += rng.expovariate(rate)


@dataclass(frozen=True)
class Chosen:
    """Clips to send.

    Attributes:
        clips: as `Generator` takes them.
        failed: files that gave no text, and are left out.
        last: why the last of them did not.
    """

    clips: Sequence[bytes | Path]
    failed: int
    last: Exception | None


async def choose_clips(
    client: STTClient,
    files: Sequence[Path],
    lengths: tuple[float, float],
    most: int,
    *,
    deadline: float,
    seed: int,
    stop: Callable[[], bool] = lambda: False,
) -> Chosen:
    """At most so many of the files.

    Each is sent once, which tells its length and warms the service up. What fails is left out.
    They are chosen by lot, whenever they are answered: the slow ones are those that count.

    Args:
        lengths: the shortest and the longest, s.
        deadline: seconds, of each call.
        stop: whether to end early.

    Raises:
        STTError: the service gave no text of any file, and not for their sake.
    """
    shuffled = random.Random(seed).sample(files, len(files))
    fits: dict[int, bool] = {}  # of the files that were answered
    chosen: list[bytes | Path] = []
    texts = failed = in_vain = settled = 0
    last: Exception | None = None
    asked = client.transcribe_many(shuffled, concurrency=WARM_UP_CALLERS, deadline=deadline)
    async with aclosing(asked):
        async for outcome in asked:
            if outcome.error is not None:
                failed, last = failed + 1, outcome.error
                in_vain += not isinstance(last, OF_THE_FILE)
                fits[outcome.index] = False
            else:
                texts += 1
                fits[outcome.index] = lengths[0] <= outcome.result.duration <= lengths[1]
            while settled in fits and len(chosen) < most:
                if fits[settled]:
                    file = shuffled[settled]
                    chosen.append(file if file.suffix.lower() == RAW else file.read_bytes())
                settled += 1
            if stop() or len(chosen) == most or (in_vain >= MOST_FAILURES and not texts):
                break
    if in_vain and not texts and isinstance(last, STTError):
        raise last
    return Chosen(chosen, failed, last)
