"""Which service a command talks to: what the caller says, else the one that `stt up` runs."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

DEFAULT_URL = "http://127.0.0.1:8081"


@dataclass(frozen=True)
class Endpoint:
    """Address and bearer key of a primary."""

    url: str
    key: str | None


def find(url: str | None, key: str | None) -> Endpoint:
    """The given address and key; what is not given comes from a running `stt up`."""
    running = _announced()
    if url is not None:
        # A key is for one service only: it must not travel to another address.
        return Endpoint(url, key or (running.key if running and running.url == url else None))
    if running is not None:
        return Endpoint(running.url, key or running.key)
    return Endpoint(DEFAULT_URL, key)


@contextmanager
def announce(url: str, key: str) -> Iterator[None]:
    """While within it, `find` finds this service. The last one to be started is found."""
    path = _state_file()
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
        if path.is_file() and path.read_text() == text:
            path.unlink()


def _announced() -> Endpoint | None:
    path = _state_file()
    try:
        if path.stat().st_uid != os.getuid():
            return None
        state = json.loads(path.read_text())
        os.kill(state["pid"], 0)  # a service that was killed could not take its file away
        return Endpoint(state["url"], state["key"])
    except (OSError, ValueError, KeyError, TypeError):
        return None  # no service of ours is running here


def _state_file() -> Path:
    base = os.environ.get("XDG_RUNTIME_DIR")
    folder = Path(base) if base else Path(tempfile.gettempdir())
    return folder / f"stt-cascade-{os.getuid()}" / "up.json"
