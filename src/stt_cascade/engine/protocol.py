"""The seam between the service and whatever recognises speech."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

SAMPLE_RATE = 16_000

Samples = npt.NDArray[np.float32]
Timestamps = Literal["none", "segment", "word"]
Task = Literal["transcribe", "translate"]


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of a clip; `start` and `end` in samples at 16 kHz."""

    start: int
    end: int

    @property
    def seconds(self) -> float:
        return (self.end - self.start) / SAMPLE_RATE


@dataclass(frozen=True, slots=True)
class Clip:
    """One upload, decoded.

    Attributes:
        samples: shape (n,), float32 in [-1, 1], mono, 16 kHz.
        speech: where somebody speaks, in order, without overlap; empty if nobody does.
    """

    samples: Samples
    speech: tuple[Span, ...]

    @property
    def duration(self) -> float:
        """Seconds."""
        return len(self.samples) / SAMPLE_RATE

    @property
    def speech_duration(self) -> float:
        """Seconds in which somebody speaks."""
        return sum(span.seconds for span in self.speech)


@dataclass(frozen=True, slots=True)
class Options:
    """What the caller asked for. `language` is a Whisper code, or None to detect it."""

    language: str | None = None
    prompt: str | None = None
    timestamps: Timestamps = "none"
    task: Task = "transcribe"


@dataclass(frozen=True, slots=True)
class Word:
    """Times in seconds from the clip's start; `probability` is the mean over its tokens."""

    start: float
    end: float
    word: str
    probability: float


@dataclass(frozen=True, slots=True)
class Segment:
    """Times in seconds from the clip's start; log-probabilities are natural."""

    start: float
    end: float
    text: str
    avg_logprob: float
    no_speech_prob: float
    words: tuple[Word, ...] = ()


@dataclass(frozen=True, slots=True)
class Transcript:
    """What an engine heard.

    Attributes:
        language_probability: None when the language was given or the model knows only one.
        logprob: mean token probability (geometric), end token included, as faster-whisper's
            `exp(avg_logprob)`; segments weighted by their tokens.
        weakest: probability (geometric mean) of the 3 least likely text tokens.
    """

    text: str
    language: str
    language_probability: float | None
    segments: tuple[Segment, ...]
    logprob: float
    weakest: float


class Engine(Protocol):
    """Recognises speech. Called from worker threads, by several at once."""

    @property
    def languages(self) -> frozenset[str]:
        """The codes that the model understands; a single one: it cannot detect."""

    @property
    def device(self) -> str:
        """Where it runs: `cpu` or `cuda`."""

    def warm_up(self) -> None:
        """Do what makes only the first inference slow."""

    def transcribe(self, clip: Clip, options: Options) -> Transcript:
        """Recognise the clip's speech, of which there is some."""
