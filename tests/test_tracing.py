"""One trace of a request, from the SDK through the primary to the fallback."""

from __future__ import annotations

import asyncio
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from structlog.testing import capture_logs

from collector import Collector, Span
from fakes import FALLBACK_KEY, PATIENCE, FakeEngine, Reply, ScriptedFallback, error
from faults import load as calls
from faults.lab import Lab
from running import RunningTier, Tiers, env_file, until
from stt_cascade.config import ConfigError, FallbackConfig
from stt_cascade.config_file import load
from stt_cascade.http.app import create_app
from stt_cascade.telemetry import tracing
from stt_sdk import FallbackFailedError, STTClient, STTError, Transcription
from stt_sdk._within import within
from stt_sdk.hooks import OpenTelemetryHook
from tones import wav

TRACE, CALLER = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SAMPLED = f"00-{TRACE}-{CALLER}-01"


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spans are sent soon, not every other second; who does not take them is given up soon."""
    monkeypatch.setattr(tracing, "EVERY_S", 0.02)
    monkeypatch.setattr(tracing, "FLUSH_S", 1.0)


@pytest.fixture
def collector() -> Iterator[Collector]:
    collector = Collector()
    yield collector
    collector.stop()


def doubting() -> FakeEngine:
    return FakeEngine(weakest=0.1, logprob=0.2)


class Traced:
    """A cascade whose tiers trace, called by an SDK that does, too."""

    def __init__(self, tiers: Tiers, collector: Collector) -> None:
        self._tiers = tiers
        self._collector = collector

    def primary(self, engine: FakeEngine, fallback: ScriptedFallback | None = None) -> RunningTier:
        url = self._collector.url
        second = fallback or self._tiers.fallback(api_keys=(FALLBACK_KEY,), otlp_endpoint=url)
        return self._tiers.primary(engine, fallback=second, otlp_endpoint=url)

    def ask(self, primary: RunningTier, audio: bytes | None = None) -> Transcription | STTError:
        provider = TracerProvider(resource=Resource({"service.name": "caller"}))
        exporter = OTLPSpanExporter(f"{self._collector.url}/v1/traces")
        provider.add_span_processor(SimpleSpanProcessor(exporter))

        async def call() -> Transcription | STTError:
            hook = OpenTelemetryHook(provider)
            async with STTClient(primary.url, telemetry=hook, retries=0) as client:
                try:
                    return await client.transcribe(wav() if audio is None else audio)
                except STTError as failure:
                    return failure

        result = asyncio.run(call())
        provider.shutdown()
        return result

    def trace(self, *services: str) -> Tree:
        """All spans, once the request's own has come from each of these."""
        roots = {f"stt-{service}" for service in services}
        came = self._collector.spans(
            lambda spans: roots <= {span.service for span in spans if span.kind == "SERVER"}
        )
        return Tree(came)


class Tree:
    def __init__(self, spans: list[Span]) -> None:
        self.spans = spans

    def one(self, service: str, name: str) -> Span:
        (found,) = (s for s in self.spans if (s.service, s.name) == (service, name))
        return found

    def below(self, span: Span) -> list[Span]:
        """Its children, as they began."""
        children = [each for each in self.spans if each.parent == span.id]
        return sorted(children, key=lambda each: (each.began, each.ended))

    def names_below(self, span: Span) -> list[str]:
        return [each.name for each in self.below(span)]


@pytest.fixture
def traced(tiers: Tiers, collector: Collector) -> Traced:
    return Traced(tiers, collector)


REQUEST, CALL = "POST /v1/transcribe", "POST /v1/transcribe"


def servers(tree: Tree) -> list[Span]:
    found = [span for span in tree.spans if span.kind == "SERVER"]
    return sorted(found, key=lambda span: span.began)


def test_an_accepted_clip_is_one_trace_from_the_caller_to_the_primarys_stages(
    traced: Traced,
) -> None:
    result = traced.ask(traced.primary(FakeEngine()))
    tree = traced.trace("primary")
    assert isinstance(result, Transcription)
    assert {span.trace for span in tree.spans} == {tree.one("caller", "attempt").trace}
    (server,) = servers(tree)
    assert server.parent == tree.one("caller", REQUEST).id
    assert tree.names_below(server) == ["receive", "decode", "queue", "infer", "decide", "answer"]
    assert not any(span.failed for span in tree.spans)
    times = [time for span in tree.below(server) for time in (span.began, span.ended)]
    assert times == sorted(times)  # one after the other
    assert server.began <= times[0] and times[-1] <= server.ended


def test_the_primarys_span_says_what_its_log_line_and_headers_say(traced: Traced) -> None:
    primary = traced.primary(FakeEngine())
    result = traced.ask(primary)
    (server,) = servers(traced.trace("primary"))
    assert isinstance(result, Transcription)
    agent = server.facts.pop("user_agent.original")
    assert agent.startswith("stt-sdk") or agent
    assert server.facts.pop("network.peer.port") > 0
    assert server.facts == {
        "http.request.method": "POST",
        "http.route": "/v1/transcribe",
        "http.response.status_code": 200,
        "url.path": "/v1/transcribe",
        "url.scheme": "http",
        "network.protocol.version": "1.1",
        "server.address": "127.0.0.1",
        "server.port": primary.port,
        "client.address": "127.0.0.1",
        "network.peer.address": "127.0.0.1",
        "stt.request_id": result.request_id,
        "stt.tier": "primary",
        "stt.audio_seconds": 1.0,
        "stt.language": "en",
        "stt.model": "fake",
        "stt.reason": "accepted",
        "stt.fallback_used": False,
    }


def test_an_escalated_clip_is_one_trace_over_both_tiers(traced: Traced) -> None:
    result = traced.ask(traced.primary(doubting()))
    tree = traced.trace("primary", "fallback")
    assert isinstance(result, Transcription)
    assert result.routing.tier == "fallback"
    assert len({span.trace for span in tree.spans}) == 1
    primary, fallback = servers(tree)
    stages = ["receive", "decode", "queue", "infer", "decide", CALL, "answer"]
    assert tree.names_below(primary) == stages
    call = tree.below(primary)[5]
    assert (call.kind, call.service) == ("CLIENT", "stt-primary")
    assert fallback.parent == call.id
    assert call.began <= fallback.began
    assert tree.names_below(fallback) == ["receive", "decode", "queue", "infer", "answer"]
    assert primary.facts["stt.below"] == ["logprob"]
    assert call.facts["stt.reason"] == primary.facts["stt.reason"] == "low_confidence"
    assert call.facts["server.port"] == fallback.facts["server.port"]
    assert primary.facts["stt.request_id"] == fallback.facts["stt.request_id"]
    assert not any(span.failed for span in tree.spans)


def test_a_fallback_that_fails_is_seen_in_the_call_and_in_the_request(
    traced: Traced, scripted: Callable[..., ScriptedFallback]
) -> None:
    broken = scripted(error(500, "internal"))
    result = traced.ask(traced.primary(doubting(), broken))
    tree = traced.trace("primary")
    assert isinstance(result, FallbackFailedError)
    (server,) = servers(tree)
    call = tree.below(server)[-1]
    assert (call.name, call.kind, call.failed) == (CALL, "CLIENT", True)
    assert call.facts["error.type"] == "error"
    assert call.said
    assert broken.asked[0].headers["traceparent"].split("-")[1:3] == [server.trace, call.id]
    assert server.failed
    assert server.facts["error.type"] == "fallback_failed"
    assert server.facts["http.response.status_code"] == 502
    assert [span.failed for span in tree.below(server)[:-1]] == [False] * 5


def test_a_clip_without_speech_has_neither_inference_nor_call(
    tiers: Tiers, traced: Traced, collector: Collector
) -> None:
    primary = tiers.primary(fallback="http://127.0.0.1:9", vad=True, otlp_endpoint=collector.url)
    result = traced.ask(primary)
    tree = traced.trace("primary")
    assert isinstance(result, Transcription)
    assert not result.text
    (server,) = servers(tree)
    assert tree.names_below(server) == ["receive", "decode", "answer"]
    assert server.facts["stt.reason"] == "no_speech"


def test_a_primary_that_breaks_is_seen_in_its_inference(traced: Traced) -> None:
    traced.ask(traced.primary(FakeEngine(raises=RuntimeError("out of memory"))))
    tree = traced.trace("primary", "fallback")
    primary, _ = servers(tree)
    infer = tree.below(primary)[3]
    assert (infer.name, infer.failed, infer.facts["error.type"]) == ("infer", True, "RuntimeError")
    assert not primary.failed  # it had its text, from the fallback
    assert tree.names_below(primary)[4:] == [CALL, "answer"]


def test_a_refusal_is_seen_where_it_happened(traced: Traced) -> None:
    result = traced.ask(traced.primary(FakeEngine()), b"no audio at all")
    tree = traced.trace("primary")
    assert isinstance(result, STTError)
    (server,) = servers(tree)
    assert tree.names_below(server) == ["receive", "decode"]
    assert tree.below(server)[-1].facts["error.type"] == "invalid_audio"
    assert server.facts["http.response.status_code"] == 400
    assert not server.failed  # the caller's fault is no failure of a server


def test_who_waits_in_vain_has_no_inference(tiers: Tiers, collector: Collector) -> None:
    held = threading.Event()
    tier = tiers.fallback(FakeEngine(holds=held), max_concurrency=1, otlp_endpoint=collector.url)
    first = tier.begin()
    tier.fake.wait_for(1)
    assert tier.transcribe(headers={"X-Deadline-Ms": "300"}).status_code in (503, 504)
    (server,) = servers(Tree(collector.spans(lambda spans: bool(servers(Tree(spans))))))
    tree = Tree(collector.spans(lambda spans: True))
    assert "infer" not in tree.names_below(server)
    assert server.failed
    held.set()
    assert first.result().status_code == 200


def test_a_caller_without_a_trace_begins_one(tiers: Tiers, collector: Collector) -> None:
    tier = tiers.fallback(otlp_endpoint=collector.url)
    tier.transcribe()
    (server,) = servers(Tree(collector.spans(lambda spans: bool(servers(Tree(spans))))))
    assert not server.parent


def test_a_caller_who_wants_no_trace_has_none_on_either_tier(
    tiers: Tiers, collector: Collector, scripted: Callable[..., ScriptedFallback]
) -> None:
    fallback = scripted(Reply())
    tier = tiers.primary(doubting(), fallback=fallback, otlp_endpoint=collector.url)
    tier.transcribe(headers={"traceparent": f"00-{TRACE}-{CALLER}-00"})
    tier.transcribe(headers={"traceparent": SAMPLED})
    spans = collector.spans(lambda spans: bool(servers(Tree(spans))))
    assert {span.parent for span in spans if span.kind == "SERVER"} == {CALLER}
    assert len(servers(Tree(spans))) == 1
    first, second = (asked.headers["traceparent"] for asked in fallback.asked)
    assert first.startswith(f"00-{TRACE}-") and first.endswith("-00")
    assert second.startswith(f"00-{TRACE}-") and not second.endswith("-00")


@pytest.mark.parametrize(
    ("parent", "state", "told"),
    [
        (SAMPLED, "a=1, b=2", "a=1,b=2"),
        (f"00-{TRACE}-{CALLER}-00", "a=1", "a=1"),
        (SAMPLED, "no list", None),
        (f"00-{'0' * 32}-{CALLER}-01", "a=1", None),
        (None, "a=1", None),
    ],
    ids=["sampled", "unsampled", "no-tracestate", "no-traceparent", "alone"],
)
def test_the_callers_tracestate_is_handed_on_with_the_trace_it_belongs_to(
    parent: str | None,
    state: str,
    told: str | None,
    tiers: Tiers,
    collector: Collector,
    scripted: Callable[..., ScriptedFallback],
) -> None:
    fallback = scripted(Reply())
    with capture_logs() as lines:
        tier = tiers.primary(doubting(), fallback=fallback, otlp_endpoint=collector.url)
        headers = {"tracestate": state} | ({} if parent is None else {"traceparent": parent})
        assert tier.transcribe(headers=headers).status_code == 200
    (asked,) = fallback.asked
    assert asked.headers.get("tracestate") == told
    assert not _trouble(lines)


def test_probes_and_scrapes_leave_no_traces(tiers: Tiers, collector: Collector) -> None:
    tier = tiers.fallback(otlp_endpoint=collector.url)
    for path in ("/v1/health", "/v1/ready", "/v1/metrics", "/metrics", "/nothing"):
        tier.get(path)
    tier.transcribe()
    tree = Tree(collector.spans(lambda spans: len(servers(Tree(spans))) > 1))
    assert [span.name for span in servers(tree)] == ["GET", REQUEST]


def test_neither_text_nor_prompt_nor_key_is_in_a_span(tiers: Tiers, collector: Collector) -> None:
    url, key, prompt = collector.url, "callers-key-0123456789", "What Mrs Smith spells"
    fallback = tiers.fallback(api_keys=(FALLBACK_KEY,), otlp_endpoint=url)
    primary = tiers.primary(doubting(), fallback=fallback, api_keys=(key,), otlp_endpoint=url)
    text = primary.transcribe(prompt=prompt).json()["text"]
    refused = primary.transcribe(headers={"Authorization": "Bearer mistyped-key"})
    assert (bool(text), refused.status_code) == (True, 401)
    told = repr(collector.spans(lambda spans: len(servers(Tree(spans))) == 3))
    assert not [said for said in (text, prompt, key, "mistyped", FALLBACK_KEY) if said in told]


@pytest.mark.parametrize(
    "wrong",
    [
        "00-0-0-01",
        f"00-{'0' * 32}-{CALLER}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"ff-{TRACE}-{CALLER}-01",
        f"{SAMPLED}, {SAMPLED}",
        "x" * 5000,
    ],
)
def test_a_traceparent_that_is_none_begins_a_new_trace(
    wrong: str, tiers: Tiers, collector: Collector
) -> None:
    tier = tiers.fallback(otlp_endpoint=collector.url)
    assert tier.transcribe(headers={"traceparent": wrong}).status_code == 200
    (server,) = servers(Tree(collector.spans(lambda spans: bool(servers(Tree(spans))))))
    assert (server.parent, int(server.trace, 16) > 0, server.trace == TRACE) == ("", True, False)


def test_what_is_left_is_sent_before_a_tier_ends(
    tiers: Tiers, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracing, "EVERY_S", 3600.0)
    monkeypatch.setattr(tracing, "FLUSH_S", PATIENCE)
    tier = tiers.fallback(otlp_endpoint=collector.url)
    tier.transcribe()
    tier.stop()
    tier.wait_until_stopped()
    assert servers(Tree(collector.spans(lambda spans: True)))


async def ended_by_sigterm(collector: str) -> tuple[int, int]:
    """A process that traces: the status of its one answer, and of its end."""
    async with Lab() as lab:
        tier = await lab.fallback(OTLP_ENDPOINT=collector)
        answer = await calls.call(tier.port, calls.upload())
        tier.process.send_signal(signal.SIGTERM)
        status = await within(PATIENCE, tier.process.wait())
        return answer.status, status


@pytest.mark.process
def test_a_process_that_is_stopped_sends_what_is_left(collector: Collector) -> None:
    assert asyncio.run(ended_by_sigterm(collector.url)) == (200, -signal.SIGTERM)
    assert servers(Tree(collector.spans(lambda spans: True)))


@pytest.mark.process
def test_a_process_whose_collector_is_down_ends_as_ever(nobody: str) -> None:
    assert asyncio.run(ended_by_sigterm(nobody)) == (200, -signal.SIGTERM)


def test_a_collector_that_is_down_costs_no_request_and_is_logged_once(
    tiers: Tiers, nobody: str, caplog: pytest.LogCaptureFixture
) -> None:
    with capture_logs() as lines:
        tier = tiers.fallback(otlp_endpoint=nobody)
        for _ in range(5):
            assert tier.transcribe().status_code == 200
        until(lambda: _trouble(lines) == 1, "the trouble is logged")
        assert tier.transcribe().status_code == 200
        tier.stop()
        tier.wait_until_stopped()
    assert _trouble(lines) == 1
    assert not [record for record in caplog.records if record.name.startswith("opentelemetry")]


def _trouble(lines: Any) -> int:
    return sum(line["event"] == "traces cannot be sent" for line in lines)


def test_a_collector_that_never_answers_holds_up_no_request_and_no_stop(tiers: Tiers) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        tier = tiers.fallback(otlp_endpoint=url)
        for _ in range(3):
            assert tier.transcribe().status_code == 200
        tier.stop()
        tier.wait_until_stopped()


def test_what_a_collector_cannot_take_is_dropped_not_kept(
    tiers: Tiers, monkeypatch: pytest.MonkeyPatch, nobody: str
) -> None:
    monkeypatch.setattr(tracing, "MAX_WAITING", 16)
    monkeypatch.setattr(tracing, "BATCH", 8)
    tier = tiers.fallback(otlp_endpoint=nobody)
    for _ in range(20):
        assert tier.transcribe().status_code == 200


def test_the_process_environment_has_no_say(
    tiers: Tiers, collector: Collector, monkeypatch: pytest.MonkeyPatch, nobody: str
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", nobody)
    monkeypatch.setenv("HTTP_PROXY", nobody)
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always_off")
    monkeypatch.setenv("OTEL_SERVICE_NAME", "another")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "service.name=another")
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    monkeypatch.setenv("OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", "1")
    monkeypatch.setenv("OTEL_SPAN_ATTRIBUTE_VALUE_LENGTH_LIMIT", "1")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20another")
    tier = tiers.fallback(otlp_endpoint=collector.url)
    tier.transcribe()
    spans = collector.spans(lambda spans: bool(servers(Tree(spans))))
    assert {span.service for span in spans} == {"stt-fallback"}
    (server,) = servers(Tree(spans))
    assert server.facts["http.route"] == "/v1/transcribe"
    assert not collector.authorizations


# FastAPI imports the interface by itself where it is there; it sends nothing.
OFF = """
import sys, threading
sys.path.insert(0, "tests")
from running import running_tiers
with running_tiers() as tiers:
    assert tiers.fallback().transcribe().status_code == 200
    threads = [each.name for each in threading.enumerate()]
sending = ("opentelemetry.sdk", "opentelemetry.exporter", "stt_cascade.telemetry.tracing")
print([name for name in sys.modules if name.startswith(sending)])
print([name for name in threads if "Otel" in name])
"""


@pytest.mark.process
def test_without_the_setting_nothing_of_it_is_imported_and_no_thread_runs() -> None:
    ran = subprocess.run(
        [sys.executable, "-c", OFF], capture_output=True, text=True, timeout=PATIENCE
    )
    assert ran.stdout.splitlines()[-2:] == ["[]", "[]"], ran.stderr


def test_without_the_extra_the_start_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delitem(sys.modules, "stt_cascade.telemetry.tracing")
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http", None)
    config = FallbackConfig(model_path="x", otlp_endpoint="http://127.0.0.1:4318")
    with pytest.raises(ConfigError, match=r"OTLP_ENDPOINT .*'\.\[server,tracing\]'"):
        create_app(config, FakeEngine())


@pytest.mark.parametrize(
    "wrong",
    [
        "otel:4318",
        "grpc://otel:4317",
        "http://me:word@otel:4318",
        "http://otel:43l8/v1",
        "http://otel:99999",
    ],
)
def test_an_address_that_is_none_is_refused(wrong: str, tmp_path: Path) -> None:
    file = env_file(tmp_path / "x.env", CT2_MEDIUM_PATH="x", OTLP_ENDPOINT=wrong)
    with pytest.raises(ConfigError, match=r"OTLP_ENDPOINT=.* such as http://otel-collector:4318"):
        load(FallbackConfig, file)
