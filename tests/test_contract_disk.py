"""Audio never touches the disk."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fakes import FakeEngine
from pages import SRC
from running import Tiers
from tones import encoded, tone, wav

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


class Watch:
    """An audit hook, which Python cannot remove again: it sees only what happens while it is on."""

    def __init__(self) -> None:
        self.on = False
        self.seen: list[str] = []
        sys.addaudithook(self._see)

    def _see(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.on:
            return
        if event == "open":
            path, mode, flags = arguments
            if path != os.devnull and (flags or 0) & WRITING:
                self.seen.append(f"{event} {path} {mode}")
        elif event.startswith(("tempfile.", "shutil.")) or event in ("os.rename", "os.mkdir"):
            self.seen.append(f"{event} {arguments}")


@pytest.fixture(scope="module")
def watch() -> Watch:
    return Watch()


def uploads() -> dict[str, bytes]:
    """By name, which only the raw one needs."""
    noise = np.random.default_rng(1).uniform(-0.5, 0.5, 5 * 1024 * 1024 // 2).astype(np.float32)
    return {
        "5-megabytes.wav": wav(noise),
        "garbage.wav": bytes(5 * 1024 * 1024),
        "video.mp4": encoded("mp4-aac", 5),
        "raw.g722": encoded("g722", 5),
    }


def test_the_watch_sees_a_file_being_written(watch: Watch, tmp_path: Path) -> None:
    spoilt: list[Callable[[], object]] = [
        lambda: (tmp_path / "a").write_bytes(b"audio"),
        lambda: os.close(os.open(tmp_path / "b", os.O_CREAT | os.O_WRONLY)),
    ]
    watch.on = True
    for spoil in spoilt:
        spoil()
    watch.on = False
    assert len(watch.seen) == len(spoilt)
    watch.seen.clear()


def test_uploads_are_never_written_anywhere(tiers: Tiers, watch: Watch) -> None:
    primary, fallback = tiers.cascade(FakeEngine(logprob=0.1))
    primary.transcribe(wav(tone(0.5)))  # what is imported late is imported now
    clips = uploads()
    watch.on = True
    try:
        statuses = [primary.transcribe(clip, name=name).status_code for name, clip in clips.items()]
    finally:
        watch.on = False
    assert statuses == [200, 400, 200, 200]
    # the clip before the watch, the six windows of the long one, and two more
    assert len(fallback.fake.heard) == 1 + 6 + 2
    assert watch.seen == []


@pytest.mark.process
def test_no_library_keeps_anything_of_its_own_or_tells_its_makers(tmp_path: Path) -> None:
    """What onnxruntime would send waits in a file of the user's cache, beside the machine's id."""
    done = subprocess.run(
        [sys.executable, "-c", "from stt_cascade.audio import speech; speech.warm_up()"],
        env={"HOME": str(tmp_path), "PATH": os.environ["PATH"], "PYTHONPATH": str(SRC)},
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode == 0
    assert list(tmp_path.iterdir()) == []
