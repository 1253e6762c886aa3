"""What `import stt_sdk` brings along, and how its names look from outside."""

from __future__ import annotations

import subprocess
import sys
import traceback

import pytest

import stt_sdk
from stt_cascade.cli import NEEDS, main
from stt_cascade.cli.app import app

HEAVY = {
    *["fastapi", "starlette", "uvicorn", "pydantic", "pydantic_settings", "multipart", "structlog"],
    *["numpy", "ctranslate2", "faster_whisper", "av", "onnxruntime", "torch", "tokenizers"],
    *["prometheus_client", "opentelemetry", "rich", "typer", "click", "stt_cascade"],
}


def fresh(code: str) -> set[str]:
    """The packages that are loaded in a new interpreter once this has run."""
    code += "\nimport sys; print(*{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    return set(done.stdout.split())


@pytest.mark.process
def test_importing_the_client_loads_no_server_no_engine_and_no_numpy() -> None:
    assert fresh("import stt_sdk") & HEAVY == set()


@pytest.mark.process
def test_nor_does_making_one_and_sending_a_clip() -> None:
    code = """
import httpx2, stt_sdk
try:
    stt_sdk.transcribe(b"clip", base_url="http://127.0.0.1:1", deadline=5)
except stt_sdk.ConnectionFailed:
    pass
"""
    assert fresh(code) & HEAVY == set()


@pytest.mark.process
def test_all_else_it_loads_comes_with_httpx2() -> None:
    more = fresh("import stt_sdk") - fresh("import httpx2") - sys.stdlib_module_names
    assert more <= {"stt_sdk", "httpcore2", "h11", "anyio", "truststore"}


@pytest.mark.parametrize("name", stt_sdk.__all__)
def test_every_public_name_is_there_and_shows_where_people_import_it_from(name: str) -> None:
    public = getattr(stt_sdk, name)
    if isinstance(public, type):
        assert f"{public.__module__}.{public.__qualname__}" == f"stt_sdk.{name}"
    if isinstance(public, type) and issubclass(public, stt_sdk.STTError):
        (line,) = traceback.format_exception_only(public("so it is"))
        assert line.startswith(f"stt_sdk.{name}: ")
        assert "so it is" in line


def test_every_error_has_its_place_in_the_tree_that_the_docstring_draws() -> None:
    from stt_sdk import _errors

    def tree(kind: type[stt_sdk.STTError]) -> set[str]:
        return {kind.__name__}.union(*(tree(each) for each in kind.__subclasses__()))

    drawn = (_errors.__doc__ or "").partition("\n\n*")[0].split()
    for name in tree(stt_sdk.STTError):
        assert name in drawn
        assert name in stt_sdk.__all__


def test_every_command_of_stt_names_the_extra_that_it_needs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    commands = {str(getattr(each.callback, "__name__", "")) for each in app.registered_commands}
    groups = {each.name for each in app.registered_groups}
    assert set(NEEDS) == commands | groups
    monkeypatch.setattr(sys, "argv", ["stt", "bench", "sdk"])
    monkeypatch.setitem(sys.modules, "fastapi", None)  # not installed
    with pytest.raises(SystemExit, match=r"`stt bench` needs .*'\.\[server,tools\]'"):
        main()
