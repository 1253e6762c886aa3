"""A transport for `httpx2.AsyncClient` that reads while it sends. asyncio (or uvloop) only.

The service answers 401, 413, 408 or 503 before it has read a large body, and closes the connection
soon after. httpx2's own transport reads nothing before all is sent, so it loses that answer and
raises a ReadError instead. Here sending ends as soon as an answer has begun, and httpcore2 goes on
to read it.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import AsyncIterable, AsyncIterator
from http.cookiejar import CookieJar
from pathlib import Path
from typing import cast

import httpcore2
import httpx2

from stt_sdk._network import LatestTLS, Network

LIMITS = httpx2.Limits(
    max_connections=None,  # how much is asked at once is for the caller to decide
    max_keepalive_connections=64,
    # Shorter than the service's own (uvicorn: 5 s), which would close a connection just as it is
    # used.
    keepalive_expiry=2.0,
)
_SAME_NAME: dict[type[Exception], type[httpx2.TransportError]] = {
    httpcore2.ConnectTimeout: httpx2.ConnectTimeout,
    httpcore2.ReadTimeout: httpx2.ReadTimeout,
    httpcore2.WriteTimeout: httpx2.WriteTimeout,
    httpcore2.PoolTimeout: httpx2.PoolTimeout,
    httpcore2.TimeoutException: httpx2.TimeoutException,
    httpcore2.ConnectError: httpx2.ConnectError,
    httpcore2.ReadError: httpx2.ReadError,
    httpcore2.WriteError: httpx2.WriteError,
    httpcore2.NetworkError: httpx2.NetworkError,
    httpcore2.LocalProtocolError: httpx2.LocalProtocolError,
    httpcore2.RemoteProtocolError: httpx2.RemoteProtocolError,
    httpcore2.ProtocolError: httpx2.ProtocolError,
    httpcore2.ProxyError: httpx2.ProxyError,
    httpcore2.UnsupportedProtocol: httpx2.UnsupportedProtocol,
}
_ERRORS = tuple(_SAME_NAME)


class NoCookies(CookieJar):
    """Keeps no cookies: one set once would be sent with every later request."""

    def extract_cookies(self, response: object, request: object) -> None:
        pass


class Transport(httpx2.AsyncBaseTransport):
    """HTTP/1.1, with connections that are kept for the next request.

    Args:
        ssl_context: for https, or what gives the one for each new connection; None: httpx2's
            default one, made with the first such request.
        address: host name or IP address to connect to, whatever the URL's host; TLS and the Host
            header keep that.
        limits: of the connections, for http and https each.

    Raises:
        httpx2.TransportError: on a request, or while its answer is read.
    """

    def __init__(
        self,
        *,
        ssl_context: ssl.SSLContext | LatestTLS | None = None,
        address: str | None = None,
        limits: httpx2.Limits = LIMITS,
    ) -> None:
        latest = None
        if ssl_context is not None and not isinstance(ssl_context, ssl.SSLContext):
            latest, ssl_context = ssl_context, ssl_context()
        self._ssl_context = ssl_context
        self._network = Network(address, latest)
        self._limits = limits
        self._pools: dict[bool, httpcore2.AsyncConnectionPool] = {}

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        url = request.url
        asked = httpcore2.Request(
            method=request.method,
            url=httpcore2.URL(
                scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path
            ),
            headers=request.headers.raw,
            content=request.stream,
            extensions=request.extensions,
        )
        pool = self._pool(secure=url.scheme == "https")
        try:
            answer = await pool.handle_async_request(asked)
        except _ERRORS as error:
            raise _translated(error) from error
        return httpx2.Response(
            status_code=answer.status,
            headers=answer.headers,
            stream=_Body(answer),
            extensions=answer.extensions,
        )

    async def aclose(self) -> None:
        for pool in self._pools.values():
            await pool.aclose()

    def _pool(self, *, secure: bool) -> httpcore2.AsyncConnectionPool:
        pool = self._pools.get(secure)
        if pool is None:
            if secure and self._ssl_context is None:
                self._ssl_context = _trusting()
            pool = self._pools[secure] = httpcore2.AsyncConnectionPool(
                ssl_context=self._ssl_context,
                max_connections=self._limits.max_connections,
                max_keepalive_connections=self._limits.max_keepalive_connections,
                keepalive_expiry=self._limits.keepalive_expiry,
                network_backend=self._network,
            )
        return pool


class TrustUnusable(httpx2.ConnectError):
    """The certificates that a connection is to trust cannot be loaded."""


def _trusting() -> ssl.SSLContext:
    """httpx2's default: what SSL_CERT_FILE or else SSL_CERT_DIR names, or what the system trusts.

    Raises:
        TrustUnusable
    """
    variable = "SSL_CERT_FILE" if os.environ.get("SSL_CERT_FILE") else "SSL_CERT_DIR"
    named = os.environ.get(variable)
    try:
        if variable == "SSL_CERT_DIR" and named:
            next(Path(named).iterdir(), None)  # OpenSSL would not miss it
        return httpx2.create_ssl_context()
    except OSError as error:  # not the clip's
        what = f"{variable}={named}" if named else "what the system trusts"
        why = error.strerror or error
        raise TrustUnusable(f"the CA certificates cannot be loaded from {what}: {why}") from error


class _Body(httpx2.AsyncByteStream):
    """An answer's body; closing it gives the connection back."""

    def __init__(self, answer: httpcore2.Response) -> None:
        self._answer = answer

    async def __aiter__(self) -> AsyncIterator[bytes]:
        stream = cast(AsyncIterable[bytes], self._answer.stream)  # it came from an async pool
        try:
            async for part in stream:
                yield part
        except _ERRORS as error:
            raise _translated(error) from error

    async def aclose(self) -> None:
        await self._answer.aclose()


def _translated(error: Exception) -> httpx2.TransportError:
    """httpx2's exception of the same name."""
    return next(_SAME_NAME[kind] for kind in type(error).__mro__ if kind in _SAME_NAME)(str(error))
