"""Warnings in answers: the service knows that the text is incomplete or may be wrong.

The codes are a closed set: clients branch on them, and `stt_warnings_total` is labelled by them.
"""

from __future__ import annotations

from typing import Literal, get_args

WarningCode = Literal[
    "audio_incomplete", "mixed_languages", "prompt_ignored", "text_cut", "text_incomplete"
]
WARNING_CODES: tuple[WarningCode, ...] = get_args(WarningCode)
MESSAGES: dict[WarningCode, str] = {
    "audio_incomplete": "Part of the file could not be decoded, and is missing from the text.",
    "mixed_languages": "Several languages are spoken; all but one may be missing or translated.",
    "prompt_ignored": "The prompt was ignored, because the text was wrong with it.",
    "text_cut": "The model repeated itself, and the repetition was cut.",
    "text_incomplete": "Part of the speech may be missing from the text.",
}
