"""What the primary makes of a fallback that fails, and when it asks again."""

from __future__ import annotations

import asyncio
import gzip
import json
import threading
import time
from collections.abc import Callable
from typing import Any

import httpx2
import pytest
from structlog.testing import capture_logs

from fakes import FALLBACK_KEY, FakeEngine, Reply, ScriptedFallback, answer_of_fallback
from running import RunningTier, Tiers, primary_config
from stt_cascade.admission.deadline import Deadline
from stt_cascade.admission.keys import Secrets
from stt_cascade.cascade.fallback_answer import (
    MAX_ANSWER_BYTES,
    FallbackError,
    most_bytes,
    read,
)
from stt_cascade.cascade.fallback_client import FallbackClient
from stt_cascade.engine.protocol import Options
from stt_cascade.record import Record
from stt_cascade.upload import Upload
from tones import wav

Scripted = Callable[..., ScriptedFallback]


def doubtful(
    tiers: Tiers, fallback: RunningTier | ScriptedFallback | str, **settings: Any
) -> RunningTier:
    """A primary that needs its fallback for every clip."""
    return tiers.primary(FakeEngine("hm"), fallback=fallback, **settings)


def check_502(answer: httpx2.Response, cause: str) -> None:
    assert answer.status_code == 502
    error = answer.json()["error"]
    assert error["type"] == answer.headers["X-Error-Type"] == "fallback_failed"
    assert cause in answer.headers["X-Fallback-Error"]
    assert cause in error["message"]
    assert cause in answer.headers["X-Error-Message"]
    assert answer.headers["X-Fallback-Used"] == "false"


def test_the_fallback_gets_what_the_caller_sent(tiers: Tiers, scripted: Scripted) -> None:
    fallback = scripted()
    primary = tiers.primary(FakeEngine("hm"), fallback=fallback, fallback_api_key="sesame")
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    clip = wav() + b"LIST\x00\r\n--trailing bytes"
    sent: dict[str, Any] = {
        "headers": {"X-Deadline-Ms": "5000", "traceparent": trace, "tracestate": "a=1, b=2"},
        "language": "PT-br",
        "prompt": "São Paulo",
        "timestamps": "word",
        "task": "translate",
    }

    primary.transcribe(clip, **sent)

    (asked,) = fallback.asked
    assert asked.parts == {
        "audio": clip,
        "language": b"pt",
        "prompt": "São Paulo".encode(),
        "timestamps": b"word",
        "task": b"translate",
    }
    assert asked.headers["authorization"] == "Bearer sesame"
    assert asked.headers["traceparent"] == trace
    assert asked.headers["tracestate"] == "a=1, b=2"
    assert 1000 < int(asked.headers["x-deadline-ms"]) < 5000


TRACE = b"traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\n"


@pytest.mark.parametrize(
    ("headers", "told"),
    [
        (TRACE + b"tracestate: a=1\r\ntracestate: b=2\r\n", "a=1,b=2"),
        (TRACE + b"tracestate: a=" + b"x" * 8190 + b"\r\n", "a=" + "x" * 8190),
        (TRACE + b"tracestate: a=" + b"x" * 8191 + b"\r\n", None),
        (TRACE + b"tracestate: a=\xfc\r\n", None),
        (TRACE + b"tracestate:\r\n", None),
        (b"tracestate: a=1\r\n", None),
        (b"traceparent: 00-0-0-01\r\ntracestate: a=1\r\n", None),
    ],
    ids=["two-lines", "long", "too-long", "no-ascii", "empty", "alone", "wrong-parent"],
)
def test_a_tracestate_goes_with_its_traceparent_to_the_fallback_whole_or_not_at_all(
    tiers: Tiers, scripted: Scripted, headers: bytes, told: str | None
) -> None:
    fallback = scripted()
    primary = doubtful(tiers, fallback)
    assert status_of(primary, headers) == 200
    (asked,) = fallback.asked
    assert asked.headers.get("tracestate") == told
    assert ("traceparent" in asked.headers) == headers.startswith(TRACE)


def status_of(tier: RunningTier, headers: bytes) -> int:
    """Of an upload with these headers, as they are: a client would write them its own way."""
    built = httpx2.Request("POST", "http://tier/v1/transcribe", files={"audio": ("a.wav", wav())})
    body = built.read()
    length, kind = str(len(body)).encode(), built.headers["Content-Type"].encode()
    status, _, _ = tier.exchange(
        b"POST /v1/transcribe HTTP/1.1\r\nHost: tier\r\nConnection: close\r\n"
        b"Content-Length: %b\r\nContent-Type: %b\r\n%b\r\n%b" % (length, kind, headers, body)
    )
    return status


def test_nothing_is_forced_on_the_fallback_that_the_caller_did_not_ask_for(
    tiers: Tiers, scripted: Scripted
) -> None:
    fallback = scripted()
    tiers.primary(FakeEngine("hm"), fallback=fallback).transcribe()
    (asked,) = fallback.asked
    assert set(asked.parts) == {"audio", "timestamps", "task"}
    assert not {"authorization", "traceparent"} & set(asked.headers)


def test_no_proxy_of_the_environment_gets_the_audio(
    tiers: Tiers, nobody: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, nobody)
    primary, _ = tiers.cascade(FakeEngine(logprob=0.1))
    assert primary.transcribe().json()["text"] == "from the fallback"


def test_a_fallback_that_is_down(tiers: Tiers, nobody: str) -> None:
    primary = doubtful(tiers, nobody)
    check_502(primary.transcribe(), "cannot be reached")
    assert primary.metric("stt_fallback_total", result="failed") == 1
    assert primary.metric("stt_fallback_total", result="used") == 0
    exceptions = {"endpoint": "/v1/transcribe", "type": "fallback_failed"}
    assert primary.metric("stt_requests_exceptions_total", **exceptions) == 1


def test_a_fallback_with_an_error_of_its_own(tiers: Tiers) -> None:
    fallback = tiers.fallback(FakeEngine(raises=RuntimeError("secret")))
    answer = doubtful(tiers, fallback).transcribe()
    check_502(answer, "500 internal")
    assert "secret" not in answer.text
    assert fallback.metric("stt_requests_total", endpoint="/v1/transcribe") == 1


def test_a_fallback_that_does_not_know_the_key(tiers: Tiers) -> None:
    fallback = tiers.fallback(api_keys=(FALLBACK_KEY,))
    answer = doubtful(tiers, fallback, fallback_api_key="another").transcribe()
    check_502(answer, "401 unauthorized")
    assert FALLBACK_KEY not in answer.text
    assert "another" not in answer.text


@pytest.mark.parametrize(
    "reply",
    [
        Reply(200, b"<html>It works!</html>"),
        Reply(200, b""),
        Reply(200, b'{"text": "only"}'),
        Reply(200, b'{"text": '),
        Reply(200, answer_of_fallback(confidence={"logprob": "high", "weakest": 1, "words": 1})),
        Reply(200, b"\xff\xfe"),
        # Nothing is decompressed: a few bytes could become gigabytes.
        Reply(
            200,
            gzip.compress(json.dumps(answer_of_fallback()).encode()),
            {"Content-Encoding": "gzip"},
        ),
    ],
    ids=["html", "empty", "half", "cut", "types", "bytes", "gzip"],
)
def test_a_fallback_that_talks_rubbish(tiers: Tiers, scripted: Scripted, reply: Reply) -> None:
    check_502(doubtful(tiers, scripted(reply)).transcribe(), "not of the agreed form")


def test_a_fallback_that_says_too_much(tiers: Tiers, scripted: Scripted) -> None:
    """Its answer would be one, but for the white space before it."""
    reply = Reply(200, b" " * MAX_ANSWER_BYTES + json.dumps(answer_of_fallback()).encode())
    check_502(doubtful(tiers, scripted(reply)).transcribe(), "longer than 68136 bytes")


def test_an_answer_is_no_longer_than_one_to_the_clip_can_be() -> None:
    assert most_bytes(1) < 70_000
    assert 8.1 * 1024 * 1024 < most_bytes(14400) == most_bytes(None) == MAX_ANSWER_BYTES


@pytest.mark.parametrize("item", ["{}", "0", "[]", '{"":{}}', '""'])
def test_four_mb_of_nothing_cost_no_more_than_that(item: str) -> None:
    empty = json.dumps(answer_of_fallback(segments=[])).encode()
    nothing = ",".join([item] * (4_000_000 // (len(item) + 1))).encode()
    body = empty.replace(b'"segments": []', b'"segments": [%s]' % nothing)
    began = time.process_time()
    with pytest.raises(FallbackError, match="too many values"):
        read(200, "", body)
    assert time.process_time() - began < 1  # it was 2 to 28 s


def test_the_first_wrong_item_of_a_list_ends_the_reading() -> None:
    segment = {"start": 0, "end": 1, "text": "", "avg_logprob": 0, "no_speech_prob": 0}
    many: tuple[list[Any], ...] = ([{}] * 1000, [{**segment, "words": [{}] * 1000}])
    for segments in many:
        body = json.dumps(answer_of_fallback(segments=segments)).encode()
        with pytest.raises(FallbackError, match=r"\([1-9] mistakes"):
            read(200, "", body)


def test_a_cookie_of_the_fallback_is_not_kept(tiers: Tiers, scripted: Scripted) -> None:
    fallback = scripted(Reply(headers={"Set-Cookie": f"a={'x' * 48_000}; Path=/"}), Reply())
    primary = doubtful(tiers, fallback)
    assert [primary.transcribe().status_code for _ in range(3)] == [200, 200, 200]
    assert not any("cookie" in asked.headers for asked in fallback.asked)


def test_no_text_of_the_fallback_commands_a_terminal_or_fills_a_log(
    tiers: Tiers, scripted: Scripted
) -> None:
    evil = "\x1b[2J\x9b31m\u202e\u2028\x7f"
    word = {"start": 0.0, "end": 0.1, "word": f"a{evil}", "probability": 0.5}
    segment = {"start": 0.0, "end": 1.0, "text": evil, "avg_logprob": 0.0, "no_speech_prob": 0.0}
    fine = answer_of_fallback(
        f"hi{evil}there", model=evil + "m" * 9000, segments=[{**segment, "words": [word]}]
    )
    error = {"error": {"type": evil, "message": evil * 9000, "request_id": "x"}}
    primary = doubtful(tiers, scripted(Reply(200, fine), Reply(400, error)))
    with capture_logs() as lines:
        heard, failed = primary.transcribe(), primary.transcribe()
    assert heard.json()["text"] == "hi [2J 31m there"
    assert len(heard.json()["model"]) < 400
    assert failed.status_code == 502
    assert len(failed.content) < 2000
    said = [heard.text, failed.text, *(str(value) for line in lines for value in line.values())]
    assert all(text.isprintable() for text in said)


def test_a_character_cut_in_half_and_a_number_that_is_none_are_no_answer() -> None:
    fine = json.dumps(answer_of_fallback("X"))
    for evil in (
        fine.replace('"X"', '"\\ud800"'),
        *(
            fine.replace('"duration": 1.0', f'"duration": {n}')
            for n in ("NaN", "1e999", "-Infinity")
        ),
        fine.replace('"duration": 1.0', f'"duration": 1{"0" * 400}'),
    ):
        with pytest.raises(FallbackError, match="not of the agreed form"):
            read(200, "", evil.encode())


@pytest.mark.parametrize("status", [204, 302, 404, 413, 500, 502])
def test_any_answer_but_200_is_a_failure(tiers: Tiers, scripted: Scripted, status: int) -> None:
    fallback = scripted(Reply(status, b"", {"Location": "/elsewhere"}))
    check_502(doubtful(tiers, fallback).transcribe(), str(status))
    assert len(fallback.asked) == 1


def test_an_answer_may_say_more_than_is_known_today(tiers: Tiers, scripted: Scripted) -> None:
    fallback = scripted(Reply(200, answer_of_fallback("and more", novelty=[1, 2])))
    answer = doubtful(tiers, fallback).transcribe()
    assert (answer.status_code, answer.json()["text"]) == (200, "and more")


def test_a_fallback_that_takes_too_long(tiers: Tiers) -> None:
    fallback = tiers.fallback(FakeEngine(holds=threading.Event()))
    answer = doubtful(tiers, fallback, fallback_timeout_s=0.2).transcribe()
    # It knows the deadline, too, and may be the first to say that it has passed.
    check_502(answer, "")
    assert answer.headers["X-Fallback-Error"].startswith("timeout: ")
    assert float(answer.headers["X-Fallback-Infer-ms"]) > 0


def test_a_deadline_that_passes_while_the_fallback_works(tiers: Tiers) -> None:
    fallback = tiers.fallback(FakeEngine(holds=threading.Event()))
    answer = doubtful(tiers, fallback).transcribe(headers={"X-Deadline-Ms": "1000"})
    assert answer.status_code == 502
    assert answer.json()["error"]["type"] == "fallback_failed"


def test_the_fallback_may_not_take_longer_than_the_caller_waits(
    tiers: Tiers, scripted: Scripted
) -> None:
    fallback = scripted()
    primary = doubtful(tiers, fallback, fallback_timeout_s=20)
    primary.transcribe(headers={"X-Deadline-Ms": "10000"})
    primary.transcribe()
    budgets = [int(asked.headers["x-deadline-ms"]) for asked in fallback.asked]
    assert 0 < budgets[0] < 10_000 < budgets[1] <= 20_000


@pytest.mark.parametrize("status", [429, 503])
def test_a_fallback_that_is_busy_is_asked_once_more(
    tiers: Tiers, scripted: Scripted, status: int
) -> None:
    fallback = scripted(Reply(status, b"", {"Retry-After": "1"}), Reply())
    answer = doubtful(tiers, fallback).transcribe()
    assert answer.status_code == 200
    assert len(fallback.asked) == 2
    assert fallback.asked[0].parts == fallback.asked[1].parts
    budgets = [int(asked.headers["x-deadline-ms"]) for asked in fallback.asked]
    assert budgets[1] <= budgets[0] - 1000  # Retry-After was waited for
    assert float(answer.headers["X-Fallback-Infer-ms"]) >= 1000  # retry included


def test_a_fallback_that_stays_busy_is_asked_twice_and_no_more(
    tiers: Tiers, scripted: Scripted
) -> None:
    fallback = scripted(Reply(503, b""))
    check_502(doubtful(tiers, fallback).transcribe(), "503")
    assert len(fallback.asked) == 2


def test_a_wait_that_does_not_fit_is_not_waited_for(tiers: Tiers, scripted: Scripted) -> None:
    fallback = scripted(Reply(503, b"", {"Retry-After": "10"}), Reply())
    answer = doubtful(tiers, fallback).transcribe(headers={"X-Deadline-Ms": "10000"})
    check_502(answer, "503")
    assert len(fallback.asked) == 1


@pytest.mark.parametrize("wait", ["99999999999", "-1", "soon", "1e9", "²"])
def test_an_absurd_wait_is_not_believed(tiers: Tiers, scripted: Scripted, wait: str) -> None:
    fallback = scripted(Reply(503, b"", {"Retry-After": wait}), Reply())
    answer = doubtful(tiers, fallback).transcribe(headers={"X-Deadline-Ms": "10000"})
    assert answer.status_code == 200
    assert len(fallback.asked) == 2


def test_a_broken_connection_is_not_tried_again(tiers: Tiers, scripted: Scripted) -> None:
    fallback = scripted(Reply(fault="cut"), Reply())
    check_502(doubtful(tiers, fallback).transcribe(), "broke off")
    assert len(fallback.asked) == 1


class Wire(httpx2.AsyncBaseTransport):
    """Raises the errors it was given, one a call, then answers."""

    def __init__(self, *errors: httpx2.HTTPError) -> None:
        self.errors = list(errors)
        self.calls = 0

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)
        body = json.dumps(answer_of_fallback()).encode()
        return httpx2.Response(200, stream=httpx2.ByteStream(body))


async def ask(wire: Wire, seconds: float = 5) -> str:
    config = primary_config(fallback_url="http://fallback.test")
    async with FallbackClient(config, Secrets(config), wire) as client:
        upload = Upload(b"clip", raw_g722=False, options=Options())
        return (await client.ask(upload, Record("id", "/", "t"), Deadline(seconds))).text


@pytest.mark.parametrize(
    "error", [httpx2.ConnectError("refused"), httpx2.ConnectTimeout("no answer")]
)
def test_a_connection_that_was_never_made_is_tried_again(error: httpx2.HTTPError) -> None:
    wire = Wire(error)
    assert asyncio.run(ask(wire)) == "from the fallback"
    assert wire.calls == 2


def test_a_connection_that_is_refused_twice_is_given_up() -> None:
    wire = Wire(httpx2.ConnectError("refused"), httpx2.ConnectError("refused"))
    with pytest.raises(FallbackError, match="cannot be reached"):
        asyncio.run(ask(wire))
    assert wire.calls == 2


def test_no_second_try_without_time_for_it() -> None:
    wire = Wire(httpx2.ConnectError("refused"))
    with pytest.raises(FallbackError, match="cannot be reached"):
        asyncio.run(ask(wire, seconds=0.05))
    assert wire.calls == 1


@pytest.mark.parametrize(
    "error",
    [
        httpx2.ReadError("reset"),
        httpx2.WriteError("reset"),
        httpx2.ReadTimeout("silence"),
        httpx2.RemoteProtocolError("no answer"),
    ],
)
def test_what_may_have_been_worked_on_is_not_sent_again(error: httpx2.HTTPError) -> None:
    wire = Wire(error)
    with pytest.raises(FallbackError, match="broke off"):
        asyncio.run(ask(wire))
    assert wire.calls == 1
