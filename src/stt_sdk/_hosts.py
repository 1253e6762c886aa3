"""The hosts that a client may ask, and which of them a call goes to."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import httpx2

from stt_sdk._health import Health, State
from stt_sdk._stats import RollingStats, Stats

# A clip of no length is work, too.
LEAST_SECONDS = 0.1
_RNG = random.Random()
_RANK: dict[State, int] = {"well": 0, "busy": 1, "ejected": 2, "not_ready": 2, "draining": 3}


@dataclass(eq=False)
class Host:
    """One address that answers, with its own connections.

    Attributes:
        url: base address, as the caller wrote it.
        address: IP that a name stands for; None: as the system resolves it.
        http: to the host.
        outstanding: seconds of audio that were sent and not yet answered.
        calls: how many of them.
        leaving: it gets nothing new.
    """

    url: str
    http: httpx2.AsyncClient
    address: str | None = None
    outstanding: float = 0.0
    calls: int = 0
    leaving: bool = False
    health: Health = field(default_factory=Health)
    stats: RollingStats = field(default_factory=RollingStats)
    _idle: asyncio.Event = field(default_factory=asyncio.Event)
    _addresses: dict[str, httpx2.URL] = field(default_factory=dict)

    def address_of(self, path: str) -> httpx2.URL:
        """Of an endpoint; it is taken apart once, not with every call."""
        if path not in self._addresses:
            self._addresses[path] = httpx2.URL(self.url + path)
        return self._addresses[path]

    @property
    def name(self) -> str:
        """For errors, metrics and logs."""
        return f"{self.url} ({self.address})" if self.address else self.url

    @property
    def well(self) -> bool:
        return self.health.well and not self.leaving

    @contextmanager
    def working(self, seconds: float) -> Iterator[None]:
        """So much audio is with the host meanwhile."""
        cost = max(seconds, LEAST_SECONDS)
        self.outstanding += cost
        self.calls += 1
        try:
            yield
        finally:
            self.calls -= 1
            # Sums of floats leave dust.
            self.outstanding = self.outstanding - cost if self.calls else 0.0
            if self.leaving and not self.calls:
                self._idle.set()

    async def until_idle(self) -> None:
        """Return when all calls have ended, which new ones must not prevent: it is leaving."""
        if self.calls:
            await self._idle.wait()

    def view(self) -> HostView:
        state = "draining" if self.leaving else self.health.state
        return HostView(
            self.url, self.address, state, self.calls, self.outstanding, self.stats.snapshot()
        )


@dataclass(frozen=True)
class HostView:
    """A host as it is now.

    Attributes:
        url: base address.
        address: IP, where a name stands for several.
        state: `well`; or `busy` (it asked to be left alone for a while), `ejected` (5 calls in a
            row failed), `not_ready` or `draining`: it is asked only if no other is left.
        calls: under way.
        outstanding: seconds of audio in them.
        stats: of its attempts.
    """

    url: str
    address: str | None
    state: State
    calls: int
    outstanding: float
    stats: Stats


def choose(
    hosts: Iterable[Host], asked: Collection[Host], rng: random.Random = _RNG
) -> Host | None:
    """The host for the next attempt: of two random ones that with less work; None: there is none.

    Hosts that are well come first, and of equals those that were not asked yet. If all are out, all
    are in: one that is held to be down is better than none.
    """
    ranks: dict[tuple[int, bool], list[Host]] = {}
    for host in hosts:
        if not host.leaving:
            rank = (_RANK[host.health.state], host in asked)
            ranks.setdefault(rank, []).append(host)
    return _less_busy(ranks[min(ranks)], rng) if ranks else None


def _less_busy(candidates: Sequence[Host], rng: random.Random) -> Host:
    if len(candidates) == 1:
        return candidates[0]
    one, other = rng.sample(candidates, 2)
    return one if one.outstanding <= other.outstanding else other
