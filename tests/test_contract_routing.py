"""When the primary's own text is the answer, and when the fallback's is."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

import pytest

from fakes import PATIENCE, FakeEngine, ScriptedFallback
from running import RunningTier, Tiers
from stt_cascade.admission.deadline import Deadline
from stt_cascade.engine.protocol import Options
from stt_cascade.errors import DeadlineExceeded
from stt_cascade.record import Record
from stt_cascade.upload import Upload
from tones import silence, wav


def results(tier: RunningTier) -> dict[str, float]:
    return {
        result: tier.metric("stt_fallback_total", result=result)
        for result in ("used", "skipped", "failed")
    }


def test_a_sure_text_is_the_answer(tiers: Tiers) -> None:
    primary, fallback = tiers.cascade(FakeEngine("a sure text"))
    answer = primary.transcribe().json()
    assert answer["text"] == "a sure text"
    assert answer["routing"] == {
        "tier": "primary",
        "fallback_used": False,
        "reason": "accepted",
        "below": [],
        "degraded": False,
    }
    assert fallback.fake.heard == []
    assert results(primary) == {"used": 0, "skipped": 1, "failed": 0}


@pytest.mark.parametrize(
    ("gate", "doubtful"),
    [
        ("logprob", FakeEngine(logprob=0.54)),
        ("langprob", FakeEngine(language_probability=0.69)),
        ("words", FakeEngine("two words")),
        ("weakest", FakeEngine(weakest=0.24)),
        ("coverage", FakeEngine(covered=False)),
        ("loop", FakeEngine(looped=True)),
    ],
)
def test_each_gate_alone_escalates(tiers: Tiers, gate: str, doubtful: FakeEngine) -> None:
    primary, fallback = tiers.cascade(doubtful, conf_weakest_threshold=0.25)
    answer = primary.transcribe()
    assert answer.status_code == 200
    assert answer.json()["text"] == "from the fallback"
    assert answer.json()["routing"] == {
        "tier": "fallback",
        "fallback_used": True,
        "reason": "low_confidence",
        "below": [gate],
        "degraded": False,
    }
    assert answer.headers["X-Conf-Below"] == gate
    assert len(fallback.fake.heard) == 1
    assert results(primary) == {"used": 1, "skipped": 0, "failed": 0}
    assert primary.metric("stt_conf_below_total", gate=gate) == 1
    assert primary.metric("stt_escalations_total", reason="low_confidence") == 1


@pytest.mark.parametrize(
    "sure",
    [
        FakeEngine(logprob=0.55),
        FakeEngine(language_probability=0.70),
        FakeEngine("three whole words"),
        FakeEngine(weakest=0.25),
    ],
)
def test_a_score_at_its_threshold_is_good_enough(tiers: Tiers, sure: FakeEngine) -> None:
    primary, _ = tiers.cascade(sure, conf_weakest_threshold=0.25)
    assert primary.transcribe().json()["routing"]["reason"] == "accepted"


def test_the_weakest_tokens_do_not_count_by_default(tiers: Tiers) -> None:
    primary, _ = tiers.cascade(FakeEngine(weakest=0.0))
    assert primary.transcribe().json()["routing"]["reason"] == "accepted"


def test_gates_that_fail_together_are_listed_in_order(tiers: Tiers) -> None:
    doubtful = FakeEngine("hm", logprob=0.1, language_probability=0.1, weakest=0.1)
    primary, _ = tiers.cascade(doubtful, conf_weakest_threshold=0.25)
    answer = primary.transcribe()
    assert answer.headers["X-Conf-Below"] == "logprob,langprob,words,weakest"
    assert answer.json()["routing"]["below"] == ["logprob", "langprob", "words", "weakest"]


def test_a_forced_language_turns_the_language_gate_off(tiers: Tiers) -> None:
    primary, fallback = tiers.cascade(FakeEngine(language_probability=0.01))
    answer = primary.transcribe(language="de")
    assert answer.json()["routing"]["reason"] == "accepted"
    assert answer.json()["language_probability"] is None
    assert answer.headers["X-Lang-Check-Applicable"] == "false"
    assert fallback.fake.heard == []


def test_scores_that_are_no_numbers_escalate(tiers: Tiers) -> None:
    primary, _ = tiers.cascade(FakeEngine(logprob=float("nan"), weakest=float("nan")))
    answer = primary.transcribe()
    assert answer.status_code == 200
    assert answer.json()["routing"]["reason"] == "primary_error"


def test_silence_is_an_empty_text_and_no_reason_to_escalate(tiers: Tiers) -> None:
    primary, fallback = tiers.cascade(FakeEngine(" Thank you.", logprob=0.1), vad=True)
    answer = primary.transcribe(wav(silence(2)))
    json = answer.json()
    assert answer.status_code == 200
    assert (json["text"], json["segments"], json["language"]) == ("", [], None)
    assert (json["duration"], json["speech_duration"]) == (2.0, 0.0)
    assert json["routing"]["reason"] == answer.headers["X-Route-Reason"] == "no_speech"
    assert answer.headers["X-Conf-Below"] == "none"
    assert primary.fake.heard == fallback.fake.heard == []
    assert results(primary) == {"used": 0, "skipped": 1, "failed": 0}
    assert primary.metric("stt_no_speech_total") == 1


def test_the_fallback_answers_silence_without_inference_too(tiers: Tiers) -> None:
    fallback = tiers.fallback(vad=True)
    answer = fallback.transcribe(wav(silence(2)))
    assert (answer.status_code, answer.json()["text"]) == (200, "")
    assert fallback.fake.heard == []


def test_an_error_of_the_primary_escalates(tiers: Tiers) -> None:
    primary, _ = tiers.cascade(FakeEngine(raises=RuntimeError("CUDA out of memory")))
    answer = primary.transcribe()
    assert answer.status_code == 200
    assert answer.json()["text"] == "from the fallback"
    assert answer.json()["routing"]["reason"] == "primary_error"
    assert answer.headers["X-Route-Reason"] == "primary_error"
    assert "X-Primary-Infer-ms" not in answer.headers
    assert results(primary) == {"used": 1, "skipped": 0, "failed": 0}
    assert primary.metric("stt_escalations_total", reason="primary_error") == 1


def test_a_full_queue_is_no_error_of_the_primary(tiers: Tiers) -> None:
    busy = FakeEngine(holds=threading.Event())
    primary, fallback = tiers.cascade(busy, max_concurrency=1, max_queue=0)
    first = primary.begin()
    busy.wait_for(1)
    answer = primary.transcribe()
    assert (answer.status_code, answer.json()["error"]["type"]) == (503, "overloaded")
    busy.let_go()
    assert first.result().status_code == 200
    assert fallback.fake.heard == []


def test_a_deadline_that_passes_is_no_error_of_the_primary(tiers: Tiers) -> None:
    primary, fallback = tiers.cascade(FakeEngine(holds=threading.Event()))
    answer = primary.transcribe(headers={"X-Deadline-Ms": "100"})
    assert (answer.status_code, answer.json()["error"]["type"]) == (504, "deadline_exceeded")
    assert fallback.fake.heard == []
    assert results(primary) == {"used": 0, "skipped": 0, "failed": 0}


@pytest.mark.parametrize("setting", ["error", "primary"])
def test_when_both_tiers_fail_the_answer_is_502_and_names_both(
    tiers: Tiers, nobody: str, setting: str
) -> None:
    broken = FakeEngine(raises=MemoryError("at 0x7f"))
    answer = tiers.primary(broken, fallback=nobody, on_fallback_failure=setting).transcribe()
    assert answer.status_code == 502
    message = answer.json()["error"]["message"]
    assert "primary failed (MemoryError)" in message
    assert "fallback" in message
    assert "0x7f" not in message


def test_a_doubtful_text_is_better_than_none_if_the_settings_say_so(
    tiers: Tiers, nobody: str
) -> None:
    primary = tiers.primary(FakeEngine("hm"), fallback=nobody, on_fallback_failure="primary")
    answer = primary.transcribe()
    assert answer.status_code == 200
    assert answer.json()["text"] == "hm"
    assert answer.json()["routing"] == {
        "tier": "primary",
        "fallback_used": False,
        "reason": "low_confidence",
        "below": ["words"],
        "degraded": True,
    }
    assert answer.headers["X-Fallback-Used"] == "false"
    assert "ConnectError" in answer.headers["X-Fallback-Error"]
    assert results(primary) == {"used": 0, "skipped": 0, "failed": 1}


@pytest.fixture
def english_only(tiers: Tiers) -> tuple[RunningTier, RunningTier]:
    return tiers.cascade(FakeEngine("plain english text", languages=frozenset({"en"})))


def test_an_english_primary_hands_another_language_over_without_inferring(
    english_only: tuple[RunningTier, RunningTier],
) -> None:
    primary, fallback = english_only
    answer = primary.transcribe(language="de")
    assert answer.json()["text"] == "from the fallback"
    assert answer.json()["language"] == "de"
    assert answer.json()["routing"]["reason"] == answer.headers["X-Route-Reason"] == "language"
    assert primary.fake.heard == []
    assert fallback.fake.heard[0][1].language == "de"
    assert primary.metric("stt_escalations_total", reason="language") == 1


@pytest.mark.parametrize("language", ["", "auto", "en"])
def test_an_english_primary_takes_an_unnamed_language_for_english(
    english_only: tuple[RunningTier, RunningTier], language: str
) -> None:
    primary, fallback = english_only
    answer = primary.transcribe(language=language)
    assert answer.json()["text"] == "plain english text"
    assert answer.json()["language"] == "en"
    assert answer.headers["X-Lang-Check-Applicable"] == "false"
    assert fallback.fake.heard == []


def test_no_text_in_another_language_comes_from_an_english_primary(
    tiers: Tiers, nobody: str
) -> None:
    engine = FakeEngine(languages=frozenset({"en"}))
    primary = tiers.primary(engine, fallback=nobody, on_fallback_failure="primary")
    assert primary.transcribe(language="de").status_code == 502
    assert engine.heard == []


def test_the_slot_is_free_while_the_fallback_works(tiers: Tiers) -> None:
    slow = FakeEngine("from the fallback", holds=threading.Event())
    primary, _ = tiers.cascade(FakeEngine("hm"), slow, max_concurrency=1, max_queue=0)
    escalated = primary.begin()
    slow.wait_for(1)

    primary.fake.text = "a sure text"
    meanwhile = primary.transcribe()

    assert meanwhile.json()["text"] == "a sure text"
    assert not escalated.done()
    slow.let_go()
    assert escalated.result().json()["text"] == "from the fallback"


def test_each_decided_request_counts_once_and_no_other_does(tiers: Tiers, nobody: str) -> None:
    primary = tiers.primary(fallback=nobody, max_audio_seconds=3)
    primary.transcribe()
    primary.fake.text = "hm"
    primary.transcribe()
    primary.transcribe(b"no audio")
    primary.transcribe(language="xx")
    primary.transcribe(wav(silence(4)))
    primary.get("/nowhere")
    primary.client.get("/v1/transcribe")

    assert results(primary) == {"used": 0, "skipped": 1, "failed": 1}


def test_a_deadline_that_passes_before_the_fallback_is_asked_is_no_failure_of_the_fallback(
    tiers: Tiers, scripted: Callable[..., ScriptedFallback]
) -> None:
    """No clock can be told to strike between two lines of code: this deadline is made up."""
    fallback = scripted()
    engine = FakeEngine(languages=frozenset({"en"}))
    primary = tiers.primary(engine, fallback=fallback)
    record = Record("r-1", "/v1/transcribe", "127.0.0.1")

    class PassesAfterDecoding(Deadline):
        @property
        def remaining(self) -> float:
            return PATIENCE if record.audio_seconds is None else 0.0

    upload = Upload(wav(), raw_g722=False, options=Options(language="de"))
    with pytest.raises(DeadlineExceeded, match="before the fallback"):
        asyncio.run(primary.service.tier.answer(upload, record, PassesAfterDecoding(0)))
    assert fallback.asked == []
    assert results(primary) == {"used": 0, "skipped": 0, "failed": 0}


def test_a_language_that_neither_model_knows_is_the_callers_mistake(tiers: Tiers) -> None:
    """No alert for failed fallbacks rings because somebody asks for Cantonese."""
    primary, _ = tiers.cascade()
    answer = primary.transcribe(language="yue")
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request"
    assert "'yue'" in answer.json()["error"]["message"]
    assert results(primary) == {"used": 0, "skipped": 0, "failed": 0}


def test_a_text_that_is_known_to_be_incomplete_says_so_everywhere(tiers: Tiers) -> None:
    engine = FakeEngine(covered=False, warnings=("text_incomplete",))
    primary, fallback = tiers.cascade(engine, on_fallback_failure="primary")
    fallback.fake.raises = RuntimeError("broken")
    answer = primary.transcribe().json()
    assert answer["warnings"] == [
        {
            "code": "text_incomplete",
            "message": "Part of the speech may be missing from the text.",
        }
    ]
    assert answer["segments"][0]["suspect"] is True
    assert primary.metric("stt_warnings_total", code="text_incomplete") == 1
    assert primary.metric("stt_warnings_total", code="text_cut") == 0


def test_the_warnings_of_an_answer_are_those_of_the_tier_whose_text_it_is(tiers: Tiers) -> None:
    primary, fallback = tiers.cascade(FakeEngine(looped=True, warnings=("prompt_ignored",)))
    fallback.fake.warnings = ("text_cut",)
    answer = primary.transcribe().json()
    assert [warning["code"] for warning in answer["warnings"]] == ["text_cut"]
    assert primary.metric("stt_warnings_total", code="text_cut") == 1
    assert primary.metric("stt_warnings_total", code="prompt_ignored") == 0
