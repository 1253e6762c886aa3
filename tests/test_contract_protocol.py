"""What comes before a request: bytes that are no HTTP, too many of them, or too few."""

from __future__ import annotations

import json
import re
import socket
import time
from collections.abc import Iterator

import pytest
import uvicorn
from structlog.testing import capture_logs
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from fakes import PATIENCE, PRIMARY_KEY
from running import TRANSCRIBE, RunningTier, Tiers, fallback_config, read_response, until
from stt_cascade.http import envelope, protocol
from stt_cascade.http.protocol import MAX_HEADER_BYTES, MAX_HEADERS
from tones import wav

FORM = b"Content-Type: multipart/form-data; boundary=x\r\n"
PART = b'--x\r\nContent-Disposition: form-data; name="audio"\r\n\r\n'
CLIP = PART + wav() + b"\r\n--x--\r\n"
KEY = f"Authorization: Bearer {PRIMARY_KEY}\r\n".encode()
START = b"POST /v1/transcribe HTTP/1.1\r\nHost: t\r\n" + FORM


@pytest.fixture(scope="module")
def tier(shared_tiers: Tiers) -> RunningTier:
    return shared_tiers.fallback(max_upload_mb=0.5)


@pytest.fixture(scope="module")
def guarded(shared_tiers: Tiers) -> RunningTier:
    return shared_tiers.fallback(api_keys=(PRIMARY_KEY,))


def check(answer: tuple[int, dict[str, str], bytes], status: int, type_: str) -> str:
    """The form of every error; returns its message."""
    given, headers, body = answer
    error = json.loads(body)["error"]
    assert (given, error["type"], headers["x-error-type"]) == (status, type_, type_)
    assert headers["x-req-id"] == error["request_id"]
    assert headers["connection"] == "close"
    return str(error["message"])


def whole(connection: socket.socket) -> bytes:
    """All that comes until the connection ends."""
    received = b""
    try:
        while chunk := connection.recv(65536):
            received += chunk
    except ConnectionResetError:
        pass  # it was closed with bytes of ours unread
    return received


@pytest.mark.parametrize(
    "request_",
    [
        b"rubbish\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # a TLS handshake
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET /v1/health HTTP/9.9\r\n\r\n",
        b"EXPLODE /v1/health HTTP/1.1\r\nHost: t\r\n\r\n",
        b"GET /v1/health HTTP/1.1\r\nHost t\r\n\r\n",
        b"GET /v1/health HTTP/1.1\r\nHost: t\r\nX-A: \x00\r\n\r\n",
        b"GET /v1/health HTTP/1.1\r\nHost: t\r\n X-A: b\r\n\r\n",
        b"CONNECT t:80 HTTP/1.1\r\nHost: t\r\n\r\n",
        b"GET http:// HTTP/1.1\r\nHost: t\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\nHost: t\r\n\r\n",
        START + b"Content-Length: -1\r\n\r\n",
        START + b"Content-Length: many\r\n\r\n",
        START + b"Content-Length: 0x10\r\n\r\n",
        START + b"Content-Length: " + b"9" * 40 + b"\r\n\r\n",
        START + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n",
        START + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
        START + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
        START + b"Transfer-Encoding: chunked\r\n\r\n5\r\n--x\r\n1234567\r\n",
    ],
)
def test_what_is_no_http_gets_an_error_of_the_usual_form(
    tier: RunningTier, request_: bytes
) -> None:
    assert "not an HTTP/1.1 request" in check(tier.exchange(request_), 400, "invalid_request")
    assert tier.transcribe().status_code == 200


@pytest.mark.parametrize(
    "header",
    [
        "Content-Length: " + "0" * 4400 + "5",
        "Content-Length: " + "9" * 20,
        "Content-Length: +5",
        "Content-Length: 5, 5",
        "Content-Length: 5\r\nContent-Length: 5",
        "Content-Length: \u0665",
        "Content-Length:\r\n 5",
        "Transfer-Encoding: chunked\r\nContent-Length: 5",
        "Transfer-Encoding: gzip, chunked",
    ],
)
@pytest.mark.parametrize("head", ["GET /v1/health", "POST /v1/transcribe", "GET /nothing"])
def test_a_length_that_is_none_is_400_on_every_path_and_without_a_key(
    guarded: RunningTier, head: str, header: str
) -> None:
    request = f"{head} HTTP/1.1\r\nHost: t\r\n{header}\r\n\r\nhello".encode()
    check(guarded.exchange(request), 400, "invalid_request")


def test_trailers_change_nothing(tiers: Tiers) -> None:
    tier = tiers.fallback(api_keys=(PRIMARY_KEY,), trusted_proxies=("127.0.0.1/32",))
    chunked = b"Transfer-Encoding: chunked\r\n"
    body = b"%x\r\n%s\r\n0\r\n" % (len(CLIP), CLIP)
    trailers = b"X-Req-Id: forged\r\nX-Forwarded-For: 6.6.6.6\r\nX-Deadline-Ms: 1\r\n"
    with capture_logs() as lines:
        answer = tier.exchange(START + KEY + chunked + b"\r\n" + body + trailers + b"\r\n")
    assert answer[0] == 200
    (line,) = (line for line in lines if line["event"] == "request")
    assert (line["client"], "forged" in str(line)) == ("127.0.0.1", False)
    check(tier.exchange(START + chunked + b"\r\n" + body + KEY + b"\r\n"), 401, "unauthorized")


def test_what_is_no_http_is_logged_and_counted(tiers: Tiers) -> None:
    tier = tiers.fallback()
    with capture_logs() as lines:
        _, headers, _ = tier.exchange(b"rubbish\r\n\r\n")
        until(lambda: any(line["event"] == "request" for line in lines), "it is logged")
    (line,) = (line for line in lines if line["event"] == "request")
    assert (line["status"], line["client"]) == (400, "127.0.0.1")
    assert line["request_id"] == headers["x-req-id"]
    labels = {"endpoint": "other", "type": "invalid_request"}
    assert tier.metric("stt_requests_exceptions_total", **labels) == 1


@pytest.mark.parametrize(
    ("body", "length", "status"),
    [
        (CLIP, len(CLIP), 200),
        (CLIP, len(CLIP) - 10, 400),  # shorter than what comes
        (CLIP, len(PART), 400),
        (CLIP, 0, 400),
        (CLIP, 10**9, 413),
        (PART + bytes(600_000), len(CLIP), 400),
    ],
)
def test_a_length_that_lies_gets_one_answer_and_hurts_nobody(
    tier: RunningTier, body: bytes, length: int, status: int
) -> None:
    with tier.connect(START + b"Content-Length: %d\r\n\r\n" % length + body) as connection:
        assert read_response(connection)[0] == status
    assert tier.transcribe().status_code == 200


def test_who_sends_more_than_he_announced_has_time_to_find_his_answer(
    tiers: Tiers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Closed at once, the connection would be reset under him, with the answer in it."""
    monkeypatch.setattr(envelope, "LAST_LOOK_S", 3)
    tier = tiers.fallback()
    with tier.connect(START + b"Content-Length: 30\r\n\r\n" + CLIP) as connection:
        check(read_response(connection), 400, "invalid_request")
        assert tier.get("/v1/health").status_code == 200  # so much later
        connection.setblocking(False)
        with pytest.raises(BlockingIOError):  # it is open, and nothing comes
            connection.recv(1)


def endless(start: bytes, rest: bytes) -> Iterator[bytes]:
    yield start
    while True:
        yield rest


@pytest.mark.parametrize(
    ("start", "rest", "said"),
    [
        (b"GET /", b"a" * 4096, "longer than 32768 bytes"),
        (b"GET / HTTP/1.1\r\nX-A: ", b"a" * 4096, "longer than 32768 bytes"),
        (b"GET / HTTP/1.1\r\n", b"a" * 4096, "longer than 32768 bytes"),
        (b"GET / HTTP/1.1\r\n", b"X-A: b\r\n" * 50, "more than 100 headers"),
        (START + b"Transfer-Encoding: chunked\r\n\r\n0\r\nX-A: ", b"a" * 4096, "longer than"),
        (START + b"Transfer-Encoding: chunked\r\n\r\n0\r\n", b"X-A: b\r\n" * 50, "more than 100"),
        (START + b"Transfer-Encoding: chunked\r\n\r\n1;", b"a" * 4096, "longer than 32768 bytes"),
    ],
    ids=["target", "value", "name", "headers", "trailer", "trailers", "chunk extension"],
)
def test_headers_without_end_are_refused(
    tier: RunningTier, start: bytes, rest: bytes, said: str
) -> None:
    with tier.connect(b"") as connection:
        sent = 0
        try:
            for piece in endless(start, rest):
                sent += connection.send(piece)
                assert sent < 64 * 1024 * 1024
        except OSError:
            pass  # nothing more is taken
        assert said in check(read_response(connection), 400, "invalid_request")


def test_headers_of_the_allowed_size_and_number_are_taken(tier: RunningTier) -> None:
    size = (MAX_HEADER_BYTES - 100) // MAX_HEADERS - len("X-A: \r\n")
    headers = (b"X-A: " + b"b" * size + b"\r\n") * (MAX_HEADERS - 1)
    request = b"GET /v1/health HTTP/1.1\r\nHost: t\r\n" + headers + b"\r\n"
    assert tier.exchange(request)[0] == 200
    assert tier.exchange(request.replace(b"Host", b"X-A: b\r\nHost"))[0] == 400


def test_large_headers_are_refused_even_if_all_come_at_once(tier: RunningTier) -> None:
    headers = (b"X-A: " + b"b" * 600 + b"\r\n") * (MAX_HEADERS - 1)
    request = b"GET /v1/health HTTP/1.1\r\nHost: t\r\n" + headers + b"\r\n"
    assert "longer than 32768" in check(tier.exchange(request), 400, "invalid_request")


def test_a_body_without_end_in_tiny_chunks_is_refused(tier: RunningTier) -> None:
    with tier.connect(START + b"Transfer-Encoding: chunked\r\n\r\n") as connection:
        try:
            for piece in endless(b"", b"1\r\nx\r\n" * 1000):
                connection.sendall(piece)
        except OSError:
            pass
        assert read_response(connection)[0] == 400


def test_408_for_headers_that_do_not_come(tiers: Tiers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "PATIENCE_S", 0.2)
    tier = tiers.fallback()
    for half in (b"G", b"GET /v1/health HTTP/1.1\r\nHost: t\r\n"):
        assert "0.2 s" in check(tier.exchange(half), 408, "request_timeout")
    # After an answer, too.
    with tier.connect(b"GET /v1/health HTTP/1.1\r\nHost: t\r\n\r\n") as connection:
        assert read_response(connection)[0] == 200
        connection.sendall(b"GET /v1/he")
        check(read_response(connection), 408, "request_timeout")


def test_an_idle_connection_is_closed_without_a_word(
    tiers: Tiers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "PATIENCE_S", 0.2)
    tier = tiers.fallback()
    with tier.connect(b"") as connection:
        assert whole(connection) == b""


@pytest.mark.parametrize("seconds", [0.2, 1])
def test_between_requests_a_connection_may_be_idle_as_long_as_uvicorn_is_told(
    tiers: Tiers, monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    monkeypatch.setattr(protocol, "PATIENCE_S", 0.3)
    tier = tiers.fallback(rate_limit_burst=1, rate_limit_rps=0.001)
    # As `--timeout-keep-alive` does.
    tier._server.config.timeout_keep_alive = seconds  # type: ignore[assignment]
    health = b"GET /v1/health HTTP/1.1\r\nHost: t\r\n\r\n"
    assert tier.transcribe().status_code == 200
    late = START + b"Content-Length: %d\r\n\r\n" % len(CLIP)
    for request, rest, status in ((health, b"", 200), (late, CLIP, 429)):
        with tier.connect(request) as connection:
            assert read_response(connection)[0] == status
            connection.sendall(rest)
            began = time.monotonic()
            assert whole(connection) == b""
            assert seconds <= time.monotonic() - began + 0.05 < seconds + PATIENCE / 10


def test_after_a_long_pause_the_next_request_has_all_its_time(
    tiers: Tiers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "PATIENCE_S", 0.5)
    tier = tiers.fallback()
    health = b"GET /v1/health HTTP/1.1\r\nHost: t\r\n\r\n"
    with tier.connect(health) as connection:
        for _ in range(3):
            assert read_response(connection)[0] == 200
            time.sleep(0.4)
            connection.sendall(health[:20])
            time.sleep(0.3)
            connection.sendall(health[20:])
        assert read_response(connection)[0] == 200


def test_a_server_that_is_full_says_so_in_the_usual_form(tiers: Tiers) -> None:
    """By uvicorn's own `--limit-concurrency`."""
    tier = tiers.fallback()
    tier._server.config.limit_concurrency = 2
    with tier.connect(b""):
        answer = tier.exchange(b"GET /v1/health HTTP/1.1\r\nHost: t\r\n\r\n")
        check(answer, 503, "overloaded")
        assert answer[1]["retry-after"] == "1"


def test_no_idle_connection_is_kept_for_longer_than_ten_seconds() -> None:
    config = uvicorn.Config("stt_primary:app")
    assert max(protocol.PATIENCE_S, config.timeout_keep_alive) <= 10


@pytest.mark.process
def test_a_caller_who_takes_no_answer_is_dropped(
    tiers: Tiers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "PATIENCE_S", 0.1)
    tier = tiers.fallback()
    with tier.connect(b"") as connection:
        connection.setblocking(False)
        many = b"GET /openapi.json HTTP/1.1\r\nHost: t\r\n\r\n" * 1000
        try:
            while True:
                connection.send(many)
        except BlockingIOError:
            pass  # neither side takes any more
        until(lambda: len(tier._server.server_state.connections) == 1, "it is connected")
        until(lambda: not tier._server.server_state.connections, "it is dropped")


def test_the_request_before_a_broken_one_is_answered(tier: RunningTier) -> None:
    good = START + b"Content-Length: %d\r\n\r\n" % len(CLIP) + CLIP
    with tier.connect(good + b"rubbish\r\n\r\n") as connection:
        answers = whole(connection)
    assert re.findall(rb"HTTP/1.1 (\d+)", answers) == [b"200"]
    assert b"\r\nconnection: close\r\n" in answers


def test_requests_before_a_broken_one_are_all_answered(tier: RunningTier) -> None:
    good = START + b"Content-Length: %d\r\n\r\n" % len(CLIP) + CLIP
    health = b"GET /v1/health HTTP/1.1\r\nHost: t\r\n\r\n"
    with tier.connect(good + health + health + b"rubbish\r\n\r\n") as connection:
        answers = whole(connection)
    assert re.findall(rb"HTTP/1.1 (\d+)", answers) == [b"200"] * 3
    assert answers.count(b"\r\nconnection: close\r\n") == 1


def test_half_of_the_next_headers_has_the_patience_of_headers(
    tier: RunningTier, monkeypatch: pytest.MonkeyPatch
) -> None:
    """uvicorn would close the connection as an idle one."""
    monkeypatch.setattr(protocol, "PATIENCE_S", 0.5)
    one = b"GET /v1/health HTTP/1.1\r\nHost: t\r\n\r\n"
    with tier.connect(one + one[:20]) as connection:
        answers = whole(connection)
    assert re.findall(rb"HTTP/1.1 (\d+)", answers) == [b"200", b"408"]


# Ways around the key

NOWHERE = [
    "//v1/transcribe",
    "/v1//transcribe",
    "/v1/transcribe/",
    "/v1/health/../transcribe",
    "/v1/health/%2e%2e/transcribe",
    "/v1/health/..%2ftranscribe",
    "/./v1/transcribe",
    "/v1/transcribe%00",
    "/v1/transcribe;/v1/health",
    "/v1/health;/../transcribe",
    "/v1/health/",
    "/v1/health%20",
    "/V1/HEALTH",
    "/v1/ready/x",
    "/openapi.json/",
    "http://t//v1/transcribe",
    "http://t/v1/health/../transcribe",
    "http://v1/health@/v1/transcribe",
]
TRANSCRIBES = [
    "http://t/v1/transcribe",
    "/v1/transcribe?/v1/health",
    "/v1/transcribe#/v1/health",
    "/v1/%74ranscribe",
]
HOSTS = ["t", "/v1/health", "t/v1/health?", "[::1", "a b", "\xff", "t:99999", "x@y#z", ""]


@pytest.mark.parametrize("method", ["POST", "GET", "PUT", "OPTIONS", "TRACE", "PROPFIND"])
@pytest.mark.parametrize("target", NOWHERE + TRANSCRIBES)
def test_no_spelling_of_a_path_gets_past_the_key(
    guarded: RunningTier, method: str, target: str
) -> None:
    head = f"{method} {target} HTTP/1.1\r\nHost: t\r\n".encode()
    rest = FORM + b"Content-Length: %d\r\n\r\n" % len(CLIP) + CLIP
    assert guarded.exchange(head + rest)[0] == 401
    found = 200 if method == "POST" else 405
    assert guarded.exchange(head + KEY + rest)[0] == (found if target in TRANSCRIBES else 404)


@pytest.mark.parametrize(
    ("target", "status"),
    [
        ("/v1/%68ealth", 200),
        ("/v1%2fhealth", 200),
        ("/%6Fpenapi.json", 200),
        ("/v1/%2568ealth", 401),
        ("/v1/%48ealth", 401),
        ("/%6detrics", 401),
    ],
)
def test_a_path_is_decoded_once_before_it_is_looked_at(
    tiers: Tiers, target: str, status: int
) -> None:
    tier = tiers.fallback(api_keys=(PRIMARY_KEY,), metrics_keys=("of-the-metrics",))
    assert tier.exchange(f"GET {target} HTTP/1.1\r\nHost: t\r\n\r\n".encode())[0] == status


@pytest.mark.parametrize("host", HOSTS)
def test_no_host_gets_past_the_key_or_breaks_an_answer(guarded: RunningTier, host: str) -> None:
    def status(target: str, key: bytes) -> int:
        head = f"GET {target} HTTP/1.1\r\nHost: {host}\r\n".encode("latin-1")
        return guarded.exchange(head + key + b"\r\n")[0]

    assert [status("/v1/health", b""), status("/nowhere", b"")] == [200, 401]
    assert [status("/nowhere", KEY), status(TRANSCRIBE, KEY)] == [404, 405]


UPGRADE = (
    b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)


@pytest.mark.parametrize("path", [b"/v1/transcribe", b"/v1/nowhere"])
def test_a_websocket_is_a_request_like_any_other(guarded: RunningTier, path: bytes) -> None:
    head = b"GET " + path + b" HTTP/1.1\r\nHost: t\r\n"
    check(guarded.exchange(head + UPGRADE), 401, "unauthorized")
    assert guarded.exchange(head + KEY + UPGRADE)[0] in (404, 405)


OFFER = (
    b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n"
)


@pytest.mark.parametrize("cut", [1, len(START), len(START + KEY + OFFER) + 30, 10**6])
@pytest.mark.parametrize("chunked", [False, True])
def test_a_clip_is_heard_whose_caller_offers_an_upgrade(
    guarded: RunningTier, cut: int, chunked: bool
) -> None:
    """As Java's HttpClient does by itself; what comes after its headers is a body all the same."""
    length, body = b"Content-Length: %d\r\n\r\n" % len(CLIP), CLIP
    if chunked:
        length = b"Transfer-Encoding: chunked\r\n\r\n"
        body = b"%x\r\n%s\r\n0\r\n\r\n" % (len(CLIP), CLIP)
    sent = START + KEY + OFFER + length + body
    with guarded.connect(sent[:cut]) as connection:
        connection.sendall(sent[cut:])
        assert read_response(connection)[0] == 200
        connection.sendall(sent)  # nor is the connection over
        assert read_response(connection)[0] == 200


def test_requests_that_offer_upgrades_are_answered_in_turn(guarded: RunningTier) -> None:
    head = b"GET /v1/health HTTP/1.1\r\nHost: t\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n"
    last = b"GET /v1/health HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n"
    with guarded.connect(head * 500 + last) as connection:
        assert whole(connection).count(b"HTTP/1.1 200") == 501


def test_what_comes_after_connect_is_no_request(guarded: RunningTier) -> None:
    with guarded.connect(b"CONNECT t:80 HTTP/1.1\r\nHost: t:80\r\n\r\n" + START) as connection:
        answer = whole(connection)
    assert re.findall(rb"HTTP/1.1 (\d+)", answer) == [b"400"]
    assert b"connection: close" in answer.lower()


def test_nobody_is_told_to_go_on_before_the_key_is_checked(guarded: RunningTier) -> None:
    head = START + b"Expect: 100-continue\r\nContent-Length: %d\r\n" % len(CLIP)
    with guarded.connect(head + b"\r\n") as connection:
        assert connection.recv(12) == b"HTTP/1.1 401"
    with guarded.connect(head + KEY + b"\r\n") as connection:
        assert connection.recv(25) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(CLIP)
        assert read_response(connection)[0] == 200


def test_hundreds_of_idle_and_stalled_connections_are_in_nobodys_way(tiers: Tiers) -> None:
    tier = tiers.fallback(max_uploads=16)
    half_header = b"POST /v1/transcribe HTTP/1.1\r\nHost: t\r\n"
    half_body = START + b"Content-Length: 100000\r\n\r\n" + PART
    idle = [tier.connect((b"", half_header, half_body)[n % 3]) for n in range(500)]
    try:
        until(lambda: len(tier._server.server_state.connections) >= 500, "all are connected")
        until(lambda: tier.transcribe().status_code == 200, "a stalled body has given way")
        assert [tier.transcribe().status_code for _ in range(10)] == [200] * 10
        assert tier.get("/v1/health").status_code == 200
    finally:
        for connection in idle:
            connection.close()


# Under uvicorn's own protocol


@pytest.fixture(scope="module")
def bare(shared_tiers: Tiers) -> RunningTier:
    config = fallback_config(api_keys=(PRIMARY_KEY,), max_upload_mb=0.5)
    return shared_tiers.run(config, http=HttpToolsProtocol)


def test_the_bare_command_lets_no_websocket_in(bare: RunningTier) -> None:
    head = b"GET /v1/transcribe HTTP/1.1\r\nHost: t\r\n"
    with bare.connect(head + KEY + UPGRADE) as connection:
        assert connection.recv(12) == b"HTTP/1.1 403"


def test_the_bare_command_checks_the_key_before_the_body(bare: RunningTier) -> None:
    with bare.connect(START + b"Expect: 100-continue\r\nContent-Length: 9\r\n\r\n") as connection:
        assert connection.recv(12) == b"HTTP/1.1 401"


@pytest.mark.parametrize("target", NOWHERE + TRANSCRIBES)
def test_the_bare_command_knows_the_tricks_too(bare: RunningTier, target: str) -> None:
    head = f"GET {target} HTTP/1.1\r\nHost: t\r\n\r\n".encode()
    assert bare.exchange(head)[0] == 401
