"""Processes whose log cannot be written, or whose event loop is blocked, serve and end as ever."""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import httpx2
import pytest

from fakes import PATIENCE
from running import env_file, until
from tones import wav

pytestmark = pytest.mark.process

TESTS = Path(__file__).parent
MODEL = {"CT2_MEDIUM_PATH": "models/fake", "DEVICE": "cpu", "VAD": "off"}
UVICORN = ("-m", "uvicorn", "stt_fallback:app", "--port", "0")
# A service whose event loop does nothing any more.
BLOCKED = """
import asyncio, time
from stt_cascade.http.stop import Stop

async def main():
    stop = Stop(2, lambda: None, asyncio.Event().wait)
    with stop.on_signals():
        print("blocked", flush=True)
        time.sleep(600)

asyncio.run(main())
"""


def environment(settings: Path) -> dict[str, str]:
    return {**os.environ, "CONFIG_PATH": str(settings)}


def unread() -> tuple[int, int]:
    """The ends of a pipe that is full, and that nobody reads."""
    reads, writes = os.pipe()
    fcntl.fcntl(writes, fcntl.F_SETPIPE_SZ, 4096)
    os.write(writes, b"x" * 4096)
    return reads, writes


def dead() -> tuple[int, int]:
    reads, writes = os.pipe()
    os.close(reads)
    return os.open(os.devnull, os.O_RDONLY), writes


def full_disk() -> tuple[int, int]:
    return os.open(os.devnull, os.O_RDONLY), os.open("/dev/full", os.O_WRONLY)


@pytest.fixture(params=[unread, dead, full_disk])
def broken_log(request: pytest.FixtureRequest) -> Iterator[int]:
    """A descriptor of a file that cannot be written."""
    ends: tuple[int, int] = request.param()
    yield ends[1]
    for end in ends:
        os.close(end)


@pytest.fixture(autouse=True)
def hangups() -> Iterator[None]:
    """As a terminal starts processes, and nohup does not."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.fixture
def run() -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    started: list[subprocess.Popen[bytes]] = []

    def run(*command: object, **options: Any) -> subprocess.Popen[bytes]:
        argv = [sys.executable, *map(str, command)]
        started.append(subprocess.Popen(argv, stdin=subprocess.PIPE, **options))
        return started[-1]

    yield run
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def tier(
    run: Callable[..., subprocess.Popen[bytes]], tmp_path: Path
) -> Callable[..., tuple[subprocess.Popen[bytes], str]]:
    """Starts a fallback on a fake engine, each of whose inferences lasts for ever."""

    def start(
        stdout: int | IO[bytes], *, loads: str = "at-once", **settings: object
    ) -> tuple[subprocess.Popen[bytes], str]:
        file = env_file(tmp_path / "tier.env", **MODEL, **settings)
        with socket.create_server(("127.0.0.1", 0)) as listener:
            url = f"http://127.0.0.1:{listener.getsockname()[1]}"
            number = listener.fileno()
            command = (TESTS / "fakes.py", "fallback", file, number, loads)
            errors = (tmp_path / "stderr").open("wb")
            with errors:
                process = run(*command, pass_fds=[number], stdout=stdout, stderr=errors)
        until(
            lambda: httpx2.get(f"{url}/v1/ready", timeout=PATIENCE).status_code == 200,
            "it is ready",
        )
        return process, url

    return start


def test_a_tier_without_its_model_ends(
    run: Callable[..., subprocess.Popen[bytes]], broken_log: int, tmp_path: Path
) -> None:
    file = env_file(tmp_path / "t.env", CT2_MEDIUM_PATH=tmp_path / "missing", DEVICE="cpu")
    process = run(*UVICORN, env=environment(file), stdout=broken_log, stderr=broken_log)
    assert process.wait(PATIENCE) == 1


def test_a_tier_with_wrong_settings_ends_with_a_status_of_its_own(
    run: Callable[..., subprocess.Popen[bytes]], broken_log: int, tmp_path: Path
) -> None:
    file = env_file(tmp_path / "t.env", DEVISE="cpu")
    process = run(*UVICORN, env=environment(file), stdout=broken_log, stderr=broken_log)
    assert process.wait(PATIENCE) == 78


def test_a_tier_with_wrong_keys_ends_with_the_same_status(
    run: Callable[..., subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    file = env_file(tmp_path / "t.env", **MODEL, API_KEYS_FILE=tmp_path / "missing")
    process = run(*UVICORN, env=environment(file), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    _, said = process.communicate(timeout=PATIENCE)
    assert process.returncode == 78
    assert b"API_KEYS_FILE" in said
    assert b"Traceback" not in said


def test_a_stuck_tier_ends(
    tier: Callable[..., tuple[subprocess.Popen[bytes], str]], broken_log: int
) -> None:
    process, url = tier(broken_log, INFER_TIMEOUT_S=1, WEDGED_EXIT_S=0, REQUEST_TIMEOUT_S=0.5)
    answer = httpx2.post(f"{url}/v1/transcribe", files={"audio": wav()}, timeout=PATIENCE)
    assert answer.status_code == 504
    assert process.wait(PATIENCE) == 70


def test_a_tier_with_a_broken_engine_is_not_ready_then_not_healthy_and_ends(
    tier: Callable[..., tuple[subprocess.Popen[bytes], str]],
) -> None:
    process, url = tier(subprocess.DEVNULL, loads="breaks", ENGINE_FAILURES=6, WEDGED_EXIT_S=3)
    said: list[tuple[str, int]] = []
    with httpx2.Client(base_url=url, timeout=PATIENCE) as client:
        for _ in range(3):  # each clip, and the tier's own one after it
            assert client.get("/v1/ready").status_code == 200
            assert client.post("/v1/transcribe", files={"audio": wav()}).status_code == 500
        try:
            while True:
                ready, health = client.get("/v1/ready"), client.get("/v1/health")
                state = ready.json()["state"], health.status_code
                if state not in said:
                    said.append(state)
                time.sleep(0.05)
        except httpx2.HTTPError:
            assert process.wait(PATIENCE) == 70
    assert (said[0], said[-1]) == (("broken", 200), ("wedged", 503))


def test_a_tier_whose_log_cannot_be_written_answers_and_stops(
    tier: Callable[..., tuple[subprocess.Popen[bytes], str]], broken_log: int
) -> None:
    process, url = tier(broken_log, DRAIN_TIMEOUT_S=3)
    with httpx2.Client(base_url=url, timeout=PATIENCE) as client:
        for _ in range(300):  # more lines than any pipe takes
            assert client.get("/nothing").status_code == 404
        with socket.create_connection(("127.0.0.1", client.base_url.port or 0)) as half:
            half.sendall(b"GET /v1/health HTTP/1.1\r\n")
            began = time.monotonic()
            process.send_signal(signal.SIGTERM)
            assert process.wait(PATIENCE) in (0, -signal.SIGTERM)
    assert time.monotonic() - began < 3 + PATIENCE / 10


def test_a_stop_ends_in_time_though_the_event_loop_is_blocked(
    run: Callable[..., subprocess.Popen[bytes]],
) -> None:
    process = run("-c", BLOCKED, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"blocked\n"
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    assert process.wait(PATIENCE) == 0
    assert time.monotonic() - began < 2 + PATIENCE / 10


def test_the_last_lines_of_a_stop_are_written(
    tier: Callable[..., tuple[subprocess.Popen[bytes], str]],
) -> None:
    process, _ = tier(subprocess.PIPE)
    process.send_signal(signal.SIGTERM)
    written, _ = process.communicate(timeout=PATIENCE)
    for line in (b'"draining"', b"Application shutdown complete", b"Finished server process"):
        assert line in written


def test_a_hangup_ends_nothing(
    tier: Callable[..., tuple[subprocess.Popen[bytes], str]], tmp_path: Path
) -> None:
    log = tmp_path / "stdout"
    with log.open("wb") as stdout:
        process, url = tier(stdout)
    with httpx2.Client(base_url=url, timeout=PATIENCE) as client:
        assert client.get("/v1/ready").status_code == 200
        process.send_signal(signal.SIGHUP)
        until(lambda: "SIGHUP is ignored" in log.read_text(), "it says so")
        assert client.get("/v1/ready").status_code == 200
    assert process.poll() is None


def test_a_terminal_that_is_closed_stops_a_tier_as_ctrl_c_would(
    run: Callable[..., subprocess.Popen[bytes]],
) -> None:
    ours, theirs = os.openpty()
    code = BLOCKED.replace("time.sleep(600)", "await asyncio.sleep(600)")
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=theirs, stdout=subprocess.PIPE, start_new_session=True
    )
    os.close(theirs)
    assert process.stdout is not None
    assert process.stdout.readline() == b"blocked\n"
    process.send_signal(signal.SIGHUP)
    try:
        assert process.wait(PATIENCE) in (0, -signal.SIGTERM)
    finally:
        process.kill()
        process.communicate()
        os.close(ours)
