"""What can go wrong.

STTError
├── ConnectionFailed             the service was not reached, or the connection broke
├── TimedOut                     no answer within the timeout
└── ServiceError                 the service answered with an error
    ├── InvalidRequestError      400 invalid_request
    ├── InvalidAudioError        400 invalid_audio
    ├── UnauthorizedError        401 unauthorized
    ├── NotFoundError            404 not_found
    ├── MethodNotAllowedError    405 method_not_allowed
    ├── RequestTimeoutError      408 request_timeout
    ├── PayloadTooLargeError     413 payload_too_large
    ├── AudioTooLongError        413 audio_too_long
    ├── RateLimitedError         429 rate_limited          retryable
    ├── InternalError            500 internal
    ├── FallbackFailedError      502 fallback_failed
    ├── OverloadedError          503 overloaded            retryable
    ├── DrainingError            503 draining              retryable
    ├── NotReadyError            503 not_ready             retryable
    └── DeadlineExceededError    504 deadline_exceeded
"""

from __future__ import annotations

from typing import ClassVar


class STTError(Exception):
    """Whatever kept a clip from becoming text."""

    retryable: ClassVar[bool] = False


class ConnectionFailed(STTError):
    """The service was not reached, or the connection broke."""


class TimedOut(STTError):
    """No answer came within the timeout."""


class ServiceError(STTError):
    """The service answered with an error.

    Attributes:
        status: HTTP status.
        type: the contract's error type, such as `invalid_audio`.
        message: the service's sentence about it.
        request_id: joins this error with the service's log.
        retry_after: seconds the service asks to wait, if it does.
        fallback_error: what the fallback said, if it was asked.
        retryable: the request was not worked on, and may be sent again.
    """

    type: ClassVar[str] = ""

    def __init__(
        self,
        message: str,
        *,
        status: int,
        request_id: str | None = None,
        retry_after: float | None = None,
        fallback_error: str | None = None,
    ) -> None:
        detail = f" (request {request_id})" if request_id else ""
        super().__init__(f"{status} {self.type or 'unknown'}: {message}{detail}")
        self.message = message
        self.status = status
        self.request_id = request_id
        self.retry_after = retry_after
        self.fallback_error = fallback_error


class InvalidRequestError(ServiceError):
    type = "invalid_request"


class InvalidAudioError(ServiceError):
    type = "invalid_audio"


class UnauthorizedError(ServiceError):
    type = "unauthorized"


class NotFoundError(ServiceError):
    type = "not_found"


class MethodNotAllowedError(ServiceError):
    type = "method_not_allowed"


class RequestTimeoutError(ServiceError):
    type = "request_timeout"


class PayloadTooLargeError(ServiceError):
    type = "payload_too_large"


class AudioTooLongError(ServiceError):
    type = "audio_too_long"


class RateLimitedError(ServiceError):
    type = "rate_limited"
    retryable = True


class InternalError(ServiceError):
    type = "internal"


class FallbackFailedError(ServiceError):
    type = "fallback_failed"


class OverloadedError(ServiceError):
    type = "overloaded"
    retryable = True


class DrainingError(ServiceError):
    type = "draining"
    retryable = True


class NotReadyError(ServiceError):
    type = "not_ready"
    retryable = True


class DeadlineExceededError(ServiceError):
    type = "deadline_exceeded"


BY_TYPE: dict[str, type[ServiceError]] = {cls.type: cls for cls in ServiceError.__subclasses__()}
