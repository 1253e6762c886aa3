"""The SDK's transport, under httpx2's client, against the service and against worse servers.

With `httpx2.AsyncHTTPTransport()` in its place, every early answer is lost in a ReadError.
"""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import inspect
import random
import socket
import struct
import threading
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import pytest
import uvicorn

from fakes import PRIMARY_KEY, FakeEngine
from running import TRANSCRIBE, RunningTier, Tiers, fallback_config
from servers import (
    NAME,
    OK,
    Certificate,
    RudeServer,
    Run,
    answers,
    body,
    client,
    head,
    pieces,
    serving,
    until,
)
from stt_sdk._network import PIECE, Network
from stt_sdk._transport import LIMITS, Transport
from stt_sdk._wire import MAX_RECEIVED

# Far beyond what the kernel takes while nobody reads.
LARGE = bytes(100_000_000)


def content(kind: str) -> dict[str, Any]:
    """A large body, as callers give it."""
    if kind == "multipart":
        return {"files": {"audio": ("clip.wav", LARGE)}}
    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    if kind == "bytes":
        return {"content": LARGE, "headers": headers}
    if kind == "announced":
        headers["Content-Length"] = str(len(LARGE))
    return {"content": pieces(LARGE), "headers": headers}


BODIES = ["bytes", "chunked", "announced", "multipart"]


# Early answers


@pytest.fixture(scope="module")
def guarded(shared_tiers: Tiers) -> RunningTier:
    return shared_tiers.run(fallback_config(api_keys=(PRIMARY_KEY,), max_upload_mb=1))


@pytest.mark.parametrize("kind", BODIES)
def test_a_large_upload_without_a_key_is_401(run: Run, guarded: RunningTier, kind: str) -> None:
    async def scenario() -> None:
        async with client(base_url=guarded.url) as http:
            answer = await http.post(TRANSCRIBE, **content(kind))
            assert answer.status_code == 401
            assert answer.json()["error"]["type"] == "unauthorized"

    run(scenario())


@pytest.mark.parametrize("kind", BODIES)
def test_too_large_an_upload_is_413(run: Run, guarded: RunningTier, kind: str) -> None:
    async def scenario() -> None:
        async with client(base_url=guarded.url) as http:
            http.headers.update(guarded.authorization)
            answer = await http.post(TRANSCRIBE, **content(kind))
            assert answer.status_code == 413
            assert answer.json()["error"]["type"] == "payload_too_large"

    run(scenario())


def test_a_large_upload_to_a_service_that_is_not_ready_is_503(run: Run, tiers: Tiers) -> None:
    loading = tiers.run(fallback_config(), FakeEngine(loads=threading.Event()), wait=False)

    async def scenario() -> None:
        async with client(base_url=loading.url) as http:
            answer = await http.post(TRANSCRIBE, **content("multipart"))
            assert (answer.status_code, answer.headers["X-Error-Type"]) == (503, "not_ready")
            assert int(answer.headers["Retry-After"]) >= 1

    run(scenario())


@pytest.mark.parametrize("secure", [False, True])
def test_an_early_answer_is_read_even_if_a_reset_follows_it_at_once(
    run: Run, secure: bool, certificate: Certificate
) -> None:
    server = RudeServer(certificate.server if secure else None)

    async def scenario() -> None:
        transport = Transport(ssl_context=certificate.client, address="127.0.0.1")
        url = f"{'https' if secure else 'http'}://{NAME}:{server.port}/"
        async with client(transport) as http:
            for kind in BODIES * 10:
                answer = await http.post(url, **content(kind))
                assert (answer.status_code, answer.text) == (401, "no!")

    try:
        run(scenario())
    finally:
        server.stop()


def test_interim_answers_do_not_end_an_upload(run: Run) -> None:
    async def informs(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        of = await head(reader)
        for part in (
            b"HTTP/1.1 1",
            b"00 Continue\r\n",
            b"\r\nHTTP/1.1 103 Early Hints\r\nLink: <x",
        ):
            writer.write(part)
            await reader.readexactly(1)
        writer.write(b">\r\n\r\n")
        rest = await body(reader, of.replace(b"5000000", b"4999997"))
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n%d" % len(rest))

    async def scenario() -> None:
        async with serving(informs) as server, client() as http:
            answer = await http.post(server.url, content=bytes(5_000_000))
            assert (answer.status_code, answer.text) == (200, "4999997")

    run(scenario())


def test_after_an_early_answer_the_connection_is_not_used_again(run: Run) -> None:
    """However little was not sent: the end of a chunked body, and the next request came of it."""
    answered = asyncio.Event()

    async def hasty(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await head(reader)
            writer.write(OK)
            answered.set()
            await reader.readuntil(b"0\r\n\r\n")

    async def nearly_all() -> AsyncIterator[bytes]:
        yield b"all but the end"
        await answered.wait()
        await asyncio.sleep(0.01)  # it arrives

    async def scenario() -> None:
        async with serving(hasty) as server, client() as http:
            for connections in (1, 2):
                answered.clear()
                assert (await http.post(server.url, content=nearly_all())).text == "ok"
                assert server.connections == connections

    run(scenario())


# Connections


def test_a_connection_is_used_again(run: Run, guarded: RunningTier) -> None:
    async def scenario() -> None:
        async with serving(answers) as server, client() as http:
            for _ in range(3):
                answer = await http.post(server.url, content=b"clip")
                assert answer.text == hashlib.sha256(b"clip").hexdigest()
            assert server.connections == 1

    run(scenario())


def test_a_connection_that_was_closed_while_idle_is_not_used_again(run: Run) -> None:
    """Even if its end has come as far as the kernel only, and the event loop knows nothing yet."""

    async def closes(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await body(reader, await head(reader))
        writer.write(OK)

    async def scenario() -> None:
        async with serving(closes) as server, client() as http:
            for number in range(100):
                assert (await http.post(server.url, content=b"clip")).text == "ok"
                await server.until_nobody()
                assert server.connections == number + 1

    run(scenario())


def test_a_request_that_meets_the_end_of_its_connection_goes_through_another_one(run: Run) -> None:
    """Nothing of it was sent, so nobody can have worked on it."""

    async def scenario() -> None:
        async with serving(answers) as server, client() as http:

            async def trace(event: str, _: Any) -> None:
                if event == "http11.send_request_headers.started" and server.connections == 1:
                    await server.stop()

            await http.post(server.url, content=b"clip")
            answer = await http.post(server.url, content=b"clip", extensions={"trace": trace})
            assert answer.text == hashlib.sha256(b"clip").hexdigest()
            assert server.connections == 2

    run(scenario())


def test_a_server_that_always_hangs_up_is_asked_once(run: Run) -> None:
    async def hangs_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        pass

    async def scenario() -> None:
        async with serving(hangs_up) as server, client() as http:
            with pytest.raises((httpx2.RemoteProtocolError, httpx2.ReadError)):
                await http.post(server.url, content=b"clip")
            assert server.connections == 1

    run(scenario())


def test_idle_connections_are_closed_before_the_service_does_it() -> None:
    theirs = inspect.signature(uvicorn.Config).parameters["timeout_keep_alive"].default
    assert LIMITS.keepalive_expiry is not None
    assert LIMITS.keepalive_expiry < theirs


@pytest.mark.parametrize("missing", [0, 1])
def test_a_reset_after_a_whole_answer_does_no_harm_and_before_its_end_is_an_error(
    run: Run, missing: int
) -> None:
    text = b"x" * 100_000

    async def resets(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await body(reader, await head(reader))
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (len(text) + missing))
        writer.write(text)
        await until(lambda: not writer.transport.get_write_buffer_size(), "all is sent")
        linger = struct.pack("ii", 1, 0)  # none: closing resets the connection
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)

    async def scenario() -> None:
        async with serving(resets) as server, client() as http:
            if missing:
                with pytest.raises(httpx2.ReadError) as caught:
                    await http.post(server.url, content=b"clip")
                assert caught.value.request.url == server.url
            else:
                assert (await http.post(server.url, content=b"clip")).content == text

    run(scenario())


@pytest.mark.parametrize("secure", [False, True])
@pytest.mark.parametrize("size", [1, PIECE, PIECE + 1, 5_000_000])
def test_a_body_arrives_as_it_is(
    run: Run, size: int, secure: bool, certificate: Certificate
) -> None:
    data = random.Random(size).randbytes(size)

    async def scenario() -> None:
        tls = certificate.server if secure else None
        transport = Transport(ssl_context=certificate.client, address="127.0.0.1")
        async with serving(answers, tls) as server, client(transport) as http:
            url = f"{'https' if secure else 'http'}://{NAME}:{server.port}"
            announced = {"Content-Length": str(size)}
            for given in (data, pieces(data, 70_000)):
                answer = await http.post(url, content=given, headers=announced)
                assert answer.text == hashlib.sha256(data).hexdigest()
            assert server.connections == 1

    run(scenario())


def test_what_nobody_reads_stays_with_the_server(run: Run) -> None:
    size = 100_000_000
    sent = 0

    async def pours(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await head(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
        for _ in range(size // 100_000):
            writer.write(bytes(100_000))
            await writer.drain()
            sent += 100_000

    async def stalled() -> bool:
        before = sent
        await asyncio.sleep(0.1)
        return sent == before > 0

    async def scenario() -> None:
        async with (
            serving(pours) as server,
            client() as http,
            http.stream("GET", server.url) as answer,
        ):
            while not await stalled():
                pass
            # What the kernel holds is not ours to bound.
            assert sent < size / 2
            assert sum([len(part) async for part in answer.aiter_raw()]) == size

    run(scenario())


def test_what_is_received_and_not_read_is_bounded(run: Run) -> None:
    async def pours(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            writer.write(bytes(100_000))
            await writer.drain()

    async def scenario() -> None:
        async with serving(pours) as server:
            stream = await Network().connect_tcp("127.0.0.1", server.port)
            for _ in range(5):
                await asyncio.sleep(0.05)
                assert len(await stream.read(2**30)) < 2 * MAX_RECEIVED
            await stream.aclose()

    run(scenario())


def test_compressed_answers_and_answers_without_a_body_are_understood(run: Run) -> None:
    async def compresses(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            of = await head(reader)
            data = gzip.compress(b"text " * 1000)
            writer.write(
                b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n%s"
                % (len(data), b"" if of.startswith(b"head") else data)
            )

    async def scenario() -> None:
        async with serving(compresses) as server, client() as http:
            assert (await http.get(server.url)).text == "text " * 1000
            nothing = await http.head(server.url)
            assert (nothing.status_code, nothing.content) == (200, b"")
            assert int(nothing.headers["Content-Length"]) > 0
            assert (await http.get(server.url)).text == "text " * 1000
            assert server.connections == 1

    run(scenario())


@pytest.mark.parametrize("secure", [False, True])
def test_an_answer_without_a_length_ends_with_its_connection(
    run: Run, secure: bool, certificate: Certificate
) -> None:
    async def old(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await head(reader)
        writer.write(b"HTTP/1.0 200 OK\r\n\r\n" + b"x" * 1000)
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    async def scenario() -> None:
        tls = certificate.server if secure else None
        transport = Transport(ssl_context=certificate.client, address="127.0.0.1")
        async with serving(old, tls) as server, client(transport) as http:
            url = f"{'https' if secure else 'http'}://{NAME}:{server.port}"
            assert (await http.get(url)).text == "x" * 1000

    run(scenario())
