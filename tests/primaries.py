"""Primaries that do as a test says, in the test's own event loop: for those who ask several."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Callable, Sequence
from types import TracebackType

from fakes import PATIENCE, Reply, answer_of_fallback, error
from stt_sdk._within import within

READY = Reply(body={"ready": True, "state": "ready"})
DRAINING = Reply(503, {"ready": False, "state": "draining"})
LOADING = Reply(503, {"ready": False, "state": "loading"})
HIDDEN = Reply(404, b"nothing here")
TEXT = Reply(body=answer_of_fallback("a text"))
OVERLOADED = error(503, "overloaded", **{"X-Error-Type": "overloaded", "Retry-After": "1"})
BROKEN = Reply(fault="cut")
SILENT = Reply(fault="silence")


class Primary:
    """Listens on an address of this machine. An async context manager.

    Args:
        says: to each clip.
        readiness: what `/v1/ready` says.
        port: 0: a free one.

    Attributes:
        asked: request ids of the clips that came, in their order.
        gate: clips are answered only while it is set.
    """

    def __init__(
        self,
        says: Reply = TEXT,
        readiness: Reply = READY,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
    ) -> None:
        self.says = says
        self.readiness = readiness
        self.host = host
        self.port = port
        self.asked: list[str] = []
        self.headers: list[dict[str, str]] = []
        self.gets: Counter[str] = Counter()
        self.gate = asyncio.Event()
        self.gate.set()
        self.connections = 0
        self._changed = asyncio.Condition()
        self._serving: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> Primary:
        await self.listen()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.die()

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    async def listen(self) -> None:
        """Take connections; after `die` at the same port as before."""
        self._server = await asyncio.start_server(self._serve, self.host, self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def die(self) -> None:
        """Break off all connections, and refuse new ones."""
        if self._server is not None:
            self._server.close()
            self._server = None
        serving = list(self._serving)
        for task in serving:
            task.cancel()
        await asyncio.gather(*serving, return_exceptions=True)

    async def came(self, clips: int = 0, **gets: int) -> None:
        """Until so many clips, or questions such as `ready=2`, have come."""

        def true() -> bool:
            return len(self.asked) >= clips and all(
                self.gets[f"/v1/{name}"] >= count for name, count in gets.items()
            )

        async with self._changed:
            await within(PATIENCE, self._changed.wait_for(true))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._serving.add(task)
        self.connections += 1
        try:
            while await self._answer(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # who asked has gone, or `die`, which waits for this
        finally:
            self.connections -= 1
            self._serving.discard(task)
            writer.transport.abort()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """One request and its answer; False: that was the last one."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        first, *lines = head.split("\r\n")
        method, path, _ = first.split()
        headers = {
            name.lower(): value for name, _, value in (line.partition(": ") for line in lines)
        }
        await reader.readexactly(int(headers.get("content-length", 0)))
        async with self._changed:
            if method == "POST":
                self.asked.append(headers["x-req-id"])
                self.headers.append(headers)
            else:
                self.gets[path] += 1
            self._changed.notify_all()
        if method == "POST":
            await self.gate.wait()
        reply = self.says if method == "POST" else self.readiness
        if reply.fault == "silence":
            await asyncio.Event().wait()
        if reply.fault == "cut":
            return False
        body = reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body).encode()
        fields = {"Content-Length": str(len(body)), **reply.headers}
        told = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        writer.write(f"HTTP/1.1 {reply.status} -\r\n{told}\r\n".encode() + body)
        await writer.drain()
        return True


async def until(true: Callable[[], bool]) -> None:
    """Wait for a state that nothing announces."""

    async def watch() -> None:
        while not true():  # noqa: ASYNC110  # nothing sets an event
            await asyncio.sleep(0.002)

    await within(PATIENCE, watch())


def counts(primaries: Sequence[Primary]) -> list[int]:
    """Clips that came to each."""
    return [len(one.asked) for one in primaries]
