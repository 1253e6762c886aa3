"""`tests/smoke_test_stt.py`: a right service passes, and each wrong one fails where it is wrong."""

from __future__ import annotations

import http.client
import json
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

import smoke_test_stt as smoke
from conftest import ROOT
from fakes import PATIENCE, PRIMARY_KEY, FakeEngine
from running import RunningTier, Tiers, running_tiers
from stt_cascade.engine.protocol import Clip, Options, Utterance


class Slow(FakeEngine):
    def _utterance(self, clip: Clip, options: Options) -> Utterance:
        time.sleep(0.3)
        return super()._utterance(clip, options)


@contextmanager
def cascade(engine: FakeEngine | None = None, **settings: Any) -> Iterator[RunningTier]:
    """Tiers that hear four words wherever somebody speaks."""
    with running_tiers() as tiers:
        yield tiers.cascade(engine, vad=True, api_keys=(PRIMARY_KEY,), **settings)[0]


@pytest.fixture(scope="module")
def right() -> Iterator[RunningTier]:
    with cascade() as primary:
        yield primary


# Changes an answer: its path, status, headers and body.
Spoil = Callable[[str, int, dict[str, str], bytes], tuple[int, dict[str, str], bytes]]


@contextmanager
def spoiling(port: int, spoil: Spoil) -> Iterator[str]:
    """A proxy that is no use; its address."""

    class Handler(BaseHTTPRequestHandler):
        def _pass_on(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            body = self.rfile.read(length) if length < 10**9 else None
            connection = http.client.HTTPConnection("127.0.0.1", port)
            connection.putrequest(self.command, self.path, skip_host=True)
            for name, value in self.headers.items():
                connection.putheader(name, value)
            connection.endheaders(body)
            answer = connection.getresponse()
            found = spoil(self.path, answer.status, dict(answer.headers), answer.read())
            connection.close()
            status, headers, content = found
            self.send_response_only(status)
            for name, value in {**headers, "Content-Length": str(len(content))}.items():
                if name.lower() != "content-length" or value == str(len(content)):
                    self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        do_GET = do_HEAD = do_POST = _pass_on

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def tried(url: str, tmp_path: Path, *words: str) -> tuple[int, dict[str, tuple[str, str]]]:
    """The exit status, and each check's verdict with what it says."""
    file = tmp_path / "smoke.json"
    brief = ("--quick", "--repeat", "2", "--slo", "60")
    status = smoke.main(["--url", url, "--key", PRIMARY_KEY, "--json", str(file), *brief, *words])
    return status, {
        one["check"]: (one["state"], one["said"]) for one in json.loads(file.read_text())
    }


def failed(found: dict[str, tuple[str, str]]) -> set[str]:
    return {check for check, (state, _) in found.items() if state == "FAIL"}


def test_a_right_service_passes(
    right: RunningTier, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, found = tried(right.url, tmp_path)
    assert (status, failed(found)) == (0, set())
    skipped = {check for check, (state, _) in found.items() if state == "skipped"}
    assert skipped == {
        *("short and long clips", "times of words", "escalation"),
        *("408 request_timeout", "413 audio_too_long", "429 rate_limited"),
    }
    assert found["fallback rate by language"] == ("pass", "en 0% of 12")
    assert "21 checks passed, 6 skipped, 0 failed" in capsys.readouterr().out


def test_a_clip_of_a_manifest_in_which_nobody_speaks_needs_no_text(
    right: RunningTier, tmp_path: Path
) -> None:
    rows = [("austen.flac", "He might even", "en"), ("silence.wav", "", "")]
    (tmp_path / "silence.wav").write_bytes(smoke.silence(2.0))
    shutil.copy(smoke.SAMPLES / "austen.flac", tmp_path)
    lines = [json.dumps(dict(zip(("file", "text", "language"), row, strict=True))) for row in rows]
    (tmp_path / "manifest.jsonl").write_text("\n".join(lines))
    status, found = tried(right.url, tmp_path, "--audio", str(tmp_path))
    assert (status, failed(found)) == (0, set())
    assert found["language detected"] == ("pass", "2 of 2 right")


@pytest.mark.process
def test_it_runs_as_a_program_with_the_client_alone(right: RunningTier, tmp_path: Path) -> None:
    # Nothing of the service can be imported, nor what it needs.
    (tmp_path / "stt_sdk").symlink_to(ROOT / "src" / "stt_sdk")
    forbidden = ("stt_cascade", "fastapi", "numpy", "rich", "pytest", "running", "fakes")
    for name in forbidden:
        (tmp_path / f"{name}.py").write_text("raise ImportError")
    program = (
        "import runpy, sys; sys.path.insert(0, sys.argv.pop(1)); "
        "runpy.run_path(sys.argv.pop(1), run_name='__main__')"
    )
    words = ("--url", right.url, "--key", PRIMARY_KEY, "--quick", "--repeat", "1", "--slo", "60")
    done = subprocess.run(
        [
            *(sys.executable, "-c", program, str(tmp_path)),
            *(str(ROOT / "tests" / "smoke_test_stt.py"), *words),
        ],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 failed" in done.stdout
    assert "skipped  429 rate_limited" in done.stdout


def without(header: str) -> Spoil:
    def spoil(
        path: str, status: int, headers: dict[str, str], body: bytes
    ) -> tuple[int, dict[str, str], bytes]:
        return status, {k: v for k, v in headers.items() if k.lower() != header.lower()}, body

    return spoil


@pytest.mark.parametrize(
    ("header", "checks"),
    [
        ("X-Conf-Below", {"headers of a text"}),
        ("X-Route-Reason", {"headers of a text"}),
        ("X-Queue-Wait-ms", {"headers of a text"}),
        ("Allow", {"405 method_not_allowed"}),
        ("WWW-Authenticate", {"401 unauthorized"}),
    ],
)
def test_a_service_that_misses_a_header_fails(
    right: RunningTier, tmp_path: Path, header: str, checks: set[str]
) -> None:
    with spoiling(right.port, without(header)) as url:
        status, found = tried(url, tmp_path)
    assert (status, failed(found)) == (1, checks)
    assert any(header in found[check][1] for check in checks)


def test_a_service_without_metrics_fails(right: RunningTier, tmp_path: Path) -> None:
    def spoil(
        path: str, status: int, headers: dict[str, str], body: bytes
    ) -> tuple[int, dict[str, str], bytes]:
        return status, headers, body.replace(b"stt_no_speech", b"no_speech")

    with spoiling(right.port, spoil) as url:
        status, found = tried(url, tmp_path)
    assert (status, failed(found)) == (1, {"GET /metrics"})
    assert found["GET /metrics"][1] == "without stt_no_speech_total"


def test_a_service_whose_errors_are_of_another_form_fails(
    right: RunningTier, tmp_path: Path
) -> None:
    def spoil(
        path: str, status: int, headers: dict[str, str], body: bytes
    ) -> tuple[int, dict[str, str], bytes]:
        return status, headers, b'{"detail": "no"}' if status == 404 else body

    with spoiling(right.port, spoil) as url:
        status, found = tried(url, tmp_path)
    assert (status, failed(found)) == (1, {"404 not_found"})


@pytest.mark.process
def test_a_slow_service_fails_its_slo_and_nothing_else(tmp_path: Path) -> None:
    with cascade(Slow()) as primary:
        status, found = tried(primary.url, tmp_path, "--slo", "0.2")
    assert (status, failed(found)) == (1, {"p95 within the SLO"})
    assert found["p95 within the SLO"][1].endswith("; 0.2 s allowed")


def test_a_service_that_always_escalates_fails(tmp_path: Path) -> None:
    with cascade(FakeEngine(logprob=0.1)) as primary:
        status, found = tried(primary.url, tmp_path)
    assert (status, failed(found)) == (1, {"fallback rate by language"})
    assert found["fallback rate by language"][1] == "en 100% of 12; 50% allowed"
    assert found["escalation"] == ("pass", "12 of 12 calls")


class OneWord(FakeEngine):
    """Hears one word in a clip that is short, as the one that forces an escalation is."""

    def _utterance(self, clip: Clip, options: Options) -> Utterance:
        self.text = "Americans" if clip.duration < 2.5 else "one two three four"
        return super()._utterance(clip, options)


def test_one_word_forces_the_escalation_where_no_clip_is_doubted(tmp_path: Path) -> None:
    with cascade(OneWord(), min_words_for_conf=3) as primary:
        status, found = tried(primary.url, tmp_path)
    assert (status, failed(found)) == (0, set())
    assert found["escalation"][0] == "pass"
    assert "'words'" in found["escalation"][1]
    assert found["fallback rate by language"] == ("pass", "en 0% of 12")
    with cascade(OneWord(), min_words_for_conf=0) as primary:
        _, found = tried(primary.url, tmp_path)
    assert found["escalation"][0] == "skipped"
    assert "MIN_WORDS_FOR_CONF=0" in found["escalation"][1]


@pytest.mark.parametrize(("device", "gauges"), [("cuda", False), ("cpu", True)])
def test_gauges_of_another_device_than_the_one_in_use_fail(
    right: RunningTier, tmp_path: Path, device: str, gauges: bool
) -> None:
    def spoil(
        path: str, status: int, headers: dict[str, str], body: bytes
    ) -> tuple[int, dict[str, str], bytes]:
        body = body.replace(b'"device":"cpu"', f'"device":"{device}"'.encode())
        return status, headers, body + (b"stt_gpu_mem_used_mb 1\n" if path == "/metrics" else b"")

    def absent(
        path: str, status: int, headers: dict[str, str], body: bytes
    ) -> tuple[int, dict[str, str], bytes]:
        return status, headers, body.replace(b'"device":"cpu"', f'"device":"{device}"'.encode())

    with spoiling(right.port, spoil if gauges else absent) as url:
        assert smoke.verdict(smoke.Service(url, PRIMARY_KEY), smoke.prometheus)[0] == "FAIL"


def test_a_service_whose_fallback_fails_fails(tiers: Tiers, nobody: str, tmp_path: Path) -> None:
    primary = tiers.primary(
        *(FakeEngine(logprob=0.1),), fallback=nobody, vad=True, api_keys=(PRIMARY_KEY,)
    )
    status, found = tried(primary.url, tmp_path)
    assert status == 1
    assert found["texts"][0] == "FAIL"
    assert "502" in found["texts"][1]


@pytest.mark.parametrize("body", [b"{}", b"[]", b"<html>", b'{"text": 1}'])
def test_a_service_of_another_kind_fails_everywhere(
    right: RunningTier, tmp_path: Path, body: bytes
) -> None:
    def spoil(
        path: str, status: int, headers: dict[str, str], found: bytes
    ) -> tuple[int, dict[str, str], bytes]:
        return 200, {}, body

    with spoiling(right.port, spoil) as url:
        status, found = tried(url, tmp_path)
    assert status == 1
    assert "pass" not in {state for state, _ in found.values()}


def test_a_service_that_is_not_there_fails_everywhere(nobody: str, tmp_path: Path) -> None:
    status, found = tried(nobody, tmp_path)
    assert status == 1
    assert found["GET /v1/health"][0] == "FAIL"
    assert "pass" not in {state for state, _ in found.values()}


@pytest.mark.process
def test_ctrl_c_ends_it_with_what_was_found(tmp_path: Path) -> None:
    file = tmp_path / "smoke.json"
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        process = subprocess.Popen(
            [
                *(sys.executable, str(ROOT / "tests" / "smoke_test_stt.py")),
                *("--url", url, "--json", str(file)),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        with server.accept()[0]:  # which gets no answer
            process.send_signal(signal.SIGINT)
            out, said = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    assert f"0 checks passed, 0 skipped, {len(smoke.CHECKS)} not tried" in out
    assert "Traceback" not in said
    assert json.loads(file.read_text()) == []


def test_a_file_that_cannot_be_written_is_told_before_anything_is_tried(
    tmp_path: Path, nobody: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        smoke.main(["--url", nobody, "--json", str(tmp_path / "gone" / "x.json")])
    assert "cannot be written" in capsys.readouterr().err


def test_the_rate_limit_is_met_where_a_burst_may_be_sent(tmp_path: Path) -> None:
    with cascade(rate_limit_rps=20, rate_limit_burst=30) as primary:
        status, found = tried(primary.url, tmp_path, "--burst", "500")
    assert status == 0, found
    assert found["429 rate_limited"][0] == "pass"


@pytest.mark.process
def test_what_takes_long_is_tried_without_quick(right: RunningTier) -> None:
    stt = smoke.Service(right.url, PRIMARY_KEY)
    assert smoke.verdict(stt, smoke.request_timeout)[0] == "pass"
    assert smoke.verdict(stt, smoke.audio_too_long)[0] == "pass"


def test_metrics_behind_a_key_are_skipped_and_read_with_it(tmp_path: Path) -> None:
    with cascade(metrics_keys=("metrics-key-0123456789",)) as primary:
        status, found = tried(primary.url, tmp_path)
        assert status == 0
        assert found["GET /metrics"][0] == found["GET /v1/metrics"][0] == "skipped"
        _, found = tried(primary.url, tmp_path, "--metrics-key", "metrics-key-0123456789")
    assert found["GET /metrics"][0] == found["GET /v1/metrics"][0] == "pass"
