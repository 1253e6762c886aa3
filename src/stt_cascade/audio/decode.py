"""Bytes of an audio file in, 16 kHz mono float32 out.

The demuxer is chosen here, from the first bytes: FFmpeg's own probing would also accept playlists
and session descriptions, which name further files and addresses.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import accumulate

import av
import numpy as np
from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream
from av.container import InputContainer

from stt_cascade.audio.channels import Mixer
from stt_cascade.audio.parts import Part, parts, skip_tags, sniff
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
# Files joined into one upload: each costs a demuxer.
MAX_PARTS = 256
# Twice what codecs have whose frames are shortest (Opus: 400). A frame costs as much as thousands
# of samples, so a few kilobytes in frames of one sample would take a decoder for seconds.
MAX_FRAMES_PER_SECOND = 1000
# The largest float sample: 24 dB over full scale, more than any mixer's headroom. Larger numbers
# are integers stored as floats, or not sound at all, and speech detection loses words among them.
MAX_SAMPLE = 16.0
# FFmpeg's decoders of what speech comes in. It has two hundred more, for games and old films, and
# would open whichever a file asks for, that of a picture too.
DECODERS = frozenset(name for name in av.codecs_available if name.startswith("pcm_")) | {
    *("flac", "alac", "aac", "mp1", "mp1float", "mp2", "mp2float", "mp3", "mp3float"),
    *("opus", "libopus", "vorbis", "libvorbis", "speex", "libspeex", "gsm", "gsm_ms"),
    *("g722", "g726", "g726le", "adpcm_ms", "adpcm_ima_wav", "adpcm_ima_qt"),
    *("amrnb", "libopencore_amrnb", "amrwb", "libopencore_amrwb"),
}
# Containers whose time stamps are more than a count of samples.
CLOCKED = frozenset({"ogg", "matroska", "mov"})
# Time stamps that are off by less are left alone, in seconds: recorders round and stutter.
JITTER = 0.1
# A clock that goes back by more than this has been started again.
RESTART = 0.5
# Streams that are searched for frames, so that nothing says where they end. Of bytes behind the
# last frame, fewer than this are one that broke off.
INDEXLESS = frozenset({"mp3", "flac"})
UNREAD_BYTES = 4096
SAMPLE_BYTES = 4  # at most, of FLAC, which never takes more than PCM


@dataclass(frozen=True, slots=True)
class Decoded:
    """What a file holds.

    Attributes:
        samples: shape (n,), float32 in about [-1, 1], mono, 16 kHz.
        start: seconds on the file's own clock at which they begin.
        whole: whether all of the file's audio is in them.
    """

    samples: Samples
    start: float = 0.0
    whole: bool = True


def _go_on() -> None:
    pass


def decode(data: bytes, *, raw_g722: bool = False, max_seconds: float) -> Samples:
    """The samples of `read`."""
    return read(data, raw_g722=raw_g722, max_seconds=max_seconds).samples


def read(
    data: bytes,
    *,
    raw_g722: bool = False,
    max_seconds: float,
    between: Callable[[], None] = _go_on,
) -> Decoded:
    """Decode an audio file; several channels become one, several files one after the other.

    A file that breaks off is decoded as far as it goes, and a damaged one except for its damaged
    places. Gaps in the time stamps become silence.

    Args:
        raw_g722: the caller said that these are raw G.722 bytes, which nothing in them shows.
        max_seconds: longest allowed result.
        between: called before each file in it and each packet; what it raises ends the decoding.

    Raises:
        InvalidAudio: not audio, not supported, not sound, or shorter than 0.1 s.
        AudioTooLong: more than `max_seconds`; decoding stopped there.
    """
    if not data:
        raise InvalidAudio("the audio file is empty")
    if not raw_g722 and sniff(data) is None:
        raise InvalidAudio(f"not an audio file of a supported format; allowed are: {FORMATS}")
    most = int(max_seconds * SAMPLES_PER_SECOND) + SAMPLES_PER_BYTE * len(data)
    tape = _Tape(max_seconds, most, between)
    broken: str | None = None
    for number, part in enumerate((Part("g722", data),) if raw_g722 else parts(data)):
        between()
        if number >= MAX_PARTS:
            raise InvalidAudio(f"the upload joins more than {MAX_PARTS} files")
        if part is None:
            tape.whole = False
            continue
        try:
            tape.record(part)
        except MemoryError:  # FFmpeg's is both
            raise
        except av.FFmpegError as error:
            tape.whole = False
            broken = broken or f"the {part.demuxer} data cannot be decoded: {error.strerror}"
    if broken is not None and not tape.count:
        raise InvalidAudio(broken)
    seconds = tape.count / SAMPLE_RATE
    if seconds < MIN_SECONDS:
        raise InvalidAudio(
            f"the audio is {seconds:.4f} s long; at least {MIN_SECONDS} s are needed"
        )
    return tape.wound()


class _Tape:
    """What has been heard of an upload.

    Args:
        max_seconds: as `read`.
        most: samples that it may have in all, at their own rate, of all channels.
        between: as `read`.

    Attributes:
        count: samples heard.
        whole: as `Decoded`.
    """

    def __init__(self, max_seconds: float, most: int, between: Callable[[], None]) -> None:
        self.count = 0
        self.whole = True
        self._max_seconds = max_seconds
        self._most = most
        self._between = between
        self._taken = 0
        self._frames, self._seconds = 0, 0.0
        self._blocks: list[Samples] = []
        self._start = 0.0
        # Samples before it, and its length in seconds.
        self._gaps: list[tuple[int, float]] = []

    def record(self, part: Part) -> None:
        """Add a part's audio.

        Raises:
            FFmpegError: it breaks off; what came before that has been added.
            InvalidAudio, AudioTooLong: as `read`.
        """
        before = self.count
        clock = _Clock()
        try:
            for block in self._blocks_of(part, clock):
                self.count += len(block)
                if self.count > self._max_seconds * SAMPLE_RATE:
                    raise self._too_long("")
                self._blocks.append(block)
        finally:
            if not before:
                self._start = clock.start(self._max_seconds)
            self._gaps.extend(clock.gaps())
        if self.count == before and part.data:
            self.whole = False

    def wound(self) -> Decoded:
        """All of it, with silence in the gaps.

        Raises:
            AudioTooLong: as `read`.
        """
        samples = np.concatenate(self._blocks)
        if self._gaps:
            silent = sum(seconds for _, seconds in self._gaps)
            if self.count / SAMPLE_RATE + silent > self._max_seconds:
                raise self._too_long(f", with gaps of {silent:.1f} s in its time stamps")
            pieces = np.split(samples, [at for at, _ in self._gaps])
            for index, (_, seconds) in enumerate(self._gaps):
                silence = np.zeros(round(seconds * SAMPLE_RATE), np.float32)
                pieces[index] = np.concatenate([pieces[index], silence])
            samples = np.concatenate(pieces)
        return Decoded(samples, self._start, self.whole)

    def _too_long(self, why: str) -> AudioTooLong:
        return AudioTooLong(f"the audio is longer than the allowed {self._max_seconds:g} s{why}")

    def _blocks_of(self, part: Part, clock: _Clock) -> Iterator[Samples]:
        """The first audio stream as mono blocks at 16 kHz."""
        # Tags are in any encoding, and none is looked at.
        with av.open(
            io.BytesIO(part.data),
            mode="r",
            format=part.demuxer,
            # The list is for the look that FFmpeg itself takes.
            options={"codec_whitelist": ",".join(DECODERS), **part.options},
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
                raise InvalidAudio(f"the {part.demuxer} data is in a codec that is not supported")
            clock.zero = (container.start_time or 0) / av.time_base
            ears = _Ears(part.scale, floats=stream.codec_context.name.startswith("pcm_f"))
            for frame in self._frames_of(part, container, stream):
                _check(frame)
                self._frames += 1
                self._seconds += frame.samples / frame.rate
                if self._frames > MAX_FRAMES_PER_SECOND * (1 + self._seconds):
                    raise InvalidAudio(
                        f"the audio comes in more than {MAX_FRAMES_PER_SECOND} frames a second"
                    )
                self._taken += frame.samples * frame.layout.nb_channels
                if self._taken > self._most:
                    raise InvalidAudio(
                        f"the audio has more than {self._most} samples, too many for its size"
                    )
                if part.demuxer in CLOCKED and clock.jumps(frame):
                    yield from ears.flush()
                    clock.note(self.count)
                clock.fed += frame.samples / frame.rate
                yield from ears.hear(frame)
            yield from ears.flush()

    def _frames_of(
        self, part: Part, container: InputContainer, stream: AudioStream
    ) -> Iterator[AudioFrame]:
        """What can be decoded of a stream.

        A packet that cannot be decoded, for example where the network lost a piece or two
        recordings were joined, costs its own few milliseconds, not everything after it.
        """
        broken: av.FFmpegError | None = None
        heard, failed, end = False, 0, 0
        for packet in container.demux(stream):
            self._between()
            end = max(end, (packet.pos or 0) + packet.size)
            room = UNREAD_BYTES
            try:
                for frame in packet.decode():
                    if failed:
                        self.whole = False
                    heard, failed = True, 0
                    room += frame.samples * frame.layout.nb_channels * SAMPLE_BYTES
                    yield frame
            except MemoryError:
                raise
            except av.FFmpegError as error:
                broken = error
                failed += 1
            if part.demuxer == "flac" and packet.size > room:
                self.whole = False  # what follows the last frame came as a part of it
        if broken is not None and not heard:
            raise broken
        # A single one at the end is where a file breaks off.
        unread = len(part.data) - skip_tags(part.data, end) if part.demuxer in INDEXLESS else 0
        if failed > 1 or unread > UNREAD_BYTES:
            self.whole = False


class _Ears:
    """Frames of any shape become mono blocks at 16 kHz.

    Args:
        scale: what samples are multiplied by.
        floats: they come as the file has them, which may be anything.
    """

    def __init__(self, scale: float, *, floats: bool) -> None:
        self._scale = scale
        self._floats = floats
        self._resampler: av.AudioResampler | None = None
        self._shape: tuple[int, str, str] | None = None
        self._mixer = Mixer()

    def hear(self, frame: AudioFrame) -> Iterator[Samples]:
        shape = (frame.rate, frame.layout.name, frame.format.name)
        if shape != self._shape:  # a stream may change it on the way
            yield from self.flush()
            self._shape = shape
        if self._resampler is None:
            # Packed, because PyAV 18 counts 9 planes in a planar frame of 8 channels, and reads
            # past the frame.
            self._resampler = av.AudioResampler("flt", frame.layout, SAMPLE_RATE)
        frame.pts = None  # the samples count; what their stamps say has been looked at
        for out in self._resampler.resample(frame):
            yield from self._mixer.feed(self._channels(out))

    def flush(self) -> Iterator[Samples]:
        if self._resampler is not None:
            for out in self._resampler.resample(None):
                yield from self._mixer.feed(self._channels(out))
            yield from self._mixer.flush()
            self._resampler = None

    def _channels(self, frame: AudioFrame) -> Samples:
        samples: Samples = frame.to_ndarray().astype(np.float32, copy=False)
        samples = samples.reshape(-1, frame.layout.nb_channels)
        if self._scale != 1:
            samples = samples * np.float32(self._scale)
        peak = max(samples.max(initial=0), -samples.min(initial=0))
        if peak <= MAX_SAMPLE:  # which NaN is not
            return samples
        if self._floats:
            value = f"of {peak:.3g}" if np.isfinite(peak) else "that is infinite or not a number"
            raise InvalidAudio(
                f"the audio has a sample {value}; floats are to lie between -1 and 1, and at most "
                f"{MAX_SAMPLE:g} is accepted: scale them, or save the file as 16-bit PCM"
            )
        # A damaged place caused this, and must not cost the rest of the file.
        repaired: Samples = np.clip(np.nan_to_num(samples), -1, 1)
        return repaired


class _Clock:
    """How a file's time stamps run beside its samples.

    Attributes:
        zero: the first stamp of any of its streams, in seconds.
        fed: seconds that its samples have lasted so far.
    """

    def __init__(self) -> None:
        self.zero = 0.0
        self.fed = 0.0
        self._lead: float | None = None
        # From which sample on, and by how many seconds, the stamps were ahead of the samples.
        self._leads: list[tuple[int, float]] = []

    def jumps(self, frame: AudioFrame) -> bool:
        """Whether a frame's stamp is ahead of the samples by another time than those before."""
        if frame.pts is None or frame.time_base is None:
            return False
        lead = float(frame.pts * frame.time_base) - self.fed
        if self._lead is not None and abs(lead - self._lead) <= JITTER:
            return False
        self._lead = lead
        return True

    def note(self, count: int) -> None:
        """The last jump was after so many samples."""
        if self._lead is not None:
            self._leads.append((count, self._lead))

    def start(self, max_seconds: float) -> float:
        """When the samples begin.

        Stamps that begin later than any clip may end are those of a live stream that somebody
        joined; then the first stamp is the beginning.
        """
        lead = self._leads[0][1] if self._leads else 0.0
        if lead > max_seconds:
            lead -= self.zero
        return lead if JITTER < lead <= max_seconds else 0.0

    def gaps(self) -> Iterator[tuple[int, float]]:
        """After which samples there is a gap, and of how many seconds.

        Only a lead that later stamps do not take back counts: otherwise it was jitter, or a damaged
        stamp. Where the stamps start again, the search does, too.
        """
        runs: list[list[tuple[int, float]]] = []
        lowest = math.inf
        for index, lead in self._leads:
            if not runs or lead < lowest - RESTART:
                runs.append([])
                lowest = lead
            lowest = min(lowest, lead)
            runs[-1].append((index, lead))
        for run in runs:
            filled = run[0][1]
            floors = [*accumulate((lead for _, lead in reversed(run)), min)]
            for (index, _), floor in zip(run, reversed(floors), strict=True):
                if floor - filled > JITTER:
                    yield index, floor - filled
                    filled = floor


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
