"""Servers that do as a test says, and how a client of the SDK's transport gets there."""

from __future__ import annotations

import asyncio
import hashlib
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest

from fakes import PATIENCE
from stt_sdk._transport import Transport

Run = Callable[[Coroutine[Any, Any, Any]], Any]
Handle = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

NAME = "stt.test"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


@dataclass
class Certificate:
    """Of `NAME`, signed by itself.

    Attributes:
        files: the certificate and its key.
        client: trusts it.
    """

    files: tuple[Path, Path]
    client: ssl.SSLContext

    @property
    def server(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*self.files)
        return context


def make_certificate(folder: Path) -> Certificate:
    """One for this run; skips where there is no openssl."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("there is no openssl to make a certificate with")
    key, file = folder / "key.pem", folder / "cert.pem"
    subject = ["-subj", f"/CN={NAME}", "-addext", f"subjectAltName=DNS:{NAME}"]
    curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    subprocess.run(
        [openssl, "req", "-x509", *curve, "-keyout", key, "-out", file, "-days", "2", *subject],
        check=True,
        capture_output=True,
    )
    return Certificate((file, key), ssl.create_default_context(cafile=str(file)))


def client(transport: Transport | None = None, **options: Any) -> httpx2.AsyncClient:
    return httpx2.AsyncClient(
        transport=transport or Transport(), trust_env=False, **{"timeout": PATIENCE, **options}
    )


class Server:
    """Serves on a port of 127.0.0.1, in the test's own event loop.

    Attributes:
        connections: how many were made.
        live: how many of them are served now.
    """

    def __init__(self, handle: Handle) -> None:
        self._handle = handle
        self._tasks: set[asyncio.Task[None]] = set()
        self._nobody = asyncio.Event()
        self._nobody.set()
        self.connections = 0
        self.port = 0

    @property
    def live(self) -> int:
        return len(self._tasks)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._nobody.clear()
        self.connections += 1
        try:
            await self._handle(reader, writer)
            writer.close()
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # who asked has gone, or the test is over
        finally:
            if not writer.is_closing():
                writer.transport.abort()
            self._tasks.remove(task)
            if not self._tasks:
                self._nobody.set()

    async def until_nobody(self) -> None:
        await self._nobody.wait()

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)


@asynccontextmanager
async def serving(
    handle: Handle, tls: ssl.SSLContext | None = None, bound: socket.socket | None = None
) -> AsyncIterator[Server]:
    """A server that is listening.

    Args:
        bound: where, if not at any port.
    """
    server = Server(handle)
    if bound is None:
        bound = socket.socket()
        # Hundreds that nobody reads from would else take all memory that the kernel has for them.
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 128 * 1024)
        bound.bind(("127.0.0.1", 0))
    if bound.family == socket.AF_UNIX:
        listener = await asyncio.start_unix_server(server.serve, sock=bound)
    else:
        server.port = bound.getsockname()[1]
        listener = await asyncio.start_server(server.serve, sock=bound, ssl=tls, backlog=512)
    try:
        yield server
    finally:
        listener.close()
        await server.stop()


async def head(reader: asyncio.StreamReader) -> bytes:
    return (await reader.readuntil(b"\r\n\r\n")).lower()


async def body(reader: asyncio.StreamReader, of: bytes) -> bytes:
    """The body that the head announces by its length."""
    length = of.partition(b"content-length: ")[2].partition(b"\r\n")[0]
    return await reader.readexactly(int(length or 0))


async def answers(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Reads requests, and says how large their bodies were and what they were."""
    while True:
        got = await body(reader, await head(reader))
        says = hashlib.sha256(got).hexdigest().encode()
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(says), says))


async def until(true: Callable[[], bool], what: str) -> None:
    """Wait for a state that nothing announces."""
    give_up = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < give_up, f"it never came to this: {what}"
        await asyncio.sleep(0.002)


@contextmanager
def full(host: str = "127.0.0.1") -> Iterator[int]:
    """A port at which connecting takes for ever: its queue is full, and nobody accepts."""
    with socket.socket() as listener:
        listener.bind((host, 0))
        listener.listen(0)
        waiting = [socket.socket() for _ in range(4)]
        for one in waiting:
            one.setblocking(False)
            one.connect_ex(listener.getsockname())
        yield listener.getsockname()[1]
        for one in waiting:
            one.close()


class RudeServer:
    """Answers 401 as soon as the head is there, and resets the connection in the same breath."""

    def __init__(self, tls: ssl.SSLContext | None) -> None:
        self._tls = tls
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port: int = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            connection, _ = self._listener.accept()
            with connection:
                connection.settimeout(PATIENCE)
                # Else its last words may wait for an acknowledgement, and are lost here.
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                try:
                    self._answer(connection)
                except OSError:
                    return  # the test is over

    def _answer(self, connection: socket.socket) -> None:
        if self._tls is not None:
            connection = self._tls.wrap_socket(connection, server_side=True)
        received = b""
        while b"\r\n\r\n" not in received:
            if not (more := connection.recv(1000)):
                raise ConnectionResetError
            received += more
        connection.sendall(b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 3\r\n\r\nno!")
        connection.close()  # much is unread, so this is a reset

    def stop(self) -> None:
        socket.create_connection(("127.0.0.1", self.port)).close()
        self._thread.join(PATIENCE)
        self._listener.close()


def open_to(*ports: int) -> int:
    """How many sockets, connected or connecting to these ports, somebody still holds."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(int(row[2].partition(":")[2], 16) in ports and row[9] != "0" for row in rows)


async def pieces(data: bytes, size: int = 65536) -> AsyncIterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]
