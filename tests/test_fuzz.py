"""Mutated files: a short form of `make fuzz`, and that it would notice what it looks for."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

import fuzz
from fakes import FakeEngine, Reply, ScriptedFallback
from mutations import MUTATIONS, Source, mutant, sources, with_checksums
from running import Tiers
from tones import encoded, wav

SEED = 20_261
COUNT = 400


@pytest.fixture(scope="module")
def originals() -> list[Source]:
    return sources()


@pytest.mark.process
def test_mutated_files_are_heard_or_refused_by_a_process_that_goes_on(
    tmp_path: Path, originals: list[Source]
) -> None:
    log = tmp_path / "tier.log"
    with fuzz.tier(log) as (url, process):
        report = fuzz.fuzz(url, process.pid, SEED, range(COUNT), originals, tmp_path)
        assert process.poll() is None
    assert report.failures == []
    assert report.answers.total() == COUNT
    # Most mutants must be nearly right, or only the first check of the decoder is tried.
    assert COUNT / 4 < report.answers["200"] < COUNT
    events = [event["message"] for event in fuzz.events(log)]
    assert events.count("request") >= COUNT
    assert events.count(fuzz.UNEXPECTED) == 0


def test_an_answer_that_must_not_be_is_reported_and_its_file_kept(
    tiers: Tiers, tmp_path: Path
) -> None:
    broken = tiers.fallback(FakeEngine(raises=RuntimeError("broken")))
    clip = Source("wav", wav())
    numbers = [n for n in range(30) if mutant(SEED, n, [clip]).name.count("+") == 1]
    report = fuzz.fuzz(broken.url, os.getpid(), SEED, numbers, [clip], tmp_path)
    failures = [each for each in report.failures if "answered 500" in each]
    assert len(failures) == sum(n for a, n in report.answers.items() if a.startswith("500")) > 0
    for failure in failures:
        kept = Path(failure.rpartition("see ")[2])
        number = int(kept.name.partition("-")[2])
        assert kept.read_bytes() == mutant(SEED, number, [clip]).data


def test_a_service_that_has_gone_is_reported(nobody: str, tmp_path: Path) -> None:
    report = fuzz.fuzz(nobody, os.getpid(), SEED, [0], [Source("wav", wav())], tmp_path)
    assert "no answer" in report.failures[0]
    assert "does not work afterwards" in report.failures[1]


def test_an_answer_that_does_not_come_is_reported(
    scripted: Callable[..., ScriptedFallback], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fuzz, "HANGS_S", 0.2)
    mute = scripted(Reply(fault="silence"))
    report = fuzz.fuzz(mute.url, os.getpid(), SEED, [0], [Source("wav", wav())], tmp_path)
    assert "ReadTimeout" in report.failures[0]


def test_a_service_that_grows_is_reported(
    tiers: Tiers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = fuzz.LOOKS
    # By a little more than may be, with peaks that say nothing.
    sizes = [
        step * 2 * fuzz.MAX_GROWTH_BYTES // (looks - fuzz.WARMING_LOOKS - 2)
        for step in range(looks)
    ]
    peaks = iter([size + (step % 3 == 1) * 2**30 for step, size in enumerate(sizes)])
    monkeypatch.setattr(fuzz, "resident", lambda pid: next(peaks))
    tier = tiers.fallback()
    clip = Source("wav", wav())
    report = fuzz.fuzz(tier.url, os.getpid(), SEED, range(looks), [clip], tmp_path)
    assert report.failures == [f"the tier grew by {report.growth_bytes >> 20} MiB"]


def test_peaks_are_no_growth() -> None:
    sizes = [100 + 400 * (step % 4 == 0) for step in range(fuzz.LOOKS)]
    assert fuzz.growth(sizes) == 0


def test_the_same_seed_makes_the_same_files(originals: list[Source]) -> None:
    first = [mutant(1, number, originals) for number in range(60)]
    assert [mutant(1, number, originals) for number in range(60)] == first
    assert [mutant(2, number, originals) for number in range(60)] != first


def test_every_mutation_of_every_source_comes_up(originals: list[Source]) -> None:
    seen = [mutant(SEED, number, originals).name.split("+") for number in range(COUNT)]
    assert {name.removesuffix(".g722") for names in seen for name in names} == {
        *(source.name for source in originals),
        *(mutation.__name__ for mutation in MUTATIONS),
    }


def test_a_forged_page_has_the_right_checksum() -> None:
    right = bytearray(encoded("ogg-opus"))
    wrong = bytearray(right)
    wrong[22:26] = b"\xff\xff\xff\xff"
    assert with_checksums(wrong) == right
