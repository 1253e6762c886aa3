"""Audio files as other programs write them: headers by hand, joined files, odd time stamps."""

from __future__ import annotations

import io
import struct
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import av
import numpy as np
from av.audio.stream import AudioStream
from av.video.stream import VideoStream

from tones import RATE, Samples, tone

GUID = bytes.fromhex("00001000800000aa00389b71")


def extensible(valid: int, tag: int = 1) -> bytes:
    """What follows a `fmt ` chunk's first 16 bytes in WAVE_FORMAT_EXTENSIBLE."""
    return struct.pack("<HHII", 22, valid, 4, tag) + GUID


def riff(
    audio: bytes,
    bits: int,
    *,
    tag: int = 1,
    channels: int = 1,
    block: int | None = None,
    more: bytes = b"",
    size: int | None = None,
    rate: int = RATE,
) -> bytes:
    """A WAV file.

    Args:
        block: bytes that the header says a sample of all channels takes.
        more: of the `fmt ` chunk.
        size: what the header says that the audio has.
    """
    block = channels * bits // 8 if block is None else block
    layout = struct.pack("<HHIIHH", tag, channels, rate, rate * block, block, bits) + more
    size = len(audio) if size is None else size
    body = b"WAVE" + chunk(b"fmt ", layout) + b"data" + struct.pack("<I", size) + audio
    return b"RIFF" + struct.pack("<I", min(len(body), 36 + size)) + body


def chunk(name: bytes, content: bytes, order: str = "<") -> bytes:
    return name + struct.pack(order + "I", len(content)) + content


def aiff(audio: bytes, bits: int, form: bytes | None = None, size: int | None = None) -> bytes:
    """An AIFF file at 16 kHz; with a form, AIFF-C."""
    layout = struct.pack(">HIH", 1, 8 * len(audio) // bits, bits)
    layout += struct.pack(">HQ", 16383 + 13, RATE << 50)
    body = b"AIFF"
    if form is not None:
        layout += form + b"\0\0"
        body = b"AIFC" + chunk(b"FVER", b"\xa2\x80\x51\x40", ">")
    size = 8 + len(audio) if size is None else size
    body += chunk(b"COMM", layout, ">") + b"SSND" + struct.pack(">III", size, 0, 0) + audio
    return b"FORM" + struct.pack(">I", len(body)) + body


def au(audio: bytes, encoding: int, size: int | None = None) -> bytes:
    size = len(audio) if size is None else size
    return b".snd" + struct.pack(">IIIII", 24, size, encoding, RATE, 1) + audio


def integers(valid: int, width: int, *, right: bool = False, hertz: float = 600) -> bytes:
    """A second of a tone, in little-endian samples of some valid bits in so many bytes."""
    values = np.round(tone(1.0, hertz).astype(np.float64) * (2 ** (valid - 1) - 1)).astype("<i8")
    if not right:
        values <<= 8 * width - valid
    return np.ascontiguousarray(values.view(np.uint8).reshape(-1, 8)[:, :width]).tobytes()


def swapped(audio: bytes, width: int) -> bytes:
    return np.frombuffer(audio, np.uint8).reshape(-1, width)[:, ::-1].tobytes()


def floats(samples: Samples, kind: str = "<f4", rate: int = RATE) -> bytes:
    return riff(samples.astype(kind).tobytes(), 8 * np.dtype(kind).itemsize, tag=3, rate=rate)


def chained(codec: str, rate: int, layout: str, hertz: float) -> bytes:
    """A link of an Ogg chain: a second of a tone."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="ogg") as output:
        stream = output.add_stream(codec, rate=rate, layout=layout)
        assert isinstance(stream, AudioStream)
        for packet in _packets(stream, tone(1.0, hertz, rate), rate, layout):
            output.mux(packet)
    return buffer.getvalue()


def stamped(
    container: str, codec: str, stretches: Sequence[tuple[float, float]], pictures: float = 0.0
) -> bytes:
    """A tone of 600 Hz in stretches, each with its begin on the file's clock and its seconds.

    Args:
        pictures: seconds of a video beside it, from the clock's beginning on.
    """
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container) as output:
        packets: list[av.Packet[Any]] = []
        if pictures:
            video: VideoStream = output.add_stream("mpeg4", rate=5)
            video.width, video.height, video.pix_fmt = 64, 64, "yuv420p"
        stream = output.add_stream(codec, rate=48_000, layout="mono")
        assert isinstance(stream, AudioStream)
        for index in range(int(pictures * 5)):
            picture = av.VideoFrame.from_ndarray(
                np.full((64, 64, 3), index, np.uint8), format="rgb24"
            )
            picture.pts, picture.time_base = index, Fraction(1, 5)
            packets += video.encode(picture)
        if pictures:
            packets += video.encode(None)
        samples = tone(sum(seconds for _, seconds in stretches), 600, 48_000)
        sound = _packets(stream, samples, 48_000, "mono")
        bounds = np.cumsum([0.0, *(seconds for _, seconds in stretches)])
        for packet in sound:
            assert packet.pts is not None
            at = float(packet.pts * packet.time_base)
            index = int(np.searchsorted(bounds[1:-1], at + 1e-6, side="right"))
            packet.pts += round((stretches[index][0] - bounds[index]) / packet.time_base)
            packet.dts = packet.pts
        for packet in sorted(packets + sound, key=lambda p: float((p.dts or 0) * p.time_base)):
            output.mux(packet)
    return buffer.getvalue()


def _packets(stream: AudioStream, samples: Samples, rate: int, layout: str) -> list[av.Packet[Any]]:
    channels = 1 if layout == "mono" else 2
    frame = av.AudioFrame.from_ndarray(np.stack([samples] * channels), "fltp", layout)
    frame.sample_rate, frame.time_base, frame.pts = rate, Fraction(1, rate), 0
    context = stream.codec_context
    resampler = av.AudioResampler(context.format or "s16", layout, rate, context.frame_size or 960)
    packets: list[av.Packet[Any]] = []
    for part in (*resampler.resample(frame), *resampler.resample(None)):
        packets += stream.encode(part)
    return [*packets, *stream.encode(None)]
