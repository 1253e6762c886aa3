"""What the chart renders starts, hears, takes new keys and stops, restricted as its pods are.

Two processes stand for two pods: each has the ConfigMap and the Secret of the chart where the chart
mounts them, the rest read-only, the chart's user, no capability, and the Services' names. What is
missing of a real pod is the seccomp filter of its runtime.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from conftest import model
from deploy import engines
from deploy.kubernetes import KEYS, objects, render
from deploy.kubernetes_objects import Object, env_file, pod
from fakes import PATIENCE
from pages import ROOT, SRC
from running import until

SAMPLE = ROOT / "samples/jfk.flac"
# As in docker/Dockerfile.*; the address is one of a network of its own.
START = "--host 0.0.0.0 --workers 1 --http stt_cascade.http.protocol:Protocol --no-proxy-headers"
PORTS = {"primary": "8081", "fallback": "8082"}
VALUES = (
    *KEYS,
    *(
        "--set",
        "primary.model.name=tiny.en,fallback.model.name=tiny.en,fallback.settings.BEAM_SIZE=1",
    ),
    *("--set", "primary.model.source=hostPath,primary.model.hostPath=/models"),
    # Every clip is asked of the fallback.
    *("--set", "primary.settings.CONF_LOGPROB_THRESHOLD=1"),
)


@pytest.fixture(scope="module")
def things() -> list[Object]:
    if "helm" in engines.missing():
        pytest.skip("helm: `make check-deploy` installs it")
    return objects(render(engines.ROOT, *VALUES))


@pytest.fixture(scope="module")
def network() -> Iterator[tuple[str, ...]]:
    """What starts a program in a network of its own, that has only itself."""
    if os.geteuid() or not all(map(shutil.which, ("unshare", "nsenter", "setpriv", "ip"))):
        pytest.skip("needs root, to make namespaces")
    up = "ip link set lo up && echo up && exec sleep infinity"
    words = ("unshare", "--net", "bash", "-c", up)
    with subprocess.Popen(words, stdout=subprocess.PIPE) as holder:
        try:
            assert holder.stdout
            if holder.stdout.readline() != b"up\n":
                pytest.skip("no network namespace can be made here")
            yield ("nsenter", f"--net=/proc/{holder.pid}/ns/net")
        finally:
            holder.kill()


def mounted(folder: Path, tier: str, things: list[Object]) -> None:
    """The folders of a pod."""
    for name in ("config", "secrets"):
        (folder / name).mkdir(parents=True)
    (folder / "config" / f"stt_{tier}.env").write_text(env_file(tier, things))
    (secret,) = (
        e for e in things if (e["kind"], e["metadata"]["name"]) == ("Secret", f"stt-{tier}-keys")
    )
    rotate(folder, secret["stringData"])
    (folder / "models").symlink_to(model("tiny.en").parent.resolve())
    (folder / "hosts").write_text("127.0.0.1 localhost stt-primary stt-fallback\n")


def rotate(folder: Path, files: dict[str, str]) -> None:
    """Put a Secret's files there as the kubelet does: behind a link that changes at once."""
    secrets = folder / "secrets"
    version = secrets / f"..{len(list(secrets.iterdir()))}"
    version.mkdir()
    for name, text in files.items():
        (version / name).write_text(text)
        if not (secrets / name).is_symlink():
            (secrets / name).symlink_to(Path("..data", name))
    (secrets / "..data_tmp").symlink_to(version.name)
    (secrets / "..data_tmp").rename(secrets / "..data")


def command(folder: Path, tier: str, things: list[Object], *words: str) -> tuple[str | Path, ...]:
    (workload,) = (
        e for e in things if (e["kind"], e["metadata"]["name"]) == ("Deployment", f"stt-{tier}")
    )
    spec = pod(workload)["spec"]
    (path,) = (e["value"] for e in spec["containers"][0]["env"] if e["name"] == "CONFIG_PATH")
    user = str(spec["securityContext"]["runAsUser"])
    return ("unshare", "--mount", "bash", ROOT / "tests/pod.sh", folder, user, path, *words)


def programs() -> dict[str, str]:
    here = (ROOT / ".venv/bin", *os.environ["PATH"].split(os.pathsep))
    return {
        "PATH": os.pathsep.join(map(str, here)),
        "PYTHONPATH": str(SRC),
        "PYTHON_AT": sys.base_prefix,
    }


@contextmanager
def running(
    network: tuple[str, ...], folder: Path, tier: str, things: list[Object]
) -> Iterator[subprocess.Popen[bytes]]:
    words = ("uvicorn", f"stt_{tier}:app", "--port", PORTS[tier], *START.split())
    start = (*network, *command(folder, tier, things, *words))
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(start, env=programs(), stdout=log, stderr=log)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def asked(network: tuple[str, ...], path: str, *options: str) -> tuple[int, Any]:
    """The primary's status and answer; 0 without one."""
    written = ("--silent", "--write-out", "\n%{http_code}", *options)
    done = subprocess.run(
        (*network, "curl", *written, f"http://127.0.0.1:8081{path}"),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    body, _, status = done.stdout.rpartition("\n")
    return int(status or 0), json.loads(body) if body else None


def transcribed(network: tuple[str, ...], key: str) -> tuple[int, Any]:
    clip = ("--form", f"audio=@{SAMPLE}", "--header", f"Authorization: Bearer {key}")
    return asked(network, "/v1/transcribe", *clip)


def test_both_tiers_work_in_their_pods(
    things: list[Object], network: tuple[str, ...], tmp_path: Path
) -> None:
    # Others than root go through it.
    for each in (tmp_path, *tmp_path.parents[:2]):
        each.chmod(0o755)
    with ExitStack() as stack:
        pods = {}
        for tier in ("fallback", "primary"):
            mounted(tmp_path / tier, tier, things)
            pods[tier] = stack.enter_context(running(network, tmp_path / tier, tier, things))

        def ready() -> bool:
            for tier, process in pods.items():
                assert process.poll() is None, (tmp_path / tier / "log").read_text()
            return asked(network, "/v1/ready")[0] == 200

        until(ready, "the primary is ready", 2 * PATIENCE)
        until(lambda: transcribed(network, "one")[0] == 200, "the fallback is ready", 2 * PATIENCE)

        status, answer = transcribed(network, "one")
        assert status == 200
        assert "ask not what your country" in answer["text"].lower()
        assert answer["routing"]["tier"] == "fallback"
        assert transcribed(network, "nobody's")[0] == 401

        rotate(tmp_path / "primary", {"api.keys": "new\n", "fallback.key": "three\n"})
        until(lambda: transcribed(network, "new")[0] == 200, "the new key is in force")
        assert transcribed(network, "one")[0] == 401

        for tier in ("primary", "fallback"):
            pods[tier].send_signal(signal.SIGTERM)
            status = pods[tier].wait(PATIENCE)
            assert status in (0, -signal.SIGTERM), (tmp_path / tier / "log").read_text()


def test_the_model_is_compared_with_its_digests_before_the_tier_starts(
    things: list[Object], network: tuple[str, ...], tmp_path: Path
) -> None:
    for each in (tmp_path, *tmp_path.parents[:2]):
        each.chmod(0o755)
    mounted(tmp_path / "pod", "primary", things)
    (workload,) = (
        e for e in things if (e["kind"], e["metadata"]["name"]) == ("Deployment", "stt-primary")
    )
    (check,) = pod(workload)["spec"]["initContainers"]

    def status() -> int:
        run = command(tmp_path / "pod", "primary", things, *check["command"])
        return subprocess.run(run, env=programs(), timeout=PATIENCE, check=False).returncode

    assert status() == 0
    (tmp_path / "pod/models").unlink()
    shutil.copytree(model("tiny.en"), tmp_path / "pod/models/whisper-tiny.en-ct2")
    with (tmp_path / "pod/models/whisper-tiny.en-ct2/model.bin").open("r+b") as weights:
        weights.write(b"spoilt")
    assert status() == 1
