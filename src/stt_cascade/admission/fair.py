"""Fair queueing: whose turn is next, so that no caller waits because another one sends a lot."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Mapping
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Entry(Generic[Item]):
    """A piece of work that waits or is being done; `cost`: what it is expected to cost."""

    def __init__(self, caller: str, cost: float, item: Item, number: int) -> None:
        self.caller = caller
        self.cost = cost
        self.item = item
        self.number = number


class _Share(Generic[Item]):
    """The work that one caller has had done, and the work it still waits for."""

    def __init__(self, had: float) -> None:
        self.had = had
        self.under_way = 0.0
        self.holds = 0  # pieces under way, and whatever else keeps the caller from being forgotten
        self.line: deque[Entry[Item]] = deque()

    @property
    def active(self) -> bool:
        return bool(self.line) or self.holds > 0

    @property
    def position(self) -> float:
        return self.had + self.under_way


class FairQueue(Generic[Item]):
    """One queue for each caller; the next piece of work is that of the caller who has had least.

    A caller's total is the sum of the costs of its work. Callers that always have work waiting get
    equal shares, whatever they send and however many pieces; the others use the share that one
    caller leaves idle. The work of one caller is done in the order in which it came.

    Idle time earns no credit: a caller that comes back starts at the average of those present, or
    at its own total if that is higher. Using an idle machine costs nothing: when all work is done,
    all totals are forgotten.
    """

    def __init__(self) -> None:
        self._shares: dict[str, _Share[Item]] = {}
        self._now = 0.0  # what a caller who had always been here would have had
        self._numbers = itertools.count()
        self._length = 0

    def __len__(self) -> int:
        return self._length

    @property
    def waiting(self) -> list[Entry[Item]]:
        """The waiting work, in the order in which it came."""
        entries = (entry for share in self._shares.values() for entry in share.line)
        return sorted(entries, key=lambda entry: entry.number)

    @property
    def callers(self) -> list[str]:
        """Those who wait, whose work is being done, or who hold a place."""
        return [caller for caller, share in self._shares.items() if share.active]

    def position(self, caller: str) -> float:
        """A caller's total, with the work under way: the lowest is served next."""
        share = self._shares.get(caller)
        if share is None:
            return self._now
        return share.position if share.active else max(share.position, self._now)

    def put(self, caller: str, cost: float, item: Item) -> Entry[Item]:
        """Let a piece of work wait."""
        entry = Entry(caller, cost, item, next(self._numbers))
        self._activate(caller).line.append(entry)
        self._length += 1
        return entry

    def begin(self, caller: str, cost: float, item: Item) -> Entry[Item]:
        """Account for work that need not wait; `end` it."""
        return self._begun(Entry(caller, cost, item, next(self._numbers)))

    def take(self) -> Entry[Item]:
        """The next piece of work, which begins; `end` it."""
        shares = (share for share in self._shares.values() if share.line)
        share = min(shares, key=lambda share: (share.position, share.line[0].number))
        self._length -= 1
        return self._begun(share.line.popleft())

    def remove(self, entry: Entry[Item]) -> bool:
        """Take out what waits; whether it was still waiting."""
        share = self._shares.get(entry.caller)
        if share is None or entry not in share.line:
            return False
        share.line.remove(entry)
        self._length -= 1
        self._tidy()
        return True

    def end(self, entry: Entry[Item], cost: float) -> None:
        """Account for a piece of work that has ended, at its real cost."""
        share = self._shares[entry.caller]
        share.under_way -= entry.cost
        share.had += cost
        active = [other for other in self._shares.values() if other.active]
        least = min(other.had for other in active)
        self._now = max(self._now + cost / len(active), least)
        self.let_go(entry.caller)

    def hold(self, caller: str) -> None:
        """Keep a caller's place between two pieces of work, until `let_go`."""
        self._activate(caller).holds += 1

    def let_go(self, caller: str) -> None:
        self._shares[caller].holds -= 1
        self._tidy()

    def ahead(self, caller: str, own: float, promised: Mapping[str, float]) -> float:
        """The cost of what is done before a newcomer's work of the cost `own` has ended.

        Args:
            promised: the cost of what callers will put in later.
        """
        mine = self._shares.get(caller)
        before = sum(entry.cost for entry in mine.line) if mine else 0.0
        until = self.position(caller) + before + own
        return before + sum(
            _done_by(share, until, promised.get(other, 0.0))
            for other, share in self._shares.items()
            if other != caller
        )

    def gives_way(
        self, caller: str, may: Callable[[Entry[Item]], bool] = lambda entry: True
    ) -> Entry[Item] | None:
        """The work that should make room for a newcomer's in a full queue; None: nothing.

        It is the latest work of the caller with the most waiting, if that caller has more waiting
        than the newcomer will then have. Between two callers with as much waiting, the one with
        the higher total gives way.

        Args:
            may: whether an entry can give way.
        """
        mine = self._shares.get(caller)
        rank = (len(mine.line) + 1 if mine else 1, self.position(caller))
        lines = (
            ((len(share.line), share.position), [entry for entry in share.line if may(entry)])
            for other, share in self._shares.items()
            if other != caller
        )
        richer = [(theirs, line[-1]) for theirs, line in lines if line and theirs > rank]
        return max(richer, key=lambda each: each[0])[1] if richer else None

    def _activate(self, caller: str) -> _Share[Item]:
        share = self._shares.setdefault(caller, _Share(self._now))
        if not share.active:
            share.had = max(share.had, self._now)
        return share

    def _begun(self, entry: Entry[Item]) -> Entry[Item]:
        share = self._activate(entry.caller)
        share.under_way += entry.cost
        share.holds += 1
        return entry

    def _tidy(self) -> None:
        """Forget callers who have had no more than if they had just come."""
        if not any(share.active for share in self._shares.values()):
            self._shares.clear()
            self._now = 0.0
            return
        self._shares = {
            caller: share
            for caller, share in self._shares.items()
            if share.active or share.had > self._now
        }


def _done_by(share: _Share[Item], until: float, promised: float) -> float:
    """The cost of what a caller gets before it has had so much."""
    had, done = share.position, 0.0
    for entry in share.line:
        if had > until:
            return done
        had, done = had + entry.cost, done + entry.cost
    return done + min(promised, max(0.0, until - had))
