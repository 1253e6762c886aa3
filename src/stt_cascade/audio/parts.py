"""The files in an upload, and how far the audio of each one goes.

FFmpeg stops without a word where a header says that the audio ends, and where a chained stream
changes its shape. It also takes some integer samples for floats. So joined recordings are taken
apart here, and PCM is read by what its header says of each sample, up to the file's end.
"""

from __future__ import annotations

import math
import re
import struct
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from stt_cascade.errors import InvalidAudio

# First atoms of an MP4 file: `ftyp` as it should be, the others as writers have it too.
_MP4_ATOMS = (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide")
# The tags of WAV, and of the GUID that an extensible one has instead all but the tag.
_PCM, _FLOAT, _EXTENSIBLE = 1, 3, 0xFFFE
_WAVE_LAWS = {6: "alaw", 7: "mulaw"}
_WAVE_GUID = bytes.fromhex("00001000800000aa00389b71")
# FFmpeg's demuxers of raw PCM, and the names that AIFF-C and AU have for them.
_KINDS = frozenset(
    (
        "u8",
        "s8",
        "s16le",
        "s16be",
        "s24le",
        "s24be",
        "s32le",
        "s32be",
        "f32le",
        "f32be",
        "f64le",
        "f64be",
        "alaw",
        "mulaw",
    )
)
_AIFC = {
    b"fl32": "f32be", b"FL32": "f32be", b"fl64": "f64be", b"FL64": "f64be",
    b"alaw": "alaw", b"ALAW": "alaw", b"ulaw": "mulaw", b"ULAW": "mulaw",
    b"raw ": "u8", b"in24": "s24be", b"in32": "s32be", b"42ni": "s24le", b"23ni": "s32le",
}  # fmt: skip
_AU = {1: "mulaw", 2: "s8", 3: "s16be", 4: "s24be", 5: "s32be", 6: "f32be", 7: "f64be", 27: "alaw"}
_EBML, _SEGMENT, _CLUSTER = b"\x1aE\xdf\xa3", b"\x18S\x80g", b"\x1fC\xb6u"
# Samples that are looked at to see how they are justified.
_LOOKED_AT = 1 << 20


@dataclass(frozen=True, slots=True)
class Part:
    """A stretch of an upload that one demuxer reads.

    Attributes:
        demuxer: FFmpeg's name of it.
        options: for that demuxer; raw PCM has no header that would tell them.
        scale: what each sample is multiplied by.
    """

    demuxer: str
    data: bytes
    options: Mapping[str, str] = field(default_factory=dict)
    scale: float = 1.0


def parts(data: bytes) -> Iterator[Part | None]:
    """The files in an upload that begins with one; None for bytes that are not a file."""
    starts = sorted(_starts(data))
    start = 0
    while start < len(data):
        demuxer = sniff(data, start)
        stop = _next(starts, start, demuxer, len(data))
        if demuxer is None:
            yield None
            start = stop
            continue
        whole = True
        if demuxer == "ogg":
            stop, whole = _ogg(data, start)
        elif demuxer == "mov":
            stop = _mov(data, start, stop)
        file = data[start:stop]
        if demuxer == "matroska":
            file = _matroska(file)
            stop = start + len(file)
        reader = _READERS.get(demuxer)
        yield from reader(file) if reader else (Part(demuxer, file),)
        if not whole:
            yield None
        start = skip_tags(data, stop)


def sniff(data: bytes, start: int = 0) -> str | None:
    """FFmpeg's name of the demuxer that the bytes ask for; None: no supported format."""
    head = data[start : start + 12]
    if head[:4] in (b"RIFF", b"RF64") and head[8:12] == b"WAVE":
        return "wav"
    if head[:4] == b"FORM" and head[8:12] in (b"AIFF", b"AIFC"):
        return "aiff"
    for magic, demuxer in (
        (b"fLaC", "flac"),
        (b"OggS", "ogg"),
        (_EBML, "matroska"),
        (b".snd", "au"),
    ):
        if head.startswith(magic):
            return demuxer
    if head[4:8] in _MP4_ATOMS:
        return "mov"
    if head[:3] == b"ID3":
        # An ID3 tag may stand before FLAC too.
        return "flac" if data.startswith(b"fLaC", start + _id3(head)) else "mp3"
    return "mp3" if _is_mpeg(head) else None


def skip_tags(data: bytes, start: int) -> int:
    """Where padding and tags that may follow a file end."""
    while start < len(data):
        if data.startswith(b"TAG", start) and len(data) - start == 128:
            return len(data)
        if data.startswith(b"APETAGEX", start) and len(data) - start >= 32:
            start += 32 + int.from_bytes(data[start + 12 : start + 16], "little")
        elif data.startswith(b"ID3", start) and not _is_id3(data, start):
            start += _id3(data[start : start + 10])
        elif (zeros := _ZEROS.match(data, start)) is not None:
            # An MP4 file begins with three of them.
            if sniff(data, max(start, zeros.end() - 3)) is not None:
                return max(start, zeros.end() - 3)
            start = zeros.end()
        else:
            break
    return min(start, len(data))


_ZEROS = re.compile(rb"\x00+")


def _starts(data: bytes) -> Iterator[tuple[int, str]]:
    """Where a file certainly begins, and its demuxer."""
    for magic, before, check, demuxer in (
        (b"RIFF", 0, lambda at: data[at + 8 : at + 12] == b"WAVE", "wav"),
        (b"RF64", 0, lambda at: data[at + 8 : at + 12] == b"WAVE", "wav"),
        (b"FORM", 0, lambda at: data[at + 8 : at + 12] in (b"AIFF", b"AIFC"), "aiff"),
        (b"fLaC", 0, lambda at: data[at + 5 : at + 8] == b"\0\0\x22", "flac"),
        (b"OggS\0\x02" + bytes(8), 0, lambda at: True, "ogg"),
        (_EBML, 0, lambda at: re.search(b"webm|matroska", data[at : at + 64]), "matroska"),
        (b"ftyp", 4, lambda at: data[at : at + 3] == b"\0\0\0", "mov"),
        (b".snd\0\0", 0, lambda at: data[at + 12 : at + 15] == b"\0\0\0", "au"),
        (b"ID3", 0, lambda at: _is_id3(data, at), "mp3"),
    ):
        at = data.find(magic)
        while at >= 0:
            if at >= before and check(at - before):
                yield at - before, demuxer
            at = data.find(magic, at + 1)


def _next(starts: list[tuple[int, str]], start: int, demuxer: str | None, end: int) -> int:
    """Where the next file begins."""
    for at, kind in starts[bisect_right(starts, (start, "~")) :]:
        # Matroska holds the head of a FLAC file as its codec's parameters.
        if not (demuxer == "matroska" and kind == "flac"):
            return at
    return end


def _is_mpeg(head: bytes) -> bool:
    """MPEG frame sync, of a valid version and layer, bit rate and sampling rate."""
    return (
        len(head) >= 4
        and head[0] == 0xFF
        and head[1] & 0xE0 == 0xE0
        and head[1] & 0x18 != 0x08
        and head[1] & 0x06 != 0
        and head[2] & 0xF0 not in (0x00, 0xF0)
        and head[2] & 0x0C != 0x0C
    )


def _id3(tag: bytes) -> int:
    """Bytes of an ID3 tag: its size is in four 7-bit bytes."""
    return 10 + sum(byte << shift for byte, shift in zip(tag[6:10], (21, 14, 7, 0), strict=False))


def _is_id3(data: bytes, at: int) -> bool:
    """Whether a tag stands there, and audio behind it."""
    tag = data[at : at + 10]
    if len(tag) < 10 or not 2 <= tag[3] <= 4 or max(tag[6:10]) > 0x7F:
        return False
    after = data[at + _id3(tag) : at + _id3(tag) + 4]
    return _is_mpeg(after) or after == b"fLaC"


def _ogg(data: bytes, start: int) -> tuple[int, bool]:
    """Where a link of an Ogg chain ends, and whether all up to there are pages."""
    at, begun, whole = start, False, True
    while at < len(data):
        if not data.startswith(b"OggS", at):
            page = data.find(b"OggS", at)
            if page < 0 or sniff(data, at) is not None:
                return at, whole
            at, whole = page, False
        first = bool(data[at + 5 : at + 6] and data[at + 5] & 2)
        if first and begun:
            return at, whole
        begun = begun or not first
        lengths = data[at + 27 : at + 27 + (data[at + 26] if at + 26 < len(data) else 0)]
        at += 27 + len(lengths) + sum(lengths)
    return len(data), whole


def _mov(data: bytes, start: int, stop: int) -> int:
    """Where an MP4 file ends: before its `stop`, if what follows it is not a box."""
    at = start
    boxes: set[bytes] = set()
    while at + 8 <= stop:
        size, name = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        if size == 1:
            size = int.from_bytes(data[at + 8 : at + 16], "big")
        if size < 8 or not _is_name(name):
            # Nothing that belongs to the file may be cut off because a box of it is damaged.
            return at if size and {b"moov", b"mdat"} <= boxes else stop
        boxes.add(name)
        at += size
    return stop


def _matroska(file: bytes) -> bytes:
    """A Matroska file without what follows it, and with all of its clusters."""
    segment = _ebml(file, 4)[1]
    if segment is None or not file.startswith(_SEGMENT, segment):
        return file
    begin, end = _ebml(file, segment + 4)
    if end is None or end >= len(file):
        return file
    if not file.startswith(_CLUSTER, end):
        return file[:end]
    # There are more clusters than the header knows of: make its size the unknown one.
    length = begin - segment - 4
    unknown = (1 << 7 * length + 1) - 1
    return file[: segment + 4] + unknown.to_bytes(length, "big") + file[begin:]


def _ebml(data: bytes, at: int) -> tuple[int, int | None]:
    """Where an element's content begins and ends, from its size; None: that is unknown."""
    if at >= len(data) or not data[at]:
        return at, None
    length = 9 - data[at].bit_length()
    size = int.from_bytes(data[at : at + length], "big") - (1 << 7 * length)
    return at + length, None if size == (1 << 7 * length) - 1 else at + length + size


def _is_name(name: bytes) -> bool:
    return len(name) == 4 and all(0x20 <= byte < 0x7F or byte == 0xA9 for byte in name)


def _chunks(file: bytes, order: Literal["little", "big"]) -> Iterator[tuple[bytes, int, int]]:
    """Name, begin and end of a WAV or AIFF file's chunks.

    That of the audio ends with the file, unless something follows where it says that it ends: who
    writes a stream does not know its length yet, and a recorder that broke off did not correct it.
    """
    at, long_size = 12, 0
    while at + 8 <= len(file) and _is_name(file[at : at + 4]):
        name, begin = file[at : at + 4], at + 8
        size = int.from_bytes(file[at + 4 : begin], order)
        if name == b"ds64":  # of RF64
            long_size = int.from_bytes(file[begin + 8 : begin + 16], "little")
        if name in (b"data", b"SSND"):
            if size == 0xFFFFFFFF and long_size:
                size = long_size
            empty = 0 if name == b"data" else 8
            if size <= empty or not _follows(file, begin + size, order):
                size = len(file) - begin
        end = min(begin + size, len(file))
        yield name, begin, end
        # Not all writers pad a chunk to an even size.
        at = end if end % 2 == 0 or not _is_chunk(file, end + 1, order) else end + 1


def _follows(file: bytes, end: int, order: Literal["little", "big"]) -> bool:
    """Whether audio may end there: at the file's end, before padding, a tag, or another chunk."""
    return (
        skip_tags(file, end) >= len(file)
        or _is_chunk(file, end, order)
        or _is_chunk(file, end + end % 2, order)
    )


def _is_chunk(file: bytes, at: int, order: Literal["little", "big"]) -> bool:
    size = int.from_bytes(file[at + 4 : at + 8], order)
    return _is_name(file[at : at + 4]) and at + 8 + size <= len(file) + 1


def _wav(file: bytes) -> Iterator[Part]:
    chunks = list(_chunks(file, "little"))
    layout = next((file[begin:end] for name, begin, end in chunks if name == b"fmt "), b"")
    for name, begin, end in chunks:
        if name == b"data":
            size = min(end - begin, 0xFFFFFFFE).to_bytes(4, "little")
            yield _of_wave(layout, file[begin:end]) or Part(
                "wav", b"RIFF" + file[4 : begin - 4] + size + file[begin:end]
            )


def _of_wave(layout: bytes, audio: bytes) -> Part | None:
    """PCM as the `fmt ` chunk describes it; None: it is something else, or makes no sense."""
    if len(layout) < 16:
        return None
    tag, channels, rate, _, block, bits = struct.unpack_from("<HHIIHH", layout)
    valid, extensible = bits, tag == _EXTENSIBLE
    if extensible:
        if layout[28:40] != _WAVE_GUID:
            return None
        tag = int.from_bytes(layout[24:28], "little")
        valid = int.from_bytes(layout[18:20], "little") or bits
    packed = -(-bits // 8)
    # What a sample takes, if that is more than its bits need.
    width = max(packed, block // channels if channels and block % channels == 0 else 0)
    if tag in _WAVE_LAWS:
        return _pcm(_WAVE_LAWS[tag], rate, channels, audio)
    if tag == _PCM and width > 4 and packed <= 4:
        raise InvalidAudio(
            f"the WAV header says {bits} bits in {width} bytes a sample, which no writer does: "
            "save the file as 16-bit PCM"
        )
    if tag == _FLOAT:
        return _pcm({4: "f32le", 8: "f64le"}.get(width), rate, channels, audio)
    if tag != _PCM:
        return None
    if width == 4 and not extensible:
        # Cool Edit wrote floats under the tag of integers: of 16.8 bits and of 24.0.
        if bits == 32 and layout[16:20] == b"\2\0\1\0":
            return _pcm("f32le", rate, channels, audio, 0.5**15)
        if bits == 24 and _are_floats(audio):
            return _pcm("f32le", rate, channels, audio, 0.5**23)
    scale = _scale(audio, width, valid, "little")
    if scale is None and width > packed and not extensible:
        # It is the block's size that is wrong.
        width, scale = packed, _scale(audio, packed, valid, "little")
    kind = "u8" if width == 1 else f"s{8 * width}le"
    return _pcm(kind, rate, channels, audio, scale or 1.0)


def _aiff(file: bytes) -> Iterator[Part]:
    chunks = list(_chunks(file, "big"))
    layout = next((file[begin:end] for name, begin, end in chunks if name == b"COMM"), b"")
    for name, begin, end in chunks:
        if name == b"SSND":
            size = (end - begin).to_bytes(4, "big")
            skipped = 8 + int.from_bytes(file[begin : begin + 4], "big")
            yield _of_aiff(layout, file[begin + skipped : end]) or Part(
                "aiff", file[: begin - 4] + size + file[begin:]
            )


def _of_aiff(layout: bytes, audio: bytes) -> Part | None:
    """PCM as the `COMM` chunk describes it; None as `_of_wave`."""
    if len(layout) < 18:
        return None
    channels, _, bits, exponent, mantissa = struct.unpack_from(">HIHHQ", layout)
    rate = round(math.ldexp(mantissa, exponent - 16383 - 63)) if exponent < 16500 else 0
    form = layout[18:22] or b"NONE"
    if form in _AIFC:
        return _pcm(_AIFC[form], rate, channels, audio)
    if form not in (b"NONE", b"twos", b"sowt"):
        return None
    order: Literal["little", "big"] = "little" if form == b"sowt" else "big"
    width = -(-bits // 8)
    kind = "s8" if width == 1 else f"s{8 * width}{order[0]}e"
    return _pcm(kind, rate, channels, audio, _scale(audio, width, bits, order) or 1.0)


def _au(file: bytes) -> Iterator[Part]:
    if len(file) < 24:
        return
    begin, size, encoding, rate, channels = struct.unpack_from(">IIIII", file, 4)
    end = begin + size
    if not size or skip_tags(file, end) < len(file):
        end = len(file)
    yield _pcm(_AU.get(encoding), rate, channels, file[begin:end]) or Part(
        "au", file[:8] + b"\xff" * 4 + file[12:]
    )


_READERS: dict[str, Callable[[bytes], Iterator[Part]]] = {"wav": _wav, "aiff": _aiff, "au": _au}


def _pcm(
    kind: str | None, rate: int, channels: int, audio: bytes, scale: float = 1.0
) -> Part | None:
    """A part for one of FFmpeg's demuxers of raw PCM; None if there is none."""
    if kind not in _KINDS or not channels:
        return None
    return Part(kind, audio, {"sample_rate": str(rate), "ch_layout": f"{channels} channels"}, scale)


def _scale(audio: bytes, width: int, valid: int, order: Literal["little", "big"]) -> float | None:
    """What integers of some valid bits in wider samples are to be multiplied by.

    The standards put them to the left, with zeros below, which needs nothing. Some writers put them
    to the right. None: they are neither.
    """
    spare = 8 * width - valid
    if spare <= 0 or not 1 < width <= 4 or not audio:
        return 1.0
    # The most significant byte first, in four bytes; a stretch here and there is enough.
    octets = np.frombuffer(audio, np.uint8, len(audio) // width * width).reshape(-1, width)
    octets = octets[:: 1 + len(octets) // _LOOKED_AT]
    samples = np.zeros((len(octets), 4), np.uint8)
    samples[:, :width] = octets[:, ::-1] if order == "little" else octets
    numbers = samples.view(">i4")[:, 0].astype(np.int64) >> 8 * (4 - width)
    if not (numbers & (2**spare - 1)).any():
        return 1.0
    if numbers.min() >= -(2 ** (valid - 1)) and numbers.max() < 2 ** (valid - 1):
        return 2.0**spare
    return None


def _are_floats(audio: bytes) -> bool:
    """Whether words of four bytes are floats of up to 24 bits, and no integers of 24."""
    words = np.frombuffer(audio, "<u4", len(audio) // 4)
    words = words[:: 1 + len(words) // _LOOKED_AT]
    exponents = (words[words != 0] >> 23) & 0xFF
    return bool(len(exponents)) and exponents.min() >= 127 - 30 and exponents.max() <= 127 + 24
