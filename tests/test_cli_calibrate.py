"""`stt calibrate` against tiers that do as they should, and against others."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from structlog.testing import capture_logs
from typer.testing import CliRunner, Result

from conftest import SPEECH, model
from fakes import FALLBACK_KEY, PATIENCE, PRIMARY_KEY, FakeEngine
from ports import own_port
from running import RunningTier, Tiers, until
from stt_cascade.cli import asking
from stt_cascade.cli.app import app
from stt_cascade.cli.hardware import recipes
from stt_cascade.config import PrimaryConfig
from stt_cascade.config_file import load
from stt_cascade.engine.protocol import Options, Samples, Utterance
from tones import encoded, tone, wav

GATES_OFF = {
    "conf_logprob_threshold": 0,
    "conf_langprob_threshold": 0,
    "min_words_for_conf": 0,
    "conf_weakest_threshold": 0,
}
CLIPS = 48
RIGHT = "red green blue black"


def frames(number: int) -> int:
    """Samples of a clip, which tell it from the others."""
    return 4000 + 160 * number


class Knowing(FakeEngine):
    """Knows each clip by its length: its text, and how weak its weakest tokens are."""

    def __init__(self, said: dict[int, tuple[str, float]], **options: Any) -> None:
        super().__init__(**options)
        self._said = {frames(number): each for number, each in said.items()}

    def transcribe(self, samples: Samples, options: Options) -> Utterance:
        text, weakest = self._said[len(samples)]
        if text == "broken":
            raise RuntimeError("broken")
        utterance = super().transcribe(samples, options)
        (segment,) = utterance.segments
        return Utterance(
            language=utterance.language,
            language_probability=utterance.language_probability,
            segments=(type(segment)(segment.start, segment.end, text, -0.1, 0.01),),
            avg_logprob=utterance.avg_logprob,
            tokens=utterance.tokens,
            weakest=weakest,
            full_context=False,
            doubted=False,
        )


def doubtful(number: int) -> bool:
    return number % 2 == 0


def weakness(number: int) -> float:
    """Under 0.4 in doubtful clips, above in the others."""
    share = (number // 2 * 7 % 24) / 24
    return 0.05 + 0.34 * share if doubtful(number) else 0.42 + 0.5 * share


PRIMARY = {n: ("red green blew black" if doubtful(n) else RIGHT, weakness(n)) for n in range(CLIPS)}
FALLBACK = {n: (RIGHT if n % 12 != 1 else "red green blue slack", 0.9) for n in range(CLIPS)}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Labelled clips."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("STT_URL", "STT_API_KEY", "STT_FALLBACK_KEY"):
        monkeypatch.delenv(name, raising=False)
    clips = tmp_path / "clips"
    clips.mkdir()
    rows = []
    for number in range(CLIPS):
        samples = tone(1.0, 220 + 10 * number)[: frames(number)]
        (clips / f"{number}.wav").write_bytes(wav(samples))
        # A split takes as many of either to both sides.
        source = "hard" if doubtful(number) else "easy"
        rows.append({"file": f"{number}.wav", "text": RIGHT, "language": "en", "source": source})
    (clips / "manifest.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return clips


def pair(
    tiers: Tiers,
    primary: FakeEngine | None = None,
    fallback: FakeEngine | None = None,
    **settings: Any,
) -> tuple[RunningTier, RunningTier]:
    return tiers.cascade(
        primary or Knowing(PRIMARY),
        fallback or Knowing(FALLBACK),
        **{"api_keys": (PRIMARY_KEY,), **GATES_OFF, **settings},
    )


def words(folder: Path, pair: tuple[RunningTier, RunningTier]) -> list[str]:
    primary, fallback = pair
    ends = ["--primary-url", primary.url, "--primary-key", PRIMARY_KEY]
    return [
        # Half of the clips are doubtful; what a fake engine costs is nothing to choose by.
        *("calibrate", str(folder), "--splits", "4", "--target", "60%", *ends),
        *("--fallback-url", fallback.url, "--fallback-key", FALLBACK_KEY),
    ]


def stt(*arguments: str) -> Result:
    with capture_logs():
        return CliRunner().invoke(app, arguments, env={"COLUMNS": "300"})


def asked(pair: tuple[RunningTier, RunningTier]) -> list[int]:
    return [len(tier.fake.heard) for tier in pair]


@pytest.mark.process
def test_tiers_whose_scores_are_worth_something_get_thresholds(
    tiers: Tiers, folder: Path, tmp_path: Path
) -> None:
    figures, page, png = (tmp_path / name for name in ("x.json", "x.html", "x.png"))
    files = ["--json", str(figures), "--html", str(page), "--png", str(png)]
    both = pair(tiers)
    result = stt(*words(folder, both), *files)
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("For at most 60 % escalation with the fewest errors: ")
    env = tmp_path / "primary.env"
    lines = re.findall(r"^[A-Z_]+=.+$", result.stdout, re.MULTILINE)
    env.write_text("\n".join([*lines, "CT2_SMALL_PATH=x", "FALLBACK_URL=http://x"]))
    weakest = load(PrimaryConfig, env).conf_weakest_threshold
    assert 0.3 < weakest <= 0.42
    report = json.loads(figures.read_text())
    assert report["primary"]["wer"]["value"] == 12.5
    assert report["fallback"]["wer"]["value"] == pytest.approx(100 * 4 / (4 * CLIPS), abs=0.01)
    assert report["recommended"]["wer"]["value"] <= report["fallback"]["wer"]["value"]
    assert report["scores"]["weakest"]["auroc"]["value"] == 1.0
    assert "data:image/png" in page.read_text()
    assert png.read_bytes().startswith(b"\x89PNG")
    assert asked(both) == [CLIPS, CLIPS]


@pytest.mark.process
def test_a_second_look_asks_nobody(tiers: Tiers, folder: Path) -> None:
    both = pair(tiers)
    first = stt(*words(folder, both))
    assert asked(both) == [CLIPS, CLIPS]
    again = stt(*words(folder, both))
    assert asked(both) == [CLIPS, CLIPS]
    assert again.stdout == first.stdout
    stt(*words(folder, both), "--fresh")
    assert asked(both) == [2 * CLIPS, 2 * CLIPS]
    # A language that is sent along makes another question of it.
    stt(*words(folder, both), "--force-language")
    assert asked(both) == [3 * CLIPS, 3 * CLIPS]


def test_a_share_is_kept(tiers: Tiers, folder: Path, tmp_path: Path) -> None:
    figures = tmp_path / "x.json"
    result = stt(*words(folder, pair(tiers)), "--target", "25%", "--json", str(figures))
    assert "For at most 25 % escalation with the fewest errors: " in result.stdout
    chosen = json.loads(figures.read_text())["recommended"]
    assert 15 < chosen["escalation"]["value"] <= 25
    assert chosen["minus_primary"]["high"] < 0


@pytest.mark.process
def test_clips_with_noise_are_asked_for_too_and_clips_without_speech_get_none(
    tiers: Tiers, folder: Path, tmp_path: Path
) -> None:
    manifest = folder / "manifest.jsonl"
    lines = manifest.read_text().splitlines()
    silent = {**json.loads(lines[0]), "text": "", "language": None}
    manifest.write_text("\n".join([json.dumps(silent), *lines[1:]]))
    both = pair(tiers)
    figures = tmp_path / "x.json"
    stt(*words(folder, both), "--noise", "10,5", "--json", str(figures))
    assert asked(both) == [3 * CLIPS - 2] * 2
    report = json.loads(figures.read_text())
    levels = [(row["snr"], row["clips"]) for row in report["noise"]]
    assert levels == [(None, CLIPS), (10, CLIPS - 1), (5, CLIPS - 1)]
    # Its four words are all invented.
    assert report["primary"]["invented_words"] == 4
    noisy = [clip.samples for clip, _ in both[0].fake.heard if len(clip.samples) == frames(1)]
    assert len({samples.tobytes() for samples in noisy}) == 3


def test_a_primary_that_escalates_by_itself_is_refused(tiers: Tiers, folder: Path) -> None:
    both = pair(tiers, conf_logprob_threshold=0.55)
    result = stt(*words(folder, both))
    assert result.exit_code == 2
    said = " ".join(result.output.replace("│", " ").split())
    assert "its thresholds are logprob 0.55, langprob 0, words 0, weakest 0" in said
    assert "CONF_LOGPROB_THRESHOLD=0, CONF_LANGPROB_THRESHOLD=0" in said
    assert asked(both) == [0, 0]


def test_a_tier_that_hides_its_thresholds_is_asked_with_the_key_of_its_metrics(
    tiers: Tiers, folder: Path
) -> None:
    both = pair(tiers, metrics_keys=("the-metrics-key",))
    result = stt(*words(folder, both))
    assert (result.exit_code, asked(both)) == (1, [0, 0])
    assert "--metrics-key" in result.output
    assert stt(*words(folder, both), "--metrics-key", "the-metrics-key").exit_code == 0


def test_a_fallback_that_fails_fails_the_command_which_reports_all_the_same(
    tiers: Tiers, folder: Path
) -> None:
    failing = {n: ("broken", 0.9) if n < 4 else each for n, each in FALLBACK.items()}
    both = pair(tiers, fallback=Knowing(failing))
    result = stt(*words(folder, both))
    assert result.exit_code == 1
    assert f"4 of {CLIPS} clips have no answers of both tiers" in result.stdout
    assert re.search(r"failed .*/0.wav: fallback: ", result.stdout)
    assert "CONF_WEAKEST_THRESHOLD=" in result.stdout


def test_a_fallback_that_answers_nothing_ends_the_command(tiers: Tiers, folder: Path) -> None:
    failing = dict.fromkeys(range(CLIPS), ("broken", 0.9))
    both = pair(tiers, fallback=Knowing(failing))
    result = stt(*words(folder, both))
    assert result.exit_code == 1
    assert f"calls in a row failed at {both[1].url}; fallback: " in result.output
    assert asked(both)[0] < CLIPS


def test_a_single_clip_that_cannot_be_decoded_does_not_end_the_command(
    tiers: Tiers, folder: Path
) -> None:
    (folder / "7.wav").write_bytes(b"no audio")
    both = pair(tiers)
    for _ in range(2):
        result = stt(*words(folder, both))
        assert result.exit_code == 1
        assert f"1 of {CLIPS} clips have no answers of both tiers" in result.stdout
    result = stt(*words(folder, both), "--noise", "10")
    assert result.exit_code == 2
    assert "7.wav: not an audio file" in " ".join(result.output.replace("│", " ").split())


@pytest.mark.process
def test_a_clip_that_only_its_name_tells_the_format_of_is_sent_with_it(
    tiers: Tiers, folder: Path, tmp_path: Path
) -> None:
    manifest = folder / "manifest.jsonl"
    manifest.write_text(manifest.read_text().replace("7.wav", "7.g722"))
    for number in (7, 17, 27, 37, 47):
        (folder / f"{number}.g722").write_bytes(encoded("g722"))
    figures = tmp_path / "x.json"
    both = pair(tiers, FakeEngine(), FakeEngine())
    stt(*words(folder, both), "--noise", "10", "--json", str(figures))
    assert json.loads(figures.read_text())["failed"] == []


def test_a_path_is_shown_as_it_is(tiers: Tiers, folder: Path) -> None:
    odd = folder.rename(folder.with_name("clips [red]ü"))
    (odd / "[").mkdir()
    (odd / "[" / "b]").write_bytes(b"no audio")
    manifest = odd / "manifest.jsonl"
    manifest.write_text(manifest.read_text().replace('"7.wav"', '"[/b]"'))
    result = stt(*words(odd, pair(tiers)))
    assert result.exit_code == 1
    assert f"failed {odd / '[' / 'b]'}: " in result.stdout


def test_an_address_where_nobody_listens_is_said(tiers: Tiers, folder: Path, nobody: str) -> None:
    primary, _ = pair(tiers)
    result = stt(*words(folder, (primary, primary))[:-4], "--fallback-url", nobody)
    assert result.exit_code == 1
    assert f"the fallback at {nobody}" in result.output


def test_scores_that_tell_nothing_fail_the_command(tiers: Tiers, folder: Path) -> None:
    random = np.random.default_rng(5).permutation(CLIPS)
    blind = {n: (text, weakness(int(random[n]))) for n, (text, _) in PRIMARY.items()}
    result = stt(*words(folder, pair(tiers, Knowing(blind))), "--target", "30%")
    assert result.exit_code == 1
    assert "The gates do not find wrong texts" in result.stdout


def test_what_the_primary_cannot_do_itself_counts_as_escalated(
    tiers: Tiers, folder: Path, tmp_path: Path
) -> None:
    broken = {n: ("broken", 0.9) if n < 6 else each for n, each in PRIMARY.items()}
    figures = tmp_path / "x.json"
    stt(*words(folder, pair(tiers, Knowing(broken))), "--target", "0%", "--json", str(figures))
    report = json.loads(figures.read_text())
    assert not report["failed"]
    assert report["recommended"]["escalation"]["value"] == pytest.approx(100 * 6 / CLIPS, abs=0.01)
    assert not report["recommended"]["reached"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--target", "few"], "neither 'fallback' nor a share such as 15%"),
        (["--noise", "loud"], "no list of dB such as 10,5,0"),
        (["--noise", "nan"], "no list of dB such as 10,5,0"),
        (["--noise", "10,inf"], "no list of dB such as 10,5,0"),
        (["--noise-kind", "pink"], "shaped, babble, white"),
        (["--primary-url", "http://127.0.0.1:1"], "belong together"),
        (["--against", "missing.env"], "missing.env"),
        (["--language", "xx"], "nobody speaks"),
    ],
)
def test_wrong_usage_is_refused(folder: Path, options: list[str], said: str) -> None:
    result = stt("calibrate", str(folder), *options)
    assert result.exit_code == 2
    assert said in " ".join(result.output.replace("│", " ").split())


@pytest.mark.process
def test_ctrl_c_ends_it_with_a_report_and_the_next_run_asks_for_the_rest(
    tiers: Tiers, folder: Path
) -> None:
    held = threading.Event()

    class Holding(Knowing):
        def transcribe(self, samples: Samples, options: Options) -> Utterance:
            if len(self.heard) >= 20:
                assert held.wait(PATIENCE)
            return super().transcribe(samples, options)

    holding = Holding(PRIMARY)
    both = pair(tiers, holding)
    command = [sys.executable, "-c", "from stt_cascade.cli import main; main()"]
    process = subprocess.Popen(
        [*command, *words(folder, both)],
        env={**os.environ, "COLUMNS": "300"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        until(
            lambda: len(holding.heard) >= 20 and both[0].service.tier.slots.in_flight == 2,
            "the primary is held",
        )
        process.send_signal(signal.SIGINT)
        assert process.stderr
        assert any("Ending early" in line for line in process.stderr)
        held.set()
        out, _ = process.communicate(timeout=PATIENCE)
    finally:
        held.set()
        process.kill()
        process.wait()
    assert process.returncode == 1
    assert re.search(rf"\d+ of {CLIPS} clips have no answers of both tiers", out)
    before = asked(both)
    assert before[0] < CLIPS
    assert stt(*words(folder, both)).exit_code == 0
    mine, theirs = asked(both)
    assert mine <= CLIPS + 2  # those that were under way
    assert theirs == CLIPS


@pytest.mark.parametrize("room", ["engine/scores.py", "cascade/confidence.py", "answer.py"])
def test_what_other_code_said_is_no_answer_of_this_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: str
) -> None:
    package = tmp_path / "stt_cascade"
    shutil.copytree(Path(asking.__file__).parents[1], package)
    monkeypatch.setattr(asking, "__file__", str(package / "cli/asking.py"))
    recipe, _ = recipes("base", "base", cores=2, gpu=False)
    before = asking.started_here(recipe, tmp_path)
    assert asking.started_here(recipe, tmp_path) == before
    with (package / room).open("a") as changed:
        changed.write("# otherwise\n")
    assert asking.started_here(recipe, tmp_path) != before


@pytest.mark.process
@pytest.mark.weights
def test_real_tiers_are_started_for_it_with_the_gates_off(tmp_path: Path) -> None:
    model("base")
    if not SPEECH.is_dir():
        pytest.skip(f"no labelled speech in {SPEECH}")
    clips = tmp_path / "clips"
    clips.mkdir()
    rows = [json.loads(line) for line in (SPEECH / "manifest.jsonl").read_text().splitlines()]
    # Both gates that are on by default would escalate the first one.
    names = ("an185-fnsv-b", "an46-mmap-b", "LJ001-0007", "silence_1s")
    few = [row for row in rows if Path(row["file"]).stem in names]
    for row in few:
        row["file"] = str(SPEECH / row["file"])
    (clips / "manifest.jsonl").write_text("\n".join(map(json.dumps, few)))
    figures = tmp_path / "x.json"
    result = stt(
        *("calibrate", str(clips), "--models", str(model("base").parent)),
        *("--port", str(own_port()), "--fallback-port", str(own_port())),
        *("--cache", str(tmp_path / "cache"), "--json", str(figures)),
    )
    assert result.exit_code == 1
    assert "too few" in result.stdout
    report = json.loads(figures.read_text())
    assert (report["clips"], report["failed"]) == (4, [])
    assert report["recommended"]["ms"]["value"] > 0
