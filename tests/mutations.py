"""Audio files, spoilt in the ways in which files come spoilt, by accident or on purpose."""

from __future__ import annotations

import random
import re
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tones import CONTAINERS, encoded, tone, video

ROOT = Path(__file__).parent.parent
SPEECH = ROOT.parent / "shared" / "speech"
# Of the real speech, where it is there: so many files of each format, none larger than this.
SPEECH_FILES, SPEECH_BYTES = 4, 300_000
# What a header is read from, and where most of what can be broken is.
HEAD_BYTES = 256
# Into the lane of large files, but not for long.
BLOATED_BYTES = 1_500_000
# Numbers at which counters, sizes and products overflow.
EXTREMES = (
    *(0, 1, 2, 3, 7, 8, 0x7F, 0x80, 0xFF, 0x100, 0x7FFF, 0x8000, 0xFFFF, 0x10000),
    *(0x7FFFFFFF, 0x80000000, 0xFFFFFFF8, 0xFFFFFFFE, 0xFFFFFFFF),
    *(0x7FFFFFFFFFFFFFFF, 0x8000000000000000, 0xFFFFFFFFFFFFFFFF),
)
# Chunks of RIFF and AIFF, atoms of MP4: a length stands beside each.
_TAG = re.compile(rb"[A-Za-z][A-Za-z0-9]{2}[A-Za-z0-9 ]")

Mutation = Callable[[random.Random, bytearray, bytes], bytearray]


@dataclass(frozen=True)
class Source:
    """A file as it should be."""

    name: str
    data: bytes


@dataclass(frozen=True)
class Mutant:
    """What became of a file.

    Attributes:
        name: of the source and the mutations; G.722 is known by the end of it.
    """

    name: str
    data: bytes


def sources() -> list[Source]:
    """Real audio of every container: made here, from the samples, and from the labelled speech."""
    found = [Source(name, encoded(name)) for name in CONTAINERS]
    found.append(Source("video", video(tone(1.0, 500, 48_000), tone(1.0, 900, 48_000))))
    files = sorted((ROOT / "samples").glob("*.flac"))
    for kind in ("flac", "ogg", "wav"):
        speech = sorted(SPEECH.rglob(f"*.{kind}"))
        files += [each for each in speech if each.stat().st_size <= SPEECH_BYTES][:SPEECH_FILES]
    return found + [Source(file.name, file.read_bytes()) for file in files]


def mutant(seed: int, number: int, originals: Sequence[Source]) -> Mutant:
    """The mutant of that number: the same one for the same seed, whatever was made before."""
    chance = random.Random(f"{seed}/{number}")
    source = originals[number % len(originals)]
    other = chance.choice(originals).data
    data, names = bytearray(source.data), [source.name]
    for _ in range(chance.choice((1, 1, 2, 3))):
        mutation = chance.choice(MUTATIONS)
        data = mutation(chance, data or bytearray(1), other)
        names.append(mutation.__name__)
    if chance.random() < 0.5:
        # Otherwise FFmpeg passes over every page that was touched.
        data = with_checksums(data)
    name = "+".join(names)
    return Mutant(f"{name}.g722" if source.name == "g722" else name, bytes(data))


def flipped_bits(chance: random.Random, data: bytearray, other: bytes) -> bytearray:
    for _ in range(chance.choice((1, 2, 8, 64, 512))):
        data[_place(chance, data)] ^= 1 << chance.randrange(8)
    return data


def new_bytes(chance: random.Random, data: bytearray, other: bytes) -> bytearray:
    at = _place(chance, data)
    size = chance.choice((1, 4, 16, 1024))
    data[at : at + size] = chance.choice((chance.randbytes(size), bytes(size), b"\xff" * size))
    return data


def cut(chance: random.Random, data: bytearray, other: bytes) -> bytearray:
    del data[_place(chance, data) :]
    return data


def lost_piece(chance: random.Random, data: bytearray, other: bytes) -> bytearray:
    begin, end = _piece(chance, data)
    del data[begin:end]
    return data


def doubled_piece(chance: random.Random, data: bytearray, other: bytes) -> bytearray:
    begin, end = _piece(chance, data)
    at = _place(chance, data)
    data[at:at] = data[begin:end]
    return data


def swapped_pieces(chance: random.Random, data: bytearray, other: bytes) -> bytearray:
    a, b, c, d = sorted(_place(chance, data) for _ in range(4))
    return data[:a] + data[c:d] + data[b:c] + data[a:b] + data[d:]


def extreme_number(chance: random.Random, data: bytearray, other: bytes) -> bytearray:
    _write(chance, data, chance.randrange(min(len(data), HEAD_BYTES)), chance.choice((1, 2, 4, 8)))
    return data


def extreme_length(chance: random.Random, data: bytearray, other: bytes) -> bytearray:
    """The length of a chunk, which stands after its name (RIFF, AIFF) or before it (MP4)."""
    tags = [match.start() for match in _TAG.finditer(data, 0, 4096)] or [0]
    at = chance.choice(tags) + chance.choice((-4, 4))
    _write(chance, data, max(0, at), 4)
    return data


def foreign_end(chance: random.Random, data: bytearray, other: bytes) -> bytearray:
    """One file's beginning, another one's end."""
    return data[: _place(chance, data)] + other[chance.randrange(len(other)) :]


def followed_by_another(chance: random.Random, data: bytearray, other: bytes) -> bytearray:
    return data + other


def disguised(chance: random.Random, data: bytearray, other: bytes) -> bytearray:
    """Another format's first bytes before it."""
    return bytearray(other[: chance.choice((4, 12, 64))]) + data


def bloated(chance: random.Random, data: bytearray, other: bytes) -> bytearray:
    begin, end = _piece(chance, data)
    times = chance.choice((10, BLOATED_BYTES // (end - begin)))
    data[end:end] = (data[begin:end] * times)[:BLOATED_BYTES]
    return data


MUTATIONS: tuple[Mutation, ...] = (
    flipped_bits,
    new_bytes,
    cut,
    lost_piece,
    doubled_piece,
    swapped_pieces,
    extreme_number,
    extreme_length,
    foreign_end,
    followed_by_another,
    disguised,
    bloated,
)


def _place(chance: random.Random, data: bytearray) -> int:
    """A place in the data, as often as not in its head."""
    return chance.randrange(min(len(data), chance.choice((HEAD_BYTES, len(data)))))


def _piece(chance: random.Random, data: bytearray) -> tuple[int, int]:
    """Beginning and end of a piece that is not empty."""
    begin = _place(chance, data)
    return begin, min(len(data), begin + chance.choice((1, 16, 256, 4096)))


def _write(chance: random.Random, data: bytearray, at: int, size: int) -> None:
    order = chance.choice(("little", "big"))
    value = chance.choice(EXTREMES) % 256**size
    data[at : at + size] = value.to_bytes(size, "little" if order == "little" else "big")


def with_checksums(data: bytearray) -> bytearray:
    """The same with the right checksum in each Ogg page, as a forger would have it."""
    for match in re.finditer(b"OggS", data):
        at = match.start()
        if at + 27 > len(data):
            break
        lacing = data[at + 27 : at + 27 + data[at + 26]]
        end = at + 27 + len(lacing) + sum(lacing)
        data[at + 22 : at + 26] = bytes(4)
        data[at + 22 : at + 26] = struct.pack("<I", _ogg_crc(bytes(data[at:end])))
    return data


def _ogg_table() -> list[int]:
    table = []
    for byte in range(256):
        value = byte << 24
        for _ in range(8):
            value = (value << 1) ^ (0x04C11DB7 if value & 0x80000000 else 0)
        table.append(value & 0xFFFFFFFF)
    return table


_CRC = _ogg_table()


def _ogg_crc(page: bytes) -> int:
    value = 0
    for byte in page:
        value = (value << 8 & 0xFFFFFFFF) ^ _CRC[value >> 24 ^ byte]
    return value
