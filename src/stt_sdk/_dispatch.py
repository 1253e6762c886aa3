"""One call: attempts at hosts until one answers, or the time is over."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import httpx2

from stt_sdk import _answer
from stt_sdk._budget import RetryBudget
from stt_sdk._errors import (
    CertificatesError,
    ConnectionFailed,
    DrainingError,
    FallbackFailedError,
    InternalError,
    InvalidAnswerError,
    NotReadyError,
    OverloadedError,
    RateLimitedError,
    ServiceError,
    STTError,
    TimedOut,
)
from stt_sdk._exchange import exchange
from stt_sdk._hosts import Host, choose
from stt_sdk._request import SourceFailed, TranscribeRequest
from stt_sdk._retry import GiveUp, RetryPolicy, Situation, believed, decide
from stt_sdk._stats import RollingStats
from stt_sdk._telemetry import (
    AttemptFinished,
    Escalated,
    RequestFinished,
    RequestStarted,
    Retried,
    Telemetry,
)
from stt_sdk._types import Transcription

# What the service is told is a little less than what the caller waits: its own error says more.
MARGIN_S = 0.25
MARGIN_SHARE = 0.1
# Nobody waits longer for one clip, and not every service takes a number of any size.
LONGEST_TOLD_S = 24 * 3600.0
# A host that gets less time than this may be slow without being broken.
PATIENT_S = 1.0
# For so long a host is left alone that is busy and does not say how long.
PAUSE_S = 1.0
# Calls that may leave a dying host before others have earned it: as many as may be with it.
MOVES_ON_CREDIT = 200

Answer = TypeVar("Answer")


@dataclass
class _Progress:
    """How far a call has come.

    Attributes:
        deadline: seconds from its beginning.
        asked: hosts in turn.
        retries: made so far, moves not counted.
        broke: hosts whose connection was lost after the request was on its way.
    """

    deadline: float
    began: float = field(default_factory=time.monotonic)
    asked: list[Host] = field(default_factory=list)
    retries: int = 0
    broke: list[Host] = field(default_factory=list)

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self.began

    @property
    def remaining(self) -> float:
        return self.deadline - self.elapsed


class Dispatcher:
    """Makes calls.

    Args:
        hosts: that may be asked; whoever owns the list may change it.
    """

    def __init__(self, hosts: Sequence[Host], policy: RetryPolicy, telemetry: Telemetry) -> None:
        self.stats = RollingStats()
        self._hosts = hosts
        self._policy = policy
        self._telemetry = telemetry
        self._budget = RetryBudget()

    async def transcribe(
        self, request: TranscribeRequest, deadline: float, began: float
    ) -> Transcription:
        """The text, from the first host that gives one.

        Args:
            deadline: seconds for all of the call.
            began: when it was made, by `time.monotonic`.

        Raises:
            STTError: see `stt_sdk`'s errors.
            Exception: the source raised it while it was being sent.
        """
        audio = request.audio
        self._telemetry.emit(RequestStarted(request.id, audio.seconds, audio.size, request.headers))
        self._budget.earn()
        call = _Progress(deadline, began)
        try:
            result = await self._until_answered(request, call)
        except SourceFailed as failed:
            broken = failed.cause
        except BaseException as error:
            if isinstance(error, STTError):
                self._failed(request, call, error)
            self._finished(request, call, error=error)
            raise
        else:
            self._answered(request, call, result)
            self._finished(request, call, result=result)
            return result
        self._finished(request, call, error=broken)
        raise broken  # here, where it gets no context of ours

    async def get(
        self, path: str, read: Callable[[httpx2.Response], Answer], deadline: float
    ) -> Answer:
        """Ask one host, any one that can be reached, for what it says of itself.

        Args:
            read: makes of it what is wanted.
            deadline: seconds.

        Raises:
            STTError: there is no answer, or another one.
        """
        call = _Progress(deadline)
        while True:
            host = choose(self._hosts, call.asked)
            if host is None:
                raise _no_host()
            call.asked.append(host)
            try:
                with host.working(0.0):
                    return read(await exchange(host, call.remaining, "GET", path))
            except STTError as error:
                error.host = host.name
                error.attempts = len(call.asked)
                error.elapsed = call.elapsed
                if not (isinstance(error, ConnectionFailed) and self._another(call)):
                    raise

    async def _until_answered(self, request: TranscribeRequest, call: _Progress) -> Transcription:
        if call.remaining <= 0:
            raise TimedOut("the deadline had passed before anything could be sent")
        last: STTError | None = None
        while True:
            # A host that may have worked on it does not get it again.
            host = choose([host for host in self._hosts if host not in call.broke], call.asked)
            if host is None:
                raise last or _no_host()
            call.asked.append(host)
            try:
                return await self._attempt(host, request, call)
            except STTError as error:
                if isinstance(error, ConnectionFailed) and error.sent:
                    call.broke.append(host)
                wait = self._wait_before_next(error, request, call)
                last = error
            await asyncio.sleep(wait)

    def _wait_before_next(
        self, error: STTError, request: TranscribeRequest, call: _Progress
    ) -> float:
        """Seconds until the next attempt; raises the error if there is none."""
        step = decide(
            self._policy,
            Situation(
                error=error,
                retries=call.retries,
                lost=len(call.broke),
                remaining=call.remaining,
                repeatable=request.repeatable,
                well=self._another(call),
                jitter=random.random(),
            ),
        )
        if isinstance(step, GiveUp):
            error.not_repeated = step.why
            raise error
        if not self._budget.spend(credit=MOVES_ON_CREDIT if step.move else 0):
            error.not_repeated = "the retry budget is spent"
            raise error
        call.retries += not step.move
        self._telemetry.emit(Retried(request.id, len(call.asked) + 1, error, step.wait))
        return step.wait

    def _another(self, call: _Progress) -> bool:
        """Whether there is a host in good health that was not asked yet."""
        return any(host.well and host not in call.asked for host in self._hosts)

    async def _attempt(
        self, host: Host, request: TranscribeRequest, call: _Progress
    ) -> Transcription:
        """The text of one host; what it does and does not answer tells of its health."""
        began = time.monotonic()
        number = len(call.asked)
        remaining = max(0.0, call.remaining)
        told = min(LONGEST_TOLD_S, remaining - min(MARGIN_S, MARGIN_SHARE * remaining))
        headers = {**request.headers, "X-Deadline-Ms": str(max(1, int(told * 1000)))}
        try:
            with host.working(request.audio.work):
                response = await exchange(host, remaining, "POST", request.path, request, headers)
            if response.status_code != 200:
                raise _answer.error_of(response)
            result = await _answer.transcription(
                response, host=host.name, attempts=number, elapsed=call.elapsed
            )
        except STTError as error:
            error.host = host.name
            _judge(host, error, remaining)
            spent = time.monotonic() - began
            host.stats.record(total_ms=1000 * spent, error=True)
            self._telemetry.emit(
                AttemptFinished(request.id, number, host.name, spent, error.status, error)
            )
            raise
        host.health.answered()
        spent = time.monotonic() - began
        host.stats.record(total_ms=1000 * spent)
        self._telemetry.emit(AttemptFinished(request.id, number, host.name, spent, 200, None))
        return result

    def _answered(self, request: TranscribeRequest, call: _Progress, result: Transcription) -> None:
        routing, times = result.routing, result.timings_ms
        escalated = routing.fallback_used or routing.degraded
        self.stats.record(
            total_ms=1000 * result.elapsed,
            queue_ms=times.queue_wait,
            primary_ms=times.primary_infer,
            fallback_ms=times.fallback_infer,
            escalated=escalated,
        )
        if escalated:
            self._telemetry.emit(
                Escalated(
                    request.id,
                    routing.reason,
                    routing.below,
                    times.fallback_infer,
                    routing.degraded,
                )
            )

    def _failed(self, request: TranscribeRequest, call: _Progress, error: STTError) -> None:
        error.request_id = error.request_id or request.id
        error.attempts = len(call.asked)
        error.elapsed = call.elapsed
        escalated = isinstance(error, FallbackFailedError)
        times = error.timings_ms
        self.stats.record(
            total_ms=1000 * call.elapsed,
            queue_ms=times.queue_wait if times else None,
            primary_ms=times.primary_infer if times else None,
            fallback_ms=times.fallback_infer if times else None,
            error=True,
            escalated=escalated,
        )
        if escalated:
            fallback_ms = times.fallback_infer if times else None
            self._telemetry.emit(
                Escalated(request.id, error.reason or "", error.below, fallback_ms, False)
            )

    def _finished(
        self,
        request: TranscribeRequest,
        call: _Progress,
        result: Transcription | None = None,
        error: BaseException | None = None,
    ) -> None:
        host = call.asked[-1].name if call.asked else None
        attempts = len(call.asked)
        self._telemetry.emit(
            RequestFinished(request.id, host, call.elapsed, attempts, result, error)
        )


def _judge(host: Host, error: STTError, given: float) -> None:
    """What an error says of the host's health.

    Args:
        given: seconds that it had to answer.
    """
    if isinstance(error, DrainingError):
        host.health.refuses("draining")
    elif isinstance(error, NotReadyError):
        host.health.refuses("not_ready")
    elif isinstance(error, (OverloadedError, RateLimitedError)):
        host.health.busy(believed(error.retry_after) or PAUSE_S)
    elif isinstance(error, TimedOut) and (error.starved or given < PATIENT_S):
        pass  # it had not got all of it, or hardly any time: others may fare better
    elif isinstance(error, (ConnectionFailed, TimedOut, InternalError, InvalidAnswerError)):
        host.health.failed()
    elif type(error) is ServiceError and error.status in (500, 502, 503, 504):
        host.health.failed()  # a proxy that has lost the service behind it
    elif not isinstance(error, CertificatesError):  # which says nothing of the host
        host.health.answered()


def _no_host() -> ConnectionFailed:
    return ConnectionFailed("the pool has no host", sent=False)
