"""One runbook's try: the tiers, Prometheus, the callers, and the page that says what to do."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import httpx2

from deploy.prometheus import Prometheus, Server
from deploy.shorten import Scale
from faults.lab import Lab
from faults.report import Report
from faults.stub import Stub
from runbooks.box import Box
from runbooks.page import ALERT, Page, commands, matches, settings
from runbooks.traffic import Traffic, audio_of, clip
from stt_sdk._within import within

# What is not on the machine that tries: said, and not run.
ELSEWHERE = ("docker ", "kubectl ", "helm ", "nvidia-smi", "stt calibrate ", "journalctl -k")
# Where the pages have the servers that tell of the tiers, by their units.
SERVERS = {"prometheus": 9090, "prometheus-alertmanager": 9093}
COMMAND_S = 30.0
# Evaluations of a rule before its alerts are recorded.
SETTLING = 4
JOBS = {"primary": "stt-primary", "fallback": "stt-fallback"}


@dataclass(frozen=True)
class Row:
    """What is done to the tiers for one page.

    Attributes:
        page: its name, without `.md`.
        fault: what is made, for people.
        run: makes it, and follows the page.
        alerts: those of the page.
        states: what is seen of each of these.
        short: part of `make test`.
        scale: how much shorter the rules' times are.
        needs: programs that must be installed.
    """

    page: str
    fault: str
    run: Callable[[Shift], Awaitable[None]]
    alerts: tuple[str, ...] = ()
    states: frozenset[str] = frozenset({"pending", "firing", "resolved"})
    short: bool = False
    scale: Scale = Scale()  # noqa: RUF009  # frozen
    needs: tuple[str, ...] = ("prometheus",)


class Shift:
    """An async context manager; what was started in it is gone after it."""

    def __init__(self, row: Row) -> None:
        self.row = row
        self.page = Page.read(row.page)
        self.report = Report()
        self.seen: dict[str, set[str]] = {}
        self.servers: dict[str, Server] = {}
        self._boxes: dict[str, list[Box]] = {"primary": [], "fallback": []}
        self._exit = AsyncExitStack()
        self._prometheus: Prometheus | None = None
        self._others: dict[str, list[str]] = {}

    async def __aenter__(self) -> Shift:
        self.lab = await self._exit.enter_async_context(Lab())
        self.folder = self.lab.folder / "opt-stt"
        self.folder.mkdir()
        # What the pages call `clip.wav`.
        (self.folder / "clip.wav").write_bytes(audio_of(clip()))
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._exit.aclose()

    # The machines

    async def primary(self, stub: Stub | None = None, **values: Any) -> Box:
        if self._boxes["fallback"]:
            values = {"FALLBACK_URL": f"http://{self._boxes['fallback'][0].address}", **values}
        box = Box(await self.lab.primary(stub, **self._placed(values)))
        self._boxes["primary"].append(box)
        return box

    async def fallback(self, stub: Stub | None = None, **values: Any) -> Box:
        box = Box(await self.lab.fallback(stub, **self._placed(values)))
        self._boxes["fallback"].append(box)
        return box

    def _placed(self, values: dict[str, Any]) -> dict[str, Any]:
        return {
            name: self._here(value) if isinstance(value, str) else value
            for name, value in values.items()
        }

    def retire(self, box: Box) -> None:
        """Others of its tier have its place from now on."""
        for boxes in self._boxes.values():
            if box in boxes:
                boxes.remove(box)

    @contextmanager
    def alone(self, *boxes: Box) -> Iterator[None]:
        """Within it, what a page says is done to these and no others."""
        everybody = self._boxes
        self._boxes = {
            tier: [box for box in there if box in boxes] or there
            for tier, there in everybody.items()
        }
        try:
            yield
        finally:
            self._boxes = everybody

    async def callers(
        self, *boxes: Box, at: int | None = None, request: bytes | None = None, **options: Any
    ) -> Traffic:
        """Callers of these tiers in turn, or at that port, from now on; options as of `Traffic`."""
        ports = [box.port for box in boxes] if at is None else [at]
        traffic = Traffic(ports, request or clip(), **options)
        return await self._exit.enter_async_context(traffic)

    # Prometheus

    async def watch(self, *, key: str | None = None, **others: list[str]) -> None:
        """Start Prometheus on all tiers that there are, and on these by their jobs."""
        folder = self.lab.folder / "prometheus"
        self._others = others
        prometheus = Prometheus(folder, self._targets(), scale=self.row.scale, key=key)
        self._prometheus = await self._exit.enter_async_context(prometheus)
        self.servers["prometheus"] = prometheus
        scraped = [job for job in self._targets() if job != "alertmanager"]
        await self.sees(f"count(up == 1) == {sum(len(self._targets()[job]) for job in scraped)}")
        # Alerts of its first evaluations leave no trace: it asks itself first what was before.
        evaluated: dict[str, set[str]] = {}

        async def settled() -> bool:
            for group in (await prometheus.get("/api/v1/rules"))["data"]["groups"]:
                evaluated.setdefault(group["name"], set()).add(group["lastEvaluation"])
            return all(len(times) > SETTLING for times in evaluated.values())

        await prometheus.until("the rules are evaluated", settled)

    def aim(self) -> None:
        """Scrape the tiers that there are now."""
        self.prometheus.aim(self._targets())

    def _targets(self) -> dict[str, list[str]]:
        tiers = {
            JOBS[tier]: [box.address for box in boxes]
            for tier, boxes in self._boxes.items()
            if boxes
        }
        return {**tiers, **self._others}

    @property
    def prometheus(self) -> Prometheus:
        assert self._prometheus is not None
        return self._prometheus

    async def sees(self, expression: str) -> list[dict[str, Any]]:
        """What Prometheus has for an expression with the times of a page, once it has something."""
        return await self.prometheus.data(self.row.scale.expression(expression))

    async def firing(self, name: str) -> None:
        """See an alert pending, then firing, and that it leads to this page."""
        leads_to = await self.firing_elsewhere(name)
        self.report.check("leads to", leads_to, leads_to == f"docs/runbooks/{self.page.name}.md")

    async def firing_elsewhere(self, name: str) -> str:
        """See an alert pending, then firing; where it leads to."""
        found = await self.prometheus.alert(name, "firing", patience=120)
        states = await self.prometheus.went_through(name)
        self.seen[name] = set(states)
        self.report.check(name, ", then ".join(sorted(states, reverse=True)), len(states) == 2)
        return str(found["annotations"]["runbook"])

    async def resolved(self, name: str) -> None:
        """See that it has gone."""
        await self.prometheus.alert(name, "resolved", patience=120)
        self.seen.setdefault(name, set()).add("resolved")
        self.report.check(name, "resolved", True)

    # The page

    async def check(self) -> None:
        """Run all that the page says to look at, and see what it says is seen."""
        await self.do("How to check" if self.page.headings == list(ALERT) else "Before")

    async def do(self, heading: str, part: str | None = None) -> None:
        """Do what a section says, from top to bottom: settings, commands, queries."""
        ran = 0
        for block in self.page.blocks(heading, part):
            ran += 1
            if block.language == "promql":
                found = await self.sees(" ".join(block.text.split()))
                self.report.check(_short(block.text), f"{len(found)} series", bool(found))
            elif block.language == "ini":
                tier, values = settings(block.text)
                for box in self._boxes[tier]:
                    box.write(**self._placed(values))
                self.report.note(f"{tier}: {', '.join('='.join(pair) for pair in values.items())}")
            elif block.language == "console":
                for command in commands(block.text):
                    await self._type(command.line, command.shows)
        if not ran:
            raise RuntimeError(f"{self.page.name}.md has nothing to do under {part or heading}")

    async def _type(self, line: str, shows: tuple[str, ...]) -> None:
        unit = re.fullmatch(r"systemctl (start|stop|restart|kill -s \w+) stt-(\w+)", line)
        if unit:
            for box in list(self._boxes[unit[2]]):
                await {"start": box.start, "stop": box.stop, "restart": box.restart}[unit[1]]()
            self.report.note(line)
            return
        if server := self.servers.get(line.removeprefix("systemctl start ")):
            await server.start()
            self.report.note(line)
            return
        if line.startswith(ELSEWHERE):
            self.report.note(f"not here: {line}")
            return
        process = await asyncio.create_subprocess_exec(
            *("bash", "-o", "pipefail", "-c", self._here(line)),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            cwd=self.folder,
        )
        try:
            out, _ = await within(COMMAND_S, process.communicate())
        except TimeoutError:
            process.kill()
            self.report.check(_short(line), f"not done within {COMMAND_S:g} s", False)
            return
        output = out.decode(errors="replace")
        missing = [each for each in shows if not matches(self._here(each), output)]
        holds = process.returncode == 0 and not missing
        figure = "as the page shows" if holds else f"{missing} not in {output!r}"
        self.report.check(_short(line), figure, holds)

    def _here(self, text: str) -> str:
        """What a page says, with the names that things have here."""
        text = re.sub(
            r"journalctl -u stt-(\w+) [^|]*",
            lambda unit: f"cat {self._boxes[unit[1]][0].tier.log} ",
            text,
        )
        names = {"/opt/stt/": f"{self.folder}/"}
        for port, boxes in ((8081, self._boxes["primary"]), (8082, self._boxes["fallback"])):
            # A second machine of a tier is another address in the pages: here, another port.
            for number, box in enumerate(boxes):
                host = "127.0.0.1" if number == 0 else f"stt-{number + 1}"
                names[f"{host}:{port}"] = box.address
        for unit_name, server in self.servers.items():
            names[f"127.0.0.1:{SERVERS[unit_name]}"] = f"127.0.0.1:{server.port}"
        for name, here in names.items():
            text = text.replace(name, here)
        return text


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 76 else f"{line[:75]}…"


async def run(row: Row) -> Report:
    """One row; what broke instead of failing is a failure too."""
    shift = Shift(row)
    limit = 240.0
    try:
        async with shift:
            await within(limit, row.run(shift))
    except TimeoutError:
        shift.report.check("ends", f"not within {limit:g} s", False)
    except (RuntimeError, LookupError, OSError, httpx2.HTTPError) as error:
        shift.report.check("can be followed", error, False)
    for name in row.alerts:
        states = shift.seen.get(name, set())
        if states != row.states:
            shift.report.check(name, f"seen {sorted(states)} only", False)
    return shift.report
