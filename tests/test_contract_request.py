"""What `POST /v1/transcribe` takes: the parts of the form, and what is wrong with other ones."""

from __future__ import annotations

from typing import Any

import httpx2
import pytest

from fakes import MULTILINGUAL, FakeEngine
from running import TRANSCRIBE, RunningTier, Tiers
from stt_cascade.engine.protocol import Options
from tones import encoded, pitch, silence, tone, wav


@pytest.fixture(scope="module")
def tier(shared_tiers: Tiers) -> RunningTier:
    return shared_tiers.fallback(FakeEngine("hello there"), model_name="big")


def options(tier: RunningTier) -> Options:
    """What the engine was asked for, last."""
    return tier.fake.heard[-1][1]


def refused(answer: httpx2.Response) -> str:
    """The message of an `invalid_request`."""
    error = answer.json()["error"]
    assert (answer.status_code, error["type"]) == (400, "invalid_request")
    return str(error["message"])


def post(tier: RunningTier, *parts: tuple[str, Any]) -> httpx2.Response:
    return tier.client.post(TRANSCRIBE, files=list(parts))


@pytest.mark.parametrize("query", ["language=de", "language=de&task=translate", "x=1", "&a=b"])
def test_options_in_the_url_are_refused_not_dropped(tier: RunningTier, query: str) -> None:
    heard = len(tier.fake.heard)
    message = refused(tier.client.post(f"{TRANSCRIBE}?{query}", files={"audio": wav()}))
    assert repr(query.strip("&").partition("=")[0]) in message
    assert "form field; allowed are: audio, language, prompt, timestamps, task" in message
    assert len(tier.fake.heard) == heard


def test_a_url_without_options_may_end_in_anything(tier: RunningTier) -> None:
    for query in ("?", "?&", "?language="):
        assert tier.client.post(f"{TRANSCRIBE}{query}", files={"audio": wav()}).status_code == 200


def test_the_answer_is_the_promised_json(tier: RunningTier) -> None:
    answer = tier.transcribe(wav(tone(2.5)), headers={"X-Req-Id": "mine-1"})
    assert answer.headers["Content-Type"] == "application/json"
    json = answer.json()
    for name in ("queue_wait", "fallback_infer", "total"):
        assert json["timings_ms"].pop(name) >= 0
    assert json == {
        "text": "hello there",
        "language": "en",
        "language_probability": 0.98,
        "duration": 2.5,
        "speech_duration": 2.5,
        "model": "big",
        "confidence": {"logprob": 0.9, "weakest": 0.8, "words": 2},
        "routing": {
            "tier": "fallback",
            "fallback_used": False,
            "reason": "accepted",
            "below": [],
            "degraded": False,
        },
        "segments": [
            {
                "start": 0.0,
                "end": 2.5,
                "text": "hello there",
                "avg_logprob": -0.1,
                "no_speech_prob": 0.01,
                "words": [],
                "suspect": False,
            }
        ],
        "warnings": [],
        "timings_ms": {"primary_infer": None},
        "request_id": "mine-1",
    }


def test_only_the_clip_is_needed(tier: RunningTier) -> None:
    assert tier.transcribe().status_code == 200
    assert options(tier) == Options(
        language=None, prompt=None, timestamps="none", task="transcribe"
    )


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("de", "de"),
        ("DE", "de"),
        (" de ", "de"),
        ("pt-BR", "pt"),
        ("pt_br", "pt"),
        ("en-US-x-y", "en"),
        ("ita", "it"),
        ("FRE", "fr"),
        ("por_BR", "pt"),
        ("", None),
        ("auto", None),
        ("AUTO", None),
    ],
)
def test_a_language_is_a_code_in_any_case_or_nothing(
    tier: RunningTier, given: str, meant: str | None
) -> None:
    answer = tier.transcribe(language=given)
    assert answer.status_code == 200
    assert options(tier).language == meant
    assert answer.json()["language"] == (meant or "en")


def test_a_language_that_is_not_known_is_refused_with_those_that_are(tier: RunningTier) -> None:
    codes = refused(tier.transcribe(language="xx")).partition("one of: ")[2]
    assert {"en", "no", "jw", "yue"} <= set(codes.split(", "))
    codes = refused(tier.transcribe(language="ja")).partition("it knows: ")[2]
    assert set(codes.split(", ")) == MULTILINGUAL


def test_the_probability_of_a_forced_language_is_null(tier: RunningTier) -> None:
    assert tier.transcribe(language="de").json()["language_probability"] is None


@pytest.mark.parametrize("code", ["xx", "english", "e", "12", "zzz", "🦆", "-", "_en"])
def test_a_language_that_whisper_has_no_code_for_is_named(tier: RunningTier, code: str) -> None:
    message = refused(tier.transcribe(language=code))
    assert "language" in message
    assert repr(code) in message


def test_a_language_that_the_fallbacks_model_lacks_is_named(tier: RunningTier) -> None:
    assert "'ja'" in refused(tier.transcribe(language="ja"))


def test_the_clip_may_be_called_file(tier: RunningTier) -> None:
    answer = post(tier, ("file", ("clip.wav", wav(tone(1.5)), "audio/wav")))
    assert answer.status_code == 200
    assert answer.json()["duration"] == 1.5


def test_a_clip_needs_neither_name_nor_type(tier: RunningTier) -> None:
    body = b'--x\r\nContent-Disposition: form-data; name="audio"\r\n\r\n' + wav() + b"\r\n--x--\r\n"
    kind = {"Content-Type": "multipart/form-data; boundary=x"}
    assert tier.client.post(TRANSCRIBE, content=body, headers=kind).status_code == 200


def test_the_clips_name_may_be_in_any_encoding(tier: RunningTier) -> None:
    part = b'--x\r\nContent-Disposition: form-data; name="audio"; filename="%s"\r\n\r\n'
    kind = {"Content-Type": "multipart/form-data; boundary=x"}
    for name in ("Müller.wav".encode("latin-1"), "Müller.wav".encode(), b"\xff\xfe"):
        body = part % name + wav() + b"\r\n--x--\r\n"
        assert tier.client.post(TRANSCRIBE, content=body, headers=kind).status_code == 200


@pytest.mark.parametrize(
    ("name", "kind"), [("clip.G722", "audio/wav"), ("clip", "audio/G722")], ids=["name", "type"]
)
def test_raw_g722_is_known_by_its_name_or_type_alone(
    tier: RunningTier, name: str, kind: str
) -> None:
    answer = tier.transcribe(encoded("g722", hertz=600), name=name, kind=kind)
    assert answer.status_code == 200
    assert answer.json()["duration"] == 1.0
    assert pitch(tier.fake.heard[-1][0].samples) == pytest.approx(600, abs=2)


def test_a_name_decides_nothing_else(tier: RunningTier) -> None:
    assert tier.transcribe(wav(), name="clip.mp3", kind="audio/mpeg").status_code == 200


def test_the_prompt_reaches_the_engine(tier: RunningTier) -> None:
    tier.transcribe(prompt="Kubernetes, Grüße")
    assert options(tier).prompt == "Kubernetes, Grüße"


@pytest.mark.parametrize("value", ["none", "segment", "word", ""])
def test_timestamps_may_be_asked_for(tier: RunningTier, value: str) -> None:
    assert tier.transcribe(timestamps=value).status_code == 200
    assert options(tier).timestamps == (value or "none")


@pytest.mark.parametrize("value", ["transcribe", "translate", ""])
def test_a_task_may_be_asked_for(tier: RunningTier, value: str) -> None:
    assert tier.transcribe(task=value).status_code == 200
    assert options(tier).task == (value or "transcribe")


@pytest.mark.parametrize("field", ["timestamps", "task"])
def test_another_choice_is_named_with_what_is_allowed(tier: RunningTier, field: str) -> None:
    given: dict[str, Any] = {field: "sometimes"}
    message = refused(tier.transcribe(**given))
    allowed = {"timestamps": "none, segment, word", "task": "transcribe, translate"}[field]
    assert field in message
    assert allowed in message
    assert "'sometimes'" in message


def test_an_unknown_field_is_named_with_what_is_allowed(tier: RunningTier) -> None:
    message = refused(tier.transcribe(temperature="0.5"))
    assert "'temperature'" in message
    assert "audio, language, prompt, timestamps, task" in message


@pytest.mark.parametrize("names", [("audio", "audio"), ("audio", "file"), ("file", "file")])
def test_two_clips_are_refused(tier: RunningTier, names: tuple[str, str]) -> None:
    parts = [(name, ("clip.wav", wav(), "audio/wav")) for name in names]
    message = refused(post(tier, *parts))
    assert "'audio'" in message
    assert "twice" in message


def test_two_languages_are_refused(tier: RunningTier) -> None:
    audio = ("audio", ("clip.wav", wav(), "audio/wav"))
    message = refused(post(tier, audio, ("language", (None, "de")), ("language", (None, "en"))))
    assert "'language'" in message


def test_a_form_without_a_clip_is_refused(tier: RunningTier) -> None:
    assert "`audio`" in refused(post(tier, ("language", (None, "de"))))


@pytest.mark.parametrize(
    "kind",
    [
        "application/json",
        "application/x-www-form-urlencoded",
        "multipart/form-data",
        "multipart/mixed; boundary=x",
        "",
    ],
)
def test_a_body_of_another_type_is_refused(tier: RunningTier, kind: str) -> None:
    answer = tier.client.post(TRANSCRIBE, content=b"{}", headers={"Content-Type": kind})
    assert "multipart/form-data" in refused(answer)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"nothing of the kind",
        b"--x\r\n",
        b'--x\r\nContent-Disposition: form-data; name="audio"\r\n\r\nRIFF',
        b"--x\r\nContent-Disposition: attachment\r\n\r\nRIFF\r\n--x--\r\n",
        b"--x\r\nno header at all\r\n\r\nRIFF\r\n--x--\r\n",
    ],
    ids=["empty", "text", "stub", "cut", "nameless", "headless"],
)
def test_a_broken_form_is_refused(tier: RunningTier, body: bytes) -> None:
    kind = {"Content-Type": "multipart/form-data; boundary=x"}
    assert refused(tier.client.post(TRANSCRIBE, content=body, headers=kind))


def test_a_form_of_countless_parts_is_refused(tier: RunningTier) -> None:
    part = b'--x\r\nContent-Disposition: form-data; name="%d"\r\n\r\n\r\n'
    body = b"".join(part % number for number in range(1000)) + b"--x--\r\n"
    kind = {"Content-Type": "multipart/form-data; boundary=x"}
    assert refused(tier.client.post(TRANSCRIBE, content=body, headers=kind))


@pytest.mark.parametrize(
    ("boundary", "headers", "said"),
    [
        ("x" * 71, b"", "at most 70"),
        ("x", b"X-A: b\r\n" * 8, "Maximum segment header count"),
        ("x", b"X-A: " + b"b" * 4096 + b"\r\n", "Maximum segment header length"),
        ("x", b"X-A: " + b"b" * 65536, "Maximum segment header length"),
    ],
    ids=["boundary", "many headers", "long header", "endless header"],
)
def test_a_form_with_too_much_around_its_parts_is_refused(
    tier: RunningTier, boundary: str, headers: bytes, said: str
) -> None:
    part = b'--%s\r\nContent-Disposition: form-data; name="audio"\r\n%s\r\n'
    body = part % (boundary.encode(), headers) + wav() + b"\r\n--%s--\r\n" % boundary.encode()
    kind = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
    assert said in refused(tier.client.post(TRANSCRIBE, content=body, headers=kind))


def test_a_form_with_as_much_as_is_allowed_around_its_parts_is_taken(tier: RunningTier) -> None:
    boundary = b"x" * 70
    part = b'--%s\r\nContent-Disposition: form-data; name="audio"\r\n%s\r\n'
    headers = (b"X-A: " + b"b" * 4090 + b"\r\n") * 7
    body = part % (boundary, headers) + wav() + b"\r\n--%s--\r\n" % boundary
    kind = {"Content-Type": f"multipart/form-data; boundary={boundary.decode()}"}
    assert tier.client.post(TRANSCRIBE, content=body, headers=kind).status_code == 200


def test_a_prompt_that_is_no_utf8_is_named(tier: RunningTier) -> None:
    audio = ("audio", ("clip.wav", wav(), "audio/wav"))
    assert "prompt" in refused(post(tier, audio, ("prompt", (None, b"\xff\xfe"))))


@pytest.mark.parametrize(
    "value", ["0", "000", "-5", "+5", "1.5", "1_000", "1 000", "5,5", "0x5", "soon", "", " ", "²"]
)
def test_a_deadline_that_is_no_number_is_named(tier: RunningTier, value: str) -> None:
    head = f"POST {TRANSCRIBE} HTTP/1.1\r\nHost: t\r\nX-Deadline-Ms: {value}\r\n"
    status, headers, _ = tier.exchange(head.encode() + b"Content-Length: 0\r\n\r\n")
    assert (status, headers["x-error-type"]) == (400, "invalid_request")
    assert "X-Deadline-Ms" in headers["x-error-message"]


@pytest.mark.parametrize(
    "value",
    ["60000", "9" * 13, "9" * 5000, "0" * 5000 + "60000", " 60000", "60000 ", "\t60000 \t"],
    ids=["a minute", "13 digits", "5000 digits", "noughts", "before", "after", "both"],
)
def test_any_positive_whole_number_is_a_deadline(tier: RunningTier, value: str) -> None:
    part = b'--x\r\nContent-Disposition: form-data; name="audio"\r\n\r\n'
    body = part + wav() + b"\r\n--x--\r\n"
    head = f"POST {TRANSCRIBE} HTTP/1.1\r\nHost: t\r\nX-Deadline-Ms:{value}\r\n"
    form = "Content-Type: multipart/form-data; boundary=x\r\n"
    length = f"Content-Length: {len(body)}\r\n\r\n"
    assert tier.exchange((head + form + length).encode() + body)[0] == 200


def test_noughts_before_a_deadline_and_blanks_around_it_make_it_no_longer(
    tier: RunningTier,
) -> None:
    value = "\t" + "0" * 5000 + "1 "
    head = f"POST {TRANSCRIBE} HTTP/1.1\r\nHost: t\r\nX-Deadline-Ms: {value}\r\n"
    form = "Content-Type: multipart/form-data; boundary=x\r\n"
    # Of this body nothing ever comes.
    status, headers, _ = tier.exchange((head + form + "Content-Length: 5\r\n\r\n").encode())
    assert (status, headers["x-error-message"]) == (408, "the body had not come by the deadline")


@pytest.mark.parametrize("audio", [b"", b"no audio", wav(silence(0.05))])
def test_a_clip_that_is_none_says_why(tier: RunningTier, audio: bytes) -> None:
    answer = tier.transcribe(audio)
    error = answer.json()["error"]
    assert (answer.status_code, error["type"]) == (400, "invalid_audio")
    assert len(error["message"]) > 20
