"""Shadows alone: what is drawn, and what they must not touch. Real sockets, virtual time."""

from __future__ import annotations

import asyncio
import random
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from fakes import PATIENCE, Clock, Reply, ScriptedFallback, answer_of_fallback, error
from running import primary_config
from stt_cascade.admission.deadline import Deadline
from stt_cascade.admission.keys import Secrets
from stt_cascade.answer import Answer
from stt_cascade.cascade import fallback_client
from stt_cascade.cascade.breaker import FAILURES_TO_OPEN
from stt_cascade.cascade.fallback_answer import FallbackError
from stt_cascade.cascade.fallback_client import SPARED_S, FallbackClient
from stt_cascade.cascade.shadow import AT_ONCE, Shadows
from stt_cascade.engine.protocol import Options
from stt_cascade.record import Record
from stt_cascade.upload import Upload
from stt_sdk._within import within

Scripted = Callable[..., ScriptedFallback]
UPLOAD = Upload(b"clip" * 1000, raw_g722=False, options=Options())
ACCEPTED = Answer.model_validate(answer_of_fallback("an accepted text"))


class Shadowing:
    """Shadows, their client and its clock; `ended` counts what became of them."""

    def __init__(self, client: FallbackClient, clock: Clock, rate: float, seed: int) -> None:
        self.client = client
        self.clock = clock
        self.ended: Counter[str] = Counter()
        self._idle = asyncio.Event()
        self.shadows = Shadows(
            primary_config(fallback_url="http://f", shadow_rate=rate),
            client,
            busy=lambda: False,
            ended=self._end,
            differed=lambda ratio: None,
            chance=random.Random(seed),
        )

    def draw(self) -> bool:
        """Whether the next clip is drawn. It is not sent."""
        before = self.shadows.held + self.ended["skipped"]
        self.shadows.draw(UPLOAD, ACCEPTED)
        return self.shadows.held + self.ended["skipped"] > before

    def begin(self) -> None:
        """An accepted clip whose answer has gone out."""
        self.shadows.draw(UPLOAD, ACCEPTED)()

    def _end(self, result: str) -> None:
        self.ended[result] += 1
        if not self.shadows.held:
            self._idle.set()

    async def all_ended(self) -> None:
        if self.shadows.held:
            self._idle.clear()
            await within(PATIENCE, self._idle.wait())

    async def ask(self, seconds: float = 20) -> str:
        """A call that somebody waits for."""
        return (await self.client.ask(UPLOAD, Record("id", "/", "t"), Deadline(seconds))).text


@asynccontextmanager
async def shadowing(
    url: str, rate: float = 1, seed: int = 1, **settings: Any
) -> AsyncIterator[Shadowing]:
    config = primary_config(fallback_url=url, **settings)
    clock = Clock()
    async with FallbackClient(config, Secrets(config), clock=clock) as client:
        shadowing = Shadowing(client, clock, rate, seed)
        try:
            yield shadowing
        finally:
            await shadowing.shadows.close()


async def came(fallback: ScriptedFallback, calls: int) -> None:
    await asyncio.to_thread(fallback.wait_for, calls)


@pytest.mark.parametrize("rate", [0, 0.05, 0.5, 1])
def test_the_share_is_drawn_and_a_seed_draws_the_same_again(nobody: str, rate: float) -> None:
    async def drawn(seed: int) -> list[bool]:
        async with shadowing(nobody, rate, seed) as shadows:
            return [shadows.draw() for _ in range(2000)]

    first, again, other = (asyncio.run(drawn(seed)) for seed in (1, 1, 2))
    assert sum(first) == pytest.approx(2000 * rate, abs=90)  # four standard deviations
    assert first == again
    assert (first == other) is (rate in (0, 1))


def test_no_caller_knows_whether_a_clip_is_drawn(nobody: str) -> None:
    """The same clip in a request of the same name, again and again."""

    async def drawn() -> set[bool]:
        async with shadowing(nobody, 0.5) as shadows:
            return {shadows.draw() for _ in range(100)}

    assert asyncio.run(drawn()) == {True, False}


def test_no_failure_opens_the_breaker_or_is_tried_again_or_spends_the_retry_budget(
    scripted: Scripted,
) -> None:
    busy = error(503, "overloaded", **{"Retry-After": "0"})
    shadows = 4 * FAILURES_TO_OPEN
    replies = [busy, error(500, "internal")] * (shadows // 2)
    fallback = scripted(*replies, busy, Reply())

    async def scenario() -> None:
        async with shadowing(fallback.url) as shadowed:
            for number in range(shadows):
                shadowed.begin()
                await shadowed.all_ended()
                assert len(fallback.asked) == number + 1
                shadowed.clock.now += SPARED_S
            assert shadowed.ended == {"failed": shadows // 2, "skipped": shadows // 2}
            assert (shadowed.client.breaker.state, shadowed.client.breaker.failures) == (
                "closed",
                0,
            )
            assert (
                await shadowed.ask() == "from the fallback"
            )  # after a retry, which there still is

    asyncio.run(scenario())
    assert len(fallback.asked) == shadows + 2


def test_a_success_hides_no_failures_from_the_breaker(scripted: Scripted) -> None:
    fail = error(500, "internal")
    fallback = scripted(*[fail, Reply()] * FAILURES_TO_OPEN)

    async def scenario() -> None:
        async with shadowing(fallback.url) as shadowed:
            for _ in range(FAILURES_TO_OPEN):
                with pytest.raises(FallbackError):
                    await shadowed.ask()
                shadowed.clock.now += SPARED_S
                shadowed.begin()
                await shadowed.all_ended()
            assert shadowed.client.breaker.state == "open"
            assert shadowed.ended == {"compared": FAILURES_TO_OPEN - 1, "skipped": 1}

    asyncio.run(scenario())


def test_none_takes_a_place_from_a_call_that_somebody_waits_for(
    scripted: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fallback_client, "MAX_CALLS", 1)
    fallback = scripted(*[Reply(holds=threading.Event())] * AT_ONCE, Reply())

    async def scenario() -> None:
        async with shadowing(fallback.url) as shadowed:
            for _ in range(AT_ONCE):
                shadowed.begin()
            await came(fallback, AT_ONCE)
            assert await shadowed.ask() == "from the fallback"

    asyncio.run(scenario())


def test_after_a_failure_the_fallback_is_spared_for_a_while(scripted: Scripted) -> None:
    fallback = scripted(error(500, "internal"), Reply())

    async def scenario() -> None:
        async with shadowing(fallback.url) as shadowed:
            shadowed.begin()
            await shadowed.all_ended()
            shadowed.clock.now += SPARED_S - 1
            assert shadowed.draw()
            assert shadowed.ended == {"failed": 1, "skipped": 1}
            shadowed.clock.now += 1
            shadowed.begin()
            await shadowed.all_ended()
            assert shadowed.ended == {"failed": 1, "skipped": 1, "compared": 1}

    asyncio.run(scenario())


@pytest.mark.parametrize("begun", [False, True], ids=["before it begins", "under way"])
def test_a_stop_ends_them_at_once_and_no_new_one_begins(scripted: Scripted, begun: bool) -> None:
    fallback = scripted(Reply(holds=threading.Event()))

    async def scenario() -> None:
        async with shadowing(fallback.url, fallback_timeout_s=600) as shadowed:
            late = shadowed.shadows.draw(UPLOAD, ACCEPTED)
            shadowed.begin()
            if begun:
                await came(fallback, 1)
            shadowed.shadows.drain()
            late()
            await shadowed.all_ended()
            shadowed.begin()
            assert shadowed.shadows.held == 0
            assert shadowed.ended == {"skipped": 3}

    asyncio.run(scenario())
    assert len(fallback.asked) == begun


def test_many_that_were_given_up_anywhere_leave_no_task_and_no_connection(
    scripted: Scripted, request: pytest.FixtureRequest
) -> None:
    """Before it begins, connecting, sending, waiting for the answer, reading or comparing it."""
    given_up = request.config.getoption("--cancelled-calls")
    chance = random.Random(5)
    kinds = [Reply(), Reply(fault="silence"), Reply(fault="drip")]
    fallback = scripted(*chance.choices(kinds, k=given_up + 1))

    async def scenario() -> None:
        tasks = len(asyncio.all_tasks())
        async with shadowing(fallback.url) as shadowed:
            for _ in range(given_up):
                shadowed.begin()
                if chance.random() < 0.5:
                    for _ in range(chance.randrange(40)):
                        await asyncio.sleep(0)
                else:
                    await asyncio.sleep(chance.uniform(0, 0.02))
                shadowed.shadows.give_way()
                await shadowed.all_ended()
            assert len(asyncio.all_tasks()) == tasks
            assert sum(shadowed.ended.values()) == given_up
            assert shadowed.ended["failed"] == 0
            fallback.replies = [Reply()]
            for number in range(100):
                shadowed.begin()
                await shadowed.all_ended()
                assert shadowed.ended["compared"] > number

    asyncio.run(scenario())
