"""A log that cannot be written blocks nothing, loses no line in silence, and ends nothing."""

from __future__ import annotations

import errno
import logging
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest

from fakes import PATIENCE
from stt_cascade.telemetry.logs import Writer

LINE = "x" * 1000
MANY = 2000  # lines of which no pipe takes all


class Pipe:
    """A pipe that is read when the test says so."""

    def __init__(self) -> None:
        self.reads, writes = os.pipe()
        self.stream: IO[str] = os.fdopen(writes, "w")

    def read(self, until_there: bytes) -> bytes:
        got = b""
        while until_there not in got:
            got += os.read(self.reads, 65536)
        return got

    def close(self) -> None:
        os.close(self.reads)
        self.stream.close()


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    pipe = Pipe()
    yield pipe
    pipe.close()


def test_nobody_waits_for_a_log_that_is_not_read(pipe: Pipe) -> None:
    writer = Writer(pipe.stream)
    for number in range(MANY):
        writer.put(f"{number} {LINE}")
    writer.put("the last one")
    assert writer.dropped == 0
    lines = pipe.read(b"the last one\n").splitlines()
    assert [int(line.split()[0]) for line in lines[:-1]] == list(range(MANY))


def test_lines_beyond_the_bound_are_dropped_and_counted(pipe: Pipe) -> None:
    writer = Writer(pipe.stream, held=300_000)
    for number in range(MANY):
        writer.put(f"{number} {LINE}")
    dropped = writer.dropped
    assert 0 < dropped < MANY
    note = f"{dropped} log lines were dropped: they could not be written\n".encode()
    lines = pipe.read(note).splitlines()
    assert len(lines) == MANY - dropped + 1
    writer.put("and on it goes")
    assert pipe.read(b"\n") == b"and on it goes\n"


def test_a_log_whose_reader_has_gone_ends_nothing(pipe: Pipe) -> None:
    os.close(pipe.reads)
    writer = Writer(pipe.stream)
    for _ in range(3):
        writer.put(LINE)
    writer.flush(PATIENCE)
    assert writer.dropped == 3
    pipe.reads = os.open(os.devnull, os.O_RDONLY)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_disk_costs_the_lines_that_it_does_not_take() -> None:
    with Path("/dev/full").open("w") as full:
        writer = Writer(full)
        writer.put(LINE)
        writer.flush(PATIENCE)
        assert writer.dropped == 1


def test_after_a_line_that_was_cut_the_next_begins_a_line_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, room = os.write, [4, 0]

    def disk(descriptor: int, data: memoryview) -> int:
        """Takes so many bytes at each call, and then again all."""
        if not room:
            return write(descriptor, data)
        if size := room.pop(0):
            return write(descriptor, data[:size])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.write", disk)
    with (tmp_path / "log").open("w") as file:
        writer = Writer(file)
        writer.put("cut here")
        writer.flush(PATIENCE)
        writer.put("whole")
        writer.flush(PATIENCE)
    lines = (tmp_path / "log").read_text().splitlines()
    assert lines == ["cut ", "whole", "1 log lines were dropped: they could not be written"]


def test_a_stream_that_somebody_made_non_blocking_loses_nothing(pipe: Pipe) -> None:
    os.set_blocking(pipe.stream.fileno(), False)
    writer = Writer(pipe.stream)
    for _ in range(MANY):
        writer.put(LINE)
    writer.put("the last one")
    assert len(pipe.read(b"the last one\n").splitlines()) == MANY + 1
    assert writer.dropped == 0


def test_a_process_that_was_started_without_stdout_drops_its_lines() -> None:
    writer = Writer(None)
    writer.put(LINE)
    writer.flush(PATIENCE)
    assert writer.dropped == 1


def test_flushing_waits_for_the_lines_but_not_for_ever(pipe: Pipe) -> None:
    writer = Writer(pipe.stream)
    writer.put("short")
    writer.flush(PATIENCE)
    assert os.read(pipe.reads, 100) == b"short\n"
    for _ in range(MANY):
        writer.put(LINE)
    began = time.monotonic()
    writer.flush(0.05)
    assert time.monotonic() - began < PATIENCE / 10
    writer.put("the last one")
    pipe.read(b"the last one\n")  # else the thread would write into what gets the number next


def test_near_the_end_each_line_is_written_before_the_next_step(pipe: Pipe) -> None:
    writer = Writer(pipe.stream)
    writer.finish(PATIENCE)
    os.set_blocking(pipe.reads, False)
    for number in range(20):
        writer.handle(logging.makeLogRecord({"msg": f"{number}"}))
        assert os.read(pipe.reads, 100) == f"{number}\n".encode()


def test_a_line_that_cannot_be_made_or_encoded_ends_nothing(pipe: Pipe) -> None:
    writer = Writer(pipe.stream)
    writer.handle(logging.makeLogRecord({"name": "odd", "msg": "%d", "args": ("text",)}))
    writer.put("\ud800")
    got = pipe.read(b"d800")
    assert got.startswith(b"a log line of odd cannot be made: TypeError")
    assert got.endswith(b"\\ud800\n")


def test_lines_of_many_threads_stay_whole(pipe: Pipe) -> None:
    writer = Writer(pipe.stream)
    threads = [
        threading.Thread(
            target=lambda: [writer.handle(logging.makeLogRecord({"msg": LINE})) for _ in range(100)]
        )
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    got = b""
    while len(got) < 800 * (len(LINE) + 1):
        got += os.read(pipe.reads, 65536)
    for thread in threads:
        thread.join()
    assert set(got.splitlines()) == {LINE.encode()}
    assert writer.dropped == 0
