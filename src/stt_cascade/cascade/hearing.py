"""The first stage of a clip's way: a caller's bytes become samples, and where in them is speech.

It has slots of its own, outside the inference's: an odd file holds none of those. Files too large
for a short clip go through a lane of their own, with a process of their own that yields the
processor, so that a few of them, or hours of silence packed small, do not hold up short clips.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from stt_cascade.admission.deadline import Deadline
from stt_cascade.admission.slots import Slots
from stt_cascade.audio.decoders import Decoders, longest_seconds
from stt_cascade.audio.speech import detect
from stt_cascade.audio.stretches import detect_apart
from stt_cascade.config import TierConfig
from stt_cascade.engine.protocol import Clip, Span
from stt_cascade.upload import Upload

# 30 s of 16 kHz PCM, minutes of anything compressed.
LARGE_BYTES = 1024 * 1024
DECODERS, DECODERS_OF_LARGE = 2, 1
NICENESS_OF_LARGE = 10


@dataclass(frozen=True)
class DecoderPools:
    """The decoding processes of both lanes."""

    common: Decoders
    large: Decoders

    @classmethod
    def make(cls) -> DecoderPools:
        return cls(Decoders(DECODERS), Decoders(DECODERS_OF_LARGE, NICENESS_OF_LARGE))

    def start(self) -> None:
        """Start the processes.

        Raises:
            OSError: none can be started.
        """
        self.common.start()
        self.large.start()

    def close(self) -> None:
        self.common.close()
        self.large.close()


class Hearing:
    """Decodes uploads and finds the speech in them."""

    def __init__(self, config: TierConfig, pools: DecoderPools) -> None:
        self._max_seconds = config.max_audio_seconds
        self._vad = config.vad
        self._common = _Lane(DECODERS, config.queue_limit, pools.common)
        self._large = _Lane(DECODERS_OF_LARGE, config.queue_limit, pools.large)

    @property
    def overdue_seconds(self) -> float:
        """For how long a file has been here that no decoder may take so long for; 0 if none is.

        Its thread waits for a process that the system gives no more, or hangs in speech detection.
        """
        oldest = max(lane.slots.oldest_seconds for lane in (self._common, self._large))
        return max(0.0, oldest - longest_seconds(self._max_seconds))

    async def hear(self, upload: Upload, deadline: Deadline) -> Clip:
        """The clip of an upload.

        Raises:
            InvalidAudio, AudioTooLong: as `audio.decode.read`.
            Refusal: as `Slots.run`.
        """
        lane = self._large if len(upload.audio) > LARGE_BYTES else self._common
        work = partial(_hear, lane.decoders, upload, self._max_seconds, self._vad)
        return await lane.slots.run(work, deadline)

    def drain(self) -> None:
        """Send home who waits."""
        self._common.slots.drain()
        self._large.slots.drain()

    def close(self) -> None:
        self._common.slots.close()
        self._large.slots.close()


class _Lane:
    def __init__(self, size: int, queue: int, decoders: Decoders) -> None:
        self.slots = Slots("decoding", size, size + queue)
        self.decoders = decoders


def _hear(decoders: Decoders, upload: Upload, max_seconds: float, vad: bool) -> Clip:
    decoded = decoders.decode(upload.audio, raw_g722=upload.raw_g722, max_seconds=max_seconds)
    # Without speech detection, all is speech.
    samples = decoded.samples
    speech = detect_apart(samples, detect) if vad else (Span(0, len(samples)),)
    return Clip(
        samples,
        speech,
        start=decoded.start,
        warnings=() if decoded.whole else ("audio_incomplete",),
    )
