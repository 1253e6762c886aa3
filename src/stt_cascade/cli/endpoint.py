"""Which service a command talks to: what the caller says, else the one that `stt up` runs."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import typer

DEFAULT_URL = "http://127.0.0.1:8081"


@dataclass(frozen=True)
class Endpoint:
    """Address and bearer key of a primary."""

    url: str
    key: str | None = field(repr=False)


def find(url: str | None, key: str | None) -> Endpoint:
    """The given address and key; what is not given comes from a running `stt up`.

    Raises:
        typer.BadParameter: the address is none, or the key cannot be sent in a header.
    """
    key = sendable(key, "--key")
    url = None if url is None else address(url, "--url")
    running = _announced()
    if url is not None:
        # A key is for one service only: it must not travel to another address.
        return Endpoint(url, key or (running.key if running and running.url == url else None))
    if running is not None:
        return Endpoint(running.url, key or running.key)
    return Endpoint(DEFAULT_URL, key)


def address(url: str, option: str) -> str:
    """An address as clients take it.

    Raises:
        typer.BadParameter: it is none.
    """
    from stt_sdk._client import checked

    try:
        return checked(url)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint=option) from None


def sendable(key: str | None, option: str) -> str | None:
    """A key as headers take it.

    Raises:
        typer.BadParameter: none of them can carry it.
    """
    from stt_sdk import _client

    if key is not None and not _client.sendable(key):
        raise typer.BadParameter(
            "the key may hold printable ASCII only, and no blanks around it", param_hint=option
        )
    return key


@contextmanager
def announce(url: str, key: str) -> Iterator[None]:
    """While within it, `find` finds this service. The last one to be started is found."""
    path = _state_folder() / f"up-{os.getpid()}.json"
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    text = json.dumps({"url": url, "key": key, "pid": os.getpid()})
    # Made readable for its owner alone, and complete, before it gets its name.
    descriptor, temporary = tempfile.mkstemp(dir=path.parent)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
    Path(temporary).replace(path)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def _announced() -> Endpoint | None:
    """The service that was started last and still runs."""
    newest: tuple[float, Endpoint] | None = None
    for path in _state_folder().glob("up-*.json"):
        with suppress(OSError, ValueError, KeyError, TypeError):  # one that was killed, or not ours
            status = path.stat()
            state = json.loads(path.read_text())
            os.kill(state["pid"], 0)
            if status.st_uid == os.getuid() and (newest is None or status.st_mtime > newest[0]):
                newest = status.st_mtime, Endpoint(state["url"], state["key"])
    return newest[1] if newest else None


def _state_folder() -> Path:
    base = os.environ.get("XDG_RUNTIME_DIR")
    return Path(base or tempfile.gettempdir()) / f"stt-cascade-{os.getuid()}"
