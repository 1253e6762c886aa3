"""`make faults` in short: what needs no stopwatch. And that what it measures with can fail."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import get_args

import pytest

from faults import load
from faults.__main__ import chosen
from faults.calls import Call
from faults.hostile import opened_files
from faults.lab import Lab, Size
from faults.pool import answered_once
from faults.proxy import Fault, FaultProxy
from faults.report import Report, Row
from faults.rows import ROWS
from faults.soak import Trend
from faults.speech import Rounds, missing
from faults.stub import Stub
from faults.tiers import Tier
from stt_sdk import STTError

MIB = 1024 * 1024
WHOLE = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nfine"
IN_SHORT = (
    *("disconnects", "neighbours", "overload", "playlists", "bombs", "strangers", "stop", "kill"),
    "long-clips",
    *("pool-kill", "pool-rolling", "pool-busy", "pool-cancel"),
)


@pytest.mark.parametrize("row", [row for row in ROWS if row.name in IN_SHORT], ids=lambda r: r.name)
@pytest.mark.process
def test_what_is_promised_holds_in_short(row: Row) -> None:
    report = Report()

    async def run() -> None:
        async with Lab("short") as lab:
            await row.run(lab, report)

    asyncio.run(run())
    untimed = [check for check in report.checks if not check.timed]
    assert untimed
    assert [str(check) for check in untimed if not check.holds] == []


async def _through(fault: Fault, patience: float = 20.0) -> load.Answer:
    """What a caller gets through a proxy with that fault, from a server that always answers."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while chunk := await reader.read(65536):
            if chunk.endswith(b"\r\n\r\n"):
                writer.write(WHOLE)
                writer.write_eof()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server, FaultProxy(port, [fault]) as proxy:
        got = await load.call(proxy.port, load.get("/"), patience=patience)
        assert len(proxy.requests) == 1
    return got


@pytest.mark.parametrize(
    ("fault", "status", "how"),
    [
        ("none", 200, "answered"),
        ("latency", 200, "answered"),
        ("drip", 200, "answered"),
        ("reset", 0, "broken"),
        ("truncate", 0, "broken"),
        ("error", 500, "answered"),
        ("nonsense", 200, "answered"),
    ],
)
def test_the_proxy_does_to_an_answer_what_its_fault_says(
    fault: Fault, status: int, how: str
) -> None:
    got = asyncio.run(_through(fault))
    assert (got.status, got.how) == (status, how)
    assert (got.body == b"fine") == (fault in ("none", "latency", "drip"))


@pytest.mark.parametrize("fault", ["blackhole", "endless"])
def test_what_the_proxy_never_ends_hangs(fault: Fault) -> None:
    assert asyncio.run(_through(fault, patience=0.3)).how == "hanging"


def test_the_proxy_changes_while_it_runs() -> None:
    async def run() -> list[str]:
        async with FaultProxy(9) as proxy:
            first = await load.call(proxy.port, load.get("/"))
            await proxy.refuse()
            second = await load.call(proxy.port, load.get("/"))
            await proxy.listen()
            third = await load.call(proxy.port, load.get("/"))
        return [first.how, second.how, third.how]

    assert asyncio.run(run()) == ["closed", "refused", "closed"]


def test_an_answer_counts_only_if_it_is_one_and_whole() -> None:
    assert load.parse(WHOLE, "answered", 0.1, 0.0).status == 200
    assert load.parse(WHOLE, "broken", 0.1, 0.0).how == "answered"
    for wrong in (WHOLE[:-1], WHOLE + WHOLE, b"HTTP/1.1 200 OK\r\n"):
        assert load.parse(wrong, "answered", 0.1, 0.0).how == "broken"
    assert load.parse(b"", "answered", 0.1, 0.0).how == "closed"
    assert load.parse(b"", "hanging", 0.1, 0.0).how == "hanging"


@pytest.mark.parametrize(
    ("grows", "leaks", "flat"), [(0, 0, True), (MIB // 10, 0, True), (MIB, 0, False), (0, 1, False)]
)
def test_a_soak_sees_what_grows(grows: int, leaks: int, flat: bool) -> None:
    samples = [(100 * MIB + grows * n, 40 + leaks * n) for n in range(60)]
    assert Trend.of(samples).flat == flat


def test_what_grows_only_in_the_first_half_is_no_leak() -> None:
    samples = [(100 * MIB + MIB * min(n, 29), 40) for n in range(60)]
    assert Trend.of(samples).flat


@pytest.mark.process
def test_a_call_that_two_hosts_answered_is_seen(tmp_path: Path) -> None:
    tiers = [Tier("primary", tmp_path / name, Stub(), (), {}) for name in ("one", "other")]
    line = '{"request_id": "call-1", "path": "/v1/transcribe", "status": %d}\n'
    call = Call("call-1", "ok", 0.1, 0.0, "", 2, STTError("", request_id="call-1"))
    for second, holds in ((503, True), (200, False)):
        for tier, status in zip(tiers, (200, second), strict=True):
            tier.log.write_text("started\n" + line % status)
        report = Report()
        answered_once(report, [call], tiers)
        assert report.holds == holds


def _saw(n: int) -> int:
    """What a clip takes and gives back: 60 MB, in teeth of seven samples."""
    return 60 * MIB * (n % 7) // 6


@pytest.mark.parametrize("phase", range(7))
def test_what_comes_and_goes_is_no_leak(phase: int) -> None:
    samples = [(100 * MIB + _saw(n + phase), 40 + n % 7) for n in range(60)]
    assert Trend.of(samples).flat


@pytest.mark.parametrize("phase", range(7))
def test_a_slow_leak_is_seen_under_what_comes_and_goes(phase: int) -> None:
    # 45 MB in the second half, less than a tooth.
    samples = [(100 * MIB + _saw(n + phase) + 3 * MIB * n // 2, 40 + n % 7) for n in range(60)]
    assert not Trend.of(samples).flat


def test_connections_of_callers_who_are_more_for_a_while_are_no_leak() -> None:
    samples = [(100 * MIB, 40 + (n % 7) * (3 if n > 45 else 1)) for n in range(60)]
    assert Trend.of(samples).flat
    assert not Trend.of([(memory, held + n // 6) for n, (memory, held) in enumerate(samples)]).flat


def test_a_row_that_lacks_what_it_needs_says_so_and_does_not_hold(tmp_path: Path) -> None:
    assert "stt models pull base" in missing(tmp_path, tmp_path)
    (tmp_path / "model.bin").touch()
    assert "no labelled speech" in missing(tmp_path, tmp_path)
    (tmp_path / "manifest.jsonl").touch()
    assert missing(tmp_path, tmp_path) == ""
    report = Report(missing="no weights")
    assert (report.holds, report.verdict) == (False, "CANNOT BE TRIED here: no weights")


def test_the_soak_with_real_speech_runs_only_where_it_is_named() -> None:
    for size in get_args(Size):
        assert "speech" not in [row.name for row in chosen(size, None)]
    assert [row.name for row in chosen("usual", ["speech"])] == ["speech"]


def test_rounds_hold_every_clip_once_in_another_order_each_time(tmp_path: Path) -> None:
    names = [f"{n}.wav" for n in range(9)]
    for name in names:
        (tmp_path / name).write_bytes(name.encode())
    lines = [f'{{"file": "{name}", "text": "", "language": "en"}}\n' for name in names]
    (tmp_path / "manifest.jsonl").write_text("".join(lines))
    sent = [Rounds(tmp_path)(number) for number in range(2 * len(names))]
    first, second = sent[: len(names)], sent[len(names) :]
    assert len(set(first)) == len(names)
    assert sorted(first) == sorted(second)
    assert first != second
    assert sent == [Rounds(tmp_path)(number) for number in range(2 * len(names))]


def test_a_trace_tells_what_was_opened_outside_libraries(tmp_path: Path) -> None:
    trace = (
        '11 openat(AT_FDCWD, "/usr/lib/libc.so.6", O_RDONLY|O_CLOEXEC) = 3\n'
        f'12 openat(AT_FDCWD, "{tmp_path}/secret.wav", O_RDONLY) = -1 EMFILE\n'
        '12 openat(AT_FDCWD, "secret.wav", O_RDONLY <unfinished ...>\n'
        "13 socket(AF_INET, SOCK_DGRAM, IPPROTO_UDP) = 12\n"
        "13 +++ exited with 0 +++\n"
    )
    opened, sockets = opened_files(trace)
    assert opened == {f"{tmp_path}/secret.wav": 1, "secret.wav": 1}
    assert sockets == ["13 socket(AF_INET, SOCK_DGRAM, IPPROTO_UDP) = 12"]
