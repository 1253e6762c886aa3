"""Which host a call goes to, and what a pool thinks of one: no sockets, and a clock of our own."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Literal, cast, get_args

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fakes import Clock
from stt_sdk._health import (
    EJECTION_S,
    FAILURES_TO_EJECT,
    FORGET_S,
    REFUSAL_S,
    Health,
    State,
)
from stt_sdk._hosts import Host, choose


@dataclass
class _Known:
    """A host's health, as it is given."""

    state: State

    @property
    def well(self) -> bool:
        return self.state == "well"


def host(state: State = "well", outstanding: float = 0.0, leaving: bool = False) -> Host:
    # Nobody asks it anything; a client would load certificates.
    http = cast(httpx2.AsyncClient, None)
    health = cast(Health, _Known(state))
    return Host("http://h", http, outstanding=outstanding, leaving=leaving, health=health)


hosts = st.lists(
    st.builds(
        host, st.sampled_from(get_args(State)), st.sampled_from([0.0, 1.0, 5.0]), st.booleans()
    ),
    max_size=6,
)
choices = st.tuples(hosts, st.sets(st.integers(0, 5)), st.integers())


@given(choices)
def test_a_call_never_goes_to_a_host_that_leaves_and_to_nobody_only_if_there_is_none(
    choice: tuple[list[Host], set[int], int],
) -> None:
    known, numbers, seed = choice
    asked = [known[n] for n in numbers if n < len(known)]
    chosen = choose(known, asked, random.Random(seed))
    assert (chosen is None) == all(one.leaving for one in known)
    assert chosen is None or (chosen in known and not chosen.leaving)


@given(choices)
def test_a_call_goes_to_a_host_that_is_well_and_was_not_asked_as_long_as_there_is_one(
    choice: tuple[list[Host], set[int], int],
) -> None:
    known, numbers, seed = choice
    asked = [known[n] for n in numbers if n < len(known)]
    chosen = choose(known, asked, random.Random(seed))
    well = [one for one in known if one.well]
    fresh = [one for one in well if one not in asked]
    if fresh:
        assert chosen in fresh
    elif well:
        assert chosen in well


def test_of_hosts_that_are_out_one_that_works_comes_before_one_that_is_not_there() -> None:
    dead, busy, going = host("not_ready"), host("busy", outstanding=60.0), host("draining")
    assert choose([dead, busy, going], ()) is busy
    assert choose([dead, going], ()) is dead
    assert choose([going], ()) is going


def test_all_that_are_out_are_in_and_those_not_asked_yet_come_first() -> None:
    out = [host("ejected"), host("not_ready"), host("ejected")]
    rng = random.Random(1)
    assert {choose(out, (), rng) for _ in range(100)} == set(out)
    assert {choose(out, out[:2], rng) for _ in range(100)} == {out[2]}
    assert {choose(out, out, rng) for _ in range(100)} == set(out)


@given(st.lists(st.floats(0, 100), min_size=2, max_size=6, unique=True), st.integers())
def test_of_two_random_hosts_the_less_busy_one_is_asked(loads: list[float], seed: int) -> None:
    known = [host(outstanding=load) for load in loads]
    rng = random.Random(seed)
    chosen = [choose(known, (), rng) for _ in range(300)]
    busiest = max(known, key=lambda one: one.outstanding)
    assert busiest not in chosen
    assert set(chosen) == set(known) - {busiest}


def test_a_host_is_out_for_30_s_after_five_failures_in_a_row() -> None:
    clock = Clock()
    health = Health(clock)
    for _ in range(FAILURES_TO_EJECT - 1):
        health.failed()
    health.answered()  # not in a row
    for _ in range(FAILURES_TO_EJECT - 1):
        health.failed()
    assert health.well
    health.failed()
    assert health.state == "ejected"
    clock.now += EJECTION_S - 0.1
    assert not health.well
    clock.now += 0.1
    assert health.well


def eject(health: Health) -> None:
    for _ in range(FAILURES_TO_EJECT):
        health.failed()


def out_for(health: Health, clock: Clock) -> float:
    """Seconds until it is in again, which is then."""
    began = clock.now
    while not health.well:
        clock.now += 1
    return clock.now - began


def test_each_further_ejection_lasts_longer_until_the_host_has_been_well_for_long() -> None:
    clock = Clock()
    health = Health(clock)
    lasted = []
    for _ in range(3):
        eject(health)
        lasted.append(out_for(health, clock))
    assert lasted == [EJECTION_S, 2 * EJECTION_S, 3 * EJECTION_S]
    clock.now += FORGET_S + 1
    eject(health)
    assert out_for(health, clock) == EJECTION_S


def test_the_calls_that_a_dying_host_takes_along_are_one_incident() -> None:
    clock = Clock()
    health = Health(clock)
    for _ in range(10 * FAILURES_TO_EJECT):
        health.failed()
    assert out_for(health, clock) == EJECTION_S


def test_who_says_that_it_is_ready_is_in_again_at_once() -> None:
    for put_out in (
        eject,
        lambda health: health.refuses("not_ready"),
        lambda health: health.refuses("draining"),
    ):
        health = Health(Clock())
        put_out(health)
        assert not health.well
        health.ready()
        assert health.well


def test_saying_that_it_is_ready_does_not_hide_that_its_calls_fail() -> None:
    health = Health(Clock())
    for _ in range(FAILURES_TO_EJECT):
        health.ready()
        health.failed()
    assert health.state == "ejected"


@pytest.mark.parametrize("how", ["not_ready", "draining"])
def test_a_refusal_is_forgotten_when_nobody_repeats_it(
    how: Literal["not_ready", "draining"],
) -> None:
    clock = Clock()
    health = Health(clock)
    health.refuses(how)
    clock.now += REFUSAL_S - 0.1
    assert health.state == how
    clock.now += 0.1
    assert health.well


def test_a_busy_host_is_left_alone_for_as_long_as_it_asks_ready_or_not() -> None:
    clock = Clock()
    health = Health(clock)
    health.busy(3.0)
    health.ready()
    clock.now += 2.9
    assert health.state == "busy"
    clock.now += 0.1
    assert health.well
