"""Every recipe of docs/recipes.md is a whole program, has sound types and does what it says."""

from __future__ import annotations

import ast
import asyncio
import inspect
import json
import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx2
import pytest

from fakes import PATIENCE, FakeEngine
from pages import ROOT, SRC, blocks, prose
from recipes import ADDRESS, KEY, PAGE, cells, command, environment, program, ran, start
from running import RunningTier, Tiers, until
from tones import wav

pytestmark = pytest.mark.process

DICTATIONS = "/dictations"
OLD, NEW = "an old one wrote this", "a new one wrote this"


@pytest.fixture
def recordings(tmp_path: Path) -> Path:
    """A folder with three of them, and something else."""
    folder = tmp_path / "recordings"
    folder.mkdir()
    for name in ("a.wav", "b.wav", "c.wav"):
        (folder / name).write_bytes(wav())
    (folder / "notes.wav").write_text("buy bread")
    return folder


def test_one_clip(tiers: Tiers, recordings: Path) -> None:
    primary = start(tiers)
    file = program("One clip", recordings, **{ADDRESS: primary.url})
    done = ran(file, "a.wav", folder=recordings)
    assert (done.returncode, done.stdout, done.stderr) == (0, "one two three four\n", "")
    for name, said in (("notes.wav", "400 invalid_audio"), ("none.wav", "No such file")):
        done = ran(file, name, folder=recordings)
        assert done.returncode == 1
        assert done.stderr.startswith("not a recording: ")
        assert said in done.stderr
    primary.stop()
    primary.wait_until_stopped()
    done = ran(file, "a.wav", folder=recordings)
    assert done.returncode == 1
    assert "no text: " in done.stderr
    assert "look at whether the service runs at this address" in done.stderr


def test_one_clip_whose_text_is_in_doubt(tiers: Tiers, recordings: Path, nobody: str) -> None:
    doubtful = FakeEngine("wanna do free for", logprob=0.1)
    primary = tiers.primary(
        doubtful, fallback=nobody, api_keys=(KEY,), on_fallback_failure="primary"
    )
    done = ran(
        program("One clip", recordings, **{ADDRESS: primary.url}), "a.wav", folder=recordings
    )
    assert done.stdout == "wanna do free for\n"
    assert done.stderr.startswith("in doubt: unreachable: ")


def test_a_folder_with_a_progress_bar_goes_on_where_it_ended(
    tiers: Tiers, recordings: Path
) -> None:
    primary = start(tiers)
    file = program("A folder, with a progress bar", recordings.parent, **{ADDRESS: primary.url})
    for heard in (3, 3):
        done = ran(file, "recordings", folder=recordings.parent)
        assert done.returncode == 1
        assert "notes.wav: 400 invalid_audio from " in done.stdout
        assert "100%" in done.stdout
        assert len(primary.fake.heard) == heard
    texts = {text.name: text.read_text() for text in recordings.glob("*.txt")}
    assert texts == dict.fromkeys(("a.txt", "b.txt", "c.txt"), "one two three four")
    (recordings / "notes.wav").unlink()
    assert ran(file, "recordings", folder=recordings.parent).returncode == 0


@contextmanager
def served(file: Path) -> Iterator[httpx2.Client]:
    """An application that uvicorn serves, and one who calls it."""
    server = subprocess.Popen(
        command("-m", "uvicorn", f"{file.stem}:app", "--port", "0"),
        cwd=file.parent,
        env=environment(),
        stderr=subprocess.PIPE,
        text=True,
    )
    said: list[str] = []
    try:
        assert server.stderr is not None
        for line in server.stderr:
            said.append(line)
            if address := re.search(r"running on (http://127\.0\.0\.1:\d+)", line):
                break
        else:
            raise AssertionError("".join(said))
        with httpx2.Client(base_url=address[1], timeout=PATIENCE, trust_env=False) as caller:
            yield caller
    finally:
        server.send_signal(signal.SIGTERM)
        said.append(server.communicate(timeout=PATIENCE)[1])
        assert "Traceback" not in "".join(said), "".join(said)


def test_a_web_handler_gives_texts_and_the_right_errors(tiers: Tiers, tmp_path: Path) -> None:
    primary = start(tiers, max_concurrency=1)
    addresses = {"http://stt-1:8081": primary.url, ', "http://stt-2:8081"': ""}
    with served(program("A web handler", tmp_path, **addresses)) as caller:

        def post(audio: bytes, deadline: str = "20000") -> tuple[int, Any]:
            headers = {"X-Deadline-Ms": deadline}
            answer = caller.post(DICTATIONS, content=audio, headers=headers)
            return answer.status_code, answer.json()

        status, answer = post(wav())
        assert (status, answer["text"]) == (200, "one two three four")
        status, answer = post(b"buy bread")
        assert (status, answer["error"].split(";")[0]) == (
            400,
            "not an audio file of a supported format",
        )
        assert answer["request_id"]
        assert post(bytes(17 * 1024 * 1024))[0] == 413
        assert post(wav(), deadline="soon")[0] == 422
        primary.fake.holds = threading.Event()
        assert post(wav(), deadline="300")[0] == 504
        primary.fake.let_go()
        primary.stop()
        primary.wait_until_stopped()
        answer = caller.post(DICTATIONS, content=wav())
        assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")


def test_who_hangs_up_on_a_web_handler_leaves_the_queue_of_the_service(
    tiers: Tiers, tmp_path: Path
) -> None:
    primary = start(tiers, max_concurrency=1)
    primary.fake.holds = threading.Event()
    addresses = {"http://stt-1:8081": primary.url, ', "http://stt-2:8081"': ""}
    with served(program("A web handler", tmp_path, **addresses)) as caller:
        first = primary.begin()
        primary.fake.wait_for(1)
        host, port = caller.base_url.host, caller.base_url.port or 0
        with socket.create_connection((host, port), PATIENCE) as connection:
            head = f"POST {DICTATIONS} HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(wav())}"
            connection.sendall(f"{head}\r\n\r\n".encode() + wav())
            primary.wait_for_queue(1)
        primary.wait_for_queue(0)
        primary.fake.let_go()
        assert first.result().status_code == 200
        assert len(primary.fake.heard) == 1


def is_asked(tier: RunningTier, before: int) -> Callable[[], bool]:
    return lambda: tier.requests > before


def test_a_pool_loses_no_clip_while_its_primaries_are_replaced(
    tiers: Tiers, tmp_path: Path
) -> None:
    folder = tmp_path / "recordings"
    folder.mkdir()
    names = [f"{number:02}.wav" for number in range(40)]
    for name in names:
        (folder / name).write_bytes(wav())
    old, new = ([start(tiers, text) for _ in range(2)] for text in (OLD, NEW))
    for tier in old:
        tier.fake.holds = threading.Event()
    shown = (f"http://stt-{number}:8081" for number in (1, 2, 3, 4))
    addresses = {name: tier.url for name, tier in zip(shown, [*old, *new], strict=True)}
    file = program("A pool, and a rolling update", tmp_path, **addresses)
    with subprocess.Popen(
        command(file, folder),
        cwd=tmp_path,
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as running:
        assert running.stdin and running.stdout
        give_up = threading.Timer(2 * PATIENCE, running.kill)
        give_up.start()
        lines: list[str] = []
        for line in map(str.rstrip, running.stdout):
            lines.append(line)
            for outgoing, incoming in zip(old, new, strict=True):
                if line == f"start {incoming.url}, then press Enter":
                    outgoing.fake.wait_for(1)  # it works on something
                    before = incoming.requests
                    running.stdin.write("\n")
                    running.stdin.flush()
                    # The pool asks the other one whether it is ready, and this one leaves; but not
                    # before it has answered.
                    until(is_asked(incoming, before), "the pool has it")
                    outgoing.fake.let_go()
                elif line == f"{outgoing.url} is idle; stop it":
                    outgoing.stop()
        give_up.cancel()
    texts = dict(line.split(" ", 1) for line in lines if line[:2].isdigit())
    assert sorted(texts) == names
    assert set(texts.values()) == {OLD, NEW}
    assert sum(len(tier.fake.heard) for tier in (*old, *new)) == len(names)
    hosts = [line.split(" ", 2) for line in lines if re.search(r" \d+ calls, ", line)]
    assert sorted(url for url, *_ in hosts) == sorted(tier.url for tier in new)
    assert {state for _, state, _ in hosts} == {"well"}
    assert all(counts.endswith(" calls, 0 failed") for *_, counts in hosts)


class Pager(ThreadingHTTPServer):
    """Keeps what it is sent."""

    def __init__(self) -> None:
        self.alarms: list[dict[str, str]] = []
        super().__init__(("127.0.0.1", 0), Alarm)
        self.url = f"http://127.0.0.1:{self.server_port}/alarms"


class Alarm(BaseHTTPRequestHandler):
    server: Pager

    def do_POST(self) -> None:
        self.server.alarms.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(204)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def pager() -> Iterator[Pager]:
    with Pager() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_a_hook_of_your_own_counts_and_calls_for_help(
    tiers: Tiers, recordings: Path, pager: Pager
) -> None:
    addresses = {ADDRESS: start(tiers).url, "http://pager:9000/alarms": pager.url}
    file = program("A hook of your own", recordings, **addresses)
    done = ran(file, "a.wav", "notes.wav", "b.wav", folder=recordings)
    assert done.returncode == 0
    assert done.stdout.endswith("\nprimary: 2.0 s\n")
    assert "a.wav one two three four\n" in done.stdout
    (alarm,) = pager.alarms
    assert "400 invalid_audio" in alarm["what"]
    assert alarm["id"] in alarm["what"]


def test_deadlines_bound_a_whole_piece_of_work(tiers: Tiers, recordings: Path) -> None:
    primary = start(tiers, max_concurrency=1)
    file = program("Deadlines", recordings, **{ADDRESS: primary.url})
    done = ran(file, "a.wav", "b.wav", folder=recordings)
    assert done.stdout == "a.wav one two three four\nb.wav one two three four\n"
    primary.fake.holds = threading.Event()
    done = ran(file, "a.wav", "b.wav", "c.wav", folder=recordings)
    late = [line.split(": ")[0] for line in done.stdout.splitlines()]
    assert late == ["a.wav too late", "b.wav too late", "c.wav too late"]
    assert "a.wav too late: the deadline passed during the inference\n" in done.stdout


async def displayed(cell: str, names: dict[str, Any]) -> object:
    """Run a cell as a notebook does, and give what its last line shows."""
    tree = ast.parse(cell)
    last = tree.body.pop()
    assert isinstance(last, ast.Expr)
    value = None
    for part, mode in ((tree, "exec"), (ast.Expression(last.value), "eval")):
        code = compile(part, "<cell>", mode, ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        value = eval(code, names)  # noqa: S307  # our own page
        if inspect.iscoroutine(value):
            value = await value
    return value


@pytest.mark.parametrize(
    ("heading", "shown"),
    [
        ("A notebook", ["one two three four", [], None]),
        ("A notebook without `await`", ["one two three four", None]),
    ],
)
def test_cells_of_a_notebook(
    tiers: Tiers,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    heading: str,
    shown: list[object],
) -> None:
    primary = start(tiers)
    (tmp_path / "clip.wav").write_bytes(wav())
    monkeypatch.chdir(tmp_path)

    async def notebook() -> list[object]:
        names: dict[str, Any] = {}
        return [
            await displayed(cell.replace(ADDRESS, primary.url), names) for cell in cells(heading)
        ]

    assert asyncio.run(notebook()) == shown


def test_every_recipe_is_tried() -> None:
    headings = re.findall(r"^## (.+)$", prose(ROOT / PAGE), re.MULTILINE)
    here = Path(__file__).read_text()
    assert headings
    for heading in headings:
        assert f'"{heading}"' in here, heading
    assert sum(len(cells(heading)) for heading in headings) == len(blocks(PAGE, "python"))


@pytest.mark.parametrize(
    ("page", "number", "said"),
    [
        ("README.md", 0, "one two three four"),
        ("docs/sdk.md", 0, "one two three four"),
        ("docs/sdk.md", 1, "one two three four by primary"),
    ],
)
def test_the_first_examples_run(
    tiers: Tiers, tmp_path: Path, page: str, number: int, said: str
) -> None:
    text = blocks(page, "python")[number].replace(f'"{ADDRESS}", ', "")
    address = f'"{start(tiers).url}"'
    text = text.replace("STTClient(api_key", f"STTClient({address}, api_key")
    text = text.replace('abc").text', f'abc", base_url={address}).text')
    assert address in text
    (tmp_path / "first.py").write_text(text)
    (tmp_path / "clip.wav").write_bytes(wav())
    (tmp_path / "samples").symlink_to(ROOT / "samples")
    assert ran("first.py", folder=tmp_path).stdout == f"{said}\n"


def test_every_example_has_sound_types(tmp_path: Path) -> None:
    for page in ("README.md", "docs/sdk.md", PAGE):
        for number, text in enumerate(blocks(page, "python")):
            (tmp_path / f"{Path(page).stem.lower()}_{number}.py").write_text(text)
    for number, heading in enumerate(re.findall(r"^## (A notebook.*)$", prose(ROOT / PAGE), re.M)):
        # A notebook is one program, and as if it stood in a coroutine.
        text = "\n".join(cells(heading))
        for file in tmp_path.glob(f"{Path(PAGE).stem}_*.py"):
            if file.read_text() in text:
                file.unlink()
        text = f"async def notebook() -> None:\n{textwrap.indent(text, '    ')}"
        (tmp_path / f"notebook_{number}.py").write_text(text)
    checked = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--config-file=", "."],
        cwd=tmp_path,
        env={
            **os.environ,
            "MYPYPATH": str(SRC),
            "MYPY_CACHE_DIR": str(ROOT / ".mypy_cache" / "examples"),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.mark.process
@pytest.mark.parametrize(
    "heading", ["A folder, with a progress bar", "A pool, and a rolling update"]
)
def test_a_missing_folder_is_an_error(tmp_path: Path, heading: str) -> None:
    done = ran(program(heading, tmp_path), tmp_path / "gone", folder=tmp_path)
    assert done.returncode == 1
    assert "gone: no such folder" in done.stderr
