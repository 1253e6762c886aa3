"""The tail of a short encoding: what the encoder makes of the silence after speech.

It is averaged over a few spoken clips, each encoded in full with silence after it, at the positions
that lie at least a second behind the speech. Digital silence alone has no speech before it, and its
encoding does not stop the decoder as reliably (docs/engine.md).
"""

from __future__ import annotations

import hashlib
import io
import os
import tempfile
from importlib.resources import files
from pathlib import Path

import numpy as np
import structlog
from faster_whisper import WhisperModel
from faster_whisper.audio import decode_audio, pad_or_trim

from stt_cascade.engine.encoding import (
    POSITIONS,
    POSITIONS_PER_SECOND,
    SAMPLES_PER_FRAME,
    WINDOW_FRAMES,
    States,
    encode_features,
    to_host,
)
from stt_cascade.engine.protocol import SAMPLE_RATE, Samples
from stt_cascade.weights.fetch import sha256_of

log = structlog.get_logger("stt.engine")

# A second after the last word, the encoding no longer shows the word.
SETTLE_SECONDS = 1.0


def tail(model: WhisperModel, model_file: Path, spoken: bool, cache: Path | None) -> States:
    """The tail for a model, shape (1500, hidden); from the cache if it is there.

    Args:
        model_file: its digest names the cached tail.
        spoken: made after speech, not of silence alone.
        cache: a folder to keep it in; None: make it at each start (a few full encodings).
    """
    clips = reference_clips() if spoken else [np.zeros(0, np.float32)]
    if cache is None:
        return make_tail(model, clips)
    path = cache / f"tail-{_key(model, model_file, clips)}.npy"
    try:
        kept: States = np.load(path, allow_pickle=False)
        if kept.ndim != 2 or len(kept) != POSITIONS or not np.isfinite(kept).all():
            raise ValueError("it is no tail")
        return kept
    except FileNotFoundError:
        pass
    except (OSError, EOFError, ValueError) as error:  # an empty file is an EOFError
        log.warning(
            "the cached tail cannot be read; making it anew", path=str(path), reason=str(error)
        )
    made = make_tail(model, clips)
    try:
        cache.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=cache)
        try:
            with os.fdopen(descriptor, "wb") as file:
                np.save(file, made)
            Path(temporary).replace(path)
        except BaseException:
            Path(temporary).unlink()
            raise
    except OSError as error:
        log.warning("the tail cannot be cached", path=str(path), reason=str(error))
    return made


def make_tail(model: WhisperModel, clips: list[Samples]) -> States:
    """Average the silence after the clips, position by position."""
    total: np.ndarray[tuple[int, ...], np.dtype[np.float64]] | None = None
    counts = np.zeros((POSITIONS, 1))
    for samples in clips:
        features = model.feature_extractor(samples, padding=WINDOW_FRAMES * SAMPLES_PER_FRAME)
        states = to_host(encode_features(model, pad_or_trim(features[:, :WINDOW_FRAMES])))[0]
        settled = int((len(samples) / SAMPLE_RATE + SETTLE_SECONDS) * POSITIONS_PER_SECOND)
        total = np.zeros(states.shape, np.float64) if total is None else total
        total[settled:] += states[settled:]
        counts[settled:] += 1
        dtype = states.dtype
    if total is None:
        raise ValueError("a tail needs at least one clip")
    # Nothing has settled yet where the shortest clip ends; what comes next stands in for that.
    first = int(np.flatnonzero(counts)[0])
    total[:first], counts[:first] = total[first], counts[first]
    return (total / counts).astype(dtype)


def reference_clips() -> list[Samples]:
    """The spoken clips in the package: synthesised speech in several languages."""
    folder = files("stt_cascade.engine") / "reference"
    return [
        decode_audio(io.BytesIO(entry.read_bytes()))
        for entry in sorted(folder.iterdir(), key=lambda entry: entry.name)
        if entry.name.endswith(".ogg")
    ]


def _key(model: WhisperModel, model_file: Path, clips: list[Samples]) -> str:
    # The same clips through the same weights in the same number format give the same tail.
    heard = hashlib.sha256(b"".join(samples.tobytes() for samples in clips)).hexdigest()
    return f"{sha256_of(model_file)[:24]}-{heard[:8]}-{model.model.compute_type}"
