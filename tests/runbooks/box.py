"""A tier as its operator has it: a settings file, and a unit that is started and stopped."""

from __future__ import annotations

import json
import signal
from dataclasses import asdict
from typing import Any

from dotenv import dotenv_values

from faults.lab import until
from faults.stub import Stub
from faults.tiers import Tier
from stt_cascade.cli.stack import as_env
from stt_sdk._within import within

STOP_S = 40.0


class Box:
    """One tier on a machine of its own."""

    def __init__(self, tier: Tier) -> None:
        self.tier = tier

    @property
    def port(self) -> int:
        return self.tier.port

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def write(self, **values: Any) -> None:
        """Change settings in its file, as an editor does: whole, in one step."""
        file = self.tier.settings
        new = file.with_suffix(".new")
        new.write_text(as_env({**dotenv_values(file, interpolate=False), **values}))
        new.replace(file)

    def replace_model(self, stub: Stub) -> None:
        """What the next start loads."""
        self.tier.settings.with_suffix(".stub").write_text(json.dumps(asdict(stub)))

    async def start(self) -> None:
        await self.tier.start()

    async def stop(self) -> int:
        """As systemd does: SIGTERM, and wait. Its exit status."""
        self.tier.process.send_signal(signal.SIGTERM)
        return await self.ended(STOP_S)

    async def restart(self) -> None:
        if self.tier.process.returncode is None:
            await self.stop()
        await self.start()

    async def kill(self) -> None:
        self.tier.process.kill()
        await self.tier.process.wait()

    async def until_asked(self) -> bool:
        """Wait for a clip that comes from now on; whether one came."""
        self.tier.counts.write(0, 0, 0)
        return await until(lambda: self.tier.counts.begun > 0)

    async def ended(self, patience: float) -> int:
        """Its exit status, once it has ended.

        Raises:
            TimeoutError: it has not.
        """
        return await within(patience, self.tier.process.wait())
