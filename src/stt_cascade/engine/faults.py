"""What is wrong with a text, as far as that shows without knowing what was said.

A decoder says how sure it is of what it wrote, never whether that is all that was said. But speech
detection knows for how long somebody speaks, timestamps say where the text lies, and a loop, a
repeated prompt and a broken character can be recognised in the text itself.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from stt_cascade.engine.protocol import SAMPLE_RATE, Span

#   broken    it breaks off at the limit of tokens, or within a character
#   loop      it repeats itself, as a decoder in a loop does (or a speaker)
#   prompt    it is part of the caller's prompt
#   coverage  it is too short for the speech, or leaves a stretch of it out
#   excess    it is longer than anybody could say in that time
Fault = Literal["broken", "loop", "prompt", "coverage", "excess"]

# Letters a second that the slowest speaker says, over stretches of speech as they are detected:
# docs/engine.md, "Coverage".
MIN_LETTERS_PER_SECOND = 4.0
# And the fastest one.
MAX_LETTERS_PER_SECOND = 30.0
# Detection adds up to 0.4 s before and after a stretch, and people hesitate.
SLACK_SECONDS = 1.5
PADDING_SECONDS = 0.8
# A longer turn, such as a sentence, may have pauses of its own.
SHORT_TURN_LETTERS = 12
# One of these stands for a syllable or more: Han, Hangul, a digit, a letter that is spelled.
_SYLLABLE = re.compile(
    r"[\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\U00020000-\U0003ffff]"
    r"|\d|\b[^\W\d_]\b"
)
_SYLLABLE_LETTERS = 3
# And one of these for a short syllable.
_KANA = re.compile("[\u3040-\u30ff]")
# Something that comes at least four times in a row.
_RUN = re.compile(r"(.{1,40}?)\1{3,}")
# Nobody repeats a prompt of fewer letters by accident of the model's.
MIN_ECHO_LETTERS = 12


@dataclass(frozen=True, slots=True)
class Piece:
    """Part of a window's text. Times in seconds from the window's start."""

    start: float
    end: float
    tokens: list[int]
    text: str


def letters(text: str) -> int:
    """How much is said in a text, in letters of an alphabet."""
    signs = sum(unicodedata.category(char)[0] in "LMN" for char in text)
    return signs + (_SYLLABLE_LETTERS - 1) * len(_SYLLABLE.findall(text)) + len(_KANA.findall(text))


def covers(pieces: Sequence[Piece], speech: Sequence[Span]) -> bool:
    """Whether no stretch of speech is left out, and no piece of text is too short for its speech.

    Args:
        pieces: in order.
        speech: stretches in samples from the window's start.
    """
    stretches = [(span.start / SAMPLE_RATE, span.end / SAMPLE_RATE) for span in speech]
    for start, end in stretches:
        with_text = sum(_overlap(start, end, piece.start, piece.end) for piece in pieces)
        if end - start - with_text > SLACK_SECONDS:
            return False
    for piece in pieces:
        overlaps = (_overlap(start, end, piece.start, piece.end) for start, end in stretches)
        spoken = sum(max(0.0, overlap - PADDING_SECONDS) for overlap in overlaps)
        slack = SLACK_SECONDS - PADDING_SECONDS
        if letters(piece.text) < MIN_LETTERS_PER_SECOND * (spoken - slack):
            return False
    return True


def exceeds(pieces: Sequence[Piece], speech: Sequence[Span]) -> bool:
    """Whether there is more text than anybody could say in so much speech."""
    said = sum(letters(piece.text) for piece in pieces)
    return said > MAX_LETTERS_PER_SECOND * sum(span.seconds for span in speech)


def repetitions(text: str) -> tuple[int, ...]:
    """How often something comes in each run of at least four: the letters count, not the marks."""
    return tuple(len(run.group()) // len(run.group(1)) for run in _RUN.finditer(_plain(text)))


def turns(text: str) -> int:
    """How often the text says the same, if it says nothing else; 1: it does not repeat itself."""
    plain = _plain(text)
    # A text that is made of turns is found in itself again, one turn later.
    turn = (plain + plain).find(plain, 1) if plain else 1
    return len(plain) // turn if plain else 1


def miscounts(text: str, speech: Sequence[Span]) -> bool:
    """Whether a text repeats one thing, and not as often as somebody speaks."""
    said = turns(text)
    short = letters(text) <= SHORT_TURN_LETTERS * said
    return said > 1 and short and len(speech) > 1 and said % len(speech) != 0


def echoes(text: str, prompt: str) -> bool:
    """Whether a text may be the prompt, or part of it, instead of what was said."""
    plain = _plain(text)
    # The text may begin anywhere in a sentence that the prompt repeats.
    return len(plain) >= MIN_ECHO_LETTERS and plain in 2 * _plain(prompt)


def same(text: str, other: str) -> bool:
    """Whether two texts have the same letters."""
    return _plain(text) == _plain(other)


def _plain(text: str) -> str:
    return "".join(filter(str.isalnum, text)).casefold()


def _overlap(start: float, end: float, other_start: float, other_end: float) -> float:
    return max(0.0, min(end, other_end) - max(start, other_start))
