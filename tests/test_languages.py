"""Language codes: Whisper's own, and what else people call the same languages."""

from __future__ import annotations

import pytest
from faster_whisper.tokenizer import _LANGUAGE_CODES

from stt_cascade.engine.languages import LANGUAGES, whisper_code


def test_the_languages_are_whispers() -> None:
    assert frozenset(_LANGUAGE_CODES) == LANGUAGES
    assert all(whisper_code(code) == code for code in LANGUAGES)


@pytest.mark.parametrize(
    ("tag", "code"),
    [
        *(("nb", "no"), ("nb-NO", "no"), ("nob", "no"), ("no_NO", "no"), ("nn", "nn")),
        *(("jv", "jw"), ("iw", "he"), ("iw-IL", "he"), ("in", "id"), ("in_ID", "id")),
        *(("fil", "tl"), ("fil-PH", "tl"), ("ji", "yi"), ("mo", "ro")),
        *(
            ("zh-Hant", "zh"),
            ("cmn-Hans-CN", "zh"),
            ("chi", "zh"),
            ("zho", "zh"),
            ("yue-HK", "yue"),
        ),
        *(("pt_BR", "pt"), ("PT-br", "pt"), ("en-US-x-y", "en"), ("GER", "de"), ("haw", "haw")),
    ],
)
def test_a_tag_becomes_whispers_code(tag: str, code: str) -> None:
    assert whisper_code(tag) == code


@pytest.mark.parametrize("tag", ["", "-", "_en", "e", "xx", "zzz", "english", "12", "no.NO"])
def test_a_tag_without_a_language_of_whispers_has_no_code(tag: str) -> None:
    assert whisper_code(tag) is None
