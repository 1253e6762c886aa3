"""Several primaries behind one client."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import ssl
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from typing import Any

import httpx2

from stt_sdk import _answer
from stt_sdk._client import DEFAULT_TIMEOUT, Transcriber, checked
from stt_sdk._errors import ConnectionFailed, STTError, TimedOut
from stt_sdk._exchange import exchange
from stt_sdk._hosts import Host, HostView
from stt_sdk._network import addresses
from stt_sdk._retry import RetryPolicy
from stt_sdk._telemetry import TelemetryHook

PROBE_INTERVAL_S = 1.0
PROBE_TIMEOUT_S = 1.0
# How often names are looked up anew.
RESOLVE_INTERVAL_S = 5.0
# Who waits for a look-up goes on after so long with what is known.
LOOK_UP_PATIENCE_S = 5.0

log = logging.getLogger("stt_sdk")

Resolve = Callable[[str, int], Awaitable[list[str]]]


class STTPool(Transcriber):
    """Spreads calls over several primaries. An async context manager, used as `STTClient`.

        async with STTPool(["http://stt-1:8081", "http://stt-2:8081"], api_key="…") as stt:
            print((await stt.transcribe("clip.wav")).text)

    A call goes to that of two random hosts which has fewer seconds of audio to work on. A host is
    left out after 5 failed calls in a row, for 30 s times the number of these ejections, or while
    it is not ready or draining; each is asked once a second whether it is ready, and a success lets
    it in again. If all are out, all are in. A refused or broken call goes to another host.

    A name that stands for several addresses is as many hosts; names are looked up every 5 s.

    Args:
        base_urls: addresses of the services; there may be none yet.
        api_key, timeout, retries, telemetry, ssl_context, transport: as for `STTClient`, the same
            for all.
        resolve: how a name and a port become IP addresses, such as from Consul; by default as
            the system does it.

    Raises:
        TypeError, ValueError: an argument makes no sense.
    """

    def __init__(
        self,
        base_urls: Iterable[str],
        *,
        api_key: str | None = None,
        timeout: float = DEFAULT_TIMEOUT,
        retries: int | RetryPolicy = 2,
        telemetry: TelemetryHook | Iterable[TelemetryHook] = (),
        ssl_context: ssl.SSLContext | None = None,
        transport: httpx2.AsyncBaseTransport | None = None,
        resolve: Resolve | None = None,
    ) -> None:
        if resolve is not None and not callable(resolve):
            raise TypeError(f"resolve must be a function or None, not {resolve!r}")
        if isinstance(base_urls, str):
            raise ValueError("base_urls must be several addresses; for one there is STTClient")
        super().__init__(
            [],
            api_key=api_key,
            timeout=timeout,
            retries=retries,
            telemetry=telemetry,
            transport=transport,
            ssl_context=ssl_context,
        )
        self._urls = dict.fromkeys(checked(url) for url in base_urls)  # a set that keeps its order
        self._look_up = resolve or system_addresses
        self._opening: asyncio.Task[None] | None = None
        self._closed = False
        self._looking: dict[str, asyncio.Task[None]] = {}
        self._going: dict[Host, asyncio.Task[None]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def hosts(self) -> tuple[HostView, ...]:
        """All hosts as they are now, those included that are leaving."""
        return tuple(host.view() for host in self._hosts)

    async def add(self, base_url: str) -> None:
        """Let calls go to this address, too.

        Raises:
            ValueError: it is no address.
        """
        self._own_loop()
        url = checked(base_url)
        await self._start()
        self._urls[url] = None
        await asyncio.wait({self._look(url)}, timeout=LOOK_UP_PATIENCE_S)

    async def remove(self, base_url: str) -> None:
        """Send nothing new to this address, and return when it has answered what it was sent.

        Raises:
            ValueError: there is no such address in the pool.
        """
        self._own_loop()
        url = checked(base_url)
        if url not in self._urls:
            raise ValueError(f"{base_url!r} is not in the pool; it has {', '.join(self._urls)}")
        del self._urls[url]
        going = {self._let_go(host) for host in self._hosts if host.url == url}
        if going:
            await asyncio.wait(going)  # they go, even if who waits for it does not wait so long

    async def aclose(self) -> None:
        """Close all connections; hooks get what is still on its way to them."""
        self._own_loop()
        self._closed = True
        tasks = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await super().aclose()

    async def _start(self, seconds: float | None = None) -> None:
        if self._opening is None and not self._closed:
            self._opening = self._in_background(self._open())
        # Calls that come together wait for one look-up, which goes on if one of them is cancelled.
        if self._opening is not None and not self._opening.done():
            await asyncio.wait({self._opening}, timeout=seconds)
        if self._closed:
            raise RuntimeError("this pool is closed")

    async def _open(self) -> None:
        watching = _again_and_again(self._look_all_up, RESOLVE_INTERVAL_S)
        self._in_background(watching)
        await self._look_all_up()  # the same look-ups, not others
        self._in_background(_again_and_again(self._probe_all, PROBE_INTERVAL_S))

    def _in_background(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()):
            log.error("a pool failed in the background", exc_info=error)

    async def _probe_all(self) -> None:
        await asyncio.gather(*(_probe(host) for host in self._hosts))

    async def _look_all_up(self) -> None:
        looking = [self._look(url) for url in self._urls]
        if looking:
            await asyncio.wait(looking, timeout=LOOK_UP_PATIENCE_S)

    def _look(self, url: str) -> asyncio.Task[None]:
        """Look a name up, unless that is under way: each one that hangs holds a thread."""
        looking = self._looking.get(url)
        if looking is None:
            looking = self._looking[url] = self._in_background(self._resolve(url))
            looking.add_done_callback(lambda _: self._looking.pop(url))
        return looking

    async def _resolve(self, url: str) -> None:
        """Make the hosts of an address those that its name stands for now."""
        parsed = httpx2.URL(url)
        port = parsed.port or (443 if parsed.scheme == "https" else 80)
        found: set[str | None] = set()
        why: object = "it has no address"
        if self._transport is not None or _is_address(parsed.host):
            found = {None}  # the caller's own transport knows its way
        else:
            try:
                found = {*await self._look_up(parsed.host, port)}
            except Exception as error:  # noqa: BLE001  # whatever a look-up of the caller's raises
                why = error
        if not found:
            log.warning("%s was not found: %s", parsed.host, why)
            if self._of(url):
                return
            found = {None}
        elif len(found) == 1 and self._look_up is system_addresses:
            found = {None}  # the system will find it, too, at each new connection
        if url not in self._urls:
            return  # removed meanwhile
        known = {host.address: host for host in self._of(url)}
        self._hosts.extend(self._connect(url, address) for address in found - known.keys())
        for address in known.keys() - found:
            self._let_go(known[address])

    def _of(self, url: str) -> list[Host]:
        return [host for host in self._hosts if host.url == url and not host.leaving]

    def _let_go(self, host: Host) -> asyncio.Task[None]:
        if host not in self._going:
            host.leaving = True
            self._going[host] = self._in_background(self._leave(host))
        return self._going[host]

    async def _leave(self, host: Host) -> None:
        await host.until_idle()
        self._hosts.remove(host)
        del self._going[host]
        if self._transport is None:  # else the others need it
            await host.http.aclose()


async def system_addresses(host: str, port: int) -> list[str]:
    """The addresses of a name, of that family which has more of them.

    A machine with an address of each family is one host, not two.

    Raises:
        OSError: the name is not found.
    """
    infos = await addresses(host, port)
    families: dict[int, list[str]] = {}
    for family, _, _, _, address in infos:
        families.setdefault(family, []).append(str(address[0]))
    return max(families.values(), key=len)  # of equals the one that the system puts first


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


async def _probe(host: Host) -> None:
    if host.leaving:
        return
    try:
        response = await exchange(host, PROBE_TIMEOUT_S, "GET", "/v1/ready")
        readiness = _answer.readiness(response)
    except (ConnectionFailed, TimedOut):
        host.health.refuses("not_ready")
    except STTError as error:
        # A proxy that hides /v1/ready, or no service of ours: only its calls tell.
        log.debug("%s does not say whether it is ready: %s", host.name, error)
    else:
        if readiness.ready:
            host.health.ready()
        else:
            host.health.refuses("draining" if readiness.state == "draining" else "not_ready")


async def _again_and_again(work: Callable[[], Awaitable[None]], interval: float) -> None:
    while True:
        began = time.monotonic()
        try:
            await work()
        except Exception:  # a pool that stops watching would trust the dead
            log.exception("watching the hosts failed, and goes on")
        await asyncio.sleep(max(0.0, began + interval - time.monotonic()))
