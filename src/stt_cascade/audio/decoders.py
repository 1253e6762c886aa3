"""Warm processes that decode, so that no caller's bytes reach FFmpeg in the service's own process.

A process that dies or overstays is replaced, and its file refused. It is plain `subprocess` and one
socket: the pools of `multiprocessing` and of libraries above it unpickle what a worker sends, which
would hand the service to whoever takes over a worker, and share one pipe, which a dying worker
leaves torn.
"""

from __future__ import annotations

import math
import mmap
import os
import queue
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
import psutil
import structlog

from stt_cascade.audio.child import (
    BROKEN,
    CPU_SECONDS,
    DECODED_SECONDS_PER_CPU_SECOND,
    GIVEN_UP,
    LIMITED,
    NO_MEMORY,
    READY,
    REPLY,
    REQUEST,
    SAMPLES,
    TOO_LONG,
    TOO_SLOW,
    UNWANTED,
    limits,
    measured,
)
from stt_cascade.audio.decode import Decoded
from stt_cascade.engine.protocol import SAMPLE_RATE, Samples
from stt_cascade.errors import AudioTooLong, Internal, InvalidAudio

log = structlog.get_logger("stt.decoders")

START_SECONDS = 60.0
# A process that is allowed a second of processor time may have to share the processor.
WALL_PER_CPU = 4
# With little processor time allowed, wait relatively longer: ending a process costs a new one.
QUICK_WALL_PER_CPU = 8
MAX_SENTENCE = 2000  # bytes of an error's message
MAX_SAID = 16 * 1024  # bytes of what one process writes to stderr that are logged
KINDS = (*range(GIVEN_UP + 1), LIMITED)
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

    def decode(
        self,
        data: bytes,
        *,
        raw_g722: bool = False,
        max_seconds: float,
        cpu_seconds: float = math.inf,
        interest: Interest | None = None,
    ) -> Decoded:
        """`decode.read` in one of the processes; blocks while none is free.

        Args:
            cpu_seconds: processor time after which it is `TooSlow`.
            interest: whether somebody still waits for it.

        Raises:
            InvalidAudio, AudioTooLong: as `decode.read`; also if the file killed the process, or
                took it too long.
            Internal: a limit that this process was started under did not leave enough for it.
            TooSlow: it takes more processor time than it was given.
            GivenUp: nobody waits for it any more.
            OSError: no process can be started.
            RuntimeError: they are closed.
        """
        self.start()
        process = self._living()
        try:
            with (interest or Interest()).told_to(process):
                reply = process.exchange(data, raw_g722, max_seconds, cpu_seconds)
        except BaseException as error:
            # What it still sends would be taken for the answer to the next file.
            process.close()
            self._replace()
            if isinstance(error, _Overdue) and cpu_seconds < math.inf:
                raise TooSlow from None
            if not isinstance(error, _Lost):
                raise
            log.warning("a file ended its decoder", size=len(data), reason=str(error))
            if process.low_limits:
                raise _limited(process.low_limits, str(error)) from None
            raise InvalidAudio(f"the audio cannot be decoded: {error}") from None
        if process.worn:
            process.close()
            self._replace()
        else:
            self._stand_by(process)
        if reply.kind == NO_MEMORY and process.low_limits:
            raise _limited(process.low_limits, reply.payload.decode("utf-8", "replace"))
        return Decoded(_samples(reply.kind, reply.payload), reply.start, reply.whole)

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


class TooSlow(Exception):
    """A file takes more processor time than it was given."""


class GivenUp(Exception):
    """Nobody waits for a file any more, and it is not decoded."""


class Interest:
    """Whether somebody waits for a file: to be lost, from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: _Process | None = None
        self._lost = False

    def lose(self) -> None:
        """Nobody does any more: its decoding ends soon."""
        with self._lock:
            self._lost = True
            if self._process is not None:
                self._process.give_up()

    @contextmanager
    def told_to(self, process: _Process) -> Iterator[None]:
        """Within it, the process is working on that file."""
        with self._lock:
            self._process = process
            process.begin()
            if self._lost:
                process.give_up()
        try:
            yield
        finally:
            with self._lock:
                self._process = None


class _Lost(Exception):
    """The process is gone, or must be ended; the message says why, for the caller."""


class _Reply(NamedTuple):
    """What `child.REPLY` has, and what comes with it."""

    kind: int
    whole: bool
    start: float
    payload: bytearray


class _Overdue(_Lost):
    """It would have to be waited for too long."""


class _Process:
    """One child, ready to decode.

    Attributes:
        low_limits: which limits may be too low for the last file; empty: none.

    Raises:
        OSError: it cannot be started.
    """

    def __init__(self, niceness: int) -> None:
        self.low_limits = ""
        self._number = 0
        self._socket, theirs = socket.socketpair()
        shared = os.memfd_create("stt-decoder")
        try:
            os.truncate(shared, UNWANTED.size)
            self._unwanted = mmap.mmap(shared, UNWANTED.size)
            with theirs:
                self._child = _popen(theirs.fileno(), shared, niceness)
        finally:
            os.close(shared)
        try:
            # Not the service's own stderr, which may be full: a write would hold up the decode.
            threading.Thread(
                target=_log_what_it_says,
                args=(self._child.stderr,),
                name="decoder-log",
                daemon=True,
            ).start()
            if self._receive(len(READY), time.monotonic() + START_SECONDS) != READY:
                raise OSError("it did not say that it is ready")
        except (_Lost, OSError, RuntimeError) as error:  # the last one: no thread can be started
            self.close()
            message = f"the decoding process did not start: {error}"
            if low := [f"{name} is {measured(name, limit)}" for name, limit in limits().items()]:
                message += f"; a limit of this service may be too low: {', '.join(low)}"
            raise OSError(message) from error

    @property
    def gone(self) -> bool:
        return self._child.poll() is not None

    @property
    def worn(self) -> bool:
        """Whether it has used half the processor time that a limit leaves to a process."""
        if (most := limits().get("RLIMIT_CPU")) is None:
            return False
        with suppress(psutil.NoSuchProcess):
            used = psutil.Process(self._child.pid).cpu_times()
            return bool(used.user + used.system > most / 2)
        return True

    def begin(self) -> None:
        """Another file comes next."""
        self._number += 1

    def give_up(self) -> None:
        """The file is not wanted any more: its answer may be `GIVEN_UP`."""
        UNWANTED.pack_into(self._unwanted, 0, self._number)

    def exchange(
        self, data: bytes, raw_g722: bool, max_seconds: float, cpu_seconds: float
    ) -> _Reply:
        """The whole answer to a file.

        Raises:
            _Lost: there is none. After this or anything else it must not be asked again.
        """
        longest = min(longest_seconds(max_seconds), QUICK_WALL_PER_CPU * cpu_seconds)
        ends = time.monotonic() + longest
        header = REQUEST.pack(self._number, len(data), raw_g722, max_seconds, cpu_seconds)
        try:
            self._socket.settimeout(_left(ends))
            self._socket.sendall(header)
            self._socket.sendall(data)
            self.low_limits = ""
            reply = self._reply(max_seconds, ends)
            if reply.kind == LIMITED:
                self.low_limits = reply.payload.decode("utf-8", "replace")
                reply = self._reply(max_seconds, ends)
            if reply.kind == LIMITED:
                self.low_limits = ""  # it says what no decoder of ours does
                raise _Lost("its decoder gave an answer of an unknown form")
            return reply
        except TimeoutError:
            raise _Overdue("it takes too long") from None
        except OSError as error:
            raise _Lost(self._end_of(error)) from None

    def _reply(self, max_seconds: float, ends: float) -> _Reply:
        kind, whole, start, size = REPLY.unpack(self._receive(REPLY.size, ends))
        longest = (max_seconds + 1) * SAMPLE_RATE * 4 if kind == SAMPLES else MAX_SENTENCE
        if size > longest or kind not in KINDS or not 0 <= start <= max_seconds:
            raise _Lost("its decoder gave an answer of an unknown form")
        return _Reply(kind, whole, start, self._receive(size, ends))

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
        self._unwanted.close()
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


def _limited(limits: str, why: str) -> Internal:
    """The error for a file that a limit keeps from being decoded, which the log names too."""
    log.error("a limit of this service keeps it from decoding a file", limits=limits, reason=why)
    return Internal(f"the service cannot decode this file, because of a limit of its own: {limits}")


def _samples(kind: int, payload: bytearray) -> Samples:
    """What an answer says; raises as `Decoders.decode` what it has instead of samples."""
    if kind == SAMPLES:
        return np.frombuffer(payload, np.float32)
    if kind == TOO_SLOW:
        raise TooSlow
    if kind == GIVEN_UP:
        raise GivenUp
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


def _popen(descriptor: int, shared: int, niceness: int) -> subprocess.Popen[bytes]:
    given = (descriptor, shared, niceness)
    known = {name: value for name, value in os.environ.items() if name.startswith(PASSED_ON)}
    path = os.pathsep.join(str(Path(entry).resolve()) for entry in sys.path if entry)
    # It is gone before the child has begun, which may have no other: nothing can be made in it.
    with tempfile.TemporaryDirectory(prefix="stt-decoder-") as empty:
        return subprocess.Popen(
            [sys.executable, "-m", "stt_cascade.audio.child", *map(str, given)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            pass_fds=[descriptor, shared],
            cwd=empty,
            env={**known, "PYTHONPATH": path},
        )
