"""Both real tiers, as `configs/cpu` sets them up, on real speech over real sockets."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jiwer
import pytest
from whisper_normalizer.basic import BasicTextNormalizer

from conftest import ROOT, Utterance, model
from running import RunningTier, Tiers, running_tiers
from stt_cascade.config import FallbackConfig, PrimaryConfig
from stt_cascade.config_file import load
from tones import silence, wav

pytestmark = [pytest.mark.process, pytest.mark.weights]

# Words that base gets wrong in these clips, at most, of 1.
EASY = {
    "LJ001-0001": 0.1,
    "LJ001-0007": 0.2,
    "fleurs-es-006": 0.25,
    "fleurs-fr-008": 0.45,
    "fleurs-de-004": 0.25,
}
# Of a driver's name base makes nothing that sounds like it.
DOUBTFUL = "fleurs-pt-002"


@pytest.fixture(scope="module")
def tiers() -> Iterator[Tiers]:
    with running_tiers() as tiers:
        yield tiers


@pytest.fixture(scope="module")
def fallback(tiers: Tiers) -> RunningTier:
    config = load(FallbackConfig, ROOT / "configs/cpu/stt_fallback.env")
    return tiers.run_real(config.model_copy(update={"model_path": model("base")}))


@pytest.fixture(scope="module")
def primary(tiers: Tiers, fallback: RunningTier) -> RunningTier:
    config = load(PrimaryConfig, ROOT / "configs/cpu/stt_primary.env")
    real = {"model_path": model("base"), "fallback_url": fallback.url}
    return tiers.run_real(config.model_copy(update=real))


def ask(tier: RunningTier, utterance: Utterance, **fields: str) -> dict[str, Any]:
    answer = tier.transcribe(utterance.audio, **fields)  # type: ignore[arg-type]
    assert answer.status_code == 200, answer.text
    json: dict[str, Any] = answer.json()
    return json


def word_errors(utterance: Utterance, text: str) -> float:
    normal = BasicTextNormalizer()
    return float(jiwer.wer(normal(utterance.text), normal(text)))


@pytest.mark.parametrize("name", EASY)
def test_speech_in_each_language_is_answered_with_about_the_right_words(
    primary: RunningTier, speech: dict[str, Utterance], name: str
) -> None:
    utterance = speech[name]
    answer = ask(primary, utterance)
    assert answer["language"] == utterance.language
    assert word_errors(utterance, answer["text"]) <= EASY[name]
    assert answer["model"] == "base"
    assert 0 < answer["speech_duration"] <= answer["duration"]
    assert 0 < answer["confidence"]["weakest"] <= answer["confidence"]["logprob"] <= 1


def test_a_doubtful_text_is_given_a_second_opinion(
    primary: RunningTier, fallback: RunningTier, speech: dict[str, Utterance]
) -> None:
    asked = fallback.get("/v1/metrics").json()["counts"]["answered"]
    answer = ask(primary, speech[DOUBTFUL])
    assert answer["routing"]["tier"] == "fallback"
    assert answer["routing"]["reason"] == "low_confidence"
    assert "weakest" in answer["routing"]["below"]
    assert fallback.get("/v1/metrics").json()["counts"]["answered"] == asked + 1
    assert answer["timings_ms"]["fallback_infer"] > 0
    assert answer["timings_ms"]["primary_infer"] > 0
    assert answer["text"] == ask(fallback, speech[DOUBTFUL])["text"]


@pytest.mark.parametrize("name", ["hiss_10s", "rain"])
def test_no_words_are_invented_where_nobody_speaks(
    primary: RunningTier, speech: dict[str, Utterance], name: str
) -> None:
    answer = ask(primary, speech[name])
    assert (answer["text"], answer["routing"]["reason"]) == ("", "no_speech")
    assert answer["speech_duration"] == 0


def test_digital_silence_is_no_speech(primary: RunningTier) -> None:
    assert primary.transcribe(wav(silence(3))).json()["routing"]["reason"] == "no_speech"


def test_word_times_come_through_the_whole_service(
    primary: RunningTier, speech: dict[str, Utterance]
) -> None:
    answer = ask(primary, speech["LJ001-0007"], timestamps="word", language="en")
    words = [word for segment in answer["segments"] for word in segment["words"]]
    assert [word["word"].strip() for word in words] == answer["text"].split()
    edges = [time for word in words for time in (word["start"], word["end"])]
    assert edges == sorted(edges)
    assert 0 <= edges[0] < edges[-1] <= answer["duration"]


def test_every_answered_request_was_decided_once(primary: RunningTier) -> None:
    primary.transcribe(wav(silence(1)))
    answered = primary.get("/v1/metrics").json()["counts"]["answered"]
    decided = sum(
        primary.metric("stt_fallback_total", result=result)
        for result in ("used", "skipped", "failed")
    )
    assert decided == answered > 0
    assert primary.metric("stt_fallback_total", result="failed") == 0
