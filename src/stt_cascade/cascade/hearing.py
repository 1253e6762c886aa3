"""The first stage of a clip's way: a caller's bytes become samples, and where in them is speech.

Both steps have slots of their own, apart from those of inference, and callers share them fairly. So
an odd file never takes an inference slot, and many of them do not delay other callers. Files too
large for a short clip, and those that take more processor time than one, are decoded in the slow
lane, by a process of low priority. Speech is detected step by step.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

from stt_cascade.admission.deadline import Deadline
from stt_cascade.admission.slots import Slots
from stt_cascade.audio.decode import Decoded
from stt_cascade.audio.decoders import Decoders, Interest, TooSlow, longest_seconds
from stt_cascade.audio.speech import detection
from stt_cascade.audio.stretches import Steps, detection_apart
from stt_cascade.config import TierConfig
from stt_cascade.engine.protocol import Clip, Samples, Span
from stt_cascade.upload import Upload

# 30 s of 16 kHz PCM, minutes of anything compressed.
LARGE_BYTES = 1024 * 1024
# Processor time that no short clip takes: 30 s of Opus are decoded in 0.16 s.
QUICK_SECONDS = 0.25
QUICK_DECODERS, SLOW_DECODERS = 2, 1
NICENESS_OF_SLOW = 10
DETECTORS = 2


@dataclass(frozen=True)
class DecoderPools:
    """The decoding processes of both lanes."""

    quick: Decoders
    slow: Decoders

    @classmethod
    def make(cls) -> DecoderPools:
        return cls(Decoders(QUICK_DECODERS), Decoders(SLOW_DECODERS, NICENESS_OF_SLOW))

    def start(self) -> None:
        """Start the processes.

        Raises:
            OSError: none can be started.
        """
        self.quick.start()
        self.slow.start()

    def close(self) -> None:
        self.quick.close()
        self.slow.close()


class Hearing:
    """Decodes uploads and finds the speech in them."""

    def __init__(self, config: TierConfig, pools: DecoderPools) -> None:
        self._max_seconds = config.max_audio_seconds
        self._vad = config.vad
        self._pools = pools
        self._quick, self._slow, self._detecting = self._slots = tuple(
            # How long a file will take is not known: each counts as one until it is done.
            Slots(name, size, size + config.queue_limit, overhead=1.0)
            for name, size in (
                ("decoding", QUICK_DECODERS),
                ("decoding", SLOW_DECODERS),
                ("speech detection", DETECTORS),
            )
        )

    @property
    def overdue_seconds(self) -> float:
        """For how long a file has been here that no decoder may take so long for; 0 if none is.

        Its thread waits for a process that the system gives no more, or hangs in speech detection.
        """
        oldest = max(slots.oldest_seconds for slots in self._slots)
        return max(0.0, oldest - longest_seconds(self._max_seconds))

    async def hear(self, upload: Upload, deadline: Deadline, caller: str) -> Clip:
        """The clip of an upload.

        Raises:
            InvalidAudio, AudioTooLong: as `audio.decode.read`.
            Refusal: as `Slots.run`.
        """
        decoded = await self._decode(upload, deadline, caller)
        samples = decoded.samples
        # Without speech detection, all is speech.
        everywhere = (Span(0, len(samples)),)
        speech = await self._detect(samples, deadline, caller) if self._vad else everywhere
        return Clip(
            samples,
            speech,
            start=decoded.start,
            warnings=() if decoded.whole else ("audio_incomplete",),
        )

    async def _decode(self, upload: Upload, deadline: Deadline, caller: str) -> Decoded:
        pools, interest = self._pools, Interest()

        def decode(decoders: Decoders, cpu_seconds: float = math.inf) -> Decoded:
            return decoders.decode(
                upload.audio,
                raw_g722=upload.raw_g722,
                max_seconds=self._max_seconds,
                cpu_seconds=cpu_seconds,
                interest=interest,
            )

        try:
            if len(upload.audio) <= LARGE_BYTES:
                quick = partial(decode, pools.quick, cpu_seconds=QUICK_SECONDS)
                decoded = await self._quick.run(_none_if_slow(quick), deadline, caller=caller)
                if decoded is not None:
                    return decoded
            return await self._slow.run(partial(decode, pools.slow), deadline, caller=caller)
        except BaseException:
            interest.lose()  # the caller has gone, or the deadline has passed
            raise

    async def _detect(self, samples: Samples, deadline: Deadline, caller: str) -> tuple[Span, ...]:
        """Step by step: between two steps of a long clip others get their turn."""
        step = partial(_next, detection_apart(samples, detection))
        found = await self._detecting.run(step, deadline, caller=caller)
        while found is None:
            found = await self._detecting.run(step, deadline, caller=caller, admitted=True)
        return found

    def drain(self) -> None:
        """Reject queued requests."""
        for slots in self._slots:
            slots.drain()

    def close(self) -> None:
        for slots in self._slots:
            slots.close()


def _none_if_slow(decode: Callable[[], Decoded]) -> Callable[[], Decoded | None]:
    def work() -> Decoded | None:
        with suppress(TooSlow):
            return decode()
        return None

    return work


def _next(steps: Steps) -> tuple[Span, ...] | None:
    """Where somebody speaks; None: there are more steps."""
    try:
        return next(steps)
    except StopIteration as end:
        found: tuple[Span, ...] = end.value
        return found
