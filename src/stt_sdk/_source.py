"""What callers call a clip, made into bytes to send: again and again, where that is possible."""

from __future__ import annotations

import inspect
import io
import os
import re
import threading
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from stt_sdk import _reading
from stt_sdk._apart import in_thread
from stt_sdk._reading import CHUNK
from stt_sdk._wav import Samples, seconds_of, wav


class AsyncReader(Protocol):
    """Such as an `asyncio.StreamReader`, an aiofiles file or a web framework's upload."""

    async def read(self, size: int, /) -> bytes: ...


Source = (
    str
    | os.PathLike[str]
    | bytes
    | bytearray
    | memoryview
    | BinaryIO
    | AsyncReader
    | AsyncIterable[bytes]
    | tuple[Samples, int]
)

# Up to here a file is read as a whole; a larger one is sent as it is read.
SMALL = 1024 * 1024
# Enough of a WAV file to see how many bytes a second has.
HEAD = 256
# Compressed speech has about so many bytes a second. It is only compared with itself.
BYTES_A_SECOND = 8000
# Of a stream nobody knows how long it will be.
UNKNOWN_SECONDS = 10.0
ALLOWED = (
    "a path, bytes, a file opened in binary mode, an asynchronous iterator or reader of bytes, "
    "or a tuple of a NumPy array and its sample rate"
)
_SUFFIX = re.compile(r"\.[A-Za-z0-9]{1,8}")


@dataclass
class Audio:
    """One clip on its way.

    Attributes:
        suffix: of its name, such as `.g722`; the rest of the name tells nobody anything.
        size: bytes; None: a stream that ends when it ends.
        seconds: of audio; None: the format does not say.
        data: all bytes; or, where they are not held, what begins to read them.
        rewindable: they can be read more than once.
    """

    suffix: str
    size: int | None
    seconds: float | None
    data: bytes | Callable[[], AsyncGenerator[bytes, None]]
    rewindable: bool = True

    @property
    def work(self) -> float:
        """Seconds of audio, guessed where they are not known."""
        if self.seconds is not None:
            return self.seconds
        return UNKNOWN_SECONDS if self.size is None else self.size / BYTES_A_SECOND


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
    read: Any = getattr(source, "read", None)
    if reads_pieces(source):
        # Before it is iterated over: many of these give lines, whose length they limit.
        return _stream(lambda: _read_on(read), _suffix(getattr(source, "name", None)))
    if isinstance(source, AsyncIterable):
        return _stream(lambda: _iterate(source))
    if inspect.iscoroutinefunction(read):
        return _stream(lambda: _read_all(read), _suffix(getattr(source, "name", None)))
    if isinstance(source, io.TextIOBase):
        raise TypeError("the file was opened in text mode; open it in binary mode")
    if callable(read):
        return await _of_file(source)
    raise TypeError(f"{type(source).__name__} is no clip; allowed are {ALLOWED}")


def reads_pieces(source: object) -> bool:
    """Whether it has an asynchronous `read` that takes a size, as a file's does."""
    read = getattr(source, "read", None)
    if not inspect.iscoroutinefunction(read):
        return False
    try:
        inspect.signature(read).bind(CHUNK)
    except TypeError:
        return False
    except ValueError:  # written in C: nobody knows
        pass
    return True


def _held(data: bytes, suffix: str = "") -> Audio:
    return Audio(suffix, len(data), seconds_of(data[:HEAD], len(data)), data=data)


def _stream(begin: Callable[[], AsyncGenerator[Any, None]], suffix: str = "") -> Audio:
    async def chunks() -> AsyncGenerator[bytes, None]:
        async with aclosing(begin()) as pieces:
            async for piece in pieces:
                if piece := _checked(piece):
                    yield piece

    return Audio(suffix, None, None, data=chunks, rewindable=False)


def _suffix(name: object) -> str:
    """Of a file's name; an open file may have a number for one, or none."""
    suffix = Path(name).suffix if isinstance(name, str) else ""
    return suffix if _SUFFIX.fullmatch(suffix) else ""


async def _of_path(path: Path) -> Audio:
    suffix = _suffix(str(path))
    found = await in_thread(partial(_look, path))
    if found is None:
        return _stream(lambda: _reading.pipe(path), suffix)
    size, head = found
    if size <= SMALL:
        return _held(head, suffix)

    async def chunks() -> AsyncGenerator[bytes, None]:
        with await _opened(path) as file:
            async with aclosing(_pieces(_Places(file, 0), size)) as pieces:
                async for piece in pieces:
                    yield piece

    return Audio(suffix, size, seconds_of(head, size), data=chunks)


def _look(path: Path) -> tuple[int, bytes] | None:
    """The size of a file and its first bytes, or all few; None: it is a pipe or the like."""
    if not path.is_file() and not path.is_dir() and path.exists():
        return None
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        return size, file.read(size if size <= SMALL else HEAD)


async def _opened(path: Path) -> BinaryIO:
    """A file that is closed if nobody waits for it any more, be it that the event loop ends."""
    lock = threading.Lock()
    opened: list[BinaryIO] = []
    left = False

    def work() -> None:
        file = path.open("rb")
        with lock:
            if left:
                file.close()
            else:
                opened.append(file)

    try:
        await in_thread(work)
    except BaseException:
        with lock:
            left = True
            for file in opened:
                file.close()
        raise
    return opened[0]


async def _of_file(file: Any) -> Audio:
    suffix = _suffix(getattr(file, "name", None))
    seekable = getattr(file, "seekable", None)
    if not (callable(seekable) and await in_thread(seekable)):
        return _stream(lambda: _reading.file(file), suffix)
    places, size, head = await in_thread(partial(_measure, file))
    if size <= SMALL:
        return _held(head, suffix)
    return Audio(suffix, size, seconds_of(head, size), data=lambda: _pieces(places, size))


class _Places:
    """A file from a certain place on.

    An attempt that was given up may have left a thread that still reads. It must not move the file
    under the next one.
    """

    def __init__(self, file: BinaryIO, start: int) -> None:
        self._file = file
        self._start = start
        self._lock = threading.Lock()

    def read(self, place: int, size: int) -> bytes:
        """Up to so many bytes; none: there it ends."""
        with self._lock:
            self._file.seek(self._start + place)
            return _checked(self._file.read(size))[:size]


def _measure(file: BinaryIO) -> tuple[_Places, int, bytes]:
    start = file.tell()
    file.seek(0, os.SEEK_END)
    size = max(0, file.tell() - start)
    places = _Places(file, start)
    head = b""
    wanted = size if size <= SMALL else HEAD
    while len(head) < wanted and (piece := places.read(len(head), wanted - len(head))):
        head += piece
    return places, size, head


async def _pieces(places: _Places, size: int) -> AsyncGenerator[bytes, None]:
    """So many bytes of a file; it may have grown since."""
    place = 0
    while place < size:
        piece = await in_thread(partial(places.read, place, min(CHUNK, size - place)))
        if not piece:
            raise OSError(f"the file became {size - place} bytes shorter while it was being sent")
        place += len(piece)
        yield piece


async def _iterate(source: AsyncIterable[Any]) -> AsyncGenerator[Any, None]:
    async for piece in source:
        yield piece


async def _read_on(read: Callable[[int], Awaitable[Any]]) -> AsyncGenerator[Any, None]:
    while piece := await read(CHUNK):
        yield piece


async def _read_all(read: Callable[[], Awaitable[Any]]) -> AsyncGenerator[Any, None]:
    yield await read()


def _checked(piece: Any) -> bytes:
    if isinstance(piece, (bytes, bytearray, memoryview)):
        return bytes(piece)
    if inspect.iscoroutine(piece):
        piece.close()
    raise TypeError(f"the source gives {type(piece).__name__}, not bytes; open it in binary mode")
