"""One file over HTTP: resumed where it broke off, and accepted by its digest alone."""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import httpx2

from stt_cascade.weights.errors import DigestError, SourceError
from stt_sdk._transport import NoCookies

# A machine without network must find out quickly, so that the next source gets its turn.
CONNECT_SECONDS = 4.0
READ_SECONDS = 30.0
# Seconds to wait before each new attempt once bytes have flowed and the line broke.
PAUSES = (1.0, 4.0)
CHUNK = 1 << 18


class Progress(Protocol):
    """Where a pull reports to."""

    def say(self, line: str) -> None:
        """Take one step, in words."""

    def moved(self, label: str, done: int, total: int) -> None:
        """Take note that `done` of `total` bytes of `label` are here, resumed ones included."""


class Silent:
    """A `Progress` that tells nobody."""

    def say(self, line: str) -> None:
        """Drop the step."""

    def moved(self, label: str, done: int, total: int) -> None:
        """Drop the count."""


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in lowercase hex.

    Raises:
        OSError: if it cannot be read.
    """
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def is_sound(path: Path, sha256: str) -> bool:
    """Whether `path` is there and has this SHA-256."""
    return path.exists() and sha256_of(path) == sha256


def settle(part: Path, destination: Path) -> None:
    """Rename `part`, once its bytes are on the disk, to `destination` on the same file system."""
    with part.open("rb") as stream:
        os.fsync(stream.fileno())
    part.replace(destination)


def http_client() -> httpx2.Client:
    """An HTTP client that honours the proxy variables and trusts the system's CAs.

    Raises:
        SourceError: `SSL_CERT_FILE` or `SSL_CERT_DIR` names something unusable.
    """
    timeout = httpx2.Timeout(READ_SECONDS, connect=CONNECT_SECONDS)
    try:
        return httpx2.Client(follow_redirects=True, timeout=timeout, cookies=NoCookies())
    except OSError as error:
        # Not to be taken for a refusal of the disk.
        raise SourceError(f"no usable CA certificates (SSL_CERT_FILE): {error}") from error


def fetch(
    client: httpx2.Client,
    url: str,
    destination: Path,
    *,
    part: Path,
    size: int,
    sha256: str,
    progress: Progress,
    headers: Mapping[str, str] | None = None,
    pauses: Sequence[float] = PAUSES,
) -> None:
    """Bring `url` to `destination`, going on from what `part` holds.

    `size` (bytes) and `sha256` (hex) are what must arrive. `part` stays when the line breaks, so a
    later call asks for the rest only.

    Raises:
        DigestError: other bytes arrived; they are deleted.
        SourceError: the server could not be reached or refused.
        OSError: the disk refused.
    """
    label = destination.name
    resumed = _held(part)
    if resumed < size:
        _download(client, url, part, size, label, progress, headers or {}, pauses)
    if sha256_of(part) != sha256:
        part.unlink()
        if not resumed:
            raise DigestError(f"{label} is not the file the table promises (SHA-256 differs)")
        # What lay there may be left from another release: one clean try decides.
        progress.say(f"{label}: what was left from an earlier try does not fit; starting over")
        _download(client, url, part, size, label, progress, headers or {}, pauses)
        if sha256_of(part) != sha256:
            part.unlink()
            raise DigestError(f"{label} is not the file the table promises (SHA-256 differs)")
    settle(part, destination)


def _download(
    client: httpx2.Client,
    url: str,
    part: Path,
    size: int,
    label: str,
    progress: Progress,
    headers: Mapping[str, str],
    pauses: Sequence[float],
) -> None:
    """Run `_stream` until the file is whole, or until it has come no further in every attempt."""
    left = list(pauses)
    flowed = False
    while True:
        before = _held(part)
        try:
            _stream(client, url, part, size, label, progress, headers)
            return
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            if _held(part) != before:
                flowed, left = True, list(pauses)
            # A server that never answered is not worth waiting for; one that did may come back.
            if not flowed or not left or not isinstance(error, httpx2.TransportError):
                raise SourceError(f"{label}: {_reason(error)}") from error
            progress.say(f"{label}: {_reason(error)}; going on from {_held(part)} bytes")
            time.sleep(left.pop(0))


def _stream(
    client: httpx2.Client,
    url: str,
    part: Path,
    size: int,
    label: str,
    progress: Progress,
    headers: Mapping[str, str],
) -> None:
    """One request for the bytes that `part` lacks."""
    done = _held(part)
    # Compression would make the offsets of a resumed download mean something else.
    asked = {**headers, "Accept-Encoding": "identity"}
    if done:
        asked["Range"] = f"bytes={done}-"
    with client.stream("GET", url, headers=asked) as response:
        if response.status_code == httpx2.codes.RANGE_NOT_SATISFIABLE:
            return  # `part` is longer than the file: its digest will say so
        response.raise_for_status()
        if not (
            response.status_code == httpx2.codes.PARTIAL_CONTENT and _starts_at(response, done)
        ):
            done = 0
        with part.open("r+b" if done else "wb") as stream:
            stream.seek(done)
            progress.moved(label, done, size)
            for chunk in response.iter_bytes(CHUNK):
                stream.write(chunk)
                # Whoever kills this process loses no more than one chunk.
                stream.flush()
                done += len(chunk)
                progress.moved(label, done, size)
                if done > size:
                    return  # a wrong file of any length must not fill the disk


def _starts_at(response: httpx2.Response, offset: int) -> bool:
    found = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
    return found is not None and int(found[1]) == offset


def _held(part: Path) -> int:
    try:
        return part.stat().st_size
    except FileNotFoundError:
        return 0


def _reason(error: httpx2.HTTPError | httpx2.InvalidURL) -> str:
    if isinstance(error, httpx2.HTTPStatusError):
        return f"the server answered {error.response.status_code}"
    return str(error) or type(error).__name__
