"""What is wrong with a text: too short for its speech, too long, a loop, the prompt."""

from __future__ import annotations

import pytest

from stt_cascade.engine.decoding import Form, cut_runs
from stt_cascade.engine.faults import (
    Fault,
    Piece,
    covers,
    echoes,
    exceeds,
    miscounts,
    repetitions,
    turns,
)
from stt_cascade.engine.languages import join_texts
from stt_cascade.engine.protocol import SAMPLE_RATE, Span
from stt_cascade.engine.whisper import other_forms
from stt_cascade.engine.windows import leading, until, within

SENTENCE = "the invention of movable metal letters in the middle of the century"


def span(start: float, end: float) -> Span:
    return Span(round(start * SAMPLE_RATE), round(end * SAMPLE_RATE))


def piece(start: float, end: float, text: str) -> Piece:
    return Piece(start, end, [], text)


@pytest.mark.parametrize(
    ("pieces", "speech", "covered"),
    [
        # A word and its sentence, each where somebody speaks.
        ([piece(0, 1, "Yes."), piece(2, 7, SENTENCE)], [span(0, 1.2), span(1.6, 7)], True),
        # The word alone, said to last for all of it.
        ([piece(0, 7, "Yes.")], [span(0, 1.2), span(1.6, 7)], False),
        # The word where it was said, and nothing where the sentence was.
        ([piece(0, 1, "Yes.")], [span(0, 1.2), span(1.6, 7)], False),
        # The second of two sentences.
        ([piece(0, 5, SENTENCE)], [span(0, 5), span(6, 11)], False),
        # The first.
        ([piece(6, 11, SENTENCE)], [span(0, 5), span(6, 11)], False),
        # A timestamp that is a second early, and one word's worth of padding.
        ([piece(0, 5, SENTENCE)], [span(0, 6)], True),
        ([piece(0, 1.2, "Yes.")], [span(0, 1.2)], True),
        ([], [span(0, 1.2)], True),
        ([], [span(0, 3)], False),
        ([], [], True),
        # One short word in each of many stretches, which are mostly padding.
        (
            [piece(0, 8, "Stop stop stop stop stop stop")],
            [span(2 * n, 2 * n + 1.3) for n in range(6)],
            True,
        ),
        # Spelled letters and digits are words, slow as they come.
        ([piece(0, 7, "M I S D N 7 0 1")], [span(0, 7)], True),
        # So much is said in a few signs of these scripts.
        ([piece(0, 5, "活字の発明は世紀の半ばに")], [span(0, 5)], True),
        ([piece(0, 5, "안녕하세요 반갑습니다")], [span(0, 5)], True),
        ([piece(0, 5, "はい")], [span(0, 5)], False),
    ],
)
def test_a_text_must_account_for_the_speech(
    pieces: list[Piece], speech: list[Span], covered: bool
) -> None:
    assert covers(pieces, speech) is covered


def test_nobody_says_so_much_in_a_second() -> None:
    assert not exceeds([piece(0, 1, "a quick word")], [span(0, 1)])
    assert exceeds([piece(0, 1, SENTENCE)], [span(0, 1)])
    assert exceeds([piece(0, 1, "x")], [])


@pytest.mark.parametrize(
    ("text", "counts"),
    [
        ("Stop. Stop, stop! STOP stop stop", (6,)),
        ("no no no", ()),
        ("Hahahahaha, that is funny", (5,)),
        ("one two. One, two. one two one two and on", (4,)),
        ("はいはいはいはい", (4,)),
        ("", ()),
    ],
)
def test_repetitions_are_counted_by_their_letters(text: str, counts: tuple[int, ...]) -> None:
    assert repetitions(text) == counts


@pytest.mark.parametrize(
    ("text", "prompt", "echoed"),
    [
        (SENTENCE, f"{SENTENCE}.", True),
        ("metal letters in the middle", SENTENCE, True),
        ("middle of the century. The invention of movable", SENTENCE, True),
        ("something else is said here", SENTENCE, False),
        ("metal", SENTENCE, False),  # a word that the prompt is there for
        ("", SENTENCE, False),
    ],
)
def test_a_text_that_is_in_the_prompt_may_be_the_prompt(
    text: str, prompt: str, echoed: bool
) -> None:
    assert echoes(text, prompt) is echoed


@pytest.mark.parametrize("fault", ["broken", "loop", "prompt", "coverage", "excess"])
@pytest.mark.parametrize("patient", [True, False])
@pytest.mark.parametrize("form", [Form(1, False), Form(5, False), Form(5, True, prompt=False)])
def test_nothing_is_decoded_twice_in_the_same_form(fault: Fault, patient: bool, form: Form) -> None:
    forms = other_forms(fault, form, timed=False, patient=patient)
    assert form not in forms
    assert len(set(forms)) == len(forms)
    assert patient or len(forms) <= 1
    assert not any(other.prompt for other in forms)


def test_of_a_loop_eight_turns_are_left() -> None:
    assert cut_runs([1, *[7, 8] * 20, 2]) == [1, *[7, 8] * 8, 2]
    assert cut_runs([7] * 9) == [7] * 8
    assert cut_runs([7] * 8) == [7] * 8
    assert cut_runs(list(range(50))) == list(range(50))


@pytest.mark.parametrize(
    ("texts", "joined"),
    [
        (["One.", "Two."], "One. Two."),
        (["今日は。", "明日も。"], "今日は。明日も。"),
        (["今日は", "OK", "です"], "今日はOKです"),
        (["안녕하세요.", "반갑습니다."], "안녕하세요. 반갑습니다."),
        (["สวัสดี", "ครับ"], "สวัสดี ครับ"),
        (["", "One.", "", "Two."], "One. Two."),
        ([], ""),
    ],
)
def test_pieces_are_joined_as_their_script_is_written(texts: list[str], joined: str) -> None:
    assert join_texts(texts) == joined


def test_speech_is_seen_from_where_a_window_begins() -> None:
    speech = (span(1, 2), span(3, 5), span(8, 9))
    assert within(speech, span(2.5, 8.5)) == (span(0.5, 2.5), span(5.5, 6))
    assert until(speech, 4) == (span(1, 2), span(3, 4))
    assert until(speech, None) == speech


def test_a_window_with_enough_speech_tells_the_language() -> None:
    assert leading([span(0, 1), span(5, 11), span(20, 29)]) == 1
    assert leading([span(0, 8), span(20, 29)]) == 0
    assert leading([span(0, 1), span(5, 7), span(20, 21)]) == 1


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Stop. Stop, stop!", 3),
        ("repeat", 1),
        ("no no yes no no yes", 2),
        ("one two three", 1),
        ("ああ", 2),
        ("...", 1),
        ("", 1),
    ],
)
def test_a_text_that_says_one_thing_tells_how_often(text: str, said: int) -> None:
    assert turns(text) == said


def test_a_repetition_must_fit_the_stretches_of_speech() -> None:
    three = [span(0, 1), span(2, 3), span(4, 5)]
    assert miscounts("stop stop", three)
    assert not miscounts("stop stop stop", three)
    assert not miscounts("stop stop stop, stop stop stop", three)
    assert not miscounts("stop stop", three[:1])
    assert not miscounts("this is a sentence", three)
    # A sentence said twice may have a pause in it.
    assert not miscounts(f"{SENTENCE} {SENTENCE}", three)
