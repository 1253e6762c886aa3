"""From upload to clip: short clips pass large files, and a service leaves no process behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fakes import PATIENCE, FakeEngine
from running import RunningTier, fallback_config, until
from stt_cascade.audio import decoders
from stt_cascade.audio.decoders import Decoders
from stt_cascade.cascade.hearing import LARGE_BYTES, DecoderPools
from tones import silence, wav


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
