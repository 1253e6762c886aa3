"""Programs from the pages, run as their readers do."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from fakes import PATIENCE, FakeEngine
from pages import SRC, blocks
from running import RunningTier, Tiers

PAGE = "docs/recipes.md"
ADDRESS = "http://127.0.0.1:8081"  # on the pages
KEY = "primary_key_abc"  # there, too


def start(tiers: Tiers, text: str = "one two three four", **settings: Any) -> RunningTier:
    """A primary that hears this, and knows the key of the pages."""
    return tiers.cascade(FakeEngine(text), api_keys=(KEY,), **settings)[0]


def cells(heading: str) -> list[str]:
    return blocks(PAGE, "python", f"## {heading}")


def program(heading: str, folder: Path, **addresses: str) -> Path:
    """A recipe, written into a folder under the name that it has there, with other addresses."""
    (text,) = cells(heading)
    said = re.search(r": (?:python (\w+\.py)|uvicorn (\w+):app)", text)
    assert said, "it says how it is started"
    for shown, real in addresses.items():
        assert shown in text
        text = text.replace(shown, real)
    file = folder / (said[1] or f"{said[2]}.py")
    file.write_text(text)
    return file


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(SRC), "PYTHONUNBUFFERED": "1", "COLUMNS": "80"}


def command(*words: str | Path) -> list[str]:
    return [sys.executable, "-W", "error", *map(str, words)]


def ran(*words: str | Path, folder: Path) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        command(*words),
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=2 * PATIENCE,
        check=False,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done
