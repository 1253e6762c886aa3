"""The client without `async`: from scripts, notebooks and threads, and however they end."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import stt_sdk
from fakes import PATIENCE, Reply, ScriptedFallback
from running import Tiers, until
from stt_sdk import (
    Clip,
    Event,
    InvalidAudioError,
    RequestFinished,
    SyncSTTClient,
    UnauthorizedError,
)
from tones import wav

Scripted = Callable[..., ScriptedFallback]
CLIP = wav()
TEXT = "from the fallback"


def ours() -> list[threading.Thread]:
    """The clients' threads."""
    return [thread for thread in threading.enumerate() if thread.name == "stt_sdk"]


def test_it_does_all_that_the_asynchronous_one_does(tiers: Tiers) -> None:
    tier = tiers.fallback(api_keys=("secret",))
    with SyncSTTClient(tier.url, api_key="secret") as stt:
        assert stt.transcribe(CLIP, language="de", request_id="mine").request_id == "mine"
        assert stt.health().ok
        assert stt.ready().ready
        assert "queue_depth" in stt.metrics()
        with pytest.raises(InvalidAudioError):
            stt.transcribe(b"no audio")
        found = list(stt.transcribe_many([CLIP, Clip(CLIP, "de"), b"no audio"], concurrency=2))
        assert sorted(outcome.index for outcome in found) == [0, 1, 2]
        assert sum(outcome.error is None for outcome in found) == 2
        assert stt.stats.count == 5
    assert stt.stats.count == 5  # which one may ask for afterwards
    assert ours() == []


def test_one_call_needs_no_client(tiers: Tiers) -> None:
    tier = tiers.fallback(api_keys=("secret",))
    result = stt_sdk.transcribe(
        CLIP, base_url=tier.url, api_key="secret", language="de", prompt="p", deadline=20
    )
    assert (result.text, result.language) == (TEXT, "de")
    with pytest.raises(UnauthorizedError):
        stt_sdk.transcribe(CLIP, base_url=tier.url)
    assert ours() == []


def test_it_works_inside_a_running_event_loop(scripted: Scripted) -> None:
    """As in a notebook."""
    server = scripted()

    async def cell() -> str:
        with SyncSTTClient(server.url) as stt:
            return stt.transcribe(CLIP).text + "".join(
                outcome.result.text for outcome in stt.transcribe_many([CLIP])
            )

    assert asyncio.run(cell()) == TEXT * 2


def test_threads_share_one_client(scripted: Scripted) -> None:
    held = threading.Event()
    server = scripted(Reply(holds=held))
    with SyncSTTClient(server.url) as stt, ThreadPoolExecutor(20) as threads:
        calls = [threads.submit(stt.transcribe, CLIP) for _ in range(20)]
        server.wait_for(20)  # at once
        held.set()
        assert [call.result().text for call in calls] == [TEXT] * 20


def test_several_addresses_are_a_pool(scripted: Scripted) -> None:
    one, other = scripted(), scripted()
    for server in (one, other):
        server.replies = [Reply(body={"ready": True, "state": "ready"})]
    with SyncSTTClient([one.url, other.url]) as stt:
        assert stt.ready().ready
    assert ours() == []
    with pytest.raises(ValueError, match="is no address"):
        SyncSTTClient([one.url, "nowhere"])


# The end


def test_it_may_be_closed_twice_and_by_several_and_then_says_so(scripted: Scripted) -> None:
    stt = SyncSTTClient(scripted().url)
    with ThreadPoolExecutor(8) as threads:
        for closing in [threads.submit(stt.close) for _ in range(8)]:
            closing.result(PATIENCE)
    stt.close()
    assert ours() == []
    for call in (lambda: stt.transcribe(CLIP), stt.health, lambda: next(stt.transcribe_many([]))):
        with pytest.raises(RuntimeError, match="this client is closed"):
            call()


def test_closing_ends_the_calls_of_other_threads(scripted: Scripted) -> None:
    server = scripted(Reply(holds=threading.Event()))
    events: list[Event] = []
    stt = SyncSTTClient(server.url, telemetry=events.append)
    with ThreadPoolExecutor(2) as threads:
        calls: list[Future[Any]] = [
            threads.submit(stt.transcribe, CLIP),
            threads.submit(lambda: list(stt.transcribe_many([CLIP]))),
        ]
        server.wait_for(2)
        stt.close()
        for call in calls:
            with pytest.raises(RuntimeError, match="this client was closed meanwhile"):
                call.result(PATIENCE)
    assert [type(event) for event in events[-2:]] == [RequestFinished] * 2


def test_calls_that_come_while_it_is_being_closed_end_one_way_or_the_other(
    scripted: Scripted,
) -> None:
    server = scripted()
    for _ in range(20):
        stt = SyncSTTClient(server.url)

        def call(stt: SyncSTTClient = stt) -> str:
            try:
                return stt.transcribe(CLIP).text
            except RuntimeError as error:
                return str(error)

        with ThreadPoolExecutor(8) as threads:
            calls = [threads.submit(call) for _ in range(8)]
            stt.close()
            ends = {each.result(PATIENCE) for each in calls}
        assert ends <= {TEXT, "this client is closed", "this client was closed meanwhile"}
    assert ours() == []


@pytest.mark.parametrize(
    "wrong",
    [{"base_url": "nowhere"}, {"timeout": 0}, {"retries": -1}, {"api_key": "ä"}],
    ids=lambda wrong: next(iter(wrong)),
)
def test_a_wrong_argument_leaves_no_thread_and_no_descriptor(wrong: dict[str, Any]) -> None:
    gc.collect()  # what an earlier test left
    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(ValueError):
        SyncSTTClient(**{"base_url": "http://host", **wrong})
    gc.collect()
    assert ours() == []
    assert len(list(Path("/proc/self/fd").iterdir())) <= before


def test_one_that_is_forgotten_ends_its_thread(scripted: Scripted) -> None:
    server = scripted()
    SyncSTTClient(server.url).transcribe(CLIP)
    gc.collect()
    until(lambda: ours() == [], "the thread has ended")


def test_an_iteration_that_is_given_up_or_outlives_the_client_does_no_harm(
    scripted: Scripted,
) -> None:
    server = scripted()
    with SyncSTTClient(server.url) as stt:
        for _ in stt.transcribe_many([CLIP] * 100):
            break
        given_up = stt.transcribe_many([CLIP] * 100)
        next(given_up)
        del given_up
        gc.collect()
        assert stt.transcribe(CLIP).text == TEXT
        left = stt.transcribe_many([CLIP] * 100)
        next(left)
    with pytest.raises(RuntimeError, match="closed"):
        next(left)
    del left
    gc.collect()
    assert ours() == []


def test_an_iteration_may_be_collected_in_the_client_s_own_thread(scripted: Scripted) -> None:
    """Where waiting for it would be waiting for oneself."""
    server = scripted()
    holding: list[Iterator[Any]] = []

    def hook(event: Event) -> None:
        if isinstance(event, RequestFinished) and len(server.asked) > 4:
            holding.clear()

    with SyncSTTClient(server.url, telemetry=hook) as stt:
        holding.append(stt.transcribe_many([CLIP] * 100, concurrency=1))
        next(holding[0])
        for _ in range(6):
            assert stt.transcribe(CLIP).text == TEXT
        assert holding == []


def test_a_hook_that_calls_its_own_client_is_told_and_does_not_hang(
    scripted: Scripted, caplog: pytest.LogCaptureFixture
) -> None:
    holding: list[SyncSTTClient] = []

    def calls(event: Event) -> None:
        holding[0].health()

    def closes(event: Event) -> None:
        holding[0].close()

    with SyncSTTClient(scripted().url, telemetry=[calls, closes]) as stt:
        holding.append(stt)
        assert stt.transcribe(CLIP).text == TEXT
    assert "a hook cannot wait for the client that called it" in caplog.text
    assert "a hook cannot close the client that called it" in caplog.text


# Processes

PROGRAM = """
import os, signal, sys, threading
import stt_sdk
from stt_sdk import SyncSTTClient

url, clip = sys.argv[1], sys.argv[-1]

def hook(event):
    if isinstance(event, stt_sdk.RequestFinished):
        print(type(event).__name__, type(event.error).__name__, flush=True)

"""


@contextmanager
def program(code: str, *arguments: str | Path) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-W", "default", "-c", PROGRAM + code, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(stt_sdk.__file__).parent.parent)},
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def end_of(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """The exit status and all that was written; its standard input stays open meanwhile."""
    assert process.stdin and process.stdout and process.stderr
    status = process.wait(PATIENCE)
    return status, process.stdout.read(), process.stderr.read()


@pytest.mark.parametrize(
    ("what", "code"),
    [
        ("call", "with SyncSTTClient(url, telemetry=hook) as stt: stt.transcribe(clip)"),
        ("forgotten", "SyncSTTClient(url, telemetry=hook).transcribe(clip)"),
        ("function", "stt_sdk.transcribe(clip, base_url=url)"),
        (
            "iteration",
            "with SyncSTTClient(url, telemetry=hook) as stt:\n"
            "    for done in stt.transcribe_many([clip] * 10, concurrency=3): pass",
        ),
    ],
)
@pytest.mark.process
def test_ctrl_c_ends_a_call_and_the_program(
    scripted: Scripted, tmp_path: Path, what: str, code: str
) -> None:
    server = scripted(Reply(holds=threading.Event()))
    clip = tmp_path / "clip.wav"
    clip.write_bytes(CLIP)
    with program(code, server.url, clip) as process:
        server.wait_for(3 if what == "iteration" else 1)
        process.send_signal(signal.SIGINT)
        status, printed, errors = end_of(process)
    assert status == -signal.SIGINT
    assert errors.rstrip().endswith("KeyboardInterrupt")
    for noise in ("RuntimeError", "Warning", "never", "destroyed", "Fatal"):
        assert noise not in errors
    if what in ("call", "iteration"):
        calls = 3 if what == "iteration" else 1
        assert printed == "RequestFinished CancelledError\n" * calls


@pytest.mark.parametrize("what", ["fifo", "stdin"])
@pytest.mark.process
def test_ctrl_c_ends_a_call_whose_pipe_gives_nothing(
    scripted: Scripted, tmp_path: Path, what: str
) -> None:
    server = scripted()
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    source = "clip" if what == "fifo" else "sys.stdin.buffer"
    code = (
        "def begun(event):\n"
        "    if isinstance(event, stt_sdk.RequestStarted): print('begun', flush=True)\n"
        f"with SyncSTTClient(url, telemetry=[begun, hook]) as stt: stt.transcribe({source})"
    )
    with program(code, server.url, fifo) as process:
        assert process.stdout and process.stdout.readline() == "begun\n"
        process.send_signal(signal.SIGINT)
        status, printed, errors = end_of(process)
    assert status == -signal.SIGINT
    assert printed == "RequestFinished CancelledError\n"
    assert errors.rstrip().endswith("KeyboardInterrupt")
    assert "Fatal" not in errors


@pytest.mark.parametrize("source", ["threading.Event().wait()", "sys.stdin.readline()"])
@pytest.mark.process
def test_ctrl_c_ends_an_iteration_whose_source_gives_nothing(
    scripted: Scripted, source: str
) -> None:
    code = (
        "def sources():\n"
        "    print('waiting', flush=True)\n"
        f"    yield {source}\n"
        "with SyncSTTClient(url) as stt:\n"
        "    for done in stt.transcribe_many(sources()): pass"
    )
    with program(code, scripted().url) as process:
        assert process.stdout and process.stdout.readline() == "waiting\n"
        process.send_signal(signal.SIGINT)
        status, _, errors = end_of(process)
    assert status == -signal.SIGINT
    assert errors.rstrip().endswith("KeyboardInterrupt")
    for noise in ("RuntimeError", "Warning", "never", "destroyed", "Fatal"):
        assert noise not in errors


@pytest.mark.parametrize(
    "code",
    [
        "stt = SyncSTTClient(url)\nprint(stt.transcribe(clip).text)",
        "stt = SyncSTTClient([url, url + '/'])\n",
        # A call of a thread that does not count, either.
        "stt = SyncSTTClient(url)\nos.mkfifo(clip + 'fifo')\n"
        "threading.Thread(target=stt.transcribe, args=[clip + 'fifo'], daemon=True).start()\n"
        "stt.transcribe(clip)",
    ],
)
@pytest.mark.process
def test_a_client_that_is_never_closed_keeps_no_process_alive(
    scripted: Scripted, tmp_path: Path, code: str
) -> None:
    clip = tmp_path / "clip.wav"
    clip.write_bytes(CLIP)
    with program(code, scripted().url, clip) as process:
        status, _, errors = end_of(process)
    assert status == 0
    assert "Traceback" not in errors


@pytest.mark.process
def test_after_a_fork_the_child_is_told_and_the_parent_goes_on(
    scripted: Scripted, tmp_path: Path
) -> None:
    clip = tmp_path / "clip.wav"
    clip.write_bytes(CLIP)
    code = """
import warnings
warnings.simplefilter("ignore", DeprecationWarning)  # newer Pythons warn of any fork with threads
with SyncSTTClient(url) as stt:
    stt.transcribe(clip)
    many = stt.transcribe_many([clip] * 10)
    next(many)
    child = os.fork()
    if not child:
        for call in (lambda: stt.transcribe(clip), stt.health, lambda: next(many)):
            try:
                call()
            except RuntimeError as error:
                print("child:", error, flush=True)
        del many
        stt.close()
        with SyncSTTClient(url) as own:
            print("child:", own.transcribe(clip).text, flush=True)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    print("parent:", stt.transcribe(clip).text)
"""
    with program(code, scripted().url, clip) as process:
        status, printed, errors = end_of(process)
    assert (status, errors) == (0, "")
    told = "child: this client was made before a fork; make one in each process\n"
    assert printed == told * 3 + f"child: {TEXT}\nparent: {TEXT}\n"
