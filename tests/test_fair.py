"""Fair queueing, on virtual time: costs are what passes."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stt_cascade.admission.fair import Entry, FairQueue


def served(queue: FairQueue[str], times: int) -> list[str]:
    """Work done in one slot, piece by piece."""
    order = []
    for _ in range(times):
        entry = queue.take()
        order.append(entry.item)
        queue.end(entry, entry.cost)
    return order


def put(queue: FairQueue[str], caller: str, cost: float, *items: str) -> list[Entry[str]]:
    return [queue.put(caller, cost, item) for item in items]


def test_one_callers_work_is_done_in_the_order_in_which_it_came() -> None:
    queue = FairQueue[str]()
    for number, cost in enumerate([5.0, 0.1, 30.0, 1.0]):
        queue.put("one", cost, str(number))
    assert served(queue, 4) == ["0", "1", "2", "3"]


def test_a_newcomer_does_not_wait_for_what_another_caller_has_queued() -> None:
    queue = FairQueue[str]()
    put(queue, "many", 1.0, *"abcdef")
    assert served(queue, 2) == ["a", "b"]
    running = queue.take()
    put(queue, "new", 1.0, "x")
    queue.end(running, 1.0)
    assert served(queue, 3) == ["x", "d", "e"]


def test_many_small_pieces_and_few_large_ones_get_the_same_share() -> None:
    queue = FairQueue[str]()
    put(queue, "small", 1.0, *["s"] * 60)
    put(queue, "large", 30.0, *["l"] * 2)
    counted = Counter(served(queue, 33))
    assert 29 <= counted["s"] <= 32


def test_what_work_did_cost_counts_and_not_what_was_expected() -> None:
    queue = FairQueue[str]()
    put(queue, "bombs", 1.0, *"bbbb")
    put(queue, "clips", 1.0, *"cccc")
    queue.end(queue.take(), 3.0)
    assert served(queue, 4) == ["c", "c", "c", "b"]


def test_nobody_saves_up_while_it_asks_for_nothing() -> None:
    queue = FairQueue[str]()
    put(queue, "busy", 1.0, *"b" * 100)
    served(queue, 50)
    put(queue, "back", 1.0, *"n" * 50)
    assert Counter(served(queue, 20)) == {"b": 10, "n": 10}


def test_who_had_all_while_nobody_else_came_has_no_debt() -> None:
    queue = FairQueue[str]()
    put(queue, "alone", 1.0, *"a" * 100)
    served(queue, 60)
    put(queue, "new", 1.0, *"n" * 40)
    assert Counter(served(queue, 20)) == {"a": 10, "n": 10}


def test_ever_new_callers_do_not_starve_one_who_stays() -> None:
    queue = FairQueue[str]()
    put(queue, "stays", 20.0, "s", "s")
    assert served(queue, 1) == ["s"]
    order = []
    for number in range(100):
        put(queue, f"new {number}", 1.0, "n")
        order += served(queue, 1)
    assert "s" in order


def test_nothing_is_remembered_when_all_is_done() -> None:
    queue = FairQueue[str]()
    for number in range(1000):
        put(queue, f"caller {number}", 1.0, "x")
    served(queue, 1000)
    assert queue._shares == {}


def test_who_holds_a_place_keeps_its_turn_between_two_pieces() -> None:
    queue = FairQueue[str]()
    queue.hold("long")
    put(queue, "busy", 10.0, *"b" * 5)
    served(queue, 2)
    put(queue, "long", 1.0, *"l" * 5)
    assert served(queue, 5) == ["l"] * 5
    queue.let_go("long")


def test_what_is_ahead_is_what_will_be_done_before() -> None:
    queue = FairQueue[str]()
    put(queue, "many", 1.0, *"m" * 10)
    running = queue.take()
    assert queue.ahead("new", 0.0, {}) == 0  # but for what runs
    assert queue.ahead("new", 3.0, {}) == pytest.approx(3)
    assert queue.ahead("many", 0.0, {}) == 9
    assert queue.ahead("many", 1.0, {"many": 600.0}) == 9
    assert queue.ahead("new", 20.0, {"many": 600.0}) == pytest.approx(19)
    queue.end(running, 1.0)


def test_the_latest_of_the_caller_with_most_gives_way() -> None:
    queue = FairQueue[str]()
    put(queue, "some", 1.0, *"ab")
    put(queue, "most", 1.0, *"cdef")
    entry = queue.gives_way("new")
    assert entry is not None
    assert entry.item == "f"
    assert queue.gives_way("most") is None
    spared = queue.gives_way("new", lambda entry: entry.item in "ac")
    assert spared is not None
    assert spared.item == "c"


def test_of_two_who_will_have_as_much_the_one_who_has_had_more_gives_way() -> None:
    queue = FairQueue[str]()
    running = queue.begin("greedy", 1.0, "r")
    (entry,) = put(queue, "greedy", 1.0, "g")
    assert queue.gives_way("new") is entry
    queue.remove(entry)
    put(queue, "new", 1.0, "n")
    assert queue.gives_way("greedy") is None
    queue.end(running, 1.0)


@given(
    st.lists(st.floats(0.1, 30), min_size=1, max_size=40),
    st.lists(st.floats(0.1, 30), min_size=1, max_size=40),
)
def test_two_who_wait_have_had_the_same_but_for_a_piece(
    one: list[float], other: list[float]
) -> None:
    queue = FairQueue[float]()
    for caller, costs in (("one", one), ("other", other)):
        for cost in costs:
            queue.put(caller, cost, cost)
    had = Counter[str]()
    while {entry.caller for entry in queue.waiting} == {"one", "other"}:
        entry = queue.take()
        had[entry.caller] += entry.cost  # type: ignore[assignment]
        queue.end(entry, entry.cost)
        assert abs(had["one"] - had["other"]) <= max(one + other) + 1e-6


@given(st.data())
def test_no_schedule_loses_work_or_lets_a_caller_wait_for_more_than_its_share(
    data: st.DataObject,
) -> None:
    """Pieces of 1 that come and go in any order: before any one of a caller's, each other caller
    gets one more than it, at most."""
    queue = FairQueue[int]()
    entries: list[Entry[int]] = []
    done = Counter[str]()
    since: dict[Entry[int], Counter[str]] = {}
    for number, takes in enumerate(data.draw(st.lists(st.booleans(), max_size=60))):
        if takes and queue:
            entry = queue.take()
            entries.remove(entry)
            queue.end(entry, 1.0)
            done[entry.caller] += 1
            before = since.pop(entry)
            mine = done[entry.caller] - before[entry.caller]
            others = set(done) - {entry.caller}
            assert all(done[other] - before[other] <= mine + 1 for other in others)
        else:
            entry = queue.put(data.draw(st.sampled_from("abc")), 1.0, number)
            entries.append(entry)
            since[entry] = Counter(done)
    assert len(queue) == len(entries)
    assert sorted(entries, key=lambda entry: entry.number) == queue.waiting
