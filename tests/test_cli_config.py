"""`stt config check` shows what a settings file means, and what is wrong with it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from stt_cascade.cli.app import app
from stt_cascade.cli.config import guess

CONFIGS = Path(__file__).parent.parent / "configs"
PRIMARY = "CT2_SMALL_PATH=/models/small\nFALLBACK_URL=http://127.0.0.1:8082\n"

runner = CliRunner(env={"COLUMNS": "100"})


def env(folder: Path, text: str, name: str = "some.env") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def row(output: str, setting: str) -> list[str]:
    """The cells of a setting's row."""
    (line,) = [line for line in output.splitlines() if setting in line.split()]
    return line.split()


@pytest.mark.parametrize(
    "path", sorted(CONFIGS.rglob("*.env")), ids=lambda path: str(path.relative_to(CONFIGS))
)
def test_every_file_in_configs_is_valid_for_its_tier(path: Path, tmp_path: Path) -> None:
    for name in ("api.keys", "fallback.key"):
        env(tmp_path, "sesame\n", name)
    # Where a container mounts its keys.
    copy = env(tmp_path, path.read_text().replace("/run/secrets/", f"{tmp_path}/"), path.name)
    result = runner.invoke(app, ["config", "check", str(copy)])
    assert result.exit_code == 0, result.output
    assert f"valid for the {path.stem.removeprefix('stt_')}" in result.output


def test_what_differs_from_the_default_is_marked_and_shown_beside_it(tmp_path: Path) -> None:
    path = env(
        tmp_path, PRIMARY + "BEAM_SIZE=3\nMIN_WORDS_FOR_CONF=3\nRATE_LIMIT_RPS=15\nVAD=off\n"
    )
    output = runner.invoke(app, ["config", "check", str(path)]).output
    assert row(output, "BEAM_SIZE") == ["*", "BEAM_SIZE", "3", "1"]
    assert row(output, "VAD") == ["*", "VAD", "off", "on"]
    assert row(output, "CT2_SMALL_PATH") == ["*", "CT2_SMALL_PATH", "/models/small", "(required)"]
    # Written down, but no different.
    assert row(output, "MIN_WORDS_FOR_CONF") == ["MIN_WORDS_FOR_CONF", "3"]
    assert row(output, "RATE_LIMIT_RPS") == ["RATE_LIMIT_RPS", "15.0"]


def test_no_secret_is_shown(tmp_path: Path) -> None:
    path = env(tmp_path, PRIMARY + "API_KEYS=hush-one,hush-two\nFALLBACK_API_KEY=hush-three\n")
    result = runner.invoke(app, ["config", "check", str(path)])
    assert result.exit_code == 0
    assert "hush" not in result.output
    assert row(result.output, "API_KEYS")[:2] == ["*", "API_KEYS"]


def test_every_mistake_is_a_line_on_stderr(tmp_path: Path) -> None:
    path = env(tmp_path, PRIMARY + "BEAM_SIZ=3\nVAD=perhaps\nLANGUAGES=en,xx\n")
    result = runner.invoke(app, ["config", "check", str(path)])
    assert result.exit_code == 1
    assert result.stdout == ""
    first, second, third = result.stderr.splitlines()
    assert first.startswith(f"{path}:3: BEAM_SIZ") and "did you mean BEAM_SIZE?" in first
    assert second.startswith(f"{path}:4: VAD") and "on or off" in second
    assert third.startswith(f"{path}:5: LANGUAGES=en,xx") and "xx is none of af, am" in third


def test_an_address_with_a_typo_in_its_port_is_a_line_and_no_traceback(tmp_path: Path) -> None:
    path = env(tmp_path, "CT2_SMALL_PATH=/models/small\nFALLBACK_URL=http://stt-fallback:8O82\n")
    result = runner.invoke(app, ["config", "check", str(path)])
    assert result.exit_code == 1
    assert result.stderr == (
        f"{path}:2: FALLBACK_URL=http://stt-fallback:8O82: "
        "must be an address such as http://stt-fallback:8082\n"
    )


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    path = tmp_path / "stt_primary.env"
    result = runner.invoke(app, ["config", "check", str(path)])
    assert result.exit_code == 1
    assert result.stderr.startswith(f"{path}: No such file")
    result = runner.invoke(app, ["config", "check", str(tmp_path)])
    assert result.exit_code == 1
    assert result.stderr.startswith(f"{tmp_path}: Is a directory")


def test_what_is_no_file_is_said_to_be_what_it_is(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    env(tmp_path, "", "f.env")
    expected = {
        ".": "Is a directory",
        "pipe": "Not a regular file",
        "f.env/f.env": "Not a directory",
    }
    for name, why in expected.items():
        path = tmp_path / name
        result = runner.invoke(app, ["config", "check", str(path)])
        assert (result.exit_code, result.stderr) == (1, f"{path}: {why}\n")


@pytest.mark.parametrize(
    ("name", "text", "tier"),
    [
        ("some.env", "CT2_SMALL_PATH=x", "primary"),
        ("some.env", "export CT2_MEDIUM_PATH=x", "fallback"),
        ("stt_primary.env", "CT2_MEDIUM_PATH=x", "fallback"),
        ("stt_primary.env", "", "primary"),
        ("stt_fallback.env", "#CT2_SMALL_PATH=x", "fallback"),
        ("stt_fallback.env", "CT2_SMALL_PATH=x\nCT2_MEDIUM_PATH=x", "fallback"),
        ("some.env", "BEAM_SIZE=1", None),
        ("primary-and-fallback.env", "", None),
    ],
)
def test_the_tier_is_the_one_whose_model_or_else_whose_name_it_has(
    tmp_path: Path, name: str, text: str, tier: str | None
) -> None:
    assert guess(env(tmp_path, text, name)) == tier


def test_a_file_of_no_tier_needs_to_be_told_one(tmp_path: Path) -> None:
    path = env(tmp_path, "BEAM_SIZE=1")
    result = runner.invoke(app, ["config", "check", str(path)])
    assert result.exit_code == 2
    assert "--tier" in result.stderr
    result = runner.invoke(app, ["config", "check", str(path), "--tier", "fallback"])
    assert result.exit_code == 1
    assert "CT2_MEDIUM_PATH: missing" in result.stderr


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ("API_KEYS_FILE=/nope\n", "API_KEYS_FILE: /nope cannot be read"),
        ("API_KEYS=a b\n", "API_KEYS: a key may hold printable ASCII without spaces only"),
        ("API_KEYS=,\n", "API_KEYS=(hidden): must be a comma-separated list of one or more"),
        ("FALLBACK_API_KEY=,\n", "FALLBACK_API_KEY: a key may not be of commas only"),
        ("FALLBACK_API_KEY=a\nFALLBACK_API_KEY_FILE=/nope\n", "exclude each other"),
    ],
)
def test_keys_that_the_service_would_refuse_are_no_valid_settings(
    tmp_path: Path, settings: str, said: str
) -> None:
    path = env(tmp_path, PRIMARY + settings)
    result = runner.invoke(app, ["config", "check", str(path)])
    assert result.exit_code == 1
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"{path}:")
    assert said in line


@pytest.mark.parametrize("setting", ["API_KEYS_FILE", "METRICS_KEYS_FILE", "FALLBACK_API_KEY_FILE"])
@pytest.mark.parametrize(
    ("content", "said"),
    [("", "holds no key"), ("# none yet\n", "holds no key"), (",\n", "may not be of commas only")],
    ids=["empty", "comment", "commas"],
)
def test_a_key_file_without_a_key_is_a_mistake(
    tmp_path: Path, setting: str, content: str, said: str
) -> None:
    keys = env(tmp_path, content, "keys")
    path = env(tmp_path, PRIMARY + f"{setting}={keys}\n")
    result = runner.invoke(app, ["config", "check", str(path)])
    assert result.exit_code == 1
    assert result.stderr.startswith(f"{path}: {setting}: ")
    assert said in result.stderr
