"""Whose address counts, and what a caller cannot make up."""

from __future__ import annotations

import threading
from ipaddress import ip_network
from pathlib import Path
from typing import Any, Literal

import httpx2
import pytest
import uvicorn
from structlog.testing import capture_logs

from fakes import PATIENCE, FakeEngine
from running import POOLS, TRANSCRIBE, RunningTier, Tiers, fallback_config, until
from stt_cascade.http.app import create_app
from stt_cascade.http.caller import client_address, counted_as
from stt_cascade.http.protocol import Protocol
from tones import wav

TRUSTED = (ip_network("10.0.0.0/8"), ip_network("192.0.2.7"), ip_network("fd00::/8"))


@pytest.mark.parametrize(
    ("peer", "forwarded", "caller"),
    [
        # Nobody's word counts but a trusted proxy's.
        ("203.0.113.5", ["198.51.100.1"], "203.0.113.5"),
        ("10.1.2.3", [], "10.1.2.3"),
        ("10.1.2.3", ["198.51.100.1"], "198.51.100.1"),
        ("192.0.2.7", ["198.51.100.1"], "198.51.100.1"),
        ("192.0.2.8", ["198.51.100.1"], "192.0.2.8"),
        # What stands left of the first untrusted address, the caller made up.
        ("10.1.2.3", ["127.0.0.1, 198.51.100.1"], "198.51.100.1"),
        ("10.1.2.3", ["10.9.9.9, 198.51.100.1, 10.4.4.4"], "198.51.100.1"),
        ("10.1.2.3", ["made-up", "198.51.100.1,10.4.4.4"], "198.51.100.1"),
        ("10.1.2.3", ["198.51.100.1", "made-up"], "10.1.2.3"),
        ("10.1.2.3", ["198.51.100.1, made-up, 10.4.4.4"], "10.4.4.4"),
        ("10.1.2.3", ["", "unknown"], "10.1.2.3"),
        ("10.1.2.3", [" , ,"], "10.1.2.3"),
        # The caller is inside, behind trusted addresses only.
        ("10.1.2.3", ["10.9.9.9, 10.4.4.4"], "10.9.9.9"),
        # Ports, brackets, and the two ways to write an IPv4 address.
        ("10.1.2.3", ["198.51.100.1:4711"], "198.51.100.1"),
        ("fd00::1", ["[2001:db8::1]:4711"], "2001:db8::1"),
        ("fd00::1", ["2001:db8::1"], "2001:db8::1"),
        ("::ffff:10.1.2.3", ["::ffff:198.51.100.1"], "198.51.100.1"),
        ("::ffff:203.0.113.5", ["198.51.100.1"], "203.0.113.5"),
        # A connection that has ended already.
        ("unknown", ["198.51.100.1"], "unknown"),
        # Nobody on a Unix socket is trusted unless the settings say so.
        ("unix", ["198.51.100.1"], "unix"),
        ("10.1.2.3", ["198.51.100.1", "unix"], "10.1.2.3"),
    ],
)
def test_the_caller_is_the_first_that_no_trusted_proxy_vouches_for(
    peer: str, forwarded: list[str], caller: str
) -> None:
    assert client_address(peer, forwarded, TRUSTED) == caller


@pytest.mark.parametrize(
    ("forwarded", "caller"),
    [
        ([], "unix"),
        (["198.51.100.1"], "198.51.100.1"),
        (["198.51.100.1, 10.4.4.4"], "198.51.100.1"),
        (["198.51.100.1, 203.0.113.5"], "203.0.113.5"),
        (["made-up"], "unix"),
    ],
)
def test_a_unix_socket_can_be_a_trusted_proxys(forwarded: list[str], caller: str) -> None:
    assert client_address("unix", forwarded, ("unix", *TRUSTED)) == caller


@pytest.mark.parametrize(
    ("client", "counted"),
    [
        ("198.51.100.1", "198.51.100.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::9", "2001:db8:1:2::/64"),
        ("2001:db8:1:3::9", "2001:db8:1:3::/64"),
        ("unknown", "unknown"),
    ],
)
def test_an_ipv6_caller_is_counted_by_its_network(client: str, counted: str) -> None:
    assert counted_as(client) == counted


def statuses(tier: RunningTier, *forwarded: str) -> list[int]:
    return [
        tier.client.post(
            TRANSCRIBE, files={"audio": wav()}, headers={"X-Forwarded-For": value}
        ).status_code
        for value in forwarded
    ]


def test_made_up_addresses_get_nobody_past_the_rate_limit(tiers: Tiers) -> None:
    tier = tiers.fallback(rate_limit_burst=1, rate_limit_rps=0.01)
    assert statuses(tier, "198.51.100.1", "198.51.100.2", "127.0.0.9") == [200, 429, 429]


@pytest.mark.parametrize(
    ("trusted", "answers", "client"),
    [((), [200, 429], "unix"), (("unix",), [200, 200], "198.51.100.2")],
)
def test_callers_on_a_unix_socket_have_a_rate_of_their_own_if_it_is_trusted(
    tmp_path: Path, trusted: tuple[Literal["unix"], ...], answers: list[int], client: str
) -> None:
    config = fallback_config(rate_limit_burst=1, rate_limit_rps=0.01, trusted_proxies=trusted)
    path = str(tmp_path / "socket")
    options: dict[str, Any] = {"http": Protocol, "log_config": None, "proxy_headers": False}
    app = create_app(config, FakeEngine(), POOLS)
    server = uvicorn.Server(uvicorn.Config(app, uds=path, **options))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        transport = httpx2.HTTPTransport(uds=path)
        with capture_logs() as lines, httpx2.Client(transport=transport, timeout=PATIENCE) as http:
            until(lambda: server.started, "the server listens")
            until(lambda: http.get("http://t/v1/ready").status_code == 200, "it is ready")
            given = [
                http.post(
                    f"http://t{TRANSCRIBE}",
                    files={"audio": wav()},
                    headers={"X-Forwarded-For": f"198.51.100.{number}"},
                ).status_code
                for number in (1, 2)
            ]
    finally:
        server.should_exit = True
        thread.join(PATIENCE)
    assert given == answers
    assert [line["client"] for line in lines if line["event"] == "request"][-1] == client


def test_behind_a_trusted_proxy_each_caller_has_a_rate_of_its_own(tiers: Tiers) -> None:
    tier = tiers.fallback(
        rate_limit_burst=1, rate_limit_rps=0.01, trusted_proxies=(ip_network("127.0.0.1"),)
    )
    with capture_logs() as lines:
        assert statuses(
            tier, "198.51.100.1", "198.51.100.2", "made-up, 198.51.100.2", "2001:db8::1"
        ) == [200, 200, 429, 200]
        assert statuses(tier, "2001:db8::2", "2001:db8:0:1::2") == [429, 200]
    assert [line["client"] for line in lines if line["event"] == "request"] == [
        *("198.51.100.1", "198.51.100.2", "198.51.100.2"),
        *("2001:db8::1", "2001:db8::2", "2001:db8:0:1::2"),
    ]
