"""Callers who send too much, too little, or something else than they said."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass

from faults import load, procfs
from faults.lab import Lab, rated
from faults.report import Report, Row
from stt_sdk._within import within

KIB = 1024
MIB = 1024 * KIB
CAP_MB = 2
ENVELOPE_BYTES = 64 * KIB
# uvloop reads so much at once.
ONE_READ = 256_000
# What uvicorn reads before it is asked for it, and what may be around chunks.
READ_AHEAD, CHUNKING = 64 * KIB, 32 * KIB
HEADS = "POST /v1/transcribe HTTP/1.1\r\nHost: t\r\n" + load.FORM + "\r\n"
Pieces = Callable[[], AsyncIterator[bytes]]


@dataclass(frozen=True)
class Sent:
    """What a caller got who sent until he was answered; `taken`: bytes that the service read."""

    answer: load.Answer
    taken: int


class _Sender:
    """Sends as long as there is something and nobody closes; listens meanwhile."""

    def __init__(self, port: int, pieces: AsyncIterator[bytes]) -> None:
        self._port = port
        self._pieces = pieces
        self._writer: asyncio.StreamWriter | None = None
        self._sent = 0
        self._taken = 0

    async def run(self) -> Sent:
        clock = asyncio.get_running_loop().time
        began = clock()
        received = bytearray()
        reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)
        talking = asyncio.ensure_future(self._talk(self._writer))
        how = "answered"
        try:
            await within(load.PATIENCE_S, _listen(reader, received))
        except TimeoutError:
            how = "hanging"
        talking.cancel()
        await asyncio.gather(talking, return_exceptions=True)
        self._writer.transport.abort()
        return Sent(load.parse(bytes(received), how, clock() - began, began), self._taken)

    async def _talk(self, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            async for piece in self._pieces:
                writer.write(piece)
                self._sent += len(piece)
                await writer.drain()

    def look(self, table: dict[procfs.Ends, procfs.Queues]) -> None:
        """Count what the service has read by now."""
        if self._writer is not None:
            written = self._sent - self._writer.transport.get_write_buffer_size()
            ends = (self._writer.get_extra_info("sockname")[1], self._port)
            self._taken = max(self._taken, procfs.taken(written, ends, table))


async def _listen(reader: asyncio.StreamReader, received: bytearray) -> None:
    with suppress(ConnectionError):
        while chunk := await reader.read(65536):
            received.extend(chunk)


async def send(port: int, pieces: Pieces, times: int = 1) -> list[Sent]:
    """So many callers at once who send this until they are answered."""
    senders = [_Sender(port, pieces()) for _ in range(times)]
    running = asyncio.gather(*(sender.run() for sender in senders))
    while not running.done():
        await asyncio.wait({running}, timeout=0.02)
        table = procfs.connections()
        for sender in senders:
            sender.look(table)
    return await running


def announced(body: int, length: int, piece: int = 16 * KIB) -> Pieces:
    """`body` bytes after a Content-Length of `length`."""

    async def pieces() -> AsyncIterator[bytes]:
        yield f"{HEADS}Content-Length: {length}\r\n\r\n".encode()
        yield load.part("audio", b"", "clip.wav").removesuffix(b"\r\n")
        for _ in range(body // piece):
            yield bytes(piece)

    return pieces


def chunked(size: int, piece: int = 16 * KIB) -> Pieces:
    """So many bytes in chunks, and no last one."""

    async def pieces() -> AsyncIterator[bytes]:
        yield f"{HEADS}Transfer-Encoding: chunked\r\n\r\n".encode()
        first = load.part("audio", b"", "clip.wav").removesuffix(b"\r\n")
        for content in (first, *[bytes(piece)] * (size // piece)):
            yield f"{len(content):x}\r\n".encode() + content + b"\r\n"

    return pieces


def many_parts(count: int) -> Pieces:
    body = load.part("prompt", b"x") * count + load.END

    async def pieces() -> AsyncIterator[bytes]:
        yield load.request(body, load.FORM)

    return pieces


async def strangers(lab: Lab, report: Report) -> None:
    tier = await lab.primary(API_KEYS="a-key-0123456789")
    size = 100 * MIB
    ways = {"with Content-Length": announced(size, size), "without": chunked(size)}
    for what, pieces in ways.items():
        [got] = await send(tier.port, pieces)
        answer = got.answer
        report.check(f"100 MB {what}", answer.status or answer.how, answer.status == 401)
        limit = READ_AHEAD + ONE_READ
        figure = f"{got.taken / KIB:.0f} KiB, at most {limit // KIB}"
        report.check(f"read {what}", figure, 0 < got.taken <= limit)


async def bodies(lab: Lab, report: Report) -> None:
    tier = await lab.primary(MAX_UPLOAD_MB=CAP_MB, MAX_UPLOADS=64)
    limit = CAP_MB * MIB + ENVELOPE_BYTES + READ_AHEAD + CHUNKING + ONE_READ
    number = lab.count(10, 50)
    before = tier.left_files()
    kinds: dict[str, tuple[Pieces, set[int]]] = {
        "chunked without end": (chunked(16 * MIB), {413}),
        "Content-Length over the cap": (announced(16 * MIB, 16 * MIB), {413}),
        "Content-Length too short": (announced(MIB, 64 * KIB), {400}),
        "1,000 parts": (many_parts(1000), {400}),
    }
    if lab.size != "short":  # it takes as long as a pause in a body may
        kinds["Content-Length too long"] = (announced(64 * KIB, MIB), {408})
    for name, (pieces, allowed) in kinds.items():
        got = await send(tier.port, pieces, number)
        given = load.statuses(one.answer for one in got)
        right = all(one.answer.status in allowed for one in got)
        report.check(f"{number} x {name}", load.told(given), right)
        most = max(one.taken for one in got)
        figure = f"at most {most / KIB:.0f} KiB each, of {limit // KIB}"
        if most:  # else all was over before anybody looked
            report.check(f"read of {name}", figure, most <= limit)
    quiet = await tier.until_quiet()
    report.check("slots, places and queue", quiet, quiet == "all given back")
    left = tier.left_files()
    report.check("temporary files", left or "none", left == before)


async def half_open(lab: Lab, report: Report) -> None:
    tier = await lab.primary()
    rate, _ = await rated(tier, 1.0)
    each = lab.count(20, 167)
    opened = asyncio.get_running_loop().time()
    halves = {
        "idle": b"",
        "half a header": b"POST /v1/transcribe HTTP/1.1\r\nHost: t\r\nX-Half: ",
        "half a body": load.upload()[:1000],
    }
    kept = [
        asyncio.create_task(load.call(tier.port, start, patience=20.0))
        for start in halves.values()
        for _ in range(each)
    ]
    await asyncio.sleep(1.0)  # a body must be behind for half a second before it gives way
    others, health = await asyncio.gather(
        load.open_loop(tier.port, load.upload(), rate=rate / 2, seconds=8.0),
        load.open_loop(tier.port, load.get("/v1/health"), rate=5, seconds=8.0),
    )
    closed = await asyncio.gather(*kept)
    for index, what in enumerate(halves):
        group = closed[index * each : (index + 1) * each]
        open_still = sum(one.how == "hanging" for one in group)
        told = load.told(load.statuses(group))
        report.check(f"{each} x {what}", told, not open_still)
        report.at_most(f"{what}, closed after", load.quantile(group, 1.0), 10.0)
    given = load.statuses(others)
    report.check("others", load.told(given), set(given) == {"200"})
    healthy = load.statuses(health)
    report.check("health", load.told(healthy), set(healthy) == {"200"})
    report.at_most("health's slowest", load.quantile(health, 1.0), 0.1)
    seconds = asyncio.get_running_loop().time() - opened
    report.note(f"{3 * each} connections, {len(others)} other requests, over {seconds:.0f} s")
    quiet = await tier.until_quiet()
    report.check("slots, places and queue", quiet, quiet == "all given back")


ROWS = (
    Row(
        "strangers",
        "100 MB without a key, with and without Content-Length",
        "401; at most 64 KiB of the body are read, and the one read that exceeds them",
        strangers,
    ),
    Row(
        "bodies",
        "chunked without end, lying Content-Length, 1,000 parts, 50 at once of each",
        "413/400, 408 where what was announced never comes; read <= cap + 346 KiB; disk as before",
        bodies,
    ),
    Row(
        "half-open",
        "500 idle, half-header and half-body connections",
        "closed by 10 s; others untouched; health < 0.1 s",
        half_open,
        short=False,
    ),
)
