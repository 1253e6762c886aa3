"""How connections are served: uvicorn's protocol, with limits on what comes before a request.

`uvicorn stt_primary:app --http stt_cascade.http.protocol:Protocol`. Until its headers are complete
the app does not know of a request, so these limits can be kept nowhere else. What breaks them, or
is no HTTP, is handed to the app as a request that is refused already: it gets the answer, the log
line and the counts of any other.
"""

from __future__ import annotations

import asyncio
import select
from typing import Any

import httptools
from uvicorn.protocols.http.flow_control import service_unavailable
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from stt_cascade.errors import InvalidRequest, Overloaded, Refusal, RequestTimeout
from stt_cascade.http.envelope import FOLLOWED, REFUSED

# From the connection's opening, or the first byte of a further request, to the end of its headers;
# and for how long a caller may take nothing of an answer. Between requests a connection may be idle
# for as long as `--timeout-keep-alive` says, which is for uvicorn itself to keep.
PATIENCE_S = 8.0
# How often a connection that is not read from is asked whether its caller has gone.
LOOK_S = 0.5
MAX_HEADERS = 100
# Of the request line and all headers; further, of what a body has around its chunks.
MAX_HEADER_BYTES = 32 * 1024


class Protocol(HttpToolsProtocol):
    """One connection."""

    _patience_timer: asyncio.TimerHandle | None = None
    _look_timer: asyncio.TimerHandle | None = None
    # uvicorn's own `cycle` is the last request that came, which may have to wait for this one.
    _working: RequestResponseCycle | None = None
    _broken = False
    _parse_refusal: Refusal | None = None
    _unsent = -1
    # A request has begun to come. Of it, the bytes of the URL and the headers that are parsed; all
    # bytes but the body's, among them what the parser keeps to itself, such as chunk extensions;
    # and those of the body.
    _coming = False
    _head_is_whole = False
    _header_lines = 0
    _header_bytes = 0
    _around = 0
    _body = 0

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.parser: Any = _Parser(self)

    def connection_made(
        self,
        transport: asyncio.Transport,  # type: ignore[override]  # uvicorn narrows it, too
    ) -> None:
        super().connection_made(transport)
        self._arm()

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm()
        if self._look_timer is not None:
            self._look_timer.cancel()
        if self._working is not None and not self._working.response_complete:
            self._working.disconnected = True
            self._working.message_event.set()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._broken:
            return
        self._around += len(data)
        if self._patience_timer is None and (self.cycle is None or self.cycle.response_complete):
            self._arm()
        super().data_received(data)
        # A request that ends within the data restarts the count.
        if self._around > MAX_HEADER_BYTES + self._body:
            self._refuse(_too_long())

    # What uvicorn calls, or the parser

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._coming = True
        self._head_is_whole = False
        self._header_lines = self._header_bytes = 0

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        self._count(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count(len(name) + len(value) + len(": \r\n"))
        self._header_lines += 1
        if self._header_lines > MAX_HEADERS:
            self._stop_parsing(InvalidRequest(f"more than {MAX_HEADERS} headers"))
        # Trailers come the same way, and must not change what the request is judged by.
        if not self._head_is_whole:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        if self.parser.offered():
            return
        self._disarm()
        self._head_is_whole = True
        super().on_headers_complete()
        if self.pipeline:
            self._look_for_its_end()

    def on_body(self, body: bytes) -> None:
        self._around -= len(body)
        self._body += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        if self.parser.offered():
            return
        self._around = self._body = 0
        self._coming = False
        super().on_message_complete()
        if self.cycle.response_complete and not self.transport.is_closing():
            # It was answered before its body had come. From now on the connection is idle.
            self._disarm()
            self._unset_keepalive_if_required()
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if not self.cycle.response_complete:
            return  # a request that has come meanwhile
        if self._around or self._coming:
            self._unset_keepalive_if_required()  # what comes has the patience of headers
            self._arm()
        elif not self.flow.write_paused:
            self._disarm()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._arm()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._unsent = -1

    def send_400_response(self, msg: str) -> None:
        self._refuse(self._parse_refusal or InvalidRequest("this is not an HTTP/1.1 request"))

    def _should_upgrade(self) -> bool:
        return False  # nothing here speaks WebSocket: the request is answered like any other

    def _unsupported_upgrade_warning(self) -> None:
        self.cycle.keep_alive = False  # what follows CONNECT is no HTTP

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._working = cycle
        if app is service_unavailable:  # by `--limit-concurrency`; its own answer is plain text
            scope: Any = cycle.scope
            scope[REFUSED] = Overloaded(
                f"the server has {self.limit_concurrency} connections or requests already",
                retry_after=1,
            )
            app = self.app
        super()._start_asgi_task(cycle, app)

    # What is added

    def _look_for_its_end(self) -> None:
        """While more than one request waits nothing is read, so the end would go unnoticed."""
        if self._look_timer is not None:
            self._look_timer.cancel()
        if self.transport.is_closing() or not self.flow.read_paused:
            return
        ended = select.poll()
        ended.register(self.transport.get_extra_info("socket").fileno(), select.POLLRDHUP)
        if ended.poll(0):
            self.transport.abort()
        else:
            self._look_timer = self.loop.call_later(LOOK_S, self._look_for_its_end)

    def _count(self, size: int) -> None:
        self._header_bytes += size
        if self._header_bytes > MAX_HEADER_BYTES:
            self._stop_parsing(_too_long())

    def _stop_parsing(self, why: Refusal) -> None:
        self._parse_refusal = why
        raise why  # the parser wraps it in an error of its own

    def _arm(self) -> None:
        self._disarm()
        self._patience_timer = self.loop.call_later(PATIENCE_S, self._overdue)

    def _disarm(self) -> None:
        if self._patience_timer is not None:
            self._patience_timer.cancel()
            self._patience_timer = None

    def _overdue(self) -> None:
        if self.transport.is_closing() or self.flow.write_paused:
            unsent = self.transport.get_write_buffer_size()
            if unsent == self._unsent:
                self.transport.abort()  # nothing of the answer was taken meanwhile
            else:
                self._unsent = unsent
                self._arm()
        elif self.cycle is not None and not self.cycle.response_complete:
            pass  # the answer is being taken again, and more of it is to come
        elif self._around or self._coming:
            self._refuse(RequestTimeout(f"the headers had not come within {PATIENCE_S:g} s"))
        elif self.cycle is None:
            self.transport.close()

    def _refuse(self, refusal: Refusal) -> None:
        """Answer what cannot become a request, and close the connection."""
        if self._broken:
            return
        self._broken = True
        self._disarm()
        self.flow.pause_reading()
        cycle = self.cycle
        if cycle is not None and not cycle.response_complete:
            if not cycle.more_body:
                cycle.keep_alive = False  # this one is whole: it is answered, and nothing after it
                scope: Any = cycle.scope
                scope[FOLLOWED] = True
                self._look_for_its_end()
                return
            if self.pipeline or cycle.response_started:
                self.transport.close()  # no place is left for another answer
                return
            cycle.disconnected = True  # its body broke: for the app, its caller has gone
            cycle.message_event.set()
        scope = {
            "type": "http",
            "asgi": {"version": self.asgi_version, "spec_version": "2.3"},
            "http_version": "1.1",
            "server": self.server,
            "client": self.client,
            "scheme": self.scheme,
            "method": "",
            "root_path": self.root_path,
            "path": "",
            "raw_path": b"",
            "query_string": b"",
            "headers": [],
            "state": self.app_state.copy(),
            REFUSED: refusal,
        }
        self.cycle = RequestResponseCycle(
            scope=scope,
            transport=self.transport,
            flow=self.flow,
            logger=self.logger,
            access_logger=self.access_logger,
            access_log=self.access_log,
            default_headers=self.server_state.default_headers,
            message_event=asyncio.Event(),
            expect_100_continue=False,
            keep_alive=False,
            on_response=self.on_response_complete,
        )
        self._start_asgi_task(self.cycle, self.app)


class _Parser:
    """httptools' parser, to which a request that offers an upgrade is a request.

    By itself it takes all that comes after such headers for the other protocol, the body too, as if
    the upgrade had been made. Java's HttpClient offers one by itself, `curl --http2` too.
    """

    def __init__(self, protocol: Protocol) -> None:
        self._protocol = protocol
        self._begin()

    def _begin(self) -> None:
        self._parser = httptools.HttpRequestParser(self._protocol)
        # As uvicorn has it.
        self._parser.set_dangerous_leniencies(lenient_data_after_close=True)

    def offered(self) -> bool:
        """Whether these are headers with an offer, which are parsed once more without it."""
        return self._parser.should_upgrade() and self._parser.get_method() != b"CONNECT"

    def feed_data(self, data: bytes | memoryview) -> None:
        while True:
            try:
                self._parser.feed_data(data)
                return
            except httptools.HttpParserUpgrade as upgrade:
                if not self.offered():
                    raise
                data = memoryview(data)[upgrade.args[0] :]
            head = self._head()
            self._begin()
            self._parser.feed_data(head)

    def _head(self) -> bytes:
        """The request line and headers that were parsed, without the offer."""
        method, version = self._parser.get_method(), self._parser.get_http_version().encode()
        lines = [b"%s %s HTTP/%s" % (method, self._protocol.url, version)]
        for name, value in self._protocol.headers:
            if name != b"upgrade":
                lines.append(b"%s: %s" % (name, value))
        return b"\r\n".join([*lines, b"", b""])

    def __getattr__(self, name: str) -> Any:
        return getattr(self._parser, name)


def _too_long() -> Refusal:
    return InvalidRequest(f"the headers are longer than {MAX_HEADER_BYTES} bytes")
