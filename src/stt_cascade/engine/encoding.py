"""Encoding a window: as Whisper was trained, all 30 s of it, or only what was said.

Whisper's encoder takes 30 s whatever was said, and the decoder stops well only if it sees 30 s of
encoder output. The short encoding therefore encodes the window and a little silence after it, drops
the last part, which saw the cut, and appends the rest from a prepared tail: what the encoder makes,
at those positions, of the silence after speech. docs/engine.md has the figures.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import ctranslate2
import numpy as np
import numpy.typing as npt
from faster_whisper import WhisperModel
from faster_whisper.audio import pad_or_trim

from stt_cascade.engine.protocol import SAMPLE_RATE, Samples, Span

FRAMES_PER_SECOND = 100
WINDOW_FRAMES = 3000
SAMPLES_PER_FRAME = SAMPLE_RATE // FRAMES_PER_SECOND
# Windows are padded up to such lengths. oneDNN compiles and keeps its kernels for each shape that
# it meets: hundreds of lengths would cost memory and, each the first time, time.
STEP_FRAMES = 50
POSITIONS = 1500  # of the encoder's output for 30 s
POSITIONS_PER_SECOND = 50

States = npt.NDArray[Any]  # encoder output, shape (positions, hidden), float32 or float16


@dataclass(frozen=True, slots=True)
class ShortForm:
    """How a window is encoded short. docs/engine.md, "Constants", says why these.

    Attributes:
        margin: seconds of silence encoded after the window.
        edge: seconds dropped again at the end, where the encoder saw the cut.
        stride: of the tail, each so many-th position is appended: fewer are quicker to attend to,
            too few do not stop the decoder.
        spoken_tail: the tail is made after speech; else of digital silence alone.
    """

    margin: float = 5.0
    edge: float = 0.5
    stride: int = 4
    spoken_tail: bool = True


@dataclass(frozen=True, slots=True)
class Encoding:
    """The encoder's output for one window.

    Attributes:
        samples: the window, shape (n,), for encoding it again.
        output: ctranslate2.StorageView, shape (1, positions, hidden).
        own: the same without the tail: mostly enough to tell the language, and half the work.
        frames: how many of the mel frames, 10 ms each, are the window's own.
        speech: where in the window somebody speaks.
    """

    samples: Samples
    output: Any
    own: Any
    frames: int
    speech: tuple[Span, ...] = ()

    @property
    def full(self) -> bool:
        """Whether it is the encoding of 30 s."""
        return self.own is self.output

    def part(self, span: Span) -> Any:
        """The output for a stretch of the window, as StorageView."""
        start, end = (at * POSITIONS_PER_SECOND // SAMPLE_RATE for at in (span.start, span.end))
        return view(to_host(self.own)[0][start:end])


class Encoder(Protocol):
    """Samples of one window (shape (n,), at most 30 s, 16 kHz) in, encoder output out."""

    def encode(self, samples: Samples) -> Encoding: ...

    def whole(self, encoding: Encoding) -> Any:
        """An output of its own as StorageView, with as many positions as 30 s have."""


class FullEncoder:
    """Encodes 30 s whatever the window, exactly as faster-whisper does."""

    def __init__(self, model: WhisperModel) -> None:
        self._model = model

    def encode(self, samples: Samples) -> Encoding:
        features = self._model.feature_extractor(samples)
        frames = min(features.shape[-1] - 1, WINDOW_FRAMES)
        output = self._model.encode(pad_or_trim(features[:, :frames]))
        return Encoding(samples, output, output, frames)

    def whole(self, encoding: Encoding) -> Any:
        return encoding.output


class ShortEncoder:
    """Encodes what was said, and appends the tail.

    Args:
        tail: shape (1500, hidden), see `tail.py`.
        full: for windows so long that nothing is saved.
    """

    def __init__(
        self, model: WhisperModel, form: ShortForm, tail: States, full: FullEncoder
    ) -> None:
        self._model = model
        self._form = form
        self._tail = tail
        self._full = full

    def encode(self, samples: Samples) -> Encoding:
        own = math.ceil(len(samples) / SAMPLES_PER_FRAME)
        frames = own + int(self._form.margin * FRAMES_PER_SECOND)
        frames = math.ceil(frames / STEP_FRAMES) * STEP_FRAMES
        if frames >= WINDOW_FRAMES:
            return self._full.encode(samples)
        padded = np.pad(samples, (0, frames * SAMPLES_PER_FRAME - len(samples)))
        features = self._model.feature_extractor(padded, padding=0)[:, :frames]
        states = to_host(encode_features(self._model, features))[0]
        states = states[: len(states) - int(self._form.edge * POSITIONS_PER_SECOND)]
        joined = np.concatenate([states, self._tail[len(states) :: self._form.stride]])
        return Encoding(
            samples,
            output=view(joined.astype(states.dtype)),
            own=view(states),
            frames=own,
        )

    def whole(self, encoding: Encoding) -> Any:
        states = to_host(encoding.own)[0]
        return view(np.concatenate([states, self._tail[len(states) :].astype(states.dtype)]))


def view(states: States) -> Any:
    """One window's states, shape (positions, hidden), as CTranslate2 takes them."""
    return ctranslate2.StorageView.from_array(np.ascontiguousarray(states[np.newaxis]))


def stack(encodings: Sequence[Encoding]) -> Any:
    """The outputs of some windows as one, shape (windows, positions, hidden), to decode together.

    An output with fewer positions than another gets its tail, which is silence, once more.
    """
    if len(encodings) == 1:
        return encodings[0].output
    states = [to_host(encoding.output)[0] for encoding in encodings]
    positions = max(map(len, states))
    rows = []
    for encoding, row in zip(encodings, states, strict=True):
        tail = row[encoding.own.shape[1] :]
        missing = np.resize(tail, (positions - len(row), row.shape[1]))
        rows.append(np.concatenate([row, missing]))
    return ctranslate2.StorageView.from_array(np.ascontiguousarray(np.stack(rows)))


def encode_features(model: WhisperModel, features: npt.NDArray[np.float32]) -> Any:
    """Log-mel (shape (mels, frames)) through the encoder; the output is on the host."""
    batch = ctranslate2.StorageView.from_array(np.ascontiguousarray(features[np.newaxis]))
    return model.model.encode(batch, to_cpu=True)


def to_host(view: Any) -> npt.NDArray[Any]:
    """A StorageView as an array; bfloat16, which NumPy lacks, as float32."""
    if view.device != "cpu":
        view = view.to_device(ctranslate2.Device.cpu)
    if view.dtype == ctranslate2.DataType.bfloat16:
        view = view.to(ctranslate2.DataType.float32)
    return np.array(view)
