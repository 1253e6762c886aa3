"""The primary's way to the fallback: one deadline over all attempts, one safe retry."""

from __future__ import annotations

import asyncio
import re
from types import TracebackType

import httpx2
from pydantic import ValidationError

from stt_cascade.admission.deadline import HEADER as DEADLINE_HEADER
from stt_cascade.admission.deadline import Deadline
from stt_cascade.admission.keys import Secrets
from stt_cascade.answer import Answer, ErrorAnswer, ErrorPart
from stt_cascade.config import PrimaryConfig
from stt_cascade.record import Record
from stt_cascade.upload import Upload

MAX_ATTEMPTS = 2
CONNECT_TIMEOUT_S = 2.0
# Answers that say the request was not worked on.
NOT_PROCESSED = (429, 503)
BACKOFF_S = 0.1
# Shorter than the fallback's own (uvicorn: 5 s), which would close a connection just as it is used.
KEEPALIVE_S = 2.0


class FallbackError(Exception):
    """The fallback gave no text; the message is for the caller and the log.

    Args:
        theirs: the fallback's own error, if it answered with one.
    """

    def __init__(self, message: str, theirs: ErrorPart | None = None) -> None:
        super().__init__(message)
        self.theirs = theirs


class FallbackClient:
    """Asks the fallback. An async context manager.

    Args:
        transport: another way to the wire, for tests.
    """

    def __init__(
        self,
        config: PrimaryConfig,
        secrets: Secrets,
        transport: httpx2.AsyncBaseTransport | None = None,
    ) -> None:
        self._timeout = config.fallback_timeout_s
        self._secrets = secrets
        self._http = httpx2.AsyncClient(
            base_url=config.fallback_url,
            transport=transport,
            limits=httpx2.Limits(keepalive_expiry=KEEPALIVE_S),
            trust_env=False,  # no setting comes from the process environment, a proxy neither
        )

    async def __aenter__(self) -> FallbackClient:
        await self._http.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._http.__aexit__(kind, error, traceback)

    async def ask(self, upload: Upload, record: Record, deadline: Deadline) -> Answer:
        """The fallback's answer.

        Raises:
            FallbackError: there is none in time, or it is no answer.
        """
        deadline = Deadline(min(self._timeout, deadline.remaining))
        try:
            return await asyncio.wait_for(self._ask(upload, record, deadline), deadline.remaining)
        except asyncio.TimeoutError:
            raise FallbackError("the fallback did not answer in time") from None

    async def _ask(self, upload: Upload, record: Record, deadline: Deadline) -> Answer:
        for attempt in range(1, MAX_ATTEMPTS + 1):
            last = attempt == MAX_ATTEMPTS
            try:
                response = await self._send(upload, record, deadline)
            except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
                # Nothing was sent, so asking again cannot make the work be done twice.
                if last or deadline.remaining <= BACKOFF_S:
                    raise FallbackError(f"the fallback cannot be reached: {_say(error)}") from error
                await asyncio.sleep(BACKOFF_S)
            except httpx2.HTTPError as error:
                raise FallbackError(f"the call to the fallback broke off: {_say(error)}") from error
            else:
                wait = _retry_after(response)
                if last or wait is None or wait >= deadline.remaining:
                    return _read(response)
                await asyncio.sleep(wait)
        raise AssertionError("the last attempt returns or raises")

    async def _send(self, upload: Upload, record: Record, deadline: Deadline) -> httpx2.Response:
        headers = {
            "X-Req-Id": record.request_id,
            DEADLINE_HEADER: str(max(1, int(deadline.remaining * 1000))),
        }
        if self._secrets.fallback_key is not None:
            headers["Authorization"] = f"Bearer {self._secrets.fallback_key}"
        if record.traceparent is not None:
            headers["traceparent"] = record.traceparent
        options = upload.options
        fields: dict[str, str] = {"timestamps": options.timestamps, "task": options.task}
        if options.language is not None:
            fields["language"] = options.language
        if options.prompt is not None:
            fields["prompt"] = options.prompt
        kind = "audio/g722" if upload.raw_g722 else "application/octet-stream"
        return await self._http.post(
            "/v1/transcribe",
            headers=headers,
            data=fields,
            files={"audio": ("audio", upload.audio, kind)},
            timeout=httpx2.Timeout(
                deadline.remaining, connect=min(CONNECT_TIMEOUT_S, deadline.remaining)
            ),
        )


def _retry_after(response: httpx2.Response) -> float | None:
    """Seconds until another try makes sense; None: it does not."""
    if response.status_code not in NOT_PROCESSED:
        return None
    value = response.headers.get("Retry-After", "")
    return float(value) if re.fullmatch(r"[0-9]{1,5}", value) else BACKOFF_S


def _read(response: httpx2.Response) -> Answer:
    if response.status_code == 200:
        try:
            return Answer.model_validate_json(response.content)
        except ValidationError as error:
            raise FallbackError(
                f"the fallback's answer is not of the agreed form ({error.error_count()} mistakes)"
            ) from error
    try:
        theirs = ErrorAnswer.model_validate_json(response.content).error
    except ValidationError:
        raise FallbackError(f"the fallback answered {response.status_code}") from None
    raise FallbackError(
        f"the fallback answered {response.status_code} {theirs.type}: {theirs.message}", theirs
    )


def _say(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
