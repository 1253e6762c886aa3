"""What a caller sent."""

from __future__ import annotations

from dataclasses import dataclass

from stt_cascade.engine.protocol import Options


@dataclass(frozen=True, slots=True)
class Upload:
    """One request's content, as it came.

    Attributes:
        audio: the file's bytes.
        raw_g722: raw G.722, which only its content type or file name can say.
    """

    audio: bytes
    raw_g722: bool
    options: Options
