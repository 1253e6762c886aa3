"""The metrics' own keys."""

from __future__ import annotations

from pathlib import Path

import pytest
from structlog.testing import capture_logs

from fakes import PRIMARY_KEY
from running import RunningTier, Tiers, env_file, fallback_config
from stt_cascade.config import FallbackConfig
from stt_cascade.config_file import load

SCRAPER_KEY = "scraper-key-0123456789"
OTHER_KEY = "other-scraper-9876543210"
METRICS = ("/metrics", "/v1/metrics")


@pytest.fixture(scope="module")
def guarded(shared_tiers: Tiers) -> RunningTier:
    return shared_tiers.fallback(api_keys=(PRIMARY_KEY,), metrics_keys=(SCRAPER_KEY,))


def status(tier: RunningTier, path: str, key: str | None) -> int:
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    return tier.client.get(path, headers=headers).status_code


@pytest.mark.parametrize("path", METRICS)
def test_only_a_key_of_the_metrics_opens_them(guarded: RunningTier, path: str) -> None:
    assert status(guarded, path, SCRAPER_KEY) == 200
    assert status(guarded, path, None) == 401
    assert status(guarded, path, PRIMARY_KEY) == 401


@pytest.mark.parametrize("path", ["//metrics", "/metrics/", "/v1/../metrics", "/v1/metrics/x"])
def test_no_other_spelling_opens_them(guarded: RunningTier, path: str) -> None:
    for key, expected in ((None, 401), (SCRAPER_KEY, 401), (PRIMARY_KEY, 404)):
        head = f"GET {path} HTTP/1.1\r\nHost: t\r\n"
        authorization = f"Authorization: Bearer {key}\r\n" if key else ""
        assert guarded.exchange(f"{head}{authorization}\r\n".encode())[0] == expected


def test_a_key_of_the_metrics_opens_nothing_else(guarded: RunningTier) -> None:
    guarded.key = SCRAPER_KEY
    assert guarded.transcribe().status_code == 401
    guarded.key = PRIMARY_KEY
    assert guarded.transcribe().status_code == 200


@pytest.mark.parametrize("path", ["/v1/health", "/v1/ready", "/openapi.json"])
def test_what_needs_no_key_still_needs_none(guarded: RunningTier, path: str) -> None:
    assert status(guarded, path, None) == 200


@pytest.mark.parametrize("root", ["/stt", "/stt/", "/v1", "/", "stt"])
def test_a_root_path_changes_no_door_no_count_and_no_message(tiers: Tiers, root: str) -> None:
    config = fallback_config(api_keys=(PRIMARY_KEY,), metrics_keys=(SCRAPER_KEY,))
    tier = tiers.run(config, root_path=root)  # it waits until `/v1/ready` is 200
    keys = (None, SCRAPER_KEY, PRIMARY_KEY)
    assert [status(tier, "/v1/health", key) for key in keys] == [200, 200, 200]
    for path in METRICS:
        assert [status(tier, path, key) for key in keys] == [401, 200, 401]
        below = root.rstrip("/") + path
        if below not in METRICS and below.startswith("/"):
            assert [status(tier, below, key) for key in keys] == [401, 401, 404]
    for path in ("/v1/metrics/", "//metrics", "/Metrics", "/openapi.json/"):
        assert [status(tier, path, key) for key in keys] == [401, 401, 404]
    with capture_logs() as lines:
        assert tier.transcribe().status_code == 200
    assert tier.service.metrics.counts()["requests"] == 1
    assert [line["path"] for line in lines if line["event"] == "request"] == ["/v1/transcribe"]
    missing = tier.get("/nothing", headers=tier.authorization).json()["error"]["message"]
    assert missing == "there is nothing at /nothing"


def test_the_metrics_of_an_open_service_can_have_keys_too(tiers: Tiers) -> None:
    tier = tiers.fallback(metrics_keys=(SCRAPER_KEY,))
    assert tier.transcribe().status_code == 200
    assert [status(tier, path, None) for path in METRICS] == [401, 401]


def test_the_snapshot_shows_the_use_of_its_own_keys(tiers: Tiers) -> None:
    tier = tiers.fallback(api_keys=(PRIMARY_KEY,), metrics_keys=(SCRAPER_KEY, OTHER_KEY))
    tier.transcribe()
    shown = tier.get("/v1/metrics", headers={"Authorization": f"Bearer {SCRAPER_KEY}"}).json()
    assert [use["requests"] for use in shown["keys"].values()] == [1]
    assert sorted(use["requests"] for use in shown["metrics_keys"].values()) == [0, 1]


def test_their_keys_change_without_a_restart(tiers: Tiers, tmp_path: Path) -> None:
    file, keys = tmp_path / "fallback.env", tmp_path / "metrics.keys"
    keys.write_text(SCRAPER_KEY)
    settings = {"CT2_MEDIUM_PATH": "models/fake", "DEVICE": "cpu", "VAD": "off"}
    env_file(file, **settings, METRICS_KEYS_FILE=keys)
    tier = tiers.run(load(FallbackConfig, file))
    assert [status(tier, "/metrics", key) for key in (SCRAPER_KEY, OTHER_KEY)] == [200, 401]

    keys.write_text(OTHER_KEY)
    tier.service.secrets.refresh()
    assert [status(tier, "/metrics", key) for key in (SCRAPER_KEY, OTHER_KEY)] == [401, 200]

    env_file(file, **settings, METRICS_KEYS=SCRAPER_KEY)
    tier.service.secrets.refresh()
    assert [status(tier, "/metrics", key) for key in (SCRAPER_KEY, OTHER_KEY)] == [200, 401]

    env_file(file, **settings)
    with capture_logs() as lines:
        tier.service.secrets.refresh()
    assert [status(tier, "/metrics", key) for key in (SCRAPER_KEY, None)] == [200, 401]
    assert "would open them" in str(lines)
