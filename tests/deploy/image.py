"""`make image-check`: build both images, run them without privileges, and look whether they work.

buildah builds them from the real Dockerfiles, on a base that debootstrap makes under the name that
they ask for. They run in namespaces (container.py), with the settings and keys that Compose mounts,
in a network of their own. Needs root, Debian's packages and PyPI, Whisper base in models/, and some
GB in .engines/. With --docker Docker itself runs them, too (dockers.py).
"""

from __future__ import annotations

import argparse
import fcntl
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
import wave
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import av
import numpy as np

from deploy import dockers, engines
from deploy.building import COMMIT, STORE, base, build, make_base, mounted, output, say
from deploy.container import Container
from deploy.dockers import until
from deploy.images import TIERS, start
from stt_sdk import STTError, SyncSTTClient

ROOT = engines.ROOT
# Longer than DRAIN_TIMEOUT_S, as in every command that runs a container.
PATIENCE_S = 40.0
NOT_IN_AN_IMAGE = ("gcc", "cc", "g++", "c++", "clang", "ld", "as", "make", "pytest", "ruff", "mypy")
# Prints the folders in which a file can be made.
WRITABLE = """
import os, tempfile
for top, folders, _ in os.walk("/"):
    folders[:] = [] if top in ("/proc", "/dev") else folders
    try:
        tempfile.TemporaryFile(dir=top).close()
    except OSError:
        continue
    print(top)
"""


class Report:
    """What was looked at, and what of it is wrong."""

    def __init__(self) -> None:
        self.wrong = 0

    def __call__(self, what: str, good: bool, seen: object = "") -> None:
        self.wrong += not good
        say(f"    {'ok    ' if good else 'WRONG '} {what}{f': {seen}' if seen != '' else ''}")


def check(report: Report) -> None:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="stt-image-")))
        folder.chmod(0o755)
        secrets, hosts = folder / "secrets", folder / "hosts"
        output("make", "--no-print-directory", "-C", ROOT, "secrets", f"SECRETS={secrets}")
        hosts.write_text("127.0.0.1 localhost stt-fallback stt-primary\n")
        running = {}
        for tier in reversed(TIERS):
            say(f"==> The image of the {tier}")
            tree, config = stack.enter_context(mounted(tier))
            look_at(tier, tree, config, report)
            seen = {
                "/config": ROOT / "configs/container/cpu",
                "/models": (ROOT / "models").resolve(),
                "/run/secrets": secrets / tier,
                "/etc/hosts": hosts,
            }
            running[tier] = Container(tree, config, seen, folder / f"{tier}.log")
            stack.callback(show_log, running[tier], report)
            running[tier].start()
            stack.callback(running[tier].kill)
        for tier, container in running.items():
            say(f"==> The running {tier}")
            look_into(tier, container, report)
        say("==> Both together")
        transcribe(secrets, report)
        stop(running, secrets, folder, report)


def show_log(container: Container, report: Report) -> None:
    if report.wrong or sys.exc_info()[0]:
        say(container.log.read_text()[-3000:])


def look_at(tier: str, tree: Path, config: dict[str, Any], report: Report) -> None:
    """What can be seen without running it."""
    report("starts as every supervisor starts it", config["Cmd"] == start(tier))
    report("runs as", config["User"] == "10001:10001", config["User"])
    report("has, in MB", True, output("du", "-sm", tree).split()[0])
    folders = [tree / "usr/bin", tree / "usr/local/bin", tree / "opt/stt/venv/bin"]
    found = [name for name in NOT_IN_AN_IMAGE if any((each / name).exists() for each in folders)]
    report("has no compiler and no tool of developers", not found, " ".join(found))
    mounted = ("-name", "*.keys", "-o", "-name", "*.key", "-o", "-name", "model.bin")
    found = output("find", tree / "opt", "(", *mounted, "-o", "-name", "*.env", ")").split()
    report("has no model, key or setting in it", not found, " ".join(found))
    others = ("(", "-not", "-user", "0", "-o", "-perm", "/022", ")", "-not", "-type", "l")
    writable = output("find", tree / "opt", *others)
    report("cannot change what it runs", not writable, writable[:200])


def look_into(tier: str, container: Container, report: Report) -> None:
    began = time.monotonic()
    with SyncSTTClient(f"http://127.0.0.1:{TIERS[tier]}", timeout=5.0, retries=0) as client:
        until(f"the {tier} is ready", lambda: is_ready(client))
        report("is ready after s", True, round(time.monotonic() - began, 1))
        health = client.health()
    report("tells the commit that it was built from", health.commit == COMMIT, health.commit)
    asks = container.config["Healthcheck"]["Test"][1:]
    done = container.run(*asks)
    report("is healthy by its own health check", done.returncode == 0, done.stderr.strip())
    done = container.run(*asks[:-1], "1")
    report("would be unhealthy if nobody answered", done.returncode == 1, done.stderr.strip())
    lines = Path(f"/proc/{container.first.pid}/status").read_text().splitlines()
    status = dict(line.split(":\t", 1) for line in lines)
    command = " ".join(container.first.cmdline()[:3])
    report("is process 1", status["NSpid"].split()[-1] == "1", command)
    report("is not root", set(status["Uid"].split()) == {"10001"}, status["Uid"].split()[0])
    held = {status[each] for each in ("CapPrm", "CapEff", "CapBnd", "CapAmb")}
    none = held == {"0" * 16} and status["NoNewPrivs"] == "1"
    report("has no capability, and gets none", none)
    places = container.run("python", "-c", WRITABLE).stdout.split()
    report("can write nowhere but to", places == ["/tmp"], " ".join(places))  # noqa: S108  # the container's, seen and not used
    freeze = container.run("python", "-m", "pip", "freeze", "--all").stdout.splitlines()
    installed = {line.lower().replace("_", "-") for line in freeze if "==" in line}
    locked = (ROOT / "requirements-cpu.txt").read_text()
    strange = installed - {line.split()[0] for line in locked.splitlines() if "==" in line}
    report(
        "has packages, all as locked", bool(installed) and not strange, strange or len(installed)
    )


def is_ready(client: SyncSTTClient) -> bool:
    try:
        return client.ready().ready
    except STTError:
        return False


def key(secrets: Path) -> str:
    return (secrets / "primary/api.keys").read_text().split()[0]


def transcribe(secrets: Path, report: Report) -> None:
    url = f"http://127.0.0.1:{TIERS['primary']}"
    with SyncSTTClient(url, api_key=key(secrets), timeout=60.0) as client:
        answer = client.transcribe(ROOT / "samples/jfk.flac")
        report("transcribe real speech", "ask not what your country" in answer.text, answer.text)
        answer = client.transcribe(ROOT / "samples/bad-line.flac")
        report("ask the fallback in doubt", answer.routing.fallback_used, answer.text)
    # A folder is mounted, so a file that is replaced is the one that is seen.
    (secrets / "primary/new").write_text(f"{key(secrets)}\nanother-key\n")
    (secrets / "primary/new").rename(secrets / "primary/api.keys")
    with SyncSTTClient(url, api_key="another-key", timeout=60.0, retries=0) as client:
        until("the new key is in force", lambda: takes(client))
    report("take a key that is new in the mounted folder", True)


def takes(client: SyncSTTClient) -> bool:
    try:
        return bool(client.transcribe(ROOT / "samples/austen.flac").text)
    except STTError:
        return False


def long_clip(folder: Path) -> Path:
    """Half a minute of real speech: more than one window."""
    with av.open(str(ROOT / "samples/jfk.flac")) as source:
        frames = [frame.to_ndarray() for frame in source.decode(audio=0)]
    samples = np.tile(np.concatenate(frames, axis=1).ravel(), 3)
    with wave.open(str(folder / "long.wav"), "wb") as clip:
        clip.setnchannels(1)
        clip.setsampwidth(2)
        clip.setframerate(16_000)
        clip.writeframes(samples.astype("<i2").tobytes())
    return folder / "long.wav"


def stop(running: dict[str, Container], secrets: Path, folder: Path, report: Report) -> None:
    """SIGTERM while the primary works on a clip: that is answered, then both are gone."""
    url, clip = f"http://127.0.0.1:{TIERS['primary']}", long_clip(folder)
    with (
        SyncSTTClient(url, api_key=key(secrets), timeout=60.0, retries=0) as client,
        ThreadPoolExecutor(1) as pool,
    ):
        answer = pool.submit(client.transcribe, clip)
        until("the primary works on it", lambda: client.metrics()["in_flight"] > 0)
        status, took = running["primary"].stop(PATIENCE_S)
        text = answer.result().text
    report("SIGTERM: the clip in work is answered", text.count("ask not") >= 2, f"...{text[-40:]}")
    well = status in (0, -signal.SIGTERM)
    report("SIGTERM: the primary ends, after s", well, f"{took:.1f}, status {status}")
    status, took = running["fallback"].stop(PATIENCE_S)
    well = status in (0, -signal.SIGTERM)
    report("SIGTERM: the fallback ends, after s", well, f"{took:.1f}, status {status}")


def loopback_up() -> None:
    """In a new network namespace even 127.0.0.1 is down."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, 0x8914, struct.pack("16sh14x", b"lo", 0x49))  # SIOCSIFFLAGS: up


def main() -> int:
    parser = argparse.ArgumentParser(prog="make image-check", description=__doc__)
    parser.add_argument("--docker", action="store_true", help="run them with Docker, too")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside:
        loopback_up()
        report = Report()
        check(report)
        if options.docker:
            with tempfile.TemporaryDirectory(prefix="stt-docker-") as folder:
                dockers.check(Path(folder), report)
        say(f"==> {f'{report.wrong} wrong' if report.wrong else 'Both images work'}")
        return 1 if report.wrong else 0
    STORE.mkdir(parents=True, exist_ok=True)
    engines.install()
    make_base(base())
    build()
    if options.docker:
        dockers.save_images()
    # Nothing that runs in there is reached from outside, whatever it listens on.
    again = ["unshare", "--net", "--mount", sys.executable, "-m", "deploy.image", "--inside"]
    return subprocess.run([*again, *sys.argv[1:]], check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
