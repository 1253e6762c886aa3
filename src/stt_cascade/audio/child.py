"""The process that decodes: a caller's bytes meet FFmpeg here, and nowhere else.

It is started by `decoders.py`, speaks with it over one socket, and can do little else: after its
imports it may open no file and no socket, write no file, and use no more memory and processor time
than a decode needs. What it sends back is raw samples or a sentence, never an object to unpickle.

Limits that the service was started under hold for it too: it takes the lower one of each, and says
before it decodes which of them may be too low.
"""

from __future__ import annotations

import ctypes
import io
import math
import mmap
import os
import resource
import signal
import socket
import struct
import sys
import time
import wave
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np

from stt_cascade.audio.decode import read
from stt_cascade.engine.protocol import SAMPLE_RATE
from stt_cascade.errors import AudioTooLong, InvalidAudio

# What the service sends before the file: its number, not 0, its size in bytes, raw G.722 or not,
# seconds of audio allowed, and of processor time.
REQUEST = struct.Struct("<QQ?dd")
# In memory that both share: the number of the file that the service does not want any more.
UNWANTED = struct.Struct("<Q")
# What it gets before samples (float32) or a sentence (UTF-8): which of the two, whether the samples
# are all of the file's, when they begin, in seconds, and the size in bytes.
REPLY = struct.Struct("<B?dQ")
SAMPLES, INVALID, TOO_LONG, BROKEN, NO_MEMORY, TOO_SLOW, GIVEN_UP = range(7)
# Before the reply, where limits are low: a sentence that names them.
LIMITED = 255
READY = b"ready"

# For one file, beyond what its decoded length explains.
CPU_SECONDS = 3
MEMORY_BYTES = 256 * 1024 * 1024
# For one allocation. A tag may claim any length, and FFmpeg zeroes as much before it looks whether
# the file has it: gigabytes, where hours of audio are allowed.
PIECE_BYTES = 64 * 1024 * 1024
# Decoding runs at some hundred times real time; a slow machine gets a tenth of that.
DECODED_SECONDS_PER_CPU_SECOND = 60
# The blocks of a decode, all of them in one, and FFmpeg's own.
COPIES = 3
LIMITS = ("RLIMIT_AS", "RLIMIT_DATA", "RLIMIT_CPU")
_PR_SET_NO_NEW_PRIVS = 38


class _Ended(Exception):
    """The decoding ends without a result; `kind` says why."""

    def __init__(self, kind: int) -> None:
        super().__init__()
        self.kind = kind


def main(descriptor: int, shared: int, niceness: int) -> None:
    """Decode what comes over the socket until it closes."""
    service = socket.socket(fileno=descriptor)
    for number in (signal.SIGINT, signal.SIGHUP):
        # A terminal sends them to all its processes; the service ends this one when it has to.
        signal.signal(number, signal.SIG_IGN)
    unwanted = mmap.mmap(shared, UNWANTED.size, prot=mmap.PROT_READ)
    os.close(shared)
    os.nice(niceness)
    allowed = limits()
    _warm_up()
    memory = os.open("/proc/self/statm", os.O_RDONLY)
    libc, ffmpeg = ctypes.CDLL(None, use_errno=True), _ffmpeg()
    _confine(libc)
    service.sendall(READY)
    while header := _receive(service, REQUEST.size):
        number, size, raw_g722, max_seconds, cpu_seconds = REQUEST.unpack(header)
        total, *_, data, _ = map(int, os.pread(memory, 128, 0).split())
        page = resource.getpagesize()
        low = _limit(total * page, data * page, size, max_seconds, allowed)
        if low:
            service.sendall(REPLY.pack(LIMITED, True, 0.0, len(low)) + low.encode())
        ffmpeg.av_max_alloc(ctypes.c_size_t(PIECE_BYTES + size))
        between = partial(_look, unwanted, number, time.process_time() + cpu_seconds)
        head, payload = _answer(_receive(service, size), raw_g722, max_seconds, between)
        service.sendall(REPLY.pack(*head, len(payload)))
        service.sendall(payload)
        del payload
        libc.malloc_trim(0)  # the next clip does not need what a long one took


def _look(unwanted: mmap.mmap, number: int, ends: float) -> None:
    """Whether to go on with a file.

    Raises:
        _Ended: it is not wanted any more, or takes too long.
    """
    if UNWANTED.unpack_from(unwanted)[0] == number:
        raise _Ended(GIVEN_UP)
    if time.process_time() > ends:
        raise _Ended(TOO_SLOW)


def _answer(
    data: bytes, raw_g722: bool, max_seconds: float, between: Callable[[], None]
) -> tuple[tuple[int, bool, float], bytes | memoryview]:
    try:
        decoded = read(data, raw_g722=raw_g722, max_seconds=max_seconds, between=between)
    except _Ended as ended:
        return (ended.kind, True, 0.0), b""
    except InvalidAudio as error:
        return (INVALID, True, 0.0), error.message.encode()
    except AudioTooLong as error:
        return (TOO_LONG, True, 0.0), error.message.encode()
    except MemoryError:
        message = b"decoding it needs more memory than a file of its length may take"
        return (NO_MEMORY, True, 0.0), message
    except Exception as error:  # noqa: BLE001  # whatever a file made of FFmpeg, it is the file's
        return (BROKEN, True, 0.0), f"{type(error).__name__}: {error}".encode()
    return (SAMPLES, decoded.whole, decoded.start), decoded.samples.data.cast("B")


def _receive(service: socket.socket, size: int) -> bytes:
    """Exactly `size` bytes; empty if the service has closed the socket."""
    received = bytearray()
    while len(received) < size:
        chunk = service.recv(min(size - len(received), 1 << 20))
        if not chunk:
            return b""
        received += chunk
    return bytes(received)


def _warm_up() -> None:
    """Load what the first decode would load, while files may still be opened."""
    file = io.BytesIO()
    with wave.open(file, "wb") as clip:
        clip.setnchannels(1)
        clip.setsampwidth(2)
        clip.setframerate(SAMPLE_RATE // 2)
        clip.writeframes(bytes(SAMPLE_RATE))
    read(file.getvalue(), max_seconds=10)


def _ffmpeg() -> ctypes.CDLL:
    """FFmpeg's allocator: the library that PyAV has loaded, wherever that is."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        if "/libavutil" in line:
            return ctypes.CDLL(line.split(maxsplit=5)[5])
    raise OSError("PyAV comes without FFmpeg's libavutil as a library of its own")


def _confine(libc: ctypes.CDLL) -> None:
    """Give up what decoding does not need, for good."""
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "the process cannot give up gaining privileges")
    for limit in (resource.RLIMIT_NOFILE, resource.RLIMIT_FSIZE, resource.RLIMIT_CORE):
        # What is open stays open.
        resource.setrlimit(limit, (0, 0))


def limits() -> dict[str, int]:
    """The limits that a decode may meet, by name; only those that are set."""
    found = {name: resource.getrlimit(getattr(resource, name))[0] for name in LIMITS}
    return {name: limit for name, limit in found.items() if limit != resource.RLIM_INFINITY}


def _limit(total: int, data: int, size: int, max_seconds: float, allowed: dict[str, int]) -> str:
    """Allow the next file what a file of that size and decoded length may cost.

    Args:
        total, data: bytes of address space and of data that the process has already.
        allowed: what it may have at most.

    Returns:
        Which limits are lower than that; empty: none.
    """
    audio = int(max_seconds * SAMPLE_RATE * np.dtype(np.float32).itemsize)
    memory = MEMORY_BYTES + 2 * size + COPIES * audio
    seconds = CPU_SECONDS + max_seconds / DECODED_SECONDS_PER_CPU_SECOND
    wanted = {
        "RLIMIT_AS": total + memory,
        "RLIMIT_DATA": data + memory,
        "RLIMIT_CPU": math.ceil(time.process_time() + seconds),
    }
    for name in ("RLIMIT_AS", "RLIMIT_CPU"):
        limit, most = getattr(resource, name), min(wanted[name], allowed.get(name, wanted[name]))
        resource.setrlimit(limit, (most, resource.getrlimit(limit)[1]))
    return ", ".join(
        f"{name} is {measured(name, allowed[name])}, and it may need {measured(name, most)}"
        for name, most in wanted.items()
        if allowed.get(name, most) < most
    )


def measured(name: str, limit: int) -> str:
    """A limit as people read it."""
    return f"{limit} s" if name == "RLIMIT_CPU" else f"{limit >> 20} MiB"


if __name__ == "__main__":
    with suppress(ConnectionError):  # the service has ended, and nobody needs to be told
        main(*map(int, sys.argv[1:4]))
