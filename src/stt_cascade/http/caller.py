"""Who calls: the address that the rate limit counts by and the log shows."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Sequence

from starlette.types import Scope

from stt_cascade.config import Proxy

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

# How proxies write a hop: `address`, `[address]`, either with a port. A bare IPv6 address has none.
_HOP = re.compile(r"\[(?P<v6>[^\]]+)\](?::\d+)?|(?P<v4>[\d.]+)(?::\d+)?|(?P<bare>.+)")
# What one IPv6 subscriber gets at least: whoever has one address has all of these.
_SUBSCRIBER_BITS = 64


def peer_of(scope: Scope) -> str:
    """Address of the client that opened the connection; `unix` for a Unix socket."""
    if scope.get("client"):
        return str(scope["client"][0])
    # A TCP connection that has ended already tells no peer either, but its own port.
    return "unix" if scope.get("server") and scope["server"][1] is None else "unknown"


def client_address(peer: str, forwarded: Iterable[str], trusted: Sequence[Proxy]) -> str:
    """The address of the caller behind the proxies that are trusted.

    Everybody can send the header, and each proxy appends to it the address that it was called from.
    So it is read from the right, as far as trusted proxies wrote it.

    Args:
        peer: who opened the connection.
        forwarded: the values of `X-Forwarded-For`, in order.
        trusted: whose word counts.
    """
    caller = _address(peer) or peer
    hops = [hop.strip() for value in forwarded for hop in value.split(",")]
    while hops and any(_is(caller, proxy) for proxy in trusted):
        before = _address(hops.pop())
        if before is None:
            break  # what a trusted proxy says of itself is the most that is known
        caller = before
    return str(caller)


def _is(caller: Address | str, proxy: Proxy) -> bool:
    if isinstance(caller, str) or isinstance(proxy, str):
        return caller == proxy
    return caller in proxy


def counted_as(client: str) -> str:
    """What the rate limit counts an address as: an IPv6 address as its /64, any other as itself."""
    address = _address(client)
    if not isinstance(address, ipaddress.IPv6Address):
        return client
    return str(ipaddress.ip_network((int(address), _SUBSCRIBER_BITS), strict=False))


def _address(hop: str) -> Address | None:
    match = _HOP.fullmatch(hop)
    try:
        address = ipaddress.ip_address(match[match.lastgroup or 0] if match else hop)
    except ValueError:
        return None
    # A socket for both families shows IPv4 callers this way.
    return getattr(address, "ipv4_mapped", None) or address
