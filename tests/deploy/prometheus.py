"""A real Prometheus on the files of `deploy/prometheus`, in seconds instead of minutes."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx2
import yaml

from deploy import engines
from deploy.shorten import FAST, Scale, shorten
from ports import own_port
from stt_cascade.cli.child import HOST

PATIENCE_S = 60.0
POLL_S = 0.25
RECORDED_AFTER = 3  # evaluations
FILES = engines.ROOT / "deploy" / "prometheus"

Found = TypeVar("Found")


class Server:
    """A program of Prometheus's makers that answers HTTP. It dies with this process.

    Args:
        command: what runs; `{port}` in it becomes its port.
        folder: for its log.
    """

    def __init__(self, name: str, command: Sequence[str | Path], folder: Path) -> None:
        self.port = own_port()
        self.url = f"http://{HOST}:{self.port}"
        self.log = folder / f"{name}.log"
        self._name = name
        self._command = [str(word).replace("{port}", str(self.port)) for word in command]
        self._exit = AsyncExitStack()
        self._process: asyncio.subprocess.Process | None = None
        self._http: httpx2.AsyncClient | None = None

    async def __aenter__(self) -> Self:
        """Start it, and return when it is ready.

        Raises:
            RuntimeError: it ended instead, or took too long; with its last lines.
        """
        async with AsyncExitStack() as started:
            client = httpx2.AsyncClient(base_url=self.url, trust_env=False, timeout=10.0)
            self._http = await started.enter_async_context(client)
            started.push_async_callback(self.kill)
            await self.start()
            await self.prepare()
            self._exit = started.pop_all()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._exit.aclose()

    async def start(self) -> None:
        """Start it, once more after `kill`, and return when it is ready.

        Raises:
            RuntimeError: it ended instead, or took too long; with its last lines.
        """
        leash = [sys.executable, "-m", "stt_cascade.cli.leash", str(os.getpid())]
        with self.log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *leash, *self._command, stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log
            )
        await self.until(f"{self._name} is ready", self.ready)

    async def kill(self) -> None:
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            await self._process.wait()

    async def get(self, path: str, **parameters: str) -> Any:
        """What it answers, as JSON.

        Raises:
            httpx2.HTTPStatusError: it refuses.
        """
        assert self._http is not None
        answer = await self._http.get(path, params=parameters)
        answer.raise_for_status()
        return answer.json()

    async def post(self, path: str, content: Any = None) -> None:
        """Send it, as JSON.

        Raises:
            httpx2.HTTPStatusError: it refuses.
        """
        assert self._http is not None
        (await self._http.post(path, json=content)).raise_for_status()

    async def until(
        self, what: str, ask: Callable[[], Awaitable[Found]], patience: float = PATIENCE_S
    ) -> Found:
        """Ask until there is something.

        Raises:
            RuntimeError: there was nothing in all that time.
        """
        clock = asyncio.get_running_loop().time
        end = clock() + patience
        while not (found := await ask()):
            if clock() > end or (self._process and self._process.returncode is not None):
                last = self.log.read_text(errors="replace")[-2000:]
                raise RuntimeError(f"not within {patience:g} s: {what}\n{last}")
            await asyncio.sleep(POLL_S)
        return found

    async def ready(self) -> bool:
        try:
            return await self.text("/-/ready") is not None
        except httpx2.TransportError:
            return False

    async def prepare(self) -> None:
        """What is to be done before anybody may use it."""

    async def text(self, path: str) -> str | None:
        """What it answers; None if that is not 200."""
        assert self._http is not None
        answer = await self._http.get(path)
        return answer.text if answer.status_code == 200 else None


class Prometheus(Server):
    """One that scrapes every second. An async context manager.

        async with Prometheus(folder, {"stt-primary": ["127.0.0.1:8081"]}) as prometheus:
            await prometheus.alert("SttTierDown", "firing")

    The configuration is that of `deploy/prometheus`, but for the times and the targets.

    Args:
        folder: of its own; it is filled with configuration and data.
        targets: addresses by job: stt-primary, stt-fallback, envoy, alertmanager. A dictionary
            in the place of an address has labels, too: {"target": ..., "role": "canary"}.
        scale: how much shorter the rules' times are.
        key: of METRICS_KEYS, where the tiers want one.
    """

    def __init__(
        self,
        folder: Path,
        targets: Mapping[str, Sequence[str | Mapping[str, str]]],
        *,
        scale: Scale = FAST,
        key: str | None = None,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._later = folder / "rules-later"
        shorten(FILES / "rules", self._later, scale)
        self._scraped = sum(len(targets[job]) for job in targets if job != "alertmanager")
        config = folder / "prometheus.yml"
        config.write_text(yaml.safe_dump(_configuration(key)), encoding="utf-8")
        self._key = folder / "secrets" / "metrics_key"
        if key is not None:
            self._key.parent.mkdir(exist_ok=True)
            self.key(key)
        self._targets = folder / "targets" / "stt.yml"
        self._targets.parent.mkdir(exist_ok=True)
        self.aim(targets)
        command: list[str | Path] = [
            engines.path("prometheus"),
            f"--config.file={config}",
            "--web.enable-lifecycle",
            # An Alertmanager forgets an alert that it is not told of for four of these.
            "--rules.alert.resend-delay=2s",
        ]
        command += [
            f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address={HOST}:{{port}}",
        ]
        super().__init__("prometheus", command, folder)

    async def prepare(self) -> None:
        """Load the rules once every target has been scraped.

        It takes five seconds to find targets; alerts would fire meanwhile that nobody meant.
        """
        scraped = f"count(up) == {self._scraped}" if self._scraped else "vector(1)"
        await self.data(scraped)
        self._later.rename(self._later.with_name("rules"))
        await self.post("/-/reload")
        await self.until("the rules are evaluated", self._evaluated)

    async def _evaluated(self) -> bool:
        """Every group so often that its alerts are recorded; until then ALERTS has none."""
        found = re.findall(
            r"^prometheus_rule_group_iterations_total\{.*\} (\S+)$",
            await self.text("/metrics") or "",
            re.MULTILINE,
        )
        return bool(found) and min(map(float, found)) >= RECORDED_AFTER

    def key(self, key: str) -> None:
        """Show this one to the tiers from the next scrape on."""
        self._key.write_text(key, encoding="utf-8")

    def aim(self, targets: Mapping[str, Sequence[str | Mapping[str, str]]]) -> None:
        """Scrape these from now on; it looks at the file by itself."""
        groups = []
        for job, addresses in targets.items():
            for address in addresses:
                labels = {"target": address} if isinstance(address, str) else dict(address)
                target = labels.pop("target")
                groups.append({"targets": [target], "labels": {"job": job, **labels}})
        # Moved into place, so that no half of it is read.
        new = self._targets.with_suffix(".new")
        new.write_text(yaml.safe_dump(groups), encoding="utf-8")
        shutil.move(new, self._targets)

    async def query(self, expression: str) -> list[dict[str, Any]]:
        """The instant vector: `metric` (labels) and `value` (time, number as text) of each series.

        Raises:
            httpx2.HTTPStatusError: the expression is wrong.
        """
        answer = await self.get("/api/v1/query", query=expression)
        result = answer["data"]["result"]
        if answer["data"]["resultType"] == "scalar":
            return [{"metric": {}, "value": result}]
        return list(result)

    async def data(self, expression: str, patience: float = PATIENCE_S) -> list[dict[str, Any]]:
        """The same, as soon as there is any."""
        return await self.until(f"data for {expression}", lambda: self.query(expression), patience)

    async def alert(
        self, name: str, state: str, patience: float = PATIENCE_S, **labels: str
    ) -> dict[str, Any]:
        """Wait until an alert is `pending` or `firing`, or `resolved`: no longer either.

        Returns:
            its labels, annotations, state and value; empty if resolved.

        Raises:
            RuntimeError: that did not come; the message has those that there are.
        """

        async def is_there() -> dict[str, Any] | None:
            found = [
                one
                for one in await self.alerts()
                if labels.items() | {("alertname", name)} <= one["labels"].items()
            ]
            if state == "resolved":
                return None if found else {"state": state}
            return next((one for one in found if one["state"] == state), None)

        try:
            found = await self.until(f"{name} is {state}", is_there, patience)
        except RuntimeError as error:
            there = [(one["labels"], one["state"]) for one in await self.alerts()]
            raise RuntimeError(f"{error}\nalerts now: {there}") from None
        assert found is not None
        return found

    async def alerts(self) -> list[dict[str, Any]]:
        """Pending and firing ones, as its API has them."""
        return list((await self.get("/api/v1/alerts"))["data"]["alerts"])

    async def went_through(self, name: str, **labels: str) -> set[str]:
        """In which states, pending and firing, that alert has ever been."""
        match = "".join(f',{key}="{value}"' for key, value in labels.items())
        history = await self.query(f'last_over_time(ALERTS{{alertname="{name}"{match}}}[1h])')
        return {series["metric"]["alertstate"] for series in history}


def _configuration(key: str | None) -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load((FILES / "prometheus.yml").read_text(encoding="utf-8"))
    config["global"] = {
        "scrape_interval": "1s",
        "scrape_timeout": "1s",
        "evaluation_interval": "1s",
    }
    if key is not None:
        for job in config["scrape_configs"]:
            if job["job_name"] != "envoy":
                job["authorization"] = {"credentials_file": "secrets/metrics_key"}
    return config
