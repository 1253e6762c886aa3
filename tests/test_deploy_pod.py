"""What the chart renders starts, hears, takes new keys and stops, restricted as its pods are."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from certificates import Authority
from conftest import model
from deploy import engines
from deploy.kubernetes import KEYS, Options, objects, render
from deploy.kubernetes_objects import Object
from fakes import PATIENCE
from pages import ROOT
from pods import Network, Pod, Secrets, network, update
from running import until

pytestmark = [pytest.mark.engines, pytest.mark.process]

SAMPLE = ROOT / "samples/jfk.flac"
SMALL = ("--set", "primary.model.name=tiny.en,fallback.model.name=tiny.en")
# Every clip is asked of the fallback.
DOUBTS = ("--set", "primary.settings.CONF_LOGPROB_THRESHOLD=1,fallback.settings.BEAM_SIZE=1")
MTLS = ("--set", "mtls.enabled=true")
ENVOY = ("--set", "envoy.enabled=true")


@pytest.fixture(scope="module")
def inside() -> Iterator[Network]:
    with network() as words:
        yield words


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """One that others than root go through."""
    for each in (tmp_path, *tmp_path.parents[:2]):
        each.chmod(0o755)
    return tmp_path


def rendered(models: Path, *options: Options) -> list[Object]:
    if "helm" in engines.missing():
        pytest.skip("helm: `make check-deploy` installs it")
    words = [word for each in (KEYS, SMALL, *options) for word in each]
    for tier in ("primary", "fallback"):
        words += ["--set", f"{tier}.model.source=hostPath,{tier}.model.hostPath={models}"]
    return objects(render(engines.ROOT, *words))


def certified(folder: Path) -> Secrets:
    """The Secrets of both Envoys, as cert-manager makes them."""
    if "envoy" in engines.missing():
        pytest.skip("envoy: `make check-deploy` installs it")
    authority = Authority(folder)
    secrets = {}
    for secret, name in (
        ("stt-primary-tls", "stt-primary"),
        ("stt-fallback-tls", "stt-fallback"),
        ("stt-tls", "stt.example"),
    ):
        pair = authority.issue(name)
        files = {"ca.crt": authority.cert, "tls.crt": pair.cert, "tls.key": pair.key}
        secrets[secret] = {name: file.read_text() for name, file in files.items()}
    return secrets


def transcribed(inside: Network, key: str, url: str = "http://127.0.0.1:8081") -> tuple[int, Any]:
    """Status and answer; 0 without one."""
    clip = ("--form", f"audio=@{SAMPLE}", "--header", f"Authorization: Bearer {key}")
    done = subprocess.run(
        (
            *inside,
            "curl",
            "--silent",
            "--insecure",
            "--write-out",
            "\n%{http_code}",
            *clip,
            f"{url}/v1/transcribe",
        ),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    body, _, status = done.stdout.rpartition("\n")
    return int(status or 0), json.loads(body) if body else None


@pytest.mark.parametrize("extra", [ENVOY, MTLS], ids=["behind-envoy", "mtls"])
@pytest.mark.weights
def test_both_tiers_work_in_their_pods(inside: Network, folder: Path, extra: Options) -> None:
    secrets = certified(folder / "authority")
    things = rendered(model("tiny.en").parent.resolve(), DOUBTS, extra)
    fallback = Pod(folder / "fallback", inside, "fallback", things, secrets)
    primary = Pod(folder / "primary", inside, "primary", things, secrets)
    with ExitStack() as stack:
        for each in (fallback, primary):
            stack.enter_context(each.running())
        for each in (fallback, primary):
            until(each.ready, f"the {each.name} is ready", 2 * PATIENCE)

        status, answer = transcribed(inside, "one")
        assert status == 200, answer
        assert "ask not what your country" in answer["text"].lower()
        assert answer["routing"]["tier"] == "fallback"
        assert transcribed(inside, "nobody's")[0] == 401
        if extra == MTLS:  # the fallback's key alone lets nobody in
            assert transcribed(inside, "three", "https://127.0.0.1:8443")[0] == 0
        if extra == ENVOY:
            envoy = Pod(folder / "envoy", inside, "envoy", things, secrets)
            stack.enter_context(envoy.running())
            https = "https://127.0.0.1:8443"
            until(lambda: transcribed(inside, "one", https)[0] == 200, "Envoy knows the primary")

        update(primary.volume("keys"), {"api.keys": "new\n", "fallback.key": "three\n"})
        until(lambda: transcribed(inside, "new")[0] == 200, "the new key is in force")
        assert transcribed(inside, "one")[0] == 401

        for each in (primary, fallback):
            assert set(each.stop().values()) <= {0, -signal.SIGTERM}


def test_an_envoy_that_is_to_go_serves_on_and_sends_its_callers_elsewhere(
    inside: Network, folder: Path
) -> None:
    secrets = certified(folder / "authority")
    envoy = Pod(folder / "envoy", inside, "envoy", rendered(folder, ENVOY), secrets)

    def answer() -> str:
        asks = (
            "curl",
            "--silent",
            "--insecure",
            "--http1.1",
            "--include",
            "https://127.0.0.1:8443/",
        )
        return subprocess.run((*inside, *asks), capture_output=True, text=True, check=False).stdout

    with envoy.running():
        until(lambda: answer() != "", "Envoy answers")
        assert "connection: close" not in answer()
        script = envoy.hook("envoy").rsplit("sleep", 1)[0]
        done = subprocess.run(
            (*inside, "bash", "-c", script), capture_output=True, text=True, check=True
        )
        assert "200 OK" in done.stdout
        # More and more of them, for as long as the drain takes.
        until(lambda: "connection: close" in answer(), "a caller is told to leave")
        assert envoy.stop() == {"envoy": 0}


@pytest.mark.weights
def test_the_model_is_compared_with_its_digests_before_the_tier_starts(
    inside: Network, folder: Path
) -> None:
    shutil.copytree(model("tiny.en"), folder / "models/whisper-tiny.en-ct2")
    things = rendered(folder / "models")
    pod = Pod(folder / "primary", inside, "primary", things, {})
    assert pod.first("model") == 0
    with (folder / "models/whisper-tiny.en-ct2/model.bin").open("r+b") as weights:
        weights.write(b"spoilt")
    assert pod.first("model") == 1
