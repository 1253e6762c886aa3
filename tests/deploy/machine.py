"""A host with systemd as its first process: a container of this one's files.

What it writes goes to memory, and its network is its own. The rest is real: the system manager, its
sandbox, the kernel's cgroups and filters.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

BOOT_S = 60.0
LIMIT_S = 900.0
NSENTER, MOUNT, UMOUNT = "/usr/bin/nsenter", "/usr/bin/mount", "/usr/bin/umount"


def unable() -> str:
    """Why there can be none here; empty if there can."""
    if os.geteuid():
        return "a container with systemd takes root"
    for program, package in (("systemd-nspawn", "systemd-container"), ("nsenter", "util-linux")):
        if shutil.which(program) is None:
            return f"a container with systemd takes {program}, of Debian's {package}"
    if " cgroup2 " not in Path("/proc/self/mounts").read_text():
        return "a container with systemd takes control groups of version 2"
    return ""


class Machine:
    """One host. `root` has its files, as this one sees them."""

    def __init__(self, root: Path, leader: int) -> None:
        self.root = root
        self.leader = leader

    def run(
        self, line: str, *, check: bool = True, environment: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a line of shell in it, as root."""
        variables = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}
        variables |= environment or {}
        done = subprocess.run(
            [NSENTER, "--all", "--target", str(self.leader), "--wd", "sh", "-c", line],
            env=variables,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
        )
        if check and done.returncode:
            raise AssertionError(f"{line}: {done.returncode}\n{done.stdout}{done.stderr}")
        return done

    def said(self, line: str) -> str:
        return self.run(line).stdout.strip()

    def property(self, unit: str, name: str) -> str:
        return self.said(f"systemctl show --value --property={name} {unit}")

    def until(self, line: str, patience_s: float = 120.0) -> None:
        """Until that line of shell succeeds."""
        give_up = time.monotonic() + patience_s
        while (done := self.run(line, check=False)).returncode:
            assert time.monotonic() < give_up, f"{line}: {done.stdout}{done.stderr}"
            time.sleep(0.05)


@contextmanager
def machine(folder: Path, name: str) -> Iterator[Machine]:
    """One that has started, until the end; an empty folder is for its files."""
    with ExitStack() as stack:
        root = _files(folder, stack)
        console = stack.enter_context((folder / "console").open("wb"))
        group = stack.enter_context(_group(name))
        process = subprocess.Popen(
            [
                # Two of them in one group would stop each other's services.
                *("/bin/sh", "-c", f'echo $$ > {group}/cgroup.procs && exec "$@"', "sh"),
                *("systemd-nspawn", "--quiet", "--boot", f"--directory={root}"),
                *(f"--machine={name}", "--register=no", "--keep-unit", "--link-journal=no"),
                *("--private-network", "--console=pipe", "--resolv-conf=off", "--timezone=off"),
                # With these alone an address can be filtered.
                *("--system-call-filter=bpf", "--capability=CAP_BPF"),
                *("systemd.unit=multi-user.target", "systemd.mask=getty.target"),
            ],
            env={**os.environ, "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1"},
            stdin=subprocess.DEVNULL,
            stdout=console,
            stderr=subprocess.STDOUT,
        )
        try:
            started = Machine(root, _leader(process))
            started.until("systemctl is-active --quiet multi-user.target", BOOT_S)
            yield started
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(BOOT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _files(folder: Path, stack: ExitStack) -> Path:
    """This host's, below a layer in memory; which of its services start is left out."""
    memory, root = folder / "memory", folder / "root"
    for each in (memory, root):
        each.mkdir()
    _mount(stack, memory, "-t", "tmpfs", "tmpfs")
    for layer in ("upper", "work"):
        (memory / layer).mkdir()
    options = f"lowerdir=/,upperdir={memory / 'upper'},workdir={memory / 'work'}"
    _mount(stack, root, "-t", "overlay", "-o", options, "overlay")
    for enabled in (root / "etc/systemd/system", *(root / "etc").glob("rc[0-9].d")):
        shutil.rmtree(enabled)
        enabled.mkdir()
    return root


@contextmanager
def _group(name: str) -> Iterator[Path]:
    """A control group of its own."""
    mounts = (line.split() for line in Path("/proc/self/mounts").read_text().splitlines())
    group = Path(next(where for _, where, kind, *_ in mounts if kind == "cgroup2"), name)
    group.mkdir(exist_ok=True)
    try:
        yield group
    finally:
        for folder in sorted(group.rglob("*/"), reverse=True):
            folder.rmdir()
        group.rmdir()


def _mount(stack: ExitStack, where: Path, *what: str) -> None:
    subprocess.run([MOUNT, *what, where], check=True)
    stack.callback(lambda: subprocess.run([UMOUNT, "--lazy", where], check=False))


def _leader(process: subprocess.Popen[bytes]) -> int:
    """The first process of the container."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    give_up = time.monotonic() + BOOT_S
    while time.monotonic() < give_up and process.poll() is None:
        for child in children.read_text().split():
            if Path(f"/proc/{child}/comm").read_text().strip() == "systemd":
                return int(child)
        time.sleep(0.02)
    raise AssertionError("systemd does not start in a container here")
