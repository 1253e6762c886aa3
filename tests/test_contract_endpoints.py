"""What the endpoints besides `POST /v1/transcribe` answer."""

from __future__ import annotations

import threading

import pytest

from fakes import FALLBACK_KEY, PRIMARY_KEY, FakeEngine
from running import RunningTier, Tiers, fallback_config
from stt_sdk import __version__
from tones import silence, wav


@pytest.fixture(scope="module")
def fallback(shared_tiers: Tiers) -> RunningTier:
    return shared_tiers.fallback(api_keys=(FALLBACK_KEY,), model_name="big")


@pytest.fixture(scope="module")
def primary(shared_tiers: Tiers, fallback: RunningTier) -> RunningTier:
    return shared_tiers.primary(
        fallback=fallback,
        api_keys=(PRIMARY_KEY,),
        model_name="little",
        server_commit="abc123",
        conf_weakest_threshold=0.25,
    )


@pytest.fixture(params=["primary", "fallback"])
def either(request: pytest.FixtureRequest) -> RunningTier:
    tier: RunningTier = request.getfixturevalue(request.param)
    return tier


def test_health_says_what_runs(primary: RunningTier) -> None:
    answer = primary.get("/v1/health")
    assert answer.status_code == 200
    health = answer.json()
    assert health.pop("uptime_s") >= 0
    assert health == {
        "ok": True,
        "service": "stt-primary",
        "model": "little",
        "device": "cpu",
        "commit": "abc123",
        "version": __version__,
    }


def test_the_fallback_names_itself_in_health(fallback: RunningTier) -> None:
    health = fallback.get("/v1/health").json()
    assert (health["service"], health["model"]) == ("stt-fallback", "big")


@pytest.mark.parametrize(
    "path", ["/v1/health", "/v1/ready", "/v1/metrics", "/metrics", "/openapi.json"]
)
def test_a_guarded_tier_lets_everybody_look_at_its_state(either: RunningTier, path: str) -> None:
    assert either.key
    assert either.get(path).status_code == 200


@pytest.mark.parametrize("path", ["/v1/health", "/v1/ready"])
def test_probes_may_use_head(either: RunningTier, path: str) -> None:
    answer = either.client.head(path)
    assert (answer.status_code, answer.content) == (200, b"")


def test_the_answer_is_not_ready_while_the_model_is_being_loaded(tiers: Tiers) -> None:
    engine = FakeEngine(loads=threading.Event())
    tier = tiers.run(fallback_config(), engine, wait=False)

    ready = tier.get("/v1/ready")
    refused = tier.transcribe()
    alive = tier.get("/v1/health")

    assert (ready.status_code, ready.json()["ready"]) == (503, False)
    assert (refused.status_code, refused.json()["error"]["type"]) == (503, "not_ready")
    assert int(refused.headers["Retry-After"]) >= 1
    assert (alive.status_code, alive.json()["ok"]) == (200, True)
    engine.let_go()
    tier.wait_until_ready()
    assert tier.transcribe().status_code == 200


def test_a_tier_that_is_not_ready_does_not_wait_for_the_body(tiers: Tiers) -> None:
    tier = tiers.run(fallback_config(), FakeEngine(loads=threading.Event()), wait=False)
    head = "POST /v1/transcribe HTTP/1.1\r\nHost: t\r\nContent-Length: 1000000\r\n"
    kind = "Content-Type: multipart/form-data; boundary=x\r\n\r\n"
    status, headers, _ = tier.exchange((head + kind).encode())
    assert (status, headers["x-error-type"]) == (503, "not_ready")


def test_a_draining_tier_is_not_ready_and_takes_nothing_new(tiers: Tiers) -> None:
    tier = tiers.fallback()
    tier.service.drain()
    ready, refused = tier.get("/v1/ready"), tier.transcribe(language="xx")
    assert (ready.status_code, ready.json()) == (503, {"ready": False, "state": "draining"})
    assert (refused.status_code, refused.json()["error"]["type"]) == (503, "draining")
    assert int(refused.headers["Retry-After"]) >= 1
    assert tier.get("/v1/health").status_code == 200


def test_a_primary_is_ready_without_its_fallback(tiers: Tiers, nobody: str) -> None:
    answer = tiers.primary(fallback=nobody).get("/v1/ready")
    assert (answer.status_code, answer.json()) == (200, {"ready": True, "state": "ready"})


def test_the_snapshot_of_a_new_tier_is_all_zeros(tiers: Tiers, nobody: str) -> None:
    snapshot = (
        tiers.primary(
            fallback=nobody, server_commit="abc123", conf_logprob_threshold=0.6, max_concurrency=3
        )
        .get("/v1/metrics")
        .json()
    )
    unknown = {"p50": None, "p95": None, "p99": None}
    assert snapshot["commit"] == "abc123"
    assert set(snapshot["counts"].values()) == {0}
    assert snapshot["latency_ms"] == dict.fromkeys(
        ("total", "queue_wait", "primary_infer", "fallback_infer"), unknown
    )
    assert (snapshot["queue_depth"], snapshot["in_flight"], snapshot["max_concurrency"]) == (
        0,
        0,
        3,
    )
    assert snapshot["thresholds"] == {"logprob": 0.6, "langprob": 0.7, "words": 3, "weakest": 0}
    assert snapshot["gpu"] is None
    assert all(snapshot["process"][what] > 0 for what in ("rss_mb", "descriptors", "threads"))


def test_the_snapshot_counts_what_happened(tiers: Tiers) -> None:
    primary, fallback = tiers.cascade()
    primary.transcribe()
    primary.fake.logprob = 0.1
    primary.transcribe()
    primary.transcribe(b"no audio")
    primary.get("/nowhere")

    snapshot = primary.get("/v1/metrics").json()

    assert snapshot["counts"] == {
        "requests": 3,
        "answered": 2,
        "errors": 1,
        "abandoned": 0,
        "no_speech": 0,
        "fallback_used": 1,
        "fallback_skipped": 1,
        "fallback_failed": 0,
    }
    for stage in ("total", "queue_wait", "primary_infer", "fallback_infer"):
        latency = snapshot["latency_ms"][stage]
        assert 0 <= latency["p50"] <= latency["p95"] <= latency["p99"]
    theirs = fallback.get("/v1/metrics").json()
    assert (theirs["counts"]["answered"], theirs["thresholds"]) == (1, None)


def test_the_snapshot_shows_who_is_inferred_and_who_waits(tiers: Tiers) -> None:
    engine = FakeEngine(holds=threading.Event())
    tier = tiers.fallback(engine, max_concurrency=1)
    first = tier.begin(wav(silence(2.5)))
    engine.wait_for(1)
    second = tier.begin()
    tier.wait_for_queue(1)

    snapshot = tier.get("/v1/metrics").json()

    assert (snapshot["in_flight"], snapshot["queue_depth"]) == (1, 1)
    assert snapshot["in_flight_audio_seconds"] == 2.5
    engine.let_go()
    assert [first.result().status_code, second.result().status_code] == [200, 200]


def test_openapi_describes_the_endpoints_and_every_error(primary: RunningTier) -> None:
    document = primary.get("/openapi.json").json()
    assert set(document["paths"]) == {
        "/v1/transcribe",
        "/v1/health",
        "/v1/ready",
        "/v1/metrics",
        "/metrics",
    }
    upload = document["paths"]["/v1/transcribe"]["post"]
    statuses = {"200", "400", "401", "404", "405", "408", "413", "429", "500", "502", "503", "504"}
    assert statuses <= set(upload["responses"])
    form = upload["requestBody"]["content"]["multipart/form-data"]["schema"]
    assert set(form["properties"]) >= {"audio", "language", "prompt", "timestamps", "task"}
    assert {"bearer": []} in upload["security"]
    assert document["components"]["securitySchemes"]["bearer"]["scheme"] == "bearer"


def test_the_json_is_what_openapi_promises(primary: RunningTier) -> None:
    schemas = primary.get("/openapi.json").json()["components"]["schemas"]
    assert set(primary.transcribe().json()) == set(schemas["Answer"]["properties"])
