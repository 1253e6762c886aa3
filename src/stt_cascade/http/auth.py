"""Bearer keys, checked before a byte of the body is read.

Every path needs a key but those listed here, so that a path spelt in an unexpected way is refused
rather than let through.
"""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send

from stt_cascade.admission.keys import KeyRing
from stt_cascade.errors import Unauthorized
from stt_cascade.http.envelope import record_of

PUBLIC = frozenset({"/v1/health", "/v1/ready", "/openapi.json"})
# A scraper's key opens nothing else, and a caller's key does not open these.
METRICS = frozenset({"/v1/metrics", "/metrics"})


class Authentication:
    """Pure ASGI middleware; see the module.

    Args:
        ring: of everything but the metrics.
        metrics_ring: of the metrics.
    """

    def __init__(self, app: ASGIApp, *, ring: KeyRing, metrics_ring: KeyRing) -> None:
        self._app = app
        self._ring = ring
        self._metrics_ring = metrics_ring

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (record := record_of(scope)).path not in PUBLIC:
            ring = self._metrics_ring if record.path in METRICS else self._ring
            record.key_id = _key_id(scope, ring)
        await self._app(scope, receive, send)


def _key_id(scope: Scope, ring: KeyRing) -> str | None:
    """The id of the caller's key; None where none is needed.

    Raises:
        Unauthorized: the caller shows none, or one that is not on the ring.
    """
    if ring.open:
        return None
    given = [value for name, value in scope["headers"] if name == b"authorization"]
    if not given:
        raise Unauthorized("a key is needed: Authorization: Bearer <key>")
    scheme, _, key = given[0].decode("latin-1").partition(" ")
    key_id = ring.find(key.strip()) if scheme.lower() == "bearer" else None
    if key_id is None or len(given) > 1:
        raise Unauthorized("the key is not known; send Authorization: Bearer <key>")
    return key_id
