"""The first stage of a clip's way: a caller's bytes become samples, and where in them is speech.

Both steps have slots of their own, outside the inference's, which callers share fairly: an odd file
holds none of those, and many of them hold up nobody else's. What takes long goes on in a lane of
its own, in a process or thread that leaves the processor to whoever else wants it: files too large
for a short clip, and what has used up the processor time that a short clip takes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

from stt_cascade.admission.deadline import Deadline
from stt_cascade.admission.slots import Slots
from stt_cascade.audio.decoders import Decoders, Interest, TooSlow, longest_seconds
from stt_cascade.audio.speech import detection
from stt_cascade.config import TierConfig
from stt_cascade.engine.protocol import Clip, Samples, Span
from stt_cascade.upload import Upload

# 30 s of 16 kHz PCM, minutes of anything compressed.
LARGE_BYTES = 1024 * 1024
# Processor time that no short clip takes for either step: 30 s of Opus are decoded in 0.16 s.
QUICK_SECONDS = 0.25
QUICK_LANE, SLOW_LANE = 2, 1
NICENESS_OF_SLOW = 10


@dataclass(frozen=True)
class DecoderPools:
    """The decoding processes of both lanes."""

    quick: Decoders
    slow: Decoders

    @classmethod
    def make(cls) -> DecoderPools:
        return cls(Decoders(QUICK_LANE), Decoders(SLOW_LANE, NICENESS_OF_SLOW))

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


class _Lanes:
    """The slots of one step; each piece of work counts as one until it is known how long it took.

    Args:
        queue: pieces of work that may wait for each lane.
    """

    def __init__(self, name: str, queue: int, niceness: int) -> None:
        self.quick = Slots(name, QUICK_LANE, QUICK_LANE + queue, overhead=1.0)
        self.slow = Slots(name, SLOW_LANE, SLOW_LANE + queue, overhead=1.0, niceness=niceness)


class Hearing:
    """Decodes uploads and finds the speech in them."""

    def __init__(self, config: TierConfig, pools: DecoderPools) -> None:
        self._max_seconds = config.max_audio_seconds
        self._vad = config.vad
        self._pools = pools
        self._decoding = _Lanes("decoding", config.queue_limit, 0)  # its processes are nice
        self._detecting = _Lanes("speech detection", config.queue_limit, NICENESS_OF_SLOW)
        steps = (self._decoding, self._detecting)
        self._slots = [slots for lanes in steps for slots in (lanes.quick, lanes.slow)]

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
            InvalidAudio, AudioTooLong: as `audio.decode.decode`.
            Refusal: as `Slots.run`.
        """
        samples = await self._decode(upload, deadline, caller)
        if not self._vad:
            return Clip(samples, (Span(0, len(samples)),))  # then all is speech
        return Clip(samples, await self._detect(samples, deadline, caller))

    async def _decode(self, upload: Upload, deadline: Deadline, caller: str) -> Samples:
        lanes, pools, interest = self._decoding, self._pools, Interest()

        def decode(decoders: Decoders, cpu_seconds: float = math.inf) -> Samples:
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
                samples = await lanes.quick.run(_none_if_slow(quick), deadline, caller=caller)
                if samples is not None:
                    return samples
            return await lanes.slow.run(partial(decode, pools.slow), deadline, caller=caller)
        except BaseException:
            interest.lose()  # who waited for it has gone, or its time is over
            raise

    async def _detect(self, samples: Samples, deadline: Deadline, caller: str) -> tuple[Span, ...]:
        """Step by step: between two steps of a long clip others get their turn."""
        lanes = self._detecting
        steps = _Steps(samples)
        found = await lanes.quick.run(steps.next, deadline, caller=caller)
        while found is None:
            slots = lanes.quick if steps.seconds < QUICK_SECONDS else lanes.slow
            found = await slots.run(steps.next, deadline, caller=caller, admitted=True)
        return found

    def drain(self) -> None:
        """Send home who waits."""
        for slots in self._slots:
            slots.drain()

    def close(self) -> None:
        for slots in self._slots:
            slots.close()


def _none_if_slow(decode: Callable[[], Samples]) -> Callable[[], Samples | None]:
    def work() -> Samples | None:
        with suppress(TooSlow):
            return decode()
        return None

    return work


class _Steps:
    """The speech in a clip, step by step; `seconds`: of processor time that they took so far."""

    def __init__(self, samples: Samples) -> None:
        self._steps: Generator[None, None, tuple[Span, ...]] = detection(samples)
        self.seconds = 0.0

    def next(self) -> tuple[Span, ...] | None:
        """Where somebody speaks; None: there is more to do."""
        began = time.thread_time()
        try:
            next(self._steps)
        except StopIteration as end:
            found: tuple[Span, ...] = end.value
            return found
        finally:
            self.seconds += time.thread_time() - began
        return None
