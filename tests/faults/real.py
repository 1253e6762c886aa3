"""Both tiers with the real engine, as `stt up` runs them; and a build of that which leaks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastapi import FastAPI

from stt_cascade.cli import hardware
from stt_cascade.config import FallbackConfig, PrimaryConfig, TierConfig
from stt_cascade.config_file import config_path, load
from stt_cascade.engine.loading import load_whisper
from stt_cascade.engine.protocol import Engine, Options, Samples, Span, Utterance
from stt_cascade.http.app import create_app
from stt_cascade.telemetry import logs


@dataclass(frozen=True)
class Whisper:
    """A build with the real engine, on the CPU.

    Attributes:
        weights: folder of the model of both tiers.
        keeps: the samples of every window it hears, for good: a leak on purpose.
    """

    weights: Path
    keeps: bool = False

    @property
    def model(self) -> str:
        return str(self.weights)

    def app(self, name: str) -> list[str]:
        return ["--factory", f"faults.real:{name}"] if self.keeps else [f"stt_{name}:app"]

    def settings(self, name: str) -> dict[str, Any]:
        # `Stack` gives the same ones.
        primary, fallback = hardware.recipes("base", "base", cores=hardware.cores(), gpu=False)
        common = {"CACHE_DIR": self.weights.parent / ".cache"}
        if name == "fallback":
            return {**fallback.settings(), **common}
        gates = {"MIN_WORDS_FOR_CONF": 1, "CONF_WEAKEST_THRESHOLD": 0.25}
        return {**primary.settings(), **common, **gates}

    def write(self, settings: Path) -> None:
        pass  # the settings say it all


class Keeping:
    """An engine that forgets nothing."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._heard: list[Samples] = []

    @property
    def languages(self) -> frozenset[str]:
        return self._engine.languages

    @property
    def device(self) -> str:
        return self._engine.device

    def warm_up(self) -> None:
        self._engine.warm_up()

    def encode(self, samples: Samples, speech: Sequence[Span] = ()) -> Any:
        self._heard.append(samples)
        return self._engine.encode(samples, speech)

    def decode(self, encodings: Sequence[Any], options: Options) -> list[Utterance]:
        return self._engine.decode(encodings, options)


def primary() -> FastAPI:
    return _keeping(PrimaryConfig)


def fallback() -> FastAPI:
    return _keeping(FallbackConfig)


def _keeping(tier: type[TierConfig]) -> FastAPI:
    config = load(tier, config_path(tier))
    logs.configure(config.log_format)
    return create_app(config, Keeping(load_whisper(config)))
