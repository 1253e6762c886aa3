"""Many clips: a few at a time, each as it is done, and none takes another one along."""

from __future__ import annotations

import asyncio
import gc
import io
import itertools
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from fakes import PATIENCE, FakeEngine, Reply, ScriptedFallback
from fakes import error as refusal
from running import Tiers
from stt_sdk import (
    Clip,
    InvalidAudioError,
    InvalidRequestError,
    Outcome,
    OverloadedError,
    STTClient,
    Transcription,
)
from stt_sdk._many import Sources, outcomes
from tones import wav

Scripted = Callable[..., ScriptedFallback]
CLIP = wav()


class Work:
    """Stands in for calls: each runs until it is let go, in any order."""

    def __init__(self) -> None:
        self.running: dict[bytes, asyncio.Future[Transcription]] = {}
        self.most = 0
        self.cancelled: list[bytes] = []

    async def __call__(self, clip: Clip) -> Transcription:
        assert isinstance(clip.source, bytes)
        self.running[clip.source] = asyncio.get_running_loop().create_future()
        self.most = max(self.most, len(self.running))
        try:
            return await self.running[clip.source]
        except asyncio.CancelledError:
            self.cancelled.append(clip.source)
            raise
        finally:
            del self.running[clip.source]

    def end(self, source: bytes) -> None:
        self.running[source].set_result(Transcription.from_json(ANSWER))

    def fail(self, source: bytes, error: Exception) -> None:
        self.running[source].set_exception(error)


ANSWER: dict[str, Any] = {
    **{"text": "t", "language": "en", "language_probability": None, "duration": 1},
    **{"speech_duration": 1, "model": "m", "request_id": "r", "segments": []},
    "confidence": {"logprob": None, "weakest": None, "words": 0},
    "routing": {
        **{"tier": "primary", "fallback_used": False, "reason": "accepted"},
        **{"below": [], "degraded": False},
    },
    "timings_ms": dict.fromkeys(("queue_wait", "primary_infer", "fallback_infer", "total")),
}


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


def numbers(taken: list[int], most: int = 1_000_000) -> Iterator[bytes]:
    for number in range(most):
        taken.append(number)
        yield str(number).encode()


def test_no_more_run_at_once_than_asked_for_and_no_source_is_taken_before_there_is_room() -> None:
    async def scenario() -> None:
        work, taken = Work(), list[int]()
        found = outcomes(numbers(taken), work, 3)
        first = asyncio.ensure_future(anext(found))
        await settle()
        assert taken == [0, 1, 2] == sorted(map(int, work.running))
        work.end(b"1")
        assert (await first).index == 1
        await settle()
        assert taken == [0, 1, 2]  # nobody wants more yet
        following = asyncio.ensure_future(anext(found))
        await settle()
        assert taken == [0, 1, 2, 3]
        work.end(b"3")
        assert (await following).index == 3
        await found.aclose()
        assert work.most == 3
        assert taken == [0, 1, 2, 3]

    asyncio.run(scenario())


def test_outcomes_come_as_calls_end_and_say_which_source_it_was() -> None:
    async def scenario() -> None:
        work = Work()
        sources: list[Any] = [b"a", Clip(b"b", "de"), b"c"]
        async with aclosing(outcomes(sources, work, 10)) as found:
            first = asyncio.ensure_future(anext(found))
            await settle()
            for name in (b"c", b"b"):
                work.end(name)
                await settle()
            ended = [await first, await anext(found)]
            work.end(b"a")
            ended.append(await anext(found))
            assert await anext(found, None) is None
        assert [outcome.index for outcome in ended] == [2, 1, 0]
        assert [outcome.source for outcome in ended] == sources[::-1]

    asyncio.run(scenario())


def test_a_slow_source_holds_up_no_outcome_and_an_asynchronous_one_is_taken_in_turn() -> None:
    async def scenario() -> None:
        work, go_on = Work(), asyncio.Event()
        taken = []

        async def slow() -> AsyncIterator[bytes]:
            for name in (b"a", b"b"):
                taken.append(name)
                yield name
                await go_on.wait()

        async with aclosing(outcomes(slow(), work, 4)) as found:
            first = asyncio.ensure_future(anext(found))
            await settle()
            assert taken == [b"a"]
            work.end(b"a")
            assert (await first).source == b"a"
            second = asyncio.ensure_future(anext(found))
            await settle()
            assert not second.done()
            go_on.set()
            await settle()
            work.end(b"b")
            assert (await second).source == b"b"
            assert await anext(found, None) is None

    asyncio.run(scenario())


@pytest.mark.parametrize("kind", ["plain", "asynchronous"])
def test_if_the_sources_break_off_those_before_are_done_first(kind: str) -> None:
    def plain() -> Iterator[bytes]:
        yield from (b"a", b"b")
        raise ZeroDivisionError("the list is broken")

    async def asynchronous() -> AsyncIterator[bytes]:
        for each in plain():
            yield each

    async def scenario() -> None:
        work = Work()
        sources: Sources = plain() if kind == "plain" else asynchronous()
        async with aclosing(outcomes(sources, work, 4)) as found:
            first = asyncio.ensure_future(anext(found))
            await settle()
            work.end(b"b")
            assert (await first).source == b"b"
            work.end(b"a")
            assert (await anext(found)).source == b"a"
            with pytest.raises(ZeroDivisionError, match="the list is broken"):
                await anext(found)

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "error",
    [OSError("gone"), ValueError("wrong"), ZeroDivisionError("of the source's"), KeyError("x")],
)
def test_one_bad_clip_leaves_the_others_whatever_is_wrong(error: Exception) -> None:
    async def scenario() -> None:
        work = Work()
        async with aclosing(outcomes([b"a", b"b"], work, 2)) as found:
            first = asyncio.ensure_future(anext(found))
            await settle()
            work.fail(b"a", error)
            bad = await first
            assert bad.error is bad.value is error
            with pytest.raises(type(error)):
                _ = bad.result
            work.end(b"b")
            good = await anext(found)
            assert (good.error, good.result.text) == (None, "t")

    asyncio.run(scenario())


def test_a_clip_whose_source_was_cancelled_cancels_nobody_else() -> None:
    async def scenario() -> None:
        work = Work()
        async with aclosing(outcomes([b"a", b"b"], work, 2)) as found:
            first = asyncio.ensure_future(anext(found))
            await settle()
            work.running[b"a"].cancel()
            assert isinstance((await first).error, RuntimeError)
            work.end(b"b")
            assert (await anext(found)).result.text == "t"

    asyncio.run(scenario())


def test_who_stops_early_cancels_what_runs() -> None:
    async def scenario() -> None:
        work, taken = Work(), list[int]()
        async with aclosing(outcomes(numbers(taken), work, 5)) as found:
            first = asyncio.ensure_future(anext(found))
            await settle()
            work.end(b"2")
            await first
        assert sorted(work.cancelled) == [b"0", b"1", b"3", b"4"]
        assert asyncio.all_tasks() == {asyncio.current_task()}
        assert len(taken) == 5

    asyncio.run(scenario())


def test_who_is_cancelled_cancels_what_runs_and_what_is_being_taken() -> None:
    async def scenario() -> None:
        work, closed = Work(), False

        async def never() -> AsyncIterator[bytes]:
            nonlocal closed
            yield b"a"
            try:
                await asyncio.Event().wait()
            finally:
                closed = True

        async def consume() -> None:
            async for _ in outcomes(never(), work, 2):
                pass

        consumer = asyncio.ensure_future(consume())
        await settle()
        assert list(work.running) == [b"a"]
        consumer.cancel()
        await asyncio.wait({consumer}, timeout=PATIENCE)
        assert consumer.cancelled()
        assert work.cancelled == [b"a"]
        assert closed
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(scenario())


def test_a_plain_iterable_is_iterated_where_the_loop_runs() -> None:
    """It may use the loop, and so it must not wait for long."""

    async def scenario() -> None:
        here = asyncio.get_running_loop()

        def plain() -> Iterator[bytes]:
            assert asyncio.get_running_loop() is here
            yield b"a"

        work = Work()
        async with aclosing(outcomes(plain(), work, 1)) as found:
            first = asyncio.ensure_future(anext(found))
            await settle()
            work.end(b"a")
            assert (await first).source == b"a"

    asyncio.run(scenario())


# Through the client


def run(server: Any, sources: Any, *, concurrency: int = 4, **options: Any) -> list[Outcome]:
    async def scenario() -> list[Outcome]:
        async with STTClient(server.url, retries=0) as stt:
            found = stt.transcribe_many(sources, concurrency=concurrency, **options)
            return sorted([each async for each in found], key=lambda each: each.index)

    return asyncio.run(scenario())


def test_the_clips_of_a_folder_each_become_a_text_or_the_reason_why_not(
    tiers: Tiers, tmp_path: Path
) -> None:
    good, bad, missing = tmp_path / "a.wav", tmp_path / "b.wav", tmp_path / "c.wav"
    good.write_bytes(CLIP)
    bad.write_bytes(b"no audio")
    found = run(tiers.fallback(), [good, bad, missing, CLIP, 5, Clip(CLIP, "xx")])
    assert [type(each.error) for each in found] == [
        *[type(None), InvalidAudioError, FileNotFoundError, type(None)],
        *[TypeError, InvalidRequestError],
    ]
    assert [each.source for each in found[:3]] == [good, bad, missing]
    assert found[0].result.text == found[3].result.text == "from the fallback"


def test_options_hold_for_all_clips_but_those_that_have_their_own(scripted: Scripted) -> None:
    server = scripted()
    clips = [
        Clip(CLIP),
        Clip(CLIP, "fr", "Anne"),
        Clip(CLIP, "", ""),  # detect, and no prompt
    ]
    run(server, clips, concurrency=1, language="de", prompt="Otto", task="translate", deadline=9)
    asked = [(each.parts["language"], each.parts["prompt"]) for each in server.asked]
    assert asked == [(b"de", b"Otto"), (b"fr", b"Anne"), (b"", b"")]
    assert {each.parts["task"] for each in server.asked} == {b"translate"}
    assert all(int(each.headers["x-deadline-ms"]) < 9000 for each in server.asked)


def test_a_service_that_refuses_all_is_asked_once_for_each(scripted: Scripted) -> None:
    server = scripted(refusal(503, "overloaded"))
    found = run(server, [CLIP] * 10)
    assert [type(each.error) for each in found] == [OverloadedError] * 10
    assert len(server.asked) == 10


def test_no_more_calls_reach_the_service_at_once(tiers: Tiers) -> None:
    engine = FakeEngine("from the fallback")
    found = run(tiers.fallback(engine, max_concurrency=4), [CLIP] * 20, concurrency=2)
    assert len(found) == 20
    assert engine.most_live <= 2


def test_an_endless_list_of_clips_is_taken_as_it_is_worked_on(scripted: Scripted) -> None:
    server = scripted()
    endless = itertools.count()

    async def scenario() -> None:
        async with STTClient(server.url) as stt:
            clips = (str(number).encode() for number in endless)
            async for outcome in stt.transcribe_many(clips, concurrency=3):
                if outcome.index >= 50:
                    break
            for _ in range(1000):  # the loop closes what was left, in a moment
                if len(asyncio.all_tasks()) == 1:
                    break
                gc.collect()
                await asyncio.sleep(0)
            assert asyncio.all_tasks() == {asyncio.current_task()}
            assert (await stt.transcribe(CLIP)).text == "from the fallback"

    asyncio.run(scenario())
    assert next(endless) < 60


def test_what_is_left_when_one_stops_is_cancelled_at_the_service_too(scripted: Scripted) -> None:
    hold = threading.Event()
    server = scripted(Reply(), Reply(holds=hold))

    async def scenario() -> None:
        async with STTClient(server.url) as stt:
            async with aclosing(stt.transcribe_many([CLIP] * 10, concurrency=3)) as found:
                await anext(found)
                rest = asyncio.ensure_future(anext(found))
                await asyncio.to_thread(server.wait_for, 4)
                rest.cancel()
                await asyncio.wait({rest})
            assert asyncio.all_tasks() == {asyncio.current_task()}
        hold.set()

    asyncio.run(scenario())
    assert len(server.asked) == 4


@pytest.mark.parametrize(
    "one", ["clip.wav", Path("clip.wav"), CLIP, bytearray(CLIP), io.BytesIO(CLIP)]
)
def test_a_single_clip_is_not_taken_for_a_list_of_letters(scripted: Scripted, one: Any) -> None:
    with pytest.raises(TypeError, match="this is one clip; transcribe_many takes several"):
        run(scripted(), one)


def test_less_than_one_at_a_time_is_refused(scripted: Scripted) -> None:
    for concurrency in (0, -1):
        with pytest.raises(ValueError, match="concurrency must be at least 1"):
            run(scripted(), [CLIP], concurrency=concurrency)


def test_of_no_clips_there_are_no_outcomes(scripted: Scripted) -> None:
    assert run(scripted(), []) == []
