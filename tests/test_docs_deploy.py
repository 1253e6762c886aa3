"""Every command of docs/deploy.md and docs/resilience.md is run by a test, or says what it needs
that is not here.
"""

from __future__ import annotations

import ast
import os
import re
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from conftest import model
from fakes import PATIENCE
from pages import ROOT, SRC, mentions, named, page_command, shell_lines, typed
from running import until

GIT = shutil.which("git") or "git"
PAGE, RESILIENCE = "docs/deploy.md", "docs/resilience.md"
# What the machine of the tests may lack; a remark `# needs ...` names one of them.
LACKING = {"a GPU", "Docker", "a cluster"}


def claimed() -> set[tuple[str, str, str]]:
    """What the calls of `page_command` in the tests ask for: page, section and command.

    Raises:
        AssertionError: one asks for what is not there.
    """
    found = set()
    for file in sorted((ROOT / "tests").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "page_command":
                words = [str(word.value) for word in node.args if isinstance(word, ast.Constant)]
                if len(words) < len(node.args):
                    continue  # the call below
                section, _, page = [*words, PAGE][:3]
                found.add((page, section, page_command(*words)))
    return found


def test_every_command_is_run_by_a_test_or_says_what_it_needs() -> None:
    run = claimed()
    for page in (PAGE, RESILIENCE):
        for each in typed(page):
            asked_for = (page, each.section, each.line) in run
            assert asked_for or each.needs in LACKING, f"{each.section}: {each.line}"


def test_what_is_typed_at_night_names_the_namespace_and_builds_nothing() -> None:
    # The runbooks' table of equivalents says once for all that the namespace goes with it.
    told = {code for page, code in mentions() if page != "README.md"} | set(shell_lines())
    release = {each for each in told if re.match(r"helm (upgrade|rollback) ", each)}
    assert release
    for line in release:
        assert re.match(r"helm \w+ (--install )?stt ", line) and " --namespace stt" in line, line
    for line in (each for each in told if re.match(r"kubectl .*(stt-primary|stt-fallback)", each)):
        assert re.search(r" (-n|--namespace) stt\b", line), line
    versions = [each for each in told if re.match(r"TAG=\S+ docker compose ", each)]
    assert versions
    for line in versions:  # else a version that is not there is made of the code that is
        assert "--no-build" in line, line


@pytest.mark.process
def test_no_key_that_the_page_makes_here_gets_into_git() -> None:
    made = {
        name
        for each in typed(PAGE)
        for name in re.findall(r"(?:> |-keyout )([\w./-]+\.key)\b", each.line)
    }
    assert {"caller.key", "fallback.key", "tls/ca.key"} <= made
    for name in made:
        done = subprocess.run([GIT, "check-ignore", "--quiet", name], cwd=ROOT, check=False)
        if done.returncode == 128:
            pytest.skip("this is no checkout")
        assert done.returncode == 0, name


def test_what_shows_a_promise_is_there() -> None:
    shown = re.findall(r"(\w+\.py)::(\w+)", (ROOT / RESILIENCE).read_text())
    assert shown
    for file, name in shown:
        assert f"def {name}(" in (ROOT / "tests" / file).read_text(), name
    rows_of_faults = named("docs/reliability.md", "## What was measured")
    for row in re.findall(r"the row `(\w[\w-]*)`", (ROOT / RESILIENCE).read_text()):
        assert row in rows_of_faults


@pytest.mark.parametrize("end", ["", "\n"], ids=["an unended line", "an ended line"])
@pytest.mark.process
def test_a_key_that_is_added_has_a_line_of_its_own(end: str, tmp_path: Path) -> None:
    keys = tmp_path / "api.keys"
    keys.write_text(f"the-old-one{end}")
    keys.chmod(0o640)
    for line in (
        page_command("systemd", "sudo cp -p"),
        page_command("systemd", "sudo sed -i"),
        page_command("systemd", "openssl rand"),
        page_command("systemd", "sudo mv"),
    ):
        here = line.replace("sudo ", "").replace("/opt/stt/keys/primary", str(tmp_path))
        subprocess.run(["/bin/bash", "-c", here], check=True, capture_output=True)
    old, new = keys.read_text().splitlines()
    assert (old, len(new)) == ("the-old-one", 48)
    assert keys.stat().st_mode & 0o777 == 0o640
    assert list(tmp_path.iterdir()) == [keys]


# One box


@pytest.fixture
def ports() -> tuple[int, int]:
    """Two that nobody uses: the primary's and the fallback's."""
    with ExitStack() as stack:
        bound = [stack.enter_context(closing(socket.socket())) for _ in range(2)]
        for each in bound:
            each.bind(("127.0.0.1", 0))
        primary, fallback = (each.getsockname()[1] for each in bound)
        return primary, fallback


@pytest.fixture
def shell(ports: tuple[int, int], tmp_path: Path) -> Callable[[str], list[str]]:
    """How a line of the page is run here: from the root, on 127.0.0.1, at these ports."""
    primary, fallback = map(str, ports)
    for tier in ("primary", "fallback"):
        text = (ROOT / f"configs/cpu/stt_{tier}.env").read_text().replace("8082", fallback)
        (tmp_path / f"stt_{tier}.env").write_text(text.replace("=models/", f"={ROOT}/models/"))

    def shell(line: str) -> list[str]:
        for shown, real in (
            ("8081", primary),
            ("8082", fallback),
            ("0.0.0.0", "127.0.0.1"),  # noqa: S104  # it is what is replaced
            ("configs/cpu", str(tmp_path)),
        ):
            line = line.replace(shown, real)
        first = page_command("One box", ". .venv")
        # `exec`, so that a signal reaches the command itself.
        environment, command = re.fullmatch(r"((?:\w+=\S+ )*)(.*)", line).groups()  # type: ignore[union-attr]
        return ["bash", "-c", f"{first} && {environment}exec {command}"]

    return shell


@pytest.mark.process
@pytest.mark.weights
def test_one_box_from_the_weights_to_the_smoke_test(shell: Callable[[str], list[str]]) -> None:
    model("base")
    environment = {**os.environ, "PYTHONPATH": str(SRC)}

    def said(line: str) -> str:
        done = subprocess.run(
            shell(line), cwd=ROOT, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr + done.stdout
        return done.stdout

    said(page_command("One box", "stt models pull"))
    assert "base" in said(page_command("One box", "stt models verify"))
    said(page_command("One box", "stt config check configs/cpu/stt_fallback.env"))
    said(page_command("One box", "stt config check configs/cpu/stt_primary.env"))
    running: list[subprocess.Popen[bytes]] = []
    try:
        for start, ready in (
            (
                page_command("One box", "CONFIG_PATH=configs/cpu/stt_fallback.env uvicorn"),
                page_command("One box", "curl -s http://127.0.0.1:8082/v1/ready"),
            ),
            (
                page_command("One box", "CONFIG_PATH=configs/cpu/stt_primary.env uvicorn"),
                page_command("One box", "curl -s http://127.0.0.1:8081/v1/ready"),
            ),
        ):
            running.append(subprocess.Popen(shell(start), cwd=ROOT, env=environment))

            def is_ready(line: str = ready) -> bool:
                done = subprocess.run(shell(line), capture_output=True, cwd=ROOT, check=False)
                return b'"ready":true' in done.stdout

            until(is_ready, "the tier is ready", 2 * PATIENCE)
        assert "my fellow Americans" in said(
            page_command("One box", "curl -s http://127.0.0.1:8081/v1/transcribe")
        )
        # How long it takes here says nothing.
        said(page_command("One box", "python tests/smoke_test_stt.py") + " --slo 600")
        for each in reversed(running):
            each.send_signal(signal.SIGTERM)
            assert each.wait(PATIENCE) in (0, -signal.SIGTERM)
    finally:
        for each in running:
            each.kill()
            each.wait()
