"""`make audit`, and the part of it that needs nobody else."""

from __future__ import annotations

import json
import re
import subprocess
from typing import Any

import av
import pytest

import audit
from audit import FFMPEG_FLOOR, ROOT, ffmpeg_version, findings, old_ffmpeg

FINE = {"name": "av", "version": "18.1.0", "vulns": []}
HOLE = {"id": "PYSEC-2026-1", "fix_versions": ["2.0"], "aliases": [], "description": "bad"}
UNKNOWN = {"name": "uv", "skip_reason": "Dependency not found on PyPI and could not be audited"}


def report(*packages: dict[str, Any]) -> str:
    return json.dumps({"dependencies": packages, "fixes": []})


def test_the_installed_wheel_has_an_ffmpeg_that_is_new_enough() -> None:
    assert old_ffmpeg(ffmpeg_version()) == []


def test_no_python_gets_another_wheel_than_the_one_that_was_looked_at() -> None:
    for file in ROOT.glob("requirements*.txt"):
        locked = re.findall(r"^av==(\S+)", file.read_text(), re.MULTILINE)
        assert set(locked) <= {av.__version__}, file.name


def test_an_older_ffmpeg_is_named_with_the_floor() -> None:
    (line,) = old_ffmpeg((8, 1, 1))
    assert "FFmpeg 8.1.1" in line
    assert f"at least {'.'.join(map(str, FFMPEG_FLOOR))}" in line


@pytest.mark.parametrize("text", ["8.1.2", "n8.1.2", "8.1.2-3+deb"])
def test_a_version_is_read_whoever_built_it(text: str) -> None:
    assert ffmpeg_version(text) == (8, 1, 2)


def test_a_build_of_no_release_is_not_believed() -> None:
    with pytest.raises(ValueError, match="no release"):
        ffmpeg_version("N-120000-gdeadbeef")


def test_without_a_hole_there_is_nothing_to_say() -> None:
    assert findings(report(FINE), "") == []


def test_a_hole_is_named_with_the_version_that_mends_it() -> None:
    found = findings(report(FINE, {"name": "x", "version": "1.0", "vulns": [HOLE]}), "")
    assert found == ["x 1.0: PYSEC-2026-1, mended in 2.0"]


def test_a_service_that_knows_nothing_has_audited_nothing() -> None:
    assert findings(report(UNKNOWN, UNKNOWN), "") == [
        "nothing was audited: the service knows none of the 2 packages"
    ]


def test_a_package_that_is_left_out_is_no_success() -> None:
    assert findings(report(FINE, UNKNOWN), "") == ["not audited: uv"]


def test_a_service_that_cannot_be_reached_is_said_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    traceback = "Traceback (most recent call last):\n  ...\nProxyError: cannot connect\n"
    ended = subprocess.CompletedProcess([], 1, stdout="", stderr=traceback)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: ended)
    monkeypatch.setattr("sys.argv", ["audit"])
    assert audit.main() == 1
    printed = capsys.readouterr().out
    assert "pip-audit could not do its work: ProxyError: cannot connect" in printed
    assert "Traceback" not in printed
