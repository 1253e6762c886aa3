"""The primary's way to the fallback, which may be down, busy, slow or no fallback at all.

One deadline bounds all attempts, the wait for a place among the calls that may be made at once
included. A call is made only while the circuit breaker lets it through, and made once more only
where that is safe and the retry budget allows it.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import Any

import httpx2
import structlog

from stt_cascade.admission.deadline import HEADER as DEADLINE_HEADER
from stt_cascade.admission.deadline import Deadline
from stt_cascade.admission.fair import Entry, FairQueue
from stt_cascade.admission.keys import Secrets
from stt_cascade.answer import Answer
from stt_cascade.cascade.breaker import PROBE_INTERVAL_S, CircuitBreaker
from stt_cascade.cascade.fallback_answer import (
    FAULTS,
    FallbackError,
    broken,
    most_bytes,
    read,
)
from stt_cascade.config import PrimaryConfig
from stt_cascade.engine.windows import MAX_WINDOW_SECONDS
from stt_cascade.record import Record
from stt_cascade.upload import Upload
from stt_sdk._answer import LARGE_BYTES
from stt_sdk._apart import once
from stt_sdk._budget import RetryBudget
from stt_sdk._transport import NoCookies, Transport
from stt_sdk._within import OverTime, within

log = structlog.get_logger("stt.fallback")

CONNECT_TIMEOUT_S = 2.0
# Shorter than the fallback's own (uvicorn: 5 s), which would close a connection just as it is used.
KEEPALIVE_S = 2.0
MAX_CALLS = 64
# More than there are calls, so that none ever waits inside the pool, where in some versions of it
# one that was cancelled took a connection along for good. The rest is for connections that are just
# being closed.
POOL_SIZE = 2 * MAX_CALLS
# A call that times out counts against the fallback if it had this share of the time that the
# settings give it. With less, it was the caller who had no patience.
FAIR_SHARE = 0.5
# For so long after any trouble, the fallback is spared the calls that nobody waits for.
SPARED_S = 5.0


class FallbackClient:
    """Asks the fallback. An async context manager.

    Args:
        transport: another way to the wire, for tests.
        clock: monotonic seconds, for the breaker and for how long the fallback is spared.
    """

    def __init__(
        self,
        config: PrimaryConfig,
        secrets: Secrets,
        transport: httpx2.AsyncBaseTransport | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._timeout = config.fallback_timeout_s
        self._fair_s = FAIR_SHARE * min(config.fallback_timeout_s, config.request_timeout_s)
        self._secrets = secrets
        self._calls: FairQueue[asyncio.Future[None]] = FairQueue()
        self._under_way = 0
        # Calls that the fallback seems to bear at once; it rejects further ones as `overloaded`.
        self._bears = float(MAX_CALLS)
        self._budget = RetryBudget()
        self._clock = clock
        self._asking = 0  # calls that somebody waits for, from their wait for a place on
        self._spared_until = -math.inf
        self.breaker = CircuitBreaker(clock)
        self._http = httpx2.AsyncClient(
            base_url=config.fallback_url,
            transport=transport or _transport(secrets),
            # The deadline bounds the rest.
            timeout=httpx2.Timeout(None, connect=CONNECT_TIMEOUT_S),
            # A few bytes of a compressed body can become gigabytes.
            headers={"Accept-Encoding": "identity"},
            cookies=NoCookies(),
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

    def snapshot(self) -> dict[str, Any]:
        """The breaker's part of the JSON snapshot."""
        seconds = self.breaker.seconds_to_probe
        return {
            "state": self.breaker.state,
            "failures": self.breaker.failures,
            "next_probe_s": None if seconds is None else round(seconds, 1),
        }

    async def ask(self, upload: Upload, record: Record, deadline: Deadline) -> Answer:
        """The fallback's answer, asked for a second time where that is safe.

        Raises:
            FallbackError: there is none in time, or it is no answer.
        """
        deadline = Deadline(min(self._timeout, deadline.remaining))
        if self.breaker.refuses:  # before a wait for a place, too
            raise self._refusal()
        self._budget.earn()
        self._asking += 1
        try:
            return await self._ask(upload, record, deadline)
        finally:
            self._asking -= 1

    @property
    def idle(self) -> bool:
        """Whether nothing speaks against a call that nobody waits for."""
        return (
            not self._asking
            and self.breaker.state == "closed"
            and self._clock() >= self._spared_until
        )

    async def ask_aside(self, upload: Upload, record: Record) -> Answer:
        """The fallback's answer to a call that nobody waits for, made once, within its own time.

        It takes none of the others' places, spends nothing of their retry budget, and what becomes
        of it tells the breaker nothing.

        Raises:
            FallbackError: as `ask`.
        """
        try:
            return await self._exchange_within(self._timeout, upload, record)
        except FallbackError:
            self._spare()
            raise

    def _spare(self) -> None:
        self._spared_until = self._clock() + SPARED_S

    async def _ask(self, upload: Upload, record: Record, deadline: Deadline) -> Answer:
        try:
            return await self._call(upload, record, deadline)
        except FallbackError as error:
            wait = error.retry_after
            if wait is None or wait >= deadline.remaining or self.breaker.refuses:
                raise
            if not self._budget.spend():
                raise FallbackError(
                    error.cause,
                    f"{error} (not asked again: the retry budget is spent)",
                    theirs=error.theirs,
                ) from error
        await asyncio.sleep(wait)
        return await self._call(upload, record, deadline)

    async def _call(self, upload: Upload, record: Record, deadline: Deadline) -> Answer:
        """One call, in a place of its own; the breaker learns how it ends."""
        place = await self._take_place(record.caller, deadline)
        try:
            permit = self.breaker.enter()
            if permit is None:
                raise self._refusal()
            seconds = deadline.remaining
            try:
                answer = await self._exchange_within(seconds, upload, record)
            except FallbackError as error:
                self._judge(permit, error, record, seconds)
                raise
            except BaseException:
                self.breaker.abandoned(permit)  # the caller went away, which says nothing
                raise
            self._succeeded(permit)
            self._bears = min(MAX_CALLS, self._bears + 1 / self._bears)
            return answer
        finally:
            self._give_back(place)

    async def _take_place(self, caller: str, deadline: Deadline) -> Entry[asyncio.Future[None]]:
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        place = self._calls.put(caller, 1.0, turn)
        self._hand_out()
        try:
            await asyncio.wait({turn}, timeout=deadline.remaining)
            if not turn.done():
                message = f"{self._under_way} calls to the fallback left no place in time"
                raise FallbackError("overloaded", message)
        except BaseException:
            if not self._calls.remove(place):
                self._give_back(place)  # it came in the moment the caller gave up
            raise
        return place

    def _give_back(self, place: Entry[asyncio.Future[None]]) -> None:
        self._under_way -= 1
        self._calls.end(place, place.cost)
        self._hand_out()

    def _hand_out(self) -> None:
        """Start as many calls as the fallback bears, shared fairly between callers."""
        while self._calls and self._under_way < int(self._bears):
            self._under_way += 1
            self._calls.take().item.set_result(None)

    def _refusal(self) -> FallbackError:
        seconds = self.breaker.seconds_to_probe or 0.0
        then = (
            "one that tries it is under way"
            if self.breaker.state == "half_open"
            else f"the next one will be let through in {seconds:.1f} s"
        )
        return FallbackError(
            "breaker_open",
            f"the circuit breaker is open: {self.breaker.failures} calls in a row failed, {then}",
        )

    def _judge(self, permit: int, error: FallbackError, record: Record, seconds: float) -> None:
        if error.cause != "rejected":
            self._spare()
        if error.cause == "overloaded" and seconds >= self._fair_s:
            # A caller with a short deadline is told the same by a fallback that is hardly busy.
            self._bears = max(1.0, min(self._bears, self._under_way - 1))
        # A long clip may need more time than any call gets.
        long = (record.audio_seconds or 0.0) > MAX_WINDOW_SECONDS
        if error.cause == "timeout" and (long or seconds < self._fair_s):
            self.breaker.abandoned(permit)
        elif error.cause not in FAULTS:
            self._succeeded(permit)
        elif self.breaker.failed(permit):
            log.warning(
                "the fallback's circuit breaker opened",
                failures=self.breaker.failures,
                cause=error.cause,
                last_error=str(error),
                probe_interval_s=PROBE_INTERVAL_S,
            )

    def _succeeded(self, permit: int) -> None:
        if self.breaker.succeeded(permit):
            log.info("the fallback's circuit breaker closed")

    async def _exchange_within(self, seconds: float, upload: Upload, record: Record) -> Answer:
        try:
            return await within(seconds, self._exchange(seconds, upload, record))
        except OverTime:
            raise FallbackError("timeout", "the fallback did not answer in time") from None
        except httpx2.HTTPError as error:
            raise broken(error, secure=self._secrets.fallback_tls is not None) from error
        except (httpx2.InvalidURL, ValueError) as error:
            # httpx2 reads a redirection's address, though nobody follows it, and not each one that
            # is none is an error of its own.
            message = f"the fallback's answer cannot be read: {type(error).__name__}: {error}"
            raise FallbackError("invalid", message) from error

    async def _exchange(self, seconds: float, upload: Upload, record: Record) -> Answer:
        headers = {
            "X-Req-Id": record.request_id,
            DEADLINE_HEADER: str(max(1, int(seconds * 1000))),
        }
        if self._secrets.fallback_key is not None:
            headers["Authorization"] = f"Bearer {self._secrets.fallback_key}"
        if record.traceparent is not None:
            headers["traceparent"] = record.traceparent
        if record.tracestate is not None:
            headers["tracestate"] = record.tracestate
        options = upload.options
        fields: dict[str, str] = {"timestamps": options.timestamps, "task": options.task}
        if options.language is not None:
            fields["language"] = options.language
        if options.prompt is not None:
            fields["prompt"] = options.prompt
        kind = "audio/g722" if upload.raw_g722 else "application/octet-stream"
        async with self._http.stream(
            "POST",
            "/v1/transcribe",
            headers=headers,
            data=fields,
            files={"audio": ("audio", upload.audio, kind)},
        ) as response:
            body = await _bounded(response, most_bytes(record.audio_seconds))
        reading = partial(read, response.status_code, response.headers.get("Retry-After", ""), body)
        return reading() if len(body) < LARGE_BYTES else await once(reading, "fallback answer")


def _transport(secrets: Secrets) -> Transport:
    # Without TLS there must be no context: made anyway, it would ask the process environment for
    # certificates.
    return Transport(
        ssl_context=None
        if secrets.fallback_tls is None
        else partial(getattr, secrets, "fallback_tls"),
        limits=httpx2.Limits(max_connections=POOL_SIZE, keepalive_expiry=KEEPALIVE_S),
    )


async def _bounded(response: httpx2.Response, most: int) -> bytes:
    body = bytearray()
    async for chunk in response.aiter_raw():
        body += chunk
        if len(body) > most:
            raise FallbackError("invalid", f"the fallback's answer is longer than {most} bytes")
    return bytes(body)
