"""The languages that Whisper has, and how their texts are written."""

import re
from collections.abc import Iterable

from faster_whisper.tokenizer import _LANGUAGE_CODES

# Not every model knows all of them.
LANGUAGES = frozenset(_LANGUAGE_CODES)
# Scripts written without spaces: Thai, Lao, Tibetan, Myanmar, Khmer, kana, Han.
UNSPACED = re.compile(
    "[\u0e00-\u0e7f\u0e80-\u0eff\u0f00-\u0fff\u1000-\u109f\u1780-\u17ff"
    "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
)
# Where one of these meets anything, no space stands between sentences either: CJK punctuation,
# kana, Han, full-width forms. (Thai and its neighbours do put one between phrases.)
_CLOSE = re.compile(
    "[\u3000-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff00-\uffef\U00020000-\U0003ffff]"
)


def join_texts(texts: Iterable[str]) -> str:
    """Pieces of one text, in order, with a space between them where the script has one."""
    joined = ""
    for text in filter(None, texts):
        apart = joined and not _CLOSE.match(joined[-1]) and not _CLOSE.match(text[0])
        joined += f" {text}" if apart else text
    return joined
