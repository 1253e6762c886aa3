"""A container of namespaces: what `docker run` gives a process, where there is no Docker.

The image's tree is the root, read-only, with a tmpfs on /tmp; no privilege, and none to be had;
process ids of its own, so that the image's command is number 1. The network is that of whoever
starts it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

ENTER = r"""
set -eu
tree=$1; shift
mount --bind "$tree" "$tree"
mount -o remount,bind,ro "$tree"
mount -t tmpfs -o nosuid,nodev,noexec tmpfs "$tree/tmp"
mount -t proc proc "$tree/proc"
mount -t tmpfs -o nosuid,noexec,mode=755 tmpfs "$tree/dev"
for device in null zero full random urandom; do
  touch "$tree/dev/$device"; mount --bind "/dev/$device" "$tree/dev/$device"
done
while [ "$1" != -- ]; do
  mount --bind "$1" "$tree$2"; mount -o remount,bind,ro "$tree$2"; shift 2
done
shift
exec chroot "$tree" "$@"
"""


@dataclass
class Container:
    """One container.

    Args:
        tree: the image's files, where mount points may be made.
        config: the image's configuration: `User`, `Env`, `WorkingDir`, `Cmd`.
        mounts: what is to be seen at which path, read-only.
    """

    tree: Path
    config: dict[str, Any]
    mounts: dict[str, Path]
    log: Path
    _process: subprocess.Popen[bytes] | None = field(default=None, init=False)

    def start(self) -> None:
        for target, source in self.mounts.items():
            point = self.tree / target.lstrip("/")
            if source.is_dir():
                point.mkdir(parents=True, exist_ok=True)
            else:
                point.parent.mkdir(parents=True, exist_ok=True)
                point.touch()
        pairs = [str(word) for target, source in self.mounts.items() for word in (source, target)]
        namespaces = ("--mount", "--pid", "--ipc", "--uts", "--fork", "--kill-child")
        enter = ["unshare", *namespaces, "bash", "-c", ENTER, "enter", str(self.tree), *pairs, "--"]
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                [*enter, *self._as_user(self.config["Cmd"])],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    @property
    def first(self) -> psutil.Process:
        """The image's command, process 1 in there."""
        assert self._process
        (first,) = psutil.Process(self._process.pid).children()
        return first

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run it in the container, as `docker exec` does."""
        namespaces = ("--mount", "--pid", "--ipc", "--uts", "--root", "--")
        enter = ["nsenter", "--target", str(self.first.pid), *namespaces]
        return subprocess.run(
            [*enter, *self._as_user(command)],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def stop(self, patience_s: float) -> tuple[int, float]:
        """Stop it as the image says: its status, -15 for SIGTERM, and the seconds that it took.

        Raises:
            subprocess.TimeoutExpired: it did not stop.
        """
        assert self._process
        began = time.monotonic()
        os.kill(self.first.pid, signal.Signals[self.config["StopSignal"]])
        return self._process.wait(patience_s), time.monotonic() - began

    def kill(self) -> None:
        if self._process:
            self._process.kill()  # and, by --kill-child, all that is in there
            self._process.wait()

    def _as_user(self, command: list[str] | tuple[str, ...]) -> list[str]:
        user, _, group = self.config["User"].partition(":")
        return [
            *("/usr/bin/setpriv", "--reuid", user, "--regid", group, "--clear-groups"),
            *("--no-new-privs", "--inh-caps=-all", "--bounding-set=-all"),
            *("/usr/bin/env", "--ignore-environment", f"--chdir={self.config['WorkingDir']}"),
            *self.config["Env"],
            *command,
        ]
