"""`stt load`: what it computes, and what it finds on services whose capacity is known."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import sys
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fakes import PATIENCE, answer_of_fallback
from faults.lab import Lab
from faults.stub import Stub
from faults.tiers import Tier
from running import Tiers
from stt_cascade.measure.capacity import (
    Quantiles,
    Summary,
    advise,
    holdup,
    knee,
    summarize,
    sustained,
)
from stt_cascade.measure.load import Call, Generator, Step, arrivals, choose_clips, step
from stt_cascade.measure.load_report import doubts
from stt_cascade.measure.load_verdict import failing, verdict
from stt_sdk import Outcome, OverloadedError, STTClient, Transcription
from stt_sdk._within import within
from tones import encoded, tone, wav

Result = TypeVar("Result")

CLIP = wav(tone(1.0, rate=8000), 8000)


def summary(level: float, throughput: float, **changes: Any) -> Summary:
    """A step of a service that is well."""
    values: dict[str, Any] = {
        "kind": "closed",
        "level": level,
        "calls": 100,
        "throughput": throughput,
        "outcomes": {"ok": 100},
        "total": Quantiles(0.1, 0.2, 0.3, 0.4),
        "queue": None,
        "primary": None,
        "fallback": None,
        "escalated": 0.25,
        "lag_p99": 0.0,
        "littles": 1.0,
        "cores": 1.0,
        "rss_mb": 500.0,
        "gpu_pct": None,
        "gpu_mb": None,
    }
    return Summary(**{**values, **changes})


def saturating(slots: int, levels: Sequence[int] = (1, 2, 4, 8, 16)) -> list[Summary]:
    return [summary(level, 10.0 * min(level, slots)) for level in levels]


@given(rate=st.floats(0.5, 500), seed=st.integers(0, 2**32))
def test_arrivals_come_in_order_within_the_time_and_as_often_as_they_should(
    rate: float, seed: int
) -> None:
    seconds = 400 / rate
    found = list(arrivals(rate, seconds, random.Random(seed)))
    assert found == sorted(found)
    assert all(0 < at < seconds for at in found)
    assert 270 < len(found) < 530  # 400, and more than six times what chance moves it by


@pytest.mark.parametrize("slots", [2, 4, 8])
def test_the_knee_is_where_more_callers_bring_nothing(slots: int) -> None:
    assert knee(saturating(slots)) == slots


@given(slots=st.sampled_from([1, 2, 4]), seed=st.integers(0, 2**32))
def test_the_knee_is_not_lost_in_the_noise_of_the_plateau(slots: int, seed: int) -> None:
    rng = random.Random(seed)
    steps = [
        summary(level, 10 * min(level, slots) * rng.uniform(0.97, 1.03))
        for level in (1, 2, 4, 8, 16, 32)
    ]
    assert knee(steps) == slots


def test_there_is_no_knee_while_throughput_grows() -> None:
    assert knee(saturating(16)) is None
    assert knee(saturating(4, (1, 2))) is None


def test_a_service_that_breaks_beyond_the_knee_has_not_come_through() -> None:
    def at_8(**outcomes: int) -> list[str]:
        steps = saturating(4)
        steps[3] = summary(8, 5.0, outcomes={"ok": 10, **outcomes})
        assert knee(steps) == 4
        return [step.name for step in failing(steps)]

    # It says that it has too much to do, and its callers find that it has.
    assert not at_8(overloaded=90, deadline_exceeded=3, request_timeout=1, TimedOut=2)
    assert at_8(ConnectionFailed=1) == at_8(internal=1) == ["8 at once"]


def test_texts_that_fail_at_a_rate_that_it_can_bear_are_failures() -> None:
    def at(rate: float) -> list[str]:
        opened = summary(rate, 5.0, kind="open", outcomes={"ok": 10, "deadline_exceeded": 1})
        return [step.name for step in failing([*saturating(4), opened])]

    assert at(20) == ["20 a second"]
    assert not at(60)  # 40 is all it gives
    said, good = verdict(
        [*saturating(4), summary(20, 20, kind="open", outcomes={"internal": 2})], 1
    )
    assert "Texts failed with 20 a second: 2 internal." in said
    assert not good


def test_the_settings_come_with_the_sum_behind_them() -> None:
    advice = {one.setting: one for one in advise(saturating(4), slots=8, slo=1.0, replicas=3)}
    assert advice["MAX_CONCURRENCY"].value == "4"
    assert advice["MAX_QUEUE"].value == "32"  # 40 a second x (1.0 - 0.2)
    assert advice["RATE_LIMIT_RPS (fallback)"].value == "45"  # 40 x 25 % x 3 x 1.5
    assert advice["RATE_LIMIT_BURST (fallback)"].value == "90"
    assert "40.00 clips/s x 25% escalated x 3" in advice["RATE_LIMIT_RPS (fallback)"].because


def test_a_queue_may_be_as_long_as_the_primary_alone_is_in_time() -> None:
    """An escalated clip waits for the fallback as well; refusing others would not help it."""
    steps = [summary(1, 10, primary=Quantiles(0.1, 0.25, 0.3, 0.3), total=Quantiles(1, 2, 3, 3))]
    advice = {one.setting: one for one in advise(steps, slots=2, slo=1.0, replicas=1)}
    assert advice["MAX_QUEUE"].value == "7"  # 10 a second x (1.0 - 0.25)


def p95(seconds: float) -> Quantiles:
    return Quantiles(seconds, seconds, seconds, seconds)


@pytest.mark.parametrize(
    ("queue", "fallback", "tier", "grown", "other"),
    [(0.1, 6.0, "fallback", 5.0, 0.1), (3.0, 1.2, "primary", 3.0, 0.2)],
)
def test_the_tier_that_is_waited_for_is_named(
    queue: float, fallback: float, tier: str, grown: float, other: float
) -> None:
    stages = {"primary": p95(0.3)}
    steps = [
        summary(1, 3, queue=p95(0), fallback=p95(1.0), **stages),
        summary(8, 5, queue=p95(queue), fallback=p95(fallback), **stages),
        summary(16, 4, queue=p95(9), fallback=p95(9), **stages),
    ]
    found = holdup(steps)
    assert found is not None
    assert (found.tier, found.callers, found.alone) == (tier, 8, 1)
    assert (found.seconds, found.other) == pytest.approx((grown, other))
    assert holdup(steps[:1]) is None


def test_a_fallback_that_is_loaded_itself_is_judged_by_its_own_inferences() -> None:
    own = {"fallback": p95(0.4), "escalated": 0.0}
    steps = [
        summary(1, 2, queue=p95(0), **own),
        summary(4, 2.5, queue=p95(2.4), **own),
    ]
    found = holdup(steps)
    assert found is not None
    assert (found.tier, found.other) == ("fallback", 0)
    assert found.seconds == pytest.approx(2.4)
    assert [one.setting for one in advise(steps, slots=1, slo=2.0, replicas=1)] == [
        "MAX_CONCURRENCY",
        "MAX_QUEUE",
    ]
    assert advise(steps, slots=1, slo=2.0, replicas=1)[1].value == "4"  # 2.5 x (2.0 - 0.4)


def test_slots_that_are_the_limit_themselves_are_not_lowered() -> None:
    (first, *_) = advise(saturating(4), slots=4, slo=1.0, replicas=1)
    assert (first.setting, first.value) == ("MAX_CONCURRENCY", "4")
    assert "raise it only if" in first.because


def test_the_rate_that_holds_the_slo_counts_errors_as_misses() -> None:
    steps = [
        summary(5, 5, kind="open"),
        summary(10, 10, kind="open"),
        summary(20, 12, kind="open", outcomes={"ok": 60, "overloaded": 40}),
        summary(30, 12, kind="open", total=Quantiles(1, 2, 3, 4)),
    ]
    found = sustained(steps, 1.0)
    assert found is not None
    assert found.level == 10
    assert sustained(steps, 0.1) is None


def test_a_service_whose_figures_do_not_agree_is_doubted() -> None:
    (said,) = doubts([summary(4, 40, littles=1.6)])
    assert "Little's law is off by a factor of 1.60" in said
    assert not doubts([summary(4, 40, littles=1.1)])


def test_what_ends_after_the_step_is_no_throughput() -> None:
    refused = OverloadedError("the queue is full", status=503)
    step = Step("open", 1.0, 2.0, [Call(0.0, 0.001, 0.5, refused), Call(1.0, 1.5, 2.5, refused)])
    found = summarize(step)
    assert found.throughput == 0
    assert found.outcomes == {"overloaded": 2}
    assert found.total is not None
    assert found.total.max == pytest.approx(1.5)  # from when it was due, not from when it began
    assert found.late


def test_littles_law_holds_of_a_fallback_that_is_loaded_itself() -> None:
    text = Transcription.from_json(answer_of_fallback())
    text = replace(text, timings_ms=replace(text.timings_ms, queue_wait=0.0, fallback_infer=500.0))
    busy = {"in_flight": 1, "queue_depth": 0, "uptime_s": 1.0, "gpu": None}
    shots = [{**busy, "process": {"cpu_s": 1.0, "rss_mb": 1.0}}] * 4
    calls = [Call(at, at, at + 0.5, text) for at in (0.0, 0.5, 1.0, 1.5)]
    assert summarize(Step("closed", 1.0, 2.0, calls, shots)).littles == pytest.approx(1.0)


def test_a_clip_is_not_left_out_because_its_answer_comes_late(tmp_path: Path) -> None:
    """Those that the fallback answers are the slow ones."""
    files = [tmp_path / f"{number}.wav" for number in range(6)]
    for file in files:
        file.write_bytes(file.name.encode())
    text = Transcription.from_json(answer_of_fallback())

    class Late(STTClient):
        async def transcribe_many(
            self, sources: Any, **options: Any
        ) -> AsyncGenerator[Outcome, None]:
            for index, source in sorted(enumerate(sources), key=lambda one: one[0] == 0):
                yield Outcome(index, source, text)

    async def run() -> Sequence[bytes | Path]:
        async with Late("http://127.0.0.1:1") as client:
            return (await choose_clips(client, files, (0, 30), 3, deadline=1.0, seed=1)).clips

    shuffled = random.Random(1).sample(files, len(files))
    assert asyncio.run(run()) == [file.read_bytes() for file in shuffled[:3]]


def test_figures_of_another_kind_are_none() -> None:
    text = Transcription.from_json(answer_of_fallback())
    found = summarize(Step("closed", 1.0, 2.0, [Call(0.0, 0.0, 0.5, text)], [{"up": True}] * 4))
    assert (found.littles, found.cores, found.rss_mb) == (None, None, None)
    assert found.throughput == 0.5


def on_a_stub(
    work: Callable[[Tier], Awaitable[Result]], *, seconds: float = 0.1, slots: int = 4
) -> Result:
    """With a real primary whose engine takes that long for a clip."""

    async def run() -> Result:
        async with Lab("short") as lab:
            # What comes together after a stall is to be served, however late.
            room = {"MAX_CONCURRENCY": slots, "MAX_QUEUE": 1000, "MAX_UPLOADS": 1000}
            return await work(await lab.primary(Stub(seconds=seconds), **room))

    return asyncio.run(run())


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    (tmp_path / "clip.wav").write_bytes(CLIP)
    return tmp_path


async def stt(*words: object) -> tuple[int, str]:
    """The command in a process of its own, as users run it: exit status and output."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", "from stt_cascade.cli import main; main()", *map(str, words)),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    return process.returncode or 0, output.decode()


@pytest.mark.process
@pytest.mark.alone
def test_the_knee_of_a_service_with_four_slots_is_found(clips: Path) -> None:
    async def work(tier: Tier) -> None:
        levels = ("--concurrency", "1,2,4,8,12", "--rates", "", "--seconds", "2")
        html, figures = clips / "load.html", clips / "load.json"
        status, output = await stt(
            *("load", clips, "--url", f"http://127.0.0.1:{tier.port}", *levels),
            *("--html", html, "--json", figures, "--png", clips / "load.png"),
        )
        assert status == 0, output
        assert "the knee is at 4 callers" in output
        found = json.loads(figures.read_text())
        assert found["knee"] == 4
        assert [step["level"] for step in found["steps"]] == [1, 2, 4, 8, 12]
        assert all(set(step["outcomes"]) == {"ok"} for step in found["steps"])
        assert all(step["rss_mb"] > 0 for step in found["steps"])
        page = html.read_text()
        assert "MAX_CONCURRENCY" in page
        assert "data:image/png;base64," in page
        assert "http" not in page.replace(f"http://127.0.0.1:{tier.port}", "")  # needs nothing else
        assert (clips / "load.png").read_bytes().startswith(b"\x89PNG")

    on_a_stub(work)


@pytest.mark.process
def test_a_stall_of_two_seconds_is_seen_by_those_who_were_due_meanwhile() -> None:
    async def work(tier: Tier) -> None:
        async with STTClient(f"http://127.0.0.1:{tier.port}", retries=0) as client:

            async def freeze() -> None:
                while len(made) < 10:  # noqa: ASYNC110  # nothing tells of it
                    await asyncio.sleep(0.01)
                os.kill(tier.pid, signal.SIGSTOP)
                await asyncio.sleep(2.0)  # how long it is frozen is what is measured
                os.kill(tier.pid, signal.SIGCONT)

            made: list[int] = []
            generator = Generator(client, [CLIP], deadline=20.0)
            done, _ = await asyncio.gather(
                step(generator, "open", 20.0, 5.0, made.append), freeze()
            )
        found = summarize(done)
        assert found.total is not None
        assert found.total.max >= 1.9
        # Everybody who was due in the second half of the stall waited for its end.
        waited = [call for call in done.calls if call.seconds > 0.9]
        assert len(waited) >= 10
        assert set(found.outcomes) == {"ok"}

    on_a_stub(work, seconds=0.02)


@pytest.mark.process
def test_a_generator_that_is_late_says_so() -> None:
    async def work(tier: Tier) -> None:
        async with STTClient(f"http://127.0.0.1:{tier.port}", retries=0) as client:
            # Something else keeps its event loop from its schedule.
            generator = Generator(client, [CLIP], 20.0)
            busy = step(generator, "open", 30.0, 1.0, lambda count: time.sleep(0.05))
            found = summarize(await busy)
        assert found.late
        assert "ms late (p99)" in doubts([found])[0]
        assert sustained([found], 100.0) is None

    on_a_stub(work, seconds=0.02)


@pytest.mark.process
def test_littles_law_tells_of_somebody_else_who_uses_the_service() -> None:
    async def work(tier: Tier) -> None:
        async with STTClient(f"http://127.0.0.1:{tier.port}", retries=0) as client:

            async def callers(count: int) -> Summary:
                return summarize(await step(Generator(client, [CLIP], 20.0), "closed", count, 2.0))

            assert not doubts([await callers(2)])
            ours, _ = await asyncio.gather(callers(2), callers(2))
            assert "others may be using it" in doubts([ours])[0]

    on_a_stub(work)


@pytest.mark.process
def test_a_service_that_dies_meanwhile_has_not_come_through(clips: Path) -> None:
    async def work(tier: Tier) -> None:
        async def dies() -> None:
            while tier.counts.begun < 12:  # noqa: ASYNC110  # another process sets no event
                await asyncio.sleep(0.01)
            os.kill(tier.pid, signal.SIGKILL)

        words = ("--concurrency", "1,2,4", "--rates", "", "--seconds", "1")
        (status, output), _ = await asyncio.gather(
            stt("load", clips, "--url", f"http://127.0.0.1:{tier.port}", *words), dies()
        )
        assert status == 1
        assert "Texts failed with " in output
        assert "ConnectionFailed" in output
        assert "Traceback" not in output

    on_a_stub(work)


@pytest.mark.parametrize("command", ["load", "soak"])
@pytest.mark.process
def test_a_key_that_is_not_known_is_named_and_not_the_files(
    tiers: Tiers, clips: Path, command: str
) -> None:
    primary, _ = tiers.cascade(api_keys=("the-right-key",))
    status, output = asyncio.run(stt(command, clips, "--url", primary.url, "--key", "wrong"))
    assert status == 1
    assert "401 unauthorized" in output


@pytest.mark.process
def test_files_that_give_no_text_are_told(tiers: Tiers, clips: Path) -> None:
    primary, _ = tiers.cascade(api_keys=())
    (clips / "broken.wav").write_bytes(b"no audio")
    words = ("--concurrency", "1", "--rates", "", "--seconds", "1")
    _, output = asyncio.run(stt("load", clips, "--url", primary.url, *words))
    assert "Left out of the files: 1 of them failed, the last with: 400 invalid_audio" in output
    (clips / "clip.wav").write_bytes(b"no audio")
    status, output = asyncio.run(stt("load", clips, "--url", primary.url))
    assert status == 2
    assert "of 2 files none gave a text" in " ".join(output.replace("│", " ").split())


@pytest.mark.process
def test_figures_behind_a_key_of_their_own_are_read_with_it(tiers: Tiers, clips: Path) -> None:
    primary, _ = tiers.cascade(api_keys=(), metrics_keys=("metrics-key-0123456789",))
    words = ("--url", primary.url, "--concurrency", "1", "--rates", "", "--seconds", "1")
    figures = clips / "load.json"

    def memory(*more: str) -> tuple[object, list[str]]:
        status, output = asyncio.run(stt("load", clips, *words, "--json", figures, *more))
        assert status == 0, output
        told = json.loads(figures.read_text())
        return told["steps"][0]["rss_mb"], told["doubts"]

    without, doubted = memory()
    assert without is None
    assert any("METRICS_KEYS" in doubt for doubt in doubted)
    known, doubted = memory("--metrics-key", "metrics-key-0123456789")
    assert known
    assert not any("METRICS_KEYS" in doubt for doubt in doubted)


@pytest.mark.parametrize(
    "words",
    [
        ("load", "--concurrency", "", "--rates", "0.0001", "--seconds", "90000"),
        ("soak", "--rate", "0.001", "--hours", "20"),
    ],
    ids=["load", "soak"],
)
@pytest.mark.process
def test_who_waits_for_the_next_call_to_be_due_can_end_it(
    tiers: Tiers, clips: Path, words: tuple[str, ...]
) -> None:
    primary, _ = tiers.cascade(api_keys=())

    async def run() -> None:
        command, *rest = words
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", "from stt_cascade.cli import main; main()", command),
            *(str(clips), "--url", primary.url, *rest),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        try:
            # The clip was sent once, and nothing is due for a quarter of an hour or more.
            while len(primary.fake.heard) < 1:  # noqa: ASYNC110  # another thread sets no event
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.3)
            process.send_signal(signal.SIGINT)
            await within(PATIENCE, process.communicate())
        finally:
            if process.returncode is None:
                process.kill()
        assert process.returncode == 1

    asyncio.run(run())


@pytest.mark.process
def test_a_clip_that_only_its_name_tells_the_format_of_is_sent_with_it(clips: Path) -> None:
    async def work(tier: Tier) -> None:
        (clips / "clip.wav").rename(clips / "no clip")
        (clips / "clip.G722").write_bytes(encoded("g722"))
        status, output = await stt(
            *("load", clips, "--url", f"http://127.0.0.1:{tier.port}", "--concurrency", "1"),
            *("--rates", "", "--seconds", "1"),
        )
        assert status == 0, output

    on_a_stub(work)


@pytest.mark.process
def test_an_open_loop_alone_has_a_report(clips: Path) -> None:
    async def work(tier: Tier) -> None:
        html, png = clips / "x.html", clips / "x.png"
        status, output = await stt(
            *("load", clips, "--url", f"http://127.0.0.1:{tier.port}", "--concurrency", ""),
            *("--rates", "5", "--seconds", "1", "--html", html, "--png", png),
        )
        # A machine with other work to do may have been late, and rightly fails then.
        assert status == int("The generator was late" in output), output
        assert png.read_bytes().startswith(b"\x89PNG")

    on_a_stub(work)


@pytest.mark.process
def test_a_service_that_is_not_there_is_named(clips: Path) -> None:
    asyncio.run(named(clips, "load"))
    asyncio.run(named(clips, "soak"))


async def named(clips: Path, command: str) -> None:
    status, output = await stt(command, clips, "--url", "http://127.0.0.1:9")
    assert status == 1
    assert "http://127.0.0.1:9: cannot connect" in output
    assert "Traceback" not in output


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--concurrency", "1,x"), "positive numbers"),
        (("--rates", "-1"), "positive numbers"),
        (("--seconds", "0"), "seconds"),
    ],
)
@pytest.mark.process
def test_wrong_usage_is_told(clips: Path, words: tuple[str, ...], said: str) -> None:
    status, output = asyncio.run(stt("load", clips, *words))
    assert status == 2
    assert said in output


@pytest.mark.process
def test_a_folder_without_audio_is_told(tmp_path: Path) -> None:
    status, output = asyncio.run(stt("load", tmp_path))
    assert status == 2
    assert "no audio file" in " ".join(output.replace("│", " ").split())


@pytest.mark.process
def test_ctrl_c_ends_it_early_and_still_reports(clips: Path) -> None:
    async def work(tier: Tier) -> None:
        figures = clips / "load.json"
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", "from stt_cascade.cli import main; main()", "load"),
            *(str(clips), "--url", f"http://127.0.0.1:{tier.port}", "--concurrency", "2"),
            *("--rates", "", "--seconds", "600", "--json", str(figures)),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        while tier.counts.begun < 5:  # noqa: ASYNC110  # another process sets no event
            await asyncio.sleep(0.01)
        process.send_signal(signal.SIGINT)
        output, _ = await process.communicate()
        assert b"texts a second" in output
        (step,) = json.loads(figures.read_text())["steps"]
        assert step["outcomes"]["ok"] >= 3
        assert b"Ended early. At most" in output
        assert process.returncode == 1  # nobody knows what was still to come

    on_a_stub(work)
