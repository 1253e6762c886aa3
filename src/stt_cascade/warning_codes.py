"""What an answer warns of: where the service knows that the text is not all of the speech.

The codes are a closed set: clients branch on them, and `stt_warnings_total` is labelled by them.
"""

from __future__ import annotations

from typing import Literal, get_args

WarningCode = Literal["audio_incomplete", "prompt_ignored", "text_cut", "text_incomplete"]
WARNING_CODES: tuple[WarningCode, ...] = get_args(WarningCode)
MESSAGES: dict[WarningCode, str] = {
    "audio_incomplete": "Part of the file could not be decoded, and is missing from the text.",
    "prompt_ignored": "The prompt was ignored: the model repeated it instead of the speech.",
    "text_cut": "The model repeated itself, and the repetition was cut.",
    "text_incomplete": "Part of the speech may be missing from the text.",
}
