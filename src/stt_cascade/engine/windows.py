"""Cutting a clip into the windows that Whisper takes: at most 30 s, cut at pauses."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from stt_cascade.engine.protocol import SAMPLE_RATE, Span

MAX_WINDOW_SECONDS = 30
# A longer pause ends a window: encoding it would cost more than a second prompt does.
MAX_PAUSE_SECONDS = 3
# Whisper often mistakes the language of a word or two.
LANGUAGE_SECONDS = 5


def within(speech: Iterable[Span], window: Span) -> tuple[Span, ...]:
    """The stretches of speech in a window, in samples from the window's start."""
    return tuple(
        Span(max(span.start, window.start) - window.start, min(span.end, window.end) - window.start)
        for span in speech
        if span.start < window.end and span.end > window.start
    )


def until(speech: Iterable[Span], seconds: float | None) -> tuple[Span, ...]:
    """The stretches of speech up to there; None: all of them."""
    if seconds is None:
        return tuple(speech)
    return within(speech, Span(0, round(seconds * SAMPLE_RATE)))


def leading(windows: Sequence[Span]) -> int:
    """Which window tells the clip's language: the first with enough speech, else the longest."""
    long_enough = (n for n, span in enumerate(windows) if span.seconds >= LANGUAGE_SECONDS)
    longest = max(range(len(windows)), key=lambda n: windows[n].seconds)
    return next(long_enough, longest)


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
