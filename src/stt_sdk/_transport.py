"""Stands in until the transport that reads while it sends is there."""

from __future__ import annotations

import ssl

import httpx2


class Transport(httpx2.AsyncHTTPTransport):
    def __init__(
        self, *, ssl_context: ssl.SSLContext | None = None, address: str | None = None
    ) -> None:
        limits = httpx2.Limits(
            max_connections=None, max_keepalive_connections=64, keepalive_expiry=2.0
        )
        super().__init__(verify=ssl_context or True, limits=limits)
