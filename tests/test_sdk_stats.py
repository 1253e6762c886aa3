"""Rolling stats: within 5 % of the truth, in bounded memory, and of the last minute only."""

from __future__ import annotations

import dataclasses
import math
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fakes import Clock
from stt_sdk._stats import LEAST_MS, MOST_MS, RELATIVE_ERROR, Quantiles, RollingStats

milliseconds = st.floats(LEAST_MS, MOST_MS, exclude_min=True)
STAGES = ("total", "queue", "primary", "fallback")


@pytest.fixture
def clock() -> Clock:
    return Clock()


def nearest_rank(values: list[float], percent: int) -> float:
    """The smallest value that so many percent of all do not exceed."""
    needed = len(values) * percent / 100
    return next(v for n, v in enumerate(sorted(values), start=1) if n >= needed)


def all_of(found: Quantiles) -> list[float | None]:
    return [found.p50, found.p95, found.p99]


@given(st.lists(milliseconds, min_size=1, max_size=300))
def test_a_quantile_is_within_five_percent_of_the_exact_one(values: list[float]) -> None:
    stats = RollingStats(clock=Clock())
    for ms in values:
        stats.record(total_ms=ms)
    found = stats.snapshot().total
    assert found.count == len(values)
    for percent, estimate in zip((50, 95, 99), all_of(found), strict=True):
        exact = nearest_rank(values, percent)
        assert estimate == pytest.approx(exact, rel=RELATIVE_ERROR + 1e-9)


@given(
    st.lists(
        st.tuples(st.floats(0, 40), st.booleans(), st.booleans(), st.none() | milliseconds),
        max_size=100,
    ),
    st.floats(0, 200),
)
def test_exactly_what_is_older_than_the_window_has_fallen_out(
    calls: list[tuple[float, bool, bool, float | None]], then: float
) -> None:
    """The window ends with the current slice of 5 s, and begins with the eleventh before it."""
    clock = Clock()
    stats = RollingStats(clock=clock)
    times = []
    for pause, error, escalated, ms in calls:
        clock.now += pause
        times.append(clock.now)
        stats.record(total_ms=1, fallback_ms=ms, error=error, escalated=escalated)
    clock.now += then
    begin = (clock.now // 5 - 11) * 5
    left = [call for call, at in zip(calls, times, strict=True) if at >= begin]
    assert begin - (clock.now - 60) <= 5
    found = stats.snapshot()
    assert found.count == found.total.count == len(left)
    assert found.errors == sum(error for _, error, _, _ in left)
    assert found.escalated == sum(escalated for _, _, escalated, _ in left)
    assert found.error_rate == (found.errors / len(left) if left else 0)
    assert found.escalation_rate == (found.escalated / len(left) if left else 0)
    reached = [ms for *_, ms in left if ms is not None]
    assert found.fallback.count == len(reached)
    if reached:
        exact = nearest_rank(reached, 95)
        assert found.fallback.p95 == pytest.approx(exact, rel=RELATIVE_ERROR + 1e-9)


def test_before_the_first_call_there_are_no_quantiles_and_the_rates_are_0() -> None:
    empty = RollingStats().snapshot()
    assert (empty.window_s, empty.count, empty.error_rate, empty.escalation_rate) == (60, 0, 0, 0)
    for stage in STAGES:
        assert getattr(empty, stage) == Quantiles(0, None, None, None)


def test_each_stage_has_its_own_quantiles_in_milliseconds(clock: Clock) -> None:
    stats = RollingStats(clock=clock)
    stats.record(total_ms=300, queue_ms=0.0, primary_ms=200)
    stats.record(total_ms=3000, queue_ms=50, primary_ms=200, fallback_ms=2500, escalated=True)
    found = stats.snapshot()
    assert found.total.p50 == pytest.approx(300, rel=RELATIVE_ERROR)
    assert found.total.p99 == pytest.approx(3000, rel=RELATIVE_ERROR)
    assert found.queue.p50 == 0  # no wait is no wait
    assert found.queue.p99 == pytest.approx(50, rel=RELATIVE_ERROR)
    assert found.primary.p50 == found.primary.p99 == pytest.approx(200, rel=RELATIVE_ERROR)
    assert (found.fallback.count, found.escalation_rate, found.error_rate) == (1, 0.5, 0)


def test_a_snapshot_does_not_change_any_more(clock: Clock) -> None:
    stats = RollingStats(clock=clock)
    stats.record(total_ms=1)
    before = stats.snapshot()
    stats.record(total_ms=1, error=True)
    assert (before.count, before.errors) == (1, 0)
    with pytest.raises(dataclasses.FrozenInstanceError):
        before.count = 2  # type: ignore[misc]


@pytest.mark.parametrize(
    ("ms", "shown"), [(-5.0, 0), (math.nan, 0), (math.inf, MOST_MS), (1e300, MOST_MS), (0.004, 0)]
)
def test_absurd_values_end_at_the_ends_of_the_range(clock: Clock, ms: float, shown: float) -> None:
    stats = RollingStats(clock=clock)
    stats.record(total_ms=ms)
    assert stats.snapshot().total.p50 == pytest.approx(shown, rel=RELATIVE_ERROR)


def test_a_window_of_another_length_is_kept_too(clock: Clock) -> None:
    stats = RollingStats(window_s=6, slices=3, clock=clock)
    stats.record(total_ms=1)
    clock.now += 3.9
    assert stats.snapshot().count == 1
    clock.now += 2.1
    assert stats.snapshot().count == 0


def size(stats: RollingStats) -> int:
    return sum(sys.getsizeof(counts) for _, counts in stats._slices)


def test_memory_is_bounded_whatever_comes_and_for_however_long(clock: Clock) -> None:
    """One bucket for each factor of 1.105 between the ends, four stages, twelve slices."""
    buckets = math.ceil(math.log(MOST_MS / LEAST_MS, 1.05 / 0.95)) + 1
    stats = RollingStats(clock=clock)
    sizes = []
    for _ in range(5):  # windows, each with a value for every bucket in every slice
        for _ in range(12):
            for step in range(1000):
                ms = LEAST_MS * 1.025**step
                stats.record(total_ms=ms, queue_ms=ms, primary_ms=ms, fallback_ms=ms)
            clock.now += 5
        sizes.append(size(stats))
    assert len(stats._slices) == 12
    assert max(len(counts) for _, counts in stats._slices) == 4 * buckets + 3
    assert len(set(sizes)) == 1  # it stays what it was after the first minute


@pytest.fixture
def restless() -> Iterator[None]:
    """Threads that take turns as often as they can."""
    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(usual)


def test_threads_that_record_and_read_at_once_lose_nothing(clock: Clock, restless: None) -> None:
    """The synchronous client reads in another thread than the one that records."""
    stats = RollingStats(clock=clock)
    stats.record(total_ms=1)
    clock.now += 5
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            stats.snapshot()

    def record(values: Sequence[float]) -> None:
        for ms in values:
            stats.record(total_ms=ms, queue_ms=ms, primary_ms=ms, fallback_ms=ms)

    with ThreadPoolExecutor(3) as threads:
        reader = threads.submit(read)
        # From both ends, so that new buckets keep coming.
        values = [LEAST_MS * 1.01**step for step in range(2000)]
        writers = [threads.submit(record, each) for each in (values, values[::-1])]
        wait(writers)
        done.set()
        for each in (reader, *writers):
            each.result()
    assert stats.snapshot().count == 4001
