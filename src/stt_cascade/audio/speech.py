"""Speech detection: Silero, as faster-whisper ships it. 15 to 30 ms for a short clip.

The detector hears the clip in pieces, so that an hour takes no more memory than a minute. It hears
a levelled copy: without any offset or slow drift, and louder where the clip is quiet. The engine
gets the clip as it was sent.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from itertools import islice, pairwise

import numpy as np
from faster_whisper.vad import get_vad_model

from stt_cascade.audio.stretches import detection_apart
from stt_cascade.engine.protocol import SAMPLE_RATE, Samples, Span
from stt_cascade.engine.windows import MAX_WINDOW_SECONDS

# Silero judges a frame by its samples and by the last ones of the frame before it.
FRAME, CONTEXT = 512, 64
STATE = (1, 1, 128)
# 8 s: memory grows with the piece, and larger pieces are not quicker.
PIECE = 256 * FRAME
# The detector listens for a while before it is sure: without some silence around it, it misses a
# single word at the start of a clip.
AROUND = 16 * FRAME
# Each sample loses the mean of the 50 ms around it. That removes what lies below 20 Hz, and leaves
# voices as they are. Without this, an offset of 0.005 hides a quiet voice from Silero.
LEVEL = SAMPLE_RATE // 20
# A hum that begins at once, as it does where a recording begins, sounds like a voice.
FADE = SAMPLE_RATE // 10
# Silero misses much of what peaks below 0.003, so a quiet clip is made as loud as this. A loud
# one is not made quieter: whoever speaks softly in it would be lost.
# The least peak bounds the gain: below it a 16-bit recording has nothing but noise.
PEAK, LEAST_PEAK = 0.05, 0.0005
# The peak that counts is that of the fifth loudest frame: a click or a step is over by then.
LOUD_FRAMES = 5

SPEECH, SILENCE = 0.5, 0.35
# A single frame of 32 ms may cross the threshold in music; the shortest words have nine.
LEAST_FRAMES = 4
# Half a second ends a stretch, so that long audio can be cut at pauses.
PAUSE_FRAMES = 16
# Word beginnings and ends are quiet; too much is cheap, too little loses words.
MARGIN = SAMPLE_RATE * 2 // 5
# A longer stretch is cut at its last short pause: with its margins it must fit into a window.
MOST_FRAMES = (MAX_WINDOW_SECONDS * SAMPLE_RATE - 2 * MARGIN) // FRAME - 1
SHORT_PAUSE_FRAMES = 4

# Levelling this many pieces takes as long as detecting speech in one.
PIECES_LEVELLED = 16


def detect(samples: Samples) -> tuple[Span, ...]:
    """Where somebody speaks; samples as in `Clip`."""
    steps = detection_apart(samples, detection)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            found: tuple[Span, ...] = end.value
            return found


def detection(samples: Samples) -> Generator[None, None, tuple[Span, ...]]:
    """The same for one stretch, in steps between which it may wait, or be given up."""
    peaks: list[Samples] = []
    for piece in _level(samples):
        if peaks and not len(peaks) % PIECES_LEVELLED:
            yield
        peaks.append(np.abs(piece.reshape(-1, FRAME)).max(axis=1))
    peak = float(np.sort(np.concatenate(peaks))[-LOUD_FRAMES])
    if not peak:
        return ()
    gain = max(1.0, PEAK / max(peak, LEAST_PEAK))
    coming = probabilities(np.clip(piece * gain, -1, 1) for piece in _level(samples))
    found: list[float] = []
    while heard := list(islice(coming, PIECE // FRAME)):
        found += heard
        if len(heard) == PIECE // FRAME:
            yield
    return tuple(_spans(stretches(found), len(samples)))


def warm_up() -> None:
    """Load the detector, which the first call would otherwise wait for."""
    detect(np.sin(np.arange(SAMPLE_RATE, dtype=np.float32)))


def _level(samples: Samples) -> Iterator[Samples]:
    """The clip without its offset, with silence before and after it, in pieces of whole frames."""
    before, after = LEVEL // 2, LEVEL - LEVEL // 2
    frames = -(-len(samples) // FRAME)
    for start in range(-AROUND, frames * FRAME + AROUND, PIECE):
        piece = np.zeros(min(PIECE, frames * FRAME + AROUND - start), np.float32)
        first, last = max(start, 0), min(start + len(piece), len(samples))
        if first < last:
            near = samples[max(first - before, 0) : last + after]
            missing = max(before - first, 0), max(last + after - len(samples), 0)
            sums = np.cumsum(np.pad(near, missing, "edge"), dtype=np.float64)
            means = (sums[LEVEL:] - sums[:-LEVEL]) / LEVEL
            piece[first - start : last - start] = samples[first:last] - means
            if first == 0:
                length = min(FADE, last)
                piece[-start : length - start] *= np.linspace(0, 1, length, dtype=np.float32)
        yield piece


def probabilities(pieces: Iterable[Samples]) -> Iterator[float]:
    """For each frame, how probable it is that somebody speaks in it.

    Args:
        pieces: the clip, in pieces of whole frames.
    """
    session = get_vad_model().session
    h, c = np.zeros(STATE, np.float32), np.zeros(STATE, np.float32)
    end = np.zeros(CONTEXT, np.float32)
    for piece in pieces:
        frames = piece.reshape(-1, FRAME)
        ends = np.vstack([end, frames[:, -CONTEXT:]])
        end = ends[-1]
        heard = np.hstack([ends[:-1], frames])
        found, h, c = session.run(None, {"input": heard, "h": h, "c": c})
        yield from found.ravel().tolist()


def stretches(probabilities: Iterable[float]) -> list[tuple[int, int]]:
    """The frames in which somebody speaks: first of each stretch, and first after it.

    faster-whisper's rules, for probabilities that come one by one.
    """
    found: list[tuple[int, int]] = []
    frame = 0
    # Where the stretch began, where its current silence began, where it could be cut, and where
    # speech goes on after that cut.
    start = quiet = cut = resumed = None
    for frame, probability in enumerate(probabilities):
        if probability >= SPEECH:
            if start is None:
                start = frame
                continue
            if quiet is not None and cut is not None and resumed is None:
                resumed = frame
            quiet = None
        if start is None:
            continue
        if frame - start > MOST_FRAMES:
            found.append((start, frame if cut is None else cut))
            if cut is None:
                start = quiet = resumed = None
                continue
            start = resumed
            quiet = cut = resumed = None
        if probability < SILENCE and start is not None:
            quiet = frame if quiet is None else quiet
            if frame - quiet >= SHORT_PAUSE_FRAMES:
                cut, resumed = quiet, None
            if frame - quiet >= PAUSE_FRAMES:
                if quiet - start >= LEAST_FRAMES:
                    found.append((start, quiet))
                start = quiet = cut = resumed = None
    if start is not None and frame + 1 - start >= LEAST_FRAMES:
        found.append((start, frame + 1))
    return found


def _spans(found: list[tuple[int, int]], length: int) -> Iterator[Span]:
    """Stretches in samples of the clip, with a margin before and after, or half the pause."""
    edges = [(start * FRAME - AROUND, end * FRAME - AROUND) for start, end in found]
    pauses = [after[0] - before[1] for before, after in pairwise(edges)]
    margins = [MARGIN, *(min(MARGIN, pause // 2) for pause in pauses), MARGIN]
    for (start, end), (before, after) in zip(edges, pairwise(margins), strict=False):
        span = Span(max(0, start - before), min(end + after, length))
        if span.start < span.end:
            yield span
