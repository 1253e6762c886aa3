"""`make image-check ARGS=--docker`: what docs/deploy.md tells to type, with Docker itself.

A Docker Engine of our own, in a network of its own, gets both images. `make start`, `rollback` and
`stop` and Docker Compose run them from a copy of the files, with real speech.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from deploy import engines
from deploy.building import STORE, buildah, say
from deploy.images import TIERS
from stt_sdk import STTError, SyncSTTClient

ROOT = engines.ROOT
SOCKET = STORE / "docker.sock"
NEEDED = ("Makefile", "deploy", "docker", "configs", "docker-compose.yml", ".env")
Report = Callable[..., None]


def archive(tier: str) -> Path:
    return STORE / f"{tier}.tar"


def save_images() -> None:
    """Both images as `docker load` takes them."""
    if not shutil.which("dockerd"):
        engines.install_debian(["docker.io", "iptables"])
    for tier in TIERS:
        archive(tier).unlink(missing_ok=True)
        image = f"localhost/stt-{tier}:check-cpu"
        buildah("push", "--quiet", image, f"docker-archive:{archive(tier)}:stt-{tier}:1.0-cpu")


@contextmanager
def engine() -> Iterator[None]:
    """A Docker Engine that only this process's network reaches."""
    folder, log = STORE / "docker", STORE / "docker.log"
    command: list[str | Path] = [
        "dockerd",
        "--data-root",
        folder / "data",
        "--exec-root",
        folder / "exec",
    ]
    command += ["--pidfile", folder / "pid", "--host", f"unix://{SOCKET}"]
    folder.mkdir(exist_ok=True)
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output)
    try:
        until("Docker answers", lambda: docker("info", check=False) != "")
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)
        shutil.rmtree(folder / "data", ignore_errors=True)


def docker(*words: str, check: bool = True) -> str:
    """What `docker` prints on standard output."""
    return _run("docker", *words, check=check)


def _run(*words: str | Path, cwd: Path = ROOT, check: bool = True) -> str:
    done = subprocess.run(
        words,
        cwd=cwd,
        env={**os.environ, "DOCKER_HOST": f"unix://{SOCKET}"},
        capture_output=True,
        text=True,
        check=False,
    )
    if check and done.returncode:
        raise RuntimeError(f"{' '.join(map(str, words))}: {done.stdout}{done.stderr}")
    return done.stdout.strip() if done.returncode == 0 else ""


def until(what: str, is_so: Callable[[], bool], patience_s: float = 180.0) -> None:
    """Raises TimeoutError if it does not get so."""
    end = time.monotonic() + patience_s
    while not is_so():
        if time.monotonic() > end:
            raise TimeoutError(f"not within {patience_s:g} s: {what}")
        time.sleep(0.2)


def check(folder: Path, report: Report) -> None:
    with ExitStack() as stack:
        stack.enter_context(engine())
        say("==> Docker itself")
        report("is", True, docker("version", "--format", "{{.Server.Version}}"))
        for tier in TIERS:
            docker("load", "--quiet", "--input", str(archive(tier)))
            archive(tier).unlink()
            docker("tag", f"stt-{tier}:1.0-cpu", f"stt-{tier}:1.1-cpu")
        copy = folder / "checkout"
        for name in NEEDED:
            put = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
            put(ROOT / name, _parent(copy / name))
        (copy / "models").symlink_to((ROOT / "models").resolve())
        say("==> make start, rollback and stop")
        _with_make(copy, report)
        say("==> Docker Compose")
        _with_compose(copy, report)


def _parent(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _state(name: str, what: str) -> str:
    return docker("inspect", "--format", f"{{{{{what}}}}}", name)


def _speech(copy: Path, report: Report) -> None:
    key = (copy / "secrets/primary/api.keys").read_text().split()[0]
    with SyncSTTClient("http://127.0.0.1:8081", api_key=key, timeout=60.0) as client:
        until("the primary is ready", lambda: _ready(client))
        answer = client.transcribe(ROOT / "samples/bad-line.flac")
    report("a clip in doubt is answered by the fallback", answer.routing.fallback_used, answer.text)


def _ready(client: SyncSTTClient) -> bool:
    try:
        return client.ready().ready
    except STTError:
        return False


def _with_make(copy: Path, report: Report) -> None:
    def make(*words: str) -> None:
        _run("make", *words, "BIND=127.0.0.1", cwd=copy)

    make("start")
    _speech(copy, report)
    healthy = ".State.Health.Status"
    until("both are healthy", lambda: all(_state(f"stt-{t}", healthy) == "healthy" for t in TIERS))
    report("Docker takes both for healthy", True)
    os.kill(int(_state("stt-primary", ".State.Pid")), signal.SIGKILL)
    until("it runs again", lambda: _state("stt-primary", ".RestartCount") == "1")
    _speech(copy, report)
    report("a primary that was killed is started again", True)
    make("start", "TAG=1.1")
    now = [_state(f"stt-{tier}", ".Config.Image") for tier in TIERS]
    report("make start TAG=1.1 runs", now == [f"stt-{t}:1.1-cpu" for t in TIERS], ", ".join(now))
    make("rollback")
    now = [_state(f"stt-{tier}", ".Config.Image") for tier in TIERS]
    report("make rollback runs", now == [f"stt-{t}:1.0-cpu" for t in TIERS], ", ".join(now))
    _speech(copy, report)
    make("stop")
    report("make stop leaves none", docker("ps", "--all", "--quiet") == "")


def _with_compose(copy: Path, report: Report) -> None:
    def compose(*words: str) -> str:
        return _run(engines.path("docker-compose"), *words, cwd=copy)

    compose("up", "--detach")
    _speech(copy, report)
    keys = copy / "secrets/primary/api.keys"
    (keys.parent / "new").write_text(f"another-key\n{keys.read_text()}")
    (keys.parent / "new").rename(keys)
    until("the new key is in force", lambda: _takes("another-key"))
    report("a key that is new in the mounted folder is taken", True)
    began = time.monotonic()
    compose("down")
    gone = docker("ps", "--all", "--quiet") == ""
    report("docker compose down leaves none, after s", gone, f"{time.monotonic() - began:.1f}")


def _takes(key: str) -> bool:
    url = "http://127.0.0.1:8081"
    with SyncSTTClient(url, api_key=key, timeout=60.0, retries=0) as client:
        try:
            return bool(client.transcribe(ROOT / "samples/austen.flac").text)
        except STTError:
            return False
