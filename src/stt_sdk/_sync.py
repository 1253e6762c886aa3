"""The same without `async`, for scripts and notebooks."""

from __future__ import annotations

import asyncio
import functools
import os
import ssl
import threading
from collections.abc import Callable, Coroutine, Iterable, Iterator
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, TypeVar

from stt_sdk._client import CONCURRENCY, DEFAULT_TIMEOUT, STTClient, Transcriber
from stt_sdk._many import Outcome, Sources
from stt_sdk._pool import STTPool
from stt_sdk._retry import RetryPolicy
from stt_sdk._source import Source
from stt_sdk._stats import Stats
from stt_sdk._telemetry import TelemetryHook
from stt_sdk._types import Task, Timestamps, Transcription

DEFAULT_URL = "http://127.0.0.1:8081"

P = ParamSpec("P")
R = TypeVar("R")


def _blocking(
    method: Callable[Concatenate[Transcriber, P], Coroutine[Any, Any, R]],
) -> Callable[Concatenate[SyncSTTClient, P], R]:
    """A method of the asynchronous client that returns when it is done."""

    def call(self: SyncSTTClient, /, *args: P.args, **kwargs: P.kwargs) -> R:
        return self._run(lambda: method(self._client, *args, **kwargs))

    functools.update_wrapper(call, method)
    return call


class SyncSTTClient:
    """`STTClient` for code without an event loop, or `STTPool` if it gets several addresses.

        with SyncSTTClient("http://127.0.0.1:8081", api_key="…") as stt:
            print(stt.transcribe("clip.wav").text)

    It works in a thread of its own, in a notebook too. Several threads may use it. A forked
    process needs one of its own.

    Args:
        base_url: address of the service, or of several.
        api_key, timeout, retries, telemetry, ssl_context: as for `STTClient`. Hooks are called in
            that thread.

    Raises:
        ValueError: an argument makes no sense.
    """

    def __init__(
        self,
        base_url: str | Iterable[str],
        *,
        api_key: str | None = None,
        timeout: float = DEFAULT_TIMEOUT,
        retries: int | RetryPolicy = 2,
        telemetry: TelemetryHook | Iterable[TelemetryHook] = (),
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        # A forgotten client must not keep the process alive.
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="stt_sdk", daemon=True)
        self._pid = os.getpid()
        options: dict[str, Any] = {
            "api_key": api_key,
            "timeout": timeout,
            "retries": retries,
            "telemetry": telemetry,
            "ssl_context": ssl_context,
        }
        self._client: Transcriber = (
            STTClient(base_url, **options)
            if isinstance(base_url, str)
            else STTPool(base_url, **options)
        )
        self._thread.start()

    def __enter__(self) -> SyncSTTClient:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections and end the thread. It may be called twice."""
        if self._loop.is_closed():
            return
        self._run(self._client.aclose)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    transcribe = _blocking(Transcriber.transcribe)
    health = _blocking(Transcriber.health)
    ready = _blocking(Transcriber.ready)
    metrics = _blocking(Transcriber.metrics)

    @property
    def stats(self) -> Stats:
        """Of the calls of the last minute."""

        async def look() -> Stats:  # in the thread that writes them
            return self._client.stats

        return self._run(look)

    @functools.wraps(Transcriber.transcribe_many)
    def transcribe_many(
        self, sources: Sources, *, concurrency: int = CONCURRENCY, **options: Any
    ) -> Iterator[Outcome]:
        found = self._client.transcribe_many(sources, concurrency=concurrency, **options)
        try:
            while True:
                try:
                    yield self._run(found.__anext__)
                except StopAsyncIteration:
                    return
        finally:
            self._run(found.aclose)

    def _run(self, work: Callable[[], Coroutine[Any, Any, R]]) -> R:
        if self._pid != os.getpid():
            raise RuntimeError("this client was made before a fork; make one in each process")
        if self._loop.is_closed():
            raise RuntimeError("this client is closed")
        future = asyncio.run_coroutine_threadsafe(work(), self._loop)
        try:
            return future.result()
        finally:
            future.cancel()  # Ctrl-C ends the call, too


def transcribe(
    source: Source,
    *,
    base_url: str = DEFAULT_URL,
    api_key: str | None = None,
    language: str | None = None,
    prompt: str | None = None,
    task: Task = "transcribe",
    timestamps: Timestamps = "none",
    deadline: float | None = None,
) -> Transcription:
    """Turn one clip into text, with a client made for it. Arguments and errors are the client's.

    print(stt_sdk.transcribe("clip.wav").text)
    """
    with SyncSTTClient(base_url, api_key=api_key) as stt:
        return stt.transcribe(
            source,
            language=language,
            prompt=prompt,
            task=task,
            timestamps=timestamps,
            deadline=deadline,
        )
