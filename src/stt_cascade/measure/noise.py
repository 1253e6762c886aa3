"""Noise for clean clips: at a given distance from the speech's own level, the same in each run."""

from __future__ import annotations

import hashlib
import io
import wave
from collections.abc import Mapping
from typing import Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt

from stt_cascade.engine.protocol import SAMPLE_RATE, Samples

Kind = Literal["shaped", "babble", "white"]
KINDS: tuple[Kind, ...] = get_args(Kind)
Sound: TypeAlias = npt.NDArray[np.float64]

FRAME = SAMPLE_RATE // 50  # 20 ms
# As in ITU-T P.56: what lies further under the level of the speech is a pause.
MARGIN_DB = 15.9
# So many voices at once are a murmur; of fewer a recogniser writes down the loudest.
VOICES = 6
FEWEST_VOICES = 3


def speech_level(samples: Samples) -> float:
    """Root mean square of the frames in which somebody speaks; 0.0 of digital silence.

    Args:
        samples: shape (n,), float32.
    """
    # Less than a whole frame is one.
    whole = max(len(samples) - len(samples) % FRAME, min(len(samples), FRAME))
    frames = samples[:whole].astype(np.float64).reshape(max(1, whole // FRAME), -1)
    power = np.mean(frames**2, axis=1)
    active, level = np.ones(len(power), bool), 0.0
    for _ in range(len(power)):
        level = float(power[active].mean())
        louder = power >= level * 10 ** (-MARGIN_DB / 10)
        if (louder == active).all():
            break
        active = louder
    return float(np.sqrt(level))


class Noise:
    """Makes the noise of each clip.

    Args:
        kind: `shaped`: with the spectrum of other clips; `babble`: these clips at once, of whose
            words a recogniser may write some down; `white`.
        voices: the clips that it is made of, by their names: shape (n,) each.
        seed: with the clip's name it decides on everything that is random.
    """

    def __init__(self, kind: Kind, voices: Mapping[str, Samples], seed: int) -> None:
        self._kind = kind
        self._seed = seed
        levels = {name: speech_level(voice) for name, voice in sorted(voices.items())}
        # All at the same level.
        self._voices = {name: voices[name] / level for name, level in levels.items() if level}

    def added(self, name: str, samples: Samples, snr_db: float) -> Samples:
        """The clip with its noise, quieter as a whole if it would not fit into [-1, 1].

        At another distance a clip gets the same noise, louder or softer.

        Raises:
            ValueError: there are too few other clips, or only silent ones.
        """
        noise = self._of(name, len(samples))
        level = float(np.sqrt(np.mean(noise**2)))
        gain = speech_level(samples) / level / 10 ** (snr_db / 20)
        mixed = samples + gain * noise
        return (mixed / max(1.0, float(np.abs(mixed).max()))).astype(np.float32)

    def _of(self, name: str, length: int) -> Sound:
        random = np.random.default_rng(
            list(hashlib.sha256(f"{self._seed} {name}".encode()).digest())
        )
        if self._kind == "white":
            return random.standard_normal(length)
        others = [other for other in self._voices if other != name]
        if len(others) < FEWEST_VOICES:
            raise ValueError(
                f"{self._kind} noise is made of at least {FEWEST_VOICES} other clips "
                f"in which somebody speaks, and there are {len(others)}; white noise needs none"
            )
        murmur = np.zeros(length)
        for other in random.permutation(others)[:VOICES]:
            voice = self._voices[other]
            murmur += np.resize(np.roll(voice, -int(random.integers(len(voice)))), length)
        return murmur if self._kind == "babble" else _with_spectrum_of(murmur, random)


def _with_spectrum_of(sound: Sound, random: np.random.Generator) -> Sound:
    """Noise with the same mean spectrum, which nobody understands."""
    width = 512
    padded = np.pad(sound, (0, -len(sound) % width))
    power = np.mean(np.abs(np.fft.rfft(padded.reshape(-1, width) * np.hanning(width))) ** 2, axis=0)
    white = np.fft.rfft(random.standard_normal(len(sound)))
    place = np.linspace(0, width // 2, len(white))
    shape = np.sqrt(np.interp(place, np.arange(width // 2 + 1), power))
    return np.fft.irfft(white * shape, len(sound))


def wav(samples: Samples) -> bytes:
    """A WAV file of 16-bit numbers; samples as in `Clip`."""
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setnchannels(1)
        writer.setsampwidth(2)
        writer.setframerate(SAMPLE_RATE)
        writer.writeframes(np.round(samples * 32767).astype("<i2").tobytes())
    return file.getvalue()
