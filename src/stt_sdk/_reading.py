"""Reading what may give nothing for a long time, without a thread that nobody can stop."""

from __future__ import annotations

import asyncio
import io
import os
from collections.abc import AsyncGenerator, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from stt_sdk._apart import in_thread, once

CHUNK = 256 * 1024


async def pipe(path: Path) -> AsyncGenerator[bytes, None]:
    """What a FIFO or a device gives. Nobody need have opened its other end yet."""
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    try:
        while True:
            await _readable(descriptor)
            try:
                piece = os.read(descriptor, CHUNK)
            except BlockingIOError:
                continue
            if not piece:
                return
            yield piece
    finally:
        os.close(descriptor)


async def file(source: Any) -> AsyncGenerator[Any, None]:
    """What an open file without positions gives, piece by piece as it comes."""
    if isinstance(source, io.BufferedReader) and isinstance(source.raw, io.FileIO):
        # Data may lie in its buffer already; then they are seen with the next ones, or the end.
        while piece := await _of_descriptor(source.fileno(), source.read1):
            yield piece
    elif isinstance(source, io.FileIO):
        while (piece := await _of_descriptor(source.fileno(), source.read)) != b"":
            if piece is not None:  # None: somebody else took what was there
                yield piece
    else:
        # Behind it may be TLS or gzip, which hold back data that no descriptor tells of.
        while piece := await once(lambda: _read_some(source), "stt_sdk source"):
            yield piece


async def _of_descriptor(descriptor: int, read: Callable[[int], bytes | None]) -> bytes | None:
    await _readable(descriptor)
    return await in_thread(lambda: read(CHUNK))


async def _readable(descriptor: int) -> None:
    """Until there is something to read, or the end."""
    loop = asyncio.get_running_loop()
    there = loop.create_future()

    def tell() -> None:
        if not there.done():
            there.set_result(None)

    try:
        loop.add_reader(descriptor, tell)
    except (PermissionError, NotImplementedError):
        return  # a device that always has something; or a system that cannot tell
    try:
        await there
    finally:
        loop.remove_reader(descriptor)


def _read_some(source: Any) -> Any:
    read1 = getattr(source, "read1", None)
    if callable(read1):
        with suppress(io.UnsupportedOperation):
            return read1(CHUNK)
    return source.read(CHUNK)
