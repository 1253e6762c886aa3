"""What callers call a clip, made into bytes to send: again and again, where that is possible."""

from __future__ import annotations

import asyncio
import inspect
import os
import re
import struct
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

# What a sample array is, to those who do not import NumPy: anything that shows its memory.
Samples = Any
Source = str | os.PathLike[str] | bytes | BinaryIO | AsyncIterable[bytes] | tuple[Samples, int]

# Up to here a file is read as a whole; a larger one is sent as it is read.
SMALL = 1024 * 1024
CHUNK = 256 * 1024
# Enough of a WAV file to see how many bytes a second has.
HEAD = 256
# Compressed speech has about so many bytes a second. It is only compared with itself.
BYTES_A_SECOND = 8000
# Of a stream nobody knows how long it will be.
UNKNOWN_SECONDS = 10.0
ALLOWED = (
    "a path, bytes, a file opened in binary mode, an asynchronous iterator of bytes, "
    "or a tuple of a NumPy array and its sample rate"
)
# WAV's format tags and sample widths by the letters that arrays use.
_WAV = {"B": (1, 8), "h": (1, 16), "i": (1, 32), "l": (1, 32), "f": (3, 32), "d": (3, 64)}
_MAX_CHANNELS = 8
_SUFFIX = re.compile(r"\.[A-Za-z0-9]{1,8}")


@dataclass
class Audio:
    """One clip on its way.

    Attributes:
        suffix: of its name, such as `.g722`; the rest of the name tells nobody anything.
        size: bytes; None: a stream that ends when it ends.
        seconds: of audio; an estimate where the format does not say.
        data: all bytes; or, where they are not held, what begins to read them.
        rewindable: they can be read more than once.
    """

    suffix: str
    size: int | None
    seconds: float
    data: bytes | Callable[[], AsyncGenerator[bytes, None]]
    rewindable: bool = True


async def prepare(source: Source) -> Audio:
    """Make a source ready to be sent.

    Raises:
        TypeError: it is nothing that could be a clip.
        ValueError: an array of another form, or with an impossible sample rate.
        OSError: the file cannot be read.
    """
    if isinstance(source, (str, os.PathLike)):
        return await _of_path(Path(source))
    if isinstance(source, (bytes, bytearray, memoryview)):
        return _held(bytes(source))
    if isinstance(source, tuple):
        if len(source) != 2:
            raise TypeError(f"a tuple of {len(source)} is no clip; allowed are {ALLOWED}")
        return _held(wav(*source), ".wav")
    if isinstance(source, AsyncIterable):
        return _of_stream(source)
    if callable(getattr(source, "read", None)):
        return await _of_file(source)
    raise TypeError(f"{type(source).__name__} is no clip; allowed are {ALLOWED}")


def wav(samples: Samples, sample_rate: int) -> bytes:
    """A WAV file of an array, whose numbers are taken as they are.

    Args:
        samples: shape (n,) or (n, channels), at most 8 of them; float32 or float64 in [-1, 1],
            int16, int32 or uint8.
        sample_rate: Hz.

    Raises:
        TypeError: it is no array, or of other numbers.
        ValueError: another shape, or an impossible rate.
    """
    try:
        view = memoryview(samples)
    except TypeError as error:
        raise TypeError(f"{type(samples).__name__} is no array of samples") from error
    if view.format not in _WAV:
        raise TypeError(
            f"samples of the type {view.format!r} cannot be sent; "
            "allowed are float32, float64, int16, int32 and uint8"
        )
    if isinstance(sample_rate, bool) or int(sample_rate) != sample_rate or sample_rate < 1:
        raise ValueError(f"the sample rate must be a positive whole number, not {sample_rate!r}")
    shape = view.shape or ()
    channels = shape[1] if len(shape) == 2 else 1
    if len(shape) not in (1, 2) or not 1 <= channels <= _MAX_CHANNELS:
        raise ValueError(
            f"an array of the shape {shape} is no clip; "
            f"allowed are (n,) and (n, channels) with up to {_MAX_CHANNELS} channels"
        )
    tag, bits = _WAV[view.format]
    frame = channels * bits // 8
    rate = int(sample_rate)
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, tag, channels, rate, rate * frame, frame, bits)
    if view.nbytes > 0xFFFF_FFFF - len(form) - 12:
        raise ValueError(f"{view.nbytes} bytes of samples are more than a WAV file can hold")
    head = struct.pack("<4sI4s", b"RIFF", 4 + len(form) + 8 + view.nbytes, b"WAVE")
    return b"".join((head, form, struct.pack("<4sI", b"data", view.nbytes), view.tobytes()))


def seconds_of(head: bytes, size: int) -> float:
    """Seconds of audio in a file of that size; exact for WAV, else a guess."""
    if head[:4] in (b"RIFF", b"RF64") and (form := head.find(b"fmt ")) >= 0:
        rate = head[form + 16 : form + 20]
        if len(rate) == 4 and (bytes_a_second := int.from_bytes(rate, "little")):
            return size / bytes_a_second
    return size / BYTES_A_SECOND


def _held(data: bytes, suffix: str = "") -> Audio:
    return Audio(suffix, len(data), seconds_of(data[:HEAD], len(data)), data=data)


async def _of_path(path: Path) -> Audio:
    suffix = path.suffix if _SUFFIX.fullmatch(path.suffix) else ""
    size, head = await asyncio.to_thread(_look, path)
    if size is None:
        return Audio(suffix, None, UNKNOWN_SECONDS, data=lambda: _flow(path), rewindable=False)
    if size <= SMALL:
        return _held(head, suffix)

    def chunks() -> AsyncGenerator[bytes, None]:
        return _pieces(lambda: asyncio.to_thread(path.open, "rb"), size)

    return Audio(suffix, size, seconds_of(head, size), data=chunks)


def _look(path: Path) -> tuple[int | None, bytes]:
    """The size of a file, None if it is a pipe or the like, and its first bytes, or all few."""
    if not path.is_file() and not path.is_dir() and path.exists():
        return None, b""
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        return size, file.read(size if size <= SMALL else HEAD)


async def _flow(path: Path) -> AsyncGenerator[bytes, None]:
    file = await asyncio.to_thread(path.open, "rb")
    try:
        async for piece in _drain(file):
            yield piece
    finally:
        file.close()


async def _of_file(file: Any) -> Audio:
    seekable = getattr(file, "seekable", None)
    if not (callable(seekable) and await asyncio.to_thread(seekable)):
        return Audio("", None, UNKNOWN_SECONDS, data=lambda: _drain(file), rewindable=False)
    start, size, head = await asyncio.to_thread(_measure, file)
    if size <= SMALL:
        return _held(head)

    async def rewound() -> Any:
        await asyncio.to_thread(file.seek, start)
        return _Borrowed(file)

    return Audio("", size, seconds_of(head, size), data=lambda: _pieces(rewound, size))


def _measure(file: BinaryIO) -> tuple[int, int, bytes]:
    start = file.tell()
    size = file.seek(0, os.SEEK_END) - start
    file.seek(start)
    head = file.read(size if size <= SMALL else HEAD)
    return start, size, _checked(head)


class _Borrowed:
    """An open file of somebody else's, who closes it."""

    def __init__(self, file: BinaryIO) -> None:
        self.read = file.read

    def close(self) -> None:
        pass


async def _pieces(opened: Callable[[], Awaitable[Any]], size: int) -> AsyncGenerator[bytes, None]:
    """So many bytes of a file; it may have grown since."""
    file = await opened()
    try:
        left = size
        while left:
            piece = _checked(await asyncio.to_thread(file.read, min(CHUNK, left)))
            if not piece:
                raise OSError(f"the file became {left} bytes shorter while it was being sent")
            left -= len(piece)
            yield piece
    finally:
        file.close()


async def _drain(file: Any) -> AsyncGenerator[bytes, None]:
    while piece := _checked(await asyncio.to_thread(file.read, CHUNK)):
        yield piece


def _of_stream(source: AsyncIterable[bytes]) -> Audio:
    async def chunks() -> AsyncGenerator[bytes, None]:
        async for piece in source:
            if piece := _checked(piece):
                yield piece

    return Audio("", None, UNKNOWN_SECONDS, data=chunks, rewindable=False)


def _checked(piece: Any) -> bytes:
    if isinstance(piece, (bytes, bytearray, memoryview)):
        return bytes(piece)
    if inspect.iscoroutine(piece):
        piece.close()
    raise TypeError(f"the source gives {type(piece).__name__}, not bytes; open it in binary mode")
