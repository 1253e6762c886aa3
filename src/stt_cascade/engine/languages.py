"""The languages that Whisper has: not every model of it knows all of them."""

from faster_whisper.tokenizer import _LANGUAGE_CODES

LANGUAGES = frozenset(_LANGUAGE_CODES)
