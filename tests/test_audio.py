"""Decoding: every container that the contract names, odd files, and what is no audio."""

from __future__ import annotations

import io
import random
import struct
import wave

import av
import numpy as np
import pytest
from av.audio.stream import AudioStream

from faults.files import tiny_frames
from stt_cascade.audio.decode import decode, read
from stt_cascade.engine.protocol import SAMPLE_RATE, Samples
from stt_cascade.errors import AudioTooLong, InvalidAudio, Refusal
from tones import CONTAINERS, encoded, pitch, silence, tone, video, wav


def decoded(data: bytes, *, raw_g722: bool = False, max_seconds: float = 600) -> Samples:
    samples = decode(data, raw_g722=raw_g722, max_seconds=max_seconds)
    assert samples.dtype == np.float32
    assert samples.ndim == 1
    assert np.isfinite(samples).all()
    return samples


def seconds(samples: Samples) -> float:
    return len(samples) / SAMPLE_RATE


def level(samples: Samples) -> float:
    """Amplitude of a sine, its ends left out."""
    middle = samples[len(samples) // 4 : -len(samples) // 4]
    return float(np.sqrt(2 * np.mean(middle.astype(np.float64) ** 2)))


def reason(data: bytes, *, raw_g722: bool = False) -> str:
    with pytest.raises(InvalidAudio) as refused:
        decode(data, raw_g722=raw_g722, max_seconds=600)
    return refused.value.message


@pytest.mark.parametrize("name", CONTAINERS)
def test_each_container_is_heard_in_full_and_at_its_pitch(name: str) -> None:
    samples = decoded(encoded(name, 1.7, 600), raw_g722=name == "g722")
    assert seconds(samples) == pytest.approx(1.7, abs=0.1)
    assert pitch(samples) == pytest.approx(600, abs=3)
    assert level(samples) == pytest.approx(0.5, rel=0.15)


@pytest.mark.parametrize("rate", [8_000, 11_025, 16_000, 44_100, 96_000, 192_000])
def test_each_sampling_rate_becomes_16_khz(rate: int) -> None:
    samples = decoded(wav(tone(1.0, 440, rate), rate))
    assert seconds(samples) == pytest.approx(1.0, abs=0.001)
    assert pitch(samples) == pytest.approx(440, abs=1)


def test_16_khz_mono_samples_are_left_as_they_are() -> None:
    original = tone(1.0)
    assert np.abs(decoded(wav(original)) - original).max() < 1 / 32767


def test_stereo_becomes_the_mean() -> None:
    left, right = tone(1.0, 440), tone(1.0, 900)
    heard = decoded(wav(np.stack([left, right], axis=1)))
    assert np.abs(heard - (left + right) / 2).max() < 1e-4


@pytest.mark.parametrize("side", [0, 1])
def test_a_voice_on_one_side_is_kept_at_half_level(side: int) -> None:
    both = np.zeros((SAMPLE_RATE, 2), np.float32)
    both[:, side] = tone(1.0)
    heard = decoded(wav(both))
    assert level(heard) == pytest.approx(0.25, rel=0.01)
    assert pitch(heard) == pytest.approx(440, abs=1)


@pytest.mark.parametrize("channels", [3, 6, 8])
def test_each_of_several_channels_weighs_the_same(channels: int) -> None:
    for channel in range(channels):
        samples = np.zeros((SAMPLE_RATE, channels), np.float32)
        samples[:, channel] = tone(1.0)
        assert level(decoded(wav(samples))) == pytest.approx(0.5 / channels, rel=0.02)


def test_of_a_video_the_first_audio_stream_is_heard() -> None:
    clip = video(tone(1.0, 500, 48_000), tone(1.0, 1500, 48_000))
    heard = decoded(clip)
    assert seconds(heard) == pytest.approx(1.0, abs=0.1)
    assert pitch(heard) == pytest.approx(500, abs=3)


# What is left of a file whose first half came: an MP4's index may stand at its end.
CUTTABLE = sorted(set(CONTAINERS) - {"m4a-aac", "mp4-aac", "mov-pcm"})


@pytest.mark.parametrize("name", CUTTABLE)
def test_a_cut_file_is_heard_as_far_as_it_goes(name: str) -> None:
    whole = encoded(name, 4, 600)
    heard = decoded(whole[: len(whole) // 2], raw_g722=name == "g722")
    assert 1.5 < seconds(heard) < 2.5
    assert pitch(heard) == pytest.approx(600, abs=3)


@pytest.mark.parametrize("name", ["mp3", "m4a-aac", "ogg-opus", "webm-opus", "flac"])
def test_a_damaged_place_costs_what_lies_there_and_nothing_after_it(name: str) -> None:
    file = bytearray(encoded(name, 12.0, 600))
    quarter = len(file) // 4
    file[quarter : quarter + 200] = bytes(200)
    heard = decoded(bytes(file))
    # Ogg loses a page, of up to a second, and Matroska a cluster, of up to five.
    assert (6.5 if name == "webm-opus" else 10.5) < seconds(heard) < 12.2
    assert pitch(heard[-SAMPLE_RATE:]) == pytest.approx(600, abs=3)


def test_recordings_that_were_joined_are_heard_one_after_the_other() -> None:
    heard = decoded(b"".join(encoded("mp3", 2.0, hertz) for hertz in (300, 500, 700)))
    assert seconds(heard) == pytest.approx(6.0, abs=0.3)
    assert pitch(heard[-SAMPLE_RATE:]) == pytest.approx(700, abs=3)


@pytest.mark.parametrize("name", ["m4a-aac", "mp4-aac", "mov-pcm"])
def test_an_mp4_without_its_index_says_that_it_cannot_be_decoded(name: str) -> None:
    whole = encoded(name, 4)
    assert "cannot be decoded" in reason(whole[: len(whole) // 2])


@pytest.mark.parametrize("size", [0, 0xFFFFFFFF, 0x7FFFFFFF, 36])
def test_a_streamed_wav_does_not_know_its_size(size: int) -> None:
    file = bytearray(wav(tone(2.0)))
    struct.pack_into("<I", file, 4, size)
    struct.pack_into("<I", file, 40, min(size, 0xFFFFFFFF) if size != 36 else 0)
    assert seconds(decoded(bytes(file))) == pytest.approx(2.0, abs=0.01)


def test_tags_in_any_encoding_do_not_matter() -> None:
    artist = "Müller".encode("latin-1")
    tags = b"INFOIART" + struct.pack("<I", len(artist)) + artist
    file = wav(tone(1.0))
    file = file[:36] + b"LIST" + struct.pack("<I", len(tags)) + tags + file[36:]
    assert seconds(decoded(file)) == 1.0


@pytest.mark.parametrize("length", [0, 1, 100, 1599])
def test_less_than_a_tenth_of_a_second_is_too_short(length: int) -> None:
    assert "at least 0.1 s" in reason(wav(silence(length / SAMPLE_RATE)))


def test_a_tenth_of_a_second_is_long_enough() -> None:
    assert seconds(decoded(wav(silence(0.1)))) == 0.1


@pytest.mark.parametrize("part", [0, 3, 11, 12, 43, 44])
def test_a_wav_cut_in_its_header_has_nothing_to_hear(part: int) -> None:
    assert reason(wav()[:part])


def test_an_empty_file_is_called_empty() -> None:
    assert "empty" in reason(b"")


NO_AUDIO = {
    "text": b"Dear Sir or Madam, this is a letter and no sound at all.\n" * 50,
    "zeros": bytes(10_000),
    "noise": random.Random(3).randbytes(10_000),
    "png": b"\x89PNG\r\n\x1a\n" + bytes(1000),
    "jpeg": b"\xff\xd8\xff\xe0\x00\x10JFIF" + bytes(1000),
    "gif": b"GIF89a" + bytes(1000),
    "pdf": b"%PDF-1.7\n" + bytes(1000),
    "zip": b"PK\x03\x04" + bytes(1000),
    "elf": b"\x7fELF" + bytes(1000),
    "ffconcat": b"ffconcat version 1.0\nfile '/etc/passwd'\n",
    "concat": b"file '/etc/passwd'\n",
    "m3u8": b"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n",
    "sdp": b"v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\nc=IN IP4 127.0.0.1\r\nm=audio 9 RTP/AVP 0\r\n",
    "dash": b'<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011"></MPD>',
    "srt": b"1\n00:00:00,000 --> 00:00:01,000\nhello\n",
    "avi": b"RIFF\x24\x00\x00\x00AVI LIST" + bytes(1000),
}


@pytest.mark.parametrize("name", NO_AUDIO)
def test_what_is_no_audio_is_refused_with_what_is_allowed(name: str) -> None:
    message = reason(NO_AUDIO[name])
    assert "wav, flac, mp3" in message


@pytest.mark.parametrize("name", ["ffconcat", "m3u8", "sdp", "png"])
@pytest.mark.parametrize(
    "magic",
    [b"RIFF\xff\xff\xff\xffWAVE", b"OggS", b"ID3", b"\x1aE\xdf\xa3", b"\x00\x00\x00\x20ftyp"],
)
def test_a_disguise_does_not_help(name: str, magic: bytes) -> None:
    assert reason(magic + NO_AUDIO[name])


def test_a_video_without_sound_says_so() -> None:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as output:
        stream = output.add_stream("mpeg4", rate=5)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        picture = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")
        output.mux(stream.encode(picture))
        output.mux(stream.encode(None))
    assert "no audio stream" in reason(buffer.getvalue())


@pytest.mark.parametrize("rate", [1, 4_000, 7_999, 192_001, 2_000_000_000])
def test_an_absurd_sampling_rate_is_named(rate: int) -> None:
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(bytes(64_000))
    assert f"{rate} Hz" in reason(buffer.getvalue())


def test_too_many_channels_are_counted() -> None:
    assert "9 channels" in reason(wav(np.zeros((SAMPLE_RATE, 9), np.float32)))


def several(codec: str, streams: int = 1) -> bytes:
    """A Matroska file with so many streams of 0.5 s."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="matroska") as output:
        made = [output.add_stream(codec, rate=SAMPLE_RATE, layout="mono") for _ in range(streams)]
        for stream in made:
            assert isinstance(stream, AudioStream)
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.int16), "s16", "mono")
            frame.rate = SAMPLE_RATE
            resampler = av.AudioResampler(stream.format, "mono", SAMPLE_RATE, stream.frame_size)
            for packed in [*resampler.resample(frame), *resampler.resample(None)]:
                output.mux(stream.encode(packed))
            output.mux(stream.encode(None))
    return buffer.getvalue()


def test_silence_of_many_channels_at_a_high_rate_cannot_be_packed_small() -> None:
    shape = (int(0.9 * 192_000), 8)
    loud = wav(np.random.default_rng(1).uniform(-0.5, 0.5, shape).astype(np.float32), 192_000)
    assert seconds(decoded(loud, max_seconds=1)) == pytest.approx(0.9, abs=0.001)
    packed = io.BytesIO()
    with av.open(packed, "w", format="flac") as output:
        stream = output.add_stream("flac", rate=192_000, layout="7.1", format="s16")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, shape[0] * 8), np.int16), "s16", "7.1")
        frame.rate = 192_000
        assert isinstance(stream, AudioStream)
        resampler = av.AudioResampler("s16", "7.1", 192_000, 4608)
        for block in [*resampler.resample(frame), *resampler.resample(None)]:
            output.mux(stream.encode(block))
        output.mux(stream.encode(None))
    with pytest.raises(InvalidAudio, match="too many for its size"):
        decode(packed.getvalue(), max_seconds=1)


@pytest.mark.parametrize("codec", ["tta", "wavpack"])
def test_a_codec_that_nobody_speaks_in_is_refused(codec: str) -> None:
    """FFmpeg has its decoder, as it has those of games."""
    assert "codec that is not supported" in reason(several(codec))


def test_too_many_streams_are_counted() -> None:
    assert seconds(decoded(several("pcm_s16le", 32))) == 0.5
    assert "33 streams" in reason(several("pcm_s16le", 33))


def test_too_long_is_another_refusal_and_ends_the_decoding() -> None:
    clip = encoded("flac", 60)
    with pytest.raises(AudioTooLong, match=r"1\.5 s"):
        decode(clip, raw_g722=False, max_seconds=1.5)
    assert seconds(decoded(clip, max_seconds=60)) == 60


@pytest.mark.parametrize("name", CONTAINERS)
def test_a_mutilated_file_is_heard_or_refused_and_nothing_else(name: str) -> None:
    chance = random.Random(name)
    whole = encoded(name, 0.5)
    for _ in range(60):
        spoilt = bytearray(whole)
        for _ in range(chance.choice((1, 3, 30))):
            spoilt[chance.randrange(len(spoilt))] = chance.randrange(256)
        del spoilt[chance.randrange(len(spoilt) // 2, len(spoilt)) :]
        try:
            decoded(bytes(spoilt), raw_g722=name == "g722", max_seconds=30)
        except Refusal as refused:
            assert refused.message


def test_a_file_in_frames_of_one_sample_is_refused_soon() -> None:
    with pytest.raises(InvalidAudio, match="more than 1000 frames a second"):
        decode(tiny_frames(1.0), max_seconds=10)


def test_what_is_called_between_packets_can_end_the_decoding() -> None:
    calls: list[None] = []

    def third() -> None:
        calls.append(None)
        if len(calls) == 3:
            raise KeyError

    with pytest.raises(KeyError):
        read(encoded("ogg-opus", 10.0), max_seconds=20, between=third)
    assert len(calls) == 3
