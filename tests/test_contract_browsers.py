"""Browsers: no CORS unless the settings name origins."""

from __future__ import annotations

import httpx2
import pytest

from fakes import PRIMARY_KEY
from running import TRANSCRIBE, RunningTier, Tiers, read_response

OURS, ANOTHER = "https://app.example", "https://evil.example"


@pytest.fixture(scope="module")
def tier(shared_tiers: Tiers) -> RunningTier:
    return shared_tiers.fallback(
        api_keys=(PRIMARY_KEY,), cors_origins=(OURS, "https://other.example"), max_upload_mb=0.1
    )


def preflight(tier: RunningTier, origin: str) -> httpx2.Response:
    return tier.client.options(
        TRANSCRIBE,
        headers={
            "Origin": origin,
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": (
                "authorization, x-req-id, x-deadline-ms, traceparent, tracestate, baggage"
            ),
        },
    )


def test_by_default_no_other_origin_is_let_in(tiers: Tiers) -> None:
    tier = tiers.fallback()
    answer = tier.transcribe(headers={"Origin": OURS})
    assert answer.status_code == 200
    assert not [name for name in answer.headers if name.startswith("access-control-")]
    assert preflight(tier, OURS).status_code == 405


@pytest.mark.parametrize("origin", [OURS, "https://other.example"])
def test_a_named_origin_is_let_in(tier: RunningTier, origin: str) -> None:
    answer = tier.transcribe(headers={"Origin": origin})
    assert answer.status_code == 200
    assert answer.headers["Access-Control-Allow-Origin"] == origin
    exposed = answer.headers["Access-Control-Expose-Headers"]
    for name in ("X-Req-Id", "X-Conf-Below", "X-Error-Type", "X-Error-Message", "Retry-After"):
        assert name in exposed


def test_a_preflight_needs_no_key(tier: RunningTier) -> None:
    answer = preflight(tier, OURS)
    assert answer.status_code == 200
    assert answer.headers["Access-Control-Allow-Origin"] == OURS
    assert "POST" in answer.headers["Access-Control-Allow-Methods"]


@pytest.mark.parametrize("body", ["Content-Length: 9000000000", "Transfer-Encoding: chunked"])
def test_no_body_comes_in_behind_a_preflight(tier: RunningTier, body: str) -> None:
    """18 GB did in 8 s, without a key."""
    request = (
        f"OPTIONS {TRANSCRIBE} HTTP/1.1\r\nHost: t\r\nOrigin: {OURS}\r\n"
        f"Access-Control-Request-Method: POST\r\n{body}\r\n\r\n"
    )
    with tier.connect(request.encode()) as connection:
        status, headers, _ = read_response(connection)
        assert (status, headers["connection"]) == (200, "close")
        assert connection.recv(1) == b""


def test_another_origin_is_not_let_in(tier: RunningTier) -> None:
    assert "Access-Control-Allow-Origin" not in tier.transcribe(headers={"Origin": ANOTHER}).headers
    assert preflight(tier, ANOTHER).status_code == 400


def test_a_browser_may_read_errors_too(tier: RunningTier) -> None:
    origin = {"Origin": OURS}
    refused = [
        tier.client.post(TRANSCRIBE, headers=origin),
        tier.transcribe(b"no audio", headers=origin),
        tier.transcribe(b"x" * 300_000, headers=origin),
        tier.get("/nowhere", headers=origin | tier.authorization),
        tier.client.get(TRANSCRIBE, headers=origin | tier.authorization),
    ]
    assert [answer.status_code for answer in refused] == [401, 400, 413, 404, 405]
    for answer in refused:
        assert answer.headers["Access-Control-Allow-Origin"] == OURS
        assert "X-Error-Message" in answer.headers["Access-Control-Expose-Headers"]
        assert answer.json()["error"]["type"]
