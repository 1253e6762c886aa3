"""Prometheus text: exactly the promised names and labels, and what they count."""

from __future__ import annotations

import threading

import pytest
from prometheus_client.parser import text_string_to_metric_families

from fakes import PRIMARY_KEY, FakeEngine
from running import RunningTier, Tiers, until
from stt_cascade.errors import ERROR_TYPES
from stt_sdk import __version__
from tones import silence, wav

ENDPOINT = "/v1/transcribe"
# name -> type, label names
PROMISED = {
    "stt_requests": ("counter", {"endpoint"}),
    "stt_requests_exceptions": ("counter", {"endpoint", "type"}),
    "stt_requests_abandoned": ("counter", set()),
    "stt_fallback": ("counter", {"result"}),
    "stt_request_total_seconds": ("histogram", set()),
    "stt_primary_infer_seconds": ("histogram", set()),
    "stt_fallback_infer_seconds": ("histogram", set()),
    "stt_queue_wait_seconds": ("histogram", set()),
    "stt_queue_depth": ("gauge", set()),
    "stt_in_flight": ("gauge", set()),
    # and beyond the specification
    "stt_audio_seconds": ("counter", set()),
    "stt_conf_below": ("counter", {"gate"}),
    "stt_rejected": ("counter", {"reason"}),
    "stt_no_speech": ("counter", set()),
    "stt_full_context_retries": ("counter", set()),
    "stt_second_looks": ("counter", set()),
    "stt_engine_failures": ("counter", set()),
    "stt_log_lines_dropped": ("counter", set()),
    "stt_warnings": ("counter", {"code"}),
    "stt_build_info": ("gauge", {"version", "commit", "model", "device"}),
    "stt_escalations": ("counter", {"reason"}),
    "stt_final_picks": ("counter", {"tier"}),
    "stt_shadow": ("counter", {"result"}),
    "stt_shadow_disagreement": ("histogram", set()),
    "stt_fallback_errors": ("counter", {"cause"}),
    "stt_fallback_breaker_open": ("gauge", set()),
    "stt_confidence": ("histogram", {"score"}),
    "stt_in_flight_audio_seconds": ("gauge", set()),
    "stt_oldest_inference_seconds": ("gauge", set()),
    "stt_rate_limit_fullest_ratio": ("gauge", set()),
    "stt_process_rss_mb": ("gauge", set()),
    "stt_max_concurrency": ("gauge", set()),
    "stt_max_queue": ("gauge", set()),
    "stt_infer_timeout_seconds": ("gauge", set()),
    "stt_slo_request_seconds": ("histogram", set()),
}
LABEL_VALUES = {
    ("stt_requests_total", "endpoint"): {ENDPOINT},
    ("stt_requests_exceptions_total", "type"): set(ERROR_TYPES),
    ("stt_fallback_total", "result"): {"used", "skipped", "failed"},
    ("stt_escalations_total", "reason"): {"low_confidence", "primary_error", "language"},
    ("stt_fallback_errors_total", "cause"): {
        "unreachable",
        "broken_off",
        "timeout",
        "error",
        "invalid",
        "overloaded",
        "rejected",
        "breaker_open",
    },
    ("stt_final_picks_total", "tier"): {"primary", "fallback"},
    ("stt_shadow_total", "result"): {"compared", "skipped", "failed"},
    ("stt_conf_below_total", "gate"): {
        "logprob",
        "langprob",
        "words",
        "weakest",
        "coverage",
        "loop",
    },
    ("stt_warnings_total", "code"): {
        "audio_incomplete",
        "mixed_languages",
        "prompt_ignored",
        "text_cut",
        "text_incomplete",
    },
    ("stt_rejected_total", "reason"): {
        "unauthorized",
        "rate_limited",
        "payload_too_large",
        "audio_too_long",
        "overloaded",
        "draining",
        "not_ready",
        "deadline_exceeded",
        "request_timeout",
    },
    ("stt_confidence_count", "score"): {"logprob", "weakest", "langprob"},
}


def families(tier: RunningTier) -> dict[str, tuple[str, set[str]]]:
    """Type and label names by metric; a histogram's own `le` aside."""
    found = {}
    for family in text_string_to_metric_families(tier.get("/metrics").text):
        labels = {name for sample in family.samples for name in sample.labels} - {"le"}
        found[family.name] = family.type, labels
    return found


def exceptions(tier: RunningTier, type_: str) -> float:
    return tier.metric("stt_requests_exceptions_total", endpoint=ENDPOINT, type=type_)


@pytest.mark.parametrize("tier", ["primary", "fallback"])
def test_the_names_types_and_labels_are_the_promised_ones(tiers: Tiers, tier: str) -> None:
    pair = dict(zip(("primary", "fallback"), tiers.cascade(), strict=True))
    assert families(pair[tier]) == PROMISED


def test_the_text_is_what_prometheus_reads(tiers: Tiers) -> None:
    answer = tiers.fallback().get("/metrics")
    assert answer.headers["Content-Type"].startswith("text/plain; version=")
    assert "_created" not in answer.text


def test_every_label_value_is_there_from_the_start_at_zero(tiers: Tiers) -> None:
    tier, _ = tiers.cascade()
    samples = tier.samples()
    for (name, label), values in LABEL_VALUES.items():
        found = {dict(labels)[label] for sample, labels in samples if sample == name}
        assert found == values, name
    counted = {
        (name, labels): value
        for (name, labels), value in samples.items()
        if name.endswith(("_total", "_count"))
    }
    assert len(counted) > 40
    assert set(counted.values()) == {0}


def test_no_request_adds_a_label_value(tiers: Tiers) -> None:
    tier, _ = tiers.cascade()
    before = {name for name, labels in tier.samples() if "_exceptions_" not in name}
    known = len(tier.samples())
    for path in ("/nowhere", "/a", "/b", "/v1/transcribe/x", "/%00"):
        tier.get(path)
    tier.transcribe(language="xx")
    tier.transcribe()
    assert {name for name, labels in tier.samples() if "_exceptions_" not in name} == before
    # other paths are one `endpoint` together
    assert len(tier.samples()) == known + 1
    other = {"endpoint": "other", "type": "not_found"}
    assert tier.metric("stt_requests_exceptions_total", **other) == 5


def test_the_build_is_named(tiers: Tiers) -> None:
    tier = tiers.fallback(model_name="big", server_commit="abc123")
    build = {"version": __version__, "commit": "abc123", "model": "big", "device": "cpu"}
    assert tier.metric("stt_build_info", **build) == 1


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_build_names_the_device_that_auto_has_chosen(tiers: Tiers, device: str) -> None:
    tier = tiers.fallback(FakeEngine(device=device), device="auto")
    found = [dict(labels)["device"] for name, labels in tier.samples() if name == "stt_build_info"]
    assert found == [device]
    assert tier.get("/v1/health").json()["device"] == device


def test_the_histograms_reach_from_5_ms_to_60_s(tiers: Tiers) -> None:
    edges = {
        float(dict(labels)["le"])
        for name, labels in tiers.fallback().samples()
        if name == "stt_request_total_seconds_bucket"
    }
    assert min(edges) == 0.005
    assert 60 in edges


def test_an_answered_clip_is_counted_in_full(tiers: Tiers) -> None:
    tier, _ = tiers.cascade(FakeEngine(logprob=0.9, weakest=0.4), slo_clip_seconds=2)
    tier.transcribe(wav(silence(2)))
    tier.transcribe(wav(silence(3)), language="en")
    assert tier.metric("stt_requests_total", endpoint=ENDPOINT) == 2
    assert tier.metric("stt_audio_seconds_total") == 5
    assert tier.metric("stt_request_total_seconds_count") == 2
    assert tier.metric("stt_slo_request_seconds_count") == 1  # the longer clip is not in the SLO
    assert tier.metric("stt_primary_infer_seconds_count") == 2
    assert tier.metric("stt_queue_wait_seconds_count") == 2
    assert tier.metric("stt_fallback_infer_seconds_count") == 0
    assert tier.metric("stt_confidence_count", score="logprob") == 2
    assert tier.metric("stt_confidence_sum", score="weakest") == pytest.approx(0.8)
    assert tier.metric("stt_confidence_count", score="langprob") == 1  # the other was forced


def test_an_escalated_clip_is_counted_on_both_tiers(tiers: Tiers) -> None:
    primary, fallback = tiers.cascade(FakeEngine("hm"))
    primary.transcribe()
    assert primary.metric("stt_fallback_infer_seconds_count") == 1
    assert fallback.metric("stt_fallback_infer_seconds_count") == 1
    assert fallback.metric("stt_requests_total", endpoint=ENDPOINT) == 1
    assert fallback.metric("stt_fallback_total", result="used") == 0  # it decides nothing


def test_every_answer_but_200_counts_by_its_type(tiers: Tiers) -> None:
    engine = FakeEngine()
    tier = tiers.fallback(engine, api_keys=(PRIMARY_KEY,), max_upload_mb=0.5, max_audio_seconds=2)
    tier.transcribe(b"no audio")
    tier.transcribe(language="xx")
    tier.transcribe(language="yy")
    tier.transcribe(b"x" * 600_000)
    tier.transcribe(wav(silence(3)))
    tier.client.get(ENDPOINT, headers=tier.authorization)
    engine.raises = RuntimeError()
    tier.transcribe()
    tier.key = "wrong"
    tier.transcribe()
    # An answer is counted when it has gone out.
    until(lambda: tier.metric("stt_requests_total", endpoint=ENDPOINT) == 8, "all are counted")
    expected = {
        "invalid_audio": 1,
        "invalid_request": 2,
        "payload_too_large": 1,
        "audio_too_long": 1,
        "method_not_allowed": 1,
        "internal": 1,
        "unauthorized": 1,
    }
    found = {type_: exceptions(tier, type_) for type_ in ERROR_TYPES}
    assert {type_: count for type_, count in found.items() if count} == expected
    rejected = {
        reason: tier.metric("stt_rejected_total", reason=reason)
        for reason in ("unauthorized", "payload_too_large", "audio_too_long", "overloaded")
    }
    assert rejected == {
        "unauthorized": 1,
        "payload_too_large": 1,
        "audio_too_long": 1,
        "overloaded": 0,
    }
    assert tier.metric("stt_request_total_seconds_count") == 0


def test_the_gauges_show_work_and_queue(tiers: Tiers) -> None:
    engine = FakeEngine(holds=threading.Event())
    tier = tiers.fallback(engine, max_concurrency=1)
    first = tier.begin(wav(silence(2)))
    engine.wait_for(1)
    second = tier.begin()
    tier.wait_for_queue(1)
    assert tier.metric("stt_in_flight") == 1
    assert tier.metric("stt_queue_depth") == 1
    assert tier.metric("stt_in_flight_audio_seconds") == 2
    assert tier.metric("stt_oldest_inference_seconds") > 0
    engine.let_go()
    assert [first.result().status_code, second.result().status_code] == [200, 200]


def test_limits_are_there_to_compare_the_gauges_with(tiers: Tiers) -> None:
    tier = tiers.fallback(max_concurrency=3, infer_timeout_s=7)
    assert tier.metric("stt_max_concurrency") == 3
    assert tier.metric("stt_max_queue") == 24
    assert tier.metric("stt_infer_timeout_seconds") == 7


def test_the_process_s_memory_is_that_of_the_snapshot(tiers: Tiers) -> None:
    tier = tiers.fallback()
    said = tier.get("/v1/metrics").json()["process"]["rss_mb"]
    assert tier.metric("stt_process_rss_mb") == pytest.approx(said, rel=0.1)
