"""What commands print of what others wrote."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.table import Table
from rich.text import Text

from fakes import answer_of_fallback
from stt_cascade.cli import score, transcribe
from stt_cascade.cli.terminal import Terminal, echo, json_text
from stt_sdk import STTError, Transcription

EVIL = "[red]\x1b]0;pwned\x07\x1b[2J\x9b31m\u202e\u2028\x7f\udcff[/red]:smile:"
SEEN = "[red] ]0;pwned [2J 31m [/red]:smile:"


@pytest.mark.parametrize("shape", ["line", "styled", "cell", "title"])
def test_markup_is_text_and_an_escape_sequence_a_blank(shape: str) -> None:
    table = Table("x", title=EVIL if shape == "title" else None)
    table.add_row(EVIL)
    shown = {"line": EVIL, "styled": Text(EVIL, "red")}.get(shape, table)
    file = io.StringIO()
    Terminal(file=file, width=120).print(shown)
    assert SEEN in file.getvalue()
    assert "".join(file.getvalue().splitlines()).isprintable()
    file.getvalue().encode()  # no half of a character is left


def test_a_line_without_any_form_has_none(capsys: pytest.CaptureFixture[str]) -> None:
    echo(EVIL)
    assert capsys.readouterr().out == f"{SEEN}\n"


def test_json_says_all_and_commands_nothing() -> None:
    text = json_text({"file": EVIL})
    assert text.isprintable()
    assert json.loads(text) == {"file": EVIL}


def test_a_name_a_text_and_an_error_are_shown_as_they_are(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    result = Transcription.from_json(answer_of_fallback(text="[bold]hi[/bold]", model="[/]"))
    outcomes = [(Path("[red]\x1bx.wav"), result), (Path("[bold].wav"), STTError("[/nope] [red]x"))]
    monkeypatch.setattr(transcribe, "run", lambda *_: outcomes)
    assert transcribe.transcribe_files("http://host", None, []) == 1
    shown = capsys.readouterr().out
    for text in ("[bold]hi[/bold]", "([/])", "[bold].wav", "[/nope] [red]x", "[red] x.wav"):
        assert text in shown
    assert "".join(shown.splitlines()).isprintable()


def test_a_suspect_segment_and_a_warning_are_shown() -> None:
    segment = {"start": 1.0, "end": 2.5, "text": "ha ha", "avg_logprob": -0.1}
    segment |= {"no_speech_prob": 0.0, "words": [], "suspect": True}
    warning = {"code": "text_cut", "message": "The repetition was cut."}
    answer = answer_of_fallback(segments=[segment], warnings=[warning])
    file = io.StringIO()
    outcome = Transcription.from_json(answer)
    Terminal(file=file, width=200).print(transcribe.table([(Path("x.wav"), outcome)]))
    assert "suspect: 1.0 to 2.5 s" in file.getvalue()
    assert "The repetition was cut." in file.getvalue()


def test_a_failure_in_a_score_is_shown_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    nothing = {"clips": 0, "invented_words": 0}
    report = {
        **{"wer": {}, "no_speech": nothing, "lost_clips": [EVIL], "routing": {EVIL: 1}},
        **{"fallback_used": 0, "fallback_text": 0, "latency_ms": {}},
        "failed": [{"file": "[/].wav", "error": EVIL}],
    }
    score._print(report)
    shown = capsys.readouterr().out
    assert "failed [/].wav: [red]" in " ".join(shown.split())
    assert "".join(shown.splitlines()).isprintable()
