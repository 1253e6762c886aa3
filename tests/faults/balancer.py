"""Envoy as deploy/envoy/ sets it up, in front of a lab's tiers."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import ssl
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import httpx2
import yaml

from certificates import Authority, Pair
from deploy import engines
from faults import load
from pages import page_command
from ports import own_port
from stt_cascade.cli.child import HOST

FILES = engines.ROOT / "deploy" / "envoy"
COMMANDS = {
    "envoy.yaml": page_command("Load balancer and TLS", "envoy -c /etc/envoy/envoy.yaml"),
    "fallback.yaml": page_command("Load balancer and TLS", "envoy -c /etc/envoy/fallback.yaml"),
}
INSTALLED = "/etc/envoy"
START_S = 20.0
NAME = "localhost"


class Behind(Protocol):
    """What it passes requests on to."""

    port: int  # of 127.0.0.1


def missing() -> str:
    """What is not here of what a balancer needs; empty: nothing."""
    try:
        engines.path("envoy")
    except engines.MissingEngine as error:
        return str(error)
    return ""


class Balancer:
    """One running Envoy.

    Args:
        file: of `deploy/envoy/`.
        folder: of its own.
        ports: of the tiers behind it.
        authority: signs what it shows, and what its own callers may have to show.
        shown: what it shows.
        changes: of its cluster of tiers, on top of what the file says.

    Attributes:
        client: what callers speak TLS with.
    """

    def __init__(
        self,
        file: str,
        folder: Path,
        ports: Sequence[int],
        authority: Authority,
        shown: Pair,
        **changes: Any,
    ) -> None:
        self.port, self.metrics_port = own_port(), own_port()
        self.client = ssl.create_default_context(cafile=str(authority.cert))
        self._folder = folder
        self._process: asyncio.subprocess.Process | None = None
        (folder / "tls").mkdir(parents=True)
        (folder / "tls/ca.crt").write_bytes(authority.cert.read_bytes())
        self.show(shown)
        for source in FILES.glob("*.yaml"):
            moved = source.read_text().replace(INSTALLED, str(folder))
            (folder / source.name).write_text(moved)
        config: dict[str, Any] = yaml.safe_load((folder / file).read_text())
        self._adapt(config, ports, changes)
        here = folder / "here.json"
        here.write_text(json.dumps(config))
        self._command = COMMANDS[file].replace(f"{INSTALLED}/{file}", str(here))

    def show(self, pair: Pair) -> None:
        """From now on this certificate: its files replace the old ones, each in one step."""
        for name in ("tls", "fallback"):
            for kind, source in (("key", pair.key), ("crt", pair.cert)):
                new = self._folder / "tls" / f"{name}.{kind}.new"
                new.write_bytes(source.read_bytes())
                new.replace(new.with_suffix(""))

    def _adapt(self, config: dict[str, Any], ports: Sequence[int], changes: dict[str, Any]) -> None:
        """Only addresses change: no others are at hand here, and nobody else shall get in."""
        admin = own_port()
        config["admin"]["address"] = _address(admin)
        resources = config["static_resources"]
        self._tells = len(resources["listeners"]) > 1
        for listener, port in zip(
            resources["listeners"], (self.port, self.metrics_port), strict=False
        ):
            listener["address"] = _address(port)
        for cluster in resources["clusters"]:
            tiers = cluster["name"] != "admin"
            endpoints = [_endpoint(port) for port in (ports if tiers else [admin])]
            cluster["load_assignment"]["endpoints"] = [{"lb_endpoints": endpoints}]
            if tiers:
                cluster.update(changes)

    async def start(self, healthy: int) -> None:
        """Start it, and return when it listens and, if it tells, would ask so many tiers.

        Raises:
            RuntimeError: it ended instead, or took too long.
        """
        leash = [sys.executable, "-m", "stt_cascade.cli.leash", str(os.getpid())]
        envoy = [str(engines.path("envoy")), *self._command.split()[1:]]
        with self.log.open("ab") as log, self.errors.open("ab") as errors:
            self._process = await asyncio.create_subprocess_exec(
                *leash,
                *envoy,
                *("--disable-hot-restart", "--concurrency", "2", "--log-level", "warning"),
                *("--file-flush-interval-msec", "50"),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=errors,
                start_new_session=True,
            )
        if self._tells:
            await self.until_healthy(healthy)
        else:
            await self._until_it_listens()

    @property
    def process(self) -> asyncio.subprocess.Process:
        assert self._process is not None
        return self._process

    @property
    def log(self) -> Path:
        return self._folder / "access.log"

    @property
    def errors(self) -> Path:
        return self._folder / "envoy.log"

    @property
    def lines(self) -> list[dict[str, Any]]:
        """The access log, as far as it is written."""
        return [json.loads(line) for line in self.log.read_text().splitlines()]

    async def until_healthy(self, tiers: int) -> None:
        """Wait until it would ask so many tiers.

        Raises:
            RuntimeError: it ended instead, or that took too long.
        """
        clock = asyncio.get_running_loop().time
        end = clock() + START_S
        while (await self.stats()).get("envoy_cluster_membership_healthy") != tiers:
            if clock() > end or self.process.returncode is not None:
                raise RuntimeError(
                    f"Envoy never knew {tiers} healthy tiers:\n{self.errors.read_text()[-2000:]}"
                )
            await asyncio.sleep(0.02)

    async def _until_it_listens(self) -> None:
        clock = asyncio.get_running_loop().time
        end = clock() + START_S
        while (await load.call(self.port, b"", patience=0.1)).how == "refused":
            if clock() > end or self.process.returncode is not None:
                raise RuntimeError(f"Envoy does not start:\n{self.errors.read_text()[-2000:]}")
            await asyncio.sleep(0.02)

    async def stats(self) -> dict[str, float]:
        """Its counters of tiers and callers by name, and by status or class where they have one."""
        try:
            async with httpx2.AsyncClient(trust_env=False) as http:
                answer = await http.get(f"http://{HOST}:{self.metrics_port}/metrics")
        except httpx2.HTTPError:
            return {}
        found: dict[str, float] = {}
        for line in answer.text.splitlines():
            sample = re.fullmatch(r"(\w+)\{(.*)\} ([\d.]+)", line)
            if sample and re.search(r'="stt-(primary|fallback)"', sample[2]):
                by = re.search(r'envoy_response_code(?:_class)?="(\d+)"', sample[2])
                found[sample[1] + (f" {by[1]}" if by else "")] = float(sample[3])
        return found

    async def close(self) -> None:
        if self._process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            await self._process.wait()


def _address(port: int) -> dict[str, Any]:
    return {"socket_address": {"address": HOST, "port_value": port}}


def _endpoint(port: int) -> dict[str, Any]:
    return {"endpoint": {"address": _address(port)}}
