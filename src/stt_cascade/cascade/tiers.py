"""A clip's way through a tier, top to bottom."""

from __future__ import annotations

import math
import random
import time
from abc import ABC, abstractmethod
from collections.abc import Callable

import numpy as np
import structlog

from stt_cascade.admission.deadline import Deadline
from stt_cascade.admission.slots import Slots
from stt_cascade.answer import Answer, Reason, Routing, heard, timings, warnings
from stt_cascade.cascade.confidence import Scores
from stt_cascade.cascade.decision import Accept, Author, Opinion, Policy, decide, pick
from stt_cascade.cascade.fallback_answer import FallbackError
from stt_cascade.cascade.fallback_client import FallbackClient
from stt_cascade.cascade.hearing import DecoderPools, Hearing
from stt_cascade.cascade.recognise import recognise
from stt_cascade.cascade.shadow import Shadows
from stt_cascade.config import PrimaryConfig, TierConfig
from stt_cascade.engine.protocol import SAMPLE_RATE, Clip, Engine, Options
from stt_cascade.engine.transcript import Transcript
from stt_cascade.errors import (
    DeadlineExceeded,
    FallbackFailed,
    InvalidAudio,
    InvalidRequest,
    NotReady,
    Refusal,
)
from stt_cascade.record import Record
from stt_cascade.telemetry.metrics import Metrics
from stt_cascade.upload import Upload

log = structlog.get_logger("stt.tier")


# What an inference costs beyond its length, in seconds of audio: prompt, first steps, margin.
OVERHEAD_SECONDS = 5.0


class Tier(ABC):
    """What both tiers do: hear a clip, infer in a slot, make the answer."""

    def __init__(self, config: TierConfig, metrics: Metrics, pools: DecoderPools) -> None:
        self._config = config
        self._metrics = metrics
        self.engine: Engine | None = None
        self.slots = Slots(
            "inference",
            config.max_concurrency,
            config.queue_limit,
            queue_seconds=config.max_queue_audio_seconds or math.inf,
            overhead=OVERHEAD_SECONDS,
        )
        self._hearing = Hearing(config, pools)

    @abstractmethod
    async def answer(self, upload: Upload, record: Record, deadline: Deadline) -> Answer:
        """The text of an upload.

        Raises:
            Refusal: there is none; its type says why.
        """

    @property
    def loaded_engine(self) -> Engine:
        """The engine, once its model is loaded.

        Raises:
            NotReady: it is not, yet.
        """
        if self.engine is None:
            raise NotReady("the model is still being loaded", retry_after=5)
        return self.engine

    @property
    def oldest_seconds(self) -> float:
        """For how long the oldest inference has been running, or a decoding beyond its time."""
        return max(self.slots.oldest_seconds, self._hearing.overdue_seconds)

    def check_room(self, deadline: Deadline, caller: str) -> None:
        """Turn a caller away before its clip is received, if it would be turned away afterwards.

        Raises:
            Overloaded, Draining: as `Slots.check`.
        """
        self.slots.check(deadline, caller=caller)

    def drain(self) -> None:
        """Reject queued requests; work that has begun goes on."""
        self._hearing.drain()
        self.slots.drain()

    async def close(self) -> None:
        self._hearing.close()
        self.slots.close()

    def after(self, upload: Upload, answer: Answer) -> Callable[[], None]:
        """What follows an answer: to be called when it has gone out, or could not."""
        return lambda: None

    @property
    def shadows(self) -> int:
        """Clips that are held though they have been answered."""
        return 0

    async def _hear(self, upload: Upload, record: Record, deadline: Deadline) -> Clip:
        """Decode the upload, and find where somebody speaks."""
        record.enter("decode")
        clip = await self._hearing.hear(upload, deadline, record.caller)
        record.audio_seconds = round(clip.duration, 3)
        self._metrics.audio_decoded(clip.duration)
        return clip

    async def _infer(
        self, clip: Clip, options: Options, record: Record, deadline: Deadline
    ) -> tuple[Transcript, float]:
        """Recognise the clip; also returns the seconds from the first slot to the last result."""

        def waited(seconds: float) -> None:
            record.queue_wait_ms = seconds * 1000
            self._metrics.queue_waited(seconds)

        record.enter("queue")
        began = time.perf_counter()
        transcript = await recognise(
            self.loaded_engine,
            clip,
            options,
            self.slots,
            deadline,
            caller=record.caller,
            waited=waited,
            begun=lambda: record.enter("infer"),
        )
        seconds = time.perf_counter() - began - (record.queue_wait_ms or 0) / 1000
        self._metrics.recognised(transcript)
        return transcript.later(clip.start), seconds

    def _answer(
        self, transcript: Transcript | None, clip: Clip, record: Record, reason: Reason
    ) -> Answer:
        """This tier's own text as an answer; no transcript: nobody speaks."""
        record.final_model = self._config.model
        record.reason = reason
        record.text = "" if transcript is None else transcript.text
        record.language = None if transcript is None else transcript.language
        warned = warnings((*clip.warnings, *(transcript.warnings if transcript else ())))
        record.warnings = tuple(warning.code for warning in warned)
        return Answer(
            **heard(transcript),
            warnings=warned,
            duration=round(clip.start + clip.duration, 3),
            speech_duration=round(clip.speech_duration, 3),
            model=self._config.model,
            routing=Routing(
                tier=self._config.tier,
                fallback_used=bool(record.fallback_used),
                reason=reason,
                below=list(record.below or ()),
                degraded=record.degraded,
            ),
            timings_ms=timings(record),
            request_id=record.request_id,
        )


class Fallback(Tier):
    """The second tier: transcribes, and routes nothing."""

    async def answer(self, upload: Upload, record: Record, deadline: Deadline) -> Answer:
        record.fallback_used = False
        record.lang_check_applicable = False
        language = upload.options.language
        if language is not None and language not in self.loaded_engine.languages:
            known = ", ".join(sorted(self.loaded_engine.languages))
            raise InvalidRequest(
                f"the model {self._config.model} does not know {language!r}; it knows: {known}"
            )
        clip = await self._hear(upload, record, deadline)
        if not clip.speech:
            self._metrics.no_speech()
            return self._answer(None, clip, record, "no_speech")
        try:
            transcript, seconds = await self._infer(clip, upload.options, record, deadline)
        except Refusal:
            raise
        except Exception as error:
            # Primaries stop asking a broken fallback, but not one that fails on a single clip.
            if not await self._works(deadline, record.caller):
                raise
            log.exception("inference failed on one clip alone", request_id=record.request_id)
            raise InvalidAudio(
                f"the model {self._config.model} fails on this audio, and works on other audio; "
                "the service's log has the cause by the request id"
            ) from error
        record.fallback_infer_ms = seconds * 1000
        self._metrics.fallback_inferred(seconds)
        return self._answer(transcript, clip, record, "accepted")

    async def _works(self, deadline: Deadline, caller: str) -> bool:
        """Whether the engine recognises a clip of our own, after it failed on a caller's."""
        engine, samples = self.loaded_engine, np.zeros(SAMPLE_RATE, np.float32)
        try:
            await self.slots.run(
                lambda: engine.decode([engine.encode(samples)], Options()),
                deadline,
                audio_seconds=1.0,
                caller=caller,
                admitted=True,
            )
        except Exception:  # noqa: BLE001  # also without time for it: then it is unknown
            return False
        return True


class Primary(Tier):
    """The first tier: transcribes, doubts, and asks the fallback.

    Args:
        chance: what draws the clips that get a shadow.
    """

    def __init__(
        self,
        config: PrimaryConfig,
        metrics: Metrics,
        pools: DecoderPools,
        fallback: FallbackClient,
        chance: random.Random | None = None,
    ) -> None:
        super().__init__(config, metrics, pools)
        self._policy = Policy.of(config)
        self._on_failure = config.on_fallback_failure
        self._final_pick = config.final_pick
        self._fallback = fallback
        self._shadows = Shadows(
            config,
            fallback,
            busy=lambda: self.slots.depth > 0,
            ended=metrics.shadow_ended,
            differed=metrics.shadow_differed,
            chance=chance,
        )

    def drain(self) -> None:
        super().drain()
        self._shadows.drain()

    async def close(self) -> None:
        await super().close()
        await self._shadows.close()

    def after(self, upload: Upload, answer: Answer) -> Callable[[], None]:
        return self._shadows.draw(upload, answer)

    @property
    def shadows(self) -> int:
        return self._shadows.held

    async def answer(self, upload: Upload, record: Record, deadline: Deadline) -> Answer:
        engine, language = self.loaded_engine, upload.options.language
        record.fallback_used = False
        record.lang_check_applicable = language is None and len(engine.languages) > 1

        clip = await self._hear(upload, record, deadline)
        if not clip.speech:
            record.below = ()
            self._metrics.no_speech()
            self._metrics.decided("skipped")
            return self._answer(None, clip, record, "no_speech")

        transcript: Transcript | None = None
        reason: Reason
        if language is not None and language not in engine.languages:
            reason = "language"
        else:
            try:
                transcript, seconds = await self._infer(clip, upload.options, record, deadline)
            except Refusal:
                raise
            except Exception as error:  # whatever broke, the fallback may know
                log.exception("primary inference failed", request_id=record.request_id)
                reason, record.primary_error = "primary_error", type(error).__name__
            else:
                record.primary_infer_ms = seconds * 1000
                self._metrics.primary_inferred(seconds)
                record.enter("decide")
                decision = decide(Scores.of(transcript), self._policy)
                if isinstance(decision, Accept):
                    record.below = ()
                    self._metrics.decided("skipped")
                    return self._answer(transcript, clip, record, "accepted")
                reason, record.below = "low_confidence", decision.gates
                self._metrics.gates_failed(decision.gates)

        # From here on no slot is held: the next clip is inferred while the fallback works.
        record.reason = reason
        if not deadline.remaining:
            raise DeadlineExceeded("the deadline passed before the fallback could be asked")
        try:
            theirs = await self._escalate(upload, record, deadline)
        except FallbackError as error:
            record.fallback_error = f"{error.cause}: {error}"
            if reason == "language" and error.theirs and error.theirs.type == InvalidRequest.type:
                # Neither model knows the language: the request is wrong, not the fallback.
                raise InvalidRequest(error.theirs.message) from error
            self._metrics.decided("failed")
            self._metrics.fallback_failed(error.cause)
            if transcript is not None and self._on_failure == "primary":
                record.degraded = True
                return self._answer(transcript, clip, record, reason)
            trouble = record.primary_error
            cause = f"the primary failed ({trouble}) and " if trouble else ""
            raise FallbackFailed(f"{cause}the fallback was needed and failed: {error}") from error
        record.fallback_used = True
        self._metrics.decided("used")
        if transcript is not None and self._pick(transcript, theirs, record) == "primary":
            return self._answer(transcript, clip, record, reason)
        record.final_model = theirs.model
        record.text, record.language = theirs.text, theirs.language
        record.warnings = tuple(warning.code for warning in theirs.warnings)
        return theirs.model_copy(
            update={
                "routing": Routing(
                    tier="fallback",
                    fallback_used=True,
                    reason=reason,
                    below=list(record.below or ()),
                    degraded=False,
                ),
                "timings_ms": timings(record),
                "request_id": record.request_id,
            }
        )

    def _pick(self, transcript: Transcript, theirs: Answer, record: Record) -> Author:
        """Whose text it is, of the doubtful one and the fallback's."""
        if self._final_pick == "fallback":
            return "fallback"
        ours = Opinion.of(
            transcript.text,
            transcript.language,
            transcript.weakest,
            suspect=transcript.looped or not transcript.covered,
        )
        other = Opinion.of(theirs.text, theirs.language, theirs.confidence.weakest)
        picked = pick(ours, other)
        record.primary_weakest, record.fallback_weakest = ours.weakest, other.weakest
        record.picked = picked
        self._metrics.picked(picked)
        return picked

    async def _escalate(self, upload: Upload, record: Record, deadline: Deadline) -> Answer:
        record.enter("fallback")
        self._metrics.escalated(record.reason or "")
        self._shadows.give_way()
        began = time.perf_counter()
        try:
            answer = await self._fallback.ask(upload, record, deadline)
        except FallbackError as error:
            if error.cause != "breaker_open":  # else there was no round trip
                self._came_back(record, began)
            raise
        # Don't record a round trip for a disconnected client: its wait says nothing about the
        # fallback.
        self._came_back(record, began)
        return answer

    def _came_back(self, record: Record, began: float) -> None:
        seconds = time.perf_counter() - began
        record.fallback_infer_ms = seconds * 1000
        self._metrics.fallback_inferred(seconds)
