"""What the timestamps among a window's tokens say."""

from __future__ import annotations

SECONDS_PER_TIMESTAMP = 0.02


def split_at_timestamps(
    tokens: list[int], timestamp_begin: int, duration: float
) -> list[tuple[float, float, list[int]]]:
    """A window's text tokens as (start, end, tokens), times in seconds within the window.

    Text after the last timestamp runs to the window's end; without any timestamp, all of it does.
    """
    pieces: list[tuple[float, float, list[int]]] = []
    start, text = 0.0, list[int]()
    for token in tokens:
        if token < timestamp_begin:
            text.append(token)
            continue
        time = (token - timestamp_begin) * SECONDS_PER_TIMESTAMP
        if text:
            pieces.append((start, time, text))
            text = []
        start = time
    if text:
        pieces.append((start, duration, text))
    return pieces


def broke_off(tokens: list[int], timestamp_begin: int) -> bool:
    """Whether Whisper left a window's end for another decode.

    Source: a pair of timestamps at the end says that more is said, a single one that nothing is
    (openai-whisper's `transcribe.py`, `single_timestamp_ending`).
    """
    return len(tokens) >= 2 and min(tokens[-2:]) >= timestamp_begin
