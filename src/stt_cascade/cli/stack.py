"""Both tiers as child processes of this one, which they do not outlive."""

from __future__ import annotations

import asyncio
import errno
import secrets
import signal
import socket
import tempfile
import time
from collections.abc import Callable, Coroutine, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, TypeVar

from stt_cascade.cli.child import DRAIN_TIMEOUT_S, HOST, Child
from stt_cascade.cli.hardware import Recipe
from stt_cascade.weights import find
from stt_sdk import STTClient, STTError

POLL = 0.2  # seconds
# How far from the wanted port another one is looked for.
PORT_RANGE = 100

Result = TypeVar("Result")


class StackError(Exception):
    """A tier could not start, or ended by itself; the message has its last log lines."""


class Stack:
    """A primary and its fallback on this machine, with keys of their own. An async context manager.

        async with Stack(*recipes("base", "base", cores=2, gpu=False), Path("models")) as stack:
            ...  # stack.url, stack.key

    Enter it in the main thread: the children live as long as the thread that starts them.

    Args:
        primary, fallback: how they run.
        models: folder with their weights.
        port, fallback_port: wanted ports; where one is taken, the next free one is used.
        verbose: let the children log to this process's output, not to files.
        say: is told each step.
        primary_settings: of the primary, instead of those that it gets here.
    """

    def __init__(
        self,
        primary: Recipe,
        fallback: Recipe,
        models: Path,
        *,
        port: int = 8081,
        fallback_port: int = 8082,
        verbose: bool = False,
        say: Callable[[str], None] = print,
        primary_settings: Mapping[str, object] | None = None,
    ) -> None:
        self.key = secrets.token_urlsafe(24)
        self.fallback_key = secrets.token_urlsafe(24)
        self.url = self.fallback_url = ""
        self.recipes = primary, fallback
        self._models = models.resolve()
        self._ports = port, fallback_port
        self._verbose = verbose
        self._say = say
        self._primary_settings = primary_settings or {}
        self._children: list[Child] = []
        self._exit = AsyncExitStack()

    async def __aenter__(self) -> Stack:
        """Start both.

        Raises:
            StackError: one did not get ready; nothing is left running.
        """
        primary, fallback = self.recipes
        port, fallback_port = self._ports
        async with AsyncExitStack() as started:
            # Nobody else may enter it. Undone last, when nobody reads the files any more.
            folder = Path(started.enter_context(tempfile.TemporaryDirectory(prefix="stt-up-")))
            self.fallback_url = await self._start(
                "fallback",
                fallback,
                fallback_port,
                {"CT2_MEDIUM_PATH": self.weights(fallback), "API_KEYS": self.fallback_key},
                folder,
                started,
            )
            self.url = await self._start(
                "primary",
                primary,
                port,
                {
                    "CT2_SMALL_PATH": self.weights(primary),
                    "API_KEYS": self.key,
                    "FALLBACK_URL": self.fallback_url,
                    "FALLBACK_API_KEY": self.fallback_key,
                    # As in configs/cpu: one word may be a whole answer, and the weakest tokens
                    # judge it well.
                    "MIN_WORDS_FOR_CONF": 1,
                    "CONF_WEAKEST_THRESHOLD": 0.25,
                    **self._primary_settings,
                },
                folder,
                started,
            )
            self._exit = started.pop_all()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # The primary goes first, since what it has begun may need the fallback.
        await self._exit.aclose()

    async def wait(self) -> NoReturn:
        """Wait until a tier ends by itself.

        Raises:
            StackError: that has happened.
        """
        ends = {asyncio.ensure_future(child.process.wait()) for child in self._children}
        try:
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for end in ends:
                end.cancel()
        self.check()
        raise AssertionError("a tier has ended, and none has")

    def check(self) -> None:
        """Raises StackError if a tier has ended by itself."""
        for child in self._children:
            if child.ended:
                raise StackError(child.obituary())

    def last_words(self) -> str:
        """The last log lines of both."""
        return "\n".join(filter(None, (child.last_words() for child in self._children)))

    def kill(self) -> None:
        """End both at once."""
        for child in self._children:
            child.kill()

    def weights(self, recipe: Recipe) -> Path:
        """Folder of what it runs with."""
        return self._models / find(recipe.model).folder

    async def _start(
        self,
        name: str,
        recipe: Recipe,
        wanted: int,
        settings: Mapping[str, object],
        folder: Path,
        started: AsyncExitStack,
    ) -> str:
        """Run a tier, and return its address once it is ready."""
        began = time.monotonic()
        self._say(f"Starting the {name}: {recipe} ...")
        port = free_port(wanted)
        if port != wanted:
            self._say(f"  port {wanted} is taken; using {port}")
        file = folder / f"{name}.env"
        common = {
            "LOG_FORMAT": "console",
            # What the first start prepares, the next ones find.
            "CACHE_DIR": self._models / ".cache",
            "DRAIN_TIMEOUT_S": DRAIN_TIMEOUT_S,
            # One caller on the same machine needs no brake.
            "RATE_LIMIT_RPS": 1000,
            "RATE_LIMIT_BURST": 1000,
        }
        file.write_text(as_env({**recipe.settings(), **common, **settings}), encoding="utf-8")
        log = None if self._verbose else folder / f"{name}.log"
        child = await Child.start(name, f"stt_{name}:app", port, file, log)
        self._children.append(child)
        started.push_async_callback(child.stop, self._say)
        url = f"http://{HOST}:{port}"
        await self._until_ready(child, url)
        self._say(f"  ready after {time.monotonic() - began:.1f} s: {url}")
        return url

    async def _until_ready(self, child: Child, url: str) -> None:
        end = asyncio.ensure_future(child.process.wait())
        try:
            async with STTClient(url, timeout=2.0) as client:
                while not await _ready(client):
                    await asyncio.wait({end}, timeout=POLL)
                    self.check()
        finally:
            end.cancel()
        self.check()


def supervise(
    work: Coroutine[Any, Any, Result],
    *,
    say: Callable[[str], None],
    kill: Callable[[], None],
) -> Result:
    """Run `work`, and cancel it on SIGINT, SIGTERM or SIGHUP; a second one calls `kill`.

    Raises:
        asyncio.CancelledError: it was cancelled, and has cleaned up.
    """

    async def run() -> Result:
        loop, task = asyncio.get_running_loop(), asyncio.ensure_future(work)
        heard = 0

        def stop() -> None:
            nonlocal heard
            heard += 1
            if heard == 1:
                say("\nStopping ... (once more: at once)")
                task.cancel()
            else:
                kill()

        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            # `nohup` and scripts' background jobs ignore one or the other, and mean it.
            if signal.getsignal(number) is not signal.SIG_IGN:
                loop.add_signal_handler(number, stop)
        return await task

    return asyncio.run(run())


def free_port(wanted: int) -> int:
    """`wanted`, or the next port above it on which nobody listens.

    Raises:
        StackError: it is not for us, or all of the next ones are taken as well.
    """
    for port in range(wanted, min(wanted + PORT_RANGE, 65536)):
        with socket.socket() as probe:
            # As the server itself will: ports in TIME_WAIT are free.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise StackError(f"port {port} cannot be used: {error.strerror}") from error
            else:
                return port
    raise StackError(f"no port is free from {wanted} on")


def as_env(settings: Mapping[str, object]) -> str:
    """The settings as a .env file; quoted, since a path may hold anything."""
    lines = []
    for key, value in settings.items():
        text = str(value).replace("\\", "\\\\").replace("'", "\\'")
        lines.append(f"{key}='{text}'\n")
    return "".join(lines)


async def _ready(client: STTClient) -> bool:
    try:
        return (await client.ready()).ready
    except STTError:
        return False
