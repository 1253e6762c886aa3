"""A call may be cancelled at any time: it ends as cancelled, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import os
import random
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from fakes import PATIENCE, Reply, ScriptedFallback
from fakes import error as refusal
from running import until
from stt_sdk import (
    AttemptFinished,
    Event,
    RequestFinished,
    RequestStarted,
    Retried,
    STTClient,
    Transcription,
)
from stt_sdk._within import within
from test_sdk_errors import black_hole
from tones import wav

Scripted = Callable[..., ScriptedFallback]
CLIP = wav()


class Stage:
    """Where a call is when it is cancelled: it comes as far as that, and no further."""

    def __init__(self, scripted: Scripted, folder: Path, name: str) -> None:
        replies = {
            "waiting for the answer": [Reply(holds=threading.Event())],
            "reading the answer": [Reply(fault="drip")],
            "waiting before a retry": [refusal(503, "overloaded", **{"Retry-After": "10"})],
        }
        self.name = name
        self.server = scripted(*replies.get(name, []), Reply())
        self.source: Any = CLIP
        self.reached = asyncio.Event()
        if name == "waiting for the source":
            self.source = self._silent()
        if name == "waiting for a pipe":
            self.source = folder / "fifo"
            os.mkfifo(self.source)

    async def _silent(self) -> AsyncIterator[bytes]:
        yield CLIP
        self.reached.set()
        await asyncio.Event().wait()

    def hook(self, event: Event) -> None:
        if isinstance(event, RequestStarted if self.name == "waiting for a pipe" else Retried):
            self.reached.set()

    async def come(self) -> None:
        if self.name == "waiting for the answer":
            await asyncio.to_thread(self.server.wait_for, 1)
        elif self.name == "reading the answer":
            await asyncio.to_thread(until, lambda: self.server.dripping > 0, "it drips")
        else:
            await within(PATIENCE, self.reached.wait())
        for _ in range(100):
            await asyncio.sleep(0)


@pytest.mark.parametrize(
    "name",
    [
        "waiting for the source",
        "waiting for a pipe",
        "waiting for the answer",
        "reading the answer",
        "waiting before a retry",
    ],
)
def test_a_cancellation_arrives_in_every_stage_and_the_next_call_succeeds(
    scripted: Scripted, tmp_path: Path, name: str
) -> None:
    events: list[Event] = []

    async def scenario() -> None:
        stage = Stage(scripted, tmp_path, name)
        async with STTClient(stage.server.url, telemetry=[events.append, stage.hook]) as stt:
            call = asyncio.ensure_future(stt.transcribe(stage.source))
            await stage.come()
            assert not call.done()
            call.cancel()
            await asyncio.wait({call}, timeout=PATIENCE)
            assert call.cancelled()
            last = events[-1]
            assert isinstance(last, RequestFinished)
            assert isinstance(last.error, asyncio.CancelledError)
            assert last.result is None
            assert stt.stats.count == 0
            assert (await stt.transcribe(CLIP)).text == "from the fallback"
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(scenario())
    attempts = [event for event in events if isinstance(event, AttemptFinished)]
    assert len(attempts) == (2 if name == "waiting before a retry" else 1)


def test_a_cancellation_arrives_while_connecting() -> None:
    async def scenario() -> None:
        with black_hole() as url:
            async with STTClient(url) as stt:
                call = asyncio.ensure_future(stt.transcribe(CLIP))
                for _ in range(100):
                    await asyncio.sleep(0)
                call.cancel()
                await asyncio.wait({call}, timeout=PATIENCE)
                assert call.cancelled()
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(scenario())


def test_a_cancellation_that_comes_with_the_deadline_or_the_answer_is_not_swallowed(
    scripted: Scripted,
) -> None:
    server = scripted()

    async def scenario() -> Counter[str]:
        ends: Counter[str] = Counter()
        loop = asyncio.get_running_loop()
        async with STTClient(server.url) as stt:
            for number in range(300):
                call = asyncio.ensure_future(stt.transcribe(CLIP, deadline=0.005))
                went_away = False

                def go_away(call: asyncio.Future[Transcription] = call) -> None:
                    nonlocal went_away
                    went_away = call.cancel()

                loop.call_later(number / 300 * 0.007, go_away)
                await asyncio.wait({call})
                if went_away:
                    assert call.cancelled()
                how = "error" if not call.cancelled() and call.exception() else "ok"
                ends["cancelled" if call.cancelled() else how] += 1
        return ends

    assert set(asyncio.run(scenario())) > {"cancelled"}


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_after_many_cancelled_calls_all_good_ones_succeed_and_nothing_is_left(
    scripted: Scripted, request: pytest.FixtureRequest
) -> None:
    cancelled = request.config.getoption("--cancelled-client-calls")
    chance = random.Random(4)
    hold = threading.Event()
    held: list[Reply] = [Reply(), Reply(holds=hold), Reply(fault="drip")]
    server = scripted(Reply(), *chance.choices(held, k=10 * cancelled))

    async def stream() -> AsyncIterator[bytes]:
        for _ in range(3):
            await asyncio.sleep(0)
            yield CLIP

    async def scenario() -> None:
        async with STTClient(server.url) as stt:
            await stt.transcribe(CLIP)  # what is opened once is open
            before = descriptors()

            async def call_and_go_away() -> None:
                asked = len(server.asked)
                call = asyncio.ensure_future(
                    stt.transcribe(stream() if chance.random() < 0.5 else CLIP)
                )
                if chance.random() < 0.5:
                    for _ in range(chance.randrange(40)):
                        await asyncio.sleep(0)
                else:
                    await asyncio.to_thread(server.wait_for, asked + 1)
                went_away = call.cancel()
                await asyncio.wait({call}, timeout=PATIENCE)
                assert call.cancelled() is went_away

            for _ in range(0, cancelled, 50):
                await asyncio.gather(*[call_and_go_away() for _ in range(50)])
            assert asyncio.all_tasks() == {asyncio.current_task()}

            hold.set()
            server.replies = [Reply()]
            good = await asyncio.gather(*[stt.transcribe(CLIP) for _ in range(100)])
            assert [result.text for result in good] == ["from the fallback"] * 100
            assert asyncio.all_tasks() == {asyncio.current_task()}
        await asyncio.to_thread(
            until, lambda: descriptors() <= before, "every connection is closed on both sides"
        )

    asyncio.run(scenario())
