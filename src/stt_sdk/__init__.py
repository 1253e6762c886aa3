"""Client for the stt-cascade services.

async with STTClient("http://127.0.0.1:8081", api_key="…") as stt:
    result = await stt.transcribe("clip.wav")
    print(result.text, result.routing.tier)
"""

from stt_sdk._client import STTClient
from stt_sdk._errors import (
    AudioTooLongError,
    CertificatesError,
    ConnectionFailed,
    DeadlineExceededError,
    DrainingError,
    FallbackFailedError,
    InternalError,
    InvalidAnswerError,
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
from stt_sdk._hosts import HostView
from stt_sdk._many import Clip, Outcome
from stt_sdk._pool import STTPool
from stt_sdk._retry import RetryPolicy
from stt_sdk._source import Source
from stt_sdk._stats import Quantiles, Stats
from stt_sdk._sync import SyncSTTClient, transcribe
from stt_sdk._telemetry import (
    AttemptFinished,
    Escalated,
    Event,
    RequestFinished,
    RequestStarted,
    Retried,
    TelemetryHook,
)
from stt_sdk._types import (
    Confidence,
    Health,
    Readiness,
    Routing,
    Segment,
    Task,
    Timestamps,
    Timings,
    Transcription,
    TranscriptionWarning,
    Word,
)
from stt_sdk._version import __version__

__all__ = [
    "AttemptFinished",
    "AudioTooLongError",
    "CertificatesError",
    "Clip",
    "Confidence",
    "ConnectionFailed",
    "DeadlineExceededError",
    "DrainingError",
    "Escalated",
    "Event",
    "FallbackFailedError",
    "Health",
    "HostView",
    "InternalError",
    "InvalidAnswerError",
    "InvalidAudioError",
    "InvalidRequestError",
    "MethodNotAllowedError",
    "NotFoundError",
    "NotReadyError",
    "Outcome",
    "OverloadedError",
    "PayloadTooLargeError",
    "Quantiles",
    "RateLimitedError",
    "Readiness",
    "RequestFinished",
    "RequestStarted",
    "RequestTimeoutError",
    "Retried",
    "RetryPolicy",
    "Routing",
    "STTClient",
    "STTError",
    "STTPool",
    "Segment",
    "ServiceError",
    "Source",
    "Stats",
    "SyncSTTClient",
    "Task",
    "TelemetryHook",
    "TimedOut",
    "Timestamps",
    "Timings",
    "Transcription",
    "TranscriptionWarning",
    "UnauthorizedError",
    "Word",
    "__version__",
    "transcribe",
]

# A traceback names the class as people import it.
for _name in __all__:
    if isinstance(_public := globals()[_name], type):
        _public.__module__ = __name__
