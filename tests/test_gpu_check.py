"""`make gpu-check` without a GPU: what it checks with, on a CPU and against fakes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from conftest import ROOT, model
from gpu_check import parts, report, run, sections
from gpu_check.__main__ import options
from gpu_check.report import FAILED, PASSED, SKIPPED, Section
from gpu_check.sections import SECTIONS, Setting, What
from stt_cascade.telemetry.gpu import Gpu, Reading

# parts


def test_files_that_came_in_parts_are_whole_again(tmp_path: Path) -> None:
    folder, cut, joined = (tmp_path / name for name in ("folder", "cut", "joined"))
    files = {"wheels/a.whl": bytes(range(256)) * 5, "models/m/model.bin": b"weights", "empty": b""}
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    assert parts.cut(folder, cut, size=500) == 5
    assert max(part.stat().st_size for part in cut.glob("part-*")) == 500
    parts.join(cut, joined)
    assert {name: (joined / name).read_bytes() for name in files} == files


def test_a_part_that_is_missing_is_named_and_one_that_is_spoilt_makes_no_file(
    tmp_path: Path,
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/model.bin").write_bytes(bytes(100))
    parts.cut(tmp_path / "folder", tmp_path / "cut", size=60)
    second = tmp_path / "cut/part-0001"
    second.write_bytes(b"spoilt")
    with pytest.raises(ValueError, match=r"model\.bin: .*another SHA-256"):
        parts.join(tmp_path / "cut", tmp_path / "joined")
    second.unlink()
    with pytest.raises(ValueError, match=r"has no part-0001 of model\.bin"):
        parts.join(tmp_path / "cut", tmp_path / "joined")
    assert not list((tmp_path / "joined").iterdir())


def test_an_index_that_leaves_the_folder_is_refused(tmp_path: Path) -> None:
    index = [{"file": "../out", "sha256": "", "parts": []}]
    (tmp_path / parts.INDEX).write_text(json.dumps(index))
    with pytest.raises(ValueError, match="lies outside"):
        parts.join(tmp_path, tmp_path / "joined")


# sections


def test_all_sections_fit_into_ten_minutes() -> None:
    assert sum(what.seconds for what in SECTIONS.values()) <= options([]).seconds < 600


def test_a_section_passes_if_all_that_it_checked_holds() -> None:
    section = Section("any")
    section.settle()
    assert (section.status, section.why) == (FAILED, "nothing was checked")
    section.check("one", 1, True)
    section.settle()
    assert (section.status, section.why) == (PASSED, "")
    section.check("two", "3 apart", False)
    section.settle()
    assert (section.status, section.why) == (FAILED, "two: 3 apart")


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A folder that looks as if Whisper base were in it."""
    folder = tmp_path / "models/whisper-base-ct2"
    folder.mkdir(parents=True)
    (folder / "model.bin").touch()
    return folder.parent


def test_small_and_medium_are_taken_if_they_are_there(weights: Path) -> None:
    setting = Setting("cuda", False, str(weights), ())
    assert setting.models() == {"primary": "whisper-base-ct2", "fallback": "whisper-base-ct2"}
    (weights / "whisper-small-ct2").mkdir()
    (weights / "whisper-small-ct2/model.bin").touch()
    assert setting.models() == {"primary": "whisper-small-ct2", "fallback": "whisper-base-ct2"}
    with pytest.raises(FileNotFoundError, match="whisper-base-ct2 has to be there"):
        Setting("cuda", False, str(weights / "whisper-base-ct2"), ()).models()


def test_each_section_fails_by_itself_and_is_tried_again_alone(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real runner; what the sections find is said by a program in their place."""
    ran: list[str] = []
    found = {"formats": PASSED, "encoding": FAILED}

    def one(name: str, setting: Setting, out: Path, limit: float) -> Section:
        ran.append(name)
        return Section(name, found.get(name, SKIPPED), "as told")

    monkeypatch.setattr(run, "_one", one)
    words = ["--weights", str(weights), "--out", str(tmp_path / "out"), "--device", "cpu"]
    assert run.run(options(words)) == 1
    assert ran == list(SECTIONS)
    kept = json.loads((tmp_path / "out/gpu-check.json").read_text())["sections"]
    assert {name: row["status"] for name, row in kept.items()} == {
        name: found.get(name, SKIPPED) for name in SECTIONS
    }
    assert "failed: encoding" in (tmp_path / "out/gpu-check.html").read_text()
    ran.clear()
    found["encoding"] = PASSED
    assert run.run(options([*words, "--only", "encoding", "--only", "formats"])) == 0
    assert ran == ["encoding"]  # the other one has passed before
    assert run.run(options([*words, "--only", "nonsense"])) == 2


@pytest.mark.process
@pytest.mark.parametrize(
    ("program", "why"),
    [
        ("import sys; sys.exit('CUDA failed')", "it ended with status 1: CUDA failed"),
        ("import os; os.abort()", "it ended with status -6: without a word"),
        ("import time; time.sleep(60)", "it took more than its 3 s"),
    ],
)
def test_a_section_that_dies_or_hangs_keeps_what_it_had_found(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str, why: str
) -> None:
    found = Section("formats")
    found.check("before", 1, True)
    (tmp_path / "gpu_check").mkdir()
    (tmp_path / "gpu_check/__init__.py").touch()
    (tmp_path / "gpu_check/sections.py").write_text(
        f"import sys; open(sys.argv[3], 'w').write({json.dumps(found.as_dict())!r})\n{program}\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    section = run._one("formats", Setting("cuda", True, str(weights), ()), tmp_path / "out", 3)
    assert section.status == FAILED
    assert why in section.why
    assert [check.name for check in section.checks] == ["before"]


def test_what_needs_a_gpu_is_skipped_without_one_and_says_so(weights: Path) -> None:
    setting = Setting("cpu", True, str(weights), ())
    assert setting.lacks(SECTIONS["gauges"]) == "it needs a GPU"
    assert setting.lacks(SECTIONS["formats"]) == ""
    assert Setting("cuda", True, str(weights), ()).lacks(What(print, 1, gpu=True)) == ""


# against fakes of a GPU

Gauges = Callable[..., Section]


@pytest.fixture
def gauges(weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Gauges:
    """Runs the section on a machine with two GPUs that are not there."""

    def run(*, reading: Reading | None, says: str, other: str = "10") -> Section:
        state = {"asked": 0}

        def smi(*fields: str) -> list[list[str]]:
            if fields == ("memory.used",):
                state["asked"] += 1
                return [["10"] if state["asked"] == 1 else [other], ["10"]]
            return [["10", "0", "1000", "0"], [cell.strip() for cell in says.split(",")]]

        for name in ("CUDA_VISIBLE_DEVICES", "CUDA_CACHE_PATH"):
            monkeypatch.setenv(name, "")
            monkeypatch.delenv(name)
        monkeypatch.setattr(sections, "nvidia_smi", smi)
        monkeypatch.setattr(Setting, "engine", lambda *_, **__: None)
        monkeypatch.setattr(Setting, "labelled", lambda _: [None])
        monkeypatch.setattr(sections, "_heard", lambda *_: None)
        monkeypatch.setattr(Gpu, "open", lambda index: SimpleNamespace(read=lambda: reading))
        section = Section("gauges")
        sections.gauges(section, Setting("cuda", True, str(weights), ()))
        section.settle()
        return section

    return run


def test_gauges_that_agree_with_nvidia_smi_pass_on_the_last_gpu(gauges: Gauges) -> None:
    section = gauges(reading=Reading(60.0, 5600.0, 143771.0), says="5000, 600, 143771, 70")
    assert section.status == PASSED, section.why
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "1"
    assert gauges(reading=Reading(None, 5000.0, 16000.0), says="5000, 0, 16000, [N/A]").status == (
        PASSED
    )


@pytest.mark.parametrize(
    ("reading", "says", "other", "why"),
    [
        (Reading(60.0, 9000.0, 143771.0), "5000, 600, 143771, 70", "10", "mem_used_mb"),
        (Reading(60.0, 5000.0, 100000.0), "5000, 600, 143771, 70", "10", "mem_total_mb"),
        (Reading(10.0, 5000.0, 143771.0), "5000, 600, 143771, 70", "10", "utilization"),
        (Reading(None, 5000.0, 143771.0), "5000, 600, 143771, 70", "10", "told by neither"),
        (Reading(60.0, 5000.0, 143771.0), "5000, 600, 143771, 70", "500", "GPU 0 is not used"),
    ],
)
def test_gauges_that_do_not_agree_fail(
    gauges: Gauges, reading: Reading, says: str, other: str, why: str
) -> None:
    section = gauges(reading=reading, says=says, other=other)
    assert section.status == FAILED
    assert why in section.why


def test_nvidia_smi_is_read_line_by_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text('#!/bin/sh\nprintf "1, 2\\n3, [N/A]\\n"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert sections.nvidia_smi("a", "b") == [["1", "2"], ["3", "[N/A]"]]


def test_the_page_shows_every_check_and_figure() -> None:
    section = Section("formats", FAILED, "too slow")
    section.check("as <quick>", "0.5 x", False)
    section.figure("by callers", [{"callers": 1, "p95_ms": 12.5}])
    results: dict[str, Any] = {
        "setup": {"device": "cuda"},
        "sections": {"formats": section.as_dict()},
    }
    shown = report.page(results).decode()
    assert all(text in shown for text in ("failed: formats", "too slow", "NO", "0.5 x", "12.5"))
    assert "as &lt;quick&gt;" in shown


@pytest.mark.process
@pytest.mark.weights
def test_the_check_itself_runs_on_a_cpu(tmp_path: Path) -> None:
    base = model("base")
    words = ["--device", "cpu", "--short", "--only", "windows", "--only", "gauges"]
    ran = subprocess.run(
        [
            *(sys.executable, "-m", "gpu_check", *words),
            *("--out", str(tmp_path), "--weights", str(base.parent)),
        ],
        env={**os.environ, "PYTHONPATH": str(ROOT / "tests")},
        capture_output=True,
        text=True,
        check=False,
    )
    kept = json.loads((tmp_path / "gpu-check.json").read_text())
    found = {name: row["status"] for name, row in kept["sections"].items()}
    assert (ran.returncode, found) == (0, {"windows": PASSED, "gauges": SKIPPED}), ran.stdout
    assert "every section that ran has passed" in (tmp_path / "gpu-check.html").read_text()
