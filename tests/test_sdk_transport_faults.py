"""The SDK's transport when calls are cancelled, or something is wrong with the other side."""

from __future__ import annotations

import asyncio
import random
import socket
import ssl
from collections.abc import Callable, Coroutine
from functools import partial
from pathlib import Path
from typing import Any

import httpcore2
import httpx2
import pytest

from fakes import PATIENCE
from servers import (
    NAME,
    OK,
    Certificate,
    Run,
    answers,
    body,
    client,
    full,
    head,
    open_to,
    serving,
    until,
)
from stt_sdk._network import Network
from stt_sdk._transport import Transport


class Holds:
    """Answers, but for a request whose path says where it gets stuck until its wave is over."""

    def __init__(self) -> None:
        self.over = asyncio.Event()

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            of, over = await head(reader), self.over
            if of.startswith(b"post /sending"):
                await over.wait()
            await body(reader, of)
            if of.startswith(b"post /waiting"):
                await over.wait()
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\no")
            if of.startswith(b"post /reading"):
                await over.wait()
            writer.write(b"k")


# Cancellation


@pytest.mark.process
@pytest.mark.parametrize("secure", [False, True])
def test_after_many_requests_that_were_cancelled_in_each_stage_a_hundred_succeed(
    run: Run, secure: bool, certificate: Certificate, request: pytest.FixtureRequest
) -> None:
    waves = request.config.getoption("--cancelled-calls") // 100
    chance = random.Random(7)
    scheme = "https" if secure else "http"

    async def wave(ask: Callable[[], Coroutine[Any, Any, Any]], all_are_stuck: bool) -> None:
        calls = [asyncio.ensure_future(ask()) for _ in range(100)]
        if all_are_stuck:
            await asyncio.sleep(0.3)
        for call in chance.sample(calls, 100):
            for _ in range(chance.randrange(4)):
                await asyncio.sleep(0)
            call.cancel()
        await asyncio.wait(calls)
        assert all(call.cancelled() for call in calls)

    async def scenario(dead_end: int) -> None:
        transport = Transport(ssl_context=certificate.client, address="127.0.0.1")
        tls = certificate.server if secure else None
        holds = Holds()
        async with serving(holds, tls) as server, client(transport, timeout=None) as http:
            base = f"{scheme}://{NAME}:{server.port}"
            stuck = [f"{base}/{stage}" for stage in ("sending", "waiting", "reading")]
            for url in (f"{scheme}://{NAME}:{dead_end}/", *stuck):
                size = 20_000_000 if url.endswith("sending") else 1000
                ask = partial(http.post, url, content=bytes(size))
                for number in range(waves):
                    await wave(ask, all_are_stuck=number == 0)
                    holds.over.set()
                    holds.over = asyncio.Event()
            await until(lambda: open_to(server.port, dead_end) == others, "all are closed")
            good = [http.post(base, content=b"clip") for _ in range(100)]
            assert [answer.text for answer in await asyncio.gather(*good)] == ["ok"] * 100
            await until(lambda: open_to(server.port) <= 64, "64 are kept")
        await until(lambda: open_to(server.port) == 0, "none is left")

    with full() as dead_end:
        others = open_to(dead_end)
        run(scenario(dead_end))


def test_closing_the_client_ends_what_is_under_way(run: Run) -> None:
    asked = asyncio.Event()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await head(reader)
        asked.set()
        await reader.read()

    async def scenario() -> None:
        async with serving(silent) as server:
            async with client() as http:
                call = asyncio.ensure_future(http.get(server.url))
                await asked.wait()
            with pytest.raises(httpx2.ReadError):
                await call
            await server.until_nobody()

    run(scenario())


# What goes wrong


@pytest.mark.parametrize(
    ("stage", "bounded", "error"),
    [
        ("connecting", "connect", httpx2.ConnectTimeout),
        ("sending", "write", httpx2.WriteTimeout),
        ("waiting", "read", httpx2.ReadTimeout),
        ("reading", "read", httpx2.ReadTimeout),
    ],
)
def test_a_timeout_names_the_stage_and_the_request(
    run: Run, stage: str, bounded: str, error: type[httpx2.TimeoutException]
) -> None:
    timeout = httpx2.Timeout(**{"timeout": PATIENCE, bounded: 0.1})

    async def scenario(dead_end: int) -> None:
        async with serving(Holds()) as server, client(timeout=timeout) as http:
            port = dead_end if stage == "connecting" else server.port
            url = f"http://127.0.0.1:{port}/{stage}"
            with pytest.raises(error) as caught:
                await http.post(url, content=bytes(20_000_000 if stage == "sending" else 1))
            assert caught.value.request.url == url

    with full() as dead_end:
        run(scenario(dead_end))


def test_a_large_body_may_take_longer_than_the_timeout_as_long_as_it_goes_on(run: Run) -> None:
    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await head(reader)
        for _ in range(12):
            await reader.readexactly(1_000_000)
            await asyncio.sleep(0.1)
        writer.write(OK)

    async def scenario() -> None:
        timeout = httpx2.Timeout(PATIENCE, write=0.8)
        async with serving(slow) as server, client(timeout=timeout) as http:
            assert (await http.post(server.url, content=bytes(12_000_000))).text == "ok"

    run(scenario())


@pytest.mark.parametrize(
    ("url", "error"),
    [
        ("http://127.0.0.1:1", httpx2.ConnectError),
        ("http://nowhere.invalid", httpx2.ConnectError),
        (f"http://{'a' * 70}.test", httpx2.ConnectError),
        ("ftp://127.0.0.1", httpx2.UnsupportedProtocol),
    ],
)
def test_what_cannot_be_reached_is_told_in_the_clients_own_words(
    run: Run, url: str, error: type[httpx2.TransportError]
) -> None:
    async def scenario() -> None:
        async with client() as http:
            with pytest.raises(error) as caught:
                await http.get(url)
            assert str(caught.value)

    run(scenario())


@pytest.mark.parametrize("says", [b"SSH-2.0-OpenSSH_9.6\r\n", b""])
def test_what_is_no_http_is_a_protocol_error(run: Run, says: bytes) -> None:
    async def other(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await head(reader)
        writer.write(says)
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    async def scenario() -> None:
        async with serving(other) as server, client() as http:
            with pytest.raises(httpx2.RemoteProtocolError):
                await http.get(server.url)

    run(scenario())


# TLS


@pytest.mark.parametrize(
    ("name", "says"), [(NAME, ""), ("other.test", "is not valid for 'other.test'")]
)
def test_a_pinned_address_leaves_the_name_to_tls_and_the_host_header(
    run: Run, certificate: Certificate, name: str, says: str
) -> None:
    async def names(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host = (await head(reader)).partition(b"host: ")[2].partition(b":")[0]
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(host), host))

    async def scenario() -> None:
        transport = Transport(ssl_context=certificate.client, address="127.0.0.1")
        async with serving(names, certificate.server) as server, client(transport) as http:
            url = f"https://{name}:{server.port}"
            if says:
                with pytest.raises(httpx2.ConnectError, match=says):
                    await http.get(url)
                await server.until_nobody()
            else:
                assert (await http.get(url)).text == NAME

    run(scenario())


def test_a_certificate_that_nobody_vouches_for_is_refused(
    run: Run, certificate: Certificate
) -> None:
    async def scenario() -> None:
        transport = Transport(address="127.0.0.1")
        async with serving(answers, certificate.server) as server, client(transport) as http:
            with pytest.raises(httpx2.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
                await http.get(f"https://{NAME}:{server.port}")

    run(scenario())


@pytest.mark.parametrize("says", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"", None])
def test_a_server_without_tls_is_a_connect_error_in_time(
    run: Run, certificate: Certificate, says: bytes | None
) -> None:
    async def bare(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        if says is None:
            await reader.read()
        else:
            writer.write(says)
            await writer.drain()
            writer.close()
            await writer.wait_closed()

    async def scenario() -> None:
        transport = Transport(ssl_context=certificate.client)
        timeout = 0.2 if says is None else PATIENCE
        async with serving(bare) as server, client(transport, timeout=timeout) as http:
            with pytest.raises(httpx2.ConnectTimeout if says is None else httpx2.ConnectError):
                await http.get(f"https://127.0.0.1:{server.port}")
            await server.until_nobody()

    run(scenario())


def test_an_answer_over_tls_that_breaks_off_is_an_error(run: Run, certificate: Certificate) -> None:
    async def breaks(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await head(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf")
        await writer.drain()

    async def scenario() -> None:
        transport = Transport(ssl_context=certificate.client, address="127.0.0.1")
        async with serving(breaks, certificate.server) as server, client(transport) as http:
            with pytest.raises((httpx2.ReadError, httpx2.RemoteProtocolError)):
                await http.get(f"https://{NAME}:{server.port}")

    run(scenario())


def test_what_is_sent_before_tls_is_not_taken_for_an_answer(
    run: Run, certificate: Certificate
) -> None:
    """Anybody between could put it there."""

    async def injects(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(OK)
        await reader.read()

    async def scenario() -> None:
        async with serving(injects) as server:
            stream = await Network().connect_tcp("127.0.0.1", server.port)
            await until(lambda: bool(stream.get_extra_info("is_readable")), "it has come")
            await asyncio.sleep(0.01)  # as far as the event loop
            with pytest.raises(httpcore2.ConnectError, match="not open for TLS"):
                await stream.start_tls(certificate.client, NAME, PATIENCE)
            await server.until_nobody()

    run(scenario())


def test_an_answer_that_comes_with_the_end_of_the_handshake_is_read(
    run: Run, certificate: Certificate
) -> None:
    context = certificate.server
    context.maximum_version = ssl.TLSVersion.TLSv1_2  # there the server has the last word

    async def at_once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = context.wrap_bio(incoming, outgoing, server_side=True)
        while True:
            try:
                tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                writer.write(outgoing.read())
                incoming.write(await reader.read(65536))
        tls.write(OK)
        writer.write(outgoing.read())
        await reader.read()

    async def scenario() -> None:
        transport = Transport(ssl_context=certificate.client, address="127.0.0.1")
        async with serving(at_once) as server, client(transport) as http:
            assert (await http.get(f"https://{NAME}:{server.port}")).text == "ok"

    run(scenario())


def test_plain_http_needs_no_tls_at_all(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading the authorities' certificates takes longer than a clip."""

    def none(*_: Any, **__: Any) -> ssl.SSLContext:
        raise AssertionError("there is no need for it")

    async def scenario() -> None:
        async with serving(answers) as server:
            monkeypatch.setattr(ssl, "SSLContext", none)
            async with client() as http:
                assert (await http.post(server.url, content=b"clip")).status_code == 200

    run(scenario())


# Opening connections


def test_a_host_with_an_address_that_never_answers_is_reached_at_its_other_one(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def both(host: str, port: int, **_: Any) -> list[Any]:
        return [
            (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (address, port))
            for address in ("127.0.0.2", "127.0.0.1")
        ]

    async def scenario(port: int) -> None:
        others = open_to(port)
        bound = socket.socket()
        bound.bind(("127.0.0.1", port))
        monkeypatch.setattr(socket, "getaddrinfo", both)
        async with serving(answers, bound=bound), client() as http:
            assert (await http.get(f"http://two.test:{port}")).status_code == 200
            await until(lambda: open_to(port) == others + 1, "the other attempt is given up")

    with full("127.0.0.2") as port:
        run(scenario(port))


def test_connections_by_unix_sockets_and_from_a_local_address(run: Run, tmp_path: Path) -> None:
    request = b"POST / HTTP/1.1\r\nContent-Length: 1\r\n\r\nx"

    async def scenario() -> None:
        bound = socket.socket(socket.AF_UNIX)
        bound.bind(str(tmp_path / "socket"))
        async with serving(answers, bound=bound), serving(answers) as server:
            network = Network()
            options = [(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)]
            streams = [
                await network.connect_unix_socket(str(tmp_path / "socket"), PATIENCE, options),
                await network.connect_tcp("127.0.0.1", server.port, PATIENCE, "127.0.0.3", options),
            ]
            for stream in streams:
                opened = stream.get_extra_info("socket")
                assert opened.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
                await stream.write(request)
                assert (await stream.read(100)).startswith(b"HTTP/1.1 200 OK")
            opened = streams[1].get_extra_info("socket")
            assert opened.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
            assert streams[1].get_extra_info("client_addr")[0] == "127.0.0.3"
            assert streams[1].get_extra_info("server_addr") == ("127.0.0.1", server.port)
            assert streams[1].get_extra_info("ssl_object") is None
            for stream in streams:
                await stream.aclose()
            with pytest.raises(httpcore2.ConnectError):
                await network.connect_unix_socket(str(tmp_path / "nothing"))

    run(scenario())
