"""The client and a real service: what a call sends, what it gives, and what it tells meanwhile."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any, TypeVar

import httpx2
import pytest

from fakes import PATIENCE, PRIMARY_KEY, FakeEngine, Reply, ScriptedFallback, answer_of_fallback
from fakes import error as refusal
from running import RunningTier, Tiers
from stt_sdk import (
    AttemptFinished,
    ConnectionFailed,
    Escalated,
    Event,
    FallbackFailedError,
    InternalError,
    InvalidAnswerError,
    NotFoundError,
    OverloadedError,
    RateLimitedError,
    RequestFinished,
    RequestStarted,
    Retried,
    RetryPolicy,
    ServiceError,
    STTClient,
    STTError,
    TimedOut,
    Transcription,
    UnauthorizedError,
)
from stt_sdk._within import within
from tones import silence, wav

Scripted = Callable[..., ScriptedFallback]
T = TypeVar("T")
CLIP = wav()
AT_ONCE = RetryPolicy(backoff=0.0)


def with_client(
    server: RunningTier | ScriptedFallback | str,
    use: Callable[[STTClient], Coroutine[Any, Any, T]],
    **options: Any,
) -> T:
    url = server if isinstance(server, str) else server.url

    async def scenario() -> T:
        async with STTClient(url, **options) as stt:
            return await use(stt)

    return asyncio.run(scenario())


def transcribe(
    server: RunningTier | ScriptedFallback | str, source: Any = CLIP, **options: Any
) -> Transcription:
    of_client = {"api_key", "retries", "telemetry", "transport", "timeout"} & options.keys()
    client = {name: options.pop(name) for name in of_client}
    return with_client(server, lambda stt: stt.transcribe(source, **options), **client)


# Results


def test_a_result_has_all_that_the_service_said(tiers: Tiers) -> None:
    tier = tiers.fallback()
    plain = tier.transcribe(timestamps="segment", language="de").json()
    result = transcribe(tier, timestamps="segment", language="de", request_id="mine:1.2-x_")

    assert result.text == plain["text"] == "from the fallback"
    assert (result.language, result.language_probability) == ("de", None)
    assert (result.duration, result.speech_duration) == (1.0, 1.0)
    assert result.model == plain["model"]
    assert vars(result.confidence) == plain["confidence"]
    assert vars(result.routing) == {**plain["routing"], "below": ()}
    (segment,) = result.segments
    assert vars(segment) == {**plain["segments"][0], "words": ()}
    assert result.timings_ms.total is not None and result.timings_ms.total > 0
    assert result.request_id == "mine:1.2-x_"
    assert result.host == tier.url
    assert result.attempts == 1
    assert result.elapsed > 0
    assert result.language_checked is False
    assert result.fallback_error is None


def test_a_result_of_a_primary_says_whether_the_language_was_checked(tiers: Tiers) -> None:
    primary, _ = tiers.cascade()
    assert transcribe(primary).language_checked is True
    assert transcribe(primary, language="de").language_checked is False
    assert transcribe(primary, language="auto").language_checked is True


def test_an_escalated_result_says_by_whom_and_why(tiers: Tiers) -> None:
    primary, _ = tiers.cascade(FakeEngine("hm", logprob=0.1))
    result = transcribe(primary)
    assert result.text == "from the fallback"
    assert result.routing.fallback_used
    assert (result.routing.tier, result.routing.reason) == ("fallback", "low_confidence")
    assert "logprob" in result.routing.below
    assert result.timings_ms.fallback_infer is not None


def test_a_degraded_result_says_why_the_fallback_gave_none(tiers: Tiers, nobody: str) -> None:
    primary = tiers.primary(
        FakeEngine("hm", logprob=0.1), fallback=nobody, on_fallback_failure="primary"
    )
    result = transcribe(primary)
    assert (result.text, result.routing.degraded) == ("hm", True)
    assert result.fallback_error is not None
    assert result.fallback_error.startswith("unreachable: ")


def test_a_clip_in_which_nobody_speaks_is_an_empty_text(tiers: Tiers) -> None:
    result = transcribe(tiers.fallback(vad=True), wav(silence(1.0)))
    assert (result.text, result.speech_duration, result.segments) == ("", 0, ())
    assert result.confidence.logprob is None


def test_words_come_with_their_times(scripted: Scripted) -> None:
    word = {"start": 0.5, "end": 1, "word": " hm", "probability": 0.25}
    segment = {
        **{"start": 0, "end": 1.5, "text": " hm", "avg_logprob": -1, "no_speech_prob": 0.5},
        "words": [word],
    }
    result = transcribe(scripted(Reply(body=answer_of_fallback(segments=[segment]))))
    assert vars(result.segments[0].words[0]) == word
    with pytest.raises(AttributeError):
        result.segments[0].words[0].start = 1.0  # type: ignore[misc]


# What a call sends


def test_a_call_sends_what_it_was_told_and_nothing_else(scripted: Scripted) -> None:
    server = scripted()

    async def use(stt: STTClient) -> None:
        await stt.transcribe(CLIP)
        await stt.transcribe(
            CLIP, language="", prompt="", task="translate", timestamps="word", request_id="mine"
        )

    with_client(server, use, api_key="sesame 1!")
    first, second = server.asked
    assert first.parts == {"audio": CLIP, "task": b"transcribe", "timestamps": b"none"}
    assert second.parts == {
        **{"audio": CLIP, "task": b"translate", "timestamps": b"word"},
        **{"language": b"", "prompt": b""},
    }
    assert first.headers["authorization"] == "Bearer sesame 1!"
    assert second.headers["x-req-id"] == "mine"
    assert len(first.headers["x-req-id"]) == 32
    assert server.connections == 1


def test_the_service_is_told_a_little_less_time_than_the_caller_waits(scripted: Scripted) -> None:
    server = scripted()
    for deadline, most in ((100, 99_750), (2, 1800)):
        transcribe(server, deadline=deadline)
        assert 1 <= int(server.asked[-1].headers["x-deadline-ms"]) <= most
    with pytest.raises(TimedOut):
        transcribe(scripted(Reply(fault="silence")), deadline=0.01)


def test_all_attempts_are_one_request_with_one_deadline(scripted: Scripted) -> None:
    server = scripted(refusal(503, "overloaded"), refusal(429, "rate_limited"), Reply())
    result = transcribe(server, retries=AT_ONCE, api_key="k", deadline=30, language="de")
    assert result.attempts == 3
    assert result.host == server.url
    ids = {asked.headers["x-req-id"] for asked in server.asked}
    assert len(ids) == 1
    assert {asked.headers["authorization"] for asked in server.asked} == {"Bearer k"}
    assert [asked.parts["audio"] for asked in server.asked] == [CLIP] * 3
    told = [int(asked.headers["x-deadline-ms"]) for asked in server.asked]
    assert told == sorted(told, reverse=True)
    assert 0 < told[2] < told[0] < 30_000


def test_what_a_hook_adds_goes_with_every_attempt(scripted: Scripted) -> None:
    server = scripted(refusal(503, "overloaded"), Reply())
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

    def hook(event: Event) -> None:
        if isinstance(event, RequestStarted):
            event.headers["traceparent"] = trace

    transcribe(server, retries=AT_ONCE, telemetry=hook)
    assert [asked.headers["traceparent"] for asked in server.asked] == [trace, trace]


def test_proxies_of_the_environment_are_not_used(
    scripted: Scripted, nobody: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, nobody)
    assert transcribe(scripted()).text == "from the fallback"


def test_the_caller_s_own_transport_is_the_only_way_to_the_wire() -> None:
    seen: list[httpx2.Request] = []

    def handle(request: httpx2.Request) -> httpx2.Response:
        seen.append(request)
        return httpx2.Response(200, json=answer_of_fallback())

    result = transcribe("http://primary/stt/", transport=httpx2.MockTransport(handle))
    assert result.text == "from the fallback"
    assert str(seen[0].url) == "http://primary/stt/v1/transcribe"


# Retries


@pytest.mark.parametrize(
    ("status", "type_"), [(503, "overloaded"), (503, "draining"), (503, "not_ready"), (503, "")]
)
def test_a_503_is_tried_again(scripted: Scripted, status: int, type_: str) -> None:
    server = scripted(refusal(status, type_), Reply())
    assert transcribe(server, retries=AT_ONCE).attempts == 2


def test_a_429_is_tried_again_after_the_time_it_asks_for(scripted: Scripted) -> None:
    server = scripted(refusal(429, "rate_limited", **{"Retry-After": "1"}), Reply())
    waits: list[float] = []

    def hook(event: Event) -> None:
        if isinstance(event, Retried):
            assert isinstance(event.after, RateLimitedError)
            waits.append(event.wait)

    result = transcribe(server, retries=AT_ONCE, telemetry=hook)
    assert (result.attempts, waits) == (2, [1.0])
    assert result.elapsed >= 1.0


def test_one_that_asks_for_more_time_than_there_is_is_told_at_once(scripted: Scripted) -> None:
    server = scripted(refusal(503, "overloaded", **{"Retry-After": "30"}))
    with pytest.raises(OverloadedError, match="after the deadline") as caught:
        transcribe(server, deadline=20)
    assert len(server.asked) == 1
    assert caught.value.retry_after == 30
    assert "it asks to wait 30 s" in str(caught.value)


def test_an_absurd_time_is_not_waited_for(scripted: Scripted) -> None:
    for absurd in ("1e9", "-5", "nan", "inf", "Fri, 31 Dec 9999 23:59:59 GMT", "soon"):
        server = scripted(refusal(503, "overloaded", **{"Retry-After": absurd}), Reply())
        assert transcribe(server, retries=AT_ONCE).attempts == 2


@pytest.mark.parametrize(
    "reply",
    [refusal(500, "internal"), refusal(502, "fallback_failed"), refusal(504, "deadline_exceeded")],
    ids=["500", "502", "504"],
)
def test_what_was_worked_on_is_not_tried_again(scripted: Scripted, reply: Reply) -> None:
    server = scripted(reply, Reply())
    with pytest.raises(ServiceError) as caught:
        transcribe(server, retries=AT_ONCE)
    assert len(server.asked) == caught.value.attempts == 1


def test_a_connection_lost_after_the_clip_went_out_is_not_tried_again_on_the_same_host(
    scripted: Scripted,
) -> None:
    server = scripted(Reply(fault="cut"), Reply())
    with pytest.raises(ConnectionFailed, match="not tried again: it may have been worked on"):
        transcribe(server, retries=AT_ONCE)
    assert len(server.asked) == 1


def test_a_host_that_cannot_be_reached_is_tried_again(nobody: str) -> None:
    with pytest.raises(ConnectionFailed, match="3 attempts") as caught:
        transcribe(nobody, retries=AT_ONCE)
    assert caught.value.attempts == 3
    assert not caught.value.sent


def test_a_stream_is_sent_once_but_waits_for_a_host_that_it_never_reached(
    scripted: Scripted, nobody: str
) -> None:
    async def stream() -> AsyncIterator[bytes]:
        yield CLIP

    with pytest.raises(OverloadedError, match="not tried again: a stream cannot be sent twice"):
        transcribe(scripted(refusal(503, "overloaded"), Reply()), stream(), retries=AT_ONCE)
    with pytest.raises(ConnectionFailed, match="3 attempts"):
        transcribe(nobody, stream(), retries=AT_ONCE)


def test_retries_can_be_switched_off(scripted: Scripted) -> None:
    server = scripted(refusal(503, "overloaded"), Reply())
    with pytest.raises(OverloadedError, match="not tried again: retries=0"):
        transcribe(server, retries=0)
    assert len(server.asked) == 1


def test_with_the_budget_spent_the_error_says_so(scripted: Scripted) -> None:
    async def use(stt: STTClient) -> str:
        for _ in range(5):
            with pytest.raises(OverloadedError) as caught:
                await stt.transcribe(CLIP)
        return str(caught.value)

    server = scripted(refusal(503, "overloaded"))
    assert "the retry budget is spent" in with_client(server, use, retries=AT_ONCE)


# Health, readiness, metrics


def test_health_readiness_and_metrics_are_what_the_service_says(tiers: Tiers) -> None:
    tier = tiers.fallback(api_keys=(PRIMARY_KEY,), server_commit="abc")

    async def use(stt: STTClient) -> None:
        health = await stt.health()
        assert (health.ok, health.service, health.commit) == (True, "stt-fallback", "abc")
        assert vars(health).keys() == tier.get("/v1/health").json().keys()
        ready = await stt.ready()
        assert (ready.ready, ready.state) == (True, tier.get("/v1/ready").json()["state"])
        metrics = await stt.metrics()
        assert metrics.keys() == tier.get("/v1/metrics", headers=tier.authorization).json().keys()

    with_client(tier, use, api_key=PRIMARY_KEY)


def test_a_service_that_is_not_ready_says_so_without_an_error(tiers: Tiers) -> None:
    loading = tiers.run(tiers.fallback().config, FakeEngine(loads=threading.Event()), wait=False)
    readiness = with_client(loading, lambda stt: stt.ready())
    assert not readiness.ready
    assert readiness.state
    assert with_client(loading, lambda stt: stt.health()).ok

    going = tiers.fallback()
    going.service.drain()
    readiness = with_client(going, lambda stt: stt.ready())
    assert (readiness.ready, readiness.state) == (False, "draining")


def test_a_service_that_cannot_recover_is_not_healthy(scripted: Scripted) -> None:
    body = {
        **{"ok": False, "service": "stt-primary", "model": "m", "device": "cpu"},
        **{"commit": "c", "version": "0", "uptime_s": 5},
    }
    assert not with_client(scripted(Reply(503, body)), lambda stt: stt.health()).ok


@pytest.mark.parametrize("name", ["health", "ready", "metrics"])
@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        (Reply(200, b"<html>"), InvalidAnswerError),
        (Reply(200, b"[]"), InvalidAnswerError),
        (Reply(200, b"[" * 100_000), InvalidAnswerError),
        (Reply(200, fault="endless"), InvalidAnswerError),
        (Reply(404, b"no such page"), ServiceError),
        (refusal(404, "not_found"), NotFoundError),
        (refusal(401, "unauthorized"), UnauthorizedError),
        (Reply(503, b"upstream connect error"), ServiceError),
        (Reply(fault="cut"), ConnectionFailed),
    ],
)
def test_another_answer_is_an_error_that_says_whose(
    scripted: Scripted, name: str, reply: Reply, kind: type[STTError]
) -> None:
    server = scripted(reply)
    with pytest.raises(kind) as caught:
        with_client(server, lambda stt: getattr(stt, name)())
    assert type(caught.value) is kind
    assert server.url in str(caught.value)
    assert caught.value.elapsed is not None
    assert server.asked[0].path == f"/v1/{name}"


@pytest.mark.parametrize("changes", [{"ok": "yes"}, {"uptime_s": None}, {"model": 5}])
def test_a_health_of_other_values_is_none(scripted: Scripted, changes: dict[str, Any]) -> None:
    body = {
        **{"ok": True, "service": "s", "model": "m", "device": "cpu"},
        **{"commit": "c", "version": "0", "uptime_s": 5},
    }
    with pytest.raises(InvalidAnswerError):
        with_client(scripted(Reply(200, body | changes)), lambda stt: stt.health())


# Events


def told(
    server: RunningTier | ScriptedFallback | str, **options: Any
) -> tuple[list[Event], Transcription | STTError]:
    """The events of a call, and what it ended with."""
    events: list[Event] = []
    try:
        return events, transcribe(server, telemetry=events.append, **options)
    except STTError as error:
        return events, error


def test_the_events_of_a_success(scripted: Scripted) -> None:
    server = scripted()
    events, result = told(server, request_id="mine")
    started, attempt, finished = events
    assert isinstance(started, RequestStarted)
    assert (started.audio_seconds, started.audio_bytes) == (1.0, len(CLIP))
    assert isinstance(attempt, AttemptFinished)
    assert (attempt.number, attempt.host) == (1, server.url)
    assert (attempt.status, attempt.error) == (200, None)
    assert isinstance(finished, RequestFinished)
    assert (finished.host, finished.attempts) == (server.url, 1)
    assert (finished.result, finished.error) == (result, None)
    assert 0 < attempt.seconds <= finished.seconds
    assert {event.request_id for event in events} == {"mine"}


def test_the_events_of_a_retry(scripted: Scripted) -> None:
    server = scripted(refusal(503, "overloaded"), Reply())
    events, _ = told(server, retries=RetryPolicy(backoff=0.001))
    started, failed, retried, succeeded, finished = events
    assert isinstance(started, RequestStarted)
    assert isinstance(failed, AttemptFinished) and isinstance(failed.error, OverloadedError)
    assert (failed.number, failed.status, failed.error.host) == (1, 503, server.url)
    assert isinstance(retried, Retried)
    assert (retried.number, retried.after) == (2, failed.error)
    assert 0 <= retried.wait <= 0.001
    assert isinstance(succeeded, AttemptFinished) and succeeded.number == 2
    assert isinstance(finished, RequestFinished) and finished.attempts == 2


def test_the_events_of_an_escalation(tiers: Tiers) -> None:
    primary, _ = tiers.cascade(FakeEngine("hm", logprob=0.1))
    events, result = told(primary)
    _, _, escalated, finished = events
    assert isinstance(result, Transcription)
    assert isinstance(escalated, Escalated)
    assert (escalated.reason, escalated.below) == ("low_confidence", result.routing.below)
    assert escalated.fallback_ms == result.timings_ms.fallback_infer
    assert not escalated.degraded
    assert isinstance(finished, RequestFinished)


@pytest.mark.parametrize("on_failure", ["error", "primary"])
def test_the_events_of_an_escalation_that_failed(
    tiers: Tiers, nobody: str, on_failure: str
) -> None:
    primary = tiers.primary(
        FakeEngine("hm", logprob=0.1), fallback=nobody, on_fallback_failure=on_failure
    )
    events, ended = told(primary)
    _, _, escalated, finished = events
    assert isinstance(escalated, Escalated)
    assert (escalated.reason, escalated.degraded) == ("low_confidence", on_failure == "primary")
    assert "logprob" in escalated.below
    assert isinstance(finished, RequestFinished)
    assert isinstance(ended, FallbackFailedError if on_failure == "error" else Transcription)


@pytest.mark.parametrize(
    ("reply", "kind", "status"),
    [
        (refusal(500, "internal"), InternalError, 500),
        (Reply(200, b"{}"), InvalidAnswerError, 200),
        (Reply(fault="reset"), ConnectionFailed, None),
    ],
)
def test_the_events_of_a_failure(
    scripted: Scripted, reply: Reply, kind: type[STTError], status: int | None
) -> None:
    events, ended = told(scripted(reply))
    _, attempt, finished = events
    assert isinstance(attempt, AttemptFinished) and isinstance(finished, RequestFinished)
    assert (attempt.status, attempt.error) == (status, ended)
    assert (finished.result, finished.error, finished.attempts) == (None, ended, 1)
    assert type(ended) is kind


def test_a_source_that_cannot_be_read_begins_no_call(scripted: Scripted) -> None:
    server = scripted()
    events: list[Event] = []
    with pytest.raises(FileNotFoundError):
        transcribe(server, "nobody.wav", telemetry=events.append)
    assert (events, server.asked) == ([], [])


def test_of_a_stream_no_length_is_told_that_is_not_known(scripted: Scripted) -> None:
    async def stream() -> AsyncIterator[bytes]:
        yield CLIP

    events, _ = told(scripted(), source=stream())
    assert isinstance(events[0], RequestStarted)
    assert (events[0].audio_seconds, events[0].audio_bytes) == (None, None)


def test_hooks_that_raise_break_no_call_and_no_other_hook(
    scripted: Scripted, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(event: Event) -> None:
        raise ZeroDivisionError("the hook's")

    async def broken_later(event: Event) -> None:
        raise ZeroDivisionError("the late hook's")

    events: list[Event] = []
    server = scripted(refusal(503, "overloaded"), Reply(), refusal(500, "internal"))

    async def use(stt: STTClient) -> None:
        assert (await stt.transcribe(CLIP)).attempts == 2
        with pytest.raises(InternalError):
            await stt.transcribe(CLIP)

    with_client(server, use, retries=AT_ONCE, telemetry=[broken, broken_later, events.append])
    assert len(events) == 5 + 3
    assert "the hook's" in caplog.text
    assert "the late hook's" in caplog.text


def test_the_statistics_are_those_of_the_calls(tiers: Tiers) -> None:
    primary, _ = tiers.cascade(FakeEngine("hm", logprob=0.1))

    async def use(stt: STTClient) -> None:
        for _ in range(3):
            await stt.transcribe(CLIP)
        with pytest.raises(STTError):
            await stt.transcribe(b"no audio")
        stats = stt.stats
        assert (stats.count, stats.errors, stats.escalated) == (4, 1, 3)
        assert stats.total.count == 4
        assert stats.primary.count == stats.fallback.count == 3

    with_client(primary, use)


def test_those_of_a_fallback_s_client_have_its_inferences(tiers: Tiers) -> None:
    async def use(stt: STTClient) -> None:
        await stt.transcribe(CLIP)
        assert (stt.stats.fallback.count, stt.stats.escalated) == (1, 0)

    with_client(tiers.fallback(), use)


# Arguments, and the end


@pytest.mark.parametrize(
    "address",
    [
        *["", "localhost:8081", "ftp://host", "http://", "http://host:99999", "http://[::1"],
        *["http://host:0", "https://127.0.0.1:0/", "http://[::1]:00"],  # 80 would be asked
        *["http://user:secret@host", "http://host/?key=secret", "http://host/#secret"],
        *["http://user:secret@host:99999999", "http://user:secret@[::1", "u:secret@host"],
        *["http:/u:secret@host", "http://u:secret@host\0", "http://u:secret\uff20host"],
        *[None, 5, b"http://host"],
    ],
)
def test_an_address_that_is_none_is_refused_and_shows_no_secret(address: Any) -> None:
    with pytest.raises(ValueError, match="address") as caught:
        STTClient(address)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "key", ["a\nb", "schlüssel", "\x00", "key\n", "secret ", " secret", " ", "s\t", "s\u00a0"]
)
def test_a_key_that_cannot_be_sent_is_refused_and_not_shown(key: str) -> None:
    with pytest.raises(ValueError, match="printable ASCII") as caught:
        STTClient("http://host", api_key=key)
    assert not key.strip() or key not in str(caught.value)


def test_a_header_of_a_hook_that_cannot_be_sent_is_named_and_not_shown(scripted: Scripted) -> None:
    def hook(event: Event) -> None:
        if isinstance(event, RequestStarted):
            event.headers["X-Token"] = "secret "

    async def use(stt: STTClient) -> None:
        with pytest.raises(ValueError, match="header that is not allowed: 'X-Token'") as caught:
            await stt.transcribe(CLIP)
        below: BaseException | None = caught.value
        while below is not None:
            assert "secret" not in str(below)
            below = below.__cause__ or below.__context__

    with_client(scripted(), use, telemetry=hook)


def test_a_cookie_is_not_kept(scripted: Scripted) -> None:
    service = scripted(Reply(headers={"Set-Cookie": f"a={'x' * 48_000}; Path=/"}), Reply())

    async def use(stt: STTClient) -> None:
        for _ in range(3):
            await stt.transcribe(CLIP)

    with_client(service, use)
    assert not any("cookie" in asked.headers for asked in service.asked)


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf"), None, "5"])
def test_a_time_that_makes_no_sense_is_refused(seconds: Any) -> None:
    with pytest.raises(ValueError, match=r"timeout must be a (positive )?number of seconds, not"):
        STTClient("http://host", timeout=seconds)
    if seconds not in (None, 0, -1):  # the client's; those that have passed
        with pytest.raises(ValueError, match="deadline must be a number of seconds, not"):
            transcribe("http://host", deadline=seconds)


@pytest.mark.parametrize("request_id", ["", "a b", "ä", "x" * 129, "a\r\nb"])
def test_a_request_id_that_the_service_would_replace_is_refused(request_id: str) -> None:
    with pytest.raises(ValueError, match="request_id must be 1 to 128 of letters"):
        transcribe("http://host", request_id=request_id)


def test_a_closed_client_says_so_and_may_be_closed_again(scripted: Scripted) -> None:
    server = scripted()

    async def scenario() -> None:
        stt = STTClient(server.url)
        async with stt:
            await stt.transcribe(CLIP)
        await stt.aclose()
        with pytest.raises(RuntimeError, match="closed"):
            await stt.transcribe(CLIP)
        with pytest.raises(RuntimeError, match="closed"):
            await stt.health()

    asyncio.run(scenario())
    assert len(server.asked) == 1


def test_without_a_context_manager_it_works_too(scripted: Scripted) -> None:
    async def scenario() -> str:
        stt = STTClient(scripted().url)
        text = (await stt.transcribe(CLIP)).text
        await stt.aclose()
        return text

    assert asyncio.run(scenario()) == "from the fallback"


def test_calls_at_once_do_not_wait_for_each_other(scripted: Scripted) -> None:
    held = threading.Event()
    server = scripted(Reply(holds=held))

    async def use(stt: STTClient) -> list[str]:
        calls: list[Awaitable[Transcription]] = [stt.transcribe(CLIP) for _ in range(100)]
        together = asyncio.gather(*calls)
        await asyncio.to_thread(server.wait_for, 100)
        held.set()
        return [result.text for result in await within(PATIENCE, together)]

    assert with_client(server, use) == ["from the fallback"] * 100
