"""What a row works with: tiers and proxies that go when it ends, and how long it may take."""

from __future__ import annotations

import asyncio
import math
import tempfile
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from certificates import Authority
from faults import load
from faults.balancer import Balancer, Behind
from faults.proxy import Fault, FaultProxy
from faults.stub import SLOTS, Stub
from faults.tiers import Build, Tier
from stt_cascade.cli.child import HOST

Size = Literal["short", "usual", "long"]
# Enough to keep the slots busy, and few enough that nobody is refused.
RATED_CALLERS = 3 * SLOTS


class Lab:
    """An async context manager; what was started in it is gone after it.

    Args:
        size: `short`, a minute for all rows; `usual`, a quarter of an hour; `long`.
        soak_minutes: how long a soak lasts; 0: as long as fits the size.
    """

    def __init__(self, size: Size = "usual", soak_minutes: float = 0.0) -> None:
        self.size = size
        self.soak_minutes = soak_minutes
        self._exit = AsyncExitStack()
        self._count = 0

    async def __aenter__(self) -> Lab:
        self.folder = Path(
            self._exit.enter_context(tempfile.TemporaryDirectory(prefix="stt-faults-"))
        )
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._exit.aclose()

    def pick(self, short: float, usual: float, long: float | None = None) -> float:
        """A number by the size."""
        return {"short": short, "usual": usual, "long": usual if long is None else long}[self.size]

    def count(self, short: int, usual: int) -> int:
        """A whole number by the size."""
        return round(self.pick(short, usual))

    async def primary(self, build: Build | None = None, **settings: Any) -> Tier:
        return await self._start("primary", build, (), settings)

    async def fallback(self, build: Build | None = None, **settings: Any) -> Tier:
        return await self._start("fallback", build, (), settings)

    async def traced(self, command: Sequence[str]) -> Tier:
        """A primary under a command such as strace."""
        return await self._start("primary", None, command, {})

    async def proxy(self, target: int, faults: Sequence[Fault] = ("none",)) -> FaultProxy:
        return await self._exit.enter_async_context(FaultProxy(target, faults))

    async def balancer(
        self,
        tiers: Sequence[Behind],
        file: str = "envoy.yaml",
        authority: Authority | None = None,
        **changes: Any,
    ) -> Balancer:
        """Envoy in front of tiers, as deploy/envoy/ has it but for these changes.

        Args:
            authority: signs its certificate; by default one that nobody else has.
            changes: of its cluster of tiers.
        """
        self._count += 1
        folder = self.folder / f"{self._count}-envoy"
        authority = authority or Authority(folder / "authority")
        shown = authority.issue(f"envoy-{self._count}", f"IP:{HOST}")
        ports = [tier.port for tier in tiers]
        balancer = Balancer(file, folder, ports, authority, shown, **changes)
        self._exit.push_async_callback(balancer.close)
        await balancer.start(healthy=len(tiers))
        return balancer

    async def _start(
        self, name: str, build: Build | None, command: Sequence[str], settings: dict[str, Any]
    ) -> Tier:
        self._count += 1
        folder = self.folder / f"{self._count}-{name}"
        tier = Tier(name, folder, build or Stub(), command, settings)
        self._exit.push_async_callback(tier.close)
        await tier.start()
        return tier


async def until(true: Callable[[], bool], patience: float = load.PATIENCE_S) -> bool:
    """Wait for what nothing announces; whether it came."""
    clock = asyncio.get_running_loop().time
    end = clock() + patience
    while not (came := true()) and clock() < end:  # noqa: ASYNC110  # other processes set no event
        await asyncio.sleep(0.005)
    return came


async def rated(
    tier: Tier,
    seconds: float = math.inf,
    *,
    requests: load.Requests | None = None,
    most: int | None = None,
) -> tuple[float, list[load.Answer]]:
    """The rated load R: clips a second that the engine sustains, and the answers.

    Args:
        requests: by default uploads of 1 s.
        most: so many requests.
    """
    answers = await load.closed_loop(
        tier.port, requests or load.upload(), callers=RATED_CALLERS, seconds=seconds, most=most
    )
    return throughput(answers), answers


def throughput(answers: Sequence[load.Answer]) -> float:
    """Clips answered with 200 a second, from the first question to the last answer."""
    ended = max(one.began + one.seconds for one in answers)
    return sum(one.status == 200 for one in answers) / (ended - min(one.began for one in answers))
