"""What the GPU and the processes take.

Both are asked in a thread: a driver may be slow to answer, and for the processes below this one the
system goes through all that there are.
"""

from __future__ import annotations

import asyncio
from typing import Any

import structlog

from stt_cascade.telemetry import process
from stt_cascade.telemetry.gpu import Gpu, Reading
from stt_sdk._apart import once

log = structlog.get_logger("stt.machine")
# Whoever scrapes has better things to do by then; Prometheus waits for 10 s.
PATIENCE_S = 2.0


class Machine:
    """What was seen at the last look.

    Attributes:
        gpu: None without one, or while it cannot be read.
        process: see `process.snapshot`.
    """

    def __init__(self) -> None:
        self.gpu: Reading | None = None
        self.process = process.snapshot()
        self._gpu: Gpu | None = None
        self._looking: asyncio.Future[tuple[Reading | None, dict[str, Any]]] | None = None
        self._late = False

    def has(self, gpu: Gpu) -> None:
        """Look at this GPU, too."""
        self._gpu = gpu
        self.gpu = gpu.read()

    async def look(self) -> None:
        """Look anew, or wait for the look that is under way.

        After `PATIENCE_S` the processes' figures stay those of the last look, and the GPU counts as
        one that cannot be read.
        """
        looking = self._looking
        if looking is None or looking.done():
            looking = self._looking = asyncio.ensure_future(once(self._read, "look"))
        await asyncio.wait({looking}, timeout=PATIENCE_S)
        if looking.done():
            self.gpu, self.process = looking.result()
        else:
            self.gpu = None
            if not self._late:
                log.warning("the GPU and the processes cannot be read in time", seconds=PATIENCE_S)
        self._late = not looking.done()

    def _read(self) -> tuple[Reading | None, dict[str, Any]]:
        return None if self._gpu is None else self._gpu.read(), process.snapshot()
