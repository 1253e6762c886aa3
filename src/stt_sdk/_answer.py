"""What comes back, made into a result or an error."""

from __future__ import annotations

import email.utils
import time
from collections.abc import Mapping
from typing import Any

import httpx2

from stt_sdk._errors import BY_TYPE, NOT_WORKED_ON, InvalidAnswerError, ServiceError, STTError
from stt_sdk._types import Health, Readiness, Timings, Transcription


def transcription(response: httpx2.Response, **call: Any) -> Transcription:
    """The text of a 200.

    Raises:
        InvalidAnswerError: it is not of the agreed form.
    """
    try:
        return Transcription.from_json(response.json(), response.headers, **call)
    except (ValueError, KeyError, TypeError) as error:
        raise invalid(error) from error


def health(response: httpx2.Response) -> Health:
    """The answer of `/v1/health`, 503 too.

    Raises:
        STTError: it is another one.
    """
    try:
        data = response.json()
        return Health(**{name: data[name] for name in Health.__dataclass_fields__})
    except (ValueError, KeyError, TypeError) as error:
        raise _other(response, error) from error


def readiness(response: httpx2.Response) -> Readiness:
    """The answer of `/v1/ready`, 503 too.

    Raises:
        STTError: it is another one.
    """
    try:
        data = response.json()
        return Readiness(bool(data["ready"]), str(data["state"]))
    except (ValueError, KeyError, TypeError) as error:
        raise _other(response, error) from error


def snapshot(response: httpx2.Response) -> dict[str, Any]:
    """The answer of `/v1/metrics`.

    Raises:
        STTError: it is another one.
    """
    try:
        data = response.json()
    except ValueError as error:
        raise _other(response, error) from error
    if response.status_code != 200 or not isinstance(data, dict):
        raise _other(response, TypeError("no JSON object"))
    return data


def _other(response: httpx2.Response, error: Exception) -> STTError:
    return invalid(error) if response.status_code == 200 else error_of(response)


def invalid(error: Exception) -> InvalidAnswerError:
    return InvalidAnswerError(f"the answer is not of the agreed form: {error!r}", status=200)


def error_of(response: httpx2.Response) -> STTError:
    """The error that an answer other than 200 tells."""
    status, headers = response.status_code, response.headers
    type_ = headers.get("X-Error-Type", "")
    known = BY_TYPE.get(type_)
    try:
        message = str(response.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        message = headers.get("X-Error-Message") or response.reason_phrase or "no reason given"
        if not type_:
            message += "; this is not the service's own answer, perhaps a proxy's before it"
    return (known or ServiceError)(
        message if known or not type_ else f"{type_}: {message}",
        status=status,
        retryable=status in NOT_WORKED_ON,
        retry_after=retry_after(headers.get("Retry-After")),
        request_id=headers.get("X-Req-Id"),
        timings=_timings(headers),
        reason=headers.get("X-Route-Reason"),
        below=_gates(headers.get("X-Conf-Below", "")),
        fallback_error=headers.get("X-Fallback-Error"),
    )


def retry_after(value: str | None) -> float | None:
    """Seconds that a header asks to wait, as a number or as a date; None: it says neither."""
    if not value:
        return None
    try:
        return float(value)
    except ValueError:
        pass
    try:
        return email.utils.parsedate_to_datetime(value).timestamp() - time.time()
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
    return tuple(gate for gate in value.split(",") if gate and gate != "none")


def _number(value: str | None) -> float | None:
    try:
        return None if value is None else float(value)
    except ValueError:
        return None
