"""One connection as the event loop has it: read at all times, in the clear or through TLS.

TLS is done here and not by the event loop: that would throw away what had come in when sending
fails, which is when the answer to a refused upload is lying there.
"""

from __future__ import annotations

import asyncio
import os
import re
import select
import ssl
from collections.abc import Callable
from contextlib import suppress

# Received and not yet asked for; what the event loop reads at once, up to 256 KiB, comes on top.
MAX_RECEIVED = 256 * 1024
_READ_BYTES = 64 * 1024

# Interim answers (100, 102, 103) say that the body is still wanted. 101 is a final one.
_INTERIM = re.compile(rb"HTTP/1\.\d 1(?!01)\d\d[^\n]*\n(?:[^\r\n][^\n]*\n)*\r?\n")
_INTERIM_BEGINS = re.compile(rb"HTTP/1\.\d 1(?!01)\d\d")
_STATUS_BYTES = len(b"HTTP/1.1 100")


class Wire(asyncio.Protocol):
    """What has come on a connection, and what became of it.

    Attributes:
        received: what nobody has asked for yet, decrypted.
        full: the event loop has enough to send.
        over: nothing else will come.
        error: why, unless the other side ended it.
        tls: once it has begun.
    """

    transport: asyncio.Transport

    def __init__(self) -> None:
        self.received = bytearray()
        self.full = False
        self.over = False
        self.error: Exception | None = None
        self.tls: ssl.SSLObject | None = None
        self._loop = asyncio.get_running_loop()
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._secured = False
        self._interim = 0  # so many bytes of `received` are interim answers
        self._paused = False
        self._news = 0  # of the other side, so far
        self._waiter: asyncio.Future[None] | None = None

    # What the event loop calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]  # asyncio's own narrow it, too

    def data_received(self, data: bytes) -> None:
        self._take_in(data)
        if len(self.received) >= MAX_RECEIVED and not self._paused:
            self._paused = True
            self.transport.pause_reading()

    def eof_received(self) -> None:
        self._end()

    def connection_lost(self, exc: Exception | None) -> None:
        if exc is not None:
            self._rescue()
        self._end(exc)

    def pause_writing(self) -> None:
        self.full = True

    def resume_writing(self) -> None:
        self.full = False
        self._wake()

    # What the stream calls

    def put(self, data: bytes | memoryview) -> bool:
        """Send this, or tell that TLS has to hear from the other side first."""
        if self.tls is None:
            self.transport.write(data)
            return True
        try:
            self.tls.write(data)
        except ssl.SSLWantReadError:
            return False
        except ssl.SSLError as error:
            self._fail(error)
        finally:
            self._send_records()
        return True

    def take(self, most: int) -> bytes:
        data = bytes(self.received[:most])
        del self.received[:most]
        self._interim = 0
        if self._paused and len(self.received) < MAX_RECEIVED // 2:
            self._paused = False
            self.transport.resume_reading()
        return data

    def wants(self) -> bool:
        """Whether the other side is there and has not answered yet."""
        return not (self.over or self.transport.is_closing() or self._answered())

    def stirred(self) -> bool:
        """Whether anything has come, be it the end, or has reached the kernel."""
        if self.received or self.over or self.transport.is_closing():
            return True
        return _readable(self.transport.get_extra_info("socket").fileno())

    async def secure(self, context: ssl.SSLContext, name: str | None) -> None:
        """Begin TLS.

        Raises:
            OSError: no handshake, or a certificate that does not hold.
        """
        if self.received or not self.wants():
            # A server speaks only when spoken to; what it sends before is no TLS.
            raise ConnectionResetError("not open for TLS")
        self.tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname=name)
        while not self._secured:
            try:
                self.tls.do_handshake()
                self._secured = True
            except ssl.SSLWantReadError:
                if self.over:
                    why = self.error or "the other side hung up"
                    raise ConnectionResetError(f"during the TLS handshake: {why}") from None
            finally:
                self._send_records()
            if not self._secured:
                await self.news(None)
        self._take_in(b"")  # what came along with the end of the handshake

    async def news(self, seconds: float | None) -> bool:
        """Whether the other side is heard of within so many seconds."""
        known = self._news
        return await self.until(lambda: self._news > known or self.over, seconds)

    async def until(self, true: Callable[[], bool], seconds: float | None) -> bool:
        """Whether something that the event loop brings about came true in so many seconds.

        The timer wakes, and cancels nothing: so no cancellation can be taken for it.
        """
        late = False

        def too_late() -> None:
            nonlocal late
            late = True
            self._wake()

        timer = None if seconds is None else self._loop.call_later(seconds, too_late)
        try:
            while not true():
                if late:
                    return False
                self._waiter = self._loop.create_future()
                await self._waiter
            return True
        finally:
            self._waiter = None
            if timer is not None:
                timer.cancel()

    def close(self) -> None:
        """Now, whatever is unsent. Like httpx2, without a word of TLS, which may take time."""
        self.error = self.error or ConnectionAbortedError("closed on this side")
        self.transport.abort()

    # What both lead to

    def _take_in(self, data: bytes) -> None:
        if self.tls is None:
            self.received += data
        else:
            self._incoming.write(data)
            if self._secured:
                self._decrypt(self.tls)
        self._news += 1
        self._wake()

    def _decrypt(self, tls: ssl.SSLObject) -> None:
        try:
            while data := tls.read(_READ_BYTES):
                self.received += data
            self._end()
            self.transport.close()
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError as error:
            self._fail(error)
        self._send_records()

    def _send_records(self) -> None:
        if self._outgoing.pending and not self.transport.is_closing():
            self.transport.write(self._outgoing.read())

    def _fail(self, error: Exception) -> None:
        self._end(error)
        self.transport.close()  # once the alert is out that says why

    def _end(self, error: Exception | None = None) -> None:
        self.error = self.error or error
        self.over = True
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _answered(self) -> bool:
        received = self.received
        if not received:
            return False
        while interim := _INTERIM.match(received, self._interim):
            self._interim = interim.end()
        if len(received) - self._interim < _STATUS_BYTES:
            return False
        return not _INTERIM_BEGINS.match(received, self._interim)

    def _rescue(self) -> None:
        """Read what came before the connection broke.

        Where sending fails, the event loop gives the socket up without another look at it. The
        answer lies there, if the other side closed at once.
        """
        descriptor = self.transport.get_extra_info("socket").fileno()
        with suppress(OSError):
            while len(self.received) < MAX_RECEIVED and (data := os.read(descriptor, _READ_BYTES)):
                self._take_in(data)


def _readable(descriptor: int) -> bool:
    if not hasattr(select, "poll"):
        return False  # on Windows the event loop's view must do
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(0))
