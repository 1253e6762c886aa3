"""Client for the stt-cascade services.

async with STTClient("http://127.0.0.1:8081", api_key="…") as stt:
    result = await stt.transcribe("clip.wav")
    print(result.text, result.routing.tier)
"""

from stt_sdk._client import STTClient
from stt_sdk._errors import (
    AudioTooLongError,
    ConnectionFailed,
    DeadlineExceededError,
    DrainingError,
    FallbackFailedError,
    InternalError,
    InvalidAudioError,
    InvalidRequestError,
    MethodNotAllowedError,
    NotFoundError,
    NotReadyError,
    OverloadedError,
    PayloadTooLargeError,
    RateLimitedError,
    RequestTimeoutError,
    ServiceError,
    STTError,
    TimedOut,
    UnauthorizedError,
)
from stt_sdk._types import (
    Confidence,
    Routing,
    Segment,
    Task,
    Timestamps,
    Timings,
    Transcription,
    Word,
)
from stt_sdk._version import __version__

__all__ = [
    "AudioTooLongError",
    "Confidence",
    "ConnectionFailed",
    "DeadlineExceededError",
    "DrainingError",
    "FallbackFailedError",
    "InternalError",
    "InvalidAudioError",
    "InvalidRequestError",
    "MethodNotAllowedError",
    "NotFoundError",
    "NotReadyError",
    "OverloadedError",
    "PayloadTooLargeError",
    "RateLimitedError",
    "RequestTimeoutError",
    "Routing",
    "STTClient",
    "STTError",
    "Segment",
    "ServiceError",
    "Task",
    "TimedOut",
    "Timestamps",
    "Timings",
    "Transcription",
    "UnauthorizedError",
    "Word",
    "__version__",
]

# A traceback names the class as people import it.
for _name in __all__:
    if isinstance(_public := globals()[_name], type):
        _public.__module__ = __name__
