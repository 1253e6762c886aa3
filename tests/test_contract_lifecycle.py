"""Processes: how a tier starts, refuses to start, and stops."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import pytest

from fakes import PATIENCE, Reply, ScriptedFallback
from running import env_file, read_response, until
from tones import wav

pytestmark = pytest.mark.process

TESTS = Path(__file__).parent
MODEL = {"DEVICE": "cpu", "VAD": "off"}
HALF_A_BODY = (
    b"POST /v1/transcribe HTTP/1.1\r\nHost: t\r\nContent-Length: 100000\r\n"
    b"Content-Type: multipart/form-data; boundary=x\r\n\r\n"
    b'--x\r\nContent-Disposition: form-data; name="audio"\r\n\r\nRIFF'
)
both = pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])


def untaken(connection: socket.socket) -> int:
    """Bytes that the other side has written and nobody has taken: in its kernel buffer."""
    ours, theirs = (address[1] for address in (connection.getsockname(), connection.getpeername()))
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, local, remote, _, queues, *_ = line.split()
        if (local[-5:], remote[-5:]) == (f":{theirs:04X}", f":{ours:04X}"):
            return int(queues.partition(":")[0], 16)
    raise AssertionError("there is no such connection")


class Process:
    """A tier with a `fakes.main` engine in a process of its own."""

    def __init__(self, tier: str, settings: Path, loads: str) -> None:
        listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        with listener:
            self.process = subprocess.Popen(
                [sys.executable, TESTS / "fakes.py", tier, settings, str(listener.fileno()), loads],
                pass_fds=[listener.fileno()],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        self._callers = ThreadPoolExecutor(8)
        self.client = httpx2.Client(base_url=self.url, timeout=PATIENCE, trust_env=False)
        ready = 200 if loads == "at-once" else 503
        until(lambda: self._status("/v1/ready") == ready, "the process is ready")

    def _status(self, path: str) -> int | None:
        try:
            return self.client.get(path).status_code
        except httpx2.HTTPError:
            return None

    def begin(self) -> Future[httpx2.Response]:
        return self._callers.submit(
            self.client.post, "/v1/transcribe", files={"audio": wav()}, data={"language": "en"}
        )

    def wait_for_an_inference(self) -> None:
        assert self.process.stderr is not None
        assert self.process.stderr.readline() == "inferring\n"

    def let_go(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def connect(self, request: bytes) -> socket.socket:
        """A connection on which this has been sent."""
        port = int(self.url.rpartition(":")[2])
        connection = socket.create_connection(("127.0.0.1", port), PATIENCE)
        connection.sendall(request)
        return connection

    def writes_nothing_to(self, connection: socket.socket) -> bool:
        """Whether it works for others meanwhile, and no byte comes here."""
        before = untaken(connection)
        for _ in range(20):
            assert self.client.get("/metrics").status_code == 200
        return before == untaken(connection) > 0

    def snapshot(self) -> dict[str, Any]:
        snapshot: dict[str, Any] = self.client.get("/v1/metrics").json()
        return snapshot

    def close(self) -> None:
        self.process.kill()
        self._callers.shutdown()
        self.client.close()
        self.process.communicate()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Process]]:
    started: list[Process] = []

    def start(loads: str = "at-once", tier: str = "fallback", **settings: object) -> Process:
        path = {("CT2_SMALL_PATH" if tier == "primary" else "CT2_MEDIUM_PATH"): "models/fake"}
        file = env_file(tmp_path / "tier.env", **path, **MODEL, **settings)
        started.append(Process(tier, file, loads))
        return started[-1]

    yield start
    for process in started:
        process.close()


@both
def test_a_stop_finishes_what_has_begun_and_sends_home_who_waits(
    start: Callable[..., Process], how: signal.Signals
) -> None:
    tier = start(MAX_CONCURRENCY=1)
    begun = tier.begin()
    tier.wait_for_an_inference()
    queued = [tier.begin(), tier.begin()]
    until(lambda: tier.snapshot()["queue_depth"] == 2, "two are queued")

    tier.process.send_signal(how)

    for one in queued:
        answer = one.result(PATIENCE)
        assert answer.status_code == 503
        assert answer.json()["error"]["type"] == answer.headers["X-Error-Type"] == "draining"
        assert int(answer.headers["Retry-After"]) >= 1
    assert not begun.done()
    tier.let_go()
    assert begun.result(PATIENCE).status_code == 200
    assert begun.result().json()["text"] == "one two three four"
    # uvicorn ends by the signal that it got, once everything is done.
    assert tier.process.wait(PATIENCE) in (0, -how)


@both
def test_a_stopping_tier_says_so_to_everybody_who_still_comes(
    start: Callable[..., Process], how: signal.Signals
) -> None:
    tier = start(MAX_CONCURRENCY=1)
    begun = tier.begin()
    tier.wait_for_an_inference()
    queued = tier.begin()
    until(lambda: tier.snapshot()["queue_depth"] == 1, "one is queued")
    tier.process.send_signal(how)
    assert queued.result(PATIENCE).status_code == 503

    with httpx2.Client(base_url=tier.url, trust_env=False) as newcomer:
        ready = newcomer.get("/v1/ready")
        refused = newcomer.post("/v1/transcribe", files={"audio": wav()})
        alive = newcomer.get("/v1/health")

    assert (ready.status_code, ready.json()["state"]) == (503, "draining")
    assert (refused.status_code, refused.headers["X-Error-Type"]) == (503, "draining")
    assert alive.status_code == 200
    assert {each.headers["Connection"] for each in (ready, refused, alive)} == {"close"}
    assert not begun.done()
    tier.let_go()
    assert begun.result(PATIENCE).status_code == 200
    assert tier.process.wait(PATIENCE) in (0, -how)
    with pytest.raises(httpx2.ConnectError):
        httpx2.get(tier.url, trust_env=False)


def test_a_stop_can_be_seen_even_if_nothing_is_worked_on(start: Callable[..., Process]) -> None:
    """Who asks whether it is ready gets that answer, and finds no closed port."""
    tier = start()
    tier.process.send_signal(signal.SIGTERM)
    until(lambda: tier.client.get("/v1/ready").status_code == 503, "the tier says that it stops")
    time.sleep(0.3)  # who looks now and then
    assert tier.client.get("/v1/ready").status_code == 503
    assert tier.process.wait(PATIENCE) in (0, -signal.SIGTERM)


def test_stalled_uploads_are_refused_at_once_and_hold_nothing_up(
    start: Callable[..., Process],
) -> None:
    tier = start(DRAIN_TIMEOUT_S=600)
    stalled = [tier.connect(HALF_A_BODY) for _ in range(20)]
    begun = tier.begin()
    tier.wait_for_an_inference()
    until(lambda: tier.snapshot()["uploads"] == 21, "all uploads are being received")

    tier.process.send_signal(signal.SIGTERM)

    for connection in stalled:
        status, headers, _ = read_response(connection)
        assert (status, headers["x-error-type"]) == (503, "draining")
    assert not begun.done()
    tier.let_go()
    assert begun.result(PATIENCE).status_code == 200
    # Their connections are open on this side.
    assert tier.process.wait(PATIENCE) in (0, -signal.SIGTERM)
    for connection in stalled:
        connection.close()


def test_half_sent_headers_do_not_hold_a_stop_up(start: Callable[..., Process]) -> None:
    tier = start(DRAIN_TIMEOUT_S=600)
    with tier.connect(b"POST /v1/transcribe HTTP/1.1\r\nHost: t\r\n"), tier.connect(b""):
        assert tier.client.get("/v1/health").status_code == 200
        tier.process.send_signal(signal.SIGTERM)
        assert tier.process.wait(PATIENCE) in (0, -signal.SIGTERM)


@both
def test_an_inference_without_end_does_not_hold_a_stop_up(
    start: Callable[..., Process], how: signal.Signals
) -> None:
    tier = start(DRAIN_TIMEOUT_S=1)
    begun = tier.begin()
    tier.wait_for_an_inference()
    tier.process.send_signal(how)
    answer = begun.result(PATIENCE)
    assert (answer.status_code, answer.headers["X-Error-Type"]) == (503, "draining")
    assert tier.process.wait(PATIENCE) in (0, -how)


def test_callers_who_take_no_answer_do_not_hold_a_stop_up(start: Callable[..., Process]) -> None:
    tier = start(DRAIN_TIMEOUT_S=2)
    with tier.connect(b"") as deaf:
        deaf.setblocking(False)
        try:
            while True:
                deaf.send(b"GET /metrics HTTP/1.1\r\nHost: t\r\n\r\n" * 1000)
        except BlockingIOError:
            pass  # the service reads no more
        until(lambda: tier.writes_nothing_to(deaf), "it can write no more")
        tier.process.send_signal(signal.SIGTERM)
        assert tier.process.wait(PATIENCE) in (0, -signal.SIGTERM)
    assert tier.process.stdout is not None
    assert "ending with work unfinished" in tier.process.stdout.read()


@both
def test_shadows_do_not_hold_a_stop_up(
    start: Callable[..., Process], scripted: Callable[..., ScriptedFallback], how: signal.Signals
) -> None:
    fallback = scripted(Reply(holds=threading.Event()))
    settings = {"FALLBACK_URL": fallback.url, "SHADOW_RATE": 1, "FALLBACK_TIMEOUT_S": 600}
    tier = start(tier="primary", DRAIN_TIMEOUT_S=600, **settings)
    begun = tier.begin()
    tier.wait_for_an_inference()
    tier.let_go()
    assert begun.result(PATIENCE).status_code == 200
    fallback.wait_for(1)
    tier.process.send_signal(how)
    assert tier.process.wait(PATIENCE) in (0, -how)


def test_a_stop_ends_the_shadows_before_it_waits_for_anything_else(
    start: Callable[..., Process], scripted: Callable[..., ScriptedFallback]
) -> None:
    fallback = scripted(Reply(holds=threading.Event()))
    settings = {"FALLBACK_URL": fallback.url, "SHADOW_RATE": 1, "FALLBACK_TIMEOUT_S": 600}
    tier = start(tier="primary", DRAIN_TIMEOUT_S=600, **settings)
    first = tier.begin()
    tier.wait_for_an_inference()
    tier.let_go()
    assert first.result(PATIENCE).status_code == 200
    fallback.wait_for(1)
    second = tier.begin()
    tier.wait_for_an_inference()

    tier.process.send_signal(signal.SIGTERM)

    given_up = 'stt_shadow_total{result="skipped"} 1.0'
    until(lambda: given_up in tier.client.get("/metrics").text, "the shadow is given up")
    assert not second.done()
    tier.let_go()
    assert second.result(PATIENCE).status_code == 200  # which has no shadow
    assert tier.process.wait(PATIENCE) in (0, -signal.SIGTERM)
    assert len(fallback.asked) == 1


@both
def test_a_second_signal_ends_a_tier_at_once(
    start: Callable[..., Process], how: signal.Signals
) -> None:
    tier = start(DRAIN_TIMEOUT_S=600)
    begun = tier.begin()
    tier.wait_for_an_inference()
    tier.process.send_signal(signal.SIGTERM)
    until(lambda: tier.client.get("/v1/ready").status_code == 503, "it is stopping")
    tier.process.send_signal(how)
    assert tier.process.wait(PATIENCE) == -how
    with pytest.raises(httpx2.HTTPError):
        begun.result(PATIENCE)


def test_systemd_hears_of_a_stop_before_the_work_is_done(
    start: Callable[..., Process], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.settimeout(PATIENCE)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        tier = start()
        begun = tier.begin()
        tier.wait_for_an_inference()
        tier.process.send_signal(signal.SIGTERM)
        while b"STOPPING=1" not in systemd.recv(4096):
            assert tier.process.poll() is None
        assert not begun.done()
        tier.let_go()
        assert begun.result(PATIENCE).status_code == 200
        assert tier.process.wait(PATIENCE) in (0, -signal.SIGTERM)


def test_an_idle_tier_ends_at_once(start: Callable[..., Process]) -> None:
    tier = start(DRAIN_TIMEOUT_S=600)
    tier.process.send_signal(signal.SIGTERM)
    assert tier.process.wait(PATIENCE) in (0, -signal.SIGTERM)


@both
def test_stopping_during_the_load_does_not_wait_for_it(
    start: Callable[..., Process], how: signal.Signals
) -> None:
    tier = start(loads="never")
    tier.process.send_signal(how)
    tier.process.wait(PATIENCE / 2)  # half as long as the load goes on by itself
    assert tier.process.returncode in (0, 1, -how)


def uvicorn(app: str, settings: Path | None, cwd: Path) -> subprocess.CompletedProcess[str]:
    """The specification's own way of running, to its end."""
    environment = {"PATH": os.environ["PATH"]}
    if settings is not None:
        environment["CONFIG_PATH"] = str(settings)
    return subprocess.run(
        [sys.executable, "-m", "uvicorn", f"{app}:app", "--port", "0", "--workers", "1"],
        env=environment,
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_a_tier_without_its_model_ends_and_says_why(tmp_path: Path) -> None:
    file = env_file(tmp_path / "fallback.env", CT2_MEDIUM_PATH=tmp_path / "missing", DEVICE="cpu")
    ended = uvicorn("stt_fallback", file, tmp_path)
    assert ended.returncode == 1
    assert "model cannot be loaded" in ended.stderr
    assert str(tmp_path / "missing") in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_tier_without_its_settings_ends_and_says_which(tmp_path: Path) -> None:
    ended = uvicorn("stt_primary", None, tmp_path)
    assert ended.returncode != 0
    assert "stt_primary.env" in ended.stderr
    assert "CONFIG_PATH" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_wrong_settings_end_the_start_with_a_line_for_each(tmp_path: Path) -> None:
    file = env_file(tmp_path / "p.env", CT2_SMALL_PATH="m", DEVICE="tpu", MAX_CONCURENCY=2)
    ended = uvicorn("stt_primary", file, tmp_path)
    assert ended.returncode != 0
    assert f"{file}:2: DEVICE=tpu" in ended.stderr
    assert f"{file}:3: MAX_CONCURENCY" in ended.stderr
    assert "FALLBACK_URL: missing" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_importing_the_apps_loads_no_model_and_opens_no_socket(tmp_path: Path) -> None:
    file = env_file(
        tmp_path / "p.env", CT2_SMALL_PATH=tmp_path / "missing", FALLBACK_URL="http://127.0.0.1:9"
    )
    code = (
        "import sys\n"
        "def watch(event, args):\n"
        "    assert event not in ('socket.bind', 'socket.connect'), event\n"
        "sys.addaudithook(watch)\n"
        "import stt_primary\n"
        "assert stt_primary.app.state.service.tier.engine is None\n"
        "print('imported')\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code],
        env={"PATH": os.environ["PATH"], "CONFIG_PATH": str(file)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (ended.returncode, ended.stdout.splitlines()[-1]) == (0, "imported"), ended.stderr


def test_an_inference_that_never_ends_is_noticed_and_then_ends_the_process(
    start: Callable[..., Process],
) -> None:
    """Not ready first, then not healthy, then gone with a status of its own, whoever looks on."""
    tier = start(MAX_CONCURRENCY=2, INFER_TIMEOUT_S=2, WEDGED_EXIT_S=2)
    stuck = tier.begin()
    tier.wait_for_an_inference()
    assert tier.client.get("/v1/ready").status_code == 200

    until(lambda: tier.client.get("/v1/ready").json()["state"] == "slow", "it is not ready")
    assert tier.client.get("/v1/ready").status_code == 503
    assert tier.client.get("/v1/health").json()["ok"] is True

    until(lambda: tier.client.get("/v1/health").status_code == 503, "it is not healthy")
    assert tier.client.get("/v1/health").json()["ok"] is False
    assert tier.client.get("/v1/ready").json() == {"ready": False, "state": "wedged"}
    refused = tier.begin().result(PATIENCE)
    assert (refused.status_code, refused.headers["X-Error-Type"]) == (503, "not_ready")
    assert "does not end" in refused.headers["X-Error-Message"]

    assert tier.process.wait(PATIENCE) == 70
    with pytest.raises(httpx2.HTTPError):
        stuck.result(PATIENCE)
    assert tier.process.stdout is not None
    log = tier.process.stdout.read()
    assert "work on a clip does not end: not healthy" in log
    assert log.count("work on a clip takes long: not ready") == 1  # however often it is asked
    assert "nobody has restarted the process: ending it" in log


def test_an_inference_that_ends_late_makes_the_process_well_again(
    start: Callable[..., Process],
) -> None:
    tier = start(INFER_TIMEOUT_S=1, WEDGED_EXIT_S=600)
    late = tier.begin()
    tier.wait_for_an_inference()
    until(lambda: tier.client.get("/v1/health").status_code == 503, "it is not healthy")
    tier.let_go()
    assert late.result(PATIENCE).status_code == 200
    until(lambda: tier.client.get("/v1/ready").status_code == 200, "it is ready again")
    assert tier.client.get("/v1/health").json()["ok"] is True
