"""Callers that cost little, so that the processor is the service's: HTTP written by hand."""

from __future__ import annotations

import asyncio
import itertools
import math
import random
import ssl
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from faults.stub import DOUBT
from stt_sdk._within import within
from tones import tone, wav

PATIENCE_S = 30.0  # after which a caller that got nothing counts as hanging
BOUNDARY = "fault"
CLIP = wav(tone(1.0, rate=8000), 8000)  # 1 s, 16 KB


@dataclass(frozen=True)
class Answer:
    """What a caller got.

    Attributes:
        status: 0: none that is whole.
        how: `answered`, `refused` (no connection), `closed` (without a word),
            `broken` (before it was whole, or by a reset), `hanging`, `left`.
        seconds: from opening the connection to its end.
        began: on the event loop's clock.
    """

    status: int
    how: str
    seconds: float
    began: float
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""


def request(
    body: bytes, *headers: str, path: str = "/v1/transcribe", method: str = "POST"
) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "Host: t", "Connection: close", *headers]
    if method == "POST":
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode() + body


def get(path: str) -> bytes:
    return request(b"", path=path, method="GET")


def part(name: str, content: bytes, file: str = "") -> bytes:
    named = f'; filename="{file}"' if file else ""
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"{named}\r\n\r\n'
    return head.encode() + content + b"\r\n"


FORM = f"Content-Type: multipart/form-data; boundary={BOUNDARY}"
END = f"--{BOUNDARY}--\r\n".encode()


def upload(
    audio: bytes = CLIP,
    *,
    file: str = "clip.wav",
    deadline_s: float | None = None,
    doubt: bool = False,
) -> bytes:
    """A whole request to transcribe."""
    headers = [FORM]
    if deadline_s is not None:
        headers.append(f"X-Deadline-Ms: {max(1, round(deadline_s * 1000))}")
    body = part("audio", audio, file) + (part("prompt", DOUBT.encode()) if doubt else b"") + END
    return request(body, *headers)


async def call(
    port: int,
    sent: bytes,
    *,
    patience: float = PATIENCE_S,
    leaves_after: float | None = None,
    tls: ssl.SSLContext | None = None,
) -> Answer:
    """Send bytes on a connection of their own, and take all that comes until it ends.

    Args:
        patience: seconds after which nobody waits any more.
        leaves_after: seconds after which this caller goes away.
        tls: the connection is one with TLS.
    """
    began = asyncio.get_running_loop().time()
    received = bytearray()
    how = "answered"
    limit = patience if leaves_after is None else leaves_after
    try:
        await within(limit, _exchange(port, sent, received, tls))
    except TimeoutError:
        how = "hanging" if leaves_after is None else "left"
    except ConnectionRefusedError:
        how = "refused"
    except OSError:
        how = "broken"
    seconds = asyncio.get_running_loop().time() - began
    return parse(bytes(received), how, seconds, began)


async def _exchange(
    port: int, sent: bytes, received: bytearray, tls: ssl.SSLContext | None
) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=tls)
    try:
        try:
            writer.write(sent)
            await writer.drain()
        except ConnectionError:
            pass  # refused while it was still being sent: the answer may be there
        while chunk := await reader.read(65536):
            received += chunk
    finally:
        writer.transport.abort()


def parse(received: bytes, how: str, seconds: float, began: float) -> Answer:
    """What came as one whole answer; more or less than that is `broken`."""
    head, found, body = received.partition(b"\r\n\r\n")
    status, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    if not found or headers.get("content-length") != str(len(body)):
        ended = "broken" if received else "closed"
        return Answer(0, ended if how == "answered" else how, seconds, began)
    # A reset after the whole answer takes nothing from it.
    return Answer(int(status.split()[1]), "answered", seconds, began, headers, body)


# A request, or what makes the n-th of them.
Requests = bytes | Callable[[int], bytes]


def _nth(requests: Requests, number: int) -> bytes:
    return requests if isinstance(requests, bytes) else requests(number)


async def closed_loop(
    port: int,
    requests: Requests,
    *,
    callers: int,
    seconds: float = math.inf,
    most: int | None = None,
    tls: ssl.SSLContext | None = None,
) -> list[Answer]:
    """So many callers, each of whom asks again as soon as it has its answer.

    Args:
        most: requests of all callers together.
    """
    clock = asyncio.get_running_loop().time
    end = clock() + seconds
    answers: list[Answer] = []
    numbers = itertools.count() if most is None else iter(range(most))

    async def one() -> None:
        while clock() < end and (number := next(numbers, None)) is not None:
            answers.append(await call(port, _nth(requests, number), tls=tls))

    await asyncio.gather(*(one() for _ in range(callers)))
    return answers


async def open_loop(
    port: int,
    requests: Requests,
    *,
    rate: float,
    seconds: float,
    patience: float = PATIENCE_S,
    until: Callable[[], bool] = lambda: False,
    tls: ssl.SSLContext | None = None,
    seed: int | None = None,
) -> list[Answer]:
    """So many requests a second, whatever becomes of those before.

    Args:
        until: ends it earlier.
        seed: they come at random moments; by default one as long after the other.
    """
    clock = asyncio.get_running_loop().time
    due, chance = clock(), None if seed is None else seeded(seed)
    calls: list[asyncio.Task[Answer]] = []
    for number in range(round(rate * seconds)):
        await asyncio.sleep(max(0.0, due - clock()))
        if until():
            break
        due += 1 / rate if chance is None else chance.expovariate(rate)
        sent = _nth(requests, number)
        calls.append(asyncio.create_task(call(port, sent, patience=patience, tls=tls)))
    return list(await asyncio.gather(*calls))


def statuses(answers: Iterable[Answer]) -> dict[str, int]:
    """How many got what, by status, or by how none came."""
    counted = Counter(str(one.status) if one.status else one.how for one in answers)
    return dict(sorted(counted.items()))


def told(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} x {what}" for what, count in counts.items()) or "none"


def quantile(answers: Sequence[Answer], share: float) -> float:
    """Seconds within which that share of the answers came; 0 where there are none."""
    ordered = sorted(one.seconds for one in answers)
    return ordered[math.ceil(share * len(ordered)) - 1] if ordered else 0.0


def seeded(seed: int) -> random.Random:
    """The same choices in each run."""
    return random.Random(seed)
