"""Ports of servers that keep theirs while they are down."""

from __future__ import annotations

import random

from stt_cascade.cli.stack import free_port

# From 32768 on the system gives ports to whoever connects.
_ports = iter(range(random.randrange(10_000, 24_000, 100), 32_000))


def own_port() -> int:
    """A port on which nobody listens, and which this process gives once.

    Other processes that look for one at the same time begin elsewhere.
    """
    return next(port for port in _ports if free_port(port) == port)
