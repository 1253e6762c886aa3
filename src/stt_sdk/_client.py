"""The asynchronous client."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx2

from stt_sdk._errors import BY_TYPE, ConnectionFailed, ServiceError, STTError, TimedOut
from stt_sdk._types import Task, Timestamps, Transcription

DEFAULT_TIMEOUT = 65.0  # seconds: the service's own deadline is 60, and its error says more
Source = str | os.PathLike[str] | bytes


class STTClient:
    """Talks to one primary (or fallback). An async context manager.

        async with STTClient("http://127.0.0.1:8081", api_key="…") as stt:
            print((await stt.transcribe("clip.wav")).text)

    Args:
        base_url: address of the service.
        api_key: bearer key, where the service wants one.
        timeout: seconds for a whole call.
        transport: another way to the wire, for tests.

    Raises:
        ValueError: the key cannot be sent in a header.
    """

    def __init__(
        self,
        base_url: str,
        *,
        api_key: str | None = None,
        timeout: float = DEFAULT_TIMEOUT,
        transport: httpx2.AsyncBaseTransport | None = None,
    ) -> None:
        if api_key is not None and not (api_key.isascii() and api_key.isprintable()):
            raise ValueError("api_key may hold printable ASCII only")  # which is not shown
        self._timeout = timeout
        self._http = httpx2.AsyncClient(
            base_url=base_url,
            headers={"Authorization": f"Bearer {api_key}"} if api_key else {},
            timeout=timeout,
            transport=transport,
        )

    async def __aenter__(self) -> STTClient:
        await self._http.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._http.__aexit__(kind, error, traceback)

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
        """Turn one audio file into text.

        Args:
            source: path of the file, or its bytes.
            language: ISO 639-1 code; None: detect it.
            prompt: text that biases spelling.
            deadline: seconds after which the answer is of no use; the service is told.
            request_id: names the request in the service's logs.

        Raises:
            STTError: see `stt_sdk`'s errors.
            OSError: the file cannot be read.
        """
        name, audio = ("audio", source) if isinstance(source, bytes) else _read(source)
        fields: dict[str, str] = {"task": task, "timestamps": timestamps}
        if language is not None:
            fields["language"] = language
        if prompt is not None:
            fields["prompt"] = prompt
        headers = {}
        if deadline is not None:
            headers["X-Deadline-Ms"] = str(max(1, int(deadline * 1000)))
        if request_id is not None:
            headers["X-Req-Id"] = request_id
        response = await self._send(
            "POST", "/v1/transcribe", data=fields, files={"audio": (name, audio)}, headers=headers
        )
        try:
            return Transcription.from_json(response.json())
        except (ValueError, KeyError, TypeError) as error:
            raise STTError(f"the answer is not of the agreed form: {error!r}") from error

    async def health(self) -> dict[str, Any]:
        """`GET /v1/health`."""
        return (await self._send("GET", "/v1/health")).json()  # type: ignore[no-any-return]

    async def metrics(self) -> dict[str, Any]:
        """`GET /v1/metrics`: the service's snapshot of itself."""
        return (await self._send("GET", "/v1/metrics")).json()  # type: ignore[no-any-return]

    async def _send(self, method: str, path: str, **content: Any) -> httpx2.Response:
        try:
            # httpx2's own timeout is for each step; a slow drip would never reach it.
            response = await asyncio.wait_for(
                self._http.request(method, path, **content), self._timeout
            )
        except (httpx2.TimeoutException, asyncio.TimeoutError) as error:
            raise TimedOut(f"no answer from {self._http.base_url} in time") from error
        except httpx2.RequestError as error:
            said = str(error) or type(error).__name__
            raise ConnectionFailed(f"{self._http.base_url}: {said}") from error
        if response.status_code != 200:
            raise _error_of(response)
        return response


def _read(path: str | os.PathLike[str]) -> tuple[str, bytes]:
    # The name matters for one format only (.g722), and tells nobody else where it came from.
    return Path(path).name, Path(path).read_bytes()


def _error_of(response: httpx2.Response) -> ServiceError:
    type_ = response.headers.get("X-Error-Type", "")
    try:
        message = response.json()["error"]["message"]
    except (ValueError, KeyError, TypeError):
        # Not ours: a proxy between, perhaps.
        message = response.reason_phrase or "no reason given"
    retry_after = response.headers.get("Retry-After", "")
    return BY_TYPE.get(type_, ServiceError)(
        message,
        status=response.status_code,
        request_id=response.headers.get("X-Req-Id"),
        retry_after=float(retry_after) if retry_after.isdigit() else None,
        fallback_error=response.headers.get("X-Fallback-Error"),
    )
