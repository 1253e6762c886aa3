"""Long clips, window by window: nobody waits behind a whole file, and nothing is lost."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from structlog.testing import capture_logs

from fakes import PATIENCE, FakeEngine
from stt_cascade.admission.deadline import Deadline
from stt_cascade.admission.slots import Slots
from stt_cascade.cascade.recognise import recognise
from stt_cascade.config import FallbackConfig
from stt_cascade.engine.loading import load_whisper, threads_for
from stt_cascade.engine.protocol import SAMPLE_RATE, Clip, Options, Samples, Span, Utterance
from stt_cascade.engine.transcript import Transcript
from stt_sdk._within import within


def clip(*seconds: float) -> Clip:
    """Stretches of speech of these lengths, too far apart to share a window."""
    spans, at = [], 0
    for length in seconds:
        spans.append(Span(at, at + round(length * SAMPLE_RATE)))
        at = spans[-1].end + 5 * SAMPLE_RATE
    return Clip(np.zeros(at, np.float32), tuple(spans))


def ask(engine: FakeEngine, slots: Slots, audio: Clip) -> Coroutine[Any, Any, Transcript]:
    return recognise(engine, audio, Options(), slots, Deadline(PATIENCE), lambda seconds: None)


class Stepwise(FakeEngine):
    """An engine whose inferences each end when the test says so."""

    def __init__(self) -> None:
        super().__init__()
        self.steps = threading.Semaphore(0)

    def transcribe(self, samples: Samples, options: Options) -> Utterance:
        utterance = super().transcribe(samples, options)
        assert self.steps.acquire(timeout=PATIENCE)
        return utterance


async def begun(engine: FakeEngine, calls: int) -> None:
    await asyncio.get_running_loop().run_in_executor(None, engine.wait_for, calls)


async def queued(slots: Slots) -> None:
    while not slots.depth:  # noqa: ASYNC110  # nothing announces it
        await asyncio.sleep(0)


def lengths(engine: FakeEngine) -> list[float]:
    return [heard.duration for heard, _ in engine.heard]


def test_a_short_clip_comes_between_the_windows_of_a_long_one() -> None:
    async def scenario() -> None:
        engine, slots = Stepwise(), Slots("test", 1, 8)
        long = asyncio.ensure_future(ask(engine, slots, clip(20, 21, 22)))
        await begun(engine, 1)
        short = asyncio.ensure_future(ask(engine, slots, clip(2)))
        await within(PATIENCE, queued(slots))
        for _ in range(4):
            engine.steps.release()
        await within(PATIENCE, asyncio.gather(long, short))
        assert lengths(engine) == [20, 2, 21, 22]
        slots.close()

    asyncio.run(scenario())


def test_a_caller_that_goes_away_costs_no_further_window() -> None:
    async def scenario() -> None:
        engine, slots = Stepwise(), Slots("test", 1, 8)
        long = asyncio.ensure_future(ask(engine, slots, clip(20, 21, 22)))
        await begun(engine, 1)
        long.cancel()
        with pytest.raises(asyncio.CancelledError):
            await long
        assert slots.in_flight == 1  # the inference that runs keeps its slot
        engine.steps.release(2)
        await within(PATIENCE, ask(engine, slots, clip(3)))
        assert lengths(engine) == [20, 3]
        assert slots.in_flight == 0
        slots.close()

    asyncio.run(scenario())


def test_windows_after_the_first_are_heard_side_by_side_in_its_language() -> None:
    async def scenario() -> None:
        engine, slots = Stepwise(), Slots("test", 2, 0)
        long = asyncio.ensure_future(ask(engine, slots, clip(20, 21, 22)))
        await begun(engine, 1)
        engine.steps.release()
        await begun(engine, 3)
        assert slots.in_flight == 2
        engine.steps.release(2)
        transcript = await within(PATIENCE, long)
        assert [options.language for _, options in engine.heard] == [None, "en", "en"]
        assert [segment.start for segment in transcript.segments] == [0, 25, 51]
        slots.close()

    asyncio.run(scenario())


def test_a_long_clip_in_work_is_not_refused_by_a_full_queue_or_a_drain() -> None:
    async def scenario() -> None:
        engine, slots = Stepwise(), Slots("test", 1, 0)
        long = asyncio.ensure_future(ask(engine, slots, clip(20, 21)))
        await begun(engine, 1)
        slots.drain()
        engine.steps.release(2)
        transcript = await within(PATIENCE, long)
        assert len(transcript.segments) == 2
        slots.close()

    asyncio.run(scenario())


def test_windows_after_the_first_are_decoded_in_batches_shared_by_the_slots() -> None:
    class Batches(FakeEngine):
        def __init__(self) -> None:
            super().__init__()
            self.batches: list[int] = []

        def decode(self, encodings: Sequence[Samples], options: Options) -> list[Utterance]:
            self.batches.append(len(encodings))
            return super().decode(encodings, options)

    async def batches(slots: int, windows: int) -> list[int]:
        engine, gate = Batches(), Slots("test", slots, 0)
        transcript = await ask(engine, gate, clip(*range(10, 10 + windows)))
        gate.close()
        starts = [segment.start for segment in transcript.segments]
        assert starts == sorted(starts)
        assert len(starts) == windows
        return engine.batches

    assert asyncio.run(batches(1, 1)) == [1]
    assert asyncio.run(batches(1, 2)) == [1, 1]
    assert asyncio.run(batches(1, 8)) == [1, 4, 3]
    assert asyncio.run(batches(2, 5)) == [1, 2, 2]


def test_second_tries_are_counted() -> None:
    async def scenario() -> tuple[int, int]:
        slots = Slots("test", 2, 0)
        transcript = await ask(FakeEngine(full_context=True, doubted=True), slots, clip(20, 21, 22))
        slots.close()
        return transcript.full_context_retries, transcript.second_looks

    assert asyncio.run(scenario()) == (3, 3)


def test_an_engine_that_breaks_in_a_later_window_fails_the_clip() -> None:
    class Breaks(FakeEngine):
        def transcribe(self, samples: Samples, options: Options) -> Utterance:
            if len(samples) == 21 * SAMPLE_RATE:
                raise RuntimeError("out of memory")
            return super().transcribe(samples, options)

    async def scenario() -> None:
        slots = Slots("test", 2, 0)
        with pytest.raises(RuntimeError, match="out of memory"):
            await ask(Breaks(), slots, clip(20, 21, 22))
        slots.close()

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("device", "cores", "workers", "threads"),
    [("cpu", 2, 2, 1), ("cpu", 8, 2, 4), ("cpu", 2, 4, 1), ("cuda", 16, 2, 2)],
)
def test_threads_share_the_cores(device: str, cores: int, workers: int, threads: int) -> None:
    assert threads_for(device, cores, workers) == threads


def test_more_threads_than_cores_are_warned_of() -> None:
    config = FallbackConfig(
        model_path=Path("nowhere"), device="cpu", cpu_threads=64, max_concurrency=64
    )
    with capture_logs() as logs, pytest.raises(FileNotFoundError):
        load_whisper(config)
    (line,) = logs
    assert (line["log_level"], line["cpu_threads"]) == ("warning", 64)
