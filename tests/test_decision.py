"""The decision: a pure function of scores and thresholds."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from running import primary_config
from stt_cascade.cascade.confidence import Scores, count_words
from stt_cascade.cascade.decision import (
    GATES,
    Accept,
    Escalate,
    Opinion,
    Policy,
    decide,
    pick,
)

POLICY = Policy(logprob=0.55, langprob=0.70, words=3, weakest=0.25)
SURE = Scores(logprob=0.9, weakest=0.8, words=9, language_probability=0.98)

ratio = st.floats(0, 1)
scores = st.builds(
    Scores,
    logprob=ratio,
    weakest=ratio,
    words=st.integers(0, 20),
    language_probability=st.none() | ratio,
)
policies = st.builds(Policy, logprob=ratio, langprob=ratio, words=st.integers(0, 20), weakest=ratio)


def gates(decision: Accept | Escalate) -> tuple[str, ...]:
    return decision.gates if isinstance(decision, Escalate) else ()


def test_a_sure_text_is_accepted() -> None:
    assert decide(SURE, POLICY) == Accept()


@pytest.mark.parametrize(
    ("gate", "doubt"),
    [
        ("logprob", {"logprob": 0.54}),
        ("langprob", {"language_probability": 0.69}),
        ("words", {"words": 2}),
        ("weakest", {"weakest": 0.24}),
        ("coverage", {"covered": False}),
        ("loop", {"looped": True}),
    ],
)
def test_each_gate_fails_alone(gate: str, doubt: dict[str, object]) -> None:
    assert gates(decide(dataclasses.replace(SURE, **doubt), POLICY)) == (gate,)  # type: ignore[arg-type]


def test_the_thresholds_themselves_are_enough() -> None:
    at = Scores(logprob=0.55, weakest=0.25, words=3, language_probability=0.70)
    assert decide(at, POLICY) == Accept()


def test_a_language_that_was_given_is_not_checked() -> None:
    given_language = dataclasses.replace(SURE, language_probability=None)
    assert decide(given_language, dataclasses.replace(POLICY, langprob=1.0)) == Accept()


def test_thresholds_of_zero_accept_everything() -> None:
    nothing = Scores(logprob=0.0, weakest=0.0, words=0, language_probability=0.0)
    assert decide(nothing, Policy(logprob=0, langprob=0, words=0, weakest=0)) == Accept()


@given(scores, policies)
def test_a_decision_lists_exactly_the_scores_below_their_thresholds_in_order(
    scores: Scores, policy: Policy
) -> None:
    failed = gates(decide(scores, policy))
    assert failed == tuple(gate for gate in GATES if gate in failed)
    assert ("logprob" in failed) == (scores.logprob < policy.logprob)
    assert ("words" in failed) == (scores.words < policy.words)
    assert ("weakest" in failed) == (scores.weakest < policy.weakest)
    if scores.language_probability is not None:
        assert ("langprob" in failed) == (scores.language_probability < policy.langprob)
    else:
        assert "langprob" not in failed


@given(scores, policies)
def test_an_escalation_always_names_a_gate(scores: Scores, policy: Policy) -> None:
    decision = decide(scores, policy)
    assert isinstance(decision, Accept) or decision.gates


opinions = st.builds(
    Opinion,
    language=st.sampled_from([None, "en", "de"]),
    weakest=st.none() | ratio,
    words=st.integers(0, 6),
    suspect=st.booleans(),
)


@given(opinions, opinions)
def test_the_primarys_text_is_picked_only_if_it_is_known_to_be_stronger(
    ours: Opinion, theirs: Opinion
) -> None:
    known = ours.weakest is not None and theirs.weakest is not None
    stronger = known and ours.weakest > theirs.weakest  # type: ignore[operator]
    same = ours.language == theirs.language
    as_long = 0 < max(ours.words, theirs.words) <= 2 * min(ours.words, theirs.words)
    trusted = stronger and not ours.suspect
    expected = "primary" if trusted and same and as_long else "fallback"
    assert pick(ours, theirs) == expected


@given(opinions)
def test_of_two_equal_texts_the_fallbacks_is_picked(opinion: Opinion) -> None:
    assert pick(opinion, opinion) == "fallback"


@pytest.mark.parametrize("text", ["", " ", "...", "?!"])
def test_a_text_without_a_word_is_no_match_for_another_one(text: str) -> None:
    """The engine calls it certain, since none of its tokens is weak."""
    assert pick(Opinion.of(text, "en", 1.0), Opinion.of("", "en", 0.1)) == "fallback"
    assert pick(Opinion.of(text, "en", 1.0), Opinion.of("a word", "en", 0.1)) == "fallback"


def test_scores_are_compared_as_answers_show_them() -> None:
    assert pick(Opinion.of("a", "en", 0.70004), Opinion.of("a", "en", 0.7)) == "fallback"
    assert pick(Opinion.of("a", "en", 0.70006), Opinion.of("a", "en", 0.7)) == "primary"


def test_the_policy_is_what_the_settings_say() -> None:
    config = primary_config(
        fallback_url="http://f",
        conf_logprob_threshold=0.1,
        conf_langprob_threshold=0.2,
        min_words_for_conf=3,
        conf_weakest_threshold=0.4,
    )
    assert Policy.of(config) == Policy(logprob=0.1, langprob=0.2, words=3, weakest=0.4)


def test_the_specifications_thresholds_are_the_defaults() -> None:
    policy = Policy.of(primary_config(fallback_url="http://f"))
    assert policy == Policy(logprob=0.55, langprob=0.70, words=3, weakest=0)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", 0),
        ("  ", 0),
        ("Hello, world!", 2),
        ("... — ?!", 0),
        ("don't stop - 42 times", 4),
        ("Größe über alles", 3),
        ("Привет, как дела?", 3),
        ("안녕하세요 여러분", 2),
        ("مرحبا بالعالم", 2),
        ("नमस्ते दुनिया", 2),
        ("東京", 1),
        ("東京都", 2),
        ("今日はいい天気です。", 5),
        ("สวัสดีครับ", 5),
        ("iPhone を買う", 1 + 2),
        ("你好 world", 2),
    ],
)
def test_words_are_counted_as_the_script_writes_them(text: str, words: int) -> None:
    assert count_words(text) == words


@given(st.lists(st.from_regex(r"[a-z]+", fullmatch=True)))
def test_spaced_words_are_counted_one_by_one(words: list[str]) -> None:
    assert count_words(" ".join(words)) == len(words)
