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
from faults import nvml
from stt_cascade.config import FallbackConfig, PrimaryConfig, TierConfig
from stt_cascade.config_file import config_path, load
from stt_cascade.engine.protocol import Clip, Options, Utterance
from stt_cascade.http.app import create_app
from stt_cascade.telemetry import logs

# A clip with this prompt gets a text that the primary doubts.
DOUBT = "doubt"
# And with this one none: its inference never ends.
HANG = "hang"
SLOTS = 2


@dataclass(frozen=True)
class Stub:
    """What the engine does.

    Attributes:
        seconds: one inference takes, if it is alone.
        crowding: with others beside it, it takes as many times as long, to this power.
        keeps: every clip it hears, for good: a leak on purpose.
        text: what it hears.
        sure: the text's mean token probability.
        language_sure: the probability of the language, where it is detected.
        gpu_mb: memory for each slot on a GPU that is not there; 0: none is.
    """

    model: ClassVar[str] = "whisper-stub-ct2"
    seconds: float = 0.05
    crowding: float = 0.0
    keeps: bool = False
    text: str = "one two three four"
    sure: float = 0.9
    language_sure: float = 0.98
    gpu_mb: int = 0

    def app(self, name: str) -> list[str]:
        return ["--factory", f"faults.stub:{name}"]

    def settings(self, name: str) -> dict[str, Any]:
        # A tone is not speech.
        gpu = {"DEVICE": "auto"} if self.gpu_mb else {}
        return {"MAX_CONCURRENCY": SLOTS, "VAD": "off", **gpu}

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
    """Takes its time, and hears what the stub says."""

    def __init__(self, stub: Stub, counts: Counts) -> None:
        super().__init__(stub.text, logprob=stub.sure, language_probability=stub.language_sure)
        self._stub = stub
        self._counts = counts
        self._begun = self._running = self._most_running = 0

    def _utterance(self, clip: Clip, options: Options) -> Utterance:
        self._count(begun=1, running=1)
        try:
            time.sleep(3600 if options.prompt == HANG else self._seconds)
            utterance = super()._utterance(clip, options)
        finally:
            self._count(running=-1)
        if options.prompt == DOUBT:
            return replace(utterance, avg_logprob=math.log(0.1))
        return utterance

    @property
    def _seconds(self) -> float:
        return self._stub.seconds * float(self.running**self._stub.crowding)

    @property
    def running(self) -> int:
        """Inferences now."""
        return self._running

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
    stub = Stub.read(settings)
    engine = StubEngine(stub, Counts(settings))
    if stub.gpu_mb:
        nvml.pretend(stub.gpu_mb, config.max_concurrency, lambda: engine.running)
    return create_app(config, engine)
