"""What a header says of samples and of their number, and what stands behind the first file."""

from __future__ import annotations

import random
import struct
from functools import cache

import numpy as np
import pytest

from recordings import aiff, au, chained, chunk, extensible, floats, integers, riff, swapped
from stt_cascade.audio.decode import MAX_SAMPLE, Decoded, read
from stt_cascade.engine.protocol import SAMPLE_RATE
from stt_cascade.errors import InvalidAudio
from tones import CONTAINERS, encoded, pitch, tone, wav


def heard(data: bytes, seconds: float = 1.0) -> Decoded:
    decoded = read(data, max_seconds=60)
    assert len(decoded.samples) / SAMPLE_RATE == pytest.approx(seconds, abs=0.1)
    return decoded


def check_tone(data: bytes) -> None:
    """That it is the tone of `integers`, at its length, pitch and level."""
    decoded = heard(data)
    assert len(decoded.samples) == pytest.approx(SAMPLE_RATE, abs=2)
    assert np.abs(decoded.samples[:15_000] - tone(1.0, 600)[:15_000]).max() < 0.01
    assert decoded.whole


@pytest.mark.parametrize("right", [False, True], ids=["left", "right"])
@pytest.mark.parametrize(("valid", "width"), [(24, 4), (20, 4), (16, 4), (12, 4), (20, 3), (12, 2)])
def test_a_sample_is_as_wide_as_its_container_and_fills_it_from_either_side(
    valid: int, width: int, right: bool
) -> None:
    audio = integers(valid, width, right=right)
    check_tone(riff(audio, 8 * width, tag=0xFFFE, more=extensible(valid)))
    check_tone(riff(audio, valid, tag=0xFFFE, block=width, more=extensible(valid)))
    check_tone(riff(audio, valid, block=width))
    if width == -(-valid // 8):
        check_tone(aiff(swapped(audio, width), valid))


def test_several_channels_share_a_block() -> None:
    both = np.frombuffer(integers(24, 4), "<i4").repeat(2).tobytes()
    check_tone(riff(both, 32, tag=0xFFFE, channels=2, more=extensible(24)))


@pytest.mark.parametrize(("channels", "block"), [(1, 4), (1, 3), (2, 2), (1, 0)])
def test_a_wrong_block_size_is_not_believed(channels: int, block: int) -> None:
    audio = np.frombuffer(integers(16, 2), "<i2").repeat(channels).tobytes()
    check_tone(riff(audio, 16, channels=channels, block=block))


@pytest.mark.parametrize(("bits", "power", "more"), [(24, 23, b""), (32, 15, b"\2\0\1\0")])
def test_cool_edits_floats_are_known_by_their_form(bits: int, power: int, more: bytes) -> None:
    scaled = (tone(1.0, 600) * 2.0**power).astype("<f4")
    check_tone(riff(scaled.tobytes(), bits, block=4, more=more))


BIG = {width: swapped(integers(8 * width, width), width) for width in (1, 2, 3, 4)}
FORMS = {
    "aiff 8": aiff(BIG[1], 8),
    "aiff 16": aiff(BIG[2], 16),
    "aiff 24": aiff(BIG[3], 24),
    "aiff 32": aiff(BIG[4], 32),
    "aifc sowt 16": aiff(integers(16, 2), 16, b"sowt"),
    "aifc sowt 24": aiff(integers(24, 3), 24, b"sowt"),
    "aifc in24": aiff(BIG[3], 24, b"in24"),
    "aifc fl32": aiff(tone(1.0, 600).astype(">f4").tobytes(), 32, b"fl32"),
    "aifc fl64": aiff(tone(1.0, 600).astype(">f8").tobytes(), 64, b"fl64"),
    "au 8": au(BIG[1], 2),
    "au 16": au(BIG[2], 3),
    "au 24": au(BIG[3], 4),
    "au 32": au(BIG[4], 5),
    "au float": au(tone(1.0, 600).astype(">f4").tobytes(), 6),
    "au double": au(tone(1.0, 600).astype(">f8").tobytes(), 7),
    "wav float": floats(tone(1.0, 600)),
    "wav double": floats(tone(1.0, 600), "<f8"),
    "wav 32": riff(integers(32, 4), 32),
}


@pytest.mark.parametrize("name", FORMS)
def test_each_form_of_pcm_is_read_at_its_level(name: str) -> None:
    decoded = heard(FORMS[name])
    assert np.abs(decoded.samples[:15_000] - tone(1.0, 600)[:15_000]).max() < 0.02


@pytest.mark.parametrize("peak", [1.5, 4.0, MAX_SAMPLE])
def test_floats_moderately_over_full_scale_are_left_as_they_are(peak: float) -> None:
    samples = tone(1.0, 600)
    decoded = heard(floats(samples * (peak / samples.max())))
    assert np.abs(decoded.samples).max() == pytest.approx(peak)


@pytest.mark.parametrize("rate", [16_000, 44_100])
@pytest.mark.parametrize(
    "value", [np.nan, np.inf, -np.inf, 1e20, -1e38, 32_767.0, 1.5 * MAX_SAMPLE]
)
@pytest.mark.parametrize("kind", ["<f4", "<f8"])
def test_a_float_that_is_no_sound_is_refused_with_what_is_allowed(
    kind: str, value: float, rate: int
) -> None:
    samples = tone(1.0, 600, rate)
    samples[5000:5003] = value
    with pytest.raises(InvalidAudio, match=r"between -1 and 1, and at most 16 is accepted"):
        read(floats(samples, kind, rate=rate), max_seconds=60)


def test_absurd_floats_of_aiff_and_au_are_refused_too() -> None:
    absurd = (tone(1.0) * 1e20).astype(">f4").tobytes()
    for file in (aiff(absurd, 32, b"fl32"), au(absurd, 6)):
        with pytest.raises(InvalidAudio, match="16-bit PCM"):
            read(file, max_seconds=60)


SHORT = [0, 2, 8000, 0xFFFFFFFF, 0x7FFFFFFF]


@pytest.mark.parametrize("size", SHORT)
def test_audio_behind_a_header_that_is_too_short_or_too_long_is_heard(size: int) -> None:
    check_tone(riff(integers(16, 2), 16, size=size))
    check_tone(aiff(BIG[2], 16, size=size))
    check_tone(au(BIG[2], 3, size))


def test_chunks_padding_and_tags_behind_the_audio_are_not_heard() -> None:
    file = riff(integers(16, 2), 16)
    for more in (
        chunk(b"LIST", b"INFOISFT\4\0\0\0abcd"),
        chunk(b"id3 ", b"ID3\3\0\0\0\0\0\5hello") + chunk(b"LIST", b"INFO"),
        bytes(10_000),
        b"TAG" + bytes(range(33, 126)) + bytes(32),
    ):
        decoded = read(file + more, max_seconds=60)
        assert (len(decoded.samples), decoded.whole) == (SAMPLE_RATE, True)


JOINABLE = ["wav", "flac", "mp3", "ogg-opus", "webm-opus", "mp4-aac", "aiff", "au"]
recording = cache(encoded)


@pytest.mark.parametrize("second", JOINABLE)
@pytest.mark.parametrize("first", JOINABLE)
def test_of_two_files_that_were_joined_both_are_heard(first: str, second: str) -> None:
    decoded = heard(recording(first, 1.0, 400) + recording(second, 1.0, 900), 2.0)
    assert pitch(decoded.samples[: SAMPLE_RATE // 2]) == pytest.approx(400, abs=4)
    assert pitch(decoded.samples[-SAMPLE_RATE // 2 :]) == pytest.approx(900, abs=4)
    assert decoded.whole


def test_a_chain_may_change_channels_rate_and_codec() -> None:
    """Of Ogg, as FFmpeg itself writes the links."""
    links = [chained("libopus", 48_000, "mono", 400), chained("flac", 16_000, "stereo", 600)]
    decoded = heard(b"".join([*links, chained("libopus", 48_000, "stereo", 900)]), 3.0)
    found = [pitch(decoded.samples[at : at + 8000]) for at in (4000, 20_000, 36_000)]
    assert found == pytest.approx([400, 600, 900], abs=4)
    assert decoded.whole


def test_a_streamed_wav_ends_where_the_next_file_begins() -> None:
    streamed = riff(integers(16, 2, hertz=400), 16, size=0xFFFFFFFF)
    decoded = heard(streamed + wav(np.stack([tone(1.0, 900, 8000)] * 2, axis=1), 8000), 2.0)
    assert pitch(decoded.samples[SAMPLE_RATE:]) == pytest.approx(900, abs=4)


@pytest.mark.parametrize("name", ["flac", "mp3", "ogg-opus", "webm-opus", "mp4-aac"])
def test_what_stands_behind_the_audio_and_is_no_file_is_named(name: str) -> None:
    decoded = heard(encoded(name, 1.0) + random.Random(1).randbytes(50_000))
    assert not decoded.whole


@pytest.mark.parametrize("name", CONTAINERS)
def test_a_sound_file_is_whole(name: str) -> None:
    assert read(encoded(name, 1.0), raw_g722=name == "g722", max_seconds=60).whole


@pytest.mark.parametrize("name", ["mp3", "m4a-aac"])
def test_a_damaged_place_is_named(name: str) -> None:
    file = bytearray(encoded(name, 4.0))
    third = len(file) // 3
    file[third : third + 400] = b"\xff" * 400
    assert not read(bytes(file), max_seconds=60).whole


def test_clusters_behind_the_end_that_a_matroska_file_tells_are_heard() -> None:
    file = bytearray(encoded("webm-opus", 12.0, 600))
    segment = file.index(b"\x18S\x80g") + 4
    second = file.index(b"\x1fC\xb6u", file.index(b"\x1fC\xb6u") + 4)
    struct.pack_into(">Q", file, segment, (1 << 56) | (second - segment - 8))
    assert heard(bytes(file), 12.0).whole
