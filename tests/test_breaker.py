"""The circuit breaker and the retry budget by themselves, in virtual time."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fakes import Clock
from stt_cascade.cascade.breaker import FAILURES_TO_OPEN, PROBE_INTERVAL_S, CircuitBreaker
from stt_sdk._budget import CALLS_PER_RETRY, RESERVE, RetryBudget


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def breaker(clock: Clock) -> CircuitBreaker:
    return CircuitBreaker(clock)


def enter(breaker: CircuitBreaker) -> int:
    permit = breaker.enter()
    assert permit is not None
    return permit


def open_(breaker: CircuitBreaker) -> None:
    for _ in range(FAILURES_TO_OPEN):
        breaker.failed(enter(breaker))
    assert breaker.state == "open"


def test_it_opens_with_the_fifth_failure_in_a_row(breaker: CircuitBreaker) -> None:
    assert [breaker.failed(enter(breaker)) for _ in range(5)] == [False] * 4 + [True]
    assert (breaker.state, breaker.failures) == ("open", 5)
    assert breaker.enter() is None


def test_a_success_between_failures_keeps_it_closed(breaker: CircuitBreaker) -> None:
    for _ in range(3):
        for _ in range(FAILURES_TO_OPEN - 1):
            assert not breaker.failed(enter(breaker))
        assert not breaker.succeeded(enter(breaker))
    assert (breaker.state, breaker.failures) == ("closed", 0)


def test_an_abandoned_call_neither_counts_nor_forgives(breaker: CircuitBreaker) -> None:
    for _ in range(FAILURES_TO_OPEN - 1):
        breaker.failed(enter(breaker))
        breaker.abandoned(enter(breaker))
    assert breaker.state == "closed"
    assert breaker.failed(enter(breaker))


def test_a_probe_goes_when_the_interval_has_passed_and_not_before(
    breaker: CircuitBreaker, clock: Clock
) -> None:
    open_(breaker)
    clock.now += PROBE_INTERVAL_S - 1
    assert (breaker.enter(), breaker.seconds_to_probe) == (None, 1)
    clock.now += 1
    assert breaker.enter() is not None
    assert breaker.state == "half_open"


def test_one_probe_at_a_time_however_long_it_takes(breaker: CircuitBreaker, clock: Clock) -> None:
    open_(breaker)
    clock.now += PROBE_INTERVAL_S
    probe = enter(breaker)
    clock.now += 10 * PROBE_INTERVAL_S
    assert breaker.enter() is None
    assert not breaker.failed(probe)
    assert breaker.enter() is not None


def test_a_probe_that_fails_leaves_it_open_for_the_rest_of_the_interval(
    breaker: CircuitBreaker, clock: Clock
) -> None:
    open_(breaker)
    clock.now += PROBE_INTERVAL_S
    breaker.failed(enter(breaker))
    assert (breaker.state, breaker.failures) == ("open", 6)
    clock.now += PROBE_INTERVAL_S - 1
    assert breaker.enter() is None
    clock.now += 1
    assert breaker.enter() is not None


def test_a_probe_that_succeeds_closes_it(breaker: CircuitBreaker, clock: Clock) -> None:
    open_(breaker)
    clock.now += PROBE_INTERVAL_S
    assert breaker.succeeded(enter(breaker))
    assert (breaker.state, breaker.failures, breaker.seconds_to_probe) == ("closed", 0, None)
    assert [breaker.enter() is None for _ in range(10)] == [False] * 10


def test_after_an_abandoned_probe_the_next_one_waits_for_its_interval_too(
    breaker: CircuitBreaker, clock: Clock
) -> None:
    open_(breaker)
    clock.now += PROBE_INTERVAL_S
    breaker.abandoned(enter(breaker))
    assert (breaker.state, breaker.enter()) == ("open", None)
    clock.now += PROBE_INTERVAL_S
    assert breaker.succeeded(enter(breaker))


def test_calls_from_before_it_opened_neither_close_nor_open_it(
    breaker: CircuitBreaker, clock: Clock
) -> None:
    old = [enter(breaker) for _ in range(10)]
    open_(breaker)
    assert not breaker.succeeded(old.pop())
    breaker.abandoned(old.pop())
    assert breaker.enter() is None

    clock.now += PROBE_INTERVAL_S
    probe = enter(breaker)
    breaker.abandoned(old.pop())
    assert breaker.enter() is None  # the probe is still under way
    breaker.succeeded(probe)
    assert [breaker.failed(permit) for permit in old] == [False] * len(old)
    assert (breaker.state, breaker.failures) == ("closed", 0)


# Seconds since the last call began, how the call ends, and how many others begin before that.
# Failures more often than the rest: the breaker shall be open most of the time.
CALLS = st.lists(
    st.tuples(
        st.integers(0, 6),
        st.sampled_from(["failed", "failed", "failed", "succeeded", "abandoned"]),
        st.integers(0, 2),
    ),
    max_size=60,
)


@given(CALLS)
def test_whatever_happens_it_lets_at_most_one_probe_an_interval_through(
    calls: list[tuple[int, str, int]],
) -> None:
    clock = Clock()
    breaker = CircuitBreaker(clock)
    open_(breaker)
    under_way: list[tuple[int, str, int, bool]] = []  # ends before which call, how, permit, probe?
    probes = []
    for number, (seconds, outcome, lasts) in enumerate(calls):
        clock.now += seconds
        closed = breaker.state == "closed"
        permit = breaker.enter()
        assert permit is not None or not closed  # closed, it keeps nobody out
        if permit is not None:
            under_way.append((number + lasts, outcome, permit, not closed))
            if not closed:
                probes.append(clock.now)
        assert sum(probe for *_, probe in under_way) <= 1
        for ends, how, begun, _ in under_way:
            if ends == number:
                getattr(breaker, how)(begun)
        under_way = [call for call in under_way if call[0] > number]
    assert all(later - earlier >= PROBE_INTERVAL_S for earlier, later in pairwise(probes))
    # It is never stuck: with nothing under way and the interval over, the next call goes.
    for _, how, begun, _ in under_way:
        getattr(breaker, how)(begun)
    clock.now += PROBE_INTERVAL_S
    assert breaker.enter() is not None


def test_a_lone_retry_is_always_possible_after_a_few_calls() -> None:
    budget = RetryBudget()
    while budget.spend():
        pass
    for _ in range(CALLS_PER_RETRY):
        assert not budget.spend()
        budget.earn()
    assert budget.spend()


def test_a_fallback_that_always_fails_sees_a_fifth_more_calls_and_a_few() -> None:
    budget = RetryBudget()
    retries = 0
    for _ in range(1000):
        budget.earn()
        retries += budget.spend()
    assert retries == pytest.approx(1000 / CALLS_PER_RETRY + RESERVE, abs=1)


# Stretches of calls without trouble, and of calls that all want a retry.
STRETCHES = st.lists(st.tuples(st.integers(0, 60), st.booleans()), max_size=8)


@given(STRETCHES, st.integers(0, 100))
def test_no_stretch_of_calls_has_more_retries_than_its_share(
    stretches: list[tuple[int, bool]], begin: int
) -> None:
    budget = RetryBudget()
    retries = []
    for calls, wants in stretches:
        for _ in range(calls):
            budget.earn()
            retries.append(wants and budget.spend())
    for end in range(begin, len(retries)):
        assert sum(retries[begin : end + 1]) <= (end + 1 - begin) / CALLS_PER_RETRY + RESERVE
