"""What surrounds a client: event loops, threads that outlive main, certificates, odd streams."""

from __future__ import annotations

import asyncio
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx2
import pytest

from fakes import PATIENCE, ScriptedFallback, answer_of_fallback
from servers import NAME, Certificate, Run, client, serving
from stt_sdk import CertificatesError, STTClient, STTPool, SyncSTTClient
from stt_sdk._transport import Transport
from tones import silence, wav

Started = Callable[..., ScriptedFallback]
CLIP = wav(silence(0.5))
HEARD = answer_of_fallback()

OUTLIVES = """
import sys, threading
from stt_sdk import SyncSTTClient
def work(main):
    main.join()
    with SyncSTTClient(sys.argv[1]) as stt:
        for outcome in stt.transcribe_many(sys.argv[2:]):
            print(outcome.index, outcome.error)
threading.Thread(target=work, args=(threading.main_thread(),)).start()
"""


@pytest.mark.process
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_batch_in_a_thread_that_outlives_main_is_done_to_its_end(
    scripted: Started, tmp_path: Path, host: str
) -> None:
    paths = [tmp_path / "small.wav", tmp_path / "large.wav"]
    for path, seconds in zip(paths, (0.5, 80.0), strict=True):  # one is read piece by piece
        path.write_bytes(wav(silence(seconds)))
    assert paths[1].stat().st_size > 1024 * 1024
    url = scripted().url.replace("127.0.0.1", host)
    done = subprocess.run(
        [sys.executable, "-c", OUTLIVES, url, *map(str, paths * 2)],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=True,
    )
    assert sorted(done.stdout.splitlines()) == [f"{index} None" for index in range(4)], done


class Pieces:
    """An asynchronous iterator whose `read` takes no size, as that of a part of a form."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for start in range(0, len(self._data), 1000):
            yield self._data[start : start + 1000]

    async def read(self, *, decode: bool = False) -> bytes:
        return self._data


class Whole:
    """All of it at once, or nothing."""

    async def read(self) -> bytes:
        return CLIP


@pytest.mark.parametrize("source", [Pieces(CLIP), Whole()], ids=["iterator", "whole"])
def test_a_reader_without_a_size_is_a_clip(scripted: Started, source: Any) -> None:
    server = scripted()

    async def scenario() -> None:
        async with STTClient(server.url) as stt:
            await stt.transcribe(source)

    asyncio.run(scenario())
    assert server.asked[0].parts["audio"] == CLIP


class Inbox:
    """Gives clips, and has a `read` that is about something else."""

    def __init__(self, *items: Any) -> None:
        self.items = items

    async def __aiter__(self) -> AsyncIterator[Any]:
        for item in self.items:
            yield item

    async def read(self, count: int) -> list[Any]:
        raise AssertionError("nobody asked for it")


def test_an_iterator_of_clips_may_have_a_read(scripted: Started, tmp_path: Path) -> None:
    (tmp_path / "clip.wav").write_bytes(CLIP)
    server = scripted()

    async def scenario() -> list[Exception | None]:
        async with STTClient(server.url) as stt:
            inbox = Inbox(str(tmp_path / "clip.wav"), tmp_path / "clip.wav")
            return [outcome.error async for outcome in stt.transcribe_many(inbox)]

    assert asyncio.run(scenario()) == [None, None]


@pytest.mark.parametrize("one", ["lines", "reader"])
def test_an_asynchronous_file_is_still_one_clip(scripted: Started, one: str) -> None:
    async def scenario() -> None:
        source = Inbox(b"line", b"line") if one == "lines" else asyncio.StreamReader()
        async with STTClient(scripted().url) as stt:
            async for _ in stt.transcribe_many(source):
                pass

    with pytest.raises(TypeError, match="this is one clip"):
        asyncio.run(scenario())


@pytest.mark.parametrize("dot", ["", "."])
def test_a_name_with_a_dot_at_its_end_has_the_certificate_of_the_one_without(
    run: Run, certificate: Certificate, dot: str
) -> None:
    asked: list[str | None] = []
    tls = certificate.server
    tls.sni_callback = lambda _, name, __: asked.append(name)

    async def answers(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        await writer.drain()

    async def scenario() -> None:
        transport = Transport(ssl_context=certificate.client, address="127.0.0.1")
        async with serving(answers, tls) as server, client(transport) as http:
            answer = await http.get(f"https://{NAME}{dot}:{server.port}/")
            assert answer.status_code == 200

    run(scenario())
    assert asked == [NAME]


@pytest.mark.parametrize("kind", ["missing", "folder", "no certificate", "missing folder"])
def test_certificates_that_cannot_be_loaded_are_no_missing_clip(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: str
) -> None:
    """Of them, and not of the clip, the error speaks; it names the variable and the path."""
    named = {"folder": tmp_path, "no certificate": tmp_path / "empty.pem"}.get(kind, tmp_path / "x")
    (tmp_path / "empty.pem").write_text("nothing\n")
    variable = "SSL_CERT_DIR" if kind == "missing folder" else "SSL_CERT_FILE"
    for name in ("SSL_CERT_FILE", "SSL_CERT_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, str(named))
    with (
        SyncSTTClient("https://127.0.0.1:9") as stt,
        pytest.raises(CertificatesError, match=f"{variable}={named}: ") as caught,
    ):
        stt.transcribe(CLIP)
    assert not isinstance(caught.value, OSError)
    assert caught.value.attempts == 1  # it would be the same the next time


def test_who_brings_certificates_needs_none_of_the_environments(
    monkeypatch: pytest.MonkeyPatch, nobody: str
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", "/nowhere.pem")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    for url, given in ((nobody, None), (nobody.replace("http:", "https:"), context)):
        with (
            SyncSTTClient(url, ssl_context=given, retries=0) as stt,
            pytest.raises(Exception, match="cannot connect"),
        ):
            stt.health()


@pytest.mark.parametrize("pool", [False, True])
def test_a_client_in_a_second_event_loop_says_so_at_once_whatever_is_asked(pool: bool) -> None:
    def answers(request: httpx2.Request) -> httpx2.Response:
        ready = {"ready": True, "state": "ready"}
        return httpx2.Response(200, json=ready if "ready" in request.url.path else HEARD)

    # In memory: nobody could close the sockets of an event loop that has ended.
    transport = httpx2.MockTransport(answers)
    url = "http://127.0.0.1:9"
    stt = STTPool([url], transport=transport) if pool else STTClient(url, transport=transport)

    async def every() -> None:
        async for outcome in stt.transcribe_many([CLIP]):
            outcome.result  # noqa: B018

    async def enter() -> None:
        async with stt:
            pass

    asyncio.run(every())
    for again in (every, enter, stt.health, stt.aclose, lambda: stt.transcribe(CLIP)):
        with pytest.raises(RuntimeError, match="make one for each loop"):
            asyncio.run(again())


def test_a_client_may_be_made_before_its_event_loop(scripted: Started) -> None:
    stt = STTClient(scripted().url)

    async def scenario() -> str:
        async with stt:
            return (await stt.transcribe(CLIP)).text

    assert asyncio.run(scenario()) == "from the fallback"
