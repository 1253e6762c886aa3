"""Running tiers, and where the real weights and the real speech are."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import structlog
from hypothesis import settings

from fakes import PATIENCE, Reply, ScriptedFallback
from running import Tiers, running_tiers
from servers import Certificate, Run, make_certificate
from stt_cascade.engine.encoding import ShortForm
from stt_cascade.engine.whisper import WhisperEngine
from stt_sdk._within import within

ROOT = Path(__file__).parent.parent
SPEECH = ROOT.parent / "shared" / "speech"


# How long an example takes says nothing on a machine that does other things too.
settings.register_profile("tests", deadline=None)
settings.load_profile("tests")

# Plain lines: structlog's default draws each exception with the variables of all its frames.
structlog.configure(
    processors=[structlog.processors.format_exc_info, structlog.processors.KeyValueRenderer()]
)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--cancelled-calls",
        type=int,
        default=300,
        help="calls that are cancelled before the next ones must succeed",
    )
    parser.addoption(
        "--cancelled-client-calls",
        type=int,
        default=50,
        help="the same of the client",
    )


# Fixtures that say what a test needs; a test that needs it otherwise is marked where it stands.
MARKED_BY_FIXTURE = {
    "weights": {"base", "short", "base_with_a_beam", "tiny_en"},
    "socket": {"tiers", "shared_tiers"},
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test that uses a fixture of `MARKED_BY_FIXTURE`, directly or through another."""
    for item in items:
        for marker, fixtures in MARKED_BY_FIXTURE.items():
            if fixtures & set(getattr(item, "fixturenames", ())):
                item.add_marker(marker)


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


def model(name: str) -> Path:
    """The folder of real weights; skips where they are missing."""
    folder = ROOT / "models" / f"whisper-{name}-ct2"
    if not (folder / "model.bin").is_file():
        pytest.skip(f"no weights in {folder}: stt models pull {name}")
    return folder


@pytest.fixture(scope="session")
def base() -> WhisperEngine:
    """Whisper base, greedy, encoding 30 s whatever was said."""
    return WhisperEngine(model("base"), compute_type="int8", cpu_threads=2)


@pytest.fixture(scope="session")
def short() -> WhisperEngine:
    """The same with the short encoding."""
    return WhisperEngine(model("base"), compute_type="int8", cpu_threads=2, short=ShortForm())


@pytest.fixture(scope="session")
def base_with_a_beam() -> WhisperEngine:
    """Whisper base as the CPU pair's fallback runs it."""
    return WhisperEngine(model("base"), compute_type="float32", cpu_threads=2, beam_size=5)


@pytest.fixture(scope="session")
def tiny_en() -> WhisperEngine:
    return WhisperEngine(model("tiny.en"), compute_type="int8", cpu_threads=2)


@dataclass(frozen=True)
class Utterance:
    """One clip of the labelled speech beside the repository."""

    file: Path
    text: str
    language: str

    @property
    def audio(self) -> bytes:
        return self.file.read_bytes()


@pytest.fixture(scope="session")
def speech() -> dict[str, Utterance]:
    """Labelled real speech by file name; skips where it is missing."""
    if not (SPEECH / "manifest.jsonl").is_file():
        pytest.skip(f"no labelled speech in {SPEECH}")
    rows = [json.loads(line) for line in (SPEECH / "manifest.jsonl").read_text().splitlines()]
    return {
        Path(row["file"]).stem: Utterance(SPEECH / row["file"], row["text"], row["language"])
        for row in rows
    }


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Iterator[Run]:
    """Runs a scenario to its end on an event loop of each kind; no task outlives it."""
    if request.param == "asyncio":
        loop = asyncio.new_event_loop()
    else:
        loop = pytest.importorskip("uvloop").new_event_loop()

    async def to_the_end(scenario: Coroutine[Any, Any, Any]) -> Any:
        result = await within(3 * PATIENCE, scenario)
        for _ in range(10):  # what was closed last
            await asyncio.sleep(0)
        assert asyncio.all_tasks() == {asyncio.current_task()}
        return result

    yield lambda scenario: loop.run_until_complete(to_the_end(scenario))
    loop.run_until_complete(loop.shutdown_asyncgens())
    loop.run_until_complete(loop.shutdown_default_executor())
    loop.close()


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return make_certificate(tmp_path_factory.mktemp("certificate"))
