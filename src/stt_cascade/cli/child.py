"""One tier as a child process."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from stt_cascade.cli.hardware import cuda_libraries
from stt_sdk._within import within

HOST = "127.0.0.1"
PROTOCOL = "stt_cascade.http.protocol:Protocol"
# Seconds from SIGTERM to SIGKILL: what a tier has begun may take a moment.
GRACE = 10.0
# By then it has ended by itself.
DRAIN_TIMEOUT_S = 8.0
TAIL_LINES = 15


class Child:
    """One tier's process."""

    def __init__(self, name: str, process: asyncio.subprocess.Process, log: Path | None) -> None:
        self.name = name
        self.process = process
        self._log = log

    @classmethod
    async def start(cls, name: str, app: str, port: int, config: Path, log: Path | None) -> Child:
        uvicorn = [sys.executable, "-m", "uvicorn", app]
        uvicorn += ["--host", HOST, "--port", str(port), "--workers", "1"]
        # Whose X-Forwarded-For counts is for TRUSTED_PROXIES to say.
        uvicorn += ["--http", PROTOCOL, "--no-proxy-headers"]
        leash = [sys.executable, "-m", "stt_cascade.cli.leash", str(os.getpid())]
        environment = {**os.environ, "CONFIG_PATH": str(config)}
        if libraries := cuda_libraries():
            paths = [*map(str, libraries), *filter(None, [os.environ.get("LD_LIBRARY_PATH")])]
            environment["LD_LIBRARY_PATH"] = os.pathsep.join(paths)
        output = None if log is None else log.open("wb")
        try:
            process = await asyncio.create_subprocess_exec(
                *leash,
                *uvicorn,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=environment,
                # `python -m` imports from the working directory first; whatever lies in the user's
                # must not pass for a module.
                cwd=config.parent,
                # Ctrl-C in a terminal reaches the whole process group. The tiers shall end one
                # after the other instead, when we say so.
                start_new_session=True,
            )
        finally:
            if output is not None:
                output.close()
        return cls(name, process, log)

    @property
    def ended(self) -> bool:
        return self.process.returncode is not None

    async def stop(self, say: Callable[[str], None]) -> None:
        """Ask it to end, and insist after the grace."""
        try:
            if not self.ended:
                self.process.terminate()
                await within(GRACE, self.process.wait())
        except TimeoutError:
            say(f"The {self.name} did not end within {GRACE:g} s: killing it.")
        finally:
            self.kill()
            await self.process.wait()

    def kill(self) -> None:
        # Its own children, if it has some, are in its session.
        if not self.ended:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)

    def obituary(self) -> str:
        status = self.process.returncode or 0
        if status == -signal.SIGKILL:
            how = "was killed: is there enough memory?"
        elif status < 0:
            how = f"was ended by {signal.Signals(-status).name}"
        else:
            how = f"ended by itself with status {status}"
        return f"The {self.name} {how}.\n{self.last_words()}".rstrip()

    def last_words(self) -> str:
        """Its last log lines; empty if they went to the terminal."""
        if self._log is None:
            return ""
        with self._log.open(encoding="utf-8", errors="replace") as lines:
            tail = "".join(f"  {line}" for line in deque(lines, TAIL_LINES))
        return f"The {self.name}'s last lines:\n{tail.rstrip()}" if tail else ""
