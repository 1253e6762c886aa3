"""The seam between the service and whatever recognises speech."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from stt_cascade.warning_codes import WarningCode

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
        start: seconds on the file's own clock at which the samples begin.
        warnings: what decoding the upload lost.
    """

    samples: Samples
    speech: tuple[Span, ...]
    start: float = 0.0
    warnings: tuple[WarningCode, ...] = ()

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
    """What the caller asked for. `language` is a Whisper code, or None to detect it.

    Attributes:
        assumed: the language is not the caller's word, but what another window of the clip was
            heard to be in.
    """

    language: str | None = None
    assumed: bool = False
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
    """Times in seconds from the clip's start; log-probabilities are natural.

    Attributes:
        suspect: the text looks like a loop, or like less than what was said.
    """

    start: float
    end: float
    text: str
    avg_logprob: float
    no_speech_prob: float
    words: tuple[Word, ...] = ()
    suspect: bool = False


@dataclass(frozen=True, slots=True)
class Utterance:
    """What an engine heard in one window. Times in seconds from the window's start.

    Attributes:
        language_probability: None when the language was given or the model knows only one.
        avg_logprob: mean log-probability of the tokens, end token included, as faster-whisper's.
        tokens: how many tokens that mean is over.
        weakest: probability (geometric mean) of the 3 least likely text tokens.
        heard_until: where the decoder left the rest of the window to another decode, which it may
            with timestamps; None: all of it was heard.
        full_context: the short encoding went wrong, and the window was encoded in full after it.
        doubted: the greedy text was in doubt, and a beam had a second look.
        looped: the text still looks like a loop after its retry.
        covered: whether the text accounts for the speech in the window, as far as can be told.
        warnings: what of the speech is known to be missing from the text, and why.
    """

    language: str
    language_probability: float | None
    segments: tuple[Segment, ...]
    avg_logprob: float
    tokens: int
    weakest: float
    full_context: bool = False
    doubted: bool = False
    looped: bool = False
    covered: bool = True
    warnings: tuple[WarningCode, ...] = ()
    heard_until: float | None = None


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

    def encode(self, samples: Samples, speech: Sequence[Span] = ()) -> Any:
        """The first half of recognising the speech in a window: what `decode` takes.

        Args:
            samples: shape (n,), at most 30 s, as in `Clip`.
            speech: where in it somebody speaks, as in `Clip`; by default everywhere.
        """

    def decode(self, encodings: Sequence[Any], options: Options) -> list[Utterance]:
        """The second half. Some windows of one clip together are quicker than one by one.

        Args:
            encodings: from `encode`, at least one. A language to detect is that of the first.
        """
