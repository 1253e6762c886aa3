"""Token buckets: no schedule of calls gets more than the burst and the rate."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fakes import Clock
from stt_cascade.admission import rate_limit
from stt_cascade.admission.rate_limit import RateLimiter
from stt_cascade.errors import RateLimited


@pytest.fixture
def clock() -> Clock:
    return Clock()


def admitted(limiter: RateLimiter, caller: str = "a") -> bool:
    try:
        limiter.take(caller)
    except RateLimited:
        return False
    return True


def wait_for(limiter: RateLimiter, caller: str = "a") -> float:
    """The seconds after which a refused caller may come again."""
    with pytest.raises(RateLimited) as refused:
        limiter.take(caller)
    assert refused.value.retry_after is not None
    return refused.value.retry_after


def test_a_burst_is_let_in_at_once_and_no_more(clock: Clock) -> None:
    limiter = RateLimiter(rate=2, burst=3, clock=clock)
    assert [admitted(limiter) for _ in range(5)] == [True, True, True, False, False]


def test_tokens_come_back_at_the_rate(clock: Clock) -> None:
    limiter = RateLimiter(rate=2, burst=3, clock=clock)
    for _ in range(3):
        limiter.take("a")
    clock.now += 0.5
    assert [admitted(limiter), admitted(limiter)] == [True, False]
    clock.now += 100
    assert [admitted(limiter) for _ in range(4)] == [True, True, True, False]


def test_a_refused_call_costs_nothing(clock: Clock) -> None:
    limiter = RateLimiter(rate=1, burst=1, clock=clock)
    limiter.take("a")
    for _ in range(9):
        clock.now += 0.1
        assert not admitted(limiter)
    clock.now += 0.11
    assert admitted(limiter)


def test_callers_do_not_share(clock: Clock) -> None:
    limiter = RateLimiter(rate=1, burst=1, clock=clock)
    assert [admitted(limiter, caller) for caller in "abab"] == [True, True, False, False]


@pytest.mark.parametrize(
    ("rate", "spent", "wait"),
    [(100, 1, 1), (1, 1, 1), (0.5, 1, 2), (0.3, 1, 4), (0.0001, 1, 10_000)],
)
def test_a_refused_caller_is_told_whole_seconds_after_which_it_works(
    clock: Clock, rate: float, spent: int, wait: int
) -> None:
    limiter = RateLimiter(rate=rate, burst=spent, clock=clock)
    limiter.take("a")
    assert wait_for(limiter) == wait
    clock.now += wait
    assert admitted(limiter)


def test_a_clock_that_goes_back_gives_nothing_away(clock: Clock) -> None:
    limiter = RateLimiter(rate=1, burst=2, clock=clock)
    limiter.take("a")
    clock.now -= 100
    assert [admitted(limiter), admitted(limiter)] == [True, False]


@given(
    rate=st.floats(0.01, 1000),
    burst=st.integers(1, 50),
    jumps=st.lists(st.floats(-100, 100) | st.floats(0, 0.1), max_size=200),
)
@example(rate=1, burst=2, jumps=[0, -100, 100, 0])
def test_no_schedule_gets_more_than_the_burst_and_the_rate_whatever_the_clock_does(
    rate: float, burst: int, jumps: list[float]
) -> None:
    clock = Clock()
    limiter = RateLimiter(rate, burst, clock)
    began = latest = clock.now
    count = 0
    for jump in jumps:
        clock.now += jump
        latest = max(latest, clock.now)
        count += admitted(limiter)
        assert count <= burst + rate * (latest - began) + 1e-6


@given(rate=st.floats(0.1, 1000), burst=st.integers(1, 50), calls=st.integers(1, 200))
def test_who_keeps_to_the_rate_is_never_refused(rate: float, burst: int, calls: int) -> None:
    clock = Clock()
    limiter = RateLimiter(rate, burst, clock)
    for _ in range(calls):
        assert admitted(limiter)
        clock.now += 1.000001 / rate


@pytest.mark.process
def test_a_million_addresses_leave_ten_thousand_buckets(clock: Clock) -> None:
    limiter = RateLimiter(rate=0.01, burst=2, clock=clock)
    for number in range(1_000_000):
        admitted(limiter, f"caller-{number}")
    assert len(limiter._buckets) == 10_000  # new callers share the last one


def test_new_callers_share_when_there_is_no_room(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever makes up addresses gets one caller's rate for all of them together."""
    monkeypatch.setattr(rate_limit, "MAX_BUCKETS", 10)
    limiter = RateLimiter(rate=0.001, burst=3, clock=clock)
    known = [f"known-{number}" for number in range(9)]
    assert all(admitted(limiter, caller) for caller in known)
    assert sum(admitted(limiter, f"new-{number}") for number in range(1000)) <= 3
    assert all(admitted(limiter, caller) for caller in known)  # who was there keeps his own


def test_only_full_buckets_are_forgotten(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rate_limit, "MAX_BUCKETS", 2)
    limiter = RateLimiter(rate=1, burst=2, clock=clock)
    limiter.take("full again")
    clock.now += 5
    limiter.take("spent")
    limiter.take("spent")
    limiter.take("new")
    assert not admitted(limiter, "spent")
    clock.now += 2
    assert [admitted(limiter, "spent") for _ in range(3)] == [True, True, False]


def test_the_fullest_ratio_is_the_busiest_callers(clock: Clock) -> None:
    limiter = RateLimiter(rate=1, burst=4, clock=clock)
    assert limiter.fullest_ratio == 0
    for caller in "aaab":
        limiter.take(caller)
    assert limiter.fullest_ratio == 0.75
    clock.now += 1
    assert limiter.fullest_ratio == 0.5
    clock.now += 100
    assert limiter.fullest_ratio == 0
