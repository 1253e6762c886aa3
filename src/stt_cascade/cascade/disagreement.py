"""How much two texts of one clip differ, for want of a reference that would say who is right."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

from stt_cascade.engine.languages import UNSPACED

# Some twenty minutes of speech, compared in half a second. What is beyond is not looked at: not of
# a long clip, and not of what something that is no fallback may send.
MAX_CHARACTERS = 20_000
# They stand within words, which do not fall apart without them.
_APOSTROPHES = "'\u2019\u02bc"


def disagreement(one: str, other: str) -> float:
    """Word edits from one text to the other, by the words of the longer one: 0 to 1.

    Upper case and punctuation do not count. In scripts without spaces a character is a word.
    """
    ours, theirs = words(one), words(other)
    return edits(ours, theirs) / max(len(ours), len(theirs), 1)


def words(text: str) -> list[str]:
    """The words of a text, as far as it is looked at, in one spelling."""
    folded = unicodedata.normalize("NFKC", text[:MAX_CHARACTERS]).casefold()
    # A single character may stand for eighteen.
    letters = "".join(_letter(character) for character in folded[:MAX_CHARACTERS])
    return UNSPACED.sub(r" \g<0> ", letters).split()


def _letter(character: str) -> str:
    # Letters, marks on them, and digits.
    if character in _APOSTROPHES:
        return ""
    return character if unicodedata.category(character)[0] in "LMN" else " "


def edits(one: Sequence[str], other: Sequence[str]) -> int:
    """Fewest words to replace, insert and delete to get from one to the other.

    Myers' bit vectors (J. ACM 46, 1999) in Hyyrö's form: a bit for each word of `one`, so that a
    row of the table is worked out by a few operations on whole numbers, however long it is.
    """
    if not one:
        return len(other)
    places: dict[str, int] = {}
    for place, word in enumerate(one):
        places[word] = places.get(word, 0) | 1 << place
    everywhere, last = (1 << len(one)) - 1, 1 << (len(one) - 1)
    # Where the distance grows, and where it shrinks, from one word of `one` to the next.
    grows, shrinks = everywhere, 0
    distance = len(one)
    for word in other:
        equal = places.get(word, 0)
        diagonal = (((equal & grows) + grows) ^ grows) | equal | shrinks
        more = shrinks | everywhere & ~(diagonal | grows)
        fewer = grows & diagonal
        distance += bool(more & last) - bool(fewer & last)
        more, fewer = more << 1 | 1, fewer << 1
        grows = (fewer | ~(diagonal | more)) & everywhere
        shrinks = more & diagonal & everywhere
    return distance
