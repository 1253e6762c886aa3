"""What is wrong with the images' files is found: each fault is planted in a copy of them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import venv
from collections.abc import Callable
from importlib.metadata import distribution
from pathlib import Path

import pytest

from deploy import engines, images
from pages import ROOT, SRC, page_command
from running import Tiers

MAKE = shutil.which("make") or "make"
FILES = ("docker", "configs", "deploy", "docker-compose.yml", ".env")


def needs(*names: str) -> None:
    """Skip where one of these engines is not installed."""
    for name in names:
        try:
            engines.path(name)
        except engines.MissingEngine as error:
            pytest.skip(str(error))


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The files, to spoil."""
    for name in FILES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, tmp_path / name)
        else:
            shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def spoil(file: Path, what: str, instead: str) -> None:
    text = file.read_text()
    assert what in text, f"{what!r} is not in {file.name}"
    file.write_text(text.replace(what, instead))


@pytest.mark.engines
def test_there_is_nothing_wrong_with_the_files() -> None:
    needs("hadolint", "dclint", "docker-compose")
    assert list(images.check(ROOT)) == []


@pytest.mark.parametrize(
    ("what", "instead", "said"),
    [
        ("--no-install-recommends ", "", "DL3015"),
        ("WORKDIR /build", "WORKDIR build", "DL3000"),
        ("apt-get update \\\n    &&", "cd /tmp &&", "DL3003"),
    ],
)
@pytest.mark.engines
def test_hadolint_reads_the_dockerfiles(copy: Path, what: str, instead: str, said: str) -> None:
    needs("hadolint")
    spoil(copy / "docker/Dockerfile.primary", what, instead)
    assert said in "\n".join(images.dockerfiles(copy))


@pytest.mark.parametrize(
    ("what", "instead", "said"),
    [
        ("ARG BASE=debian:12.15-slim", "ARG BASE=debian", "its base debian has no version"),
        (" --require-hashes", "", "installs without hashes"),
        ("USER 10001:10001", "USER stt", "does not run as a user with a number"),
        ("USER 10001:10001", "USER 0", "does not run as a user with a number"),
        ("STOPSIGNAL SIGTERM", "STOPSIGNAL SIGKILL", "STOPSIGNAL"),
        ('CMD ["uvicorn", ', 'CMD ["sh", "-c", "uvicorn", ', "CMD has not the form"),
        ("--no-proxy-headers", "--proxy-headers", "CMD has not the form"),
        ("ENV PATH", "ENV NVIDIA_VISIBLE_DEVICES=all PATH", "takes GPUs that nobody gave it"),
        ('CMD ["python", "/opt', 'CMD curl -f ["/opt', "HEALTHCHECK"),
        ("USER 10001", "RUN apt-get install -y gcc\nUSER 10001", "has a compiler"),
        ("CMD [", 'ENTRYPOINT ["sh", "-c"]\nCMD [', "ENTRYPOINT"),
    ],
)
@pytest.mark.engines
def test_a_fault_in_a_dockerfile_is_found(copy: Path, what: str, instead: str, said: str) -> None:
    needs("hadolint")
    for tier in images.TIERS:
        spoil(copy / f"docker/Dockerfile.{tier}", what, instead)
    found = list(images.dockerfiles(copy))
    for tier in images.TIERS:
        assert any(f"Dockerfile.{tier}" in line and said in line for line in found), found


@pytest.mark.engines
def test_dockerfiles_that_part_company_are_found(copy: Path) -> None:
    needs("hadolint")
    spoil(copy / "docker/Dockerfile.fallback", "PYTHONUNBUFFERED=1", "PYTHONUNBUFFERED=0")
    assert "the Dockerfiles differ" in "\n".join(images.dockerfiles(copy))


@pytest.mark.parametrize(
    ("what", "instead", "said"),
    [
        ("name: stt", "name: stt\nversion: '3'", "obsolete"),
        ("    depends_on: [stt-fallback]", "    depends: [stt-fallback]", "depends"),
        ("x-tier: &tier", "x-tier: &thier", "tier"),
        ('"127.0.0.1:8082:8082"', '"8082:8082"', "no-unbound-port-interfaces"),
        ("restart: unless-stopped", 'restart: "no"', "is not started again"),
        ("  cap_drop: [ALL]\n", "", "keeps privileges"),
        ("stop_grace_period: 40s", "stop_grace_period: 30s", "is killed while it drains"),
        ("  read_only: true\n  tmpfs", "  tmpfs", "may write to its image"),
        ("./secrets/primary,", "./secrets/primary/api.keys,", "mounts a single file"),
        ("target: /run/secrets", "target: /run/api.keys", "mounts a single file"),
        ("target: /run/secrets", "target: /secrets", "where nothing is mounted"),
        ("target: /config, read_only: true", "target: /config", "can write to"),
        ("aliases: [stt-fallback]", "aliases: [fallback]", "asks for its fallback at"),
        ("prom/prometheus:v3.5.0", "prom/prometheus:latest", "has no version"),
        ("GF_SECURITY_ADMIN_PASSWORD__FILE", "GF_SECURITY_ADMIN_PASSWORD", "has a secret"),
        ("./configs/container/gpu", "./configs", "keys in it"),
        ("./deploy/alertmanager:", "./deploy/alerts:", "which is not there"),
        ("  alertmanager:\n    <<", "  alerts:\n    <<", "alertmanager is no service"),
    ],
)
@pytest.mark.engines
def test_a_fault_in_compose_is_found(copy: Path, what: str, instead: str, said: str) -> None:
    needs("dclint", "docker-compose")
    spoil(copy / "docker-compose.yml", what, instead)
    assert said in "\n".join(images.compose(copy))


@pytest.mark.engines
def test_settings_that_the_service_would_refuse_are_found(copy: Path) -> None:
    needs("dclint", "docker-compose")
    spoil(copy / "configs/container/cpu/stt_primary.env", "COMPUTE_TYPE", "COMPUTE_TIPE")
    assert "did you mean COMPUTE_TYPE" in "\n".join(images.compose(copy))


@pytest.mark.parametrize(
    ("file", "what", "instead", "said"),
    [
        ("deploy/docker.mk", "--restart unless-stopped", "", "is not started again"),
        ("deploy/docker.mk", "--stop-timeout 40", "--stop-timeout 10", "is killed while it drains"),
        ("deploy/docker.mk", "--read-only", "", "may write to its image"),
        ("deploy/docker.mk", ":/config:ro", "/stt.env:/config/stt.env:ro", "mounts a single file"),
    ],
)
def test_a_command_that_runs_a_container_badly_is_found(
    tmp_path: Path, file: str, what: str, instead: str, said: str
) -> None:
    (tmp_path / file).parent.mkdir(parents=True)
    shutil.copy(ROOT / file, tmp_path / file)
    assert list(images.run_commands(tmp_path)) == []
    spoil(tmp_path / file, what, instead)
    assert said in "\n".join(images.run_commands(tmp_path))
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/page.md").write_text(
        "```console\n$ docker run -d \\\n    stt-primary:1.0\n```\n"
    )
    assert "docs/page.md: docker run: is not started again" in "\n".join(
        images.run_commands(tmp_path)
    )


# The commit


def commit_of(environment: Path, settings: str, tmp_path: Path) -> str:
    """What a primary of that environment says that it was built from."""
    file = tmp_path / "p.env"
    file.write_text(f"CT2_SMALL_PATH=/m\nFALLBACK_URL=http://f:8082\n{settings}")
    packages = next(path for path in sys.path if path.endswith("site-packages"))
    script = "from config_loader import *; print(load(PrimaryConfig).server_commit)"
    done = subprocess.run(
        [environment / "bin/python", "-c", script],
        env={"CONFIG_PATH": str(file), "PYTHONPATH": f"{SRC}{os.pathsep}{packages}"},
        capture_output=True,
        text=True,
        check=False,
    )
    return (done.stdout + done.stderr).strip()


@pytest.mark.process
def test_the_commit_that_an_image_was_built_from_is_the_default(tmp_path: Path) -> None:
    environment = tmp_path / "venv"
    venv.create(environment, symlinks=True)
    assert commit_of(environment, "", tmp_path) == "unknown"
    (environment / "COMMIT").write_text("0123abc\n")
    assert commit_of(environment, "", tmp_path) == "0123abc"
    assert commit_of(environment, "SERVER_COMMIT=\n", tmp_path) == "0123abc"
    assert commit_of(environment, "SERVER_COMMIT=prod-1\n", tmp_path) == "prod-1"
    (environment / "COMMIT").write_bytes(b"\xff")
    assert "COMMIT: not UTF-8 text" in commit_of(environment, "", tmp_path)


# make


@pytest.fixture
def make(copy: Path, tmp_path: Path) -> Callable[..., tuple[str, list[str]]]:
    """Call make in a copy of the files; what it printed, and the calls of Docker that it made.

    In Docker's place is a script that knows which containers run.
    """
    shutil.copy(ROOT / "Makefile", copy)
    docker = tmp_path / "bin/docker"
    docker.parent.mkdir()
    docker.write_text(
        f"""#!/bin/bash
        cd {tmp_path}
        case "$1 $2" in
          "container inspect") exec test -e "runs-$3" ;;
          "image inspect") [[ $3 != *absent* ]]; exit ;;
          pull*) echo "no such image" >&2; exit 1 ;;
          "network inspect") exit 0 ;;
          exec*) [[ ! -e never-ready ]]; exit ;;
          *) echo "$@" >> calls ;;
        esac
        case $1 in
          run) touch "runs-$3" ;;
          rm) rm "runs-$2" ;;
        esac
        """
    )
    docker.chmod(0o755)

    def make(*words: str, status: int = 0) -> tuple[str, list[str]]:
        (tmp_path / "calls").write_text("")
        done = subprocess.run(
            [MAKE, *words],
            cwd=copy,
            env={"PATH": f"{docker.parent}{os.pathsep}{os.environ['PATH']}"},
            capture_output=True,
            text=True,
            check=False,
        )
        said = done.stdout + done.stderr
        assert done.returncode == status, said
        return said, (tmp_path / "calls").read_text().splitlines()

    return make


Make = Callable[..., tuple[str, list[str]]]


@pytest.mark.process
def test_make_builds_both_images_as_the_dockerfiles_say(make: Make) -> None:
    said, calls = make("images", "TAG=1.1", "VARIANT=gpu", "COMMIT=abc")
    assert calls == [
        f"build --file docker/Dockerfile.{tier} --build-arg VARIANT=gpu --build-arg COMMIT=abc "
        f"--tag stt-{tier}:1.1 ."
        for tier in ("fallback", "primary")
    ]
    assert "docker build --file docker/Dockerfile.primary" in said
    assert make("images")[1][0].endswith("--tag stt-fallback:1.0-cpu .")


@pytest.mark.process
def test_make_pushes_both_images_to_a_registry(make: Make) -> None:
    assert "Say where" in make("push", status=2)[0]
    assert make("push", "REGISTRY=registry.example.com/your")[1] == [
        call
        for tier in ("fallback", "primary")
        for call in (
            f"tag stt-{tier}:1.0-cpu registry.example.com/your/stt-{tier}:1.0-cpu",
            f"push registry.example.com/your/stt-{tier}:1.0-cpu",
        )
    ]


@pytest.mark.process
def test_make_starts_the_fallback_first_with_folders_mounted(make: Make, copy: Path) -> None:
    said, calls = make("start")
    assert [call.split()[:3] for call in calls] == [
        ["run", "--name", "stt-fallback"],
        ["run", "--name", "stt-primary"],
    ]
    for tier, call in zip(("fallback", "primary"), calls, strict=True):
        assert f"{copy}/models:/models:ro" in call
        assert f"{copy}/secrets/{tier}:/run/secrets:ro" in call
        assert call.endswith(f" stt-{tier}:1.0-cpu")
        assert f"docker {call}".split() == next(
            line.split() for line in said.splitlines() if f"run --name stt-{tier}" in line
        )
    assert "--publish 127.0.0.1:8082:8082" in calls[0]
    assert "--publish 0.0.0.0:8081:8081" in calls[1]
    assert "--gpus all" in make("start", "VARIANT=gpu")[1][-1]
    pinned = "registry.example.com/your/stt-primary@sha256:0123"
    assert make("start", f"IMAGE_primary={pinned}")[1][-1].endswith(f" {pinned}")


@pytest.mark.process
def test_with_two_hosts_each_runs_one_tier(make: Make) -> None:
    (call,) = make("start", "TIERS=fallback", "BIND=0.0.0.0")[1]
    assert "--publish 0.0.0.0:8082:8082" in call
    (call,) = make("start", "TIERS=primary", f"CONFIGS={ROOT}/configs/container/gpu")[1]
    assert "--name stt-primary" in call
    assert "--publish 0.0.0.0:8081:8081" in call


@pytest.mark.process
def test_the_keys_that_make_makes_fit_and_stay(make: Make, copy: Path) -> None:
    make(*page_command("Compose and images", "make secrets").split()[1:])
    secrets = copy / "secrets"
    first = {path: path.read_text() for path in secrets.rglob("*") if path.is_file()}
    assert first[secrets / "primary/fallback.key"] == first[secrets / "fallback/api.keys"]
    assert first[secrets / "primary/api.keys"] != first[secrets / "fallback/api.keys"]
    assert secrets.stat().st_mode & 0o077 == 0
    make("secrets")
    assert first == {path: path.read_text() for path in secrets.rglob("*") if path.is_file()}


@pytest.mark.process
def test_rollback_brings_the_images_and_the_settings_back(make: Make, copy: Path) -> None:
    def settings_of(call: str) -> str:
        return (Path(call.split(":/config")[0].split()[-1]) / "stt_primary.env").read_text()

    assert "Nothing ran before" in make("rollback", status=2)[0]
    first = make("start")[1]
    before = settings_of(first[-1])
    spoil(copy / "configs/container/cpu/stt_primary.env", "RATE_LIMIT_RPS=15", "RATE_LIMIT_RPS=1")
    second = make("start", "TAG=1.1")[1]
    assert second[-1].endswith("stt-primary:1.1-cpu")
    assert settings_of(second[-1]) != before
    _, back = make("rollback")
    assert [call for call in back if call.startswith("run")] == first
    assert settings_of(back[-1]) == before
    assert [call for call in back if not call.startswith("run")] == [
        f"{what} stt-{tier}" for tier in ("fallback", "primary") for what in ("stop", "rm")
    ]
    # Once more: forward again.
    assert make("rollback")[1][-1] == second[-1]


@pytest.mark.process
def test_rollback_passes_over_a_release_that_did_not_get_ready(make: Make, tmp_path: Path) -> None:
    first = make("start")[1]
    (tmp_path / "never-ready").touch()
    for tag in ("1.1", "1.2"):
        said, _ = make("start", f"TAG={tag}", "PATIENCE=1", status=2)
        assert "did not get ready. Back: make rollback" in said
    (tmp_path / "never-ready").unlink()
    assert [call for call in make("rollback")[1] if call.startswith("run")] == first


@pytest.mark.process
def test_an_image_that_cannot_be_had_replaces_nothing(make: Make) -> None:
    make("start")
    said, calls = make("start", "TAG=absent", status=2)
    assert "no such image" in said
    assert calls == []
    assert "Nothing ran before" in make("rollback", status=2)[0]


@pytest.mark.process
def test_make_stops_the_primary_first(make: Make) -> None:
    make("start")
    assert make("stop")[1] == [
        "stop stt-primary",
        "rm stt-primary",
        "stop stt-fallback",
        "rm stt-fallback",
    ]


# Health


def asked(port: int, *path: str) -> int:
    """What the health check of an image ends with."""
    done = subprocess.run(
        [sys.executable, ROOT / "docker/health.py", str(port), *path],
        env={"http_proxy": "http://127.0.0.1:1"},
        capture_output=True,
        check=False,
    )
    return done.returncode


@pytest.mark.process
def test_the_health_check_tells_well_from_not_well_and_asks_no_proxy(tiers: Tiers) -> None:
    port = int(tiers.fallback().url.rpartition(":")[2])
    assert asked(port) == 0
    assert asked(port, "/v1/ready") == 0
    assert asked(port, "/v1/nothing") == 1
    assert asked(1) == 1


# What is installed


def pinned(name: str) -> dict[str, frozenset[str]]:
    """The requirements of a locked file, with their hashes."""
    entries = re.split(r"\n(?=\S)", (ROOT / name).read_text())
    return {
        entry.partition("\\")[0].strip(): frozenset(re.findall(r"sha256:(\w{64})", entry))
        for entry in entries
        if "==" in entry.partition("\n")[0]
    }


def test_the_images_have_what_the_tests_run_with_and_nothing_of_the_developers() -> None:
    tested = pinned("requirements.txt")
    cpu, gpu, build = (pinned(f"requirements-{name}.txt") for name in ("cpu", "gpu", "build"))
    assert cpu.items() <= gpu.items()
    assert {line.partition("==")[0] for line in gpu.keys() - cpu.keys()} == {
        *("nvidia-cublas-cu12", "nvidia-cuda-nvrtc-cu12", "nvidia-ml-py")
    }
    for line, hashes in {**cpu, **build}.items():
        assert hashes and hashes <= tested[line], line
    names = {line.partition("==")[0] for line in {*cpu, *gpu}}
    assert {"fastapi", "ctranslate2", "faster-whisper", "pip"} <= names
    assert "opentelemetry-exporter-otlp-proto-http" in names  # OTLP_ENDPOINT
    assert not names & {"pytest", "mypy", "ruff", "uv", "hatchling", "matplotlib", "schemathesis"}


def test_the_images_for_gpus_bring_the_libraries_of_cuda_that_the_engine_opens() -> None:
    files = distribution("ctranslate2").files or ()
    (library,) = (file.locate() for file in files if "libctranslate2" in file.name)
    opened = set(re.findall(rb"\0lib(cu\w+|nv\w+)\.so\.(\d+)\0", Path(library).read_bytes()))
    assert opened == {(b"cublas", b"12"), (b"cuda", b"1")}  # the latter is the driver's
    brought = {line.partition("==")[0] for line in pinned("requirements-gpu.txt")}
    assert {name for name in brought if re.fullmatch(r"nvidia-cu(?!da-).*-cu\d+", name)} == {
        "nvidia-cublas-cu12"
    }
