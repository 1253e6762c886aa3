"""`stt up` and `stt demo` run real tiers, and leave none behind, however they end."""

from __future__ import annotations

import os
import re
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from running import read_response
from stt_cascade import weights
from stt_cascade.cli.demo import told
from stt_cascade.cli.hardware import recipes
from stt_cascade.cli.stack import as_env, free_port
from stt_cascade.config import FallbackConfig
from stt_cascade.config_file import load
from stt_sdk import Confidence, ConnectionFailed, Routing, Timings, Transcription

ROOT = Path(__file__).parent.parent
MODELS = ROOT / "models"
SAMPLES = ROOT / "samples"
# Seconds after which a test gives up; a tier takes about 2 to start.
PATIENCE = 60.0

needs_weights = pytest.mark.skipif(
    "base" not in weights.installed(MODELS), reason="needs Whisper base: stt models pull base"
)


class Command:
    """A running `stt`, with folders for temporary files of its own."""

    def __init__(self, arguments: Sequence[str | Path], folder: Path) -> None:
        self.folder = folder
        self.environment = {
            **os.environ,
            "TMPDIR": str(folder),
            "XDG_RUNTIME_DIR": str(folder),
            "COLUMNS": "200",
        }
        self.process = subprocess.Popen(
            stt(arguments),
            cwd=folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.output = ""
        self._watchdog = threading.Timer(PATIENCE, self.process.kill)
        self._watchdog.start()

    def read_until(self, words: str) -> None:
        """Read what it prints, up to the line that has these words."""
        assert self.process.stdout
        for line in self.process.stdout:
            self.output += line
            if words in line:
                return
        pytest.fail(f"it never printed {words!r}, but:\n{self.output}")

    def end(self) -> int:
        """Read on to its end; the exit status."""
        assert self.process.stdout
        self.output += self.process.stdout.read()
        return self.process.wait()

    def children(self) -> dict[str, int]:
        """The tiers' process ids."""
        pid = self.process.pid
        found = {}
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            words = Path(f"/proc/{child}/cmdline").read_text().split("\0")
            (app,) = [word for word in words if word.endswith(":app")]
            found[app.removeprefix("stt_").removesuffix(":app")] = int(child)
        return found

    def left(self) -> list[int]:
        """Processes that still run in its environment."""
        mark = f"TMPDIR={self.folder}".encode()
        return [pid for pid, environment in environments() if mark in environment]

    def close(self) -> None:
        self._watchdog.cancel()
        self.process.kill()
        self.process.communicate()
        for pid in self.left():
            os.kill(pid, signal.SIGKILL)


def stt(arguments: Sequence[str | Path]) -> list[str]:
    main = [sys.executable, "-c", "from stt_cascade.cli import main; main()"]
    return [*main, *map(str, arguments)]


def environments() -> Iterator[tuple[int, list[bytes]]]:
    """Every process that is alive, with its environment; a zombie has none."""
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                yield int(folder.name), (folder / "environ").read_bytes().split(b"\0")
            except OSError:
                continue  # it has just gone, or is somebody else's


@contextmanager
def running(folder: Path, *arguments: str | Path) -> Iterator[Command]:
    command = Command(arguments, folder)
    try:
        yield command
    finally:
        command.close()


@contextmanager
def ends_of(pids: Sequence[int]) -> Iterator[list[int]]:
    """File descriptors that become readable when the processes end."""
    with ExitStack() as open_files:
        descriptors = [os.pidfd_open(pid) for pid in pids]
        for descriptor in descriptors:
            open_files.callback(os.close, descriptor)
        yield descriptors


def have_ended(descriptors: Sequence[int]) -> bool:
    """Whether they all end before long."""
    return all(select.select([each], [], [], 10.0)[0] for each in descriptors)


def up(*options: str | Path) -> tuple[str | Path, ...]:
    """`stt up` on ports that nobody else counts on."""
    with (
        socket.create_server(("127.0.0.1", 0)) as one,
        socket.create_server(("127.0.0.1", 0)) as two,
    ):
        ports = [str(each.getsockname()[1]) for each in (one, two)]
    return ("up", "--models", MODELS, "--port", ports[0], "--fallback-port", ports[1], *options)


@needs_weights
@pytest.mark.process
def test_it_takes_other_ports_serves_and_leaves_nothing_behind_on_ctrl_c(tmp_path: Path) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as one,
        socket.create_server(("127.0.0.1", 0)) as two,
        running(
            tmp_path,
            *("up", "--models", MODELS),
            *("--port", str(one.getsockname()[1]), "--fallback-port", str(two.getsockname()[1])),
        ) as command,
    ):
        command.read_until("Ctrl-C stops both.")
        for taken in (one, two):
            port = taken.getsockname()[1]
            assert f"port {port} is taken; using " in command.output
            assert f"http://127.0.0.1:{port}/" not in command.output
        assert f"-F audio=@{SAMPLES / 'austen.flac'}" in command.output
        (folder,) = tmp_path.glob("stt-up-*")
        assert folder.stat().st_mode & 0o777 == 0o700

        answer = subprocess.run(
            stt(["transcribe", SAMPLES / "austen.flac"]),
            env=command.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert "amiable himself" in answer.stdout, answer.stdout + answer.stderr
        assert answer.returncode == 0
        for tier in ("primary", "fallback"):  # both have our protocol class
            port = re.search(rf"^{tier} .*:(\d+)$", command.output, re.MULTILINE)
            assert port is not None
            with socket.create_connection(("127.0.0.1", int(port[1])), 10.0) as connection:
                connection.sendall(b"rubbish\r\n\r\n")
                assert read_response(connection)[1]["x-error-type"] == "invalid_request"

        with ends_of(list(command.children().values())) as ends:
            command.process.send_signal(signal.SIGINT)
            assert command.end() == 0
            assert len(ends) == 2
            assert have_ended(ends)
        assert command.left() == []
        assert not folder.exists()
        assert not list(tmp_path.rglob("up.json"))


@needs_weights
@pytest.mark.process
def test_no_tier_outlives_an_stt_up_that_is_killed(tmp_path: Path) -> None:
    with running(tmp_path, *up()) as command:
        command.read_until("Ctrl-C stops both.")
        with ends_of(list(command.children().values())) as ends:
            command.process.kill()
            assert command.process.wait() == -signal.SIGKILL
            assert len(ends) == 2
            assert have_ended(ends)
        assert command.left() == []


@needs_weights
@pytest.mark.process
def test_a_tier_that_ends_by_itself_takes_the_other_along_and_is_named(tmp_path: Path) -> None:
    with running(tmp_path, *up()) as command:
        command.read_until("Ctrl-C stops both.")
        os.kill(command.children()["fallback"], signal.SIGKILL)
        assert command.end() == 1
        assert "The fallback was killed" in command.output
        assert "Uvicorn running on" in command.output  # its last lines
        assert command.left() == []


@needs_weights
@pytest.mark.process
def test_ctrl_c_while_a_tier_starts_leaves_nothing_behind(tmp_path: Path) -> None:
    with running(tmp_path, *up()) as command:
        command.read_until("Starting the fallback")
        command.process.send_signal(signal.SIGINT)
        assert command.end() == 0
        assert "ready after" not in command.output
        assert command.left() == []
        assert not list(tmp_path.glob("stt-up-*"))


@needs_weights
@pytest.mark.process
def test_a_broken_model_stops_the_start_with_the_reason(tmp_path: Path) -> None:
    folder = tmp_path / "models" / "whisper-base-ct2"
    folder.mkdir(parents=True)
    for file in weights.MODELS["base"].files:
        (folder / file.name).symlink_to(MODELS / folder.name / file.name)
    # Of the right size, so that nobody downloads it anew.
    (folder / "model.bin").unlink()
    with (folder / "model.bin").open("wb") as model:
        model.truncate((MODELS / folder.name / "model.bin").stat().st_size)
    with running(tmp_path, *up("--models", tmp_path / "models")) as command:
        assert command.end() == 1
        assert "The fallback ended by itself with status 1" in command.output
        assert f"the fallback's model cannot be loaded from {folder}" in command.output
        assert "Starting the primary" not in command.output
        assert command.left() == []


@needs_weights
@pytest.mark.process
def test_the_demo_hears_the_right_words_and_shows_an_escalation(tmp_path: Path) -> None:
    with running(tmp_path, "demo", "--models", MODELS) as command:
        assert command.end() == 0, command.output
        said = " ".join(command.output.replace("│", " ").split()).lower()
        assert said.count("he might even have been made amiable himself.") == 2
        kennedy = "ask not what your country can do for you, ask what you can do for your country."
        assert kennedy in said
        why = r"1 escalated to the fallback \(bad-line.flac, because .* too doubtful\)"
        assert re.search(f"3 clips: 2 answered by the primary, {why}", said)
        assert command.left() == []


@pytest.mark.process
def test_a_child_whose_parent_has_gone_does_not_start() -> None:
    leash = [sys.executable, "-m", "stt_cascade.cli.leash"]
    ours = subprocess.run([*leash, str(os.getpid()), "/bin/echo", "alive"], capture_output=True)
    assert (ours.returncode, ours.stdout) == (0, b"alive\n")
    other = str(os.getpid() + 1)
    orphan = subprocess.run([*leash, other, "/bin/echo", "alive"], capture_output=True)
    assert (orphan.returncode, orphan.stdout) == (1, b"")


def test_the_next_free_port_replaces_one_that_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert port < free_port(port) < port + 100
    assert free_port(port) == port


@pytest.mark.parametrize("name", ["plain", "it's a \\ folder", 'of "quotes" # and $HOME ${HOME}'])
def test_any_path_survives_the_settings_file(tmp_path: Path, name: str) -> None:
    path = tmp_path / "fallback.env"
    path.write_text(as_env({"CT2_MEDIUM_PATH": tmp_path / name}))
    assert load(FallbackConfig, path).model_path == tmp_path / name


def test_the_same_model_twice_is_a_second_opinion_on_any_machine() -> None:
    primary, fallback = recipes("base", "base", cores=2, gpu=False)
    assert (str(primary), primary.max_concurrency, primary.cpu_threads) == (
        "Whisper base, int8, greedy, on the CPU",
        2,
        1,
    )
    assert (str(fallback), fallback.max_concurrency, fallback.cpu_threads) == (
        "Whisper base, float32, beam 5, on the CPU",
        1,
        2,
    )
    for cores in (1, 2, 3, 6, 64):
        primary, _ = recipes("base", "base", cores=cores, gpu=False)
        assert primary.max_concurrency * primary.cpu_threads <= cores
    primary, fallback = recipes("small", "medium", cores=8, gpu=True)
    assert str(primary) == "Whisper small, float16, greedy, on the GPU"
    assert str(fallback) == "Whisper medium, int8, beam 5, on the GPU"


def answer(tier: str, reason: str, *below: str) -> Transcription:
    routing = Routing(tier, tier == "fallback", reason, below, degraded=False)
    return Transcription(
        *("hello", "en", 0.9, 1.0, 1.0, "base"),
        *(Confidence(0.9, 0.9, 1), routing, (), Timings(0.0, 1.0, None, 1.0), "id"),
    )


def test_one_sentence_tells_what_became_of_the_clips() -> None:
    assert (
        told(
            [
                (Path("a.wav"), answer("primary", "accepted")),
                (Path("b.wav"), answer("fallback", "low_confidence", "langprob", "words")),
                (Path("c.wav"), answer("fallback", "primary_error")),
                (Path("d.wav"), ConnectionFailed("nobody there")),
            ]
        )
        == "4 clips: 1 answered by the primary, 2 escalated to the fallback (b.wav, because the "
        "primary was not sure of the language and the primary heard too few words; c.wav, because "
        "the primary failed), 1 failed."
    )
    assert told([(Path("a.wav"), answer("primary", "no_speech"))]) == (
        "1 clip: 1 answered by the primary."
    )
