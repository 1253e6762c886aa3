"""Primaries that cost nearly nothing, all in one process, for measuring those who call them.

`python -m stt_cascade.bench.primaries HOSTS SLOTS SECONDS` prints its ports as JSON, and serves
until its input ends. A clip takes a slot for so many seconds and gets an answer that was made
before; who finds no slot free waits.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections import deque
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import cast

from stt_cascade.answer import Answer, Confidence, Routing, SegmentPart, Timings

_TEXT = "one two three four five six seven eight"
_ANSWER = Answer(
    text=_TEXT,
    language="en",
    language_probability=0.98,
    duration=1.0,
    speech_duration=1.0,
    model="small",
    confidence=Confidence(logprob=0.91, weakest=0.62, words=8),
    routing=Routing(
        tier="primary", fallback_used=False, reason="accepted", below=[], degraded=False
    ),
    segments=[
        SegmentPart(start=0.0, end=1.0, text=_TEXT, avg_logprob=-0.1, no_speech_prob=0.01, words=[])
    ],
    timings_ms=Timings(queue_wait=0.3, primary_infer=50.0, fallback_infer=None, total=52.1),
    request_id="canned",
)
_HEADERS = {
    "X-Req-Id": "canned",
    "X-Total-ms": "52.1",
    "X-Queue-Wait-ms": "0.3",
    "X-Primary-Infer-ms": "50.0",
    "X-Fallback-Used": "false",
    "X-Final-Model": "small",
    "X-Conf-Below": "none",
    "X-Lang-Check-Applicable": "true",
    "X-Route-Reason": "accepted",
}
# A connection that waits must be found in a burst of them.
_BACKLOG = 1024


def _response(body: bytes, headers: dict[str, str]) -> bytes:
    headers = {"Content-Type": "application/json", "Content-Length": str(len(body)), **headers}
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"HTTP/1.1 200 OK\r\n{lines}\r\n".encode() + body


_CLIP = _response(_ANSWER.model_dump_json().encode(), _HEADERS)
_READY = _response(b'{"ready": true, "state": "ready"}', {})


class _Primary:
    """One of them: its slots, and who waits for one."""

    def __init__(self, slots: int, seconds: float) -> None:
        self._free = slots
        self._seconds = seconds
        self._waiting: deque[_Connection] = deque()
        self._loop = asyncio.get_running_loop()

    def work(self, connection: _Connection) -> None:
        if not self._seconds:
            connection.answer(_CLIP)
        elif self._free:
            self._free -= 1
            self._begin(connection, self._loop.time())
        else:
            self._waiting.append(connection)

    def _begin(self, connection: _Connection, now: float) -> None:
        self._loop.call_at(now + self._seconds, self._done, connection, now + self._seconds)

    def _done(self, connection: _Connection, due: float) -> None:
        connection.answer(_CLIP)
        if self._waiting:
            # Timers are late; the next clip does not suffer for it.
            self._begin(self._waiting.popleft(), due)
        else:
            self._free += 1


class _Connection(asyncio.Protocol):
    """HTTP, as far as one's own client speaks it: whole requests with a Content-Length."""

    def __init__(self, primary: _Primary) -> None:
        self._primary = primary
        self._received = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, found, rest = self._received.partition(b"\r\n\r\n")
        if not found:
            return
        _, announced, tail = head.lower().partition(b"\r\ncontent-length:")
        if len(rest) < (int(tail.partition(b"\r\n")[0]) if announced else 0):
            return
        self._received = b""
        if head.startswith(b"GET"):
            self.answer(_READY)
        else:
            self._primary.work(self)

    def answer(self, response: bytes) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(response)


@asynccontextmanager
async def running(hosts: int, slots: int, seconds: float) -> AsyncIterator[list[str]]:
    """The addresses of so many, in a process of their own.

    Args:
        slots: clips that each works on at once.
        seconds: that a clip takes; 0: it is answered at once, slots or not.
    """
    command = [sys.executable, "-m", __spec__.name, str(hosts), str(slots), str(seconds)]
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe)
    told, lives = (
        cast(asyncio.StreamReader, process.stdout),
        cast(asyncio.StreamWriter, process.stdin),
    )
    try:
        ports = json.loads(await told.readline())
        yield [f"http://127.0.0.1:{port}" for port in ports]
    finally:
        lives.close()
        await process.wait()


async def _serve(hosts: int, slots: int, seconds: float) -> None:
    loop = asyncio.get_running_loop()
    async with AsyncExitStack() as stack:
        ports = []
        for _ in range(hosts):
            primary = _Primary(slots, seconds)
            server = await loop.create_server(
                lambda primary=primary: _Connection(primary),  # type: ignore[misc]
                "127.0.0.1",
                0,
                backlog=_BACKLOG,
            )
            await stack.enter_async_context(server)
            ports.append(server.sockets[0].getsockname()[1])
        print(json.dumps(ports), flush=True)  # noqa: T201  # how it tells who started it
        await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(_serve(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])))
