"""Labelled clips as they are sent: as they are, and with noise."""

from __future__ import annotations

import os
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from stt_cascade.audio.decode import decode
from stt_cascade.engine.protocol import Samples
from stt_cascade.errors import Refusal
from stt_cascade.labelled import Labelled
from stt_cascade.measure.load import RAW
from stt_cascade.measure.noise import Kind, Noise, wav

# Of a set of any size so many clips make the noise; they are held in memory.
MOST_VOICES = 64
LONGEST_S = 14400.0  # what a service takes at most


@dataclass(frozen=True)
class Version:
    """A clip as it is sent.

    Attributes:
        snr: dB of the speech above the noise that is added; None: as it is.
        language: that is sent along; None: it is detected.
    """

    clip: Labelled
    snr: float | None
    language: str | None


def versions(
    clips: Iterable[Labelled], noise: Sequence[float], *, forced: bool, seed: int
) -> list[Version]:
    """Each clip as it is, and with noise where somebody speaks, in an order that is fair to end."""
    found = [
        Version(clip, snr, clip.language if forced and clip.text else None)
        for clip in clips
        for snr in (None, *(noise if clip.text else ()))
    ]
    found = list(dict.fromkeys(found))
    random.Random(seed).shuffle(found)
    return found


class Sound:
    """The bytes of each version.

    Args:
        folder: whose clips they are.
        clips: all of them, in the manifest's order.
    """

    def __init__(self, folder: Path, clips: Sequence[Labelled], kind: Kind, seed: int) -> None:
        self._folder = folder
        spoken = [clip for clip in clips if clip.text and kind != "white"]
        self._voices = random.Random(seed).sample(spoken, min(MOST_VOICES, len(spoken)))
        self._kind: Kind = kind
        self._seed = seed
        self._noise: Noise | None = None

    def source(self, version: Version) -> bytes | Path:
        """The same, as the client takes it.

        Raises:
            OSError, ValueError: as `of`.
        """
        clean, file = version.snr is None, version.clip.file
        return file if clean and file.suffix.lower() == RAW else self.of(version)

    def of(self, version: Version) -> bytes:
        """What is sent.

        Raises:
            OSError, ValueError: the file cannot be read or decoded, or there are too few
                others to make noise of.
        """
        if version.snr is None:
            return version.clip.file.read_bytes()
        if self._noise is None:
            voices = {self._name(clip): samples_of(clip.file) for clip in self._voices}
            self._noise = Noise(self._kind, voices, self._seed)
        samples = samples_of(version.clip.file)
        return wav(self._noise.added(self._name(version.clip), samples, version.snr))

    def _name(self, clip: Labelled) -> str:
        # The same noise wherever the folder lies.
        return os.path.relpath(clip.file, self._folder)


@lru_cache(MOST_VOICES)
def samples_of(file: Path) -> Samples:
    """A clip, decoded.

    Raises:
        OSError, ValueError: it cannot be read or decoded; the latter names it.
    """
    try:
        return decode(file.read_bytes(), raw_g722=file.suffix.lower() == RAW, max_seconds=LONGEST_S)
    except Refusal as error:
        raise ValueError(f"{file}: {error}") from error
