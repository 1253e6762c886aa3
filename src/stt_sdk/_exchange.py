"""One request and its answer, within a time."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator

import httpx2

from stt_sdk import _answer
from stt_sdk._errors import CertificatesError, ConnectionFailed, TimedOut
from stt_sdk._hosts import Host
from stt_sdk._request import SourceFailed, TranscribeRequest
from stt_sdk._transport import TrustUnusable
from stt_sdk._within import OverTime, within

CONNECT_TIMEOUT_S = 2.0
_TIMEOUT = httpx2.Timeout(None, connect=CONNECT_TIMEOUT_S)  # the deadline bounds the rest
NEVER_SENT = (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout, httpx2.ProxyError)


async def exchange(
    host: Host,
    seconds: float,
    method: str,
    path: str,
    request: TranscribeRequest | None = None,
    headers: dict[str, str] | None = None,
) -> httpx2.Response:
    """An answer, whatever its status.

    Raises:
        ConnectionFailed, CertificatesError, TimedOut: there is none.
        InvalidAnswerError: a 200 that cannot be read.
        SourceFailed: the clip's source raised something while it was being sent.
        ValueError: it is no request that could be sent.
    """
    try:
        return await within(seconds, _send(host, method, path, request, headers))
    except httpx2.LocalProtocolError:
        pass  # its message would show the header's value, which may be a key
    except Exception as error:
        if request is not None and request.failure is not None:
            # Whatever the way here made of it, or if it looks like one of our own.
            raise SourceFailed(request.failure) from None
        if isinstance(error, OverTime):
            starved = request is not None and request.starved
            why = ": by then the source had not given all of its bytes" if starved else ""
            raise TimedOut(f"no answer within {seconds:.3g} s{why}", starved=starved) from None
        if isinstance(error, httpx2.RequestError):
            said = str(error) or type(error).__name__
            if isinstance(error, TrustUnusable):
                raise CertificatesError(said) from error
            if isinstance(error, NEVER_SENT):
                raise ConnectionFailed(f"cannot connect: {said}", sent=False) from error
            raise ConnectionFailed(f"the connection broke: {said}", sent=True) from error
        raise
    # No host's fault, and none would take it: a header that a hook has put in.
    wrong = [name for name, value in (headers or {}).items() if not _sendable(name, value)]
    which = ", ".join(map(repr, wrong)) or "unknown"
    raise ValueError(f"the request cannot be sent; header that is not allowed: {which}")


def _sendable(name: str, value: str) -> bool:
    return bool(re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", name)) and bool(
        re.fullmatch(r"[^\x00-\x20\x7f](?:[^\x00-\x08\x0a-\x1f\x7f]*[^\x00-\x20\x7f])?|", value)
    )


async def _send(
    host: Host,
    method: str,
    path: str,
    request: TranscribeRequest | None,
    headers: dict[str, str] | None,
) -> httpx2.Response:
    """The one function that touches the wire."""
    content = request.content() if request else None
    try:
        async with host.http.stream(
            method, host.address_of(path), content=content, headers=headers, timeout=_TIMEOUT
        ) as response:
            return await _answer.received(response)
    finally:
        if isinstance(content, AsyncGenerator):
            await content.aclose()  # it may not have been wanted to its end: a file is open
