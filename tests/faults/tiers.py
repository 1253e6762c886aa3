"""Tiers as processes of their own, started as `stt up` starts them."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from faults import load, procfs
from faults.stub import Counts
from ports import own_port
from stt_cascade.cli.child import HOST, PROTOCOL
from stt_cascade.cli.stack import as_env

START_S = 60.0
TESTS = Path(__file__).parent.parent
# Nobody is slowed down by the rate limit; tests of it are elsewhere.
COMMON = {"DEVICE": "cpu", "RATE_LIMIT_RPS": 100_000, "RATE_LIMIT_BURST": 100_000}
MODEL = {"primary": "CT2_SMALL_PATH", "fallback": "CT2_MEDIUM_PATH"}


class Build(Protocol):
    """What a tier is made of; `name` is the tier's."""

    @property
    def model(self) -> str:
        """Folder of the weights."""

    def app(self, name: str) -> list[str]:
        """What uvicorn is told to run."""

    def settings(self, name: str) -> dict[str, Any]:
        """Settings that go with it."""

    def write(self, settings: Path) -> None:
        """Leave beside the settings file what it reads there."""


class Tier:
    """One running tier.

    Args:
        name: `primary` or `fallback`.
        build: what serves.
        folder: of its own, for settings, log and temporary files.
        command: what the server runs under, such as strace.
    """

    def __init__(
        self,
        name: str,
        folder: Path,
        build: Build,
        command: Sequence[str],
        settings: dict[str, Any],
    ) -> None:
        self.name = name
        self.port = own_port()
        self.settings = folder / f"{name}.env"
        self.temporary = folder / "tmp"
        self._build = build
        self._command = command
        folder.mkdir(exist_ok=True)
        self.temporary.mkdir(exist_ok=True)
        own = {"FALLBACK_URL": f"http://{HOST}:9"} if name == "primary" else {}
        built = build.settings(name)
        values = {MODEL[name]: build.model, **COMMON, **own, **built, **settings}
        self.settings.write_text(as_env(values), encoding="utf-8")
        build.write(self.settings)
        self.counts = Counts(self.settings)
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Start it, and return when it is ready.

        Raises:
            RuntimeError: it ended instead, or took too long.
        """
        server = [sys.executable, "-m", "uvicorn", *self._build.app(self.name)]
        server += ["--host", HOST, "--port", str(self.port), "--workers", "1"]
        server += ["--http", PROTOCOL, "--no-proxy-headers"]
        # It dies with this process, whatever ends that.
        leash = [sys.executable, "-m", "stt_cascade.cli.leash", str(os.getpid())]
        paths = [str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = {
            **os.environ,
            "CONFIG_PATH": str(self.settings),
            "PYTHONPATH": os.pathsep.join(paths),
            "TMPDIR": str(self.temporary),
        }
        with self.log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *leash,
                *self._command,
                *server,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                cwd=self.settings.parent,
                start_new_session=True,
            )
        await self.until("/v1/ready", 200, START_S)

    @property
    def log(self) -> Path:
        return self.settings.with_suffix(".log")

    @property
    def process(self) -> asyncio.subprocess.Process:
        assert self._process is not None
        return self._process

    @property
    def pid(self) -> int:
        """Of the server itself, whatever it runs under."""
        first = self.process.pid
        return procfs.tree(first)[1] if self._command else first

    async def until(self, path: str, status: int, patience: float = load.PATIENCE_S) -> float:
        """Wait for that status; the seconds it took.

        Raises:
            RuntimeError: it did not come.
        """
        clock = asyncio.get_running_loop().time
        began = clock()
        while (await load.call(self.port, load.get(path), patience=2.0)).status != status:
            if clock() > began + patience or self.process.returncode is not None:
                last = self.log.read_text(errors="replace")[-2000:]
                raise RuntimeError(f"the {self.name} never answered {path} with {status}:\n{last}")
            await asyncio.sleep(0.02)
        return clock() - began

    async def snapshot(self) -> dict[str, Any]:
        answer = await load.call(self.port, load.get("/v1/metrics"))
        snapshot: dict[str, Any] = json.loads(answer.body)
        return snapshot

    async def until_quiet(self, patience: float = load.PATIENCE_S) -> str:
        """Wait until nothing is held any more; what still is, if that does not come."""
        clock = asyncio.get_running_loop().time
        end = clock() + patience
        while True:
            now = await self.snapshot()
            held = {what: now[what] for what in ("in_flight", "queue_depth", "uploads")}
            if not any(held.values()) and not self.counts.live:
                return "all given back"
            if clock() > end:
                return f"still held: {held}, inferences: {self.counts.live}"
            await asyncio.sleep(0.05)

    def left_files(self) -> list[str]:
        """What lies in its folder for temporary files."""
        return sorted(path.name for path in self.temporary.iterdir())

    async def close(self) -> None:
        """Kill it, and all that it started."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            await self._process.wait()
