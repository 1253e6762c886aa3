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
from stt_sdk._within import within

FILE = engines.ROOT / "deploy" / "alertmanager" / "alertmanager.yml"
# What stands in the place of a dead man's service's address.
EXAMPLE = "https://deadman.example.com/your-check"


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
    """Who is told: an incoming webhook for each receiver; Slack's form, or Alertmanager's own.

    Attributes:
        messages: receiver and text of each, in order.
        addresses: by receiver.
    """

    def __init__(self, port: int) -> None:
        self.messages: list[tuple[str, str]] = []
        receivers = ("page", "ticket", "watchdog")
        self.addresses = {name: f"http://{HOST}:{port}/{name}" for name in receivers}
        self._came = asyncio.Condition()

    def count(self, receiver: str) -> int:
        return sum(to == receiver for to, _ in self.messages)

    async def again(self, receiver: str, patience: float) -> bool:
        """Whether another message comes to that receiver within so many seconds."""
        before = self.count(receiver)
        async with self._came:
            try:
                await within(patience, self._came.wait_for(lambda: self.count(receiver) > before))
            except TimeoutError:
                return False
            return True

    async def has(self, receiver: str, *words: str) -> bool:
        """Whether a message to that receiver has all of these words."""
        return any(
            to == receiver and all(word in text for word in words) for to, text in self.messages
        )

    async def take(self, receiver: str, body: bytes) -> None:
        content = json.loads(body)
        said = [f"{part['title']}\n{part['text']}" for part in content.get("attachments", ())]
        said += [
            f"{alert['status']}: {alert['labels']['alertname']}\n{alert['annotations']}"
            for alert in content.get("alerts", ())
        ]
        async with self._came:
            self.messages += [(receiver, text) for text in said]
            self._came.notify_all()


@asynccontextmanager
async def inbox() -> AsyncIterator[Inbox]:
    """One that listens."""
    listening: list[Inbox] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            length = re.search(r"(?i)^content-length: (\d+)", head, re.MULTILINE)
            body = await reader.readexactly(int(length[1]) if length else 0)
            await listening[0].take(head.split()[1].removeprefix("/"), body)
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


def switched_on(text: str, address: str) -> str:
    """The file as its comment says: the dead man's address there, and the # gone."""
    head, name, rest = text.partition("  - name: watchdog\n")
    off = re.match(r"(?:    # .*\n)+", rest)
    assert off, f"{FILE} has no place for the dead man's address"
    lines = off[0].replace("    # ", "    ").replace(EXAMPLE, address)
    assert address in lines
    return head + name + lines + rest[off.end() :]


def _configuration(folder: Path, addresses: Mapping[str, str]) -> dict[str, Any]:
    """That of the file, but quicker, and with the addresses in files of this folder."""
    text = FILE.read_text(encoding="utf-8")
    if "watchdog" in addresses:
        text = switched_on(text, addresses["watchdog"])
    config: dict[str, Any] = yaml.safe_load(text)
    for route in (config["route"], *config["route"]["routes"]):
        route["group_wait"] = "1s"
        route["group_interval"] = "1s"
        if route["receiver"] == "watchdog":
            route["repeat_interval"] = "500ms"
    for receiver in config["receivers"]:
        file = folder / f"{receiver['name']}_url"
        if receiver["name"] in addresses:
            file.write_text(addresses[receiver["name"]], encoding="utf-8")
        for slack in receiver.get("slack_configs", ()):
            slack["api_url_file"] = str(file)
    return config
