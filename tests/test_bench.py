"""The engine's benchmark: what its table says was measured, and what cannot be is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from stt_cascade.bench import contenders
from stt_cascade.bench.contenders import Batch, Heard
from stt_cascade.bench.cost import by_length, short_to_long, worst_stray
from stt_cascade.bench.engine import Result, report
from stt_cascade.cli.app import app
from stt_cascade.engine.protocol import SAMPLE_RATE, Samples
from stt_cascade.labelled import Labelled, joined
from tones import silence, wav


def clip(text: str, seconds: float, *, language: str = "en", source: str = "a") -> Labelled:
    return Labelled(Path(f"{seconds}.wav"), text, language, source)


def audio(seconds: float, value: float = 0.0) -> Samples:
    return np.full(round(seconds * SAMPLE_RATE), value, np.float32)


def test_clips_are_joined_within_their_source_up_to_the_length() -> None:
    clips = [
        (clip("one", 4), audio(4, 0.1)),
        (clip("eins", 4, language="de", source="b"), audio(4, 0.5)),
        (clip("", 1), audio(1)),  # nobody speaks
        (clip("two", 5), audio(5, 0.2)),
        (clip("three", 3), audio(3, 0.3)),
        (clip("zwei", 7, language="de", source="b"), audio(7, 0.6)),
    ]
    first, second = joined(clips, 10)
    assert (first[0].text, first[0].language, len(first[1])) == ("one two", "en", 152_000)
    assert first[1][4 * SAMPLE_RATE - 1] == pytest.approx(0.1)
    assert not first[1][4 * SAMPLE_RATE : 4 * SAMPLE_RATE + SAMPLE_RATE // 2].any()
    assert first[1][-1] == pytest.approx(0.2)
    assert (second[0].text, second[0].language) == ("eins", "de")


def test_cost_is_told_by_length() -> None:
    lengths = np.array([0.5, 2.0, 2.2, 28.0, 29.0, 40.0])
    cost = np.array([0.1, 0.2, 0.4, 1.0, 2.0, 9.0])
    rows = {(row["from_s"], row["to_s"]): row for row in by_length(lengths, cost)}
    assert rows[0.0, 1.0]["median_ms"] == 100
    assert rows[26.0, 30.0]["clips"] == 2
    assert rows[30.0, None]["median_ms"] == 9000
    assert short_to_long(lengths, cost) == pytest.approx(0.3 / 1.5)
    assert short_to_long(lengths[:3], cost[:3]) is None


def test_the_clip_that_strays_most_is_found_unless_it_was_encoded_twice() -> None:
    lengths = np.full(10, 3.0)
    cost = np.array([1.0] * 8 + [2.5, 7.0])
    counted = np.ones(10, bool)
    worst = worst_stray(lengths, cost, counted)
    assert worst is not None
    assert (worst.index, worst.ratio) == (9, 7.0)
    counted[9] = False
    worst = worst_stray(lengths, cost, counted)
    assert worst is not None
    assert (worst.index, worst.ratio) == (8, 2.5)
    assert worst_stray(lengths[:7], cost[:7], counted[:7]) is None


def result(name: str, *heard: Heard) -> Result:
    ours = Result(name)
    ours.add(Batch(list(heard), 2.0, 100.0), [clip for clip, _ in CLIPS])
    return ours


CLIPS = [
    (clip("red green blue", 2), audio(2)),
    (clip("rot grün", 3, language="de"), audio(3)),
    (clip("", 1), audio(1)),
]


def test_errors_are_compared_with_the_baselines_language_by_language() -> None:
    ours = result("ours", Heard("red green"), Heard("rot grün", retries=1), Heard("you"))
    theirs = result("theirs", Heard("red green blue"), Heard(""), Heard(""))
    rows = report([ours, theirs], CLIPS, "theirs")["contenders"]
    row = rows["ours"]
    assert row["wer"]["value"] == 20.0
    assert row["wer_minus_baseline"]["value"] == -20.0
    assert row["wer_minus_baseline_by_language"]["en"]["value"] == pytest.approx(33.33)
    assert row["wer_minus_baseline_by_language"]["de"]["value"] == -100.0
    assert rows["theirs"]["wer_minus_baseline"] is None
    assert (row["invented_words"], row["full_context_retries"]) == (1, 1)
    assert rows["theirs"]["lost_clips"] == ["3.wav"]
    # Nobody speaks in the third clip, which costs next to nothing.
    assert sum(entry["clips"] for entry in row["cost"]["by_length"]) == 2
    assert row["clips_per_s"] == 1.5


@pytest.mark.parametrize(
    ("language", "given"), [("de", "de"), ("", None), ("zz", None), ("pt-BR", None)]
)
def test_a_peer_is_given_a_language_that_whisper_knows_and_else_detects_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, language: str, given: str | None
) -> None:
    """`null` in a manifest: nobody speaks, or nobody wrote down in which language."""
    asked: list[Any] = []

    class Peer:
        def transcribe(self, samples: Samples, **options: Any) -> tuple[list[Any], None]:
            asked.append(options["language"])
            return [], None

    monkeypatch.setattr(contenders, "_faster_whisper", lambda setup: Peer())
    transcribe = contenders.tuned(contenders.Setup(tmp_path, "cpu", "int8", 1, 1))
    assert transcribe(audio(1), language) == Heard("")
    assert asked == [given]


def test_clips_without_a_language_have_a_column_of_their_own() -> None:
    clips = [(clip("red", 2), audio(2)), (clip("blue", 2, language=""), audio(2))]
    ours = Result("ours")
    ours.add(Batch([Heard("red"), Heard("green")], 2.0, 100.0), [one for one, _ in clips])
    row = report([ours], clips, "ours")["contenders"]["ours"]
    assert {name: wer["value"] for name, wer in row["wer_by_language"].items()} == {
        "en": 0.0,
        "unknown": 100.0,
    }


def refused(folder: Path, *words: str, status: int = 2) -> str:
    """What `stt bench engine` says to a folder, with weights that are none."""
    weights = folder.parent / "weights"
    weights.mkdir()
    (weights / "model.bin").write_bytes(b"")
    arguments = ["bench", "engine", str(folder), "--model", str(weights), *words]
    result = CliRunner(env={"COLUMNS": "300"}).invoke(app, arguments)
    assert result.exit_code == status, result.output
    return result.output


def labelled(tmp_path: Path, text: str, audio: bytes | None = None) -> Path:
    folder = tmp_path / "clips"
    folder.mkdir()
    entry = {"file": "a.wav", "text": text, "language": "en"}
    (folder / "manifest.jsonl").write_text(json.dumps(entry))
    if audio is not None:
        (folder / "a.wav").write_bytes(audio)
    return folder


def test_a_folder_without_labels_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    folder = tmp_path / "clips"
    folder.mkdir()
    (folder / "a.wav").write_bytes(wav(silence(1.0)))
    assert f"{folder}/manifest.jsonl: No such file" in refused(folder)


@pytest.mark.parametrize(
    ("audio", "said"),
    [
        (None, "No such file"),
        (b"nothing to hear", "a.wav: not an audio file"),
    ],
)
def test_a_clip_that_cannot_be_read_is_named(
    tmp_path: Path, audio: bytes | None, said: str
) -> None:
    output = refused(labelled(tmp_path, "hello", audio))
    assert said in output
    assert "a.wav" in output


@pytest.mark.parametrize(("text", "seconds"), [("", 1.0), ("hello", 11.0)])
def test_clips_of_which_none_can_be_scored_are_refused(
    tmp_path: Path, text: str, seconds: float
) -> None:
    folder = labelled(tmp_path, text, wav(silence(seconds)))
    assert "nobody speaks in a clip of at most 10 s" in refused(folder)


@pytest.mark.process
def test_a_model_that_cannot_be_loaded_is_told_in_a_line(tmp_path: Path) -> None:
    folder = labelled(tmp_path, "hello", wav(silence(1.0)))
    *_, last = refused(folder, "--contender", "ours", status=1).splitlines()
    assert last.startswith("ours: ")
    assert "model.bin" in last


def test_a_folder_without_a_model_is_not_asked_for_elsewhere(tmp_path: Path) -> None:
    folder = labelled(tmp_path, "hello", wav(silence(1.0)))
    output = refused(folder, "--model", str(tmp_path), "--contender", "faster-whisper tuned")
    assert f"no CTranslate2 model in {tmp_path}" in output


@pytest.mark.parametrize("option", ["--json", "--plot"])
def test_a_report_that_cannot_be_written_is_refused_first(tmp_path: Path, option: str) -> None:
    folder = labelled(tmp_path, "hello", wav(silence(1.0)))
    assert "cannot be written" in refused(folder, option, str(tmp_path / "gone" / "x"))
