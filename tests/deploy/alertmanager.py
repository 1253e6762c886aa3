"""A real Alertmanager on `deploy/alertmanager/alertmanager.yml`, whose messages come to us."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

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
        command: list[str | Path] = [engines.path("alertmanager"), f"--config.file={config}"]
        command += [f"--storage.path={folder / 'data'}", "--cluster.listen-address="]
        command += [f"--web.listen-address={HOST}:{{port}}"]
        super().__init__("alertmanager", command, folder)

    async def tell(self, alerts: Iterable[Mapping[str, str]]) -> None:
        """What a Prometheus would: that alerts with these labels fire."""
        await self.post("/api/v2/alerts", [{"labels": dict(labels)} for labels in alerts])

    async def alerts(self) -> list[dict[str, Any]]:
        """As its API has them: labels, receivers, and in `status` who inhibits them."""
        return list(await self.get("/api/v2/alerts"))


class Inbox:
    """Who is told: an incoming webhook of Slack's form for each receiver.

    Attributes:
        messages: receiver and text of each, in order.
        addresses: by receiver.
    """

    def __init__(self, port: int) -> None:
        self.messages: list[tuple[str, str]] = []
        self.addresses = {name: f"http://{HOST}:{port}/{name}" for name in ("page", "ticket")}

    async def has(self, receiver: str, *words: str) -> bool:
        """Whether a message to that receiver has all of these words."""
        return any(
            to == receiver and all(word in text for word in words) for to, text in self.messages
        )

    def take(self, receiver: str, body: bytes) -> None:
        for part in json.loads(body)["attachments"]:
            self.messages.append((receiver, f"{part['title']}\n{part['text']}"))


@asynccontextmanager
async def inbox() -> AsyncIterator[Inbox]:
    """One that listens."""
    listening: list[Inbox] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            length = re.search(r"(?i)^content-length: (\d+)", head, re.MULTILINE)
            body = await reader.readexactly(int(length[1]) if length else 0)
            listening[0].take(head.split()[1].removeprefix("/"), body)
            writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok")
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # it has gone
        finally:
            writer.close()

    server = await asyncio.start_server(serve, HOST, 0)
    async with server:
        listening.append(Inbox(server.sockets[0].getsockname()[1]))
        yield listening[0]


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
