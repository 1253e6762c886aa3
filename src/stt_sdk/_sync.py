"""The same without `async`, for scripts and notebooks."""

from __future__ import annotations

import asyncio
import concurrent.futures
import functools
import os
import ssl
import threading
import weakref
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable, Iterator
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, TypeVar

import httpx2

from stt_sdk._client import CONCURRENCY, DEFAULT_TIMEOUT, STTClient, Transcriber
from stt_sdk._many import Outcome, Sources, apart
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
    process needs one of its own. Ctrl-C cancels the call.

    Args:
        base_url: address of the service, or of several.
        api_key, timeout, retries, telemetry, ssl_context, transport: as for `STTClient`. Hooks are
            called in that thread.

    Raises:
        TypeError, ValueError: an argument makes no sense.
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
        transport: httpx2.AsyncBaseTransport | None = None,
    ) -> None:
        options: dict[str, Any] = {
            "api_key": api_key,
            "timeout": timeout,
            "retries": retries,
            "telemetry": telemetry,
            "ssl_context": ssl_context,
            "transport": transport,
        }
        self._client: Transcriber = (
            STTClient(base_url, **options)
            if isinstance(base_url, str)
            else STTPool(base_url, **options)
        )
        self._pid = os.getpid()
        self._lock = threading.RLock()
        self._closed = False
        self._works: set[asyncio.Task[Any]] = set()
        self._streams: set[AsyncGenerator[Outcome, None]] = set()
        self._loop = asyncio.new_event_loop()
        # A forgotten client must not keep the process alive, nor its own thread.
        self._thread = threading.Thread(
            target=_serve, args=(self._loop,), name="stt_sdk", daemon=True
        )
        self._forgotten = weakref.finalize(
            self, _end, self._loop, self._client, self._works, self._streams
        )
        self._forgotten.atexit = False
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
        """Cancel what is under way, close all connections and end the thread.

        It may be called twice.
        """
        if self._pid != os.getpid():
            return  # what there is belongs to the other process
        if threading.current_thread() is self._thread:
            raise RuntimeError("a hook cannot close the client that called it")
        with self._lock:
            self._closed = True
            self._forgotten()
        self._thread.join()

    transcribe = _blocking(Transcriber.transcribe)
    health = _blocking(Transcriber.health)
    ready = _blocking(Transcriber.ready)
    metrics = _blocking(Transcriber.metrics)
    prometheus = _blocking(Transcriber.prometheus)

    @property
    def stats(self) -> Stats:
        """Of the calls of the last minute."""
        return self._client.stats

    def transcribe_many(
        self,
        sources: Sources,
        *,
        concurrency: int = CONCURRENCY,
        language: str | None = None,
        prompt: str | None = None,
        task: Task = "transcribe",
        timestamps: Timestamps = "none",
        deadline: float | None = None,
    ) -> Iterator[Outcome]:
        """Turn many clips into text: what became of each, as they finish.

        Arguments and errors are the asynchronous client's. A plain iterable of sources may wait
        for the next one, and use this client: it has a thread of its own. Of an iteration that
        ends early, that thread stays until the iterable gives something, and then ends.
        """
        found = self._client.transcribe_many(
            apart(sources),
            concurrency=concurrency,
            language=language,
            prompt=prompt,
            task=task,
            timestamps=timestamps,
            deadline=deadline,
        )
        turn = asyncio.Lock()  # a step that Ctrl-C ends is still ending when the rest is closed

        async def step() -> Outcome | BaseException | None:
            async with turn:
                try:
                    return await anext(found, None)
                except (SystemExit, KeyboardInterrupt) as error:  # of the sources
                    return error  # which, raised here, would end the loop

        async def close() -> None:
            async with turn:
                await found.aclose()
            self._streams.discard(found)

        self._streams.add(found)
        try:
            while (outcome := self._run(step)) is not None:
                if isinstance(outcome, BaseException):
                    raise outcome
                yield outcome
        finally:
            self._finish(close)

    def _run(self, work: Callable[[], Coroutine[Any, Any, R]]) -> R:
        future = self._begin(work)
        try:
            return future.result()
        except concurrent.futures.CancelledError:
            if self._closed:
                raise RuntimeError("this client was closed meanwhile") from None
            raise
        finally:
            future.cancel()  # Ctrl-C ends the call, too
            del future  # or what it raised would hold it, and it that

    def _begin(self, work: Callable[[], Coroutine[Any, Any, R]]) -> concurrent.futures.Future[R]:
        if self._pid != os.getpid():
            raise RuntimeError("this client was made before a fork; make one in each process")
        if threading.current_thread() is self._thread:
            raise RuntimeError("a hook cannot wait for the client that called it")
        with self._lock:
            if self._closed:
                raise RuntimeError("this client is closed")
            return asyncio.run_coroutine_threadsafe(_among(self._works, work()), self._loop)

    def _finish(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """At the end of an iteration: of one that is forgotten, in any thread and at any time."""
        if self._pid != os.getpid():
            return
        if threading.current_thread() is self._thread:
            self._loop.create_task(_among(self._works, work()))
            return
        try:
            self._run(work)
        except RuntimeError:
            if not self._closed:  # else it is over, as all else
                raise


async def _among(works: set[asyncio.Task[Any]], work: Coroutine[Any, Any, R]) -> R:
    task = asyncio.current_task()
    if task is not None:
        works.add(task)
        task.add_done_callback(works.discard)
    return await work


def _serve(loop: asyncio.AbstractEventLoop) -> None:
    try:
        loop.run_forever()
    finally:
        loop.close()


def _end(
    loop: asyncio.AbstractEventLoop,
    client: Transcriber,
    works: set[asyncio.Task[Any]],
    streams: set[AsyncGenerator[Outcome, None]],
) -> None:
    """Begin to end it all; the thread ends with it."""

    async def end() -> None:
        try:
            for task in tuple(works):
                task.cancel()
            if works:
                await asyncio.wait(works)
            for stream in tuple(streams):
                await stream.aclose()
            await client.aclose()
            await loop.shutdown_asyncgens()
            await asyncio.sleep(0)  # the loop closes a socket in its next round
        finally:
            loop.stop()

    asyncio.run_coroutine_threadsafe(end(), loop)


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
