"""When the caller stops caring."""

from __future__ import annotations

import time

from stt_cascade.errors import InvalidRequest

HEADER = "X-Deadline-Ms"


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
    if not (value.isascii() and value.isdigit()) or not 0 < len(value) <= 12 or int(value) == 0:
        raise InvalidRequest(f"{HEADER} must be a positive whole number of milliseconds")
    return Deadline(min(longest, int(value) / 1000))
