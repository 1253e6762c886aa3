"""Failures in a row are the clips' or the engine's; the warm-up clip tells which."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from fakes import PATIENCE, BrokenEngine, FakeEngine
from running import until
from stt_cascade.engine.proof import Proven
from stt_cascade.engine.protocol import Options, Samples, Utterance
from tones import tone

CUDA = RuntimeError("CUDA failed with error out of memory")
CLIP, OPTIONS = tone(1.0), Options()


def hear(engine: Proven) -> list[Utterance]:
    return engine.decode([engine.encode(CLIP)], OPTIONS)


def fail(engine: Proven, times: int) -> None:
    for _ in range(times):
        with pytest.raises(RuntimeError):
            hear(engine)


def test_an_engine_that_fails_on_its_warm_up_clip_too_is_broken() -> None:
    engine = Proven(BrokenEngine(raises=CUDA), 3)
    fail(engine, 2)
    assert engine.broken_seconds == 0
    fail(engine, 1)
    assert engine.broken_seconds > 0


def test_clips_alone_never_break_an_engine() -> None:
    engine = Proven(FakeEngine(raises=CUDA), 3)
    fail(engine, 20)
    assert engine.broken_seconds == 0


def test_the_engine_is_tried_once_for_so_many_failures_in_a_row() -> None:
    tried = []

    class Watched(FakeEngine):
        def warm_up(self) -> None:
            tried.append(len(self.heard))

    fake = Watched(raises=CUDA)
    engine = Proven(fake, 3)
    fail(engine, 7)
    assert tried == [3, 6]
    fake.raises = None
    hear(engine)
    fake.raises = CUDA
    fail(engine, 2)
    assert tried == [3, 6]


def test_what_works_in_between_is_no_failure_in_a_row() -> None:
    fake = BrokenEngine()
    engine = Proven(fake, 2)
    for _ in range(5):
        fake.raises = CUDA
        fail(engine, 1)
        fake.raises = None
        hear(engine)
    assert engine.broken_seconds == 0


def test_an_encoding_is_no_text() -> None:
    """A long clip's windows are encoded and decoded in steps of their own."""
    engine = Proven(BrokenEngine(raises=CUDA), 3)
    for _ in range(3):
        encoding = engine.encode(CLIP)
        with pytest.raises(RuntimeError):
            engine.decode([encoding], OPTIONS)
    assert engine.broken_seconds > 0


def test_a_broken_engine_that_gives_a_text_works_again() -> None:
    fake = BrokenEngine(raises=CUDA)
    engine = Proven(fake, 2)
    fail(engine, 2)
    fake.raises = None
    hear(engine)
    assert engine.broken_seconds == 0
    fake.raises = CUDA
    fail(engine, 1)
    assert engine.broken_seconds == 0
    fail(engine, 1)
    assert engine.broken_seconds > 0


def test_each_failure_is_told() -> None:
    told: list[None] = []
    engine = Proven(FakeEngine(raises=CUDA), 100, lambda: told.append(None))
    fail(engine, 7)
    assert len(told) == 7


def test_clips_that_hold_the_memory_do_not_break_an_engine() -> None:
    """While one of them is being worked on the warm-up clip fails too; alone it succeeds."""
    held, let_go = threading.Event(), threading.Event()

    class Full(FakeEngine):
        full = False

        def warm_up(self) -> None:
            if self.full:
                raise CUDA

        def transcribe(self, samples: Samples, options: Options) -> Utterance:
            if options.prompt == "large":
                self.full = True
                held.set()
                assert let_go.wait(PATIENCE)
                self.full = False
            raise CUDA

    engine = Proven(Full(), 3)
    with ThreadPoolExecutor(3) as threads:
        large = threads.submit(engine.decode, [CLIP], Options(prompt="large"))
        assert held.wait(PATIENCE)
        others = threads.submit(fail, engine, 3)
        until(lambda: engine._on_trial, "it is to be tried alone")
        newcomer = threads.submit(fail, engine, 1)
        assert not others.done()
        let_go.set()
        others.result(PATIENCE)
        newcomer.result(PATIENCE)
        assert isinstance(large.exception(PATIENCE), RuntimeError)
    assert engine.broken_seconds == 0


def test_many_threads_at_once_find_an_engine_broken_once() -> None:
    engine = Proven(BrokenEngine(raises=CUDA), 3)
    with ThreadPoolExecutor(8) as threads:
        for done in [threads.submit(fail, engine, 10) for _ in range(8)]:
            done.result(PATIENCE)
    assert engine.broken_seconds > 0
