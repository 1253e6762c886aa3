"""When the caller stops caring."""

from __future__ import annotations

import time

from stt_cascade.errors import InvalidRequest

HEADER = "X-Deadline-Ms"
# Thirty years: beyond any timeout. Python refuses to read numbers of many thousands of digits.
MOST_DIGITS = 12


class Deadline:
    """A moment on the monotonic clock, which is also the event loop's.

    Args:
        seconds: from now.
    """

    def __init__(self, seconds: float) -> None:
        self.at = time.monotonic() + seconds

    @property
    def remaining(self) -> float:
        """Seconds left, never negative."""
        return max(0.0, self.at - time.monotonic())


def from_header(value: str | None, longest: float) -> Deadline:
    """The deadline of a request: `longest` seconds, or fewer if the caller's header says so.

    Raises:
        InvalidRequest: the header is no positive whole number.
    """
    if value is None:
        return Deadline(longest)
    number = value.strip(" \t")  # blanks around a header's value are no part of it
    if not (number.isascii() and number.isdigit()) or not (digits := number.lstrip("0")):
        raise InvalidRequest(f"{HEADER} must be a positive whole number of milliseconds")
    if len(digits) > MOST_DIGITS:
        return Deadline(longest)
    return Deadline(min(longest, int(digits) / 1000))
