"""Speech detection on real sounds: nobody is heard where nobody speaks, and nobody is lost."""

from __future__ import annotations

import json

import pytest

from conftest import SPEECH
from stt_cascade.audio.decode import decode
from stt_cascade.audio.speech import detect


def clips(kind: str) -> list[str]:
    if not SPEECH.is_dir():
        pytest.skip(f"no speech set in {SPEECH}")
    entries = map(json.loads, (SPEECH / "manifest.jsonl").read_text().splitlines())
    return [entry["file"] for entry in entries if entry["kind"] == kind]


def spoken_seconds(name: str) -> float:
    samples = decode((SPEECH / name).read_bytes(), max_seconds=60)
    return sum(span.seconds for span in detect(samples))


def test_nobody_speaks_in_music_weather_noise_and_silence() -> None:
    names = clips("no_speech")
    assert len(names) >= 5
    assert {name: spoken_seconds(name) for name in names} == dict.fromkeys(names, 0)


def test_no_spoken_clip_is_lost_however_short() -> None:
    names = clips("speech")
    assert len(names) >= 50
    assert [name for name in names if spoken_seconds(name) < 0.2] == []
