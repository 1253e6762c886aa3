"""What httpcore2 sends and receives through. asyncio (or uvloop) only.

Sending ends with a WriteError as soon as an answer has begun or the connection is lost. httpcore2
takes that as the hint to read the answer.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from itertools import zip_longest
from typing import Any

import anyio
import httpcore2

from stt_sdk._apart import once
from stt_sdk._wire import Wire

# What is handed to the event loop at once; between two pieces an answer is looked for. Smaller ones
# make large bodies slower on uvloop.
PIECE = 512 * 1024
# RFC 8305, section 5: after so many seconds the next address is tried, too.
NEXT_ADDRESS_S = 0.25

_INFO = {"client_addr": "sockname", "server_addr": "peername", "socket": "socket"}
_AddressInfo = tuple[int, int, int, str, Any]  # as of getaddrinfo
_Options = Iterable[httpcore2.SOCKET_OPTION]
LatestTLS = Callable[[], ssl.SSLContext]


class Network(httpcore2.AsyncNetworkBackend):
    """Opens connections.

    Args:
        address: host name or IP address to connect to, whatever host is asked for.
        latest_tls: what a new connection uses, whatever httpcore2's pool was made with.
    """

    def __init__(self, address: str | None = None, latest_tls: LatestTLS | None = None) -> None:
        self._address = address
        self._latest_tls = latest_tls

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: _Options | None = None,
    ) -> Stream:
        async def connect() -> Stream:
            found = await _resolve(self._address or host, port)
            options = list(socket_options or ())
            opened = await _first([partial(_open, info, options, local_address) for info in found])
            create = asyncio.get_running_loop().create_connection
            return await _stream(opened, create, self._latest_tls)

        return await _in_time(timeout, connect())

    async def connect_unix_socket(
        self,
        path: str,
        timeout: float | None = None,
        socket_options: _Options | None = None,
    ) -> Stream:
        async def connect() -> Stream:
            info = (socket.AF_UNIX, socket.SOCK_STREAM, 0, "", path)
            opened = await _open(info, socket_options or ())
            return await _stream(opened, asyncio.get_running_loop().create_unix_connection)

        return await _in_time(timeout, connect())

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class Stream(httpcore2.AsyncNetworkStream):
    """One connection: a whole request, then its answer, and so on; never both at once."""

    def __init__(self, wire: Wire, latest_tls: LatestTLS | None = None) -> None:
        self._wire = wire
        self._latest_tls = latest_tls
        self._between = False  # an answer and the next request
        self._spoilt = False  # a part of a request was not sent
        self._unyielded = 0

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """What has arrived, even if the connection was lost since; b"" at its end.

        Raises:
            httpcore2.ReadError: the connection was lost, and nothing is left.
            httpcore2.ReadTimeout: nothing came within so many seconds.
        """
        wire = self._wire
        if not (wire.received or wire.over) and not await wire.until(
            lambda: bool(wire.received or wire.over), timeout
        ):
            raise httpcore2.ReadTimeout(f"nothing came within {timeout:g} s")
        self._between = True
        if wire.received:
            return wire.take(max_bytes)
        if wire.error is not None:
            raise httpcore2.ReadError(_say(wire.error)) from wire.error
        return b""

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """Send this, as long as it is wanted.

        Args:
            timeout: seconds for each piece of it: a large body may take its time.

        Raises:
            httpcore2.WriteError: an answer has begun, or the connection was lost.
            httpcore2.WriteTimeout: nothing was taken within so many seconds.
            httpcore2.ConnectionNotAvailable: it was lost before anything of this request was sent,
                which may go through another one. httpcore2's pool sees to that.
        """
        if not buffer:
            return
        if self._between:
            if self.get_extra_info("is_readable"):
                raise httpcore2.ConnectionNotAvailable
            self._between = False
        if len(buffer) <= PIECE:
            await self._send(buffer, timeout)
            return
        view = memoryview(buffer)
        for start in range(0, len(view), PIECE):
            await self._send(view[start : start + PIECE], timeout)

    async def _send(self, piece: bytes | memoryview, seconds: float | None) -> None:
        wire = self._wire
        self._expect(wire.wants())
        while not wire.put(piece):
            self._expect(await wire.news(seconds), seconds)
            self._expect(wire.wants())
        self._unyielded += len(piece)
        if wire.full:
            self._unyielded = 0
            in_time = await wire.until(lambda: not (wire.full and wire.wants()), seconds)
            self._expect(in_time, seconds)
            self._expect(not wire.full)
        elif self._unyielded >= PIECE:
            # Where the other side takes all at once, nothing would ever be read.
            self._unyielded = 0
            await asyncio.sleep(0)

    def _expect(self, good: bool, seconds: float | None = None) -> None:
        if not good:
            self._spoilt = True
            if seconds is not None:
                raise httpcore2.WriteTimeout(f"nothing was taken within {seconds:g} s")
            raise httpcore2.WriteError("the answer has begun, or the connection was lost")

    async def aclose(self) -> None:
        """Close, and forget what is unsent.

        It waits for nothing, so that whatever cancels the caller meanwhile, httpcore2's pool has
        its books in order. The event loop closes the socket in its next round.
        """
        self._wire.close()

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> Stream:
        """The same stream, encrypted. If that fails, it is closed.

        Raises:
            httpcore2.ConnectError: no handshake, or a certificate that does not hold.
            httpcore2.ConnectTimeout: not within so many seconds.
        """

        if self._latest_tls is not None:
            ssl_context = self._latest_tls()
            ssl_context.set_alpn_protocols(["http/1.1"])  # as httpcore2 does with its own

        # A dot at the end makes a name absolute for DNS. No certificate has it, and no SNI may
        # (RFC 6066, section 3).
        name = server_hostname and server_hostname.removesuffix(".")

        async def secure() -> Stream:
            await self._wire.secure(ssl_context, name)
            return self

        try:
            return await _in_time(timeout, secure())
        except BaseException:
            self._wire.close()
            raise

    def get_extra_info(self, info: str) -> Any:
        """As httpcore2 asks for it; `is_readable`: the connection is of no further use."""
        if info == "is_readable":
            return self._spoilt or self._wire.stirred()
        if info == "ssl_object":
            return self._wire.tls
        return self._wire.transport.get_extra_info(_INFO[info]) if info in _INFO else None


async def _in_time(seconds: float | None, connecting: Awaitable[Stream]) -> Stream:
    try:
        # asyncio.wait_for up to Python 3.11 forgets cancellations.
        with anyio.fail_after(seconds):
            return await connecting
    except TimeoutError as error:
        raise httpcore2.ConnectTimeout("no connection in time") from error
    except (OSError, UnicodeError) as error:  # the latter: a name that can be none
        raise httpcore2.ConnectError(_say(error)) from error


async def _resolve(host: str, port: int) -> list[_AddressInfo]:
    """The host's addresses, those of IPv6 and of IPv4 in turn."""
    look_up = partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
    try:
        found: list[_AddressInfo] = [*look_up(flags=socket.AI_NUMERICHOST)]  # needs no thread
    except socket.gaierror:
        found = await addresses(host, port)
    families: dict[int, list[_AddressInfo]] = {}
    for info in found:
        families.setdefault(info[0], []).append(info)
    return [info for row in zip_longest(*families.values()) for info in row if info]


async def addresses(host: str, port: int) -> list[_AddressInfo]:
    """What the system knows of a name, as the event loop asks it."""
    loop = asyncio.get_running_loop()
    try:
        return [*await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    except RuntimeError:  # the main thread has ended: see `in_thread`
        return await once(
            lambda: [*socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)], "stt_sdk"
        )


async def _open(
    info: _AddressInfo, options: _Options, local_address: str | None = None
) -> socket.socket:
    family, kind, protocol, _, address = info
    opened = socket.socket(family, kind, protocol)
    try:
        opened.setblocking(False)
        for option in options:
            opened.setsockopt(*option)
        if local_address is not None:
            opened.bind((local_address, 0))
        await asyncio.get_running_loop().sock_connect(opened, address)
    except BaseException:
        opened.close()
        raise
    return opened


async def _first(connects: list[Callable[[], Awaitable[socket.socket]]]) -> socket.socket:
    """The first connection that stands. asyncio can do this, too, but uvloop cannot."""
    if len(connects) == 1:
        return await connects[0]()
    waiting = deque(connects)
    tries: set[asyncio.Future[socket.socket]] = set()
    errors: list[str] = []
    try:
        while waiting or tries:
            if waiting:
                tries.add(asyncio.ensure_future(waiting.popleft()()))
            done, _ = await asyncio.wait(
                tries,
                timeout=NEXT_ADDRESS_S if waiting else None,
                return_when=asyncio.FIRST_COMPLETED,
            )
            for attempt in done:
                tries.remove(attempt)
                error = attempt.exception()
                if error is None:
                    return attempt.result()
                errors.append(_say(error))
        raise OSError("; ".join(errors))
    finally:
        for attempt in tries:
            attempt.cancel()
            attempt.add_done_callback(_drop)


def _drop(attempt: asyncio.Future[socket.socket]) -> None:
    if not attempt.cancelled() and attempt.exception() is None:
        attempt.result().close()


async def _stream(
    opened: socket.socket,
    create: Callable[..., Awaitable[Any]],
    latest_tls: LatestTLS | None = None,
) -> Stream:
    try:
        _, wire = await create(Wire, sock=opened)
    except BaseException:
        opened.close()
        raise
    return Stream(wire, latest_tls)


def _say(error: BaseException) -> str:
    return str(error) or type(error).__name__
