"""Bearer keys, checked before a byte of the body is read.

Every path needs a key but those listed here, so that a path spelt in an unexpected way is refused
rather than let through.
"""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send

from stt_cascade.admission.keys import KeyRing
from stt_cascade.errors import Unauthorized
from stt_cascade.http.envelope import record_of

PUBLIC = frozenset({"/v1/health", "/v1/ready", "/v1/metrics", "/metrics", "/openapi.json"})


class Authentication:
    """Pure ASGI middleware; see the module."""

    def __init__(self, app: ASGIApp, *, ring: KeyRing) -> None:
        self._app = app
        self._ring = ring

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in PUBLIC and not self._ring.open:
            given = [value for name, value in scope["headers"] if name == b"authorization"]
            if not given:
                raise Unauthorized("a key is needed: Authorization: Bearer <key>")
            scheme, _, key = given[0].decode("latin-1").partition(" ")
            key_id = self._ring.find(key.strip()) if scheme.lower() == "bearer" else None
            if key_id is None or len(given) > 1:
                raise Unauthorized("the key is not known; send Authorization: Bearer <key>")
            record_of(scope).key_id = key_id
        await self._app(scope, receive, send)
