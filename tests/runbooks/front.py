"""Something in Envoy's place: passes requests on, answers where it can't, and counts as Envoy does.

It is not Envoy. Here only its counters matter, and what it answers when no primary takes requests.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from types import TracebackType

BUSY = b'{"error":{"type":"not_ready","message":"no primary takes requests now"}}'
NOBODY = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\n"
    b"X-Error-Type: not_ready\r\nX-Error-Message: no primary takes requests now\r\n"
    b"Retry-After: 1\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s" % (len(BUSY), BUSY)
)
LABELS = 'envoy_response_code_class="%d",envoy_http_conn_manager_prefix="stt-primary"'
TEXT = "HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=0.0.4\r\nConnection: close\r\n"


class Front:
    """Two ports of 127.0.0.1: one for callers, one for Prometheus. An async context manager.

    Args:
        target: the primary's port.
    """

    def __init__(self, target: int) -> None:
        self.port = self.metrics_port = 0
        self._target = target
        self._answered: Counter[int] = Counter({2: 0, 4: 0, 5: 0})
        self._servers: list[asyncio.Server] = []

    async def __aenter__(self) -> Front:
        for serve in (self._pass_on, self._tell):
            self._servers.append(await asyncio.start_server(serve, "127.0.0.1", 0))
        self.port, self.metrics_port = (
            server.sockets[0].getsockname()[1] for server in self._servers
        )
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for server in self._servers:
            server.close()

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            answer = await self._ask(await _request(reader))
            self._answered[int(answer.split(b" ", 2)[1]) // 100] += 1
            writer.write(answer)
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # who asked has gone
        finally:
            writer.close()

    async def _ask(self, request: bytes) -> bytes:
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", self._target)
        except ConnectionRefusedError:
            return NOBODY
        try:
            writer.write(request)
            return await reader.read(-1) or NOBODY
        except ConnectionError:
            return NOBODY
        finally:
            writer.close()

    async def _tell(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readuntil(b"\r\n\r\n")
            text = "".join(
                f"envoy_http_downstream_rq_xx{{{LABELS % each}}} {count}\n"
                for each, count in sorted(self._answered.items())
            )
            writer.write(f"{TEXT}Content-Length: {len(text)}\r\n\r\n{text}".encode())
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # who asked has gone
        finally:
            writer.close()


async def _request(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    length = head.lower().partition(b"content-length: ")[2].partition(b"\r")[0]
    return head + await reader.readexactly(int(length or 0))
