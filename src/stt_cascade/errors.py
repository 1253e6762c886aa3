"""Every way in which a request can be refused: one class per error type of the API.

    Refusal
    ├── InvalidRequest     400 invalid_request
    ├── InvalidAudio       400 invalid_audio
    ├── Unauthorized       401 unauthorized
    ├── NotFound           404 not_found
    ├── MethodNotAllowed   405 method_not_allowed
    ├── RequestTimeout     408 request_timeout
    ├── PayloadTooLarge    413 payload_too_large
    ├── AudioTooLong       413 audio_too_long
    ├── RateLimited        429 rate_limited
    ├── Internal           500 internal
    ├── FallbackFailed     502 fallback_failed
    ├── Overloaded         503 overloaded
    ├── Draining           503 draining
    ├── NotReady           503 not_ready
    └── DeadlineExceeded   504 deadline_exceeded

They are raised where the reason is known, and turned into an answer in one place
(`http/envelope.py`).
"""

from __future__ import annotations

from typing import ClassVar


class Refusal(Exception):
    """A request that gets an error instead of a text.

    Args:
        message: one sentence for the caller: what is wrong, and what is allowed.
        retry_after: seconds after which another try makes sense, if one does.
    """

    status: ClassVar[int]
    type: ClassVar[str]

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.retry_after = retry_after


class InvalidRequest(Refusal):
    status, type = 400, "invalid_request"


class InvalidAudio(Refusal):
    status, type = 400, "invalid_audio"


class Unauthorized(Refusal):
    status, type = 401, "unauthorized"


class NotFound(Refusal):
    status, type = 404, "not_found"


class MethodNotAllowed(Refusal):
    status, type = 405, "method_not_allowed"

    def __init__(self, message: str, *, allow: str) -> None:
        super().__init__(message)
        self.allow = allow


class RequestTimeout(Refusal):
    status, type = 408, "request_timeout"


class PayloadTooLarge(Refusal):
    status, type = 413, "payload_too_large"


class AudioTooLong(Refusal):
    status, type = 413, "audio_too_long"


class RateLimited(Refusal):
    status, type = 429, "rate_limited"


class Internal(Refusal):
    status, type = 500, "internal"


class FallbackFailed(Refusal):
    status, type = 502, "fallback_failed"


class Overloaded(Refusal):
    status, type = 503, "overloaded"


class Draining(Refusal):
    status, type = 503, "draining"


class NotReady(Refusal):
    status, type = 503, "not_ready"


class DeadlineExceeded(Refusal):
    status, type = 504, "deadline_exceeded"


ERROR_TYPES: tuple[str, ...] = tuple(sorted(cls.type for cls in Refusal.__subclasses__()))


def is_failure(status: int) -> bool:
    """Whether the objective of availability counts an answer as failed.

    Availability is the share of 200 among these and 200; callers' mistakes (4xx) count as neither.
    """
    return status >= 500


# The types of these answers, which the rules of Prometheus and `stt canary` count.
FAILURES: tuple[str, ...] = tuple(
    sorted(cls.type for cls in Refusal.__subclasses__() if is_failure(cls.status))
)
