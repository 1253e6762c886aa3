"""A speech engine and a fallback that do as a test says."""

from __future__ import annotations

import json
import math
import os
import re
import socket
import struct
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal

import uvicorn

from stt_cascade.config import FallbackConfig, PrimaryConfig, TierConfig
from stt_cascade.config_file import load
from stt_cascade.engine.protocol import Clip, Options, Samples, Segment, Span, Utterance
from stt_cascade.http.app import create_app
from stt_cascade.http.protocol import Protocol
from stt_cascade.telemetry import logs
from stt_cascade.warning_codes import WarningCode

PATIENCE = 60.0  # seconds after which a test gives up: a busy machine is slow to load a model
PRIMARY_KEY = "primary-key-0123456789"
FALLBACK_KEY = "fallback-key-0123456789"
MULTILINGUAL = frozenset({"en", "de", "es", "fr", "pt", "it"})


class Clock:
    """Monotonic seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class FakeEngine:
    """Hears what it is told to hear; remembers what it was asked.

    Args:
        raises: instead of an answer.
        holds: an inference does not end before this is set.
        loads: the model is not loaded before this is set.
    """

    def __init__(
        self,
        text: str = "one two three four",
        *,
        language: str = "en",
        language_probability: float = 0.98,
        logprob: float = 0.9,
        weakest: float = 0.8,
        full_context: bool = False,
        doubted: bool = False,
        looped: bool = False,
        covered: bool = True,
        warnings: tuple[WarningCode, ...] = (),
        raises: Exception | None = None,
        holds: threading.Event | None = None,
        loads: threading.Event | None = None,
        languages: frozenset[str] = MULTILINGUAL,
        device: str = "cpu",
    ) -> None:
        self.text = text
        self.language = language
        self.language_probability = language_probability
        self.logprob = logprob
        self.weakest = weakest
        self.full_context = full_context
        self.doubted = doubted
        self.looped = looped
        self.covered = covered
        self.warnings = warnings
        self.raises = raises
        self.holds = holds
        self.loads = loads
        self.languages = languages
        self.device = device
        self.heard: list[tuple[Clip, Options]] = []
        self.live = 0
        self.most_live = 0
        self._changed = threading.Condition()

    def warm_up(self) -> None:
        assert self.loads is None or self.loads.wait(PATIENCE)

    def encode(self, samples: Samples, speech: Sequence[Span] = ()) -> Samples:
        return samples

    def decode(self, encodings: Sequence[Samples], options: Options) -> list[Utterance]:
        return [self.transcribe(samples, options) for samples in encodings]

    def transcribe(self, samples: Samples, options: Options) -> Utterance:
        clip = Clip(samples, (Span(0, len(samples)),))
        with self._changed:
            self.heard.append((clip, options))
            self.live += 1
            self.most_live = max(self.most_live, self.live)
            self._changed.notify_all()
        try:
            assert self.holds is None or self.holds.wait(PATIENCE)
            if self.raises is not None:
                raise self.raises
            return self._utterance(clip, options)
        finally:
            with self._changed:
                self.live -= 1
                self._changed.notify_all()

    def _utterance(self, clip: Clip, options: Options) -> Utterance:
        detected = options.language is None and len(self.languages) > 1
        return Utterance(
            language=options.language or self.language,
            language_probability=self.language_probability if detected else None,
            segments=(
                Segment(
                    0.0,
                    clip.duration,
                    self.text,
                    -0.1,
                    0.01,
                    suspect=self.looped or not self.covered,
                ),
            ),
            avg_logprob=math.log(self.logprob) if self.logprob else -math.inf,
            tokens=5,
            weakest=self.weakest,
            full_context=self.full_context,
            doubted=self.doubted,
            looped=self.looped,
            covered=self.covered,
            warnings=self.warnings,
        )

    def wait_for(self, calls: int) -> None:
        """Until so many inferences have begun."""
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.heard) >= calls, PATIENCE)

    def wait_until_idle(self) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: self.live == 0, PATIENCE)

    def let_go(self) -> None:
        """End what is held, now and from now on."""
        for event in (self.holds, self.loads):
            if event is not None:
                event.set()


class BrokenEngine(FakeEngine):
    """Loads, and works until `raises` is set, which then ends its warm-up clip, too."""

    def warm_up(self) -> None:
        super().warm_up()
        if self.raises is not None:
            raise self.raises


def answer_of_fallback(text: str = "from the fallback", **changes: Any) -> dict[str, Any]:
    """The JSON of a fallback's 200."""
    return {
        "text": text,
        "language": "en",
        "language_probability": 0.99,
        "duration": 1.0,
        "speech_duration": 1.0,
        "model": "big",
        "confidence": {"logprob": 0.95, "weakest": 0.9, "words": 3},
        "routing": {
            "tier": "fallback",
            "fallback_used": False,
            "reason": "accepted",
            "below": [],
            "degraded": False,
        },
        "segments": [],
        "timings_ms": {
            "queue_wait": 0.0,
            "primary_infer": None,
            "fallback_infer": 1.0,
            "total": 2.0,
        },
        "request_id": "theirs",
        **changes,
    }


# How an answer goes wrong on its way:
#   silence   it never comes
#   cut       the connection ends instead of it
#   reset     by a reset
#   truncate  it breaks off in the middle
#   drip      it goes on, a byte at a time, and never ends
#   endless   the same, as fast as it goes
Fault = Literal["silence", "cut", "reset", "truncate", "drip", "endless"]


@dataclass
class Reply:
    """What a scripted fallback answers: JSON or bytes, whole or with a fault.

    Args:
        raw: all bytes of the answer, instead of status, headers and body.
        holds: nothing is answered before this is set.
    """

    status: int = 200
    body: dict[str, Any] | bytes = field(default_factory=answer_of_fallback)
    headers: dict[str, str] = field(default_factory=dict)
    holds: threading.Event | None = None
    fault: Fault | None = None
    raw: bytes | None = None


def error(status: int, type_: str, **headers: str) -> Reply:
    """An error as a fallback of ours answers it."""
    body = {"error": {"type": type_, "message": "as it says", "request_id": "theirs"}}
    return Reply(status, body, headers)


@dataclass
class Asked:
    """One request as it came to a scripted fallback."""

    headers: dict[str, str]
    parts: dict[str, bytes]
    path: str


class _Server(ThreadingHTTPServer):
    request_queue_size = 128  # with the default of 5, connections that come together are lost


class ScriptedFallback:
    """An HTTP server in the fallback's place: gives the replies in order, then its last again."""

    key: str | None = None

    def __init__(self, *replies: Reply) -> None:
        self.replies = list(replies) or [Reply()]
        self.asked: list[Asked] = []
        self.connections = 0
        self.live = 0
        self.most_live = 0
        self.dripping = 0
        self._changed = threading.Condition()
        self._stopping = threading.Event()
        self._server = _Server(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        scripted = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def setup(self) -> None:
                super().setup()
                with scripted._changed:
                    scripted.connections += 1

            def handle_one_request(self) -> None:
                try:
                    super().handle_one_request()
                except ConnectionError:  # who asked has gone
                    self.close_connection = True

            def do_GET(self) -> None:
                self._answer({})

            def do_POST(self) -> None:
                boundary = self.headers["Content-Type"].partition("boundary=")[2].encode()
                self._answer(_parts(self._body(), boundary))

            def _body(self) -> bytes:
                if "Content-Length" in self.headers:
                    return self._exactly(int(self.headers["Content-Length"]))
                body = b""
                while size := self._chunk():
                    body += self._exactly(size + 2)[:-2]
                self._exactly(2)
                return body

            def _chunk(self) -> int:
                line = self.rfile.readline()
                if not line.endswith(b"\r\n"):
                    raise ConnectionError
                return int(line, 16)

            def _exactly(self, size: int) -> bytes:
                data = self.rfile.read(size)
                if len(data) < size:
                    raise ConnectionError
                return data

            def _answer(self, parts: dict[str, bytes]) -> None:
                headers = {name.lower(): value for name, value in self.headers.items()}
                reply = scripted._begin(Asked(headers, parts, self.path))
                if reply.holds is not None:
                    assert reply.holds.wait(PATIENCE)
                scripted._end()  # before the answer, which lets the next request come
                self._reply(reply)

            def _reply(self, reply: Reply) -> None:
                if reply.fault is not None or reply.raw is not None:
                    self.close_connection = True
                if reply.fault == "silence":
                    scripted._stopping.wait(PATIENCE)
                elif reply.fault == "reset":
                    linger = struct.pack("ii", 1, 0)  # none: closing resets the connection
                    self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                    os.close(self.connection.detach())
                elif reply.raw is not None:
                    self.wfile.write(reply.raw)
                elif reply.fault != "cut":
                    self._send(reply)

            def _send(self, reply: Reply) -> None:
                body = (
                    reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body).encode()
                )
                self.send_response(reply.status)
                for name, value in reply.headers.items():
                    self.send_header(name, value)
                if reply.fault in ("drip", "endless"):
                    self.end_headers()
                    self._send_without_end(b" " if reply.fault == "drip" else b" " * 65536)
                    return
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body[: len(body) // 2] if reply.fault == "truncate" else body)

            def _send_without_end(self, piece: bytes) -> None:
                with scripted._changed:
                    scripted.dripping += 1
                try:
                    while not scripted._stopping.wait(0.01 if len(piece) == 1 else 0):
                        self.wfile.write(piece)
                finally:
                    with scripted._changed:
                        scripted.dripping -= 1

            def log_message(self, format: str, *args: object) -> None:
                pass

        return Handler

    def _begin(self, asked: Asked) -> Reply:
        with self._changed:
            self.asked.append(asked)
            self.live += 1
            self.most_live = max(self.most_live, self.live)
            self._changed.notify_all()
            return self.replies[min(len(self.asked), len(self.replies)) - 1]

    def _end(self) -> None:
        with self._changed:
            self.live -= 1

    def wait_for(self, calls: int) -> None:
        """Until it has been asked so many times."""
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.asked) >= calls, PATIENCE)

    def stop(self) -> None:
        self._stopping.set()
        for reply in self.replies:
            if reply.holds is not None:
                reply.holds.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _parts(body: bytes, boundary: bytes) -> dict[str, bytes]:
    """The parts of a multipart body by their names."""
    found = {}
    for part in body.split(b"--" + boundary)[1:-1]:
        head, _, content = part.partition(b"\r\n\r\n")
        name = re.search(rb'name="([^"]*)"', head)
        assert name is not None
        found[name[1].decode()] = content[:-2]
    return found


def main(tier: str, settings: str, listener: int, loads: str) -> None:
    """A tier as a process of its own: says `inferring` on stderr, and goes on when told a line.

    Args:
        loads: `never`, `at-once`, or `breaks`: at once, and each inference fails.
    """

    class Told(BrokenEngine):
        def transcribe(self, samples: Samples, options: Options) -> Utterance:
            if loads == "breaks":
                self.raises = RuntimeError("CUDA failed with error unspecified launch failure")
            else:
                print("inferring", file=sys.stderr, flush=True)  # noqa: T201  # tells the test
                sys.stdin.readline()
            return super().transcribe(samples, options)

    model: type[TierConfig] = PrimaryConfig if tier == "primary" else FallbackConfig
    config = load(model, Path(settings))
    logs.configure(config.log_format)
    engine = Told(loads=threading.Event() if loads == "never" else None)
    app = create_app(config, engine)
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, http=Protocol))
    server.run([socket.socket(fileno=listener)])


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4])
