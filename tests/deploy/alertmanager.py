"""A real Alertmanager on `deploy/alertmanager/alertmanager.yml`, whose messages come to us."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import httpx2
import yaml

from deploy import engines
from deploy.prometheus import Server
from stt_cascade.cli.child import HOST

FILE = engines.ROOT / "deploy" / "alertmanager" / "alertmanager.yml"


class Alertmanager(Server):
    """An async context manager.

    Args:
        folder: of its own.
        addresses: where it tells each receiver; none: it tells nobody.
    """

    def __init__(self, folder: Path, addresses: Mapping[str, str] | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        config = folder / "alertmanager.yml"
        config.write_text(yaml.safe_dump(_configuration(folder, addresses or {})), encoding="utf-8")
        command = [engines.path("alertmanager"), f"--config.file={config}"]
        command += [f"--storage.path={folder / 'data'}", "--cluster.listen-address="]
        command += [f"--web.listen-address={HOST}:{{port}}"]
        super().__init__("alertmanager", command, folder)

    async def tell(self, alerts: Iterable[Mapping[str, str]]) -> None:
        """What a Prometheus would: that alerts with these labels fire."""
        body = json.dumps([{"labels": dict(labels)} for labels in alerts])
        async with httpx2.AsyncClient(trust_env=False, timeout=10.0) as http:
            answer = await http.post(
                f"{self.url}/api/v2/alerts",
                content=body,
                headers={"Content-Type": "application/json"},
            )
            answer.raise_for_status()

    async def alerts(self) -> list[dict[str, Any]]:
        """As its API has them: labels, receivers, and in `status` who inhibits them."""
        return list(await self.get("/api/v2/alerts"))


def _configuration(folder: Path, addresses: Mapping[str, str]) -> dict[str, Any]:
    """That of the file, but quicker, and with the addresses in files of this folder."""
    config: dict[str, Any] = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    for route in (config["route"], *config["route"]["routes"]):
        route["group_wait"] = "1s"
    config["route"]["group_interval"] = "1s"
    for receiver in config["receivers"]:
        file = folder / f"{receiver['name']}_url"
        if receiver["name"] in addresses:
            file.write_text(addresses[receiver["name"]], encoding="utf-8")
        for slack in receiver["slack_configs"]:
            slack["api_url_file"] = str(file)
    return config
