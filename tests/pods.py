"""Pods as processes: what the chart renders, mounted and restricted as a kubelet would.

Each container is a process that sees the pod's ConfigMaps, Secrets and empty folders where the
manifest mounts them, the rest read-only, and runs as the manifest's user without any capability.
All pods are in one network that has nothing else, where the Services' names are 127.0.0.1. What is
missing of a real pod is the seccomp filter of its runtime.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from deploy.kubernetes_objects import Object, pod
from fakes import PATIENCE
from pages import ROOT, SRC

# The words that start a program in the network.
Network = tuple[str, ...]
Secrets = dict[str, dict[str, str]]


@contextmanager
def network() -> Iterator[Network]:
    """A network of its own. Skips where none can be made."""
    if os.geteuid() or not all(map(shutil.which, ("unshare", "nsenter", "setpriv", "ip"))):
        pytest.skip("needs root, to make namespaces")
    words = (
        "unshare",
        "--net",
        "bash",
        "-c",
        "ip link set lo up && echo up && exec sleep infinity",
    )
    with subprocess.Popen(words, stdout=subprocess.PIPE) as holder:
        try:
            assert holder.stdout
            if holder.stdout.readline() != b"up\n":
                pytest.skip("no network namespace can be made here")
            yield ("nsenter", f"--net=/proc/{holder.pid}/ns/net")
        finally:
            holder.kill()


class Pod:
    """One pod of a workload.

    Args:
        folder: an empty one, for its volumes.
        things: all that was rendered.
        secrets: those that the chart does not make.
    """

    def __init__(
        self, folder: Path, network: Network, name: str, things: list[Object], secrets: Secrets
    ) -> None:
        (workload,) = (
            e for e in things if (e["kind"], e["metadata"]["name"]) == ("Deployment", f"stt-{name}")
        )
        made = {e["metadata"]["name"]: e["stringData"] for e in things if e["kind"] == "Secret"}
        self.name, self.folder, self._network = name, folder, network
        self._spec = pod(workload)["spec"]
        self._user = int(self._spec["securityContext"]["runAsUser"])
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._volumes: dict[str, Path] = {}
        folder.mkdir()
        (folder / "hosts").write_text(
            "127.0.0.1 localhost stt-primary stt-primary-pods stt-fallback\n"
        )
        for volume in self._spec["volumes"]:
            where = self._volumes[volume["name"]] = folder / "volumes" / volume["name"]
            if "hostPath" in volume:
                self._volumes[volume["name"]] = Path(volume["hostPath"]["path"])
                continue
            where.mkdir(parents=True)
            if "configMap" in volume:
                wanted = volume["configMap"]["name"]
                (data,) = (
                    e["data"]
                    for e in things
                    if (e["kind"], e["metadata"]["name"]) == ("ConfigMap", wanted)
                )
                update(where, data)
            elif "secret" in volume:
                files = {**made, **secrets}[volume["secret"]["secretName"]]
                items = volume["secret"].get("items", [{"key": k, "path": k} for k in files])
                update(where, {item["path"]: files[item["key"]] for item in items})
            else:
                os.chown(where, self._user, self._user)

    def volume(self, name: str) -> Path:
        return self._volumes[name]

    def command(self, container: Object) -> tuple[str | Path, ...]:
        """What runs it."""
        mounts = self.folder / f"{container['name']}.mounts"
        lines = []
        for mount in container["volumeMounts"]:
            source = (self._volumes[mount["name"]] / mount.get("subPath", "")).resolve()
            lines.append(
                f"{source} {mount['mountPath']} {'ro' if mount.get('readOnly') else 'rw'}\n"
            )
        mounts.write_text("".join(lines))
        root = self.folder / f"{container['name']}.root"
        root.mkdir(exist_ok=True)
        values = (f"{each['name']}={each['value']}" for each in container.get("env", ()))
        return (
            *(*self._network, "unshare", "--mount", "bash", ROOT / "tests/pod.sh"),
            *(root, mounts, self.folder / "hosts", str(self._user)),
            *("env", *values, *(container.get("command") or started(self.name))),
        )

    def first(self, name: str) -> int:
        """Run an init container to its end; its status."""
        (container,) = (e for e in self._spec["initContainers"] if e["name"] == name)
        run = self.command(container)
        return subprocess.run(run, env=_image(), timeout=PATIENCE, check=False).returncode

    @contextmanager
    def running(self) -> Iterator[None]:
        """Its containers, sidecars included."""
        sidecars = (e for e in self._spec.get("initContainers", ()) if "restartPolicy" in e)
        with ExitStack() as stack:
            for container in (*sidecars, *self._spec["containers"]):
                log = stack.enter_context((self.folder / f"{container['name']}.log").open("wb"))
                process = subprocess.Popen(
                    self.command(container), env=_image(), stdout=log, stderr=log
                )
                stack.callback(process.wait)
                stack.callback(process.kill)
                self._processes[container["name"]] = process
            yield

    def ready(self) -> bool:
        """Whether its readiness probe succeeds; takes a moment to say no.

        Raises:
            AssertionError: a container has ended.
        """
        for name, process in self._processes.items():
            assert process.poll() is None, f"{self.name}: {name}: {self.log(name)}"
        (container,) = self._spec["containers"]
        (port,) = (e["containerPort"] for e in container["ports"] if e["name"] == "http")
        url = f"http://127.0.0.1:{port}{container['readinessProbe']['httpGet']['path']}"
        ask = ("curl", "--silent", "--fail", "--retry", "1", "--retry-all-errors")
        asks = (*self._network, *ask, "--output", os.devnull, url)
        return subprocess.run(asks, timeout=PATIENCE, check=False).returncode == 0

    def hook(self, container: str) -> str:
        """The script of its preStop."""
        (found,) = (e for e in self._spec["containers"] if e["name"] == container)
        *_, script = found["lifecycle"]["preStop"]["exec"]["command"]
        return str(script)

    def stop(self) -> dict[str, int]:
        """As Kubernetes does, after preStop: the containers, then the sidecars. Their statuses."""
        statuses = {}
        for name, process in reversed(self._processes.items()):
            process.terminate()
            statuses[name] = process.wait(PATIENCE)
        return statuses

    def log(self, container: str) -> str:
        return (self.folder / f"{container}.log").read_text()


def started(tier: str) -> list[str]:
    """What the tier's image runs."""
    (words,) = re.findall(
        r"^CMD (.*)$", (ROOT / f"docker/Dockerfile.{tier}").read_text(), re.MULTILINE
    )
    command: list[str] = json.loads(words)
    return command


def update(volume: Path, files: dict[str, str]) -> None:
    """Put files there as the kubelet does: behind a link that changes at once."""
    version = volume / f"..{len(list(volume.iterdir()))}"
    version.mkdir()
    for name, text in files.items():
        (version / name).write_text(text)
        if not (volume / name).is_symlink():
            (volume / name).symlink_to(Path("..data", name))
    (volume / "..data_tmp").symlink_to(version.name)
    (volume / "..data_tmp").rename(volume / "..data")


def _image() -> dict[str, str]:
    """The environment of the images: where the programs are."""
    engines = sorted((ROOT / ".engines").glob("python/lib/python*/site-packages/envoy/_bin"))
    here = (ROOT / ".venv/bin", *engines, *os.environ["PATH"].split(os.pathsep))
    return {
        "PATH": os.pathsep.join(map(str, here)),
        "PYTHONPATH": str(SRC),
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHON_AT": sys.base_prefix,
    }
