"""The SDK's benchmark: calls a second over several primaries, and what a call costs the caller."""

from __future__ import annotations

import asyncio
import io
import statistics
import time
import wave
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import httpx2

from stt_cascade.bench.primaries import running
from stt_sdk import Event, STTClient, STTPool
from stt_sdk._transport import Transport

PATH = "/v1/transcribe"
FIELDS = {"task": "transcribe", "timestamps": "none"}
BASELINE = "httpx2, body made once"
# Callers for each slot: enough to keep all busy, though a host is picked from two at random.
CALLERS_PER_SLOT = 4
WARM_UP_S = 0.5
WINDOW_S = 0.5
WARM_UP_CALLS = 50

Call = Callable[[], Awaitable[object]]


@dataclass(frozen=True)
class Work:
    """What the stub primaries do.

    Attributes:
        slots: clips that each of them works on at once.
        seconds: that a clip takes.
    """

    slots: int
    seconds: float

    @property
    def rate(self) -> float:
        """Clips a second that one of them can do."""
        return self.slots / self.seconds


async def run(
    hosts: Sequence[int],
    work: Work,
    *,
    seconds: float,
    calls: int,
    rounds: int,
    callers: int,
    progress: Callable[[str], None] = lambda what: None,
) -> dict[str, Any]:
    """The figures of a run.

    Args:
        hosts: numbers of primaries to try.
        seconds: for each of them.
        calls: of each contender in each round.
        callers: at once, in the rounds.
    """
    throughput = []
    for number in hosts:
        progress(f"{number} primaries")
        throughput.append(await _throughput(number, work, seconds))
    async with running(3, work.slots, 0.0) as urls, _contenders(urls) as contenders:
        spent: dict[str, list[float]] = {name: [] for name in contenders}
        for call in contenders.values():
            await _cpu_seconds(call, WARM_UP_CALLS, callers)
        for number in range(rounds):
            progress(f"round {number + 1} of {rounds}")
            # In turns, and each round in the other direction: the machine's mood meets all.
            for name in list(contenders)[:: 1 if number % 2 else -1]:
                spent[name].append(await _cpu_seconds(contenders[name], calls, callers) / calls)
    return {
        "setup": {"slots": work.slots, "service_ms": 1000 * work.seconds, "seconds": seconds}
        | {"calls": calls, "rounds": rounds, "callers": callers},
        "throughput": throughput,
        "cost": cost(spent),
    }


def cost(spent: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    """Of each contender, from its seconds of processor time a call, round by round.

    Compared with the baseline within each round, then the median over rounds, and the extremes.
    """
    rows = {}
    for name, rounds in spent.items():
        pairs = list(zip(rounds, spent[BASELINE], strict=True))
        ratios = [mine / bare for mine, bare in pairs]
        rows[name] = {
            "us": round(1e6 * statistics.median(rounds), 1),
            "own_us": round(1e6 * statistics.median(mine - bare for mine, bare in pairs), 1),
            "ratio": round(statistics.median(ratios), 3),
            "ratio_least": round(min(ratios), 3),
            "ratio_most": round(max(ratios), 3),
        }
    return rows


async def _throughput(hosts: int, work: Work, seconds: float) -> dict[str, float]:
    """Through a pool, with as many callers as keep all slots busy."""
    clip, done, over = _clip(), 0, False
    async with running(hosts, work.slots, work.seconds) as urls, STTPool(urls) as pool:

        async def caller() -> None:
            nonlocal done
            while not over:
                await pool.transcribe(clip)
                done += 1

        number = CALLERS_PER_SLOT * work.slots * hosts
        calling = [asyncio.ensure_future(caller()) for _ in range(number)]
        await asyncio.sleep(WARM_UP_S)
        first, cpu, rates = done, time.process_time(), []
        for _ in range(max(1, round(seconds / WINDOW_S))):
            before, began = done, time.perf_counter()
            await asyncio.sleep(WINDOW_S)
            rates.append((done - before) / (time.perf_counter() - began))
        each = (time.process_time() - cpu) / max(1, done - first)
        over = True
        await asyncio.gather(*calling)
    # Other work of the machine spoils some windows, and not the median.
    rate = statistics.median(rates)
    return {
        "hosts": hosts,
        "calls_per_s": round(rate, 1),
        "of_linear": round(rate / (hosts * work.rate), 4),
        "client_core": round(rate * each, 3),
    }


async def _cpu_seconds(call: Call, calls: int, callers: int) -> float:
    """Processor time of this process for so many calls, so many at once."""
    left = iter(range(calls))

    async def caller() -> None:
        for _ in left:
            await call()

    began = time.process_time()
    await asyncio.gather(*(caller() for _ in range(callers)))
    return time.process_time() - began


@asynccontextmanager
async def _contenders(urls: Sequence[str]) -> AsyncIterator[dict[str, Call]]:
    """The same POST in several ways, each of which also reads the answer."""
    clip, url = _clip(), urls[0]
    seen = 0

    def hook(event: Event) -> None:
        nonlocal seen
        seen += 1

    async with AsyncExitStack() as stack:
        http = await stack.enter_async_context(httpx2.AsyncClient(base_url=url, timeout=60))
        ours = await stack.enter_async_context(
            httpx2.AsyncClient(base_url=url, timeout=60, transport=Transport())
        )
        form = http.build_request("POST", PATH, files=_files(clip), data=FIELDS)
        body, kind = form.read(), {"Content-Type": form.headers["Content-Type"]}

        async def made_once(client: httpx2.AsyncClient) -> object:
            answer = await client.post(PATH, content=body, headers=kind)
            return answer.json()["text"]

        async def multipart() -> object:
            answer = await http.post(PATH, files=_files(clip), data=FIELDS)
            return answer.json()["text"]

        clients: dict[str, STTClient | STTPool] = {
            "STTClient": STTClient(url),
            "STTClient, a hook": STTClient(url, telemetry=hook),
            "STTPool of 3": STTPool(urls),
            "STTPool of 3, a hook": STTPool(urls, telemetry=hook),
        }
        contenders: dict[str, Call] = {
            BASELINE: partial(made_once, http),
            "httpx2, files=": multipart,
            "the same as the first, over the SDK's transport": partial(made_once, ours),
        }
        for name, client in clients.items():
            await stack.enter_async_context(client)
            contenders[name] = _transcribing(client, clip)
        yield contenders


def _transcribing(client: STTClient | STTPool, clip: bytes) -> Call:
    async def transcribe() -> object:
        return (await client.transcribe(clip)).text

    return transcribe


def _files(clip: bytes) -> dict[str, tuple[str, bytes, str]]:
    return {"audio": ("clip.wav", clip, "application/octet-stream")}


def _clip() -> bytes:
    """1 s, 16 KB."""
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(bytes(16000))
    return buffer.getvalue()
