"""`stt canary`: what it takes for a change, on figures and on real tiers, right and wrong."""

from __future__ import annotations

import asyncio
import json
import math
import shutil
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from faults import load
from faults.lab import Lab
from faults.stub import Stub
from faults.tiers import Tier
from ports import own_port
from running import Tiers
from stt_cascade.cli.canary import STABLE, duration
from stt_cascade.errors import ERROR_TYPES, FAILURES
from stt_cascade.measure import counts
from stt_cascade.measure.canary import Outcome, Watch
from stt_cascade.measure.compare import Histogram, chance, quantile, quantile_estimate, ratio
from stt_cascade.measure.counts import Sample, Side, Silence, Tally, increase
from stt_cascade.measure.guardrails import Limits, Point, findings
from stt_cascade.measure.scrape import parsed
from stt_cascade.telemetry.metrics import RATIOS, SECONDS

BOUNDS = (*SECONDS, math.inf)
LOOKS, LASTS = 20, 600.0
RUNS = 60


class Simulated:
    """A service whose latencies and escalations are drawn, counted as a real one counts them.

    Args:
        rate: requests a second.
        p95: seconds; log-normal.
        escalates, fails, differs: shares: of its requests, of its escalations, of its texts.
    """

    def __init__(
        self,
        rng: np.random.Generator,
        *,
        rate: float = 2.0,
        p95: float = 0.7,
        escalates: float = 0.15,
        fails: float = 0.0,
        differs: float = 0.1,
    ) -> None:
        self.rng, self.rate, self.p95 = rng, rate, p95
        self.escalates, self.fails, self.differs = escalates, fails, differs
        self._latency, self._seconds = np.zeros(len(BOUNDS)), 0.0
        self._requests = self._used = self._failed = self._compared = self._differing = 0

    def live(self, seconds: float) -> None:
        many = self.rng.poisson(self.rate * seconds)
        escalated = self.rng.binomial(many, self.escalates)
        failed = self.rng.binomial(escalated, self.fails)
        took = self.rng.lognormal(math.log(self.p95) - 0.5 * 1.645, 0.5, many - failed)
        self._latency += np.bincount(np.searchsorted(BOUNDS, took), minlength=len(BOUNDS))
        self._seconds += took.sum()
        self._requests += many
        self._used += escalated - failed
        self._failed += failed
        self._compared += many - escalated
        self._differing += self.rng.binomial(many - escalated, self.differs)

    def restart(self) -> None:
        self._latency[:] = self._seconds = 0
        self._requests = self._used = self._failed = self._compared = self._differing = 0

    def sample(self) -> Sample:
        at_most = np.cumsum(self._latency)
        skipped = self._requests - self._used - self._failed
        results = {"used": self._used, "skipped": skipped, "failed": self._failed}
        return {
            **{(counts.LATENCY, str(le)): float(n) for le, n in zip(BOUNDS, at_most, strict=True)},
            **{(counts.FALLBACK, result): float(n) for result, n in results.items()},
            (counts.SECONDS, ""): self._seconds,
            (counts.REQUESTS, ""): float(self._requests),
            (counts.ERRORS, "fallback_failed"): float(self._failed),
            (counts.DISAGREEMENT, "0.0"): float(self._compared - self._differing),
            (counts.DISAGREEMENT, "0.2"): float(self._compared - self._differing),
            (counts.DISAGREEMENT, "+Inf"): float(self._compared),
        }


Event = Callable[[int, Simulated, Simulated], None]


def watched(
    seed: int, event: Event = lambda look, baseline, canary: None, least: int = 300, **canary: Any
) -> Watch:
    """A whole watch of a service and a canary that differs from it in this.

    Args:
        event: is called before each look, with its number.
    """
    rng = np.random.default_rng(seed)
    ours, theirs = Simulated(rng, **canary), Simulated(rng)
    watch = Watch(LASTS, LOOKS, LASTS / 2, Limits(least=least))
    for look in range(LOOKS + 1):
        event(look, theirs, ours)
        for one in (ours, theirs):
            one.live(LASTS / LOOKS if look else 100.0)  # they lived before anybody looked
        watch.take(look * LASTS / LOOKS, {"old": theirs.sample()}, {"new": ours.sample()})
        if watch.over:
            break
    return watch


def outcomes(**canary: Any) -> dict[Outcome, float]:
    """Of many watches, the share that each verdict has."""
    found = [watched(seed, **canary).verdict().outcome for seed in range(RUNS)]
    return {one: found.count(one) / RUNS for one in ("promote", "abort", "undecided")}


# The sums


def histogram(values: list[float]) -> Histogram:
    at_most = [(bound, float(sum(value <= bound for value in values))) for bound in BOUNDS]
    return Histogram(at_most, sum(values))


@given(st.lists(st.floats(0.001, 59), min_size=1, max_size=200), st.floats(0.01, 0.99))
def test_a_quantile_lies_in_the_bucket_of_the_true_one(values: list[float], share: float) -> None:
    true = sorted(values)[math.ceil(share * len(values)) - 1]
    found = quantile_estimate(histogram(values), share)
    assert found is not None
    above = min(bound for bound in BOUNDS if true <= bound)
    below = max((bound for bound in BOUNDS if bound < above), default=0.0)
    assert below <= found.value <= above or math.isclose(found.value, below)
    assert found.low <= found.value <= found.high


def test_without_a_sum_a_quantile_is_that_of_prometheus() -> None:
    def found(*at_most: float) -> float | None:
        return quantile(Histogram(list(zip((0.5, 1.0, math.inf), at_most, strict=True))), 0.95)

    # histogram_quantile(0.95, ...) of 60 up to 0.5 s and 40 up to 1 s: 0.5 + 0.5 x 35 / 40
    assert found(60, 100, 100) == pytest.approx(0.9375)
    assert found(60, 80, 100) == 1.0  # in the last: its edge
    assert found(0, 0, 0) is None
    assert quantile(Histogram(), 0.95) is None


@pytest.mark.parametrize("took", [0.11, 0.19, 0.205, 0.34, 0.36, 0.52, 1.05])
def test_times_that_are_all_alike_are_found_within_their_bucket(took: float) -> None:
    # Spread evenly over their buckets, 0.205 and 0.41 s would have a ratio of 1.44.
    found = ratio(histogram([2 * took] * 400), histogram([took] * 400), 0.95)
    assert found is not None
    assert found.value == pytest.approx(2.0, rel=0.2)
    assert found.low > 1.5


def test_a_few_values_bound_a_quantile_on_one_side_only() -> None:
    found = quantile_estimate(histogram([0.3] * 20), 0.95)
    assert found is not None
    assert found.high == math.inf
    assert found.low > 0.2


def test_the_bounds_of_a_quantile_hold_as_often_as_they_say() -> None:
    rng = np.random.default_rng(1)
    found = [quantile_estimate(histogram(list(rng.uniform(0, 1, 400))), 0.95) for _ in range(300)]
    assert sum(one.low <= 0.95 for one in found if one) >= 0.93 * 300
    assert sum(one.high >= 0.95 for one in found if one) >= 0.93 * 300


@given(st.lists(st.floats(0.006, 50), min_size=60, max_size=200))
def test_a_service_compared_with_itself_has_a_ratio_of_one(values: list[float]) -> None:
    found = ratio(histogram(values), histogram(values), 0.95)
    assert found is not None
    assert found.value == 1
    assert found.low <= 1 <= found.high


def test_shares_of_little_are_no_evidence() -> None:
    assert chance(2, 3, 0, 3, "greater") > 0.1
    assert chance(20, 100, 2, 100, "greater") < 1e-4
    assert chance(2, 100, 20, 100, "greater") > 0.99
    assert chance(2, 100, 20, 100, "two-sided") < 1e-3
    assert chance(0, 0, 3, 100, "greater") == 1.0


# What is counted


def test_counters_that_fall_began_anew_all_of_them() -> None:
    one, other = ("a", ""), ("b", "")
    assert increase({one: 10, other: 5}, {one: 12, other: 5}) == ({one: 2, other: 0}, False)
    # The second one has passed its old value already, and counts from 0 all the same.
    assert increase({one: 10, other: 5}, {one: 3, other: 7}) == ({one: 3, other: 7}, True)


def test_what_was_counted_before_it_was_seen_first_does_not_count() -> None:
    key = (counts.REQUESTS, "")
    side = Side()
    side.take({"a": {key: 1000.0}})
    side.take({"a": {key: 1005.0}, "b": {key: 7000.0}})
    side.take({"a": Silence("away"), "b": {key: 7001.0}})
    assert side.total.requests == 6
    assert side.well == 1
    side.take({"a": {key: 1020.0}, "b": {key: 7001.0}})  # nothing is lost in a gap
    assert side.total.requests == 21
    assert not side.silent


def test_the_metrics_of_a_tier_are_read(tiers: Tiers) -> None:
    primary, _ = tiers.cascade()
    assert primary.transcribe().status_code == 200
    assert primary.transcribe(b"no audio").status_code == 400
    primary.get("/nothing")
    tally = Tally(parsed(primary.get("/metrics").text))
    assert (tally.requests, tally.decided, tally.answered) == (2, 1, 1)
    assert tally.latency.buckets[0][0] == SECONDS[0]
    assert tally.latency.sum
    assert (tally.faults, tally.failed, tally.escalated) == (0, 0, 0)
    assert tally.served == 1  # what is no audio is no failure, and no success either
    assert tally.mean_seconds == pytest.approx(1.0)


@pytest.mark.parametrize("kind", ERROR_TYPES)
def test_a_canary_is_aborted_for_what_the_objective_counts_and_nothing_else(kind: str) -> None:
    """A stop (`draining`) that callers see counts; calls without a key hide nothing of it."""

    def point(at: float, failed: float, unauthorized: float) -> Point:
        counted = {
            **{(counts.ERRORS, one): 0.0 for one in ERROR_TYPES},
            (counts.LATENCY, "+Inf"): 10 * at,
            (counts.REQUESTS, ""): 10 * at + failed + unauthorized,
        }
        counted[counts.ERRORS, "unauthorized"] += unauthorized
        theirs = Tally(dict(counted))
        counted[counts.ERRORS, kind] += failed
        return Point(at, theirs, Tally(counted))

    window = [point(0, 0, 0), point(100, 30, 100_000)]
    (errors,) = (one for one in findings(window, Limits(), 50, 0.01) if one.name == "errors")
    assert errors.breach is (kind in FAILURES)
    assert errors.canary == (pytest.approx(30 / 1030) if kind in FAILURES else 0)


def test_the_disagreement_is_read_where_it_is_counted() -> None:
    at_most = {"0.0": 50.0, "0.2": 80.0, "0.25": 85.0, "1.0": 100.0, "+Inf": 100.0}
    told = "".join(
        f'stt_shadow_disagreement_bucket{{le="{le}"}} {count}\n' for le, count in at_most.items()
    )
    head = "# TYPE stt_shadow_disagreement histogram\n"
    tally = Tally(parsed(f'{head}{told}stt_requests_total{{endpoint="/v1/transcribe"}} 200\n'))
    assert (tally.compared, tally.disagreeing) == (100, 20)
    assert 0.2 in RATIOS  # the bound at which texts disagree is one of the service's
    assert not Tally().shadowed


@pytest.mark.parametrize("text", ["<html>", "up 1\n", ""])
def test_what_is_no_metrics_of_ours_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="its /metrics "):
        parsed(text)


# Verdicts, simulated


@pytest.mark.process
def test_identical_twins_are_promoted() -> None:
    assert outcomes()["promote"] >= 0.95


@pytest.mark.process
def test_a_p95_that_is_longer_within_the_limit_is_promoted() -> None:
    assert outcomes(p95=0.7 * 1.25)["promote"] >= 0.95


@pytest.mark.process
def test_a_doubled_p95_is_aborted() -> None:
    assert outcomes(p95=1.4)["abort"] >= 0.95


@pytest.mark.process
def test_a_fallback_that_fails_is_aborted() -> None:
    assert outcomes(fails=0.5)["abort"] >= 0.95


@pytest.mark.parametrize("share", [0.05, 0.3])
@pytest.mark.process
def test_a_changed_escalation_rate_is_aborted(share: float) -> None:
    assert outcomes(escalates=share)["abort"] >= 0.95


@pytest.mark.process
def test_a_changed_disagreement_rate_is_aborted() -> None:
    found = watched(1, differs=0.3)
    assert found.verdict().outcome == "abort"
    assert "disagreement" in found.verdict().why
    assert outcomes(differs=0.3)["abort"] >= 0.95


def test_the_reason_is_told_with_its_figures() -> None:
    said = watched(1, p95=1.4).verdict().says
    assert said.startswith("Abort: p95 ")
    assert "1.50 x allowed" in said


@pytest.mark.parametrize("changed", [{"p95": 1.225}, {"escalates": 0.3}], ids=str)
@pytest.mark.process
def test_what_is_beyond_a_limit_though_not_for_certain_is_not_promoted(
    changed: dict[str, Any],
) -> None:
    """Of a few requests a change may be chance, and so may be that there is none."""
    found = [watched(seed, least=50, rate=0.25, **changed) for seed in range(40)]
    verdicts = [one.verdict() for one in found]
    doubtful = [one for one in verdicts if one.outcome == "undecided"]
    assert len(doubtful) >= 4
    assert all(one.why.startswith("beyond a limit, though not for certain: ") for one in doubtful)
    assert not doubtful[0].too_little  # it is for nobody to wave through


def test_a_slow_minute_is_not_sustained() -> None:
    def warms_up(look: int, baseline: Simulated, canary: Simulated) -> None:
        canary.p95 = 3.0 if look <= 3 else 0.7

    for seed in range(5):
        found = watched(seed, warms_up)
        assert found.verdict().outcome == "promote", found.verdict()


def test_a_canary_that_gets_slow_later_is_aborted() -> None:
    def tires(look: int, baseline: Simulated, canary: Simulated) -> None:
        canary.p95 = 2.0 if look > 8 else 0.7

    said = watched(1, tires).verdict().says
    assert said.startswith("Abort: p95 lately ")


def test_no_traffic_is_undecided() -> None:
    found = watched(1, rate=0.0).verdict()
    assert (found.outcome, found.too_little) == ("undecided", True)
    assert found.says == ("Undecided: the canary answered 0 requests in 600 s, and 300 are needed.")


def test_a_canary_that_dies_in_the_middle_is_aborted() -> None:
    watch = Watch(LASTS, LOOKS, LASTS / 2)
    rng = np.random.default_rng(1)
    old, new = Simulated(rng), Simulated(rng)
    for look in range(10):
        for one in (old, new):
            one.live(30.0)
        watch.take(30.0 * look, {"old": old.sample()}, {"new": new.sample()})
    for look in (10, 11, 12):
        assert not watch.over  # one that is silent for a moment may come back
        watch.take(30.0 * look, {"old": old.sample()}, {"new": Silence("refused")})
    assert watch.over
    assert watch.verdict().says == "Abort: the canary new cannot be asked (refused)."


def test_a_canary_that_is_taken_away_is_aborted() -> None:
    watch = Watch(LASTS, LOOKS, LASTS / 2)
    sample = Simulated(np.random.default_rng(1)).sample()
    watch.take(0.0, {"old": sample}, {"new": sample})
    for look in (1, 2, 3):
        assert not watch.over
        watch.take(30.0 * look, {"old": sample}, {})
    assert watch.verdict().says == "Abort: no canary is left."


def test_a_baseline_that_dies_leaves_it_undecided() -> None:
    watch = Watch(LASTS, LOOKS, LASTS / 2)
    sample = Simulated(np.random.default_rng(1)).sample()
    watch.take(0.0, {"old": sample}, {"new": sample})
    for look in (1, 2, 3):
        watch.take(30.0 * look, {"old": Silence("refused")}, {"new": sample})
    assert watch.over
    assert watch.verdict().says == "Undecided: no baseline can be asked (old: refused)."


def test_an_instance_that_counts_on_both_sides_leaves_it_undecided() -> None:
    watch = Watch(LASTS, LOOKS, LASTS / 2)
    sample = Simulated(np.random.default_rng(1)).sample()
    watch.take(0.0, {"old": sample, "new": sample}, {"new": sample})
    assert watch.over
    assert watch.verdict().says == "Undecided: new counts on both sides."


def test_a_restart_loses_nothing_and_is_told() -> None:
    def restarts(look: int, baseline: Simulated, canary: Simulated) -> None:
        if look == 10:
            canary.restart()

    found = watched(1, restarts)
    assert found.verdict().outcome == "promote", found.verdict()
    assert found.history[-1].point.canary.answered > 1000
    assert any("canary began anew 1 x" in caution for caution in found.cautions())


def test_a_crash_loop_is_aborted() -> None:
    def crashes(look: int, baseline: Simulated, canary: Simulated) -> None:
        if look % 3 == 2:
            canary.restart()

    assert watched(1, crashes).verdict().why == "the canary began anew 3 times"


def test_too_little_for_a_narrow_interval_is_a_caution() -> None:
    found = watched(2, least=50, rate=0.15)
    assert any("more requests would tell" in caution for caution in found.cautions())


@pytest.mark.parametrize(("text", "seconds"), [("90", 90), ("90s", 90), ("10m", 600), ("2h", 7200)])
def test_times_are_read(text: str, seconds: float) -> None:
    assert duration(text) == seconds


# The command, on real tiers


async def start(*words: object) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", "from stt_cascade.cli import main; main()", "canary"),
        *map(str, words),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )


async def stt(*words: object) -> tuple[int, str]:
    """Exit status and output of the command, as users run it."""
    process = await start(*words)
    output, _ = await process.communicate()
    return process.returncode or 0, output.decode()


def url(tier: Tier) -> str:
    return f"http://127.0.0.1:{tier.port}"


def sides(baseline: Tier, canary: Tier) -> tuple[str, ...]:
    return "--baseline", url(baseline), "--canary", url(canary)


@asynccontextmanager
async def traffic(*tiers: Tier) -> AsyncIterator[None]:
    """Twelve clips a second for each, of which every third is escalated."""

    async def one(tier: Tier) -> None:
        await load.open_loop(
            tier.port, lambda number: load.upload(doubt=number % 3 == 0), rate=12.0, seconds=600.0
        )

    tasks = [asyncio.ensure_future(one(tier)) for tier in tiers]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


BRIEF = ("--for", "12s", "--every", "1s", "--sustained", "6s", "--least", "60")
NOBODY = "http://127.0.0.1:9"
# Enough slots for a second of inference.
ENOUGH: dict[str, Any] = {"MAX_CONCURRENCY": 16}


@pytest.mark.process
@pytest.mark.alone
def test_a_right_canary_is_promoted_and_a_wrong_one_aborted(tmp_path: Path) -> None:
    cases: list[tuple[str, Stub, dict[str, Any], int, str]] = [
        ("identical", Stub(0.1), {}, 0, "Promote: in 12 s and"),
        ("slow", Stub(1.0), {}, 1, "Abort: p95 "),
        ("failing", Stub(0.1), {"FALLBACK_URL": NOBODY}, 1, "fallback failures +"),
        ("escalating", Stub(0.1), {"CONF_LOGPROB_THRESHOLD": 0.95}, 1, "Abort: escalation +"),
    ]

    async def watch(name: str, baseline: Tier, canary: Tier) -> tuple[int, str]:
        reports = (f"--{kind}={tmp_path / name}.{kind}" for kind in ("json", "html", "png"))
        return await stt(*sides(baseline, canary), *BRIEF, *reports)

    async def run() -> list[tuple[int, str]]:
        async with Lab("short") as lab:
            fallback = {"FALLBACK_URL": url(await lab.fallback(Stub(0.01), **ENOUGH))}
            baseline = await lab.primary(Stub(0.1), **ENOUGH, **fallback)
            canaries = {
                name: await lab.primary(stub, **{**ENOUGH, **fallback, **settings})
                for name, stub, settings, _, _ in cases
            }
            async with traffic(baseline, *canaries.values()):
                # One after the other: four that start at once hold up the callers for seconds.
                return [await watch(name, baseline, each) for name, each in canaries.items()]

    for (name, _, _, status, said), (found, output) in zip(cases, asyncio.run(run()), strict=True):
        assert found == status, output
        assert said in output.replace("\n", " ")
        told = json.loads((tmp_path / f"{name}.json").read_text())
        assert told["outcome"] == ("abort" if status else "promote")
        assert len(told["looks"]) >= 4
        html = (tmp_path / f"{name}.html").read_text()
        assert told["verdict"] in html.replace("&#x27;", "'")
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.process
def test_a_canary_that_is_killed_meanwhile_is_aborted() -> None:
    async def run() -> tuple[int, str]:
        async with Lab("short") as lab:
            baseline = await lab.primary(**ENOUGH)
            canary = await lab.primary(**ENOUGH)
            process = await start(*sides(baseline, canary), "--for", "60s", "--every", "0.5s")
            assert process.stdout is not None
            await process.stdout.readline()  # of the first look
            await canary.close()
            output, _ = await process.communicate()
            return process.returncode or 0, output.decode()

    status, output = asyncio.run(run())
    assert status == 1
    assert "Abort: the canary http://127.0.0.1:" in output
    assert "cannot be asked" in output


@pytest.mark.process
def test_no_traffic_fails_unless_it_may_pass(tiers: Tiers) -> None:
    one, other = tiers.cascade()
    brief = ("--for", "1s", "--every", "0.5s")
    words = ("--baseline", one.url, "--canary", other.url, *brief)
    status, output = asyncio.run(stt(*words))
    assert status == 1
    assert "Undecided: the canary answered 0 requests in " in output
    status, _ = asyncio.run(stt(*words, "--on-too-little", "pass"))
    assert status == 0


@pytest.mark.process
def test_ctrl_c_still_reports_and_promotes_nothing(tiers: Tiers, tmp_path: Path) -> None:
    one, other = tiers.cascade()
    figures = tmp_path / "canary.json"

    async def run() -> tuple[int, str]:
        words = ("--baseline", one.url, "--canary", other.url, "--json", figures)
        process = await start(*words)
        assert process.stdout is not None
        await process.stdout.readline()
        process.send_signal(signal.SIGINT)
        output, _ = await process.communicate()
        return process.returncode or 0, output.decode()

    status, output = asyncio.run(run())
    assert status == 1
    assert "Undecided: ended after 0 s of 600 s" in output
    assert len(json.loads(figures.read_text())["looks"]) == 1


@pytest.mark.process
def test_metrics_behind_a_key_are_told_and_read_with_it(tiers: Tiers) -> None:
    one, _ = tiers.cascade(metrics_keys=("metrics-key-0123456789",))
    other, _ = tiers.cascade(metrics_keys=("metrics-key-0123456789",))
    words = ("--baseline", one.url, "--canary", other.url, "--for", "1s", "--every", "0.5s")
    status, output = asyncio.run(stt(*words))
    assert status == 1
    assert "a key of METRICS_KEYS is needed" in output.replace("\n", " ")
    status, output = asyncio.run(stt(*words, "--key", "metrics-key-0123456789"))
    assert "Undecided: the canary answered 0 requests" in output


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--baseline", "http://127.0.0.1:9"), "--canary"),
        (("--baseline", "localhost:9", "--canary", "localhost:9"), "is no address"),
        (("--prometheus", "http://127.0.0.1:9", "--canary", "http://a"), "or else --prometheus"),
        (("--baseline", "http://a", "--canary", "http://b", "--canary", "http://a/"), "both sides"),
        (
            ("--prometheus", "http://127.0.0.1:9", "--canary-selector", STABLE),
            "both sides",
        ),
        (("--prometheus", "http://127.0.0.1:9", "--for", "soon"), "is no time"),
        (("--prometheus", "http://127.0.0.1:9", "--for", "0"), "is no time"),
        (("--prometheus", "http://127.0.0.1:9", "--sustained", "20m"), "must rise"),
    ],
)
@pytest.mark.process
def test_wrong_usage_is_told(words: tuple[str, ...], said: str) -> None:
    status, output = asyncio.run(stt(*words))
    assert status == 2
    assert said in " ".join(output.replace("│", " ").split())


@pytest.mark.process
def test_a_prometheus_that_is_away_leaves_it_undecided() -> None:
    status, output = asyncio.run(stt("--prometheus", "http://127.0.0.1:9"))
    assert status == 1
    assert "Undecided: Prometheus at http://127.0.0.1:9: " in output


@asynccontextmanager
async def prometheus(folder: Path, **jobs: Tier) -> AsyncIterator[str]:
    """A real one, which scrapes each tier as `deploy/prometheus` does, its name as its role."""
    command = shutil.which("prometheus")
    if command is None:
        pytest.skip("no prometheus is installed: apt-get install prometheus")
    port = own_port()
    targets = [
        {"targets": [f"127.0.0.1:{tier.port}"], "labels": {"role": role}}
        for role, tier in jobs.items()
    ]
    config = {
        "global": {"scrape_interval": "500ms", "scrape_timeout": "500ms"},
        "scrape_configs": [{"job_name": "stt-primary", "static_configs": targets}],
    }
    file = folder / "prometheus.yml"
    file.write_text(json.dumps(config))  # which YAML is, too
    process = await asyncio.create_subprocess_exec(
        *(command, f"--config.file={file}", f"--storage.tsdb.path={folder / 'data'}"),
        f"--web.listen-address=127.0.0.1:{port}",
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        ready = load.get("/api/v1/query?query=count(stt_requests_total)")
        for _ in range(600):
            answer = await load.call(port, ready)
            if f'"{len(jobs)}"'.encode() in answer.body:
                break
            await asyncio.sleep(0.1)
        else:
            pytest.fail("prometheus never had the counters")
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        await process.wait()


@pytest.mark.process
@pytest.mark.alone
def test_through_a_real_prometheus_the_right_one_is_promoted_and_the_wrong_one_aborted(
    tmp_path: Path,
) -> None:
    async def run() -> list[tuple[int, str]]:
        async with Lab("short") as lab:
            stable = await lab.primary(Stub(0.1), **ENOUGH)
            good = await lab.primary(Stub(0.1), **ENOUGH)
            slow = await lab.primary(Stub(1.0), **ENOUGH)
            roles = {"stable": stable, "canary": good, "slow": slow}
            async with traffic(*roles.values()), prometheus(tmp_path, **roles) as address:
                ask = ("--prometheus", address, *BRIEF)
                wrong = stt(*ask, "--canary-selector", '{role="slow"}')
                nobody = stt(*ask, "--canary-selector", 'role="none"')
                mistaken = stt(*ask, "--canary-selector", "role=")
                # One after the other: four that start at once leave no time for a scrape.
                return [await each for each in (stt(*ask), wrong, nobody, mistaken)]

    right, wrong, nobody, mistaken = asyncio.run(run())
    assert right[0] == 0, right
    assert (wrong[0], "Abort: p95 " in wrong[1]) == (1, True), wrong
    assert (nobody[0], "Undecided: no canary can be asked" in nobody[1]) == (1, True), nobody
    assert (mistaken[0], "parse error" in mistaken[1]) == (1, True), mistaken
