"""`stt score` and `stt transcribe`: what they find, and what they refuse."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from structlog.testing import capture_logs
from typer.testing import CliRunner, Result

from fakes import PRIMARY_KEY, FakeEngine
from running import Tiers
from stt_cascade.cli import endpoint
from stt_cascade.cli.app import app
from stt_cascade.labelled import WordErrors, read_manifest, unit, word_errors
from tones import silence, wav


def stt(*words: str) -> Result:
    """Run the command; the tiers of the test log to the same output, which would mix."""
    with capture_logs():
        return CliRunner(env={"COLUMNS": "300"}).invoke(app, words)


@pytest.fixture(autouse=True)
def own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    for name in ("STT_URL", "STT_API_KEY"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("manifest", "said"),
    [
        ("", "it names no clip"),
        ('{"file": "a.wav", "text": "", "language": "en"}\n{"text": ""}', "line 2 has no 'file'"),
        ('{"file": "a.wav", "text": null, "language": "en"}', "line 1: 'text' is no text"),
        ('{"file": 1, "text": "", "language": null}', "line 1: 'file' is no text"),
        ("[1]", "line 1 is no JSON object"),
        ("{", "line 1 is no JSON object"),
    ],
)
def test_a_manifest_that_cannot_be_used_is_refused(
    tmp_path: Path, manifest: str, said: str
) -> None:
    (tmp_path / "manifest.jsonl").write_text(manifest)
    with pytest.raises(ValueError, match=said):
        read_manifest(tmp_path)
    for command in ("score", "load", "soak", "calibrate"):
        result = stt(command, str(tmp_path))
        assert result.exit_code == 2
        assert f"manifest.jsonl: {said}" in result.output


TAKE_FOLDERS = (["score"], ["load"], ["soak"], ["calibrate"], ["bench", "engine"])


@pytest.mark.parametrize("command", TAKE_FOLDERS, ids=" ".join)
def test_what_is_no_folder_is_refused_by_name(command: list[str], tmp_path: Path) -> None:
    file = tmp_path / "clip.wav"
    file.write_bytes(wav(silence(1.0)))
    for path, said in ((tmp_path / "gone", "does not exist"), (file, "is a file")):
        result = stt(*command, str(path))
        assert result.exit_code == 2
        assert f"'{path}' {said}" in result.output


@pytest.mark.parametrize("command", TAKE_FOLDERS[:-1], ids=" ".join)
def test_an_empty_folder_is_refused_with_what_it_lacks(command: list[str], tmp_path: Path) -> None:
    result = stt(*command, str(tmp_path))
    assert result.exit_code == 2
    lacks = "has no audio file" if command[0] in ("load", "soak") else "No such file"
    assert lacks in result.output


def test_a_folder_is_scored_by_language_and_source(tiers: Tiers, tmp_path: Path) -> None:
    primary, _ = tiers.cascade(FakeEngine("red brown blue black"))
    rows = [("a.wav", "red green blue black", "en", "mine"), ("b.wav", "", "en", "noise")]
    for name, *_ in rows:
        (tmp_path / name).write_bytes(wav(silence(1.0)))
    fields = ("file", "text", "language", "source")
    lines = [json.dumps(dict(zip(fields, row, strict=True))) for row in rows]
    (tmp_path / "manifest.jsonl").write_text("\n".join(lines))
    result = stt("score", str(tmp_path), "--json", "--url", primary.url, "--key", PRIMARY_KEY)
    assert result.exit_code == 0
    report = json.loads(result.stdout)
    assert report["wer"]["language en"] == {
        "clips": 1,
        "unit": "words",
        "words": 4,
        "errors": 1,
        "wer": 0.25,
    }
    assert report["wer"]["source mine"]["errors"] == 1
    assert report["no_speech"] == {"clips": 1, "invented_words": 4}
    assert report["routing"]["accepted"] == 2


def test_a_table_names_text_tier_and_gates(tiers: Tiers, tmp_path: Path) -> None:
    primary, _ = tiers.cascade(FakeEngine("two words"))
    file = tmp_path / "clip.wav"
    file.write_bytes(wav(silence(1.0)))
    result = stt("transcribe", str(file), "--url", primary.url, "--key", PRIMARY_KEY)
    assert result.exit_code == 0
    for shown in ("clip.wav", "from the fallback", "low_confidence: words", "total"):
        assert shown in result.stdout


def test_one_file_that_fails_fails_the_command(tiers: Tiers, tmp_path: Path) -> None:
    primary, _ = tiers.cascade(FakeEngine())
    good = tmp_path / "good.wav"
    good.write_bytes(wav(silence(1.0)))
    files = [str(good), str(tmp_path / "gone.wav")]
    arguments = ["--json", "--url", primary.url, "--key", PRIMARY_KEY]
    result = stt("transcribe", *files, *arguments)
    assert result.exit_code == 1
    first, second = map(json.loads, result.stdout.splitlines())
    assert first["text"] == "one two three four"
    assert "No such file" in second["error"]


@pytest.mark.parametrize("key", ["\u00e9", "a\nb"])
def test_a_key_that_no_header_can_carry_is_refused_unseen(key: str) -> None:
    result = stt("transcribe", "x.wav", "--key", key)
    assert result.exit_code == 2
    assert "printable ASCII" in result.output
    assert key not in result.output


def test_the_service_started_last_is_found_until_it_ends() -> None:
    assert endpoint.find(None, None) == endpoint.Endpoint(endpoint.DEFAULT_URL, None)
    with endpoint.announce("http://127.0.0.1:1", "one"):
        assert endpoint.find(None, None) == endpoint.Endpoint("http://127.0.0.1:1", "one")
        (state,) = endpoint._state_folder().iterdir()
        assert state.stat().st_mode & 0o077 == 0
        # Another one, whose process is this test's parent, and which began later.
        other = state.with_name("up-2.json")
        other.write_text(json.dumps({"url": "http://b", "key": "two", "pid": os.getppid()}))
        os.utime(other, (2**31, 2**31))
        assert endpoint.find(None, None) == endpoint.Endpoint("http://b", "two")
        other.unlink()
        assert endpoint.find(None, None).key == "one"
        assert endpoint.find("http://elsewhere", None).key is None
    assert endpoint.find(None, None).key is None


def test_errors_are_counted_as_words() -> None:
    assert word_errors("red green blue", "red brown blue black", "en") == WordErrors(1, 0, 1, 3)
    assert word_errors("", "thank you", "en") == WordErrors(0, 0, 2, 0)


@pytest.mark.parametrize(
    ("language", "reference", "heard", "counts"),
    [
        ("zh", "今天、天气很好。", "今天 天氣很好", WordErrors(1, 0, 0, 6)),
        ("zh-Hant", "今天天氣", "今天", WordErrors(0, 2, 0, 4)),
        ("ja", "東京に行きます。", "東京へ行きます", WordErrors(1, 0, 0, 7)),
        ("th", "สวัสดีครับ", "สวัสดี ครับ", WordErrors(0, 0, 0, 10)),
        ("yue", "", "多謝", WordErrors(0, 0, 2, 0)),
    ],
)
def test_errors_are_counted_in_characters_where_words_have_no_spaces(
    language: str, reference: str, heard: str, counts: WordErrors
) -> None:
    assert unit([language]) == "characters"
    assert word_errors(reference, heard, language) == counts


@pytest.mark.parametrize(
    ("language", "reference", "heard", "counts"),
    [
        ("hi", "हिन्दी में", "हिन्दी मे", WordErrors(1, 0, 0, 2)),
        ("ko", "안녕하세요 여러분", "안녕하세요, 여러분!", WordErrors(0, 0, 0, 2)),
        ("en-US", "I'm here", "I am here.", WordErrors(0, 0, 0, 3)),
        ("fr", "L'été (bruit)", "l’été", WordErrors(0, 0, 0, 2)),  # noqa: RUF001
    ],
)
def test_other_languages_are_counted_in_whole_words(
    language: str, reference: str, heard: str, counts: WordErrors
) -> None:
    assert unit([language]) == "words"
    assert word_errors(reference, heard, language) == counts


def test_figures_of_both_kinds_of_languages_name_both_units() -> None:
    assert unit(["en", "zh", ""]) == "words and characters"
    assert unit([]) == "words"


def test_a_manifest_may_write_a_language_as_callers_do(tmp_path: Path) -> None:
    lines = [
        json.dumps({"file": "a.wav", "text": "hei", "language": tag}) for tag in ("nb-NO", "xx")
    ]
    (tmp_path / "manifest.jsonl").write_text("\n".join(lines))
    assert [clip.language for clip in read_manifest(tmp_path)] == ["no", "xx"]
