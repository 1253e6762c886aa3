"""Whatever goes wrong is one class, knows all there is to know, and says where to look."""

from __future__ import annotations

import asyncio
import copy
import gzip
import json
import pickle
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx2
import pytest

import stt_sdk
from fakes import PRIMARY_KEY, FakeEngine, Fault, Reply, ScriptedFallback, answer_of_fallback
from fakes import error as refusal
from running import RunningTier, Tiers
from stt_sdk import STTClient, STTError, Timings, Transcription, _answer, _exchange
from stt_sdk._errors import BY_TYPE
from tones import tone, wav

Scripted = Callable[..., ScriptedFallback]
CLIP = wav()


def error_of(
    server: RunningTier | ScriptedFallback | str, source: Any = CLIP, **options: Any
) -> STTError:
    """What a call ends with that is made once."""
    url = server if isinstance(server, str) else server.url
    client = {name: options.pop(name) for name in ("api_key", "retries") if name in options}

    async def scenario() -> Transcription:
        async with STTClient(url, **{"retries": 0, **client}) as stt:
            return await stt.transcribe(source, **{"deadline": 20, **options})

    with pytest.raises(STTError) as caught:
        asyncio.run(scenario())
    return caught.value


def check(
    error: STTError, kind: str, status: int | None, *, retryable: bool = False, says: str = ""
) -> None:
    """What holds for every error; `says` is a part of its message."""
    assert type(error) is getattr(stt_sdk, kind)
    assert error.status == status
    assert error.retryable is retryable
    assert error.attempts == 1
    assert error.elapsed is not None and error.elapsed > 0
    assert error.host.startswith("http://127.0.0.1:")
    assert error.request_id
    message = str(error)
    facts = (str(status or ""), error.type, error.host, error.request_id, error.look, says)
    assert [fact for fact in facts if fact not in message] == []
    assert "\n" not in message
    for again in (pickle.loads(pickle.dumps(error)), copy.copy(error)):  # noqa: S301  # our own
        assert type(again) is type(error)
        assert (str(again), vars(again)) == (message, vars(error))


# What the service answers, each from the real one where it can be brought to it


def test_invalid_request(tiers: Tiers) -> None:
    error = error_of(tiers.fallback(), language="xx")
    check(error, "InvalidRequestError", 400, says="language")


def test_invalid_audio(tiers: Tiers) -> None:
    error = error_of(tiers.fallback(), b"no audio")
    check(error, "InvalidAudioError", 400, says="audio")
    assert error.timings_ms is not None and error.timings_ms.total is not None
    assert error.timings_ms.primary_infer is None


@pytest.mark.parametrize("key", [None, "wrong"])
def test_unauthorized(tiers: Tiers, key: str | None) -> None:
    error = error_of(tiers.fallback(api_keys=(PRIMARY_KEY,)), api_key=key)
    check(error, "UnauthorizedError", 401, says="look at the api_key")


def test_not_found(tiers: Tiers) -> None:
    error = error_of(tiers.fallback().url + "/v1")
    check(error, "NotFoundError", 404, says="the address without /v1")


@pytest.mark.parametrize(
    ("status", "type_", "kind"),
    [
        (405, "method_not_allowed", "MethodNotAllowedError"),
        (408, "request_timeout", "RequestTimeoutError"),
    ],
)
def test_what_the_real_one_does_not_say_to_this_client(
    scripted: Scripted, status: int, type_: str, kind: str
) -> None:
    error = error_of(scripted(refusal(status, type_, **{"X-Error-Type": type_})))
    check(error, kind, status, says="as it says")


def test_payload_too_large(tiers: Tiers) -> None:
    error = error_of(tiers.fallback(max_upload_mb=0.01), bytes(80_000))
    check(error, "PayloadTooLargeError", 413, says="MAX_UPLOAD_MB")


def test_audio_too_long(tiers: Tiers) -> None:
    error = error_of(tiers.fallback(max_audio_seconds=1), wav(tone(2)))
    check(error, "AudioTooLongError", 413, says="MAX_AUDIO_SECONDS")


def test_rate_limited(tiers: Tiers) -> None:
    tier = tiers.fallback(rate_limit_rps=0.1, rate_limit_burst=1)
    tier.transcribe()
    error = error_of(tier)
    check(error, "RateLimitedError", 429, retryable=True, says="it asks to wait")
    assert error.retry_after is not None and 1 <= error.retry_after <= 10


def test_internal(tiers: Tiers) -> None:
    error = error_of(tiers.fallback(FakeEngine(raises=RuntimeError("secret"))))
    check(error, "InternalError", 500, says="the service's log, by the request id")
    assert "secret" not in str(error)


def test_fallback_failed(tiers: Tiers, nobody: str) -> None:
    error = error_of(tiers.primary(FakeEngine(logprob=0.1, weakest=0.1), fallback=nobody))
    check(error, "FallbackFailedError", 502, says="unreachable")
    assert error.fallback_error is not None
    assert error.fallback_error.startswith("unreachable: ")
    assert error.reason == "low_confidence"
    assert "logprob" in error.below
    assert error.timings_ms is not None
    times = (
        error.timings_ms.queue_wait,
        error.timings_ms.primary_infer,
        error.timings_ms.fallback_infer,
    )
    assert all(time is not None for time in times)


def test_overloaded(tiers: Tiers) -> None:
    engine = FakeEngine(holds=threading.Event())
    tier = tiers.fallback(engine, max_uploads=1)
    served = tier.begin()
    engine.wait_for(1)
    error = error_of(tier)
    check(error, "OverloadedError", 503, retryable=True, says="more primaries")
    assert error.retry_after is not None and error.retry_after >= 1
    engine.let_go()
    assert served.result().status_code == 200


def test_draining(tiers: Tiers) -> None:
    tier = tiers.fallback()
    tier.service.drain()
    check(error_of(tier), "DrainingError", 503, retryable=True)


def test_not_ready(tiers: Tiers) -> None:
    tier = tiers.run(tiers.fallback().config, FakeEngine(loads=threading.Event()), wait=False)
    check(error_of(tier), "NotReadyError", 503, retryable=True, says="/v1/ready")


def test_deadline_exceeded(tiers: Tiers) -> None:
    tier = tiers.fallback(FakeEngine(holds=threading.Event()), request_timeout_s=0.2)
    error = error_of(tier)
    check(error, "DeadlineExceededError", 504, says="the timings")
    assert error.timings_ms is not None and error.timings_ms.total is not None


def test_each_type_of_the_contract_has_its_class() -> None:
    from stt_cascade import errors

    theirs = {
        each.type for each in vars(errors).values() if isinstance(getattr(each, "type", None), str)
    }
    assert set(BY_TYPE) == {*theirs, "internal"} - {""}


# What is no answer


def test_a_refused_connection(nobody: str) -> None:
    error = error_of(nobody)
    check(error, "ConnectionFailed", None, retryable=True, says="cannot connect")
    assert isinstance(error, stt_sdk.ConnectionFailed) and not error.sent
    assert isinstance(error.__cause__, httpx2.ConnectError)


@contextmanager
def black_hole() -> Iterator[str]:
    """An address at which connections are neither taken nor refused: its queue is full."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        waiting = [socket.socket() for _ in range(4)]
        for each in waiting:
            each.setblocking(False)
            each.connect_ex(listener.getsockname())
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        for each in waiting:
            each.close()


def test_a_host_that_lets_nobody_connect(monkeypatch: pytest.MonkeyPatch) -> None:
    with black_hole() as url:
        error = error_of(url, deadline=0.2)
        check(error, "TimedOut", None, says="no answer within 0.2 s")
        monkeypatch.setattr(_exchange, "CONNECT_TIMEOUT_S", 0.1)
        error = error_of(url)
        check(error, "ConnectionFailed", None, retryable=True, says="cannot connect")


def test_a_name_that_nobody_has() -> None:
    error = error_of("http://nobody.invalid:8081")
    assert type(error) is stt_sdk.ConnectionFailed
    assert error.retryable
    assert "http://nobody.invalid:8081: cannot connect" in str(error)


@pytest.mark.parametrize("fault", ["cut", "reset", "truncate"])
def test_a_connection_that_breaks_after_the_clip_went_out(scripted: Scripted, fault: Fault) -> None:
    error = error_of(scripted(Reply(fault=fault)), retries=2)
    check(error, "ConnectionFailed", None, says="the connection broke")
    assert isinstance(error, stt_sdk.ConnectionFailed) and error.sent
    assert error.not_repeated == (
        "it may have been worked on, and there is no other host in good health"
    )


@pytest.mark.parametrize("fault", ["silence", "drip"])
def test_an_answer_that_does_not_come_or_does_not_end(scripted: Scripted, fault: Fault) -> None:
    error = error_of(scripted(Reply(fault=fault)), deadline=0.3)
    check(error, "TimedOut", None, says="stt_queue_depth")
    assert isinstance(error, stt_sdk.TimedOut) and not error.starved


def test_a_source_that_has_given_all_is_not_blamed(scripted: Scripted) -> None:
    async def stream() -> AsyncIterator[bytes]:
        yield CLIP

    error = error_of(scripted(Reply(fault="silence")), stream(), deadline=1)
    assert isinstance(error, stt_sdk.TimedOut) and not error.starved


def test_a_source_that_gives_nothing_is_not_the_service_s_fault(scripted: Scripted) -> None:
    async def silent() -> AsyncIterator[bytes]:
        yield CLIP
        await asyncio.Event().wait()

    error = error_of(scripted(), silent(), deadline=1)
    check(error, "TimedOut", None, says="the source had not given all of its bytes")
    assert isinstance(error, stt_sdk.TimedOut) and error.starved
    assert "stt_queue_depth" not in str(error)


def test_bytes_that_are_no_http(scripted: Scripted) -> None:
    error = error_of(scripted(Reply(raw=b"SSH-2.0-OpenSSH_9.2\r\n")))
    check(error, "ConnectionFailed", None, says="the connection broke")


# Answers that are none


WRONG: list[tuple[str, bytes]] = [
    ("empty", b""),
    ("html", b"<html>Welcome to nginx!</html>"),
    ("half", json.dumps(answer_of_fallback()).encode()[:-5]),
    ("list", b"[1, 2]"),
    ("null", b"null"),
    ("string", b'"text"'),
    ("latin-1", '{"text": "für"}'.encode("latin-1")),
    ("nothing in it", b"{}"),
    ("deep", b"[" * 100_000),
    ("long", b'{"text": "' + b"x" * 100_000),
    *[
        (f"{name}: {value!r}", json.dumps(answer_of_fallback() | {name: value}).encode())
        for name, value in [
            *[("text", None), ("text", 5), ("language", 5), ("language_probability", "0.9")],
            *[("duration", "1.0"), ("duration", True), ("speech_duration", None), ("model", None)],
            *[("confidence", None), ("confidence", []), ("confidence", {"logprob": 1, "words": 1})],
            ("confidence", {"logprob": 0.9, "weakest": 0.9, "words": 1.5}),
            *[("routing", "primary"), ("routing", {}), ("segments", None), ("segments", [None])],
            *[("segments", {}), ("timings_ms", {}), ("request_id", None)],
            (
                "timings_ms",
                {"queue_wait": "1", "primary_infer": 1, "fallback_infer": 1, "total": 1},
            ),
        ]
    ],
]


@pytest.mark.parametrize("body", [body for _, body in WRONG], ids=[name for name, _ in WRONG])
def test_a_200_of_another_form(scripted: Scripted, body: bytes) -> None:
    error = error_of(scripted(Reply(body=body, headers={"X-Req-Id": "theirs"})), retries=2)
    check(error, "InvalidAnswerError", 200, says="the answer is not of the agreed form")
    assert error.request_id == "theirs"
    assert len(str(error)) < 800


def test_a_200_that_does_not_end_is_not_read_on(scripted: Scripted) -> None:
    server = scripted(Reply(fault="endless"), Reply())
    error = error_of(server)
    check(error, "InvalidAnswerError", 200, says=f"longer than {_answer.MAX_BYTES} bytes")


def test_the_longest_answer_there_can_be_is_read(scripted: Scripted) -> None:
    text = "x" * (_answer.MAX_BYTES // 2)
    server = scripted(Reply(body=answer_of_fallback(text=text)))

    async def scenario() -> str:
        async with STTClient(server.url) as stt:
            return (await stt.transcribe(CLIP)).text

    assert asyncio.run(scenario()) == text


def test_a_compressed_answer_which_nobody_asked_for(scripted: Scripted) -> None:
    body = gzip.compress(json.dumps(answer_of_fallback()).encode())
    server = scripted(Reply(body=body, headers={"Content-Encoding": "gzip"}))
    error = error_of(server)
    check(error, "InvalidAnswerError", 200, says="compressed (gzip)")
    assert server.asked[0].headers["accept-encoding"] == "identity"


# Errors of others, such as a proxy's


def test_a_proxy_s_own_page_is_told_from_the_service_s_answer(scripted: Scripted) -> None:
    page = b"<html><h1>502 Bad Gateway</h1>" + b"x" * 100_000
    error = error_of(scripted(Reply(502, page)), retries=2)
    check(error, "ServiceError", 502, says="Bad Gateway; this is not the service's own answer")
    assert error.timings_ms == Timings(None, None, None, None)


@pytest.mark.parametrize("status", [429, 503])
def test_its_refusal_may_be_tried_again(scripted: Scripted, status: int) -> None:
    check(error_of(scripted(Reply(status, b""))), "ServiceError", status, retryable=True)


def test_an_error_page_that_does_not_end_or_is_compressed(scripted: Scripted) -> None:
    server = scripted(
        Reply(502, fault="endless"), Reply(502, b"\x1f\x8b", {"Content-Encoding": "gzip"})
    )
    for _ in range(2):
        check(error_of(server), "ServiceError", 502, says="Bad Gateway")


def test_a_redirection_says_where_to(scripted: Scripted) -> None:
    moved = scripted(Reply(308, b"", {"Location": "https://stt.example/v1/transcribe"}))
    error = error_of(moved)
    check(error, "ServiceError", 308, says="it sends us to https://stt.example/v1/transcribe")
    assert len(moved.asked) == 1


def test_an_error_whose_headers_were_lost_is_known_by_its_body(scripted: Scripted) -> None:
    error = error_of(scripted(refusal(503, "draining")))
    check(error, "DrainingError", 503, retryable=True, says="as it says")


def test_an_error_type_of_a_later_version_is_named(scripted: Scripted) -> None:
    error = error_of(scripted(refusal(418, "teapot", **{"X-Error-Type": "teapot"})))
    check(error, "ServiceError", 418, says="teapot: as it says")
    assert "not the service's own" not in str(error)


@pytest.mark.parametrize(
    "body",
    [{"error": "text"}, {"error": {"type": [], "message": 5}}, {"error": None}, {"error": {}}],
)
def test_an_error_body_of_another_form_is_not_believed(
    scripted: Scripted, body: dict[str, Any]
) -> None:
    check(error_of(scripted(Reply(500, body))), "ServiceError", 500, says="Internal Server Error")


def test_an_error_is_one_line_whatever_is_in_it(scripted: Scripted) -> None:
    message = "a\r\nb\x1b[31mc\u2028d " + "x" * 10_000
    body = {"error": {"type": "internal", "message": message, "request_id": "theirs"}}
    error = error_of(scripted(Reply(500, body)))
    check(error, "InternalError", 500, says="a b [31mc d xxx")
    assert len(str(error)) < 800


def test_headers_that_are_not_ascii_or_no_numbers_do_no_harm(scripted: Scripted) -> None:
    raw = (
        "HTTP/1.1 500 Größer\r\nX-Error-Type: internal\r\nX-Error-Message: Müll\r\n"
        "X-Total-ms: viel\r\nX-Queue-Wait-ms: nan\r\nX-Primary-Infer-ms: 1e400\r\n"
        "X-Fallback-Infer-ms: 12.5\r\nRetry-After: später\r\nX-Conf-Below: words, logprob,\r\n"
        "Content-Length: 0\r\nConnection: close\r\n\r\n"
    )
    for encoding in ("utf-8", "latin-1"):
        error = error_of(scripted(Reply(raw=raw.encode(encoding))))
        check(error, "InternalError", 500, says="M")
        assert error.timings_ms == Timings(None, None, 12.5, None)
        assert error.below == ("words", "logprob")
        assert error.retry_after is None


# What the source raises


class Own(Exception):
    pass


@pytest.mark.parametrize(
    "raised",
    [
        OSError("the disk is gone"),
        Own("mine"),
        TimeoutError("the source's"),
        TimeoutError("the source's"),
        httpx2.ReadError("from where the clip is fetched"),
        httpx2.ConnectError("from where the clip is fetched"),
        stt_sdk.OverloadedError("of another service", status=503, retryable=True),
    ],
    ids=lambda raised: type(raised).__qualname__,
)
@pytest.mark.parametrize("sent_before", [True, False])
def test_what_the_source_raises_comes_to_the_caller_and_blames_no_service(
    scripted: Scripted, raised: Exception, sent_before: bool
) -> None:
    server = scripted()
    finished: list[stt_sdk.RequestFinished] = []

    async def broken() -> AsyncIterator[bytes]:
        if sent_before:
            yield CLIP
        try:
            raise ZeroDivisionError
        except ZeroDivisionError:
            raise raised  # noqa: B904  # it keeps this context

    def hook(event: stt_sdk.Event) -> None:
        if isinstance(event, stt_sdk.RequestFinished):
            finished.append(event)

    async def scenario() -> stt_sdk.Stats:
        async with STTClient(server.url, telemetry=hook) as stt:
            with pytest.raises(type(raised)) as caught:
                await stt.transcribe(broken())
            assert caught.value is raised
            assert (await stt.transcribe(CLIP)).text == "from the fallback"
            return stt.stats

    stats = asyncio.run(scenario())
    assert isinstance(raised.__context__, ZeroDivisionError)
    assert (stats.count, stats.errors) == (1, 0)
    assert [event.error for event in finished] == [raised, None]
    assert len(server.asked) == 1
    if isinstance(raised, STTError):
        assert str(raised).startswith("503 overloaded: of another service (look at")


def test_a_stream_that_gives_no_bytes_is_the_caller_s_mistake(scripted: Scripted) -> None:
    async def text() -> AsyncIterator[Any]:
        yield "text"

    async def scenario() -> None:
        async with STTClient(scripted().url) as stt:
            with pytest.raises(TypeError, match="gives str, not bytes"):
                await stt.transcribe(text())

    asyncio.run(scenario())
