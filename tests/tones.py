"""Audio files made on the spot: tones in every container that the contract names."""

from __future__ import annotations

import io
import wave
from fractions import Fraction

import av
import numpy as np
import numpy.typing as npt
from av.audio.stream import AudioStream
from av.container import OutputContainer
from av.video.stream import VideoStream

Samples = npt.NDArray[np.float32]
RATE = 16_000

# name -> container, audio codec, sampling rate (which some codecs do not leave open)
CONTAINERS: dict[str, tuple[str, str, int]] = {
    "wav": ("wav", "pcm_s16le", 16_000),
    "wav-8k-mulaw": ("wav", "pcm_mulaw", 8_000),
    "wav-float": ("wav", "pcm_f32le", 48_000),
    "flac": ("flac", "flac", 44_100),
    "mp3": ("mp3", "libmp3lame", 44_100),
    "ogg-opus": ("ogg", "libopus", 48_000),
    "webm-opus": ("webm", "libopus", 48_000),
    "m4a-aac": ("ipod", "aac", 44_100),
    "mp4-aac": ("mp4", "aac", 48_000),
    "mov-pcm": ("mov", "pcm_s16le", 22_050),
    "aiff": ("aiff", "pcm_s16be", 22_050),
    "au": ("au", "pcm_s16be", 8_000),
    "g722": ("g722", "g722", 16_000),
}


def tone(
    seconds: float = 1.0, hertz: float = 440.0, rate: int = RATE, level: float = 0.5
) -> Samples:
    """A sine, shape (n,), float32."""
    time = np.arange(round(seconds * rate)) / rate
    return (level * np.sin(2 * np.pi * hertz * time)).astype(np.float32)


def silence(seconds: float = 1.0, rate: int = RATE) -> Samples:
    return np.zeros(round(seconds * rate), np.float32)


def voice(seconds: float = 1.0, rate: int = RATE) -> Samples:
    """What speech detection takes for somebody who speaks: vowels, with pauses between them."""
    time = np.arange(round(seconds * rate)) / rate
    pitch = 120 + 20 * np.sin(2 * np.pi * 0.7 * time)
    phase = 2 * np.pi * np.cumsum(pitch) / rate
    formants = (
        (500 + 250 * np.sin(2 * np.pi * 1.3 * time), 80, 1.0),
        (1500 + 500 * np.sin(2 * np.pi * 0.9 * time), 120, 0.5),
    )
    sound = np.zeros(len(time))
    for harmonic in range(1, 28):
        loud = sum(
            peak / (1 + ((harmonic * pitch - formant) / width) ** 2)
            for formant, width, peak in formants
        )
        sound += loud * np.sin(harmonic * phase)
    sound *= np.clip(np.sin(2 * np.pi * 2 * time), 0, 1)
    voiced: Samples = (0.5 * sound / np.abs(sound).max()).astype(np.float32)
    return voiced


def wav(samples: Samples | None = None, rate: int = RATE) -> bytes:
    """A 16-bit WAV file; samples of shape (n,) or (n, channels), by default a tone of 1 s."""
    samples = tone() if samples is None else samples
    channels = 1 if samples.ndim == 1 else samples.shape[1]
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes((samples * 32767).round().astype("<i2").tobytes())
    return buffer.getvalue()


def encoded(name: str, seconds: float = 1.0, hertz: float = 440.0) -> bytes:
    """A tone in an audio file of a kind in `CONTAINERS`."""
    container, codec, rate = CONTAINERS[name]
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container) as output:
        stream = output.add_stream(codec, rate=rate, layout="mono")
        assert isinstance(stream, AudioStream)
        _write_audio(output, stream, tone(seconds, hertz, rate), rate)
    return buffer.getvalue()


def video(first: Samples, second: Samples) -> bytes:
    """An MP4 video with two audio streams at 48 kHz after its pictures."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as output:
        pictures: VideoStream = output.add_stream("mpeg4", rate=5)
        pictures.width, pictures.height, pictures.pix_fmt = 64, 64, "yuv420p"
        sounds = [output.add_stream("aac", rate=48_000, layout="mono") for _ in range(2)]
        for index in range(5):
            picture = av.VideoFrame.from_ndarray(
                np.full((64, 64, 3), 40 * index, np.uint8), format="rgb24"
            )
            picture.pts, picture.time_base = index, Fraction(1, 5)
            output.mux(pictures.encode(picture))
        output.mux(pictures.encode(None))
        for stream, samples in zip(sounds, (first, second), strict=True):
            _write_audio(output, stream, samples, 48_000)
    return buffer.getvalue()


def _write_audio(output: OutputContainer, stream: AudioStream, samples: Samples, rate: int) -> None:
    frame = av.AudioFrame.from_ndarray(samples[np.newaxis], format="fltp", layout="mono")
    frame.sample_rate, frame.time_base, frame.pts = rate, Fraction(1, rate), 0
    resampler = av.AudioResampler(
        stream.codec_context.format or "s16", "mono", rate, stream.codec_context.frame_size or None
    )
    for part in (*resampler.resample(frame), *resampler.resample(None)):
        output.mux(stream.encode(part))
    output.mux(stream.encode(None))


def pitch(samples: Samples, rate: int = RATE) -> float:
    """The strongest frequency, Hz."""
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples))))
    return float(spectrum.argmax() * rate / len(samples))
