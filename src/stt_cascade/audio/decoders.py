"""Warm processes that decode, so that no caller's bytes reach FFmpeg in the service's own process.

A process that dies or overstays is replaced, and its file refused. It is plain `subprocess` and one
socket: the pools of `multiprocessing` and of libraries above it unpickle what a worker sends, which
would hand the service to whoever takes over a worker, and share one pipe, which a dying worker
leaves torn.
"""

from __future__ import annotations

import os
import queue
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import IO

import numpy as np
import structlog

from stt_cascade.audio.child import (
    BROKEN,
    CPU_SECONDS,
    DECODED_SECONDS_PER_CPU_SECOND,
    READY,
    REPLY,
    REQUEST,
    SAMPLES,
    TOO_LONG,
)
from stt_cascade.audio.decode import Decoded
from stt_cascade.engine.protocol import SAMPLE_RATE, Samples
from stt_cascade.errors import AudioTooLong, InvalidAudio

log = structlog.get_logger("stt.decoders")

START_SECONDS = 60.0
# A process that is allowed a second of processor time may have to share the processor.
WALL_PER_CPU = 4
MAX_SENTENCE = 2000  # bytes of an error's message
MAX_SAID = 16 * 1024  # bytes of what one process writes to stderr that are logged
# What a child may know of the environment: where libraries are, and how they compute.
PASSED_ON = ("LD_LIBRARY_PATH", "LANG", "LC_ALL", "OMP_", "OPENBLAS_")


class Decoders:
    """So many warm decoding processes, for threads to share. Started by `start` or the first use.

    Args:
        size: processes.
        niceness: added to theirs: they decode when nobody else wants the processor.
    """

    def __init__(self, size: int, niceness: int = 0) -> None:
        self._size = size
        self._niceness = niceness
        self._idle: queue.SimpleQueue[_Process | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._started = False
        self._closed = threading.Event()

    def start(self) -> None:
        """Start the processes, and wait until one is ready.

        Raises:
            OSError: none can be started.
        """
        with self._lock:
            if self._started:
                return
            self._stand_by(_Process(self._niceness))
            self._started = True
            for _ in range(self._size - 1):
                self._replace()

    def decode(self, data: bytes, *, raw_g722: bool = False, max_seconds: float) -> Decoded:
        """`decode.read` in one of the processes; blocks while none is free.

        Raises:
            InvalidAudio, AudioTooLong: as `decode.read`; also if the file killed the process, or
                took it too long.
            OSError: no process can be started.
            RuntimeError: they are closed.
        """
        self.start()
        process = self._living()
        try:
            kind, whole, start, payload = process.exchange(data, raw_g722, max_seconds)
        except BaseException as error:
            # What it still sends would be taken for the answer to the next file.
            process.close()
            self._replace()
            if not isinstance(error, _Lost):
                raise
            log.warning("a file ended its decoder", size=len(data), reason=str(error))
            raise InvalidAudio(f"the audio cannot be decoded: {error}") from None
        self._stand_by(process)
        return Decoded(_samples(kind, payload), start, whole)

    def close(self) -> None:
        """End the processes that are idle, and the others as soon as they are."""
        self._closed.set()
        with suppress(queue.Empty):
            while True:
                if (process := self._idle.get_nowait()) is not None:
                    process.close()
        self._idle.put(None)

    def _living(self) -> _Process:
        """An idle process. One that was killed while it had nothing to do is no file's fault."""
        while (process := self._idle.get()) is not None:
            if not process.gone:
                return process
            log.warning("an idle decoder was gone")
            process.close()
            self._replace()
        self._idle.put(None)  # for the next one that waits
        raise RuntimeError("the decoders are closed")

    def _stand_by(self, process: _Process) -> None:
        self._idle.put(process)
        if self._closed.is_set():
            self.close()

    def _replace(self) -> None:
        # The caller whose file it was need not wait for it.
        threading.Thread(target=self._start_one, name="start-decoder", daemon=True).start()

    def _start_one(self) -> None:
        while not self._closed.is_set():
            try:
                self._stand_by(_Process(self._niceness))
            except OSError as error:
                log.error("a decoder cannot be started", reason=str(error))
                self._closed.wait(1.0)
            else:
                return


def longest_seconds(max_seconds: float) -> float:
    """Seconds after which a file's process is ended, whatever it does."""
    return WALL_PER_CPU * (CPU_SECONDS + max_seconds / DECODED_SECONDS_PER_CPU_SECOND)


class _Lost(Exception):
    """The process is gone, or must be ended; the message says why, for the caller."""


class _Process:
    """One child, ready to decode.

    Raises:
        OSError: it cannot be started.
    """

    def __init__(self, niceness: int) -> None:
        self._socket, theirs = socket.socketpair()
        with theirs:
            self._child = _popen(theirs.fileno(), niceness)
        try:
            if self._receive(len(READY), time.monotonic() + START_SECONDS) != READY:
                raise OSError("it did not say that it is ready")
        except (_Lost, OSError) as error:
            self.close()
            raise OSError(f"the decoding process did not start: {error}") from error

    @property
    def gone(self) -> bool:
        return self._child.poll() is not None

    def exchange(
        self, data: bytes, raw_g722: bool, max_seconds: float
    ) -> tuple[int, bool, float, bytearray]:
        """The whole answer to a file: what `child.REPLY` has, and what comes with it.

        Raises:
            _Lost: there is none. After this or anything else it must not be asked again.
        """
        ends = time.monotonic() + longest_seconds(max_seconds)
        try:
            self._socket.settimeout(_left(ends))
            self._socket.sendall(REQUEST.pack(len(data), raw_g722, max_seconds))
            self._socket.sendall(data)
            kind, whole, start, size = REPLY.unpack(self._receive(REPLY.size, ends))
            longest = (max_seconds + 1) * SAMPLE_RATE * 4 if kind == SAMPLES else MAX_SENTENCE
            if size > longest or kind > BROKEN or not 0 <= start <= max_seconds:
                raise _Lost("its decoder gave an answer of an unknown form")
            return kind, whole, start, self._receive(size, ends)
        except TimeoutError:
            raise _Lost("it takes too long") from None
        except OSError as error:
            raise _Lost(self._end_of(error)) from None

    def _receive(self, size: int, ends: float) -> bytearray:
        received = bytearray(size)
        view = memoryview(received)
        while view:
            # For all of it: a process that was taken over may send one byte now and then.
            self._socket.settimeout(_left(ends))
            count = self._socket.recv_into(view)
            if not count:
                raise _Lost(self._end_of(None))
            view = view[count:]
        return received

    def _end_of(self, error: OSError | None) -> str:
        """Why the child is not there any more."""
        with suppress(subprocess.TimeoutExpired):
            status = self._child.wait(1.0)
            if status == -signal.SIGXCPU:
                return "it takes too much processor time"
            return f"its decoder ended with status {status}"
        return f"its decoder broke off: {error}"

    def close(self) -> None:
        self._socket.close()
        self._child.kill()
        self._child.wait()


def _log_what_it_says(stderr: IO[bytes]) -> None:
    """Log a child's stderr, of which a file that has taken it over may write any amount."""
    said = 0
    with stderr:
        while line := stderr.readline(MAX_SENTENCE):
            if said < MAX_SAID:
                log.warning("a decoder says", text=line.decode("utf-8", "replace").rstrip())
            said += len(line)


def _samples(kind: int, payload: bytearray) -> Samples:
    """What an answer says; raises as `Decoders.decode` what it has instead of samples."""
    if kind == SAMPLES:
        return np.frombuffer(payload, np.float32)
    message = payload.decode("utf-8", "replace")
    if kind == TOO_LONG:
        raise AudioTooLong(message)
    if kind == BROKEN:
        log.error("decoding failed in an unexpected way", reason=message)
        message = "the audio cannot be decoded"
    raise InvalidAudio(message)


def _left(ends: float) -> float:
    """Seconds until then.

    Raises:
        TimeoutError: it has come.
    """
    left = ends - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def _popen(descriptor: int, niceness: int) -> subprocess.Popen[bytes]:
    known = {name: value for name, value in os.environ.items() if name.startswith(PASSED_ON)}
    path = os.pathsep.join(str(Path(entry).resolve()) for entry in sys.path if entry)
    # It is gone before the child has begun, which may have no other: nothing can be made in it.
    with tempfile.TemporaryDirectory(prefix="stt-decoder-") as empty:
        child = subprocess.Popen(
            [sys.executable, "-m", "stt_cascade.audio.child", str(descriptor), str(niceness)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            pass_fds=[descriptor],
            cwd=empty,
            env={**known, "PYTHONPATH": path},
        )
    # Not the service's own stderr, which may be full: a write to it would hold up the decode.
    threading.Thread(
        target=_log_what_it_says, args=(child.stderr,), name="decoder-log", daemon=True
    ).start()
    return child
