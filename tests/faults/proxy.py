"""A TCP proxy that does to connections what networks and dying peers do."""

from __future__ import annotations

import asyncio
import random
import socket
import struct
from collections.abc import Sequence
from contextlib import suppress
from types import TracebackType
from typing import Literal

# What becomes of a request and its answer:
#   none       nothing
#   latency    each piece comes `LATENCY_S` later
#   reset      the connection is reset when the answer comes
#   blackhole  nothing passes any more, either way, and nobody is told
#   drip       the answer comes a byte at a time
#   truncate   half of the answer comes, then the connection ends
#   error      the answer is `ERROR` instead
#   nonsense   the same with `NONSENSE`: the JSON of something else
#   endless    the same with spaces, without end
Fault = Literal[
    "none", "latency", "reset", "blackhole", "drip", "truncate", "error", "nonsense", "endless"
]
LATENCY_S = 0.1
DRIP_S = 0.05  # between two bytes
CHUNK = 65536
_JSON = b"HTTP/1.1 %s\r\nContent-Type: application/json\r\nConnection: close\r\n"
ERROR = _JSON % b"500 Internal Server Error" + b"Content-Length: 2\r\n\r\n{}"
NONSENSE = _JSON % b"200 OK" + b'Content-Length: 18\r\n\r\n{"weather":"fine"}'
ENDLESS = _JSON % b"200 OK" + b"\r\n"


class FaultProxy:
    """Listens on a port of 127.0.0.1 and passes on to another one. An async context manager.

    Args:
        target: the port that connections are passed on to.
        faults: of which each request gets one at random; may be changed while it runs.

    Attributes:
        requests: the times, on the event loop's clock, at which requests came.
    """

    def __init__(self, target: int, faults: Sequence[Fault] = ("none",), seed: int = 0) -> None:
        self.faults = faults
        self.port = 0
        self.requests: list[float] = []
        self._target = target
        self._random = random.Random(seed)
        self._server: asyncio.Server | None = None
        self._serving: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> FaultProxy:
        await self.listen()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.refuse()

    async def listen(self) -> None:
        """Take connections; after `refuse` at the same port as before."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def refuse(self) -> None:
        """Break off all connections, and refuse new ones."""
        if self._server is not None:
            self._server.close()
            self._server = None
        serving = list(self._serving)
        for task in serving:
            task.cancel()
        await asyncio.gather(*serving, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._serving.add(task)
        try:
            try:
                theirs = await asyncio.open_connection("127.0.0.1", self._target)
            except OSError:
                return  # nobody there: the caller sees an end
            await _Connection(self, (reader, writer), theirs).run()
        except asyncio.CancelledError:
            pass  # `refuse`, which waits for this; asyncio's own callback would log it
        finally:
            writer.transport.abort()
            self._serving.discard(task)

    def draw(self) -> Fault:
        """The fate of a request that comes now."""
        self.requests.append(asyncio.get_running_loop().time())
        return self._random.choice(self.faults)


Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class _Connection:
    def __init__(self, proxy: FaultProxy, caller: Stream, target: Stream) -> None:
        self._proxy = proxy
        self._caller = caller
        self._target = target
        self._fault: Fault = "none"
        self._answered = True  # what comes next from the caller is a new request

    async def run(self) -> None:
        tasks = [asyncio.ensure_future(way) for way in (self._requests(), self._answers())]
        try:
            # Who half-closes, or breaks, ends both ways: HTTP has no use for half a connection.
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._target[1].transport.abort()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _requests(self) -> None:
        reader, writer = self._caller[0], self._target[1]
        with suppress(ConnectionError):
            while chunk := await reader.read(CHUNK):
                if self._answered:
                    self._answered = False
                    self._fault = self._proxy.draw()
                if self._fault == "latency":
                    await asyncio.sleep(LATENCY_S)
                if self._fault != "blackhole":
                    writer.write(chunk)
                    await writer.drain()

    async def _answers(self) -> None:
        reader, writer = self._target[0], self._caller[1]
        with suppress(ConnectionError):
            while chunk := await reader.read(CHUNK):
                self._answered = True
                if not await self._pass(chunk, writer):
                    break
            if writer.can_write_eof():
                writer.write_eof()
            await writer.drain()

    async def _pass(self, chunk: bytes, writer: asyncio.StreamWriter) -> bool:
        """Pass a piece of the answer on, with what is to become of it; False: nothing follows."""
        if self._fault == "blackhole":
            return True
        if self._fault == "reset":
            connection: socket.socket = writer.get_extra_info("socket")
            # No time to linger: closing resets the connection.
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()
            return False
        if self._fault == "drip":
            for byte in chunk:
                writer.write(bytes([byte]))
                await writer.drain()
                await asyncio.sleep(DRIP_S)
            return True
        if self._fault == "endless":
            writer.write(ENDLESS)
            while True:
                writer.write(b" " * CHUNK)
                await writer.drain()
                await asyncio.sleep(0)
        if self._fault == "latency":
            await asyncio.sleep(LATENCY_S)
        instead = {"truncate": chunk[: len(chunk) // 2], "error": ERROR, "nonsense": NONSENSE}
        writer.write(instead.get(self._fault, chunk))
        await writer.drain()
        return self._fault not in instead
