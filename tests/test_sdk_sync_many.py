"""Many clips without `async`, whose sources may wait for as long as they like."""

from __future__ import annotations

import contextvars
import gc
import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue

import pytest

from fakes import PATIENCE, Reply, ScriptedFallback
from running import until
from stt_sdk import Event, RequestFinished, SyncSTTClient
from tones import wav

Scripted = Callable[..., ScriptedFallback]
CLIP = wav()
TEXT = "from the fallback"


def taking() -> int:
    """How many threads take sources."""
    return [thread.name for thread in threading.enumerate()].count("stt_sdk source")


class Waiting:
    """Sources that come when the test says so, and break off if it never does."""

    def __init__(self) -> None:
        self.queue: SimpleQueue[bytes | None] = SimpleQueue()
        self.asked = threading.Semaphore(0)

    def __iter__(self) -> Iterator[bytes]:
        while True:
            self.asked.release()
            clip = self.queue.get(timeout=PATIENCE)
            if clip is None:
                return
            yield clip


def test_an_outcome_comes_while_the_next_source_is_waited_for(scripted: Scripted) -> None:
    sources = Waiting()
    with SyncSTTClient(scripted().url) as stt:
        found = stt.transcribe_many(sources)
        for index in range(3):
            sources.queue.put(CLIP)
            assert next(found).index == index
        sources.queue.put(None)
        assert list(found) == []


def test_others_use_the_client_while_a_source_is_waited_for(scripted: Scripted) -> None:
    sources = Waiting()
    with SyncSTTClient(scripted().url) as stt, ThreadPoolExecutor(1) as threads:
        found = threads.submit(list, stt.transcribe_many(sources))
        assert sources.asked.acquire(timeout=PATIENCE)
        assert stt.transcribe(CLIP, deadline=PATIENCE / 2).text == TEXT
        sources.queue.put(CLIP)
        sources.queue.put(None)
        assert len(found.result(PATIENCE)) == 1


def test_closing_ends_an_iteration_whose_source_gives_nothing(scripted: Scripted) -> None:
    sources = Waiting()
    stt = SyncSTTClient(scripted().url)
    with ThreadPoolExecutor(1) as threads:
        found = threads.submit(list, stt.transcribe_many(sources))
        assert sources.asked.acquire(timeout=PATIENCE)
        stt.close()
        with pytest.raises(RuntimeError, match="this client was closed meanwhile"):
            found.result(PATIENCE)
    assert taking() == 1
    sources.queue.put(CLIP)
    until(lambda: taking() == 0, "the thread has ended")


@pytest.mark.parametrize("how", ["given up", "forgotten"])
@pytest.mark.parametrize("concurrency", [1, 2], ids=["asked for nothing", "waiting"])
def test_who_stops_early_leaves_no_thread_when_the_source_has_given_what_it_was_asked_for(
    scripted: Scripted, how: str, concurrency: int
) -> None:
    sources = Waiting()
    sources.queue.put(CLIP)
    with SyncSTTClient(scripted().url) as stt:
        found = stt.transcribe_many(sources, concurrency=concurrency)
        assert next(found).result.text == TEXT
        if how == "given up":
            found.close()  # type: ignore[attr-defined]  # it is a generator
        else:
            del found
            gc.collect()
        assert stt.transcribe(CLIP).text == TEXT
        if concurrency == 2:
            sources.queue.put(CLIP)
        until(lambda: taking() == 0, "the thread has ended")


def test_sources_may_come_of_the_client_itself(scripted: Scripted) -> None:
    with SyncSTTClient(scripted().url) as stt:

        def sources() -> Iterator[bytes]:
            for _ in range(3):
                yield stt.transcribe(CLIP).text.encode()

        found = [outcome.source for outcome in stt.transcribe_many(sources())]
    assert found == [TEXT.encode()] * 3


def test_a_source_is_taken_only_when_there_is_room(scripted: Scripted) -> None:
    ended: list[Event] = []

    def hook(event: Event) -> None:
        if isinstance(event, RequestFinished):
            ended.append(event)

    under_way: list[int] = []

    def sources() -> Iterator[bytes]:
        for number in range(20):
            under_way.append(number - len(ended))
            yield CLIP

    with SyncSTTClient(scripted().url, telemetry=hook) as stt:
        assert len(list(stt.transcribe_many(sources(), concurrency=3))) == 20
    assert max(under_way) <= 2


@pytest.mark.parametrize("error", [ZeroDivisionError("broken"), SystemExit("enough")])
def test_what_the_sources_raise_comes_when_those_before_are_done(
    scripted: Scripted, error: BaseException
) -> None:
    def sources() -> Iterator[bytes]:
        yield CLIP
        raise error

    with SyncSTTClient(scripted().url) as stt:
        found = stt.transcribe_many(sources())
        assert next(found).result.text == TEXT
        with pytest.raises(type(error), match=str(error)):
            next(found)
        assert stt.transcribe(CLIP).text == TEXT  # the client is as well as before


def test_sources_may_come_of_a_database_that_wants_one_thread(scripted: Scripted) -> None:
    def sources() -> Iterator[bytes]:
        database = sqlite3.connect(":memory:")
        database.execute("create table clips (audio blob)")
        database.executemany("insert into clips values (?)", [(CLIP,)] * 3)
        for (audio,) in database.execute("select audio from clips"):
            yield audio
        database.close()

    with SyncSTTClient(scripted().url) as stt:
        assert [outcome.error for outcome in stt.transcribe_many(sources())] == [None] * 3


def test_sources_have_the_context_of_who_iterates(scripted: Scripted) -> None:
    name: contextvars.ContextVar[str] = contextvars.ContextVar("name")
    name.set("mine")
    with SyncSTTClient(scripted().url) as stt:
        found = list(stt.transcribe_many(name.get().encode() for _ in range(2)))
    assert [outcome.source for outcome in found] == [b"mine"] * 2


@pytest.mark.parametrize("kind", [list, tuple, dict.fromkeys, dict.keys])
def test_what_is_there_already_takes_no_thread(
    scripted: Scripted, kind: Callable[[dict[bytes, None]], Iterable[bytes]]
) -> None:
    held = threading.Event()
    server = scripted(Reply(holds=held))
    with SyncSTTClient(server.url) as stt, ThreadPoolExecutor(1) as threads:
        found = threads.submit(list, stt.transcribe_many(kind({CLIP: None})))
        server.wait_for(1)
        assert taking() == 0
        held.set()
        assert len(found.result(PATIENCE)) == 1
