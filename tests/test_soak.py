"""`stt soak`: what it takes for growth, on figures and on services that leak or do not."""

from __future__ import annotations

import asyncio
import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fakes import answer_of_fallback
from faults.lab import Lab
from faults.stub import Stub
from stt_cascade.measure.load import Call
from stt_cascade.measure.soak import Soak
from stt_cascade.measure.trend import Limit, trend
from stt_sdk import (
    ConnectionFailed,
    DrainingError,
    FallbackFailedError,
    InvalidAudioError,
    RateLimitedError,
    ServiceError,
    STTError,
    TimedOut,
    Transcription,
)
from tones import tone, wav

RSS = Limit("rss_mb", "MiB", 20.0)
MINUTES = [float(60 * minute) for minute in range(120)]


def noise(seed: int, size: float) -> list[float]:
    return list(np.random.default_rng(seed).normal(0, size, len(MINUTES)))


@given(seed=st.integers(0, 2**32), size=st.floats(0.1, 15))
def test_what_only_wavers_does_not_grow(seed: int, size: float) -> None:
    found = trend(RSS, MINUTES, [500 + wave for wave in noise(seed, size)])
    assert found is not None
    assert not found.grows


def drifting(seed: int, size: float) -> list[float]:
    """Is much the same a minute later, as memory is, and goes nowhere in the long run."""
    wave, value = [], 0.0
    for step in noise(seed, size * math.sqrt(1 - 0.9**2)):
        value = 0.9 * value + step
        wave.append(value)
    return wave


def test_what_wavers_slowly_seldom_passes_for_growth() -> None:
    found = [trend(RSS, MINUTES, [500 + one for one in drifting(seed, 30)]) for seed in range(100)]
    assert sum(one.low > 0 for one in found if one) <= 8  # 2.5, if its interval were exact
    assert sum(one.high < 0 for one in found if one) <= 8


@given(seed=st.integers(0, 2**32), leak=st.floats(30, 500))
def test_a_leak_is_seen_through_the_noise_and_its_size_told(seed: int, leak: float) -> None:
    values = [
        500 + leak * at / MINUTES[-1] + wave
        for at, wave in zip(MINUTES, noise(seed, 3.0), strict=True)
    ]
    found = trend(RSS, MINUTES, values)
    assert found is not None
    assert found.low <= 0.75 * leak <= found.high or abs(found.growth - 0.75 * leak) < 5
    assert found.grows is (found.growth > 20)


@pytest.mark.parametrize("begin", range(4))
def test_a_leak_that_comes_in_bursts_is_seen_in_a_few_points(begin: int) -> None:
    leaked = 500 + np.cumsum(np.roll(np.tile([2.0, 2.0, 30.0, 30.0], 5), begin))
    found = trend(RSS, MINUTES[:20], list(leaked))
    assert found is not None
    assert found.grows


def test_a_warm_up_is_no_leak() -> None:
    found = trend(RSS, MINUTES, [min(700.0, 500 + at / 5) for at in MINUTES])
    assert found is not None
    assert not found.grows


def test_a_saw_tooth_is_no_leak() -> None:
    found = trend(RSS, MINUTES, [500 + (at / 60) % 10 * 10 for at in MINUTES])
    assert found is not None
    assert not found.grows


def test_a_growth_that_is_certain_and_small_is_allowed() -> None:
    found = trend(RSS, MINUTES, [500 + at / 7200 for at in MINUTES])
    assert found is not None
    assert found.low > 0
    assert not found.grows


def test_a_relative_limit_is_a_share_of_the_level() -> None:
    limit = Limit("p95", "s", 0.3, relative=True, least=0.1)
    for level, allowed in ((2.0, 0.6), (0.03, 0.1)):
        found = trend(limit, MINUTES, [level for _ in MINUTES])
        assert found is not None
        assert found.allowed == pytest.approx(allowed)


def test_a_few_points_are_no_trend() -> None:
    assert trend(RSS, MINUTES[:5], [1.0] * 5) is None
    assert trend(RSS, [], []) is None


def soaked(snapshots: int, seconds: float = 0.0, **at: float) -> Soak:
    """One of a service that is well, and at these snapshots up for so many seconds only."""
    soak = Soak(seconds=seconds)
    steady = {"rss_mb": 100.0, "descriptors": 20, "threads": 10}
    for n in range(snapshots):
        soak.take(Call(0.0, 0.0, 0.1, Transcription.from_json(answer_of_fallback())))
        soak.close_interval({"process": steady, "uptime_s": at.get(f"n{n}", 1000.0 + n)})
    # Half a minute each, which they were not.
    soak.intervals = [replace(one, at=30.0 * n) for n, one in enumerate(soak.intervals)]
    return soak


def test_a_service_that_began_anew_hides_what_it_leaks_and_fails() -> None:
    assert soaked(40).verdict() == ("40 calls in 0.33 h, 0 failed. Nothing grows.", True)
    said, good = soaked(40, n10=3.0, n30=5.0).verdict()
    assert "The service began anew 2 x" in said
    assert not good


@pytest.mark.parametrize(
    ("error", "counts"),
    [
        (FallbackFailedError("no", status=502), True),
        (DrainingError("no", status=503), True),
        (ServiceError("a proxy's", status=504), True),
        (ConnectionFailed("nobody"), True),
        (TimedOut("too late"), True),
        (RateLimitedError("no", status=429), False),
        (InvalidAudioError("no", status=400), False),
    ],
)
def test_a_call_counts_as_failed_as_for_the_objective_and_what_gets_no_answer_too(
    error: STTError, counts: bool
) -> None:
    soak = soaked(40)
    for _ in range(10):
        soak.take(Call(0.0, 0.0, 0.1, error))
    soak.close_interval({"process": {}, "uptime_s": 2000.0})
    last = soak.intervals[-1]
    assert (last.errors, last.refused) == ((10, 0) if counts else (0, 10))
    assert last.error_rate == (1.0 if counts else None)
    said, good = soak.verdict()
    assert f"50 calls in 0.00 h, {10 if counts else 0} failed." in said.replace("0.33", "0.00")
    assert ("0.1% failed" in said, "refused as the caller's mistake" in said) == (
        counts,
        not counts,
    )
    assert not good


def test_a_soak_that_was_ended_early_is_none() -> None:
    said, good = soaked(40, seconds=7200.0).verdict()
    assert "Ended before its 2.00 h were over." in said
    assert not good


@pytest.mark.process
def test_a_build_that_leaks_is_told_from_one_that_does_not(tmp_path: Path) -> None:
    # 200 KB a clip, kept as 400 KB of samples by the build that leaks.
    (tmp_path / "clip.wav").write_bytes(wav(tone(6.0, rate=16000), 16000))

    async def soak(lab: Lab, leaks: bool) -> tuple[int, str]:
        tier = await lab.primary(Stub(seconds=0.02, keeps=leaks))
        reports = [tmp_path / f"{leaks}.{kind}" for kind in ("json", "html", "png")]
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", "from stt_cascade.cli import main; main()", "soak"),
            *(str(tmp_path), "--url", f"http://127.0.0.1:{tier.port}"),
            *("--hours", str(20 / 3600), "--json", reports[0]),
            *("--html", reports[1], "--png", reports[2]),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        output, _ = await process.communicate()
        return process.returncode or 0, output.decode()

    async def both() -> list[tuple[int, str]]:
        async with Lab("short") as lab:
            return await asyncio.gather(*(soak(lab, leaks) for leaks in (False, True)))

    for leaks, (status, output) in enumerate(asyncio.run(both())):
        told = json.loads((tmp_path / f"{bool(leaks)}.json").read_text())
        # A machine with other work to do may get slower meanwhile, and rightly fails then.
        growing = {one["limit"]["name"] for one in told["trends"] if one["grows"]} - {"p50", "p95"}
        assert growing == ({"rss_mb"} if leaks else set()), output
        assert status == int(not told["good"]) >= leaks
        assert ("It grows: rss_mb" in output.replace("\n", " ")) is bool(leaks)
        assert set(told["outcomes"]) == {"ok"}
        assert (tmp_path / f"{bool(leaks)}.png").read_bytes().startswith(b"\x89PNG")
        assert "data:image/png" in (tmp_path / f"{bool(leaks)}.html").read_text()
