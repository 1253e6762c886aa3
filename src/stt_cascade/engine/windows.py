"""Cutting a clip into the windows that Whisper takes: at most 30 s, cut at pauses."""

from __future__ import annotations

from collections.abc import Iterable

from stt_cascade.engine.protocol import SAMPLE_RATE, Span

MAX_WINDOW_SECONDS = 30
# A longer pause ends a window: encoding it would cost more than a second prompt does.
MAX_PAUSE_SECONDS = 3


def windows(speech: Iterable[Span]) -> list[Span]:
    """Group stretches of speech into windows.

    A window runs from the start of its first stretch to the end of its last, pauses included, so
    that a time within it needs only the window's start added.
    """
    limit = MAX_WINDOW_SECONDS * SAMPLE_RATE
    result: list[Span] = []
    for span in speech:
        for start in range(span.start, span.end, limit):
            piece = Span(start, min(start + limit, span.end))
            last = result[-1] if result else None
            if (
                last is not None
                and piece.end - last.start <= limit
                and piece.start - last.end <= MAX_PAUSE_SECONDS * SAMPLE_RATE
            ):
                result[-1] = Span(last.start, piece.end)
            else:
                result.append(piece)
    return result
