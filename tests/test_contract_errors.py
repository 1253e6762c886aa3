"""Each refusal that needs no fallback: its status, type, headers and body."""

from __future__ import annotations

import asyncio
import io
import re
import select
import threading
from collections.abc import Callable, Iterator
from typing import Any

import httpx2
import pytest
from starlette.types import Message, Scope
from structlog.testing import capture_logs

from fakes import PATIENCE, PRIMARY_KEY, FakeEngine
from running import POOLS, TRANSCRIBE, RunningTier, Tiers, fallback_config, read_response, until
from stt_cascade.admission import uploads
from stt_cascade.http import envelope
from stt_cascade.http.app import create_app
from stt_cascade.http.service import Service
from tones import silence, tone, wav

MIB = 1024 * 1024
ENVELOPE = 64 * 1024
FORM = "multipart/form-data; boundary=x"
PART = b'--x\r\nContent-Disposition: form-data; name="audio"; filename="a.wav"\r\n\r\n'


@pytest.fixture(scope="module")
def tier(shared_tiers: Tiers) -> RunningTier:
    return shared_tiers.fallback(max_upload_mb=0.5, max_audio_seconds=5)


def check(answer: httpx2.Response, status: int, type_: str) -> str:
    """The promises that hold for every error; returns its message."""
    assert answer.status_code == status
    assert answer.headers["Content-Type"] == "application/json"
    assert set(answer.json()) == {"error"}
    error = answer.json()["error"]
    assert set(error) == {"type", "message", "request_id"}
    assert error["type"] == answer.headers["X-Error-Type"] == type_
    assert answer.headers["X-Req-Id"] == error["request_id"] != ""
    assert float(answer.headers["X-Total-ms"]) >= 0
    header, message = answer.headers["X-Error-Message"], str(error["message"])
    assert re.fullmatch(r"[ -~]{1,200}", header)
    assert header[:150] == message[:150]
    return message


def start_of_upload(announced: int, *, key: str = "", path: str = TRANSCRIBE) -> bytes:
    authorization = f"Authorization: Bearer {key}\r\n" if key else ""
    return (
        f"POST {path} HTTP/1.1\r\nHost: t\r\n{authorization}"
        f"Content-Type: {FORM}\r\nContent-Length: {announced}\r\n\r\n"
    ).encode()


def test_400_invalid_request(tier: RunningTier) -> None:
    assert "language" in check(tier.transcribe(language="xx"), 400, "invalid_request")


def test_400_invalid_audio(tier: RunningTier) -> None:
    assert "audio" in check(tier.transcribe(b"no audio"), 400, "invalid_audio")


@pytest.mark.parametrize("key", [None, "wrong"])
def test_401_unauthorized(tiers: Tiers, key: str | None) -> None:
    guarded = tiers.fallback(api_keys=(PRIMARY_KEY,))
    guarded.key = key
    answer = guarded.transcribe()
    check(answer, 401, "unauthorized")
    assert answer.headers["WWW-Authenticate"] == "Bearer"


def test_401_comes_before_a_byte_of_the_body_is_sent(tiers: Tiers) -> None:
    guarded = tiers.fallback(api_keys=(PRIMARY_KEY,))
    status, headers, _ = guarded.exchange(start_of_upload(10 * MIB, key="wrong"))
    assert (status, headers["x-error-type"]) == (401, "unauthorized")
    assert headers["connection"] == "close"


def test_404_not_found(tier: RunningTier) -> None:
    assert "/v2/transcribe" in check(tier.get("/v2/transcribe"), 404, "not_found")


def test_404_for_a_path_that_is_almost_one(tier: RunningTier) -> None:
    check(tier.client.post(TRANSCRIBE + "/"), 404, "not_found")


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", TRANSCRIBE, {"POST"}),
        ("PUT", TRANSCRIBE, {"POST"}),
        ("POST", "/v1/health", {"GET", "HEAD"}),
        ("DELETE", "/v1/ready", {"GET", "HEAD"}),
        ("POST", "/v1/metrics", {"GET"}),
        ("POST", "/metrics", {"GET"}),
    ],
)
def test_405_method_not_allowed(
    tier: RunningTier, method: str, path: str, allowed: set[str]
) -> None:
    answer = tier.client.request(method, path)
    check(answer, 405, "method_not_allowed")
    assert set(answer.headers["Allow"].split(", ")) == allowed


def test_408_request_timeout_when_the_body_stalls(tiers: Tiers) -> None:
    impatient = tiers.fallback(request_timeout_s=0.2)
    status, headers, body = impatient.exchange(start_of_upload(1000) + PART)
    assert (status, headers["x-error-type"]) == (408, "request_timeout")
    assert b'"type":"request_timeout"' in body


def test_408_when_the_callers_own_deadline_passes_before_the_body_came(tier: RunningTier) -> None:
    start = start_of_upload(1000).replace(b"\r\n\r\n", b"\r\nX-Deadline-Ms: 100\r\n\r\n")
    assert tier.exchange(start + PART)[0] == 408


def test_408_when_the_body_pauses_for_too_long(
    tiers: Tiers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploads, "GRACE_S", 0.2)
    tier = tiers.fallback()
    status, headers, _ = tier.exchange(start_of_upload(MIB) + PART + bytes(100_000))
    assert (status, headers["x-error-type"]) == (408, "request_timeout")
    assert "0.2 s" in headers["x-error-message"]


def test_503_overloaded_when_too_many_bodies_are_held(tiers: Tiers) -> None:
    engine = FakeEngine(holds=threading.Event())
    tier = tiers.fallback(engine, max_uploads=2)
    served = [tier.begin(), tier.begin()]
    engine.wait_for(2)

    # The answer comes before a byte of the body.
    status, headers, _ = tier.exchange(start_of_upload(1000))

    assert (status, headers["x-error-type"]) == (503, "overloaded")
    assert int(headers["retry-after"]) >= 1
    engine.let_go()
    assert [one.result().status_code for one in served] == [200, 200]
    assert tier.transcribe().status_code == 200


def test_a_stalled_body_does_not_keep_others_out(
    tiers: Tiers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploads, "YIELDS_AFTER_S", 0)
    tier = tiers.fallback(max_uploads=1)
    with tier.connect(start_of_upload(1000) + PART) as stalled:
        until(lambda: tier.service.uploads.held == 1, "the body is waited for")
        assert tier.transcribe().status_code == 200
        status, headers, _ = read_response(stalled)
    assert (status, headers["x-error-type"]) == (408, "request_timeout")
    assert "others waited" in headers["x-error-message"]


@pytest.mark.parametrize("end", ["the caller goes away", "400", "413"])
def test_a_place_comes_back_after_every_kind_of_end(tiers: Tiers, end: str) -> None:
    tier = tiers.fallback(max_uploads=1, max_upload_mb=0.5)
    for _ in range(3):
        if end == "the caller goes away":
            with tier.connect(start_of_upload(1000) + PART):
                until(lambda: tier.service.uploads.held == 1, "the body is waited for")
        else:
            assert tier.transcribe(b"x" * (MIB if end == "413" else 10)).status_code == int(end)
        until(lambda: tier.service.uploads.held == 0, "the place is free")
    assert tier.transcribe().status_code == 200


def test_413_by_content_length_before_the_body_is_sent(tier: RunningTier) -> None:
    status, headers, _ = tier.exchange(start_of_upload(MIB // 2 + ENVELOPE + 1))
    assert (status, headers["x-error-type"]) == (413, "payload_too_large")
    assert str(MIB // 2) in headers["x-error-message"]


@pytest.mark.parametrize(
    ("settings", "status"), [({"api_keys": ("other",)}, 401), ({"max_upload_mb": 0.5}, 413)]
)
@pytest.mark.parametrize("announced", [True, False])
def test_a_refusal_reaches_a_caller_whose_body_is_not_read(
    tiers: Tiers, settings: dict[str, Any], status: int, announced: bool
) -> None:
    """The sockets' buffers do not hold this body: the caller looks when he cannot go on."""
    tier = tiers.fallback(**settings)
    size = 100 * MIB
    body = (bytes(MIB) for _ in range(size // MIB))
    headers = {"Content-Type": FORM} | ({"Content-Length": str(size)} if announced else {})
    check_status = tier.client.post(TRANSCRIBE, content=body, headers=headers).status_code
    assert check_status == status


def test_a_refusal_reaches_a_caller_who_looks_for_it_after_his_body_only(tiers: Tiers) -> None:
    """The sockets' buffers do not hold this body, but it is within the limit: it may come."""
    tier = tiers.fallback()
    tier.service.drain()

    async def send() -> httpx2.Response:
        async with httpx2.AsyncClient(trust_env=False) as client:
            return await client.post(
                tier.url + TRANSCRIBE, files={"audio": bytes(16 * MIB)}, timeout=PATIENCE
            )

    assert asyncio.run(send()).json()["error"]["type"] == "draining"


class Flood:
    """A body as an app receives it: 64 KiB at a time, without end; counts what is taken."""

    def __init__(self) -> None:
        self.taken = 0

    async def receive(self) -> Message:
        self.taken += 64 * 1024
        return {"type": "http.request", "body": bytes(64 * 1024), "more_body": True}


@pytest.mark.parametrize(
    "length", [[(b"content-length", b"1048576")], [(b"transfer-encoding", b"chunked")], "small"]
)
@pytest.mark.parametrize("path", [TRANSCRIBE, "/nowhere", "/v1/health", "/metrics"])
def test_a_caller_without_a_key_makes_the_service_read_64_kib_at_most(
    monkeypatch: pytest.MonkeyPatch, length: Any, path: str
) -> None:
    monkeypatch.setattr(envelope, "LAST_LOOK_S", 0)
    app = create_app(fallback_config(api_keys=(PRIMARY_KEY,), metrics_keys=(PRIMARY_KEY,)))
    flood = Flood()
    sent: list[Message] = []

    async def send(message: Message) -> None:
        if message["type"] == "http.response.start":
            assert flood.taken == 0  # the answer comes first
        sent.append(message)

    scope: Scope = {
        "type": "http",
        "method": "GET" if path == "/v1/health" else "POST",
        "path": path,
        "query_string": b"",
        "headers": [(b"content-length", b"65536")] if length == "small" else length,
        "client": ("127.0.0.1", 1),
        "app": app,
    }
    asyncio.run(app(scope, flood.receive, send))
    answered, small = sent[0]["status"], length == "small"
    assert answered == (200 if path == "/v1/health" else 401)
    assert small or (b"connection", b"close") in sent[0]["headers"]
    assert flood.taken == (64 * 1024 if small and answered == 401 else 0)


def test_a_server_that_fails_is_no_caller_who_went_away() -> None:
    engine = FakeEngine(holds=threading.Event())
    app = create_app(fallback_config(), engine, POOLS)
    service: Service = app.state.service
    body = PART + wav() + b"\r\n--x--\r\n"
    whole: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]
    sent: list[Message] = []

    async def receive() -> Message:
        if whole:
            return whole.pop()
        raise OSError("a fault of the server")

    async def send(message: Message) -> None:
        sent.append(message)

    scope: Scope = {
        "type": "http",
        "method": "POST",
        "path": TRANSCRIBE,
        "query_string": b"",
        "headers": [(b"content-type", FORM.encode())],
        "client": None,
    }

    async def ask() -> None:
        async with service.lifespan():
            await asyncio.to_thread(until, lambda: service.state == "ready", "it is ready")
            await app(scope, receive, send)
            engine.let_go()

    with capture_logs() as lines:
        asyncio.run(ask())
    assert sent[0]["status"] == 500
    (fault,) = (line for line in lines if line["event"] == "unexpected error")
    assert fault["exc_info"]
    assert service.metrics.counts()["abandoned"] == 0


def test_who_sends_on_has_a_moment_to_look_at_the_answer(tiers: Tiers) -> None:
    guarded = tiers.fallback(api_keys=(PRIMARY_KEY,))
    with guarded.connect(start_of_upload(100 * MIB)) as connection:
        assert read_response(connection)[0] == 401
        connection.sendall(bytes(1000))
        assert select.select([connection], [], [], 0.3)[0] == []  # neither closed nor reset


def test_413_by_count_where_no_length_is_announced(tier: RunningTier) -> None:
    def endless() -> Iterator[bytes]:
        yield PART
        for _ in range(1024):
            yield bytes(16 * 1024)

    answer = tier.client.post(TRANSCRIBE, content=endless(), headers={"Content-Type": FORM})
    check(answer, 413, "payload_too_large")


@pytest.mark.parametrize("where", ["before", "after"])
def test_413_by_count_for_endless_bytes_around_the_form(tier: RunningTier, where: str) -> None:
    def endless() -> Iterator[bytes]:
        form = PART + wav() + b"\r\n--x--\r\n"
        yield b"" if where == "before" else form
        for _ in range(1024):
            yield b"x" * 16 * 1024
        yield form if where == "before" else b""

    answer = tier.client.post(TRANSCRIBE, content=endless(), headers={"Content-Type": FORM})
    check(answer, 413, "payload_too_large")


def test_413_for_a_clip_that_only_the_envelopes_allowance_would_let_in(tier: RunningTier) -> None:
    check(tier.transcribe(b"x" * (MIB // 2 + 1)), 413, "payload_too_large")


def test_400_for_an_endless_field_beside_the_clip(tier: RunningTier) -> None:
    message = check(tier.transcribe(prompt="x" * (16 * 1024 + 1)), 400, "invalid_request")
    assert message == "prompt is longer than 16384 bytes"


def test_a_clip_of_exactly_the_allowed_size_is_taken(tiers: Tiers) -> None:
    clip = wav()
    exact = tiers.fallback(max_upload_mb=len(clip) / MIB)
    assert exact.transcribe(clip).status_code == 200


def test_413_audio_too_long(tier: RunningTier) -> None:
    assert "5 s" in check(tier.transcribe(wav(silence(5.1))), 413, "audio_too_long")


def test_audio_of_the_allowed_length_is_taken(tier: RunningTier) -> None:
    assert tier.transcribe(wav(silence(5))).status_code == 200


def test_429_rate_limited(tiers: Tiers) -> None:
    limited = tiers.fallback(rate_limit_burst=2, rate_limit_rps=0.01)
    answers = [limited.transcribe() for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    check(answers[2], 429, "rate_limited")
    assert 90 <= int(answers[2].headers["Retry-After"]) <= 100


def test_429_asks_for_a_second_at_least(tiers: Tiers) -> None:
    limited = tiers.fallback(FakeEngine(), rate_limit_burst=1, rate_limit_rps=20)
    answers = [limited.client.post(TRANSCRIBE) for _ in range(20)]
    refused = [answer for answer in answers if answer.status_code == 429]
    assert {answer.headers["Retry-After"] for answer in refused} == {"1"}


def test_500_internal_says_nothing_internal(tiers: Tiers) -> None:
    broken = tiers.fallback(FakeEngine(raises=RuntimeError("CUDA at /opt/secret/kernel.cu:12")))
    with capture_logs() as lines:
        answer = broken.transcribe()
    message = check(answer, 500, "internal")
    assert "secret" not in answer.text + str(answer.headers)
    assert "RuntimeError" not in answer.text + str(answer.headers)
    assert "request id" in message
    (line,) = (line for line in lines if line["event"] == "unexpected error")
    assert line["request_id"] == answer.headers["X-Req-Id"]
    assert line["exc_info"]


def test_503_overloaded_when_the_queue_is_full(tiers: Tiers) -> None:
    engine = FakeEngine(holds=threading.Event())
    busy = tiers.fallback(engine, max_concurrency=1, max_queue=1)
    served = [busy.begin()]
    engine.wait_for(1)
    served.append(busy.begin())
    busy.wait_for_queue(1)

    answer = busy.transcribe()

    check(answer, 503, "overloaded")
    assert int(answer.headers["Retry-After"]) >= 1
    engine.let_go()
    assert [one.result().status_code for one in served] == [200, 200]


def test_504_when_the_deadline_passes_in_the_queue(tiers: Tiers) -> None:
    engine = FakeEngine(holds=threading.Event())
    busy = tiers.fallback(engine, max_concurrency=1)
    first = busy.begin()
    engine.wait_for(1)

    answer = busy.transcribe(headers={"X-Deadline-Ms": "500"})

    check(answer, 504, "deadline_exceeded")
    assert float(answer.headers["X-Queue-Wait-ms"]) > 0
    engine.let_go()
    assert first.result().status_code == 200
    assert len(engine.heard) == 1


def test_504_when_the_deadline_passes_during_the_inference(tiers: Tiers) -> None:
    engine = FakeEngine(holds=threading.Event())
    slow = tiers.fallback(engine)
    answer = slow.transcribe(headers={"X-Deadline-Ms": "500"})
    check(answer, 504, "deadline_exceeded")
    assert len(engine.heard) == 1


def test_a_callers_deadline_cannot_lengthen_the_services(tiers: Tiers) -> None:
    slow = tiers.fallback(FakeEngine(holds=threading.Event()), request_timeout_s=0.2)
    answer = slow.transcribe(headers={"X-Deadline-Ms": "600000"})
    check(answer, 504, "deadline_exceeded")


def test_the_service_goes_on_after_each_refusal(tier: RunningTier) -> None:
    spoiled: list[Callable[[], object]] = [
        lambda: tier.transcribe(b"no audio"),
        lambda: tier.transcribe(b"x" * 2 * MIB),
        lambda: tier.exchange(b"rubbish\r\n\r\n"),
        lambda: tier.connect(start_of_upload(1000) + PART).close(),
        lambda: tier.connect(start_of_upload(1000)).close(),
        lambda: tier.connect(b"POST").close(),
    ]
    for spoil in spoiled:
        spoil()
        assert tier.transcribe(wav(tone(0.5))).status_code == 200


def test_a_connection_serves_many_requests(tier: RunningTier) -> None:
    body = io.BytesIO(PART + wav() + b"\r\n--x--\r\n").getvalue()
    request = start_of_upload(len(body)) + body
    with tier.connect(request) as connection:
        first = read_response(connection)[0]
        connection.sendall(request)
        assert (first, read_response(connection)[0]) == (200, 200)
