"""The decoding processes: what they may do, and what becomes of a file that ends one."""

from __future__ import annotations

import fcntl
import json
import math
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import termios
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from structlog.testing import capture_logs

from fakes import PATIENCE
from faults.files import long_opus
from running import until
from stt_cascade.audio import decoders as module
from stt_cascade.audio.child import BROKEN, LIMITED, NO_MEMORY, REPLY, SAMPLES
from stt_cascade.audio.decode import Decoded, decode
from stt_cascade.audio.decoders import Decoders, GivenUp, Interest, TooSlow
from stt_cascade.errors import AudioTooLong, Internal, InvalidAudio
from tones import CONTAINERS, encoded, pitch, silence, tone, wav


@pytest.fixture
def decoders() -> Iterator[Decoders]:
    """One process, so that a test knows which one it talks to."""
    one = Decoders(1)
    one.start()
    yield one
    one.close()


def idle(decoders: Decoders) -> module._Process:
    """The process that is idle now, taken away."""
    process = decoders._idle.get(timeout=PATIENCE)
    assert process is not None
    return process


def pid(decoders: Decoders) -> int:
    """The process that is idle now."""
    process = idle(decoders)
    decoders._idle.put(process)
    return process._child.pid


@contextmanager
def in_the_middle_of_a_file(decoders: Decoders) -> Iterator[tuple[int, Future[Decoded]]]:
    """The process, which has a file and stands still, and the caller who waits for it."""
    process = idle(decoders)
    victim = process._child.pid
    os.kill(victim, signal.SIGSTOP)
    decoders._idle.put(process)
    with ThreadPoolExecutor(1) as caller:
        answer = caller.submit(decoders.decode, wav(tone(1.0)), max_seconds=10)
        until(lambda: unread(process._socket) > 0, "it has been given the file")
        yield victim, answer


def unread(connection: socket.socket) -> int:
    """Bytes that the other side has still to take."""
    return int.from_bytes(fcntl.ioctl(connection, termios.TIOCOUTQ, bytes(4)), sys.byteorder)


def gone(process: int) -> bool:
    return not Path(f"/proc/{process}").exists()


@pytest.mark.parametrize("name", CONTAINERS)
def test_a_confined_process_decodes_what_this_one_does(decoders: Decoders, name: str) -> None:
    data, raw = encoded(name, 1.7, 600), name == "g722"
    ours = decoders.decode(data, raw_g722=raw, max_seconds=10).samples
    assert np.array_equal(ours, decode(data, raw_g722=raw, max_seconds=10))


def test_its_errors_are_those_of_the_decoder(decoders: Decoders) -> None:
    before = pid(decoders)
    with pytest.raises(InvalidAudio, match="not an audio file of a supported format"):
        decoders.decode(b"ffconcat version 1.0\nfile /etc/passwd\n", max_seconds=10)
    with pytest.raises(AudioTooLong, match="longer than the allowed 1 s"):
        decoders.decode(wav(silence(2.0)), max_seconds=1)
    assert pid(decoders) == before


def test_it_may_open_nothing_write_nothing_and_is_nowhere(decoders: Decoders) -> None:
    decoders.decode(wav(), max_seconds=10)
    process = Path(f"/proc/{pid(decoders)}")
    limits = dict(re.findall(r"(?m)^(Max [a-z ]+?)  +(\S+)", (process / "limits").read_text()))
    assert limits["Max open files"] == "0"
    assert limits["Max file size"] == "0"
    assert limits["Max core file size"] == "0"
    assert int(limits["Max cpu time"]) < 10
    assert int(limits["Max address space"]) < 2**31
    assert str((process / "cwd").readlink()).endswith("(deleted)")
    assert "NoNewPrivs:\t1" in (process / "status").read_text()


def test_it_knows_no_secret_of_the_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hush")
    one = Decoders(1)
    one.start()
    environment = Path(f"/proc/{pid(one)}/environ").read_bytes()
    one.close()
    assert b"PYTHONPATH=" in environment
    assert b"hush" not in environment


def test_a_file_that_kills_its_process_is_refused_and_the_next_one_is_heard(
    decoders: Decoders,
) -> None:
    with capture_logs() as logs, in_the_middle_of_a_file(decoders) as (victim, refused):
        os.kill(victim, signal.SIGKILL)
        with pytest.raises(InvalidAudio, match="cannot be decoded: its decoder ended"):
            refused.result(PATIENCE)
    assert [line["event"] for line in logs] == ["a file ended its decoder"]
    assert gone(victim)
    assert len(decoders.decode(wav(tone(1.0)), max_seconds=10).samples) == 16_000
    assert pid(decoders) != victim


def test_a_file_that_takes_too_long_is_refused_and_its_process_replaced(
    decoders: Decoders, monkeypatch: pytest.MonkeyPatch
) -> None:
    victim = pid(decoders)
    os.kill(victim, signal.SIGSTOP)
    monkeypatch.setattr(module, "WALL_PER_CPU", 0.01)
    with capture_logs(), pytest.raises(InvalidAudio, match="it takes too long"):
        decoders.decode(wav(tone(1.0)), max_seconds=10)
    monkeypatch.undo()
    assert gone(victim)
    assert len(decoders.decode(wav(tone(1.0)), max_seconds=10).samples) == 16_000


def test_a_file_that_takes_too_much_processor_time_is_refused(
    decoders: Decoders, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel counts: here for a process that has nothing left of its budget."""
    with capture_logs(), in_the_middle_of_a_file(decoders) as (victim, refused):
        os.kill(victim, signal.SIGXCPU)
        os.kill(victim, signal.SIGCONT)
        with pytest.raises(InvalidAudio, match="too much processor time"):
            refused.result(PATIENCE)


def test_a_process_that_was_killed_while_idle_costs_nobody_his_answer(decoders: Decoders) -> None:
    """The kernel may do so when memory is short, long before the next file comes."""
    victim = pid(decoders)
    os.kill(victim, signal.SIGKILL)
    os.waitid(os.P_PID, victim, os.WEXITED | os.WNOWAIT)
    with capture_logs() as logs:
        assert len(decoders.decode(wav(tone(1.0)), max_seconds=10).samples) == 16_000
    assert [line["event"] for line in logs] == ["an idle decoder was gone"]


def test_a_taken_over_process_that_drips_its_answer_is_ended(
    decoders: Decoders, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = idle(decoders)
    ours, theirs = socket.socketpair()
    process._socket.close()
    process._socket = ours
    decoders._idle.put(process)
    monkeypatch.setattr(module, "WALL_PER_CPU", 0.05)
    over = threading.Event()

    def drip() -> None:
        with suppress(OSError):  # it is closed in the middle
            theirs.sendall(REPLY.pack(SAMPLES, True, 0.0, 4 * 16_000))
            for _ in range(300):
                theirs.sendall(b"x")
                over.wait(0.01)
        theirs.close()

    with ThreadPoolExecutor(1) as other, capture_logs():
        other.submit(drip)
        with pytest.raises(InvalidAudio, match="it takes too long"):
            decoders.decode(wav(tone(1.0)), max_seconds=10)
        over.set()


@pytest.mark.parametrize(
    "answer",
    [
        REPLY.pack(SAMPLES, True, 0.0, 2**40),
        REPLY.pack(SAMPLES, True, -1.0, 4),
        REPLY.pack(SAMPLES, True, math.nan, 4),
        REPLY.pack(BROKEN, True, 0.0, 2**20),
        REPLY.pack(77, True, 0.0, 1),
        2 * (REPLY.pack(LIMITED, True, 0.0, 3) + b"low"),
    ],
    ids=[
        "endless samples",
        "before its file",
        "never",
        "endless message",
        "unknown kind",
        "two notices",
    ],
)
def test_an_answer_of_a_taken_over_process_is_not_believed(
    decoders: Decoders, answer: bytes
) -> None:
    process = idle(decoders)
    ours, theirs = socket.socketpair()
    process._socket.close()
    process._socket = ours
    theirs.sendall(answer)
    decoders._idle.put(process)
    with capture_logs(), pytest.raises(InvalidAudio, match="answer of an unknown form"):
        decoders.decode(wav(tone(1.0)), max_seconds=10)
    theirs.close()
    assert gone(process._child.pid)


def test_an_answer_that_was_not_read_to_its_end_is_nobody_elses(
    decoders: Decoders, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Samples of a long clip may be more than the service has memory for."""
    victim, receive = pid(decoders), module._Process._receive

    def short_of_memory(process: module._Process, size: int, ends: float) -> bytearray:
        if size > REPLY.size:
            raise MemoryError
        return receive(process, size, ends)

    monkeypatch.setattr(module._Process, "_receive", short_of_memory)
    with pytest.raises(MemoryError):
        decoders.decode(wav(tone(1.0, 300)), max_seconds=10)
    monkeypatch.undo()
    heard = decoders.decode(wav(tone(2.0, 700)), max_seconds=10).samples
    assert len(heard) == 32_000
    assert pitch(heard) == pytest.approx(700, abs=3)
    assert gone(victim)


def memory(process: int, which: str) -> int:
    """Bytes that it has (VmRSS), or has had at most (VmHWM)."""
    status = Path(f"/proc/{process}/status").read_text()
    return 1024 * int(re.findall(rf"{which}:\s+(\d+) kB", status)[0])


@pytest.mark.parametrize("claimed", [300 << 20, 2000 << 20])
def test_a_tag_gets_no_more_memory_than_its_file_is_large(decoders: Decoders, claimed: int) -> None:
    """FFmpeg zeroes what a tag claims to need: 2 GB of a file of 16 KB took 6.5 s."""
    before = memory(pid(decoders), "VmHWM")
    file = bytearray(encoded("wav", 0.5))
    tags = file.index(b"LIST")
    struct.pack_into("<I", file, tags + 4, 0x7FFFFFFF)
    struct.pack_into("<I", file, tags + 16, claimed)
    with pytest.raises(InvalidAudio):
        decoders.decode(bytes(file), max_seconds=14_400)
    assert memory(pid(decoders), "VmHWM") - before < 64 << 20


def test_after_a_long_clip_a_process_is_as_small_as_before(decoders: Decoders) -> None:
    before = memory(pid(decoders), "VmRSS")
    for _ in range(2):
        decoders.decode(wav(silence(400)), max_seconds=600)
    decoders.decode(wav(), max_seconds=600)  # its answer comes after the tidying up
    assert memory(pid(decoders), "VmRSS") - before < 8 << 20


def test_a_picture_as_large_as_its_file_is_passed_over(decoders: Decoders) -> None:
    size = 80 << 20
    picture = b"APIC" + struct.pack(">IH", size, 0) + b"\0image/png\0\3\0" + bytes(size - 13)
    tag = len(picture)
    head = b"ID3\x03\0\0" + bytes(tag >> shift & 0x7F for shift in (21, 14, 7, 0))
    heard = decoders.decode(head + picture + encoded("mp3", 1.0, 600), max_seconds=10).samples
    assert pitch(heard) == pytest.approx(600, abs=3)


def test_processes_end_when_their_service_closes_them() -> None:
    pool = Decoders(2)
    pool.start()
    until(lambda: pool._idle.qsize() == 2, "both processes are ready")
    found = [idle(pool) for _ in range(2)]
    for process in found:
        pool._idle.put(process)
    pool.close()
    assert all(gone(process._child.pid) for process in found)


def test_a_process_that_is_busy_when_its_service_closes_ends_after_its_file(
    decoders: Decoders,
) -> None:
    with in_the_middle_of_a_file(decoders) as (busy, answer):
        decoders.close()
        os.kill(busy, signal.SIGCONT)
        assert len(answer.result(PATIENCE).samples) == 16_000
    assert gone(busy)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="closed"):
            decoders.decode(wav(), max_seconds=10)


def test_who_waits_for_a_process_when_they_are_closed_waits_no_longer(decoders: Decoders) -> None:
    taken = idle(decoders)
    with ThreadPoolExecutor(2) as callers:
        waiting = [callers.submit(decoders.decode, wav(), max_seconds=10) for _ in range(2)]
        decoders.close()
        for one in waiting:
            with pytest.raises(RuntimeError, match="closed"):
                one.result(PATIENCE)
    taken.close()


def test_a_process_whose_service_ends_while_it_starts_ends_without_a_word(
    capfd: pytest.CaptureFixture[str],
) -> None:
    ours, theirs = socket.socketpair()
    shared = os.memfd_create("shared")
    os.truncate(shared, 8)
    with theirs:
        child = module._popen(theirs.fileno(), shared, 0)
    ours.close()
    os.close(shared)
    assert child.wait(PATIENCE) == 0
    assert child.stderr is not None
    with child.stderr as said:
        assert said.read() == b""
    assert capfd.readouterr().err == ""


def test_what_a_process_says_is_logged_and_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "talkative"
    program.write_text("#!/bin/sh\necho why it ends >&2\nyes | head -c 1000000 >&2\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    with capture_logs() as lines, pytest.raises(OSError, match="status 0"):
        Decoders(1).start()
    until(lambda: any(line.get("text") == "y" for line in lines), "the process is heard")
    assert "why it ends" in [line.get("text") for line in lines]
    assert len(lines) <= module.MAX_SAID


def test_no_folder_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    one = Decoders(1)
    one.start()
    assert list(tmp_path.iterdir()) == []
    one.close()


def test_no_folder_is_left_behind_by_a_process_that_does_not_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where memory is short it is tried again every second."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(sys, "executable", "/bin/false")
    one = Decoders(1)
    for _ in range(2):
        with pytest.raises(OSError, match="did not start"):
            one.decode(wav(), max_seconds=10)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    assert len(one.decode(wav(tone(1.0)), max_seconds=10).samples) == 16_000
    one.close()


# Decodes a short and a long clip under limits. Root could raise a hard limit; a service should not
# run as root, so what allows it is given up, for the processes that this one starts.
UNDER_LIMITS = """
import ctypes, json, resource, sys
from stt_cascade.audio.decoders import Decoders
from stt_cascade.errors import Refusal
from tones import silence, wav

DROP_BOUND, SYS_RESOURCE = 24, 24
ctypes.CDLL(None).prctl(DROP_BOUND, SYS_RESOURCE, 0, 0, 0)
limits, lengths = json.loads(sys.argv[1]), json.loads(sys.argv[2])
files = {seconds: wav(silence(seconds)) for seconds in lengths}
for name, most in limits.items():
    resource.setrlimit(getattr(resource, name), (most, most))
decoders = Decoders(1)
said = []
for seconds in lengths:
    try:
        said.append(len(decoders.decode(files[seconds], max_seconds=600).samples) / 16_000)
        process = decoders._idle.get()
        for name, most in limits.items():
            assert resource.prlimit(process._child.pid, getattr(resource, name))[1] == most
        decoders._idle.put(process)
    except Refusal as refusal:
        said.append([refusal.status, refusal.message])
    except OSError as error:
        said.append(str(error))
decoders.close()
print(json.dumps(said))
"""


def under(limits: dict[str, int], *seconds: float) -> tuple[list[Any], str]:
    """What a service under hard limits makes of clips of these lengths, and its log."""
    done = subprocess.run(
        [sys.executable, "-c", UNDER_LIMITS, json.dumps(limits), json.dumps(seconds)],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent), "OPENBLAS_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=2 * PATIENCE,
    )
    *log, said = done.stdout.splitlines() or [done.stderr]
    return json.loads(said), "\n".join(log)


@pytest.mark.process
@pytest.mark.parametrize(
    ("name", "most"),
    [("RLIMIT_AS", 1200 << 20), ("RLIMIT_DATA", 500 << 20), ("RLIMIT_CPU", 120)],
)
def test_a_hard_limit_is_kept_and_files_are_decoded_under_it(name: str, most: int) -> None:
    assert under({name: most}, 1, 60)[0] == [1.0, 60.0]


@pytest.mark.process
def test_a_limit_that_leaves_too_little_is_named_and_the_caller_is_not_blamed() -> None:
    (short, (status, message)), log = under({"RLIMIT_DATA": 150 << 20}, 1, 590)
    assert (short, status) == (1.0, 500)
    assert "a limit of its own: RLIMIT_DATA is 150 MiB, and it may need" in message
    assert "a limit of this service keeps it from decoding a file" in log


@pytest.mark.process
def test_a_limit_under_which_no_decoder_starts_is_named() -> None:
    said, _ = under({"RLIMIT_DATA": 8 << 20}, 1)
    assert "a limit of this service may be too low: RLIMIT_DATA is 8 MiB" in said[0]


@pytest.mark.process
def test_a_limit_of_processor_time_ends_no_clip_however_many_there_are() -> None:
    """It counts for a process as long as that lives: one that has used half of it is replaced."""
    said, _ = under({"RLIMIT_CPU": 4}, *[590] * 12)
    assert said == [590.0] * 12


def limited_reply(kind: int | None) -> bytes:
    """What a decoder says under a limit that is too low, and then of a file."""
    low = REPLY.pack(LIMITED, True, 0.0, 3) + b"low"
    return low if kind is None else low + REPLY.pack(kind, True, 0.0, 4) + b"why?"


@pytest.mark.parametrize("kind", [NO_MEMORY, None], ids=["out of memory", "it ended"])
def test_a_file_that_a_limit_fails_is_not_the_callers_fault(
    decoders: Decoders, kind: int | None
) -> None:
    process = idle(decoders)
    ours, theirs = socket.socketpair()
    process._socket.close()
    process._socket = ours
    theirs.sendall(limited_reply(kind))
    theirs.shutdown(socket.SHUT_WR)
    decoders._idle.put(process)
    with capture_logs() as logs, pytest.raises(Internal, match="a limit of its own: low"):
        decoders.decode(wav(), max_seconds=10)
    assert [line["limits"] for line in logs if "limits" in line] == ["low"]
    theirs.close()


def test_an_invalid_file_under_a_low_limit_is_still_the_callers(decoders: Decoders) -> None:
    process = idle(decoders)
    ours, theirs = socket.socketpair()
    process._socket.close()
    process._socket = ours
    theirs.sendall(limited_reply(1))
    decoders._idle.put(process)
    with pytest.raises(InvalidAudio, match=r"why\?"):
        decoders.decode(wav(), max_seconds=10)
    theirs.close()


def test_a_file_that_takes_more_processor_time_than_it_is_given_is_too_slow(
    decoders: Decoders,
) -> None:
    before = pid(decoders)
    with pytest.raises(TooSlow):
        decoders.decode(long_opus(598), max_seconds=600, cpu_seconds=0.01)
    assert pid(decoders) == before
    assert len(decoders.decode(wav(), max_seconds=10, cpu_seconds=60).samples) == 16_000


def test_a_file_that_nobody_waits_for_is_not_decoded_further(decoders: Decoders) -> None:
    interest = Interest()
    with ThreadPoolExecutor(1) as caller:
        process = idle(decoders)
        os.kill(process._child.pid, signal.SIGSTOP)
        decoders._idle.put(process)
        answer = caller.submit(decoders.decode, long_opus(598), max_seconds=600, interest=interest)
        until(lambda: unread(process._socket) > 0, "it has been given the file")
        interest.lose()
        os.kill(process._child.pid, signal.SIGCONT)
        with pytest.raises(GivenUp):
            answer.result(PATIENCE)
    assert len(decoders.decode(wav(), max_seconds=10).samples) == 16_000
    assert pid(decoders) == process._child.pid


def test_who_has_left_before_the_file_is_sent_gets_no_decoding(decoders: Decoders) -> None:
    interest = Interest()
    interest.lose()
    with pytest.raises(GivenUp):
        decoders.decode(wav(), max_seconds=10, interest=interest)
    assert len(decoders.decode(wav(), max_seconds=10).samples) == 16_000
