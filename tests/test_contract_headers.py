"""The headers of answers: what they say, and that nobody can smuggle anything into them."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fakes import FakeEngine, Reply, ScriptedFallback, answer_of_fallback
from running import TRANSCRIBE, RunningTier, Tiers
from stt_cascade.http.envelope import header_value
from tones import wav

MILLISECONDS = re.compile(r"\d+\.\d")
EVIL = "x\r\nX-Evil: 1\r\n\r\nGrüße 🦆" + "y" * 300


@pytest.fixture(scope="module")
def pair(shared_tiers: Tiers) -> tuple[RunningTier, RunningTier]:
    fallback = shared_tiers.fallback(model_name="big")
    return shared_tiers.primary(fallback=fallback, model_name="little"), fallback


@pytest.fixture
def primary(pair: tuple[RunningTier, RunningTier]) -> RunningTier:
    return pair[0]


def test_an_accepted_text_says_so_in_the_headers(primary: RunningTier) -> None:
    headers = primary.transcribe().headers
    assert headers["X-Final-Model"] == "little"
    assert headers["X-Fallback-Used"] == "false"
    assert headers["X-Conf-Below"] == "none"
    assert headers["X-Lang-Check-Applicable"] == "true"
    assert headers["X-Route-Reason"] == "accepted"
    for name in ("X-Total-ms", "X-Queue-Wait-ms", "X-Primary-Infer-ms"):
        assert MILLISECONDS.fullmatch(headers[name])
    assert "X-Fallback-Infer-ms" not in headers


def test_an_escalated_text_says_so_in_the_headers(
    tiers: Tiers, pair: tuple[RunningTier, RunningTier]
) -> None:
    doubtful = tiers.primary(FakeEngine("hm", logprob=0.1), fallback=pair[1])
    headers = doubtful.transcribe().headers
    assert headers["X-Final-Model"] == "big"
    assert headers["X-Fallback-Used"] == "true"
    assert headers["X-Conf-Below"] == "logprob,words"
    assert headers["X-Route-Reason"] == "low_confidence"
    for name in ("X-Total-ms", "X-Queue-Wait-ms", "X-Primary-Infer-ms", "X-Fallback-Infer-ms"):
        assert MILLISECONDS.fullmatch(headers[name])


def test_the_fallback_reports_its_own_inference(pair: tuple[RunningTier, RunningTier]) -> None:
    headers = pair[1].transcribe().headers
    assert headers["X-Final-Model"] == "big"
    assert headers["X-Fallback-Used"] == "false"
    assert headers["X-Lang-Check-Applicable"] == "false"
    assert MILLISECONDS.fullmatch(headers["X-Fallback-Infer-ms"])
    assert "X-Primary-Infer-ms" not in headers


def test_the_headers_agree_with_the_json(primary: RunningTier) -> None:
    answer = primary.transcribe()
    headers, json = answer.headers, answer.json()
    assert headers["X-Req-Id"] == json["request_id"]
    assert headers["X-Final-Model"] == json["model"]
    assert headers["X-Route-Reason"] == json["routing"]["reason"]
    timings = json["timings_ms"]
    assert float(headers["X-Primary-Infer-ms"]) == timings["primary_infer"]
    assert float(headers["X-Queue-Wait-ms"]) == timings["queue_wait"]
    assert float(headers["X-Total-ms"]) >= timings["total"] >= timings["primary_infer"]


@pytest.mark.parametrize(
    "path", ["/v1/health", "/v1/ready", "/v1/metrics", "/metrics", "/openapi.json", "/nowhere"]
)
def test_every_answer_has_an_id_and_a_time(primary: RunningTier, path: str) -> None:
    headers = primary.get(path, headers={"X-Req-Id": "probe-7"}).headers
    assert headers["X-Req-Id"] == "probe-7"
    assert MILLISECONDS.fullmatch(headers["X-Total-ms"])


def test_an_error_after_the_inference_keeps_what_is_known(tiers: Tiers, nobody: str) -> None:
    headers = tiers.primary(FakeEngine("hm"), fallback=nobody).transcribe().headers
    assert headers["X-Conf-Below"] == "words"
    assert headers["X-Route-Reason"] == "low_confidence"
    assert headers["X-Fallback-Used"] == "false"
    assert MILLISECONDS.fullmatch(headers["X-Primary-Infer-ms"])
    assert MILLISECONDS.fullmatch(headers["X-Fallback-Infer-ms"])
    assert "X-Final-Model" not in headers


@pytest.mark.parametrize("given_id", ["a", "7f3b-._:Z", "x" * 128])
def test_a_sane_request_id_is_kept(primary: RunningTier, given_id: str) -> None:
    answer = primary.transcribe(headers={"X-Req-Id": given_id})
    assert answer.headers["X-Req-Id"] == answer.json()["request_id"] == given_id


@pytest.mark.parametrize("given_id", ["", "a b", "x" * 129, "{}", "a;b", 'a"', "é", "../etc"])
def test_any_other_request_id_is_replaced(primary: RunningTier, given_id: str) -> None:
    head = (
        f"GET /v1/health HTTP/1.1\r\nHost: t\r\nConnection: close\r\nX-Req-Id: {given_id}\r\n\r\n"
    )
    _, headers, _ = primary.exchange(head.encode("utf-8"))
    assert re.fullmatch(r"[0-9a-f]{32}", headers["x-req-id"])


def test_request_ids_that_are_made_differ(primary: RunningTier) -> None:
    assert len({primary.get("/v1/health").headers["X-Req-Id"] for _ in range(10)}) == 10


@pytest.mark.parametrize("given_id", ["caller-1", "not sane"])
def test_the_fallback_gets_the_same_request_id(
    tiers: Tiers, scripted: Callable[..., ScriptedFallback], given_id: str
) -> None:
    fallback = scripted()
    answer = tiers.primary(FakeEngine("hm"), fallback=fallback).transcribe(
        headers={"X-Req-Id": given_id}
    )
    assert fallback.asked[0].headers["x-req-id"] == answer.headers["X-Req-Id"]
    assert answer.json()["request_id"] == answer.headers["X-Req-Id"]


@pytest.mark.parametrize(
    "spoilt",
    [
        b"X-Req-Id: a\r\n X-Evil: 1",
        b"X-Req-Id: a\nX-Evil: 1",
        b"X-Req-Id: a\rX-Evil: 1",
        b"X-Req-Id: a\x00X-Evil: 1",
    ],
    ids=["folded", "newline", "return", "nul"],
)
def test_a_request_header_with_a_newline_splits_nothing(
    primary: RunningTier, spoilt: bytes
) -> None:
    request = b"GET /nowhere HTTP/1.1\r\nHost: t\r\nConnection: close\r\n" + spoilt + b"\r\n\r\n"
    status, headers, _ = primary.exchange(request)
    assert status in (400, 404)
    assert "x-evil" not in headers


@pytest.mark.parametrize(
    "disposition",
    [
        f'name="{EVIL}"',
        'name="lang\\r\\nX-Evil: 1"',
        'name="lang%0d%0aX-Evil: 1"',
        'name="lang\nX-Evil: 1"',
        "name*=utf-8''lang%0d%0aX-Evil:%201",
        'name="audio"; filename="a\r\nX-Evil: 1"',
        'name="audio"; filename="🦆\nX-Evil: 1.wav"',
    ],
)
def test_a_part_with_a_newline_in_its_name_splits_nothing(
    primary: RunningTier, disposition: str
) -> None:
    part = f"--x\r\nContent-Disposition: form-data; {disposition}\r\n\r\n".encode()
    body = part + b"RIFF\r\n--x--\r\n"
    answer = primary.client.post(
        TRANSCRIBE, content=body, headers={"Content-Type": "multipart/form-data; boundary=x"}
    )
    assert answer.status_code == 400
    assert "X-Evil" not in answer.headers
    assert re.fullmatch(r"[ -~]{1,200}", answer.headers["X-Error-Message"])


def test_a_language_with_a_newline_splits_nothing(primary: RunningTier) -> None:
    answer = primary.transcribe(language=EVIL)
    assert answer.status_code == 400
    assert "X-Evil" not in answer.headers
    assert re.fullmatch(r"[ -~]{1,200}", answer.headers["X-Error-Message"])


def test_a_filename_in_any_script_is_taken(primary: RunningTier) -> None:
    assert primary.transcribe(wav(), name="Grüße 🦆.wav").status_code == 200


def test_what_the_fallback_says_cannot_split_the_answer(
    tiers: Tiers, scripted: Callable[..., ScriptedFallback]
) -> None:
    error = {"type": EVIL, "message": EVIL, "request_id": EVIL}
    fallback = scripted(Reply(500, {"error": error}), Reply(200, answer_of_fallback(model=EVIL)))
    primary = tiers.primary(FakeEngine("hm"), fallback=fallback)

    failed, used = primary.transcribe(), primary.transcribe()

    assert (failed.status_code, used.status_code) == (502, 200)
    for answer, name in (
        (failed, "X-Fallback-Error"),
        (failed, "X-Error-Message"),
        (used, "X-Final-Model"),
    ):
        assert "X-Evil" not in answer.headers
        assert re.fullmatch(r"[ -~]{100,200}", answer.headers[name])


@given(st.text())
def test_a_header_value_is_always_one_short_line_of_printable_ascii(text: str) -> None:
    assert re.fullmatch(r"[ -~]{0,200}", header_value(text))


@given(st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=200))
def test_a_header_value_that_is_fine_is_left_alone(text: str) -> None:
    assert header_value(text) == text
