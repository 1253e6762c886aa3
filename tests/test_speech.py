"""Speech detection on real sounds: nobody is heard where nobody speaks, and nobody is lost."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest
from faster_whisper import vad

from conftest import SPEECH
from stt_cascade.audio import speech
from stt_cascade.audio.decode import decode
from stt_cascade.audio.speech import AROUND, FRAME, PIECE, detect, probabilities, stretches
from stt_cascade.engine.protocol import Samples
from tones import RATE, silence, voice

CASES = SPEECH.parent / "cases"
OFFSETS = (0.001, 0.005, 0.02, 0.1, 0.5, -0.3)
# The rules of `stretches`, as faster-whisper is told them.
OPTIONS = vad.VadOptions(
    min_speech_duration_ms=100,
    min_silence_duration_ms=500,
    speech_pad_ms=400,
    max_speech_duration_s=30,
)


def clips(kind: str) -> list[str]:
    if not SPEECH.is_dir():
        pytest.skip(f"no speech set in {SPEECH}")
    entries = map(json.loads, (SPEECH / "manifest.jsonl").read_text().splitlines())
    return [entry["file"] for entry in entries if entry["kind"] == kind]


def heard_in(name: str) -> Samples:
    return decode((SPEECH / name).read_bytes(), max_seconds=60)


def seconds(samples: Samples) -> float:
    return sum(span.seconds for span in detect(samples))


def as_16_bit(samples: np.ndarray) -> Samples:
    """What a file can hold of it."""
    return np.asarray(np.round(np.clip(samples, -1, 1) * 32767) / 32767, np.float32)


def at_peak(samples: Samples, dbfs: float) -> Samples:
    return as_16_bit(samples / np.abs(samples).max() * 10 ** (dbfs / 20))


def where(samples: Samples) -> np.ndarray:
    """For each sample, whether somebody speaks."""
    mask = np.zeros(len(samples), bool)
    for span in detect(samples):
        mask[span.start : span.end] = True
    return mask


def drifts(length: int) -> Iterator[np.ndarray]:
    """Offsets that change: a ramp, a slow wave, a step."""
    time = np.arange(length) / RATE
    yield 0.3 * time / time[-1]
    yield 0.1 * np.sin(2 * np.pi * 0.2 * time)
    yield np.where(time > time[-1] / 2, 0.1, 0.0)


def noises(length: int) -> Iterator[tuple[str, np.ndarray]]:
    """Sounds in which nobody speaks, of about the same loudness."""
    chance, time = np.random.default_rng(1), np.arange(length) / RATE
    white = chance.standard_normal(length)
    spectrum = np.fft.rfft(white)
    yield "hiss", white
    yield "rumble", 300 * np.fft.irfft(spectrum / np.arange(1, len(spectrum) + 1), length)
    for hertz in (50, 60):
        hum = sum(np.sin(2 * np.pi * hertz * n * time) / n for n in range(1, 12))
        yield f"hum of {hertz} Hz", hum + 0.05 * white
    clicks = np.zeros(length)
    clicks[chance.integers(0, length, 30)] = 10
    yield "clicks", clicks + 0.01 * white
    yield "steps", np.sign(np.sin(2 * np.pi * 0.4 * time)) + 0.01 * white
    yield "drift", np.sin(2 * np.pi * 0.1 * time) + 0.01 * white


def test_nobody_speaks_in_music_weather_noise_and_silence() -> None:
    names = clips("no_speech")
    assert len(names) >= 5
    assert {name: seconds(heard_in(name)) for name in names} == dict.fromkeys(names, 0)


@pytest.mark.parametrize("dbfs", [-60, -30, 0])
def test_nobody_speaks_there_at_any_loudness_and_offset(dbfs: float) -> None:
    sounds = {name: heard_in(name) for name in clips("no_speech")}
    sounds = {name: at_peak(sound, dbfs) for name, sound in sounds.items() if sound.any()}
    assert [name for name, sound in sounds.items() if seconds(sound)] == []
    assert [name for name, sound in sounds.items() if seconds(as_16_bit(sound + 0.1))] == []


@pytest.mark.parametrize("dbfs", [-90, -75, -60, -40, -15])
def test_nobody_speaks_in_noise_however_quiet(dbfs: float) -> None:
    sounds = {
        name: as_16_bit(noise / noise.std() * 10 ** (dbfs / 20)) for name, noise in noises(5 * RATE)
    }
    assert [name for name, sound in sounds.items() if seconds(sound)] == []


def test_no_spoken_clip_is_lost_however_short() -> None:
    names = clips("speech")
    assert len(names) >= 50
    assert [name for name in names if seconds(heard_in(name)) < 0.2] == []


def test_a_quiet_recording_with_an_offset_is_heard_as_without_it() -> None:
    files = [CASES / f"dc_{offset}_fr000.flac" for offset in ("none", "0.005")]
    if not all(file.is_file() for file in files):
        pytest.skip(f"no recordings with an offset in {CASES}")
    without, with_it = (decode(file.read_bytes(), max_seconds=60) for file in files)
    assert seconds(without) > 5
    assert np.mean(where(without) == where(with_it)) > 0.99


@pytest.mark.parametrize("dbfs", [-54, -40, -20])
def test_an_offset_or_a_drift_hides_nobody(dbfs: float) -> None:
    for name in clips("speech")[::15]:
        spoken = at_peak(heard_in(name), dbfs)
        expected = where(spoken)
        offsets = [*(np.full(len(spoken), offset) for offset in OFFSETS), *drifts(len(spoken))]
        for offset in offsets:
            found = where(as_16_bit(spoken + offset))
            assert np.mean(found[expected]) > 0.95


def test_a_voice_is_heard_as_quiet_as_16_bits_allow_and_clipped() -> None:
    for name in clips("speech")[::15]:
        spoken = heard_in(name)
        expected = where(spoken)
        for dbfs in (-60, -40, -20, 0, 20):
            assert np.mean(where(at_peak(spoken, dbfs))[expected]) > 0.9


def test_a_word_at_the_very_start_of_a_clip_is_heard() -> None:
    spoken = np.concatenate([heard_in("an4/an46-mmap-b.wav"), silence(5.0)])
    (span,) = detect(spoken)
    assert (span.start, span.end < 2 * RATE) == (0, True)


def test_the_clip_itself_stays_as_it_is() -> None:
    spoken = voice(2.0) + np.float32(0.01)
    before = spoken.copy()
    spoken.setflags(write=False)  # as samples from a decoder are
    assert detect(spoken)
    assert np.array_equal(spoken, before)


@pytest.mark.parametrize("length", [1, FRAME - 1, FRAME, PIECE - 2 * AROUND, PIECE + 1])
def test_every_length_has_whole_frames_with_silence_around(length: int) -> None:
    samples = np.sin(np.arange(length, dtype=np.float32) * 0.3) + np.float32(0.25)
    pieces = list(speech._level(samples))
    assert {len(piece) % FRAME for piece in pieces} == {0}
    assert max(map(len, pieces)) <= PIECE
    whole = np.concatenate(pieces)
    assert len(whole) == 2 * AROUND + -(-length // FRAME) * FRAME
    assert not whole[:AROUND].any()
    assert not whole[AROUND + length :].any()


def test_levelled_pieces_fit_together() -> None:
    """A constant offset is gone to the last sample, and what is around a cut does not show."""
    assert max(np.abs(piece).max() for piece in speech._level(np.full(3 * PIECE, 0.3, "f4"))) < 1e-6
    spoken = voice(20.0)
    whole = np.concatenate(list(speech._level(spoken)))[AROUND:][: len(spoken)]
    again = np.concatenate(list(speech._level(spoken[1000:])))[AROUND:][: len(spoken) - 1000]
    assert np.abs(whole[3000:] - again[2000:]).max() < 1e-6


def test_a_clip_in_pieces_gives_the_probabilities_of_the_whole() -> None:
    pieces = list(speech._level(voice(30.0)))
    assert len(pieces) > 3
    whole = np.concatenate([*pieces, np.zeros(FRAME, np.float32)])
    theirs = np.asarray(vad.get_vad_model()(whole)).ravel()[:-1]
    assert np.abs(np.array(list(probabilities(pieces))) - theirs).max() < 1e-5


@pytest.mark.parametrize("seed", range(150))
def test_stretches_are_those_of_faster_whisper(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    chance = random.Random(seed)
    stays = chance.choice([0.3, 0.9, 0.97, 0.995])
    probability, given = 0.9, []
    for _ in range(chance.randint(1, 4000)):
        if chance.random() > stays:
            probability = chance.choice([0.1, 0.34, 0.35, 0.4, 0.5, 0.6, 0.9])
        given.append(probability)
    length = len(given) * FRAME - 1
    monkeypatch.setattr(vad, "get_vad_model", lambda: lambda audio: given)
    theirs = vad.get_speech_timestamps(np.zeros(length, np.float32), OPTIONS, RATE)
    monkeypatch.setattr(speech, "AROUND", 0)
    ours = [(span.start, span.end) for span in speech._spans(stretches(given), length)]
    assert ours == [(span["start"], span["end"]) for span in theirs]


def test_a_clip_is_looked_at_once_whatever_is_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    session, looked = vad.get_vad_model().session, []

    class Counting:
        def run(self, names: None, given: dict[str, np.ndarray]) -> object:
            looked.append(len(given["input"]))
            return session.run(names, given)

    monkeypatch.setattr(vad.get_vad_model(), "session", Counting())
    noise = as_16_bit(0.01 * np.random.default_rng(0).standard_normal(20 * RATE))
    assert detect(noise) == ()
    assert sum(looked) == -(-len(noise) // FRAME) + 2 * AROUND // FRAME
    looked.clear()
    assert detect(silence(20.0)) == ()
    assert looked == []


@pytest.mark.process
def test_twenty_minutes_take_hardly_more_memory_than_ten_seconds() -> None:
    program = (
        "import numpy as np, resource\n"
        "from stt_cascade.audio.speech import detect\n"
        "most = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024\n"
        "clip = np.random.default_rng(0).standard_normal(16_000 * 1200, np.float32)\n"
        "detect(clip[:160_000]); before = most(); detect(clip); print(most() - before)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 24  # MiB
