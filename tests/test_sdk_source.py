"""Whatever a clip is given as comes to the service byte for byte, or the caller hears why not."""

from __future__ import annotations

import array
import asyncio
import ctypes
import gc
import gzip
import io
import os
import socket
import subprocess
import sys
import tempfile
import threading
import wave
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, suppress
from pathlib import Path
from typing import Any, cast

import av
import httpx2
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fakes import PATIENCE, ScriptedFallback, answer_of_fallback
from stt_sdk import STTClient, STTError
from stt_sdk._reading import CHUNK
from stt_sdk._source import SMALL, Audio, prepare
from stt_sdk._wav import MAX_CHANNELS, seconds_of, wav
from stt_sdk._within import within
from tones import encoded, silence, tone
from tones import wav as wav_file

LARGE = bytes(range(256)) * 5000  # 1.28 MB
SMALL_CLIP = LARGE[:1000]

Scripted = Callable[..., ScriptedFallback]


async def read(audio: Audio) -> bytes:
    if isinstance(audio.data, bytes):
        return audio.data
    async with aclosing(audio.data()) as pieces:
        return b"".join([piece async for piece in pieces])


def sent(source: Any) -> bytes:
    """What is read of a source, which must be as long as was said."""

    async def scenario() -> bytes:
        audio = await prepare(source)
        data = await within(PATIENCE, read(audio))
        assert audio.size in (None, len(data))
        return data

    return asyncio.run(scenario())


def prepared(source: Any) -> Audio:
    return asyncio.run(prepare(source))


async def stream(*pieces: Any) -> AsyncGenerator[Any, None]:
    for piece in pieces:
        yield piece


def open_files() -> set[str]:
    """What this process has open, by name."""
    found = set()
    for link in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # that of the listing itself
            found.add(str(link.readlink()))
    return found


# Arrays


def decoded(data: bytes) -> tuple[npt.NDArray[Any], int]:
    """The samples of a WAV file, shape (n, channels), and their rate."""
    with av.open(io.BytesIO(data), "r") as file:
        frames = [frame.to_ndarray() for frame in file.decode(audio=0)]
        stream = file.streams.audio[0]
        return np.concatenate(frames, axis=1).reshape(-1, stream.channels), stream.rate


@pytest.mark.parametrize("channels", [None, 1, 2, MAX_CHANNELS])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int16, np.int32, np.uint8])
def test_an_array_becomes_a_wav_file_with_the_same_samples(
    dtype: type[np.generic], channels: int | None
) -> None:
    shape = (4800,) if channels is None else (4800, channels)
    noise = np.random.default_rng(1).uniform(-1, 1, shape)
    scale = 1 if np.issubdtype(dtype, np.floating) else 100
    samples = (noise * scale + (128 if dtype is np.uint8 else 0)).astype(dtype)

    heard, rate = decoded(sent((samples, 48_000)))

    assert rate == 48_000
    assert heard.dtype == samples.dtype
    np.testing.assert_array_equal(heard, samples.reshape(4800, -1))


@pytest.mark.parametrize("dtype", [np.int16, np.int32, np.uint8])
def test_the_standard_library_reads_its_header_as_meant(dtype: type[np.generic]) -> None:
    with wave.open(io.BytesIO(wav(np.ones((800, 2), dtype), 8000))) as file:
        assert (file.getnchannels(), file.getframerate(), file.getnframes()) == (2, 8000, 800)
        assert file.getsampwidth() == np.dtype(dtype).itemsize
        assert file.readframes(800) == np.ones((800, 2), dtype).tobytes()


def test_how_an_array_lies_in_memory_does_not_matter() -> None:
    samples = np.arange(24, dtype=np.int16).reshape(12, 2)
    expected = wav(samples, 8000)
    frozen = samples.copy()
    frozen.flags.writeable = False
    wide = np.zeros((12, 4), np.int16)
    wide[:, ::2] = samples
    for same in (np.asfortranarray(samples), samples[::-1][::-1], frozen, wide[:, ::2]):
        assert wav(same, 8000) == expected
    mono = wav(samples[:, 1], 8000)
    assert wav(array.array("h", samples[:, 1].tolist()), 8000) == mono
    assert wav((ctypes.c_int16 * 12)(*samples[:, 1].tolist()), 8000) == mono
    assert wav(memoryview(samples[:, 1].tobytes()).cast("h"), 8000) == mono


@pytest.mark.parametrize(
    "dtype",
    ["?", "i1", "u2", "u4", "i8", "u8", "f2", "g", "c8", "O", "U3", ">f4", ">i2", "M8[s]"],
)
def test_an_array_of_other_numbers_is_refused_with_those_that_are_allowed(dtype: str) -> None:
    with pytest.raises(TypeError, match=r"cannot be sent; allowed are float32|no array of samples"):
        wav(np.zeros(100, dtype), 16_000)


def test_what_numpy_makes_of_a_list_of_whole_numbers_is_no_clip_of_twice_the_length() -> None:
    with pytest.raises(TypeError, match=r"'l' with 8 bytes cannot be sent"):
        wav(np.array([1, 2, 3]), 16_000)
    with pytest.raises(TypeError, match=r"'l' with 8 bytes cannot be sent"):
        wav(array.array("l", [1, 2, 3]), 16_000)


@pytest.mark.parametrize("shape", [(), (100, 0), (100, 9), (2, 16_000), (1, 100, 1)])
def test_an_array_of_another_shape_is_refused_with_those_that_are_allowed(
    shape: tuple[int, ...],
) -> None:
    with pytest.raises(ValueError, match=r"is no clip; allowed are \(n,\) and \(n, channels\)"):
        wav(np.zeros(shape, np.float32), 16_000)


def test_an_empty_array_is_an_empty_clip() -> None:
    with wave.open(io.BytesIO(wav(np.zeros(0, np.int16), 16_000))) as file:
        assert file.getnframes() == 0


@pytest.mark.parametrize(
    "rate",
    [0, -1, 16_000.5, float("nan"), float("inf"), True, "16000", None, 2**32, [16_000], 1j],
)
def test_an_impossible_sample_rate_is_refused(rate: Any) -> None:
    with pytest.raises(ValueError, match="the sample rate must be a whole number of Hz"):
        wav(tone(), rate)


@pytest.mark.parametrize("rate", [8000, 8000.0, np.int32(8000), np.float32(8000)])
def test_a_sample_rate_may_come_from_anywhere(rate: Any) -> None:
    assert decoded(wav(tone(0.1, rate=8000), rate))[1] == 8000


def test_raw_bytes_are_not_taken_for_samples_of_eight_bits() -> None:
    for raw in (b"\0\0" * 100, bytearray(200)):
        with pytest.raises(TypeError, match=r"np\.frombuffer"):
            wav(raw, 16_000)


def test_the_order_of_array_and_rate_is_told() -> None:
    with pytest.raises(TypeError, match="int is no array of samples; first comes the array"):
        wav(16_000, tone())  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="list is no array of samples"):
        wav([0.0, 0.1], 16_000)


class Tensor:
    """As those of torch, which show no memory but make arrays."""

    def __init__(self, values: npt.NDArray[Any], grad: bool = False) -> None:
        self._values = values
        self._grad = grad

    def __array__(self, dtype: Any = None, copy: Any = None) -> npt.NDArray[Any]:
        if self._grad:
            raise RuntimeError("can't call numpy() on a tensor that requires grad")
        return self._values


def test_a_tensor_is_an_array_and_says_itself_why_it_is_none() -> None:
    assert sent((Tensor(tone()), 16_000)) == wav(tone(), 16_000)
    with pytest.raises(RuntimeError, match="requires grad"):
        sent((Tensor(tone(), grad=True), 16_000))
    with pytest.raises(TypeError, match=r"'e' with 2 bytes cannot be sent"):
        sent((Tensor(tone().astype(np.float16)), 16_000))


# Bytes, and what is no clip


def test_bytes_are_taken_as_they_are_when_the_call_is_made() -> None:
    held = bytearray(SMALL_CLIP)
    audio = prepared(held)
    held[:] = bytes(len(held))
    assert audio.data == SMALL_CLIP
    assert sent(SMALL_CLIP) == sent(memoryview(SMALL_CLIP)) == SMALL_CLIP
    assert sent(memoryview(SMALL_CLIP)[::2]) == SMALL_CLIP[::2]
    assert sent(b"") == b""


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (None, "NoneType is no clip; allowed are a path, bytes"),
        (5, "int is no clip"),
        (tone(), "ndarray is no clip; .* a tuple of a NumPy array and its sample rate"),
        ([b"a", b"b"], "list is no clip"),
        (iter([b"a"]), "iterator is no clip"),
        ((tone(), 16_000, 1), "a tuple of 3 is no clip"),
        ((), "a tuple of 0 is no clip"),
    ],
)
def test_what_is_no_clip_is_refused_with_what_would_be_one(wrong: Any, says: str) -> None:
    with pytest.raises(TypeError, match=says):
        prepared(wrong)


# Files


@pytest.mark.parametrize("data", [b"", SMALL_CLIP, LARGE[:SMALL], LARGE[: SMALL + 1], LARGE])
def test_a_file_of_any_size_is_sent_whole_by_its_path_or_open(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "clip.wav"
    path.write_bytes(data)
    assert sent(path) == sent(str(path)) == data
    with path.open("rb") as file:
        assert sent(file) == data
        assert not file.closed
    with path.open("rb", buffering=0) as raw:
        assert sent(raw) == data
    assert sent(io.BytesIO(data)) == data


@pytest.mark.parametrize("data", [SMALL_CLIP, LARGE])
def test_an_open_file_is_sent_from_where_it_stands_each_time(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "clip"
    path.write_bytes(data)

    async def scenario() -> None:
        with path.open("rb") as file:
            file.seek(10)
            audio = await prepare(file)
            assert audio.rewindable
            assert [await read(audio) for _ in range(3)] == [data[10:]] * 3

    asyncio.run(scenario())


def test_a_file_that_stands_at_or_behind_its_end_has_nothing_left(tmp_path: Path) -> None:
    file = io.BytesIO(SMALL_CLIP)
    for place in (len(SMALL_CLIP), 10 * len(SMALL_CLIP)):
        file.seek(place)
        assert sent(file) == b""


def test_a_file_that_gives_less_than_it_is_asked_for_is_sent_whole(tmp_path: Path) -> None:
    class Miser(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            return super().read(min(size or 0, 7) if (size or 0) > 0 else size)

    assert sent(Miser(SMALL_CLIP)) == SMALL_CLIP

    class Lavish(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            return super().read()

    assert sent(Lavish(SMALL_CLIP)) == SMALL_CLIP
    assert sent(Lavish(LARGE)) == LARGE


def test_files_of_old_that_do_not_say_where_they_are_after_a_seek_work(tmp_path: Path) -> None:
    class Silent(io.BytesIO):
        def seek(self, place: int, whence: int = 0, /) -> int:
            super().seek(place, whence)
            return None  # type: ignore[return-value]

    assert sent(Silent(LARGE)) == LARGE
    with tempfile.SpooledTemporaryFile() as spooled:  # what a web framework keeps uploads in
        spooled.write(SMALL_CLIP)
        spooled.seek(0)
        assert sent(spooled) == SMALL_CLIP


def test_a_file_in_text_mode_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    path = tmp_path / "clip"
    path.write_bytes(b"text")
    with path.open() as file, pytest.raises(TypeError, match="open it in binary mode"):
        prepared(file)
    with pytest.raises(TypeError, match="open it in binary mode"):
        prepared(io.StringIO("text"))
    reading, writing = os.pipe()
    with (
        os.fdopen(reading) as pipe,
        os.fdopen(writing, "wb"),  # nobody writes
        pytest.raises(TypeError, match="open it in binary mode"),
    ):
        prepared(pipe)
    with tempfile.SpooledTemporaryFile(mode="w+") as spooled:  # which is no text file to Python
        spooled.write("text")
        spooled.seek(0)
        with pytest.raises(TypeError, match="gives str, not bytes; open it in binary mode"):
            prepared(spooled)


def test_a_file_that_cannot_be_read_raises_what_the_system_says(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nobody\.wav"):
        prepared(tmp_path / "nobody.wav")
    with pytest.raises(IsADirectoryError):
        prepared(tmp_path)
    with socket.socket(socket.AF_UNIX) as unix:
        unix.bind(str(tmp_path / "socket"))
        with pytest.raises(OSError, match="No such device or address"):
            sent(tmp_path / "socket")
    closed = io.BytesIO()
    closed.close()
    with pytest.raises(ValueError, match="closed file"):
        prepared(closed)


@pytest.mark.parametrize("how", ["path", "open"])
def test_a_file_that_grows_is_sent_as_it_was(tmp_path: Path, how: str) -> None:
    path = tmp_path / "clip"
    path.write_bytes(LARGE)

    async def scenario() -> None:
        with path.open("rb") as file:
            audio = await prepare(path if how == "path" else file)
            with path.open("ab") as more:
                more.write(b"more")
            assert await read(audio) == LARGE

    asyncio.run(scenario())


@pytest.mark.parametrize("how", ["path", "open"])
def test_a_file_that_shrinks_while_it_is_sent_is_an_error_that_says_so(
    tmp_path: Path, how: str
) -> None:
    path = tmp_path / "clip"
    path.write_bytes(LARGE)

    async def scenario() -> None:
        with path.open("rb") as file:
            audio = await prepare(path if how == "path" else file)
            os.truncate(path, 1_200_000)
            with pytest.raises(OSError, match="became 80000 bytes shorter while it was being sent"):
                await read(audio)

    asyncio.run(scenario())


def test_a_read_that_was_given_up_does_not_move_the_file_under_the_next_attempt() -> None:
    class Hesitating(io.BytesIO):
        """Waits in the middle of its first read; nothing locks it."""

        hesitates = False
        began, go_on = threading.Event(), threading.Event()

        def read(self, size: int | None = -1, /) -> bytes:
            if self.hesitates:
                Hesitating.hesitates = False
                self.began.set()
                assert self.go_on.wait(PATIENCE)
            return super().read(size)

    async def scenario() -> None:
        audio = await prepare(Hesitating(LARGE))
        Hesitating.hesitates = True
        first = asyncio.ensure_future(read(audio))
        await asyncio.to_thread(Hesitating.began.wait, PATIENCE)
        first.cancel()
        await asyncio.wait({first})
        second = asyncio.ensure_future(read(audio))
        await asyncio.sleep(0)
        Hesitating.go_on.set()
        assert await second == LARGE

    asyncio.run(scenario())


def test_a_read_of_a_large_file_that_is_cancelled_at_any_moment_leaves_no_file_open(
    tmp_path: Path,
) -> None:
    path = tmp_path / "clip"
    path.write_bytes(LARGE)

    async def scenario() -> None:
        audio = await prepare(path)
        for rounds in range(200):
            reading = asyncio.ensure_future(read(audio))
            for _ in range(rounds):
                await asyncio.sleep(0)
            reading.cancel()
            await asyncio.wait({reading})

    asyncio.run(scenario())
    gc.collect()  # a file that was forgotten warns, and warnings are errors
    assert str(path) not in open_files()


def test_a_file_that_opens_while_the_event_loop_ends_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "clip"
    path.write_bytes(LARGE)
    begun, go_on = threading.Event(), threading.Event()
    real = Path.open

    def slowly(self: Path, *args: Any) -> Any:
        begun.set()
        assert go_on.wait(PATIENCE)
        return real(self, *args)

    async def last() -> None:
        try:
            await asyncio.Event().wait()
        finally:  # `asyncio.run` cancels what is left
            go_on.set()

    async def scenario() -> None:
        audio = await prepare(path)
        monkeypatch.setattr(Path, "open", slowly)
        end = asyncio.ensure_future(last())
        reading = asyncio.ensure_future(read(audio))
        await asyncio.to_thread(begun.wait, PATIENCE)
        reading.cancel()
        await asyncio.wait({reading})
        assert not end.done()

    asyncio.run(scenario())
    gc.collect()  # a file that was forgotten warns, and warnings are errors
    assert str(path) not in open_files()


# Names


def test_of_a_name_the_suffix_alone_goes_out(tmp_path: Path) -> None:
    for name, suffix in (
        ("secret patient.g722", ".g722"),
        ("a.tar.GZ", ".GZ"),
        ("noname", ""),
        (".hidden", ""),
        ('a."; x="', ""),
        ("a.ä", ""),
        ("a.waytoolong1", ""),
        ("a.\r\nX-Evil: 1", ""),
    ):
        path = tmp_path / name
        path.write_bytes(SMALL_CLIP)
        assert prepared(path).suffix == suffix
        with path.open("rb") as file:
            assert prepared(file).suffix == suffix
    with os.fdopen(os.open(tmp_path / "noname", os.O_RDONLY), "rb") as numbered:
        assert prepared(numbered).suffix == ""


# Pipes, and what else has no positions


@pytest.mark.process
def test_a_pipe_is_sent_to_its_end_and_only_once(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "import sys; sys.stdout.buffer.write(b'ab' * 700_000)"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout
        audio = prepared(process.stdout)
        assert (audio.size, audio.rewindable) == (None, False)
        assert asyncio.run(read(audio)) == b"ab" * 700_000


@pytest.mark.parametrize("buffering", [-1, 0])
def test_what_a_pipe_has_is_sent_at_once_and_its_reader_may_have_begun(buffering: int) -> None:
    reading, writing = os.pipe()

    async def scenario() -> None:
        with os.fdopen(reading, "rb", buffering=buffering) as pipe:
            os.write(writing, b"head")
            assert pipe.read(2) == b"he"
            audio = await prepare(pipe)
            assert callable(audio.data)
            pieces = audio.data()
            os.write(writing, b"first")
            got = b""
            while got != b"adfirst":
                got += await within(PATIENCE, anext(pieces))
            os.write(writing, b"second")
            assert await within(PATIENCE, anext(pieces)) == b"second"
            assert not asyncio.get_running_loop().remove_reader(pipe.fileno())  # none is left
            os.close(writing)
            assert await anext(pieces, b"end") == b"end"

    asyncio.run(scenario())


@pytest.mark.parametrize("blocking", [True, False])
def test_a_pipe_that_gives_nothing_holds_no_thread(blocking: bool) -> None:
    """So that neither the event loop nor the process waits for it at the end."""
    reading, writing = os.pipe()
    os.set_blocking(reading, blocking)

    async def scenario() -> None:
        with os.fdopen(reading, "rb") as pipe, os.fdopen(writing, "wb"):
            call = asyncio.ensure_future(read(await prepare(pipe)))
            await asyncio.sleep(0.01)
            call.cancel()
            await asyncio.wait({call})
            assert call.cancelled()
            names = [thread.name for thread in threading.enumerate()]
            await within(PATIENCE, asyncio.to_thread(names.clear))

    asyncio.run(scenario())


def test_a_fifo_is_read_whoever_opens_it_first_and_may_be_given_up(tmp_path: Path) -> None:
    fifo = tmp_path / "clip.g722"
    os.mkfifo(fifo)

    async def scenario() -> None:
        audio = await prepare(fifo)
        assert (audio.size, audio.rewindable, audio.suffix) == (None, False, ".g722")
        reading = asyncio.ensure_future(read(audio))
        await asyncio.sleep(0.01)
        assert not reading.done()  # nobody has opened the other end
        await asyncio.to_thread(fifo.write_bytes, LARGE)
        assert await within(PATIENCE, reading) == LARGE

        given_up = asyncio.ensure_future(read(await prepare(fifo)))
        await asyncio.sleep(0.01)
        given_up.cancel()
        await asyncio.wait({given_up})
        with pytest.raises(OSError, match="No such device"):  # nobody reads any more
            os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)

    asyncio.run(scenario())


def test_the_shell_s_names_for_open_files_work(tmp_path: Path) -> None:
    path = tmp_path / "clip"
    path.write_bytes(LARGE)
    with path.open("rb") as file:
        assert sent(f"/dev/fd/{file.fileno()}") == LARGE
    reading, writing = os.pipe()
    os.write(writing, SMALL_CLIP)
    os.close(writing)
    assert sent(f"/dev/fd/{reading}") == SMALL_CLIP
    os.close(reading)


def test_a_device_that_never_ends_is_read_piece_by_piece() -> None:
    async def scenario() -> None:
        audio = await prepare("/dev/zero")
        assert callable(audio.data)
        async with aclosing(audio.data()) as pieces:
            assert [await anext(pieces) for _ in range(3)] == [bytes(CHUNK)] * 3

    asyncio.run(scenario())


def test_other_files_without_positions_are_read_in_threads_that_nothing_waits_for() -> None:
    one, other = socket.socketpair()
    with one, other, one.makefile("rb", buffering=0) as raw, one.makefile("rb") as buffered:
        other.sendall(b"abc")

        async def scenario() -> None:
            for file in (raw, buffered):
                audio = await prepare(file)  # type: ignore[arg-type]
                assert callable(audio.data)
                pieces = audio.data()
                other.sendall(b"def")
                assert await within(PATIENCE, anext(pieces))
                waiting = asyncio.ensure_future(anext(pieces))
                await asyncio.sleep(0.01)
                waiting.cancel()
                await asyncio.wait({waiting})
                assert waiting.cancelled()
                other.sendall(b"ghi")  # for the thread that still waits

        asyncio.run(scenario())


def test_a_class_of_the_caller_s_needs_no_more_than_read() -> None:
    class Bare:
        def __init__(self) -> None:
            self._left = io.BytesIO(LARGE)

        def read(self, size: int) -> bytes:
            return self._left.read(size)

    class Buffered(io.BufferedIOBase):  # whose read1 says that it is not supported
        def __init__(self) -> None:
            self._left = io.BytesIO(LARGE)

        def read(self, size: int | None = -1, /) -> bytes:
            return self._left.read(size)

    class Unpacked(io.RawIOBase):  # it takes one, and cannot rewind it
        def __init__(self) -> None:
            self._left = gzip.GzipFile(fileobj=io.BytesIO(gzip.compress(LARGE)))

        def readable(self) -> bool:
            return True

        def readinto(self, buffer: Any, /) -> int:
            return self._left.readinto(buffer)

    class Broken(Bare):
        def read(self, size: int) -> bytes:
            raise OSError("the disk is gone")

    for source in (Bare(), Buffered(), Unpacked()):
        assert sent(source) == LARGE
    with pytest.raises(OSError, match="the disk is gone"):
        sent(Broken())


def test_a_class_of_the_caller_s_whose_pieces_end_unsaid_holds_up_nobody() -> None:
    class Spent:
        def __init__(self) -> None:
            self._pieces = iter([b"a"])

        def read(self, size: int) -> bytes:
            return next(self._pieces)

    with pytest.raises(RuntimeError, match="it raised StopIteration"):
        sent(Spent())


# Asynchronous streams


def test_a_stream_is_sent_once_without_its_empty_pieces() -> None:
    audio = prepared(stream(b"a", b"", bytearray(b"b"), memoryview(b"c"), b""))
    assert (audio.size, audio.rewindable, audio.seconds) == (None, False, None)
    assert asyncio.run(read(audio)) == b"abc"
    assert sent(stream()) == b""


@pytest.mark.parametrize("piece", ["text", 5, None, [b"a"]])
def test_a_stream_of_anything_but_bytes_says_what_it_gave(piece: Any) -> None:
    with pytest.raises(TypeError, match=f"gives {type(piece).__name__}, not bytes"):
        sent(stream(b"a", piece))


def test_what_a_stream_raises_comes_out_as_it_is() -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield b"a"
        raise ZeroDivisionError("of the caller's")

    with pytest.raises(ZeroDivisionError, match="of the caller's"):
        sent(broken())


def test_an_asyncio_reader_is_not_read_by_lines() -> None:
    """Which it limits to 64 KiB, and a second of silence has none."""
    quiet = wav_file(silence(10))

    async def scenario() -> None:
        reader = asyncio.StreamReader()
        reader.feed_data(quiet)
        reader.feed_eof()
        assert await read(await prepare(reader)) == quiet

    asyncio.run(scenario())


def test_an_upload_of_a_web_framework_is_a_clip() -> None:
    from starlette.datastructures import UploadFile

    async def scenario() -> None:
        with tempfile.SpooledTemporaryFile() as kept:
            kept.write(LARGE)
            kept.seek(0)
            audio = await prepare(UploadFile(kept, filename="x"))  # type: ignore[arg-type]
            assert await read(audio) == LARGE

    asyncio.run(scenario())


# How long a clip is


@pytest.mark.parametrize("rate", [8000, 48_000])
def test_of_a_wav_file_the_length_is_known_before_it_is_sent(rate: int) -> None:
    samples = np.zeros((rate * 3, 2), np.int16)
    assert prepared((samples, rate)).seconds == 3
    assert prepared(wav_file(tone(1.5, rate=rate), rate)).seconds == 1.5


def test_of_others_it_is_not_and_only_guessed_for_the_spreading_of_work() -> None:
    for clip in (encoded("mp3", 5.0), encoded("ogg-opus", 5.0), encoded("flac", 5.0)):
        audio = prepared(clip)
        assert audio.seconds is None
        assert audio.work > 1
    assert prepared(stream(b"")).seconds is None
    assert prepared(stream(b"")).work > 1


def test_the_header_of_a_wav_file_that_did_not_know_its_length_is_not_believed() -> None:
    clip = bytearray(wav_file(tone(2.0)))
    for unknown in (0, 0xFFFF_FFFF):
        clip[40:44] = unknown.to_bytes(4, "little")
        assert seconds_of(bytes(clip[:256]), len(clip)) == 2.0
    clip[40:44] = (16_000).to_bytes(4, "little")  # and then other chunks
    assert seconds_of(bytes(clip[:256]), len(clip)) == 0.5


@given(
    head=st.binary(max_size=300) | st.binary(max_size=60).map(lambda more: b"RIFF" + more),
    size=st.integers(0, 2**40),
)
def test_no_header_breaks_the_guess(head: bytes, size: int) -> None:
    seconds = seconds_of(head, size)
    assert seconds is None or 0 <= seconds <= size


# To a server


@pytest.mark.parametrize(
    "how", ["bytes", "path", "large path", "open", "stream", "pipe", "array", "reader"]
)
def test_what_the_server_gets_is_the_clip(scripted: Scripted, tmp_path: Path, how: str) -> None:
    server = scripted()
    path = tmp_path / "clip.wav"

    async def make() -> tuple[Any, bytes]:
        if how in ("path", "large path"):
            path.write_bytes(SMALL_CLIP if how == "path" else LARGE)
            return path, path.read_bytes()
        if how == "open":
            path.write_bytes(LARGE)
            return path.open("rb"), LARGE
        if how == "stream":
            return stream(LARGE[:500_000], LARGE[500_000:]), LARGE
        if how == "pipe":
            os.mkfifo(path)
            threading.Thread(target=path.write_bytes, args=(LARGE,)).start()
            return path, LARGE
        if how == "array":
            return (tone(), 16_000), wav(tone(), 16_000)
        if how == "reader":
            reader = asyncio.StreamReader()
            reader.feed_data(LARGE)
            reader.feed_eof()
            return reader, LARGE
        return SMALL_CLIP, SMALL_CLIP

    async def scenario() -> None:
        source, expected = await make()
        async with STTClient(server.url) as stt:
            await stt.transcribe(source, language="de", prompt="Grüße\r\nzwei", task="translate")
        if how == "open":
            source.close()
        (asked,) = server.asked
        assert asked.parts["audio"] == expected
        assert asked.parts["language"] == b"de"
        assert asked.parts["prompt"].decode() == "Grüße\r\nzwei"
        assert asked.parts["task"] == b"translate"
        known = how not in ("stream", "pipe", "reader")
        assert ("content-length" in asked.headers) is known

    asyncio.run(scenario())


@pytest.mark.parametrize("how", ["path", "fifo"])
@pytest.mark.parametrize("end", ["answered", "broken", "late"])
def test_what_was_opened_is_closed_when_the_call_ends_wherever_it_had_come_to(
    tmp_path: Path, how: str, end: str
) -> None:
    path = tmp_path / "clip"
    if how == "path":
        path.write_bytes(LARGE)
    else:
        os.mkfifo(path)
    seen: list[bool] = []

    class Half(httpx2.AsyncBaseTransport):
        """Takes the beginning of the clip, and no more."""

        async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
            pieces = aiter(cast(httpx2.AsyncByteStream, request.stream))
            while len(piece := await anext(pieces)) < 1000:
                pass
            assert piece in LARGE
            seen.append(str(path) in open_files())
            if end == "broken":
                raise httpx2.WriteError("gone")
            if end == "late":
                await asyncio.Event().wait()
            return httpx2.Response(200, json=answer_of_fallback())

    async def scenario() -> None:
        writing = threading.Thread(target=write, daemon=True)
        if how == "fifo":
            writing.start()
        async with STTClient("http://primary", transport=Half()) as stt:
            call = stt.transcribe(path, deadline=1 if end == "late" else 20)
            if end == "answered":
                await call
            else:
                with pytest.raises(STTError):
                    await call
            assert asyncio.all_tasks() == {asyncio.current_task()}
        if how == "fifo":
            # Who writes has it open as well, until nobody reads any more.
            await asyncio.to_thread(writing.join, 10)
        assert str(path) not in open_files()

    def write() -> None:
        with suppress(BrokenPipeError):
            path.write_bytes(LARGE)

    asyncio.run(scenario())
    assert seen == [True]
