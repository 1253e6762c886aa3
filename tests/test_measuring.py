"""What the commands that measure leave behind, and what they refuse before they begin."""

from __future__ import annotations

import asyncio
import json
import math
import os
import stat
import sys
import threading
from pathlib import Path

import pytest
from typer.testing import CliRunner

from faults.lab import Lab
from faults.stub import Stub
from stt_cascade.cli.app import app
from stt_cascade.cli.measuring import as_json, keep
from tones import tone, wav

COMMANDS = (
    ("load", "."),
    ("soak", "."),
    ("calibrate", "."),
    ("canary", "--prometheus", "http://127.0.0.1:9"),
)


@pytest.mark.parametrize("command", COMMANDS, ids=lambda words: words[0])
@pytest.mark.parametrize(
    ("file", "said"),
    [("gone/x", "cannot be written: No such file or directory"), (".", "is a folder")],
)
@pytest.mark.parametrize("option", ["--json", "--html", "--png"])
def test_a_report_that_cannot_be_written_is_refused_before_anything_is_measured(
    tmp_path: Path, command: tuple[str, ...], file: str, said: str, option: str
) -> None:
    words = [*command, option, str(tmp_path / file)]
    result = CliRunner().invoke(app, words, env={"COLUMNS": "300"})
    assert result.exit_code == 2
    assert said in result.output


@pytest.mark.parametrize(
    "words",
    [
        ("load", ".", "--slo", "nan"),
        ("load", ".", "--seconds", "inf"),
        ("load", ".", "--concurrency", "1.5"),
        ("soak", ".", "--hours", "nan"),
        ("soak", ".", "--rate", "inf"),
        # It would be promoted, whatever it does.
        ("canary", "--prometheus", "http://127.0.0.1:9", "--p95", "inf"),
        ("canary", "--prometheus", "http://127.0.0.1:9", "--errors", "nan"),
    ],
    ids=" ".join,
)
def test_what_is_no_number_or_without_end_is_no_limit(
    tmp_path: Path, words: tuple[str, ...]
) -> None:
    (tmp_path / "clip.wav").write_bytes(wav(tone(1.0)))
    result = CliRunner().invoke(
        app, [str(tmp_path) if word == "." else word for word in words], env={"COLUMNS": "300"}
    )
    assert result.exit_code == 2, result.output
    assert words[-2] in result.output


@pytest.mark.parametrize("url", ["localhost:8081", "", "http://", "http://127.0.0.1:99999"])
@pytest.mark.parametrize(
    "command", [("load", "."), ("soak", "."), ("canary", "--canary", "http://b", "--baseline")]
)
def test_an_address_that_is_none_is_told(
    tmp_path: Path, command: tuple[str, ...], url: str
) -> None:
    (tmp_path / "clip.wav").write_bytes(wav(tone(1.0)))
    words = [str(tmp_path) if word == "." else word for word in command]
    words += [url] if command[0] == "canary" else ["--url", url]
    result = CliRunner().invoke(app, words, env={"COLUMNS": "300"})
    assert result.exit_code == 2, result.output
    assert "is no address such as http://127.0.0.1:8081" in result.output


def test_a_report_takes_a_files_place_and_no_links_or_pipes(tmp_path: Path) -> None:
    file, link, pipe = (tmp_path / name for name in ("file", "link", "pipe"))
    link.symlink_to(file)
    os.mkfifo(pipe)
    read: list[bytes] = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_bytes()))
    reader.start()
    assert keep((link, lambda: b"one"), (pipe, lambda: b"two"), (None, lambda: b"three"))
    reader.join()
    assert (link.is_symlink(), file.read_bytes(), read) == (True, b"one", [b"two"])
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    assert sorted(tmp_path.iterdir()) == [file, link, pipe]


def test_one_report_that_cannot_be_written_keeps_no_other_from_being_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gone, file = tmp_path / "gone" / "file", tmp_path / "file"
    assert not keep((gone, lambda: b"one"), (file, lambda: b"two"))
    assert file.read_bytes() == b"two"
    assert f"{gone} could not be written: No such file" in capsys.readouterr().err


def test_the_figures_are_json_whatever_they_are() -> None:
    def refuse(name: str) -> None:
        raise AssertionError(name)

    written = as_json(
        {"a": math.inf, "b": [math.nan, 1.5], "c": {"d": (-math.inf,)}, "e": "ü\udc80"}
    )
    found = json.loads(written, parse_constant=refuse)
    assert found == {"a": None, "b": [None, 1.5], "c": {"d": [None]}, "e": "ü\udc80"}


@pytest.mark.process
def test_who_reads_what_is_printed_may_be_gone_and_the_figures_are_there(tmp_path: Path) -> None:
    (tmp_path / "clip.wav").write_bytes(wav(tone(1.0, rate=8000), 8000))
    figures = tmp_path / "load.json"

    async def run() -> None:
        async with Lab("short") as lab:
            tier = await lab.primary(Stub(seconds=0.02))
            reading, writing = os.pipe()
            os.close(reading)  # as `| head -0` does
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-c", "from stt_cascade.cli import main; main()", "load"),
                *(str(tmp_path), "--url", f"http://127.0.0.1:{tier.port}", "--seconds", "1"),
                *("--concurrency", "1", "--rates", "", "--json", str(figures)),
                stdout=writing,
                stderr=asyncio.subprocess.PIPE,
            )
            os.close(writing)
            _, said = await process.communicate()
            assert b"Traceback" not in said, said

    asyncio.run(run())
    assert json.loads(figures.read_text())["steps"]
