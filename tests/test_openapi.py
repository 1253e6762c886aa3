"""A running tier against its own OpenAPI document."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fakes import PRIMARY_KEY
from running import RunningTier, Tiers, fallback_config
from stt_cascade.http.app import create_app
from tones import wav

schemathesis = pytest.importorskip("schemathesis", reason="schemathesis needs Python 3.11")

EXAMPLES = 100
OPERATIONS = [
    f"{method.upper()} {path}"
    for path, methods in create_app(fallback_config()).openapi()["paths"].items()
    for method in methods
]


@pytest.fixture(scope="module")
def tier(shared_tiers: Tiers) -> RunningTier:
    return shared_tiers.fallback(
        api_keys=(PRIMARY_KEY,),
        metrics_keys=(PRIMARY_KEY,),
        rate_limit_rps=1e6,
        rate_limit_burst=1_000_000,
    )


def statuses(tier: RunningTier, label: str, mode: str) -> set[int]:
    """Statuses of the answers to requests made from the document, all of them as it says.

    Args:
        mode: `positive`, requests that the document allows, or `negative`, others.
    """
    schema = schemathesis.openapi.from_url(f"{tier.url}/openapi.json")
    operations = (each.ok() for each in schema.get_all_operations())
    operation = next(each for each in operations if each.label == label)
    cases = operation.as_strategy(generation_mode=schemathesis.GenerationMode(mode))
    schemathesis.checks.load_all_checks()
    known = schemathesis.checks.CHECKS
    excluded = [
        # No schema can say which bytes are audio, or whether they can be heard by a deadline.
        known.get_one("positive_data_acceptance"),
        known.get_one("not_a_server_error"),
    ]
    seen = set()

    # The same requests each time.
    @settings(
        max_examples=EXAMPLES,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(case=cases, audio=st.sampled_from([None, wav()]), key=st.booleans())
    def check(case: Any, audio: bytes | None, key: bool) -> None:
        if audio is not None and isinstance(case.body, dict) and "audio" in case.body:
            case.body["audio"] = audio
        response = case.call(headers=tier.authorization if key else {})
        if mode == "negative" and response.status_code in (408, 504):
            return  # a deadline of a few ms, over before the service came to what is wrong
        case.validate_response(response, excluded_checks=excluded)
        assert response.status_code != 500
        seen.add(response.status_code)

    check()
    return seen


@pytest.mark.process
@pytest.mark.parametrize("label", OPERATIONS)
def test_an_endpoint_answers_as_the_document_says(tier: RunningTier, label: str) -> None:
    expected = {200} if "health" in label or "ready" in label else {200, 401}
    assert statuses(tier, label, "positive") >= expected


def test_what_the_document_does_not_allow_is_refused(tier: RunningTier) -> None:
    assert statuses(tier, "POST /v1/transcribe", "negative") == {400, 401}
