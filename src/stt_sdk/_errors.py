"""What can go wrong.

STTError
├── ConnectionFailed             no host was reached, or the connection broke     retryable *
├── CertificatesError            the CA certificates of https cannot be loaded
├── TimedOut                     no answer by the deadline
├── InvalidAnswerError           200, but not of the agreed form
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

* if nothing was sent. What is retryable was not worked on; the client has then tried again
already, as far as deadline, retries and budget allowed.
"""

from __future__ import annotations

from typing import ClassVar

from stt_sdk._text import one_line
from stt_sdk._types import Timings

# Characters of an error's message, with what others say in it.
MAX_MESSAGE = 500


class STTError(Exception):
    """Whatever kept a clip from becoming text.

    Attributes:
        message: the reason, one sentence.
        status: HTTP status; None: there was no answer.
        type: the contract's error type, such as `invalid_audio`; "" if there is none.
        retryable: the request was not worked on, and may be sent again.
        retry_after: seconds the service asks to wait, if it does.
        request_id: joins this error with the service's log.
        timings_ms: as far as they are known.
        reason: why the fallback was needed, if it was, as `routing.reason` has it.
        below: the gates that the primary's own text failed.
        fallback_error: why the fallback gave no text, if it was asked: `cause: sentence`.
        host: address of the host that was asked last.
        attempts: how often it was tried.
        elapsed: seconds from the call to this error.
        not_repeated: why it was not tried again, where it might have been.
    """

    type: ClassVar[str] = ""
    # Where to look, for whoever is called at night.
    look: str = ""

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        retryable: bool = False,
        retry_after: float | None = None,
        request_id: str | None = None,
        timings_ms: Timings | None = None,
        reason: str | None = None,
        below: tuple[str, ...] = (),
        fallback_error: str | None = None,
        host: str = "",
    ) -> None:
        message = one_line(message, MAX_MESSAGE)
        super().__init__(message)
        self.message = message
        self.status = status
        self.retryable = retryable
        self.retry_after = retry_after
        self.request_id = _line(request_id)
        self.timings_ms = timings_ms
        self.reason = _line(reason)
        self.below = tuple(filter(None, map(one_line, below)))
        self.fallback_error = _line(fallback_error)
        self.host = host
        self.attempts = 1
        self.elapsed: float | None = None
        self.not_repeated = ""

    def __str__(self) -> str:
        what = " ".join(str(part) for part in (self.status, self.type) if part)
        said = f"{what} from {self.host}" if what and self.host else what or self.host
        facts = []
        if self.fallback_error:
            cause, _, sentence = self.fallback_error.partition(": ")
            told = bool(sentence) and sentence in self.message  # as the service's own messages do
            facts.append(f"fallback: {cause if told else self.fallback_error}")
        if self.attempts > 1:
            facts.append(f"{self.attempts} attempts")
        if self.elapsed is not None:
            facts.append(f"after {_seconds(self.elapsed)}")
        if self.retry_after is not None:
            facts.append(f"it asks to wait {_seconds(self.retry_after)}")
        if self.not_repeated:
            facts.append(f"not tried again: {self.not_repeated}")
        if self.request_id:
            facts.append(f"request {self.request_id}")
        if self.look:
            facts.append(f"look at {self.look}")
        detail = f" ({'; '.join(facts)})" if facts else ""
        return f"{said}: {self.message}{detail}" if said else f"{self.message}{detail}"


def _line(text: str | None) -> str | None:
    return None if text is None else one_line(text)


def _seconds(value: float) -> str:
    return f"{value:.3g} s" if value < 100 else f"{value:.0f} s"


class ConnectionFailed(STTError):
    """No host was reached, or the connection broke.

    Attributes:
        sent: the request was on its way already, and may have been worked on.
    """

    look = "whether the service runs at this address, and the network between"

    def __init__(self, message: str, *, sent: bool = False, host: str = "") -> None:
        super().__init__(message, retryable=not sent, host=host)
        self.sent = sent


class CertificatesError(STTError):
    """The CA certificates that a connection is to trust cannot be loaded. Nothing was sent."""

    look = "SSL_CERT_FILE and SSL_CERT_DIR of this process, or pass an ssl_context"


class TimedOut(STTError):
    """No answer came by the deadline.

    Attributes:
        starved: the clip's source had not given all of its bytes by then.
    """

    look = "stt_queue_depth and stt_oldest_inference_seconds of the host, and the network"

    def __init__(self, message: str, *, starved: bool = False, host: str = "") -> None:
        super().__init__(message, host=host)
        self.starved = starved
        if starved:
            self.look = "what the audio comes from"


class InvalidAnswerError(STTError):
    """A 200 that is not of the agreed form."""

    look = "what answers at this address: it is no service of this version"


class ServiceError(STTError):
    """The service, or a proxy before it, answered with an error."""


class InvalidRequestError(ServiceError):
    type = "invalid_request"


class InvalidAudioError(ServiceError):
    type = "invalid_audio"


class UnauthorizedError(ServiceError):
    type = "unauthorized"
    look = "the api_key, and API_KEYS of the service"


class NotFoundError(ServiceError):
    type = "not_found"
    look = "the base_url: it is the address without /v1"


class MethodNotAllowedError(ServiceError):
    type = "method_not_allowed"


class RequestTimeoutError(ServiceError):
    type = "request_timeout"
    look = "how fast the audio is sent"


class PayloadTooLargeError(ServiceError):
    type = "payload_too_large"
    look = "MAX_UPLOAD_MB of the service"


class AudioTooLongError(ServiceError):
    type = "audio_too_long"
    look = "MAX_AUDIO_SECONDS of the service"


class RateLimitedError(ServiceError):
    type = "rate_limited"
    look = "RATE_LIMIT_RPS and RATE_LIMIT_BURST of the service"


class InternalError(ServiceError):
    type = "internal"
    look = "the service's log, by the request id"


class FallbackFailedError(ServiceError):
    type = "fallback_failed"
    look = "the fallback's /v1/ready and log, by the request id"


class OverloadedError(ServiceError):
    type = "overloaded"
    look = "stt_queue_depth: more primaries, or fewer calls at once"


class DrainingError(ServiceError):
    type = "draining"


class NotReadyError(ServiceError):
    type = "not_ready"
    look = "/v1/ready and the service's log"


class DeadlineExceededError(ServiceError):
    type = "deadline_exceeded"
    look = "the timings: whether the time went into the queue or the inference"


BY_TYPE: dict[str, type[ServiceError]] = {cls.type: cls for cls in ServiceError.__subclasses__()}
# Of an answer with these statuses the contract says that the request was not worked on.
NOT_WORKED_ON = frozenset({429, 503})
