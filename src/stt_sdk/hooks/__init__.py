"""Ready-made telemetry hooks.

STTClient(url, telemetry=[LoggingHook(), PrometheusHook(), OpenTelemetryHook()])

One hook may serve any number of clients. Prometheus and OpenTelemetry are imported by the hook that
needs them, when it is made.
"""

from stt_sdk.hooks._logging import LoggingHook
from stt_sdk.hooks._opentelemetry import OpenTelemetryHook
from stt_sdk.hooks._prometheus import PrometheusHook

__all__ = ["LoggingHook", "OpenTelemetryHook", "PrometheusHook"]

# A traceback names the class as people import it.
for _name in __all__:
    globals()[_name].__module__ = __name__
