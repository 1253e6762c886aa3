"""Both tiers as uvicorn runs them, but with an engine that takes a fixed time for each clip.

`CONFIG_PATH=primary.env uvicorn --factory faults.stub:primary`. Beside the settings lie
`primary.stub`, which says what the engine does, and `primary.counts`, where it counts.
"""

from __future__ import annotations

import json
import math
import mmap
import struct
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from fastapi import FastAPI

from fakes import FakeEngine
from stt_cascade.config import FallbackConfig, PrimaryConfig, TierConfig, config_path, load
from stt_cascade.engine.protocol import Clip, Options, Utterance
from stt_cascade.http.app import create_app
from stt_cascade.telemetry import logs

# A clip with this prompt gets a text that the primary doubts.
DOUBT = "doubt"
SLOTS = 2


@dataclass(frozen=True)
class Stub:
    """What the engine does.

    Attributes:
        seconds: one inference takes.
        keeps: every clip it hears, for good: a leak on purpose.
    """

    model: ClassVar[str] = "whisper-stub-ct2"
    seconds: float = 0.05
    keeps: bool = False

    def app(self, name: str) -> list[str]:
        return ["--factory", f"faults.stub:{name}"]

    def settings(self, name: str) -> dict[str, Any]:
        # A tone is not speech.
        return {"MAX_CONCURRENCY": SLOTS, "VAD": "off"}

    def write(self, settings: Path) -> None:
        settings.with_suffix(".stub").write_text(json.dumps(asdict(self)))

    @classmethod
    def read(cls, settings: Path) -> Stub:
        return cls(**json.loads(settings.with_suffix(".stub").read_text()))


class Counts:
    """Inferences of a tier, counted by its engine and read by another process."""

    _FORM = struct.Struct("3q")

    def __init__(self, settings: Path) -> None:
        file = settings.with_suffix(".counts")
        if not file.exists():
            file.write_bytes(bytes(self._FORM.size))
        with file.open("r+b") as opened:
            self._map = mmap.mmap(opened.fileno(), self._FORM.size)

    def write(self, begun: int, live: int, most_live: int) -> None:
        self._FORM.pack_into(self._map, 0, begun, live, most_live)

    @property
    def begun(self) -> int:
        return int(self._FORM.unpack_from(self._map)[0])

    @property
    def live(self) -> int:
        return int(self._FORM.unpack_from(self._map)[1])

    @property
    def most_live(self) -> int:
        """At any moment since the start: the engine sees every one of them."""
        return int(self._FORM.unpack_from(self._map)[2])


class StubEngine(FakeEngine):
    """Takes its time, and hears four words."""

    def __init__(self, stub: Stub, counts: Counts) -> None:
        super().__init__()
        self._stub = stub
        self._counts = counts
        self._begun = self._running = self._most_running = 0

    def _utterance(self, clip: Clip, options: Options) -> Utterance:
        self._count(begun=1, running=1)
        try:
            time.sleep(self._stub.seconds)
            utterance = super()._utterance(clip, options)
        finally:
            self._count(running=-1)
        if options.prompt == DOUBT:
            return replace(utterance, avg_logprob=math.log(0.1))
        return utterance

    def _count(self, *, begun: int = 0, running: int) -> None:
        with self._changed:
            self._begun += begun
            self._running += running
            self._most_running = max(self._most_running, self._running)
            self._counts.write(self._begun, self._running, self._most_running)
            if not self._stub.keeps:
                self.heard.clear()


def primary() -> FastAPI:
    return _app(PrimaryConfig)


def fallback() -> FastAPI:
    return _app(FallbackConfig)


def _app(tier: type[TierConfig]) -> FastAPI:
    settings = config_path(tier)
    config = load(tier, settings)
    logs.configure(config.log_format)
    return create_app(config, StubEngine(Stub.read(settings), Counts(settings)))
