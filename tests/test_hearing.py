"""From upload to clip: short clips pass large files, and a service leaves no process behind."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from fakes import PATIENCE, FakeEngine
from faults.files import long_opus
from running import RunningTier, fallback_config, until
from stt_cascade.admission.deadline import Deadline
from stt_cascade.audio import decoders
from stt_cascade.audio.decoders import Decoders
from stt_cascade.cascade import hearing as hearing_module
from stt_cascade.cascade.hearing import LARGE_BYTES, DecoderPools, Hearing
from stt_cascade.engine.protocol import SAMPLE_RATE, Options, Samples, Span
from stt_cascade.errors import DeadlineExceeded
from stt_cascade.upload import Upload
from tones import silence, tone, wav


@pytest.fixture
def pools() -> Iterator[DecoderPools]:
    """One process a lane."""
    pools = DecoderPools(Decoders(1), Decoders(1))
    pools.start()
    yield pools
    pools.close()


def test_short_clips_pass_a_large_file_that_takes_its_time(pools: DecoderPools) -> None:
    large = wav(silence(LARGE_BYTES / 32_000 + 1))
    process = pools.slow._idle.get(timeout=PATIENCE)
    assert process is not None
    pools.slow._idle.put(process)
    os.kill(process._child.pid, signal.SIGSTOP)
    tier = RunningTier(fallback_config(), FakeEngine(), pools=pools)
    try:
        tier.wait_until_ready()
        slow = tier.begin(large)
        until(lambda: pools.slow._idle.empty(), "the large file is being decoded")
        assert [tier.transcribe().status_code for _ in range(5)] == [200] * 5
        assert not slow.done()
        os.kill(process._child.pid, signal.SIGCONT)
        assert slow.result(PATIENCE).json()["duration"] == pytest.approx(len(large) / 32_000, abs=1)
    finally:
        os.kill(process._child.pid, signal.SIGCONT)
        tier.stop()
        tier.close()


def test_a_file_for_which_there_is_no_process_is_noticed(
    pools: DecoderPools, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system may give no more of them."""
    process = pools.quick._idle.get(timeout=PATIENCE)
    config = fallback_config(infer_timeout_s=1.0, wedged_exit_s=600.0)
    tier = RunningTier(config, FakeEngine(), pools=pools)
    try:
        tier.wait_until_ready()
        waiting = tier.begin()
        monkeypatch.setattr(decoders, "WALL_PER_CPU", 0.0)
        until(lambda: tier.get("/v1/health").status_code == 503, "it is not healthy")
        assert tier.get("/v1/ready").json() == {"ready": False, "state": "wedged"}
        assert tier.metric("stt_oldest_inference_seconds") > 1.0
        monkeypatch.undo()
        pools.quick._idle.put(process)
        assert waiting.result(PATIENCE).status_code == 200
        until(lambda: tier.get("/v1/ready").status_code == 200, "it is ready again")
    finally:
        tier.stop()
        tier.close()


@pytest.mark.process
def test_decoders_end_with_their_service_however_it_ends(tmp_path: Path) -> None:
    """A process of its own holds a pool, and is killed outright."""
    script = (
        "from stt_cascade.cascade.hearing import DecoderPools\n"
        "pools = DecoderPools.make()\n"
        "pools.start()\n"
        "from stt_cascade.audio.decoders import _Process\n"
        "import gc\n"
        "found = [o._child.pid for o in gc.get_objects() if type(o) is _Process]\n"
        "print(*found, flush=True)\n"
        "input()\n"
    )
    service = subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert service.stdout is not None
    children = [Path("/proc") / pid for pid in service.stdout.readline().split()]
    assert len(children) >= 2
    service.kill()
    service.communicate(timeout=PATIENCE)
    until(lambda: not any(child.exists() for child in children), "the children are gone")


def test_a_small_file_that_takes_long_is_decoded_in_the_slow_lane(pools: DecoderPools) -> None:
    async def hear() -> float:
        hearing = Hearing(fallback_config(), pools)
        bomb = Upload(long_opus(590), raw_g722=False, options=Options())
        clip = await hearing.hear(bomb, Deadline(PATIENCE), "one")
        hearing.close()
        assert hearing._quick._pace.predict(1) > 0
        assert hearing._slow._pace.predict(1) > hearing._quick._pace.predict(1)
        return clip.duration

    assert asyncio.run(hear()) == pytest.approx(590, abs=1)


def test_the_work_on_a_file_ends_when_its_deadline_has_passed(pools: DecoderPools) -> None:
    async def hear() -> None:
        hearing = Hearing(fallback_config(), pools)
        bomb = Upload(long_opus(590), raw_g722=False, options=Options())
        slow = pools.slow._idle.get(timeout=PATIENCE)
        assert slow is not None
        pools.slow._idle.put(slow)
        os.kill(slow._child.pid, signal.SIGSTOP)
        try:
            with pytest.raises(DeadlineExceeded, match="during the decoding"):
                await hearing.hear(bomb, Deadline(3), "one")
            assert hearing._slow.in_flight == 1
        finally:
            os.kill(slow._child.pid, signal.SIGCONT)
        await asyncio.to_thread(until, lambda: not hearing._slow.in_flight, "its slot is free")
        assert not slow.gone
        hearing.close()

    asyncio.run(hear())


def test_speech_detection_takes_turns_between_two_callers(
    pools: DecoderPools, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []

    def detection(samples: Samples) -> Generator[None, None, tuple[Span, ...]]:
        name = "long" if len(samples) > SAMPLE_RATE else "short"
        for _ in range(50 if name == "long" else 1):
            time.sleep(0.01)
            steps.append(name)
            yield
        return ()

    monkeypatch.setattr(hearing_module, "detection", detection)

    async def hear() -> None:
        hearing = Hearing(fallback_config(vad=True), pools)

        async def one(seconds: float, caller: str) -> None:
            upload = Upload(wav(tone(seconds)), raw_g722=False, options=Options())
            await hearing.hear(upload, Deadline(PATIENCE), caller)

        long = [asyncio.ensure_future(one(5.0, "many")) for _ in range(6)]
        await asyncio.to_thread(until, lambda: len(steps) >= 20, "the long ones are under way")
        await one(0.5, "other")
        assert steps.count("long") < 290  # of 300
        for task in long:
            task.cancel()
        await asyncio.wait(long)
        hearing.close()

    asyncio.run(hear())
