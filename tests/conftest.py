"""Running tiers, and where the real weights and the real speech are."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import structlog
from hypothesis import settings

from fakes import Reply, ScriptedFallback
from running import Tiers, running_tiers

ROOT = Path(__file__).parent.parent
SPEECH = ROOT.parent / "shared" / "speech"


# How long an example takes says nothing on a machine that does other things too.
settings.register_profile("tests", deadline=None)
settings.load_profile("tests")

# Plain lines: structlog's default draws each exception with the variables of all its frames.
structlog.configure(
    processors=[structlog.processors.format_exc_info, structlog.processors.KeyValueRenderer()]
)


@pytest.fixture
def tiers() -> Iterator[Tiers]:
    """Tiers for one test."""
    with running_tiers() as tiers:
        yield tiers


@pytest.fixture(scope="module")
def shared_tiers() -> Iterator[Tiers]:
    """Tiers that the tests of a module share, since none of them changes anything."""
    with running_tiers() as tiers:
        yield tiers


@pytest.fixture
def scripted() -> Iterator[Callable[..., ScriptedFallback]]:
    """Starts an HTTP server in the fallback's place."""
    running: list[ScriptedFallback] = []

    def start(*replies: Reply) -> ScriptedFallback:
        running.append(ScriptedFallback(*replies))
        return running[-1]

    yield start
    for server in running:
        server.stop()


@pytest.fixture
def nobody() -> Iterator[str]:
    """An address at which connections are refused."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{bound.getsockname()[1]}"
