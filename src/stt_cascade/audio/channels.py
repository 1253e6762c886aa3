"""Several channels become one: their mean, unless they cancel each other out in it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from stt_cascade.engine.protocol import SAMPLE_RATE, Samples

Powers = npt.NDArray[np.float64]

# Cancellation is looked for in stretches of 50 ms, some of them at a time.
STRETCH = SAMPLE_RATE // 20
AT_A_TIME = 20
# The mean keeps 1/n of the amplitude of a voice in one of n channels, and more if several channels
# have it. If it keeps less than this share of that, the channels cancel each other out.
CANCELLED = 0.5
# From one channel to another, and to the mean and back, in 5 ms.
FADE = SAMPLE_RATE // 200
# Mean square of a sample's change below which there is nothing to lose: a third of 16 bits' last.
NOTHING = 1e-10


class Mixer:
    """Makes one channel of several, block by block.

    The mean favours no side: FFmpeg's down-mix weighs channels by their place, and a voice on one
    side of a call would get lost. Where a voice is in two channels with opposite signs, as a
    microphone wired the wrong way round has it, the mean is silence, and the strongest channel is
    taken instead, from a stretch before that to a stretch after it.
    """

    def __init__(self) -> None:
        self._waiting: list[Samples] = []
        self._size = 0
        self._before: Samples | None = None  # the last row that went out
        self._cancelled = False  # whether the last stretch was
        self._source = -1  # the channel of the last stretch; -1: the mean

    def feed(self, block: Samples) -> Iterator[Samples]:
        """What is ready of the mix after a further block of shape (n, channels)."""
        if block.shape[1] == 1:
            yield block[:, 0]
            return
        self._waiting.append(block)
        self._size += len(block)
        if self._size >= (AT_A_TIME + 1) * STRETCH:
            rows = np.concatenate(self._waiting)
            # One stretch stays: whether it is cancelled counts for the one before.
            ready = len(rows) // STRETCH - 1
            yield self._mix(rows, ready)
            self._waiting, self._size = [rows[ready * STRETCH :]], len(rows) - ready * STRETCH

    def flush(self) -> Iterator[Samples]:
        """The rest."""
        if self._size:
            rows = np.concatenate(self._waiting)
            yield self._mix(rows, -(-len(rows) // STRETCH))
        self._waiting, self._size, self._before = [], 0, None
        self._cancelled, self._source = False, -1

    def _mix(self, rows: Samples, stretches: int) -> Samples:
        """The mix of the first stretches; a further one may follow them."""
        size = min(stretches * STRETCH, len(rows))
        mixed: Samples = rows[:size].mean(axis=1, dtype=np.float32)
        powers, of_mean = self._powers(rows)
        limit = (CANCELLED / rows.shape[1]) ** 2 * powers.max(axis=1)
        cancelled = (of_mean < limit) & (powers.max(axis=1) > NOTHING)
        around = np.concatenate([[self._cancelled], cancelled, [False]])
        chosen = (around[:-2] | around[1:-1] | around[2:])[:stretches]
        self._cancelled, self._before = bool(cancelled[stretches - 1]), rows[size - 1 : size]
        if not chosen.any() and self._source < 0:
            return mixed
        for index in range(stretches):
            source = self._choose(powers[index]) if chosen[index] else -1
            if source < 0 and self._source < 0:
                continue
            stretch = slice(index * STRETCH, min((index + 1) * STRETCH, size))
            sources = {channel: rows[stretch, channel] for channel in (source, self._source)}
            sources[-1] = mixed[stretch].copy()
            mixed[stretch] = sources[source]
            if source != self._source:
                share = np.linspace(0, 1, len(mixed[stretch][:FADE]), dtype=np.float32)
                fading = slice(stretch.start, stretch.start + len(share))
                mixed[fading] = share * mixed[fading] + (1 - share) * sources[self._source][:FADE]
            self._source = source
        return mixed

    def _choose(self, powers: Powers) -> int:
        """The strongest channel, but the one of before as long as it is not much weaker."""
        strongest = int(powers.argmax())
        if self._source >= 0 and powers[self._source] * 4 > powers[strongest]:
            return self._source
        return strongest

    def _powers(self, rows: Samples) -> tuple[Powers, Powers]:
        """The powers of the channels and of their mean, for each stretch.

        They are computed from the changes between samples: a shared offset or hum is not a voice.
        """
        before = rows[:1] if self._before is None else self._before
        changes = np.diff(rows, axis=0, prepend=before)
        edges = np.arange(0, len(rows), STRETCH)
        lengths = np.diff(edges, append=len(rows))
        powers = np.add.reduceat(changes**2, edges, axis=0) / lengths[:, np.newaxis]
        return powers, np.add.reduceat(changes.mean(axis=1) ** 2, edges) / lengths
