"""Both images, built with buildah on a base that debootstrap makes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from deploy import engines
from deploy.images import instructions

STORE = engines.HOME / "image"
SUITE = "bookworm"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def say(text: str) -> None:
    print(text, flush=True)  # noqa: T201  # what the command is for


def environment() -> dict[str, str]:
    """For buildah: storage of our own, no daemon and no privileges of containers needed."""
    overlay = "\toverlay\n" in Path("/proc/filesystems").read_text()
    file = STORE / "storage.conf"
    file.write_text(
        f'[storage]\ndriver = "{"overlay" if overlay else "vfs"}"\n'
        f'graphroot = "{STORE}/graph"\nrunroot = "{STORE}/run"\n'
    )
    return {
        **os.environ,
        "CONTAINERS_STORAGE_CONF": str(file),
        "BUILDAH_ISOLATION": "chroot",
    }


def output(*words: str | Path) -> str:
    """What a command prints. Raises subprocess.CalledProcessError"""
    done = subprocess.run(words, env=environment(), stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout.strip()


def buildah(*words: str | Path) -> str:
    return output(engines.path("buildah"), *words)


def base() -> str:
    """The name of the image that the Dockerfiles begin with."""
    arguments = instructions((engines.ROOT / "docker/Dockerfile.primary").read_text())
    return next(rest for word, rest in arguments if word == "ARG").partition("=")[2]


def make_base(name: str) -> None:
    """Debian under that name, as debootstrap makes it, with the certificates that pip uses here."""
    full = f"docker.io/library/{name}"
    if full in buildah("images", "--format", "{{.Name}}:{{.Tag}}").splitlines():
        say(f"==> The base {name} is there")
        return
    say(f"==> Making the base {name} with debootstrap")
    container = buildah("from", "scratch")
    tree = Path(buildah("mount", container))
    output(engines.path("debootstrap"), "--variant=minbase", SUITE, tree)
    version = (tree / "etc/debian_version").read_text().strip()
    if not name.startswith(f"debian:{version}-"):
        say(f"    Debian is at {version} now, and the Dockerfiles name {name}")
    if certificates := os.environ.get("PIP_CERT") or os.environ.get("SSL_CERT_FILE"):
        shutil.copy(certificates, tree / "etc/this-machine.pem")
        (tree / "etc/pip.conf").write_text("[global]\ncert = /etc/this-machine.pem\n")
    output("chroot", tree, "apt-get", "clean")
    buildah("commit", "--quiet", "--rm", container, full)


def build() -> None:
    """Both images, by the target that everybody builds them with."""
    say("==> Building both images")
    options = "--layers --pull-never --format docker --quiet"
    told = ("VARIANT=cpu", "TAG=check", f"COMMIT={COMMIT}", f"BUILD={options}")
    make = ("make", "--no-print-directory", "-C", engines.ROOT, "images")
    say(output(*make, f"DOCKER={engines.path('buildah')}", *told))


@contextmanager
def mounted(tier: str) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The image's files, and its configuration."""
    name = f"localhost/stt-{tier}:check-cpu"
    config = json.loads(buildah("inspect", "--type", "image", name))["Docker"]["config"]
    container = buildah("from", "--pull-never", name)
    try:
        yield Path(buildah("mount", container)), config
    finally:
        buildah("rm", container)
