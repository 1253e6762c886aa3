"""Tiers that run on real sockets."""

from __future__ import annotations

import asyncio
import atexit
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import uvicorn
from prometheus_client.parser import text_string_to_metric_families
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from fakes import FALLBACK_KEY, PATIENCE, PRIMARY_KEY, FakeEngine, ScriptedFallback
from stt_cascade.cascade.hearing import DecoderPools
from stt_cascade.config import FallbackConfig, PrimaryConfig, TierConfig
from stt_cascade.config_file import load
from stt_cascade.engine.protocol import Engine
from stt_cascade.http.app import create_app
from stt_cascade.http.protocol import Protocol
from stt_cascade.http.service import Service
from tones import wav

TRANSCRIBE = "/v1/transcribe"
LOADING = 120.0  # seconds for real weights, and for the warm-up on a machine that is busy
# A tier of its own process starts its own; here hundreds of tiers come and go.
POOLS = DecoderPools.make()
atexit.register(POOLS.close)


def until(true: Callable[[], bool], what: str, patience: float = PATIENCE) -> None:
    """Wait for a state that nothing announces."""
    give_up = time.monotonic() + patience
    while not true():
        assert time.monotonic() < give_up, f"it never came to this: {what}"
        time.sleep(0.002)


# Loading the system's CAs takes longer than most tests; plain HTTP needs none of them.
_NO_CAS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


class _Server(uvicorn.Server):
    """uvicorn's server, which looks every few milliseconds, not every 100, whether it may end."""

    TICK_S = 0.005

    async def main_loop(self) -> None:
        while not await self.on_tick(0):  # noqa: ASYNC110  # uvicorn announces none of this
            await asyncio.sleep(self.TICK_S)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for server in self.servers:
            server.close()
        for connection in list(self.server_state.connections):
            connection.shutdown()
        while self.server_state.connections or self.server_state.tasks:  # noqa: ASYNC110
            await asyncio.sleep(self.TICK_S)
        for server in self.servers:
            await server.wait_closed()
        await self.lifespan.shutdown()


class RunningTier:
    """A tier that serves on a port of 127.0.0.1, in a thread with an event loop of its own.

    Args:
        tls: how it does so with TLS: uvicorn's options, and what its clients here use.
        root_path: uvicorn's `--root-path`.
    """

    def __init__(
        self,
        config: TierConfig,
        engine: Engine | None,
        http: type[HttpToolsProtocol] = Protocol,
        pools: DecoderPools = POOLS,
        tls: tuple[dict[str, Any], ssl.SSLContext] | None = None,
        root_path: str = "",
    ) -> None:
        self.config = config
        self.engine = engine
        self.app = create_app(config, engine, pools)
        self.service: Service = self.app.state.service
        listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = listener.getsockname()[1]
        options, context = tls or ({}, None)
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{self.port}"
        keys = config.api_keys
        self.key = keys[0].get_secret_value() if keys else None
        self.client = httpx2.Client(
            base_url=self.url, timeout=PATIENCE, trust_env=False, verify=context or _NO_CAS
        )
        self._callers = ThreadPoolExecutor(16)
        common: dict[str, Any] = {"log_config": None, "lifespan": "on", "proxy_headers": False}
        common["root_path"] = root_path
        self._server = _Server(uvicorn.Config(self.app, http=http, **common, **options))
        self._thread = threading.Thread(target=self._server.run, args=([listener],))
        self._thread.start()
        until(lambda: self._server.started, "the server listens")

    @property
    def fake(self) -> FakeEngine:
        assert isinstance(self.engine, FakeEngine)
        return self.engine

    @property
    def requests(self) -> int:
        """How many have come so far, whatever they were for."""
        return self._server.server_state.total_requests

    def wait_until_ready(self, patience: float = PATIENCE) -> None:
        until(lambda: self.get("/v1/ready").status_code == 200, "the tier is ready", patience)

    def stop(self) -> None:
        """Ask the server to stop."""
        self._server.should_exit = True

    def wait_until_stopped(self) -> None:
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive()

    def close(self) -> None:
        self._callers.shutdown()
        self.client.close()
        self.wait_until_stopped()

    def get(self, path: str, **options: Any) -> httpx2.Response:
        return self.client.get(path, **options)

    def transcribe(
        self,
        audio: bytes | None = None,
        *,
        name: str = "clip.wav",
        kind: str = "audio/wav",
        headers: dict[str, str] | None = None,
        **fields: str,
    ) -> httpx2.Response:
        """Upload a clip, by default a tone of 1 s, with the tier's key if it has one."""
        return self.client.post(
            TRANSCRIBE,
            files={"audio": (name, wav() if audio is None else audio, kind)},
            data=fields,
            headers=self.authorization | (headers or {}),
        )

    def begin(self, audio: bytes | None = None, **options: Any) -> Future[httpx2.Response]:
        """`transcribe` in the background."""
        return self._callers.submit(self.transcribe, audio, **options)

    @property
    def authorization(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.key}"} if self.key else {}

    def connect(self, request: bytes) -> socket.socket:
        """A connection on which this has been sent."""
        connection = socket.create_connection(("127.0.0.1", self.port), PATIENCE)
        connection.sendall(request)
        return connection

    def exchange(self, request: bytes) -> tuple[int, dict[str, str], bytes]:
        """Send bytes on a socket of their own: status, headers and body of the answer."""
        with self.connect(request) as connection:
            return read_response(connection)

    def samples(self) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
        """The Prometheus samples by name and labels."""
        return {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(self.get("/metrics").text)
            for sample in family.samples
        }

    def metric(self, name: str, **labels: str) -> float:
        return self.samples()[name, frozenset(labels.items())]

    def wait_for_queue(self, depth: int) -> None:
        until(lambda: self.get("/v1/metrics").json()["queue_depth"] == depth, f"{depth} are queued")


def read_response(connection: socket.socket) -> tuple[int, dict[str, str], bytes]:
    """Status, headers by lower-case name, and body of the answer on a connection."""
    received = b""
    while chunk := connection.recv(65536):
        received += chunk
        head, _, body = received.partition(b"\r\n\r\n")
        length = re.search(rb"(?i)\r\ncontent-length: (\d+)", head)
        if length and len(body) >= int(length[1]):
            break
    head, _, body = received.partition(b"\r\n\r\n")
    status, *lines = head.decode("latin-1").split("\r\n")
    headers = dict(line.split(": ", 1) for line in lines)
    return int(status.split()[1]), {name.lower(): value for name, value in headers.items()}, body


class Tiers:
    """Starts tiers, and stops them all at the end."""

    def __init__(self) -> None:
        self._running: list[RunningTier] = []

    def run(
        self,
        config: TierConfig,
        engine: Engine | None = None,
        *,
        wait: bool = True,
        http: type[HttpToolsProtocol] = Protocol,
        tls: tuple[dict[str, Any], ssl.SSLContext] | None = None,
        root_path: str = "",
    ) -> RunningTier:
        tier = RunningTier(config, engine or FakeEngine(), http, tls=tls, root_path=root_path)
        self._running.append(tier)
        if wait:
            tier.wait_until_ready()
        return tier

    def run_real(self, config: TierConfig) -> RunningTier:
        """With the engine that the settings name."""
        tier = RunningTier(config, None)
        self._running.append(tier)
        tier.wait_until_ready(LOADING)
        return tier

    def fallback(self, engine: Engine | None = None, **settings: Any) -> RunningTier:
        return self.run(fallback_config(**settings), engine or FakeEngine("from the fallback"))

    def primary(
        self,
        engine: Engine | None = None,
        *,
        fallback: RunningTier | ScriptedFallback | str,
        **settings: Any,
    ) -> RunningTier:
        url = fallback if isinstance(fallback, str) else fallback.url
        key = None if isinstance(fallback, str) else fallback.key
        return self.run(
            primary_config(**{"fallback_url": url, "fallback_api_key": key, **settings}), engine
        )

    def cascade(
        self, engine: Engine | None = None, other: Engine | None = None, **settings: Any
    ) -> tuple[RunningTier, RunningTier]:
        """A primary with these settings, and the fallback that it asks."""
        fallback = self.fallback(other, api_keys=(FALLBACK_KEY,))
        return self.primary(engine, fallback=fallback, **settings), fallback

    def stop(self) -> None:
        for tier in self._running:
            if isinstance(tier.engine, FakeEngine):
                tier.engine.let_go()
            tier.stop()
        for tier in self._running:
            tier.close()


@contextmanager
def running_tiers() -> Iterator[Tiers]:
    tiers = Tiers()
    try:
        yield tiers
    finally:
        tiers.stop()


# Speech detection is off: a tone is not speech. Tests of it switch it on.
_COMMON: dict[str, Any] = {
    "model_path": Path("models/whisper-fake-ct2"),
    "device": "cpu",
    "vad": False,
    "rate_limit_burst": 1000,
}


def primary_config(**settings: Any) -> PrimaryConfig:
    return PrimaryConfig(**{**_COMMON, **settings})


def fallback_config(**settings: Any) -> FallbackConfig:
    return FallbackConfig(**{**_COMMON, **settings})


def env_file(path: Path, **settings: object) -> Path:
    """A settings file, written as editors do: whole, in one step."""
    new = path.with_suffix(".new")
    new.write_text("".join(f"{key}={value}\n" for key, value in settings.items()))
    return new.replace(path)


@contextmanager
def running_cascade() -> Iterator[RunningTier]:
    """A primary with its fallback, as `configs/cpu` sets them up, on the real weights of Whisper
    base; without them, on fake engines that hear four words wherever somebody speaks.
    """
    root = Path(__file__).parent.parent
    weights = root / "models" / "whisper-base-ct2"
    with running_tiers() as tiers:
        if not (weights / "model.bin").is_file():
            yield tiers.cascade(vad=True, api_keys=(PRIMARY_KEY,))[0]
            return
        other = load(FallbackConfig, root / "configs/cpu/stt_fallback.env")
        fallback = tiers.run_real(other.model_copy(update={"model_path": weights}))
        config = load(PrimaryConfig, root / "configs/cpu/stt_primary.env")
        real = {"model_path": weights, "fallback_url": fallback.url}
        yield tiers.run_real(config.model_copy(update=real))
