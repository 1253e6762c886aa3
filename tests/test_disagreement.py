"""How much two texts of one clip differ."""

from __future__ import annotations

import jiwer
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stt_cascade.cascade.disagreement import MAX_CHARACTERS, disagreement, edits, words

texts = st.lists(st.sampled_from("abcd"), max_size=80)


@pytest.mark.parametrize(
    ("one", "other", "difference"),
    [
        ("", "", 0),
        ("...", "", 0),
        ("Don't stop!", "don\u2019t stop", 0),
        ("a b c d", "a b c d", 0),
        ("a b c d", "a x c d", 1 / 4),
        ("a b c d", "a c d", 1 / 4),
        ("a b c", "a b x c", 1 / 4),
        ("a b", "b a", 2 / 2),
        ("one two", "", 1),
        ("", "one two", 1),
        ("twenty-one, please", "Twenty One Please.", 0),
        ("Straße", "STRASSE", 0),
        ("\uff46ull\u3000width", "full width", 0),
        ("cafe\u0301", "café", 0),
        ("नमस्ते दुनिया", "नमस्ते, दुनिया!", 0),
        ("नमस्ते दुनिया", "नमस्ते दिल्ली", 1 / 2),
        ("今日はいい天気です。", "今日は良い天気です", 1 / 9),
        ("iPhone を買う", "iphoneを買った", 2 / 5),
    ],
)
def test_case_and_punctuation_do_not_count_and_words_do(
    one: str, other: str, difference: float
) -> None:
    assert disagreement(one, other) == pytest.approx(difference)
    assert disagreement(other, one) == pytest.approx(difference)


def test_words_are_whole_in_scripts_whose_vowels_are_marks() -> None:
    assert words("नमस्ते दुनिया") == ["नमस्ते", "दुनिया"]
    assert words("مَرْحَبًا بالعالم") == ["مَرْحَبًا", "بالعالم"]


@given(texts, texts)
def test_the_edits_are_as_few_as_another_implementation_finds(
    one: list[str], other: list[str]
) -> None:
    if not one:  # which it has no answer to
        assert edits(one, other) == len(other)
        return
    found = jiwer.process_words(" ".join(one), " ".join(other))
    assert edits(one, other) == found.substitutions + found.deletions + found.insertions


@given(st.text(), st.text())
def test_any_two_texts_differ_by_0_to_1_whichever_comes_first(one: str, other: str) -> None:
    assert 0 <= disagreement(one, other) == disagreement(other, one) <= 1
    assert disagreement(one, one) == 0


def test_of_an_endless_text_only_the_beginning_is_looked_at() -> None:
    """An answer of the fallback may have 16 MiB."""
    endless = "word " * (MAX_CHARACTERS // 5)
    assert disagreement(endless + "other " * 2_000_000, endless) == 0
    assert len(words("\ufdfa" * MAX_CHARACTERS)) < MAX_CHARACTERS
