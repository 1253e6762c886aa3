"""What comes back, made into a result or an error."""

from __future__ import annotations

import email.utils
import json
import math
import time
from collections.abc import Mapping
from datetime import UTC
from typing import Any

import httpx2

from stt_sdk._apart import once
from stt_sdk._errors import BY_TYPE, NOT_WORKED_ON, InvalidAnswerError, ServiceError, STTError
from stt_sdk._text import one_line
from stt_sdk._types import Health, Readiness, Timings, Transcription

# The longest answer there can be, 4 hours with a time for each word, has half of it.
MAX_BYTES = 16 * 1024 * 1024
# More JSON values than that answer has by far. Each one costs many times the two bytes that it may
# be written with, so they are counted before they are made.
MAX_VALUES = 1_000_000
# An answer of this size is read in a thread.
LARGE_BYTES = 64 * 1024
# Whatever a body can be instead of what it should be, such as ten thousand brackets.
_NOT_AS_AGREED = (ValueError, KeyError, TypeError, RecursionError)


async def received(response: httpx2.Response) -> httpx2.Response:
    """The answer with its body, if that has a reasonable length; an error has its headers, too.

    Raises:
        InvalidAnswerError: a 200 that is longer, or compressed.
    """
    encoding = response.headers.get("Content-Encoding", "identity")
    if encoding == "identity":
        body = await _bounded(response)
        why = f"it is longer than {MAX_BYTES} bytes"
    else:
        body = None  # a few bytes of it can become gigabytes
        why = f"it is compressed ({encoding}), which was not asked for"
        del response.headers["Content-Encoding"]
    if body is None and response.status_code == 200:
        raise invalid(response, ValueError(why))
    return httpx2.Response(
        response.status_code,
        headers=response.headers,
        content=body,
        extensions=response.extensions,
    )


async def _bounded(response: httpx2.Response) -> bytes | None:
    body = bytearray()
    async for piece in response.aiter_bytes():
        body += piece
        if len(body) > MAX_BYTES:
            return None
    return bytes(body)


def few_values(body: bytes) -> bool:
    """Whether JSON has no more values than can be made of it at once: a quick upper bound."""
    return sum(map(body.count, (b",", b"[", b"{"))) < MAX_VALUES


def _json(response: httpx2.Response) -> Any:
    """The body's value.

    Raises:
        ValueError, RecursionError: it is not JSON, or too much of it.
    """
    body = response.content
    if not few_values(body):
        raise ValueError(f"it has more than {MAX_VALUES} values")
    return json.loads(body)


async def transcription(response: httpx2.Response, **call: Any) -> Transcription:
    """The text of a 200.

    Raises:
        InvalidAnswerError: it is not of the agreed form.
    """
    if len(response.content) < LARGE_BYTES:
        return _transcription(response, call)
    return await once(lambda: _transcription(response, call), "stt_sdk answer")


def _transcription(response: httpx2.Response, call: dict[str, Any]) -> Transcription:
    try:
        return Transcription.from_json(_json(response), response.headers, **call)
    except _NOT_AS_AGREED as error:
        raise invalid(response, error) from error


def health(response: httpx2.Response) -> Health:
    """The answer of `/v1/health`, 503 too.

    Raises:
        STTError: it is another one.
    """
    try:
        return Health.from_json(_state(response))
    except _NOT_AS_AGREED as error:
        raise _other(response, error) from error


def readiness(response: httpx2.Response) -> Readiness:
    """The answer of `/v1/ready`, 503 too.

    Raises:
        STTError: it is another one.
    """
    try:
        return Readiness.from_json(_state(response))
    except _NOT_AS_AGREED as error:
        raise _other(response, error) from error


def snapshot(response: httpx2.Response) -> dict[str, Any]:
    """The answer of `/v1/metrics`.

    Raises:
        STTError: it is another one.
    """
    try:
        data = _json(response)
    except _NOT_AS_AGREED as error:
        raise _other(response, error) from error
    if response.status_code != 200 or not isinstance(data, dict):
        raise _other(response, TypeError("no JSON object"))
    return data


def text(response: httpx2.Response) -> str:
    """The answer of `/metrics`.

    Raises:
        STTError: it is another one.
    """
    if response.status_code != 200:
        raise error_of(response)
    return response.text


def _state(response: httpx2.Response) -> Any:
    if response.status_code not in (200, 503):
        raise ValueError(f"status {response.status_code}")
    return _json(response)


def _other(response: httpx2.Response, error: Exception) -> STTError:
    return invalid(response, error) if response.status_code == 200 else error_of(response)


def invalid(response: httpx2.Response, error: Exception) -> InvalidAnswerError:
    why = f"{type(error).__name__}: {error}"
    return InvalidAnswerError(
        f"the answer is not of the agreed form: {one_line(why)}",
        status=response.status_code,
        request_id=response.headers.get("X-Req-Id"),
    )


def error_of(response: httpx2.Response) -> STTError:
    """The error that an answer other than 200 tells."""
    status, headers = response.status_code, response.headers
    said = _said(response)
    type_ = headers.get("X-Error-Type") or said.get("type", "")
    known = BY_TYPE.get(type_)
    message = said.get("message") or headers.get("X-Error-Message") or ""
    if not message:
        message = response.reason_phrase or "no reason given"
        if "Location" in headers:
            message += f": it sends us to {headers['Location']}"
    if type_ and not known:
        message = f"{type_}: {message}"
    message = one_line(message)
    if not type_:
        message += "; this is not the service's own answer, perhaps a proxy's before it"
    return (known or ServiceError)(
        message,
        status=status,
        retryable=status in NOT_WORKED_ON,
        retry_after=retry_after(headers.get("Retry-After")),
        request_id=headers.get("X-Req-Id"),
        timings_ms=_timings(headers),
        reason=headers.get("X-Route-Reason"),
        below=_gates(headers.get("X-Conf-Below", "")),
        fallback_error=headers.get("X-Fallback-Error"),
    )


def _said(response: httpx2.Response) -> dict[str, str]:
    """What the body says of the error; nothing, if it is not of the agreed form."""
    try:
        error = _json(response)["error"]
        return {name: error[name] for name in ("type", "message") if isinstance(error[name], str)}
    except _NOT_AS_AGREED:
        return {}


def retry_after(value: str | None) -> float | None:
    """Seconds that a header asks to wait, as a number or as a date; None: it says neither."""
    if not value:
        return None
    try:
        seconds = float(value)
    except ValueError:
        pass
    else:
        return seconds if math.isfinite(seconds) and seconds >= 0 else None
    try:
        moment = email.utils.parsedate_to_datetime(value)
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=UTC)
        return max(0.0, moment.timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return None


def _timings(headers: Mapping[str, str]) -> Timings:
    return Timings(
        _number(headers.get("X-Queue-Wait-ms")),
        _number(headers.get("X-Primary-Infer-ms")),
        _number(headers.get("X-Fallback-Infer-ms")),
        _number(headers.get("X-Total-ms")),
    )


def _gates(value: str) -> tuple[str, ...]:
    gates = (gate.strip() for gate in value.split(","))
    return tuple(gate for gate in gates if gate and gate != "none")


def _number(value: str | None) -> float | None:
    try:
        number = math.nan if value is None else float(value)
    except ValueError:
        return None
    return number if math.isfinite(number) else None
