"""The asynchronous client of one service, and what it shares with the pool."""

from __future__ import annotations

import asyncio
import ssl
import time
import unicodedata
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from contextlib import aclosing
from types import TracebackType
from typing import Any, Self

import httpx2

from stt_sdk import _answer
from stt_sdk._dispatch import Answer, Dispatcher
from stt_sdk._hosts import Host
from stt_sdk._many import Clip, Outcome, Sources, outcomes
from stt_sdk._request import TranscribeRequest
from stt_sdk._retry import RetryPolicy, finite, shown
from stt_sdk._source import Source, prepare
from stt_sdk._stats import Stats
from stt_sdk._telemetry import Telemetry, TelemetryHook
from stt_sdk._transport import NoCookies, Transport
from stt_sdk._types import Health, Readiness, Task, Timestamps, Transcription

DEFAULT_TIMEOUT = 65.0  # seconds: the service's own deadline is 60, and its error says more
CONCURRENCY = 4


class Transcriber:
    """What `STTClient` and `STTPool` have in common: calls to whatever hosts there are."""

    def __init__(
        self,
        hosts: list[Host],
        *,
        api_key: str | None,
        timeout: float,
        retries: int | RetryPolicy,
        telemetry: TelemetryHook | Iterable[TelemetryHook],
        transport: httpx2.AsyncBaseTransport | None,
        ssl_context: ssl.SSLContext | None,
    ) -> None:
        _of_type("api_key", api_key, str)
        _of_type("transport", transport, httpx2.AsyncBaseTransport)
        _of_type("ssl_context", ssl_context, ssl.SSLContext)
        if api_key is not None and not sendable(api_key):
            raise ValueError("api_key may hold printable ASCII only, and no blanks around it")
        self._headers = {"Accept-Encoding": "identity"}
        if api_key:
            self._headers["Authorization"] = f"Bearer {api_key}"
        self._timeout = _seconds("timeout", timeout)
        self._transport = transport
        self._ssl_context = ssl_context
        self._hosts = hosts
        self._loop: asyncio.AbstractEventLoop | None = None
        self._telemetry = Telemetry([telemetry] if callable(telemetry) else telemetry)
        policy = retries if isinstance(retries, RetryPolicy) else RetryPolicy(retries)
        self._dispatcher = Dispatcher(hosts, policy, self._telemetry)

    async def __aenter__(self) -> Self:
        self._own_loop()
        await self._start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def _start(self, seconds: float | None = None) -> None:
        """Before the first call, within so many seconds."""

    def _own_loop(self) -> None:
        """Bind the client to the event loop of its first use: connections work in no other.

        Raises:
            RuntimeError: this is another one.
        """
        loop = asyncio.get_running_loop()
        if self._loop is None:
            self._loop = loop
        if self._loop is not loop:
            raise RuntimeError(
                "this client belongs to the event loop that it was first used in; make one for "
                "each loop, inside what asyncio.run is given, or use SyncSTTClient"
            )

    async def aclose(self) -> None:
        """Close all connections; hooks get what is still on its way to them."""
        self._own_loop()
        for host in tuple(self._hosts):
            await host.http.aclose()
        await self._telemetry.aclose()

    @property
    def stats(self) -> Stats:
        """Of the calls of the last minute."""
        return self._dispatcher.stats.snapshot()

    async def transcribe(
        self,
        source: Source,
        *,
        language: str | None = None,
        prompt: str | None = None,
        task: Task = "transcribe",
        timestamps: Timestamps = "none",
        deadline: float | None = None,
        request_id: str | None = None,
    ) -> Transcription:
        """Turn one clip into text.

        Args:
            source: path of the file, its bytes, a file opened in binary mode, an asynchronous
                iterator or reader of bytes, or a tuple of a NumPy array and its sample rate in Hz:
                shape (n,) or (n, channels), float in [-1, 1] or integers; it is sent as WAV.
            language: ISO 639 code such as `en`, `pt-BR` or `nb`; None: detect it.
            prompt: text that biases spelling.
            task: `translate` writes English.
            timestamps: whether segments, or words too, get their times.
            deadline: seconds for all of it, if not the client's `timeout`; the service is told.
                0 or less: it has passed, and nothing is sent.
            request_id: names the request in the service's logs; None: one is made.

        Raises:
            STTError: see `stt_sdk`'s errors.
            OSError: the file cannot be read.
            TypeError, ValueError: an argument makes no sense.
        """
        self._own_loop()
        began = time.monotonic()
        limit = self._timeout if deadline is None else _number_of_seconds("deadline", deadline)
        fields: dict[str, str] = {"task": task, "timestamps": timestamps}
        if language is not None:
            fields["language"] = language
        if prompt is not None:
            fields["prompt"] = prompt
        request = TranscribeRequest(await prepare(source), fields, request_id)
        await self._start(began + limit - time.monotonic())
        return await self._dispatcher.transcribe(request, limit, began)

    async def transcribe_many(
        self,
        sources: Sources,
        *,
        concurrency: int = CONCURRENCY,
        language: str | None = None,
        prompt: str | None = None,
        task: Task = "transcribe",
        timestamps: Timestamps = "none",
        deadline: float | None = None,
    ) -> AsyncGenerator[Outcome, None]:
        """Turn many clips into text: what became of each, as they finish.

        Args:
            sources: each as for `transcribe`, or a `Clip` with a language or prompt of its own;
                they are taken one by one as there is room, so there may be any number of them.
                A plain iterable is iterated in the event loop; what waits is an asynchronous one.
            concurrency: calls at once, at least 1.
            language, prompt, task, timestamps, deadline: as for `transcribe`, of every clip.

        Raises:
            ValueError: `concurrency` is less than 1.
            TypeError: `sources` is a single clip.
            Exception: what the iteration over `sources` raises, once the clips before that are
                done. What is wrong with one clip is in its outcome.
        """

        self._own_loop()

        def one(clip: Clip) -> Awaitable[Transcription]:
            return self.transcribe(
                clip.source,
                language=language if clip.language is None else clip.language,
                prompt=prompt if clip.prompt is None else clip.prompt,
                task=task,
                timestamps=timestamps,
                deadline=deadline,
            )

        async with aclosing(outcomes(sources, one, concurrency)) as found:
            async for outcome in found:
                yield outcome

    async def health(self) -> Health:
        """`GET /v1/health`.

        Raises:
            STTError: see `stt_sdk`'s errors.
        """
        return await self._get("/v1/health", _answer.health)

    async def ready(self) -> Readiness:
        """`GET /v1/ready`.

        Raises:
            STTError: see `stt_sdk`'s errors.
        """
        return await self._get("/v1/ready", _answer.readiness)

    async def metrics(self) -> dict[str, Any]:
        """`GET /v1/metrics`: the service's snapshot of itself.

        Raises:
            STTError: see `stt_sdk`'s errors.
        """
        return await self._get("/v1/metrics", _answer.snapshot)

    async def prometheus(self) -> str:
        """`GET /metrics`: the service's counters, in Prometheus' text form.

        Raises:
            STTError: see `stt_sdk`'s errors.
        """
        return await self._get("/metrics", _answer.text)

    async def _get(self, path: str, read: Callable[[httpx2.Response], Answer]) -> Answer:
        self._own_loop()
        await self._start(self._timeout)
        return await self._dispatcher.get(path, read, self._timeout)

    def _connect(self, url: str, address: str | None = None) -> Host:
        """A host that is ready to be asked; no connection is made yet."""
        http = httpx2.AsyncClient(
            base_url=url,
            headers=self._headers,
            timeout=None,
            cookies=NoCookies(),
            transport=self._transport or Transport(ssl_context=self._ssl_context, address=address),
        )
        return Host(url, http, address)


class STTClient(Transcriber):
    """Talks to one primary (or fallback). An async context manager.

        async with STTClient("http://127.0.0.1:8081", api_key="…") as stt:
            print((await stt.transcribe("clip.wav")).text)

    Args:
        base_url: address of the service.
        api_key: bearer key, where the service wants one.
        timeout: seconds for a call, all its attempts included.
        retries: how often a call is repeated at most that the service did not work on, or a
            `RetryPolicy`.
        telemetry: a hook, or several; see `stt_sdk.hooks` for ready-made ones.
        ssl_context: for a CA of your own; by default what the system trusts.
        transport: another way to the wire, such as `httpx2.AsyncHTTPTransport(proxy=…)`.

    Raises:
        TypeError, ValueError: an argument makes no sense, or the key cannot be sent in a header.
    """

    def __init__(
        self,
        base_url: str,
        *,
        api_key: str | None = None,
        timeout: float = DEFAULT_TIMEOUT,
        retries: int | RetryPolicy = 2,
        telemetry: TelemetryHook | Iterable[TelemetryHook] = (),
        ssl_context: ssl.SSLContext | None = None,
        transport: httpx2.AsyncBaseTransport | None = None,
    ) -> None:
        hosts: list[Host] = []
        super().__init__(
            hosts,
            api_key=api_key,
            timeout=timeout,
            retries=retries,
            telemetry=telemetry,
            transport=transport,
            ssl_context=ssl_context,
        )
        hosts.append(self._connect(checked(base_url)))


def sendable(key: str) -> bool:
    """Whether a header can carry a key as it is: an error of the HTTP library would show it."""
    return key.isascii() and key.isprintable() and key == key.strip()


def checked(base_url: str) -> str:
    """An address, without what may stand at its end.

    Raises:
        ValueError: it is none.
    """
    if isinstance(base_url, str) and set("@?#") & set(unicodedata.normalize("NFKC", base_url)):
        # It is not shown: it may hold a password, and errors, logs and metrics name the host by it.
        raise ValueError(
            "the address must not hold a user, query or fragment; pass a key as api_key"
        )
    try:
        parsed = httpx2.URL(base_url)
    except (httpx2.InvalidURL, TypeError) as error:
        raise ValueError(f"{base_url!r} is no address: {error}") from error
    possible = parsed.port is None or 1 <= parsed.port <= 65_535
    if parsed.scheme not in ("http", "https") or not parsed.host or not possible:
        raise ValueError(f"{base_url!r} is no address such as http://127.0.0.1:8081")
    return str(base_url).rstrip("/")


def _of_type(name: str, value: object, wanted: type) -> None:
    """Neither the value nor its repr is shown: it may be a key."""
    if value is not None and not isinstance(value, wanted):
        kind = f"{wanted.__module__}.{wanted.__name__}".removeprefix("builtins.")
        raise TypeError(f"{name} must be {kind} or None, not {type(value).__name__}")


def _seconds(name: str, value: float) -> float:
    if not _number_of_seconds(name, value) > 0:
        raise ValueError(f"{name} must be a positive number of seconds, not {shown(value)}")
    return float(value)


def _number_of_seconds(name: str, value: float) -> float:
    if isinstance(value, bool) or not finite(value):
        raise ValueError(f"{name} must be a number of seconds, not {shown(value)}")
    return float(value)
