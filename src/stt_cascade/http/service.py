"""One running tier: its parts, their start and their end."""

from __future__ import annotations

import asyncio
import math
import os
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any, Literal

import structlog

from stt_cascade.admission.keys import Secrets
from stt_cascade.admission.rate_limit import RateLimiter
from stt_cascade.admission.uploads import Uploads
from stt_cascade.audio import speech
from stt_cascade.cascade.fallback_client import FallbackClient
from stt_cascade.cascade.hearing import DecoderPools
from stt_cascade.cascade.tiers import Fallback, Primary, Tier
from stt_cascade.config import ConfigError, FallbackConfig, PrimaryConfig, TierConfig
from stt_cascade.engine import cuda
from stt_cascade.engine.proof import Proven
from stt_cascade.engine.protocol import Engine
from stt_cascade.http.stop import Stop
from stt_cascade.http.supervisor import Supervisor
from stt_cascade.http.watchdog import Watchdog
from stt_cascade.record import Record
from stt_cascade.telemetry import gpu as nvml
from stt_cascade.telemetry import logs
from stt_cascade.telemetry.gpu import Gpu, Reading
from stt_cascade.telemetry.machine import Machine
from stt_cascade.telemetry.metrics import Metrics
from stt_cascade.telemetry.process import trim
from stt_sdk import __version__

if TYPE_CHECKING:
    from stt_cascade.telemetry.tracing import Tracing

log = structlog.get_logger("stt.service")

State = Literal["loading", "ready", "slow", "broken", "wedged", "draining"]
# A longer clip takes enough memory to be worth giving back. It is done a moment after the answer,
# once for all the clips that are answered until then.
LONG_CLIP_S = 60.0
TRIM_AFTER_S = 1.0

Load = Callable[[TierConfig], Engine]


class Service:
    """The parts of one tier, alive between `lifespan`'s start and end.

    Args:
        load: makes the engine; called in a thread, while the port answers `not_ready` already.
        pools: decoding processes that outlive the service; None: its own.
    """

    def __init__(self, config: TierConfig, load: Load, pools: DecoderPools | None = None) -> None:
        self.config = config
        self.secrets = Secrets(config)
        self.metrics = Metrics(config.slo_clip_seconds)
        self.tracing = _tracing(config)
        self.limiter = RateLimiter(config.rate_limit_rps, config.rate_limit_burst)
        self.uploads = Uploads(config.upload_places)
        self.draining = False
        self._engine: Proven | None = None
        self.watchdog = Watchdog(
            lambda: self.tier.oldest_seconds,
            config.infer_timeout_s,
            config.wedged_exit_s,
            lambda: 0.0 if self._engine is None else self._engine.broken_seconds,
        )
        self.stop = Stop(config.drain_timeout_s, self.drain, self.uploads.wait_until_empty)
        self._supervisor = Supervisor()
        self._trimming: asyncio.TimerHandle | None = None
        self._load = load
        self._own_pools = pools is None
        self._pools = pools or DecoderPools.make()
        self._fallback: FallbackClient | None = None
        self.machine = Machine()
        self._started = time.monotonic()
        self.tier: Tier
        if isinstance(config, PrimaryConfig):
            self._fallback = FallbackClient(config, self.secrets)
            self.tier = Primary(config, self.metrics, self._pools, self._fallback)
        elif isinstance(config, FallbackConfig):
            self.tier = Fallback(config, self.metrics, self._pools)
        else:
            raise TypeError(f"no tier has settings of the type {type(config).__name__}")

    @property
    def state(self) -> State:
        if self.draining:
            return "draining"
        if self.watchdog.wedged:
            return "wedged"
        if self.watchdog.broken:
            return "broken"
        if self.watchdog.slow:
            return "slow"
        return "loading" if self.tier.engine is None else "ready"

    @asynccontextmanager
    async def lifespan(self, app: object = None) -> AsyncIterator[None]:
        """Start everything, and stop it again."""
        gpu = Gpu.open(self.config.device_index) if self.config.device != "cpu" else None
        if gpu is not None:
            self.machine.has(gpu)
        self._watch()
        async with AsyncExitStack() as stack:
            # The last to be left: the server ends soon after, in whatever way its signal says.
            stack.callback(logs.finish)
            if self.tracing is not None:
                await stack.enter_async_context(self.tracing)
            if gpu is not None:
                stack.callback(gpu.close)
                if others := gpu.others():
                    log.warning(
                        "other processes use this GPU; run one worker per GPU",
                        gpu=os.environ.get(cuda.VISIBLE),
                        processes=others,
                    )
            if self._fallback is not None:
                await stack.enter_async_context(self._fallback)
            if self._own_pools:
                stack.callback(self._pools.close)
            stack.push_async_callback(self.tier.close)
            watching = asyncio.create_task(self.secrets.watch())
            stack.callback(watching.cancel)
            telling = asyncio.create_task(self._supervisor.keep_telling(lambda: self.state))
            stack.callback(telling.cancel)
            stack.enter_context(self.watchdog.watching())
            stack.enter_context(self.stop.on_signals())
            self._load_in_thread()
            yield

    def answered(self, record: Record) -> None:
        """Return the memory of a request's body and clip to the system, after a long clip."""
        # It is unknown how much memory a file took that could not be decoded.
        if self._trimming is None and (record.audio_seconds or math.inf) > LONG_CLIP_S:
            self._trimming = asyncio.get_running_loop().call_later(TRIM_AFTER_S, self._trim)

    def _trim(self) -> None:
        self._trimming = None
        asyncio.get_running_loop().run_in_executor(None, trim)

    def drain(self) -> None:
        """Take nothing new; finish what has begun."""
        if not self.draining:
            self.draining = True
            log.info("draining")
            self._supervisor.stopping(self.config.drain_timeout_s)
            self.tier.drain()
            self.uploads.drain()

    @property
    def device(self) -> str:
        """Where the model runs; until it is loaded, what the settings say."""
        engine = self.tier.engine
        return engine.device if engine else self.config.device

    @property
    def gpu(self) -> Reading | None:
        """The GPU at the last look; None without one, or where `auto` has chosen the CPU."""
        chose_cpu = self.config.device == "auto" and self.device == "cpu"
        return None if chose_cpu else self.machine.gpu

    def health(self) -> dict[str, Any]:
        return {
            "ok": not self.watchdog.wedged,
            "service": f"stt-{self.config.tier}",
            "model": self.config.model,
            "device": self.device,
            "commit": self.config.server_commit,
            "version": __version__,
            "uptime_s": round(time.monotonic() - self._started, 1),
        }

    def snapshot(self) -> dict[str, Any]:
        """What an operator asks first; of the machine, what was seen at the last look."""
        config, gpu = self.config, self.gpu
        thresholds = (
            {
                "logprob": config.conf_logprob_threshold,
                "langprob": config.conf_langprob_threshold,
                "words": config.min_words_for_conf,
                "weakest": config.conf_weakest_threshold,
            }
            if isinstance(config, PrimaryConfig)
            else None
        )
        return {
            **self.health(),
            "state": self.state,
            "counts": self.metrics.counts(),
            "latency_ms": self.metrics.quantiles(),
            "queue_depth": self.tier.slots.depth,
            "in_flight": self.tier.slots.in_flight,
            "in_flight_audio_seconds": round(self.tier.slots.audio_seconds, 3),
            "predicted_wait_s": round(self.tier.slots.predicted_wait, 3),
            "uploads": self.uploads.held,
            "shadows": self.tier.shadows,
            "max_concurrency": config.max_concurrency,
            "thresholds": thresholds,
            "fallback_breaker": None if self._fallback is None else self._fallback.snapshot(),
            "gpu": None if gpu is None else gpu.as_dict(),
            "process": self.machine.process,
            "keys": self.secrets.ring.usage(),
            "metrics_keys": self.secrets.metrics_ring.usage(),
        }

    def _watch(self) -> None:
        slots, fallback = self.tier.slots, self._fallback
        self.metrics.watch(
            {
                "stt_queue_depth": ("Requests that wait for a slot.", lambda: slots.depth),
                "stt_in_flight": ("Inferences running.", lambda: slots.in_flight),
                "stt_in_flight_audio_seconds": (
                    "Seconds of audio in these inferences.",
                    lambda: slots.audio_seconds,
                ),
                "stt_oldest_inference_seconds": (
                    "For how long the oldest has been running, or a decoding beyond its time.",
                    lambda: self.tier.oldest_seconds,
                ),
                "stt_rate_limit_fullest_ratio": (
                    "How much of its burst the busiest caller has used up.",
                    lambda: self.limiter.fullest_ratio,
                ),
                "stt_fallback_breaker_open": (
                    "Whether the circuit breaker keeps calls from the fallback.",
                    lambda: fallback is not None and fallback.breaker.state != "closed",
                ),
                "stt_process_rss_mb": (
                    "Memory of the process and its decoding processes, MB.",
                    lambda: float(self.machine.process["rss_mb"]),
                ),
                # Settings that alerts and dashboards compare the above with.
                "stt_max_concurrency": ("Slots.", lambda: slots.size),
                "stt_max_queue": (
                    "Requests that may wait for a slot.",
                    lambda: self.config.queue_limit,
                ),
                "stt_infer_timeout_seconds": (
                    "How long an inference may take before the tier counts as wedged.",
                    lambda: self.config.infer_timeout_s,
                ),
            },
            build=lambda: {
                "version": __version__,
                "commit": self.config.server_commit,
                "model": self.config.model,
                "device": self.device,
            },
            gpu=lambda: self.gpu,
        )

    def _load_in_thread(self) -> None:
        loop = asyncio.get_running_loop()

        def load() -> None:
            began = time.monotonic()
            try:
                self._pools.start()
            except OSError as error:
                _die(str(error))
            try:
                engine = self._load(self.config)
                engine.warm_up()
                if self.config.vad:
                    speech.warm_up()
            except Exception as error:  # noqa: BLE001  # whatever it is, the process cannot serve
                _die(
                    f"the {self.config.tier}'s model cannot be loaded from "
                    f"{self.config.model_path}: {error}"
                )
            log.info(
                "ready",
                service=f"stt-{self.config.tier}",
                model=self.config.model,
                device=engine.device,
                load_s=round(time.monotonic() - began, 1),
            )
            if not loop.is_closed():
                loop.call_soon_threadsafe(self._loaded, engine)

        # A daemon: a stop during the load must not wait for it.
        threading.Thread(target=load, name="load", daemon=True).start()

    def _loaded(self, engine: Engine) -> None:
        if "cuda" in (self.config.device, engine.device) and not nvml.installed():
            log.warning(
                "there are no GPU gauges: nvidia-ml-py is not installed; install the extra gpu: "
                "pip install '.[gpu]' in a checkout of stt-cascade"
            )
        self._engine = Proven(engine, self.config.engine_failures, self.metrics.engine_failed)
        self.tier.engine = self._engine
        if not self.draining:
            self._supervisor.ready()


def _tracing(config: TierConfig) -> Tracing | None:
    """What sends traces, where the settings ask for it; else nothing of it is imported."""
    if config.otlp_endpoint is None:
        return None
    try:
        from stt_cascade.telemetry.tracing import Tracing
    except ImportError as error:
        raise ConfigError(
            f"{config.source or 'settings'}: OTLP_ENDPOINT needs what is not installed ({error}); "
            f"pip install '.[server,tracing]' in a checkout of stt-cascade, or take it out"
        ) from None
    return Tracing(config, config.otlp_endpoint)


def _die(message: str) -> None:
    """End the process from any thread: a server without its model is of no use to anybody."""
    log.critical("cannot start", reason=message)
    logs.last_words(f"stt-cascade: {message}")
    os._exit(1)
