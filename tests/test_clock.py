"""Where a file's time stamps put what is heard."""

from __future__ import annotations

from fractions import Fraction

import av
import numpy as np
import pytest

from recordings import stamped
from stt_cascade.audio.decode import Decoded, _Clock, read
from stt_cascade.engine.protocol import SAMPLE_RATE
from stt_cascade.errors import AudioTooLong
from tones import CONTAINERS, encoded

CLOCKED = [
    ("webm", "libopus"),
    ("matroska", "aac"),
    ("matroska", "pcm_s16le"),
    ("mp4", "aac"),
    ("ogg", "libopus"),
    ("ogg", "flac"),
]


def sounding(decoded: Decoded) -> list[tuple[float, float]]:
    """Begin and end of what is no silence, in seconds on the file's clock, to a tenth."""
    block = SAMPLE_RATE // 50
    blocks = decoded.samples[: len(decoded.samples) // block * block].reshape(-1, block)
    loud = np.abs(blocks).max(axis=1) > 0.1
    edges = np.flatnonzero(np.diff(loud, prepend=False, append=False)) / 50 + decoded.start
    return [(round(a, 1), round(b, 1)) for a, b in edges.reshape(-1, 2).tolist()]


def near(*spans: tuple[float, float]) -> list[object]:
    return [pytest.approx(span, abs=0.25) for span in spans]


@pytest.mark.parametrize(("container", "codec"), CLOCKED)
def test_a_hole_is_silence(container: str, codec: str) -> None:
    decoded = read(stamped(container, codec, [(0, 3), (9, 2)]), max_seconds=60)
    assert sounding(decoded) == near((0, 3), (9, 11))
    assert decoded.whole


@pytest.mark.parametrize(("container", "codec"), [kind for kind in CLOCKED if kind[1] != "flac"])
def test_audio_may_begin_later_than_the_clock(container: str, codec: str) -> None:
    decoded = read(stamped(container, codec, [(5, 2), (9, 1)]), max_seconds=60)
    assert sounding(decoded) == near((5, 7), (9, 10))
    assert len(decoded.samples) < 5.2 * SAMPLE_RATE


@pytest.mark.parametrize("container", ["matroska", "mp4"])
def test_audio_may_begin_later_than_the_pictures(container: str) -> None:
    decoded = read(stamped(container, "aac", [(5, 2)], pictures=8), max_seconds=60)
    assert sounding(decoded) == near((5, 7))


@pytest.mark.parametrize("name", sorted(set(CONTAINERS) - {"g722"}))
def test_priming_samples_and_headers_move_nothing(name: str) -> None:
    assert read(encoded(name, 1.0), max_seconds=60).start == 0


@pytest.mark.parametrize("container", ["webm", "mp4", "ogg"])
def test_a_gap_of_ten_hours_is_too_long_and_takes_no_memory(container: str) -> None:
    codec = "aac" if container == "mp4" else "libopus"
    with pytest.raises(AudioTooLong, match=r"with gaps of 3599\d\.\d s in its time stamps"):
        read(stamped(container, codec, [(0, 3), (36_000, 2)]), max_seconds=60)


def test_who_joined_a_live_stream_after_ten_hours_has_a_short_clip() -> None:
    decoded = read(stamped("webm", "libopus", [(36_000, 2)]), max_seconds=60)
    assert sounding(decoded) == near((0, 2))


def test_lost_packets_leave_gaps_of_their_length() -> None:
    """A fifth of the clock, spread evenly; silence comes in pieces that are worth it."""
    decoded = read(stamped("webm", "libopus", [(i / 40, 0.02) for i in range(200)]), max_seconds=60)
    assert len(decoded.samples) / SAMPLE_RATE == pytest.approx(5.0, abs=0.12)
    assert (np.abs(decoded.samples) > 0.01).sum() / SAMPLE_RATE == pytest.approx(4.0, abs=0.1)


def test_a_damaged_stamp_in_a_file_moves_nothing_and_loses_nothing() -> None:
    file = bytearray(encoded("webm-opus", 16.0))
    second = file.index(b"\x1fC\xb6u", file.index(b"\x1fC\xb6u") + 4)
    stamp = file.index(b"\xe7", second) + 1
    size = file[stamp] & 0x7F
    for milliseconds in (60_000, 30_000):
        file[stamp + 1 : stamp + 1 + size] = milliseconds.to_bytes(size, "big")
        decoded = read(bytes(file), max_seconds=600)
        assert len(decoded.samples) / SAMPLE_RATE == pytest.approx(16, abs=0.1)


# Seconds that 0.02 s of samples each begin at, and what is made of them: when they begin, and
# silence of how many seconds before which of them.
STEADY = [i * 0.02 for i in range(100)]
JITTER = np.random.default_rng(1).uniform(-0.3, 0.3, 100)
STAMPS: dict[str, tuple[list[float], float, list[tuple[int, float]]]] = {
    "steady": (STEADY, 0, []),
    "rounded": ([round(at, 2) + 0.004 for at in STEADY], 0, []),
    "jitter": ([at + off for at, off in zip(STEADY, JITTER * 0.3, strict=True)], 0, []),
    "late and made up for": ([at + 2 * (30 < i < 60) for i, at in enumerate(STEADY)], 0, []),
    "a stamp of ten hours": ([at + 36_000 * (i == 50) for i, at in enumerate(STEADY)], 0, []),
    "a gap": ([at + 6 * (i >= 50) for i, at in enumerate(STEADY)], 0, [(50, 6)]),
    "two gaps": (
        [at + 6 * (i >= 50) + (i >= 70) for i, at in enumerate(STEADY)],
        0,
        [(50, 6), (70, 1)],
    ),
    "late": ([at + 5 for at in STEADY], 5, []),
    "live": ([at + 36_000 for at in STEADY], 0, []),
    "twice": ([*STEADY[:50], *STEADY[:50]], 0, []),
    "overlapping": ([*STEADY[:50], *(at - 0.7 for at in STEADY[50:])], 0, []),
    "a gap, and again": (
        [at + 6 * (i >= 20) for i, at in enumerate(STEADY[:50])]
        + [at + 3 * (i >= 20) for i, at in enumerate(STEADY[:50])],
        0,
        [(20, 6), (70, 3)],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", STAMPS)
def test_a_gap_is_what_the_clock_never_makes_up_for(name: str) -> None:
    stamps, start, gaps = STAMPS[name]
    clock = _Clock()
    clock.zero = stamps[0]
    for index, at in enumerate(stamps):
        frame = av.AudioFrame("s16", "mono", 320)
        frame.rate, frame.time_base, frame.pts = SAMPLE_RATE, Fraction(1, 1000), round(at * 1000)
        if clock.jumps(frame):
            clock.note(index)
        clock.fed += 0.02
    assert clock.start(600) == pytest.approx(start, abs=0.01)
    found = [*clock.gaps()]
    assert [index for index, _ in found] == [index for index, _ in gaps]
    assert [seconds for _, seconds in found] == pytest.approx([s for _, s in gaps], abs=0.01)
