"""Log lines: one a request, as JSON, with what an operator needs and nothing that is secret."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import structlog

from fakes import FALLBACK_KEY, PRIMARY_KEY, FakeEngine, ScriptedFallback
from running import RunningTier, Tiers, env_file, until
from stt_cascade.config import FallbackConfig
from stt_cascade.config_file import load
from stt_cascade.telemetry import logs
from tones import wav

SECRET_TEXT = "my account number is 4711"
LOGGERS = ("uvicorn", "uvicorn.error", "uvicorn.access", "httpx2", "httpcore2")


class Log:
    """What the process writes while a test runs."""

    def __init__(self) -> None:
        self.stream = io.StringIO()

    @property
    def text(self) -> str:
        return self.stream.getvalue()

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.text.splitlines()]

    def of(self, request_id: str) -> dict[str, Any]:
        """The one line of a request, which is written after its answer has gone out."""

        def found() -> list[dict[str, Any]]:
            return [
                line
                for line in self.lines()
                if line["message"] == "request" and line["request_id"] == request_id
            ]

        until(lambda: bool(found()), "the request has its line")
        (line,) = found()
        return line


@pytest.fixture
def log(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Log]:
    """Logging as a real process configures it, put back afterwards."""
    root, log = logging.getLogger(), Log()
    before = structlog.get_config(), list(root.handlers), root.level
    loggers = [logging.getLogger(name) for name in LOGGERS]
    states = [
        (logger, logger.handlers, logger.propagate, logger.disabled, logger.level)
        for logger in loggers
    ]
    monkeypatch.setattr("sys.stdout", log.stream)
    logs.configure(getattr(request, "param", "json"))
    monkeypatch.undo()
    yield log
    structlog.configure(**before[0])
    root.handlers, root.level = before[1], before[2]
    for logger, handlers, propagate, disabled, level in states:
        logger.handlers, logger.propagate = handlers, propagate
        logger.disabled, logger.level = disabled, level


def test_each_request_is_one_json_line(
    log: Log, tiers: Tiers, scripted: Callable[..., ScriptedFallback]
) -> None:
    primary = tiers.primary(
        FakeEngine("hm"),
        fallback=scripted(),
        api_keys=(PRIMARY_KEY,),
        conf_weakest_threshold=0.9,
    )
    primary.transcribe(headers={"X-Req-Id": "r-1"}, language="de")
    line = log.of("r-1")
    for name in ("queue_wait_ms", "primary_infer_ms", "fallback_infer_ms", "total_ms"):
        assert line.pop(name) >= 0
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT[\d:.]+Z", line.pop("timestamp"))
    assert line == {
        "message": "request",
        "level": "info",
        "logger": "stt.request",
        "request_id": "r-1",
        "tier": "primary",
        "method": "POST",
        "path": "/v1/transcribe",
        "status": 200,
        "client": "127.0.0.1",
        "key_id": hashlib.sha256(PRIMARY_KEY.encode()).hexdigest()[:8],
        "audio_seconds": 1.0,
        "language": "en",
        "model": "big",
        "reason": "low_confidence",
        "below": ["words", "weakest"],
        "fallback_used": True,
    }


def test_who_picks_the_surer_text_logs_both_scores(
    log: Log, tiers: Tiers, scripted: Callable[..., ScriptedFallback]
) -> None:
    surer = FakeEngine("two words", weakest=0.95)
    primary = tiers.primary(surer, fallback=scripted(), final_pick="best")
    primary.transcribe(headers={"X-Req-Id": "r-1"})
    line = log.of("r-1")
    assert (line["primary_weakest"], line["fallback_weakest"]) == (0.95, 0.9)
    assert (line["picked"], line["model"]) == ("primary", "fake")
    assert (line["reason"], line["fallback_used"]) == ("low_confidence", True)


def shadow_line(log: Log) -> dict[str, Any]:
    def found() -> list[dict[str, Any]]:
        return [line for line in log.lines() if line["logger"] == "stt.shadow"]

    until(lambda: bool(found()), "the shadow has its line")
    (line,) = found()
    return line


def test_a_shadow_is_logged_with_the_id_of_its_request_and_without_the_texts(
    log: Log, tiers: Tiers
) -> None:
    primary, _ = tiers.cascade(FakeEngine(SECRET_TEXT), FakeEngine(SECRET_TEXT), shadow_rate=1)
    primary.transcribe(headers={"X-Req-Id": "r-1"})
    line = shadow_line(log)
    assert (line["message"], line["request_id"], line["disagreement"]) == (
        "shadow compared",
        "r-1",
        0.0,
    )
    log.of("shadow-r-1")  # the fallback's own line
    assert SECRET_TEXT not in log.text


def test_a_shadow_is_logged_with_both_texts_if_the_settings_say_so(log: Log, tiers: Tiers) -> None:
    primary, _ = tiers.cascade(FakeEngine(SECRET_TEXT), shadow_rate=1, log_text=True)
    primary.transcribe()
    line = shadow_line(log)
    assert (line["primary_text"], line["fallback_text"]) == (SECRET_TEXT, "from the fallback")


def test_a_shadow_that_fails_is_logged_with_its_cause(log: Log, tiers: Tiers, nobody: str) -> None:
    primary = tiers.primary(FakeEngine(SECRET_TEXT), fallback=nobody, shadow_rate=1)
    primary.transcribe(headers={"X-Req-Id": "r-1"})
    line = shadow_line(log)
    assert (line["message"], line["level"], line["request_id"]) == (
        "shadow failed",
        "warning",
        "r-1",
    )
    assert line["error"].startswith("unreachable: ")
    assert SECRET_TEXT not in log.text


def test_both_tiers_log_the_same_request_id(log: Log, tiers: Tiers) -> None:
    primary, _ = tiers.cascade(FakeEngine("hm"))
    primary.transcribe(headers={"X-Req-Id": "r-1"})

    def found() -> set[str]:
        return {line["tier"] for line in log.lines() if line.get("request_id") == "r-1"}

    until(lambda: found() == {"primary", "fallback"}, "each tier has its line")


def test_an_error_is_logged_with_its_causes(log: Log, tiers: Tiers, nobody: str) -> None:
    tiers.primary(FakeEngine("hm"), fallback=nobody).transcribe(headers={"X-Req-Id": "r-1"})
    line = log.of("r-1")
    assert (line["level"], line["status"], line["error_type"]) == ("error", 502, "fallback_failed")
    assert line["reason"] == "low_confidence"
    assert line["fallback_error"].startswith("unreachable: the fallback cannot be reached")
    assert "cannot be reached" in line["error_message"]


def test_a_refusal_is_logged_without_alarm(log: Log, tiers: Tiers) -> None:
    tiers.fallback().transcribe(b"no audio", headers={"X-Req-Id": "r-1"})
    line = log.of("r-1")
    assert (line["level"], line["status"], line["error_type"]) == ("info", 400, "invalid_audio")


def test_probes_and_scrapes_do_not_fill_the_log(log: Log, tiers: Tiers) -> None:
    tier = tiers.fallback()
    for path in ("/v1/health", "/v1/ready", "/v1/metrics", "/metrics"):
        tier.get(path)
    tier.service.draining = True
    assert tier.get("/v1/ready").status_code == 503  # why, other lines say
    tier.service.draining = False
    tier.get("/nowhere", headers={"X-Req-Id": "last"})
    log.of("last")
    assert [line["path"] for line in log.lines() if line["message"] == "request"] == ["/nowhere"]


def test_an_unexpected_error_is_logged_whole_and_joined_by_the_request_id(
    log: Log, tiers: Tiers
) -> None:
    tier = tiers.fallback(FakeEngine(raises=LookupError("in the kernel")))
    answer = tier.transcribe()
    assert log.of(answer.headers["X-Req-Id"])["error_type"] == "internal"
    (line,) = (line for line in log.lines() if line["message"] == "unexpected error")
    assert line["request_id"] == answer.headers["X-Req-Id"]
    assert "LookupError" in str(line["exception"])
    assert "in the kernel" in str(line["exception"])


def everything_that_can_happen(primary: RunningTier, fallback: RunningTier) -> None:
    primary.transcribe(prompt=SECRET_TEXT)
    primary.transcribe(b"no audio")
    primary.client.get("/v1/transcribe", headers=primary.authorization)
    for engine in (primary.fake, fallback.fake):
        engine.raises = RuntimeError("odd clip")
        primary.transcribe(prompt=SECRET_TEXT)
    primary.key = "wrong-key-000000000000"
    primary.transcribe()
    last = primary.get("/nowhere", headers={"X-Req-Id": "last"})
    assert last.status_code == 401


@pytest.mark.parametrize("log", ["json", "console"], indirect=True)
def test_no_key_and_no_text_is_ever_logged(log: Log, tiers: Tiers) -> None:
    primary, fallback = tiers.cascade(
        FakeEngine(SECRET_TEXT, logprob=0.1), FakeEngine(SECRET_TEXT), api_keys=(PRIMARY_KEY,)
    )
    everything_that_can_happen(primary, fallback)
    until(lambda: "last" in log.text, "the last request is logged")
    for secret in (PRIMARY_KEY, FALLBACK_KEY, "wrong-key-000000000000", SECRET_TEXT):
        assert secret not in log.text
    assert "odd clip" in log.text


def test_the_text_is_logged_if_the_settings_say_so(log: Log, tiers: Tiers) -> None:
    primary, _ = tiers.cascade(FakeEngine(SECRET_TEXT), log_text=True)
    primary.transcribe(headers={"X-Req-Id": "r-1"})
    assert log.of("r-1")["text"] == SECRET_TEXT


# What a terminal obeys, or takes for the end of a line, or of its direction: C0, DEL, C1, the
# separators of Unicode, its overrides.
COMMANDS = ["\x1b[31m", "\x1b]0;title\x07", "\0", "\r\n", "\x7f", "\x9b2J", "\x85"]
COMMANDS += ["\u2028", "\u2029", "\u202e", "\u2066", "\u200f"]


def commands_nobody(text: str) -> bool:
    """Whether all of a log can be shown, with a line for each line that was written."""
    return all(line.isprintable() for line in text.split("\n"))


@pytest.mark.parametrize("log", ["json", "console"], indirect=True)
@pytest.mark.parametrize("command", COMMANDS, ids=ascii)
def test_what_a_stranger_asks_for_commands_no_terminal_and_begins_no_line(
    log: Log, tiers: Tiers, command: str
) -> None:
    tier = tiers.fallback(api_keys=(PRIMARY_KEY,))
    answer = tier.client.get(f"/b{quote(command)}x", headers={"X-Req-Id": "r-1"})
    assert answer.status_code == 401
    until(lambda: "r-1" in log.text, "the request has its line")
    assert commands_nobody(log.text)
    (line,) = (line for line in log.text.splitlines() if "r-1" in line)
    if line.startswith("{"):
        assert json.loads(line)["path"] == f"/b{command}x"
    else:
        assert f"path={f'/b{command}x'!r} " in line


@pytest.mark.parametrize("log", ["json", "console"], indirect=True)
def test_neither_does_an_error_or_a_text(log: Log, tiers: Tiers) -> None:
    everything = "".join(COMMANDS)
    tier = tiers.fallback(log_text=True)
    tier.fake.text = everything
    tier.transcribe()
    tier.fake.raises = LookupError(f"in the kernel\n2026-11-24 [info] {everything}")
    tier.transcribe(headers={"X-Req-Id": "r-1"})
    structlog.get_logger("stt.keys").warning(everything, files=[everything], file=Path(everything))
    until(lambda: "internal" in log.text, "the last request has its line")
    assert commands_nobody(log.text)
    assert not [line for line in log.text.split("\n") if line.startswith("2026-11-24 [info]")]
    assert "\\u2028" in log.text
    assert "in the kernel" in log.text


@pytest.mark.parametrize("log", ["console"], indirect=True)
def test_a_line_for_people_quotes_only_what_needs_it(log: Log, tiers: Tiers) -> None:
    tiers.fallback().get("/größe", headers={"X-Req-Id": "r-1"})
    until(lambda: "r-1" in log.text, "the request has its line")
    (line,) = (line for line in log.text.splitlines() if "r-1" in line)
    assert " path=/größe " in line
    assert " error_message='" in line


def test_changed_keys_are_logged_by_their_ids(log: Log, tiers: Tiers, tmp_path: Path) -> None:
    settings: Callable[..., Path] = lambda key: env_file(  # noqa: E731
        tmp_path / "f.env", CT2_MEDIUM_PATH="m", DEVICE="cpu", VAD="off", API_KEYS=key
    )
    tier = tiers.run(load(FallbackConfig, settings(PRIMARY_KEY)))
    settings(FALLBACK_KEY)
    tier.service.secrets.refresh()
    (line,) = (line for line in log.lines() if line["message"] == "keys re-read")
    assert line["key_ids"] == [hashlib.sha256(FALLBACK_KEY.encode()).hexdigest()[:8]]
    assert FALLBACK_KEY not in log.text


def test_servers_lines_are_json_too(log: Log, tiers: Tiers) -> None:
    tier = tiers.fallback()
    tier.exchange(b"rubbish\r\n\r\n")
    tier.transcribe(wav(), headers={"X-Req-Id": "r-1"})
    log.of("r-1")
    loggers = {line["logger"] for line in log.lines()}
    assert "uvicorn.error" in loggers
    assert "uvicorn.access" not in loggers  # our own line says more
