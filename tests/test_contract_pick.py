"""`FINAL_PICK=best`: whose text answers a clip that the primary doubted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from fakes import FakeEngine, Reply, ScriptedFallback, answer_of_fallback, error
from running import RunningTier, Tiers

Scripted = Callable[..., ScriptedFallback]

ESCALATED = {"fallback_used": True, "reason": "low_confidence", "below": ["words"]}


def doubtful(**facts: Any) -> FakeEngine:
    """Hears two words, which are one too few."""
    return FakeEngine("ours, doubtful", **facts)


def scored(weakest: float | None, text: str = "from the fallback", **changes: Any) -> Reply:
    """An answer of the fallback, whose text has weakest tokens as strong as that."""
    confidence = {"logprob": 0.95, "weakest": weakest, "words": 3}
    return Reply(200, answer_of_fallback(text, confidence=confidence, **changes))


def picks(tier: RunningTier) -> dict[str, float]:
    return {
        author: tier.metric("stt_final_picks_total", tier=author)
        for author in ("primary", "fallback")
    }


def results(tier: RunningTier) -> dict[str, float]:
    return {
        result: tier.metric("stt_fallback_total", result=result)
        for result in ("used", "skipped", "failed")
    }


def test_the_primarys_text_is_the_answer_if_its_weakest_tokens_are_stronger(
    tiers: Tiers, scripted: Scripted
) -> None:
    segment = {"start": 0, "end": 1, "text": "x", "avg_logprob": -1, "no_speech_prob": 0}
    fallback = scripted(scored(0.7, language_probability=0.5, segments=[{**segment, "words": []}]))
    primary = tiers.primary(doubtful(weakest=0.71), fallback=fallback, final_pick="best")

    answer = primary.transcribe()

    json = answer.json()
    assert json["text"] == "ours, doubtful"
    assert json["model"] == answer.headers["X-Final-Model"] == "fake"
    assert (json["language"], json["language_probability"]) == ("en", 0.98)
    assert json["confidence"] == {"logprob": 0.9, "weakest": 0.71, "words": 2}
    assert [segment["text"] for segment in json["segments"]] == ["ours, doubtful"]
    assert json["routing"] == {"tier": "primary", **ESCALATED, "degraded": False}
    assert json["timings_ms"]["fallback_infer"] > 0
    assert answer.headers["X-Fallback-Used"] == "true"
    assert answer.headers["X-Route-Reason"] == "low_confidence"
    assert answer.headers["X-Conf-Below"] == "words"
    assert float(answer.headers["X-Fallback-Infer-ms"]) > 0
    assert "X-Fallback-Error" not in answer.headers
    assert picks(primary) == {"primary": 1, "fallback": 0}


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [(0.70, 0.71), (0.70, 0.70), (0.70004, 0.70)],
    ids=["stronger", "equal", "shown as equal"],
)
def test_the_fallbacks_text_is_the_answer_if_it_is_no_weaker(
    tiers: Tiers, scripted: Scripted, ours: float, theirs: float
) -> None:
    fallback = scripted(scored(theirs))
    primary = tiers.primary(doubtful(weakest=ours), fallback=fallback, final_pick="best")
    answer = primary.transcribe()
    assert answer.json()["text"] == "from the fallback"
    assert answer.json()["model"] == answer.headers["X-Final-Model"] == "big"
    assert answer.json()["confidence"]["weakest"] == theirs
    assert answer.json()["routing"] == {"tier": "fallback", **ESCALATED, "degraded": False}
    assert picks(primary) == {"primary": 0, "fallback": 1}


@pytest.mark.parametrize(
    "theirs",
    [
        scored(None),
        scored(0.1, language="de"),
        scored(0.1, text=""),
        scored(0.1, text=" ... "),
        scored(None, text="", language=None, speech_duration=0.0),
        scored(0.1, text="three whole words and then four more"),
        scored(0.1, text="words"),
    ],
    ids=["no score", "language", "no text", "no word", "no speech", "much more", "much less"],
)
def test_the_fallbacks_text_is_the_answer_where_the_scores_cannot_be_compared(
    tiers: Tiers, scripted: Scripted, theirs: Reply
) -> None:
    engine = FakeEngine("three whole words", weakest=1.0)
    primary = tiers.primary(
        engine, fallback=scripted(theirs), final_pick="best", min_words_for_conf=4
    )
    answer = primary.transcribe().json()
    assert isinstance(theirs.body, dict)
    assert (answer["text"], answer["language"]) == (theirs.body["text"], theirs.body["language"])
    assert answer["routing"]["tier"] == "fallback"
    assert picks(primary) == {"primary": 0, "fallback": 1}


@pytest.mark.parametrize("nothing", ["", "... ?!"])
def test_a_text_without_a_word_is_not_the_stronger_one_however_sure_the_primary_is(
    tiers: Tiers, scripted: Scripted, nothing: str
) -> None:
    """Without a text token nothing is weak: the engine calls it certain."""
    engine = FakeEngine(nothing, weakest=1.0)
    primary = tiers.primary(engine, fallback=scripted(scored(0.1)), final_pick="best")
    assert primary.transcribe().json()["text"] == "from the fallback"


def test_an_english_primary_is_not_picked_where_another_language_is_spoken(tiers: Tiers) -> None:
    """It takes all that it hears for English, and may be sure of what it makes of it."""
    english = doubtful(weakest=0.9, languages=frozenset({"en"}))
    german = FakeEngine("auf deutsch gesagt", language="de", weakest=0.4)
    primary, _ = tiers.cascade(english, german, final_pick="best")
    answer = primary.transcribe().json()
    assert (answer["text"], answer["language"]) == ("auf deutsch gesagt", "de")


@pytest.mark.parametrize(
    ("engine", "language", "reason"),
    [
        (FakeEngine(raises=RuntimeError()), "", "primary_error"),
        (FakeEngine(languages=frozenset({"en"})), "de", "language"),
    ],
)
def test_where_the_primary_has_no_text_there_is_nothing_to_pick_from(
    tiers: Tiers, engine: FakeEngine, language: str, reason: str
) -> None:
    weak = FakeEngine("from the fallback", weakest=0.0)
    primary, _ = tiers.cascade(engine, weak, final_pick="best")
    answer = primary.transcribe(language=language).json()
    assert answer["text"] == "from the fallback"
    assert (answer["routing"]["tier"], answer["routing"]["reason"]) == ("fallback", reason)
    assert picks(primary) == {"primary": 0, "fallback": 0}


@pytest.mark.parametrize("setting", ["error", "primary"])
def test_a_fallback_that_fails_is_no_pick(tiers: Tiers, nobody: str, setting: str) -> None:
    primary = tiers.primary(
        doubtful(), fallback=nobody, final_pick="best", on_fallback_failure=setting
    )
    answer = primary.transcribe()
    if setting == "error":
        assert answer.status_code == 502
    else:
        assert answer.json()["routing"]["degraded"] is True
    assert answer.headers["X-Fallback-Used"] == "false"
    assert picks(primary) == {"primary": 0, "fallback": 0}
    assert results(primary) == {"used": 0, "skipped": 0, "failed": 1}


def test_by_default_the_fallbacks_text_is_the_answer_however_weak_it_is(
    tiers: Tiers, scripted: Scripted
) -> None:
    primary = tiers.primary(doubtful(weakest=1.0), fallback=scripted(scored(0.0)))
    assert primary.transcribe().json()["routing"]["tier"] == "fallback"
    assert picks(primary) == {"primary": 0, "fallback": 0}


@pytest.mark.parametrize("pick", ["fallback", "best"])
def test_the_pick_changes_no_count_of_decided_requests(
    tiers: Tiers, scripted: Scripted, pick: str
) -> None:
    """What the fallback costs is the same, whosever text it is in the end."""
    fallback = scripted(scored(0.6), scored(0.9), error(500, "internal"), scored(0.6))
    primary = tiers.primary(
        doubtful(weakest=0.8),
        fallback=fallback,
        final_pick=pick,
        on_fallback_failure="primary",
    )
    answers = [primary.transcribe() for _ in range(4)]
    primary.fake.text = "now a sure text"
    answers.append(primary.transcribe())

    tiers_seen = [answer.json()["routing"]["tier"] for answer in answers]
    if pick == "best":
        assert tiers_seen == ["primary", "fallback", "primary", "primary", "primary"]
    used = [answer.headers["X-Fallback-Used"] for answer in answers]
    assert used == ["true", "true", "false", "true", "false"]
    assert results(primary) == {"used": 3, "skipped": 1, "failed": 1}
    counts = primary.get("/v1/metrics").json()["counts"]
    assert counts["answered"] == 5
    assert counts["fallback_used"] == 3
    assert primary.metric("stt_escalations_total", reason="low_confidence") == 4
