"""What the fallback said, and every way in which that is no text."""

from __future__ import annotations

import re
import ssl
from typing import Literal, get_args

import httpx2
from pydantic import ValidationError

from stt_cascade.answer import Answer, ErrorAnswer, ErrorPart
from stt_cascade.errors import DeadlineExceeded, Draining, NotReady, Overloaded
from stt_sdk._answer import few_values
from stt_sdk._text import one_line

# Causes that name the fallback's own fault, then those that do not.
#   unreachable    no connection was made
#   broken_off     it was made, and broke off before the answer was whole
#   timeout        no answer in time
#   error          500 or more, but for the following
#   invalid        no answer of the agreed form
#   overloaded     the fallback works and says that it is busy, or as many calls as may be are made
#   rejected       400 to 499: it works, and does not want this request
#   breaker_open   it was not asked, because the calls before failed
Cause = Literal[
    "unreachable",
    "broken_off",
    "timeout",
    "error",
    "invalid",
    "overloaded",
    "rejected",
    "breaker_open",
]
CAUSES: tuple[Cause, ...] = get_args(Cause)
FAULTS: tuple[Cause, ...] = ("unreachable", "broken_off", "timeout", "error", "invalid")

BUSY = (Overloaded.type, Draining.type, NotReady.type)
# Answers that say the request was not worked on.
NOT_PROCESSED = (429, 503)
BACKOFF_S = 0.1
# The longest answer there can be, 4 hours with word timestamps, all windows at the token limit, has
# 8.1 MiB.
MAX_ANSWER_BYTES = 16 * 1024 * 1024
# A window of 8 s may reach the token limit, with a time for each word.
BYTES_AROUND = 64 * 1024
BYTES_A_SECOND = 2600
# Of the fallback's own words; the rest of a longer message says nothing more.
MAX_MESSAGE = 500
MAX_ERROR_BYTES = 64 * 1024


class FallbackError(Exception):
    """The fallback gave no text; the message is for the caller and the log.

    Args:
        cause: which of the ways, for the metrics.
        theirs: the fallback's own error, if it answered with one.
        retry_after: seconds after which it may be asked once more; None: it must not, since it may
            have worked on the request or would say the same again.
    """

    def __init__(
        self,
        cause: Cause,
        message: str,
        *,
        theirs: ErrorPart | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(one_line(message, MAX_MESSAGE))
        self.cause: Cause = cause
        self.theirs = theirs
        self.retry_after = retry_after


def most_bytes(audio_seconds: float | None) -> int:
    """How long an answer to a clip may be.

    Args:
        audio_seconds: of the clip; None: unknown.
    """
    if audio_seconds is None:
        return MAX_ANSWER_BYTES
    return min(MAX_ANSWER_BYTES, BYTES_AROUND + int(BYTES_A_SECOND * audio_seconds))


def read(status: int, retry_after: str, body: bytes) -> Answer:
    """The answer in a response.

    Args:
        retry_after: the header's value, as it came; empty without one.

    Raises:
        FallbackError: there is none.
    """
    if status == 200:
        try:
            if not few_values(body):
                raise FallbackError("invalid", "the fallback's answer has too many values")
            return Answer.model_validate_json(body)
        except ValidationError as error:
            raise FallbackError(
                "invalid",
                "the fallback's answer is not of the agreed form "
                f"({error.error_count()} mistakes in {len(body)} bytes)",
            ) from error
    theirs = _their_error(body)
    said = f" {theirs.type}: {theirs.message}" if theirs else ""
    raise FallbackError(
        _cause(status, theirs.type if theirs else None),
        f"the fallback answered {status}{said}",
        theirs=theirs,
        retry_after=_seconds(retry_after) if status in NOT_PROCESSED else None,
    )


def broken(error: httpx2.HTTPError, *, secure: bool) -> FallbackError:
    """What to make of an error on the way there or back.

    Args:
        secure: the way is one with TLS.
    """
    if isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout):
        # Nothing was sent, so asking again cannot make the work be done twice.
        message = f"the fallback cannot be reached: {_say(error)}"
        return FallbackError("unreachable", message, retry_after=BACKOFF_S)
    message = f"the call to the fallback broke off: {_say(error)}"
    if secure and isinstance(error, httpx2.ReadError | httpx2.RemoteProtocolError):
        # With TLS 1.3 a server that takes no such client says so after the handshake, and asyncio's
        # servers do not say it, they hang up.
        message += "; it speaks TLS: does it take the certificate in FALLBACK_CERT_FILE?"
    return FallbackError("broken_off", message)


def _say(error: Exception) -> str:
    below: BaseException | None = error
    while below is not None and not isinstance(below, ssl.SSLError):
        below = below.__context__  # httpcore2 hides its causes
    if isinstance(below, ssl.SSLCertVerificationError):
        return f"TLS: its certificate does not hold: {below.verify_message}"
    if isinstance(below, ssl.SSLError) and below.reason:
        return f"TLS: {below.reason.replace('_', ' ').lower()}"
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def _cause(status: int, type_: str | None) -> Cause:
    if status == 429 or (status == 503 and type_ in BUSY):
        return "overloaded"
    # It was given less time than it needed, and says so a moment before we would.
    if status == DeadlineExceeded.status and type_ == DeadlineExceeded.type:
        return "timeout"
    if status >= 500:
        return "error"
    return "rejected" if status >= 400 else "invalid"


def _their_error(body: bytes) -> ErrorPart | None:
    try:
        return ErrorAnswer.model_validate_json(body[:MAX_ERROR_BYTES]).error
    except ValidationError:
        return None


def _seconds(retry_after: str) -> float:
    return float(retry_after) if re.fullmatch(r"[0-9]{1,5}", retry_after) else BACKOFF_S
