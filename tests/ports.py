"""Ports of servers that keep theirs while they are down."""

from __future__ import annotations

import random
import socket
from collections.abc import Iterator

from stt_cascade.cli.stack import free_port

BLOCK = 100
_claims: list[socket.socket] = []


def _ports() -> Iterator[int]:
    """The ports of one block after another that no other test run on this machine has claimed.

    From 32768 on the system gives ports to whoever connects.
    """
    blocks = list(range(10_000, 32_000, BLOCK))
    random.shuffle(blocks)
    for block in blocks:
        claim = socket.socket(socket.AF_UNIX)
        try:
            claim.bind(f"\0stt-cascade-tests-{block}")
        except OSError:
            claim.close()
            continue
        _claims.append(claim)  # until this process ends
        yield from range(block, block + BLOCK)


_own = _ports()


def own_port() -> int:
    """A port on which nobody listens, and which no test run on this machine gives again."""
    return next(port for port in _own if free_port(port) == port)
