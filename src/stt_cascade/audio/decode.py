"""Bytes of an audio file in, 16 kHz mono float32 out.

The demuxer is chosen here, from the first bytes: FFmpeg's own probing would also accept playlists
and session descriptions, which name further files and addresses.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator

import av
import numpy as np
from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream
from av.container import InputContainer

from stt_cascade.engine.protocol import SAMPLE_RATE, Samples
from stt_cascade.errors import AudioTooLong, InvalidAudio

FORMATS = "wav, flac, mp3, ogg, opus, webm, m4a, mp4, aiff, au, g722"
MIN_SECONDS = 0.1
MIN_RATE, MAX_RATE = 8_000, 192_000  # Hz
MAX_CHANNELS = 8
# A film has a few of each kind; a file may claim a thousand.
MAX_STREAMS = 32
# Samples of all channels that a file may hold: those of stereo at 48 kHz for the longest time that
# is allowed, and some for each of its bytes, more than anything recorded has. Else silence at
# 192 kHz in 8 channels, packed into a small file, would take a decoder for seconds.
SAMPLES_PER_SECOND = 2 * 48_000
SAMPLES_PER_BYTE = 8
# Twice what codecs have whose frames are shortest (Opus: 400). A frame costs as much as thousands
# of samples, so a few kilobytes in frames of one sample would take a decoder for seconds.
MAX_FRAMES_PER_SECOND = 1000
# FFmpeg's decoders of what speech comes in. It has two hundred more, for games and old films, and
# would open whichever a file asks for, that of a picture too.
DECODERS = frozenset(name for name in av.codecs_available if name.startswith("pcm_")) | {
    *("flac", "alac", "aac", "mp1", "mp1float", "mp2", "mp2float", "mp3", "mp3float"),
    *("opus", "libopus", "vorbis", "libvorbis", "speex", "libspeex", "gsm", "gsm_ms"),
    *("g722", "g726", "g726le", "adpcm_ms", "adpcm_ima_wav", "adpcm_ima_qt"),
    *("amrnb", "libopencore_amrnb", "amrwb", "libopencore_amrwb"),
}

# First atoms of an MP4 file: `ftyp` as it should be, the others as writers have it too.
_MP4_ATOMS = (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide")


def decode(
    data: bytes,
    *,
    raw_g722: bool = False,
    max_seconds: float,
    between: Callable[[], None] = lambda: None,
) -> Samples:
    """Decode an audio file; several channels become their mean.

    A file that breaks off is decoded as far as it goes; of one that is damaged, all but that.

    Args:
        raw_g722: the caller said that these are raw G.722 bytes, which nothing in them shows.
        max_seconds: longest allowed result.
        between: called before each packet; what it raises ends the decoding.

    Returns:
        shape (n,), float32 in about [-1, 1], mono, 16 kHz.

    Raises:
        InvalidAudio: not audio, not supported, or shorter than 0.1 s.
        AudioTooLong: more than `max_seconds`; decoding stopped there.
    """
    if not data:
        raise InvalidAudio("the audio file is empty")
    demuxer = "g722" if raw_g722 else sniff(data)
    if demuxer is None:
        raise InvalidAudio(f"not an audio file of a supported format; allowed are: {FORMATS}")
    limit = int(max_seconds * SAMPLE_RATE)
    blocks: list[Samples] = []
    count = 0
    broken: av.FFmpegError | None = None
    try:
        most = int(max_seconds * SAMPLES_PER_SECOND) + SAMPLES_PER_BYTE * len(data)
        for block in _blocks(data, demuxer, most, between):
            count += len(block)
            if count > limit:
                raise AudioTooLong(f"the audio is longer than the allowed {max_seconds:g} s")
            blocks.append(block)
    except av.FFmpegError as error:
        broken = error
    if broken is not None and not count:
        raise InvalidAudio(f"the {demuxer} data cannot be decoded: {broken.strerror}")
    if count < MIN_SECONDS * SAMPLE_RATE:
        raise InvalidAudio(
            f"the audio is {count / SAMPLE_RATE:.4f} s long; at least {MIN_SECONDS} s are needed"
        )
    return np.concatenate(blocks)


def sniff(data: bytes) -> str | None:
    """FFmpeg's name of the demuxer that the first bytes ask for; None: no supported format."""
    head = data[:12]
    if head[:4] in (b"RIFF", b"RF64") and head[8:12] == b"WAVE":
        return "wav"
    if head[:4] == b"FORM" and head[8:12] in (b"AIFF", b"AIFC"):
        return "aiff"
    for magic, demuxer in (
        (b"fLaC", "flac"),
        (b"OggS", "ogg"),
        (b"\x1aE\xdf\xa3", "matroska"),
        (b".snd", "au"),
    ):
        if head.startswith(magic):
            return demuxer
    if head[4:8] in _MP4_ATOMS:
        return "mov"
    if head[:3] == b"ID3":
        # An ID3 tag may stand before FLAC too: its size is in four 7-bit bytes.
        size = sum(byte << shift for byte, shift in zip(data[6:10], (21, 14, 7, 0), strict=False))
        return "flac" if data[10 + size : 14 + size] == b"fLaC" else "mp3"
    # MPEG frame sync, of a valid version and layer, bit rate and sampling rate.
    if (
        len(head) >= 4
        and head[0] == 0xFF
        and head[1] & 0xE0 == 0xE0
        and head[1] & 0x18 != 0x08
        and head[1] & 0x06 != 0
        and head[2] & 0xF0 not in (0x00, 0xF0)
        and head[2] & 0x0C != 0x0C
    ):
        return "mp3"
    return None


def _blocks(data: bytes, demuxer: str, most: int, between: Callable[[], None]) -> Iterator[Samples]:
    """The first audio stream as mono blocks at 16 kHz, of at most so many samples of the file."""
    # Tags are in any encoding, and none is looked at.
    source = io.BytesIO(data)
    with av.open(
        source,
        mode="r",
        format=demuxer,
        options={"codec_whitelist": ",".join(DECODERS)},  # for the look that FFmpeg itself takes
        metadata_errors="replace",
    ) as container:
        if len(container.streams) > MAX_STREAMS:
            raise InvalidAudio(
                f"{len(container.streams)} streams are not supported; at most {MAX_STREAMS} are"
            )
        if not container.streams.audio:
            raise InvalidAudio("the file has no audio stream")
        stream = container.streams.audio[0]
        # PyAV 17 crashes where FFmpeg has no decoder, instead of saying so.
        if stream.codec_context is None or stream.codec_context.name not in DECODERS:
            raise InvalidAudio(f"the {demuxer} data is in a codec that is not supported")
        resampler: av.AudioResampler | None = None
        shape: tuple[int, str, str] | None = None
        taken = 0
        frames, seconds = 0, 0.0
        for frame in _frames(container, stream, between):
            _check(frame)
            frames, seconds = frames + 1, seconds + frame.samples / frame.rate
            if frames > MAX_FRAMES_PER_SECOND * (1 + seconds):
                raise InvalidAudio(
                    f"the audio comes in more than {MAX_FRAMES_PER_SECOND} frames a second"
                )
            taken += frame.samples * frame.layout.nb_channels
            if taken > most:
                raise InvalidAudio(f"the audio has more than {most} samples, too many for its size")
            if shape != (now := (frame.rate, frame.layout.name, frame.format.name)):
                # A chained stream may change its shape on the way.
                yield from _flush(resampler)
                # Packed, because PyAV 18 counts 9 planes in a planar frame of 8 channels, and
                # reads past the frame.
                resampler = av.AudioResampler("flt", frame.layout, SAMPLE_RATE)
                shape = now
            # Gaps between time stamps are not filled: the samples are what is said.
            frame.pts = None
            if resampler is not None:
                for out in resampler.resample(frame):
                    yield _mono(out)
        yield from _flush(resampler)


def _frames(
    container: InputContainer, stream: AudioStream, between: Callable[[], None]
) -> Iterator[AudioFrame]:
    """What can be decoded of a stream.

    A packet that cannot, as one is where the network lost a piece or two recordings were joined,
    costs its own few milliseconds, not all that comes after it.
    """
    broken: av.FFmpegError | None = None
    heard = False
    for packet in container.demux(stream):
        between()
        try:
            for frame in packet.decode():
                heard = True
                yield frame
        except av.FFmpegError as error:
            broken = error
    if broken is not None and not heard:
        raise broken


def _check(frame: AudioFrame) -> None:
    if not MIN_RATE <= frame.rate <= MAX_RATE:
        raise InvalidAudio(
            f"a sampling rate of {frame.rate} Hz is not supported; "
            f"allowed are {MIN_RATE} to {MAX_RATE} Hz"
        )
    if frame.layout.nb_channels > MAX_CHANNELS:
        raise InvalidAudio(
            f"{frame.layout.nb_channels} channels are not supported; at most {MAX_CHANNELS} are"
        )


def _flush(resampler: av.AudioResampler | None) -> Iterator[Samples]:
    if resampler is not None:
        for out in resampler.resample(None):
            yield _mono(out)


def _mono(frame: AudioFrame) -> Samples:
    channels = frame.to_ndarray().reshape(-1, frame.layout.nb_channels)
    # FFmpeg's own down-mix weighs channels by their place; a phone line on one side would get lost.
    mono: Samples = channels.mean(axis=1, dtype=np.float32)
    # A float file may hold anything, and one NaN would make the whole spectrum NaN.
    return np.nan_to_num(mono, copy=False, nan=0.0, posinf=1.0, neginf=-1.0)
