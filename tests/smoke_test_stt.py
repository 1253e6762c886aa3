"""Whether a cluster does what docs/api.md says, tried from outside with real speech.

    python tests/smoke_test_stt.py --url http://127.0.0.1:8081 --key KEY [--audio DIR]

Needs the client (`stt_sdk`) alone; the exit status is 1 if a check fails. Under pytest each check
is a test: of the service at STT_SMOKE_URL (with STT_SMOKE_KEY), else of two tiers started for it.
"""

from __future__ import annotations

import argparse
import http.client
import io
import json
import math
import os
import re
import sys
import time
import wave
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from stt_sdk import InvalidAudioError, STTError, SyncSTTClient, Transcription, UnauthorizedError

SAMPLES = Path(__file__).parent.parent / "samples"
# "Americans", from samples/jfk.flac.
ONE_WORD = Path(__file__).with_name("one-word.flac")
TRANSCRIBE = "/v1/transcribe"
PATIENCE_S = 120.0
# A clip beyond this is heard in several windows.
WINDOW_S = 30.0
# An SLO is one of clips up to this length.
SLO_CLIP_S = 10.0
# Fewer calls than this have no rate.
LEAST_CALLS = 4
AUDIO = {".wav", ".flac", ".mp3", ".ogg", ".opus", ".webm", ".m4a", ".mp4", ".aiff", ".au"}
BOUNDARY = "smoke"
FORM = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
# The service looks at pauses in a body of this many seconds.
PAUSE_S = 8.0
SLOW_ANSWER_S = PAUSE_S + 12.0

HEALTH = {"ok", "service", "model", "device", "commit", "version", "uptime_s"}
SNAPSHOT = HEALTH | {"state", "counts", "latency_ms", "queue_depth", "in_flight", "thresholds"}
ALWAYS = ("X-Req-Id", "X-Total-ms")
OF_A_TEXT = (
    *ALWAYS,
    *("X-Fallback-Used", "X-Final-Model", "X-Conf-Below"),
    *("X-Lang-Check-Applicable", "X-Route-Reason"),
)
OF_AN_ERROR = (*ALWAYS, "X-Error-Type", "X-Error-Message")
METRICS = (
    *("stt_requests_total", "stt_requests_exceptions_total", "stt_fallback_total"),
    *("stt_escalations_total", "stt_fallback_errors_total", "stt_conf_below_total"),
    *("stt_rejected_total", "stt_no_speech_total", "stt_audio_seconds_total"),
    *("stt_full_context_retries_total", "stt_second_looks_total"),
    *("stt_request_total_seconds_bucket", "stt_slo_request_seconds_bucket"),
    *("stt_primary_infer_seconds_bucket", "stt_fallback_infer_seconds_bucket"),
    *("stt_queue_wait_seconds_bucket", "stt_confidence_bucket", "stt_queue_depth"),
    *("stt_in_flight", "stt_in_flight_audio_seconds", "stt_oldest_inference_seconds"),
    *("stt_rate_limit_fullest_ratio", "stt_fallback_breaker_open", "stt_build_info"),
)


GPU_METRICS = {"stt_gpu_utilization_pct", "stt_gpu_mem_used_mb", "stt_gpu_mem_total_mb"}


class Skipped(Exception):
    """A check that could not be made, and why."""


class Failed(Exception):
    """A check that did not hold, and what was there instead."""


@dataclass(frozen=True)
class Answer:
    """What came, and after how many seconds."""

    status: int
    headers: http.client.HTTPMessage
    body: bytes
    seconds: float

    def json(self) -> dict[str, Any]:
        try:
            found: dict[str, Any] = json.loads(self.body)
        except ValueError:
            raise Failed(f"{self.status} without JSON: {self.body[:80]!r}") from None
        return found


@dataclass(frozen=True)
class Clip:
    """A file of the folder; what is said in it and its language, where a manifest tells."""

    file: Path
    text: str | None = None
    language: str | None = None


@dataclass(frozen=True)
class Call:
    """One clip as it was heard, with the language forced or detected."""

    clip: Clip
    forced: bool
    answer: Answer
    result: Transcription

    @property
    def name(self) -> str:
        return f"{self.clip.file.name}, language {'forced' if self.forced else 'detected'}"

    @property
    def escalated(self) -> bool:
        return self.result.routing.reason not in ("accepted", "no_speech")


@dataclass
class Service:
    """What is tried, and how.

    Args:
        audio: folder of clips, with a `manifest.jsonl` or without.
        slo: seconds, of the p95 of clips up to 10 s; 0: it is not judged.
        most_fallback: share of a language's clips that may be escalated.
        burst: requests that may be sent at once, to meet the rate limit; 0: none.
        repeat: how often each clip is sent.
        quick: without what takes long.
    """

    url: str
    key: str | None = None
    metrics_key: str | None = None
    audio: Path = SAMPLES
    slo: float = 1.0
    most_fallback: float = 0.5
    burst: int = 0
    repeat: int = 3
    quick: bool = False
    _calls: list[Call] = field(default_factory=list)

    def ask(
        self,
        method: str,
        path: str,
        body: bytes = b"",
        headers: Mapping[str, str] = {},  # nobody changes it
        *,
        key: str | None = "",
        again: int = 3,
    ) -> Answer:
        """A request on a connection of its own; what says `Retry-After` is asked again.

        Args:
            key: None: without one; empty: the caller's.
        """
        key = self.key if key == "" else key
        sent = {**headers, **({"Authorization": f"Bearer {key}"} if key else {})}
        began = time.monotonic()
        with closing(self._connection()) as connection:
            try:
                connection.request(method, self._prefix + path, body or None, sent)
                answer = connection.getresponse()
                content = answer.read()
            except (OSError, http.client.HTTPException) as error:
                raise Failed(f"no answer to {method} {path}: {error}") from None
        wait = answer.headers.get("Retry-After")
        if answer.status in (429, 503) and wait and again and int(wait) <= PATIENCE_S:
            time.sleep(int(wait))
            return self.ask(method, path, body, headers, key=key, again=again - 1)
        return Answer(answer.status, answer.headers, content, time.monotonic() - began)

    def send(
        self,
        audio: bytes | None,
        headers: Mapping[str, str] = {},  # nobody changes it
        **fields: str,
    ) -> Answer:
        """A clip, and fields beside it."""
        return self.ask("POST", TRANSCRIBE, form(audio, fields), {**FORM, **headers})

    @contextmanager
    def raw(self, head: Mapping[str, str]) -> Iterator[http.client.HTTPConnection]:
        """A connection on which the headers of a clip have been sent, and nothing else."""
        key = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        with closing(self._connection()) as connection:
            connection.putrequest("POST", self._prefix + TRANSCRIBE)
            for name, value in {**FORM, **key, **head}.items():
                connection.putheader(name, value)
            connection.endheaders()
            yield connection

    def calls(self) -> Sequence[Call]:
        """Every clip, with its language detected and then forced; made once."""
        if not self._calls:
            for clip in clips_in(self.audio):
                audio = clip.file.read_bytes()
                for _ in range(self.repeat):
                    found = self._call(clip, audio, None)
                    self._calls.append(found)
                    if language := clip.language or found.result.language:
                        self._calls.append(self._call(clip, audio, language))
        return self._calls

    def _call(self, clip: Clip, audio: bytes, language: str | None) -> Call:
        answer = self.send(audio, language=language or "auto")
        if answer.status != 200:
            raise Failed(f"{clip.file.name}: {answer.status} {answer.body[:200]!r}")
        try:
            result = Transcription.from_json(answer.json())
        except (KeyError, TypeError) as error:
            raise Failed(f"{clip.file.name}: not of the agreed form: {error!r}") from None
        return Call(clip, language is not None, answer, result)

    def _connection(self) -> http.client.HTTPConnection:
        parts = urlsplit(self.url)
        kind = (
            http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        )
        return kind(parts.hostname or "", parts.port, timeout=PATIENCE_S)

    @property
    def _prefix(self) -> str:
        return urlsplit(self.url).path.rstrip("/")


def form(audio: bytes | None, fields: Mapping[str, str]) -> bytes:
    parts = [(f'name="{name}"', value.encode()) for name, value in fields.items()]
    if audio is not None:
        parts.append(('name="audio"; filename="clip"', audio))
    made = b"".join(
        f"--{BOUNDARY}\r\nContent-Disposition: form-data; {head}\r\n\r\n".encode()
        + content
        + b"\r\n"
        for head, content in parts
    )
    return made + f"--{BOUNDARY}--\r\n".encode()


def clips_in(folder: Path) -> list[Clip]:
    """Raises Skipped: there are none."""
    manifest = folder / "manifest.jsonl"
    if manifest.is_file():
        rows = [json.loads(line) for line in manifest.read_text("utf-8").splitlines() if line]
        return [
            Clip(folder / row["file"], row["text"], row.get("language") or None) for row in rows
        ]
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in AUDIO)
    if not files:
        raise Skipped(f"no audio in {folder}: --audio DIR")
    return [Clip(file) for file in files]


def silence(seconds: float, rate: int = 8000) -> bytes:
    """A WAV of 8 bits, in which nobody speaks."""
    file = io.BytesIO()
    with wave.open(file, "wb") as made:
        made.setnchannels(1)
        made.setsampwidth(1)
        made.setframerate(rate)
        made.writeframes(b"\x80" * round(seconds * rate))
    return file.getvalue()


def expect(true: object, said: str) -> None:
    if not true:
        raise Failed(said)


def headers_of(answer: Answer, wanted: Sequence[str]) -> None:
    missing = [name for name in wanted if name not in answer.headers]
    expect(not missing, f"{answer.status} without {', '.join(missing)}")
    for name, value in answer.headers.items():
        if name.lower().startswith("x-"):
            fits = len(value) <= 200 and value.isascii() and value.isprintable()
            expect(fits, f"{name} is no line of printable ASCII of at most 200 characters")


def error_of(answer: Answer, status: int, *kinds: str, also: Sequence[str] = ()) -> str:
    """The message of an error, which must be one of these."""
    expect(answer.status == status, f"{answer.status} instead of {status}: {answer.body[:120]!r}")
    headers_of(answer, (*OF_AN_ERROR, *also))
    error = answer.json().get("error")
    expect(isinstance(error, dict) and {"type", "message", "request_id"} <= set(error), "no error")
    assert isinstance(error, dict)
    expect(error["type"] in kinds, f"type {error['type']} instead of {' or '.join(kinds)}")
    expect(error["type"] == answer.headers["X-Error-Type"], "X-Error-Type is not the body's type")
    expect(error["request_id"] == answer.headers["X-Req-Id"], "X-Req-Id is not the body's")
    return str(error["message"])


def p95(seconds: Sequence[float]) -> float:
    return sorted(seconds)[math.ceil(0.95 * len(seconds)) - 1]


# The checks: what each returns is said beside its name.


def health(stt: Service) -> str:
    answer = stt.ask("GET", "/v1/health", key=None)
    found = answer.json()
    expect(answer.status == 200 and found.get("ok") is True, f"{answer.status} {found}")
    expect(set(found) >= HEALTH, f"without {', '.join(sorted(HEALTH - set(found)))}")
    headers_of(answer, ALWAYS)
    return f"{found['service']}, {found['model']} on {found['device']}, commit {found['commit']}"


def ready(stt: Service) -> str:
    answer = stt.ask("GET", "/v1/ready", key=None)
    found = answer.json()
    expect(answer.status == 200 and found.get("ready") is True, f"{answer.status} {found}")
    for path in ("/v1/health", "/v1/ready"):
        answer = stt.ask("HEAD", path, key=None)
        expect(answer.status == 200, f"HEAD {path}: {answer.status}")
    return str(found["state"])


def openapi(stt: Service) -> str:
    answer = stt.ask("GET", "/openapi.json", key=None)
    expect(answer.status == 200, str(answer.status))
    expect(TRANSCRIBE in answer.json().get("paths", {}), f"it does not have {TRANSCRIBE}")
    return f"{len(answer.json()['paths'])} paths"


def _metrics(stt: Service, path: str) -> Answer:
    answer = stt.ask("GET", path, key=stt.metrics_key or None)
    if answer.status == 401:
        raise Skipped("METRICS_KEYS are set: --metrics-key KEY")
    expect(answer.status == 200, str(answer.status))
    return answer


def snapshot(stt: Service) -> str:
    found = _metrics(stt, "/v1/metrics").json()
    expect(set(found) >= SNAPSHOT, f"without {', '.join(sorted(SNAPSHOT - set(found)))}")
    return f"{found['counts'].get('requests')} requests since the start"


def prometheus(stt: Service) -> str:
    text = _metrics(stt, "/metrics").body.decode("utf-8", "replace")
    there = set(re.findall(r"^(\w+)(?:\{| )", text, re.MULTILINE))
    missing = [name for name in METRICS if name not in there]
    expect(not missing, f"without {', '.join(missing)}")
    gauges = {name for name in there if name.startswith("stt_gpu_")}
    device = stt.ask("GET", "/v1/health", key=None).json().get("device")
    if device == "cuda":
        # A GPU in MIG mode does not tell its load, which is then null.
        read = _metrics(stt, "/v1/metrics").json().get("gpu") or {}
        silent = {f"stt_gpu_{name}" for name, value in read.items() if value is None}
        lacking = sorted(GPU_METRICS - silent - gauges)
        expect(not lacking, f"on cuda without {', '.join(lacking)}: see the log of the start")
    else:
        expect(not gauges, f"on {device} with {', '.join(sorted(gauges))}")
    return f"all of {len(METRICS)}, and {len(gauges)} of a GPU"


def texts(stt: Service) -> str:
    for call in stt.calls():
        spoken = call.clip.text != ""
        expect(not spoken or call.result.text, f"{call.name}: no text")
    return f"{len(stt.calls())} texts of {len(clips_in(stt.audio))} clips"


def headers(stt: Service) -> str:
    for call in stt.calls():
        result, got = call.result, call.answer.headers
        headers_of(call.answer, OF_A_TEXT)
        for name, told, said in (
            ("X-Route-Reason", got["X-Route-Reason"], result.routing.reason),
            ("X-Req-Id", got["X-Req-Id"], result.request_id),
            ("X-Final-Model", got["X-Final-Model"], result.model),
            ("X-Fallback-Used", got["X-Fallback-Used"] == "true", result.routing.fallback_used),
            ("X-Conf-Below", got["X-Conf-Below"], ",".join(result.routing.below) or "none"),
        ):
            expect(told == said, f"{call.name}: {name} says {told}, the body {said}")
        # Absent if it did not happen, such as a wait for a clip in which nobody speaks.
        for name, ms in (
            ("X-Queue-Wait-ms", result.timings_ms.queue_wait),
            ("X-Primary-Infer-ms", result.timings_ms.primary_infer),
            ("X-Fallback-Infer-ms", result.timings_ms.fallback_infer),
        ):
            expect((name in got) == (ms is not None), f"{call.name}: {name} {got[name]}, body {ms}")
    return f"all of {len(OF_A_TEXT) + 3}, and as the bodies say"


def detected(stt: Service) -> str:
    calls = [call for call in stt.calls() if not call.forced and call.result.text]
    expect(calls, "no text")
    for call in calls:
        if call.answer.headers["X-Lang-Check-Applicable"] == "true":
            expect(call.result.language_probability is not None, f"{call.name}: no probability")
    known = [call for call in calls if call.clip.language]
    right = sum(call.result.language == call.clip.language for call in known)
    return f"{right} of {len(known)} right" if known else f"{len(calls)} clips"


def forced(stt: Service) -> str:
    calls = [call for call in stt.calls() if call.forced and call.result.text]
    expect(calls, "no text")
    for call in calls:
        expect(call.result.language_probability is None, f"{call.name}: has a probability")
        checked = call.answer.headers["X-Lang-Check-Applicable"]
        expect(checked == "false", f"{call.name}: X-Lang-Check-Applicable {checked}")
    return f"{len(calls)} clips"


def lengths(stt: Service) -> str:
    found = sorted({round(call.result.duration, 1) for call in stt.calls()})
    expect(all(length > 0 for length in found), f"a clip of {found[0]} s")
    if found[-1] <= WINDOW_S:
        raise Skipped(f"{found[0]} to {found[-1]} s; none is over {WINDOW_S:g} s: --audio DIR")
    return f"{found[0]} to {found[-1]} s"


def nobody_speaks(stt: Service) -> str:
    for seconds in (1.0, WINDOW_S + 5):
        answer = stt.send(silence(seconds))
        expect(answer.status == 200, f"{answer.status} {answer.body[:120]!r}")
        found = answer.json()
        expect(found["text"] == "", f"{seconds:g} s of silence became {found['text']!r}")
        expect(found["routing"]["reason"] == "no_speech", str(found["routing"]))
        expect(answer.headers["X-Fallback-Used"] == "false", "it was escalated")
    return f"1 and {WINDOW_S + 5:g} s of silence, no text and no escalation"


def word_times(stt: Service) -> str:
    answer = stt.send(stt.calls()[0].clip.file.read_bytes(), timestamps="word")
    expect(answer.status == 200, f"{answer.status} {answer.body[:120]!r}")
    result = Transcription.from_json(answer.json())
    words = [word for segment in result.segments for word in segment.words]
    for word in words:
        fits = 0 <= word.start <= word.end <= result.duration + 0.1
        expect(fits, f"{word.word!r} from {word.start} to {word.end} s of {result.duration} s")
    if not words:
        raise Skipped("this model gives none")
    return f"{len(words)} words"


def request_id(stt: Service) -> str:
    given = "smoke-test.1"
    answer = stt.ask("GET", "/v1/health", headers={"X-Req-Id": given})
    expect(answer.headers["X-Req-Id"] == given, f"{given} became {answer.headers['X-Req-Id']}")
    answer = stt.ask("GET", "/v1/health", headers={"X-Req-Id": "not sane"})
    expect(answer.headers["X-Req-Id"] != "not sane", "a wrong one is given back")
    return "kept, and a wrong one replaced"


def escalation(stt: Service) -> str:
    found = [call for call in stt.calls() if call.escalated] or [_forced(stt)]
    for call in found:
        routing, got = call.result.routing, call.answer.headers
        if routing.degraded:
            expect("X-Fallback-Error" in got, f"{call.name}: degraded without X-Fallback-Error")
            continue
        expect(routing.tier == "fallback" and routing.fallback_used, f"{call.name}: {routing}")
        expect("X-Fallback-Infer-ms" in got, f"{call.name}: no X-Fallback-Infer-ms")
        doubted = routing.reason == "low_confidence"
        expect(not doubted or routing.below, f"{call.name}: doubted by no gate")
    degraded = sum(call.result.routing.degraded for call in found)
    expect(not degraded, f"{degraded} of {len(found)} degraded: the fallback failed")
    if found[0].clip.file == ONE_WORD:
        return f"forced by one word, {found[0].result.text!r}: by {found[0].result.routing.below}"
    return f"{len(found)} of {len(stt.calls())} calls"


def _forced(stt: Service) -> Call:
    """One word: it has fewer than MIN_WORDS_FOR_CONF, whatever the other thresholds are.

    Raises:
        Skipped: this service takes one word for enough, or heard more of them.
    """
    call = stt._call(Clip(ONE_WORD), ONE_WORD.read_bytes(), "en")
    if call.escalated:
        return call
    heard = call.result.confidence.words
    try:
        least = (_metrics(stt, "/v1/metrics").json()["thresholds"] or {}).get("words", 0)
    except Skipped as why:
        raise Skipped(f"no clip was doubted, not even {call.result.text!r}; {why}") from None
    expect(heard >= least, f"{heard} words are accepted, and MIN_WORDS_FOR_CONF is {least}")
    raise Skipped(
        f"no clip was doubted, and MIN_WORDS_FOR_CONF={least} accepts {call.result.text!r}; "
        "samples/bad-line.flac makes Whisper base doubt"
    )


def sdk(stt: Service) -> str:
    with SyncSTTClient(stt.url, api_key=stt.key) as client:
        try:
            expect(client.health().ok and client.ready().ready, "not well")
            result = client.transcribe(stt.calls()[0].clip.file)
        except STTError as error:
            raise Failed(str(error)) from None
        try:
            client.transcribe(b"no audio")
        except InvalidAudioError:
            return f"{result.elapsed:.2f} s a clip, and its errors are the right ones"
        raise Failed("no InvalidAudioError for what is no audio")


def invalid_request(stt: Service) -> str:
    audio = silence(0.5)
    for answer in (
        stt.send(None),
        stt.send(audio, lang="de"),
        stt.send(audio, language="xx"),
        stt.ask("POST", TRANSCRIBE, b"{}", {"Content-Type": "application/json"}),
        stt.send(audio, headers={"X-Deadline-Ms": "soon"}),
    ):
        said = error_of(answer, 400, "invalid_request")
    return said


def invalid_audio(stt: Service) -> str:
    error_of(stt.send(silence(0.02)), 400, "invalid_audio")
    return error_of(stt.send(b"this is no audio"), 400, "invalid_audio")


def unauthorized(stt: Service) -> str:
    answer = stt.ask("POST", TRANSCRIBE, form(b"", {}), FORM, key=None)
    if answer.status != 401 and stt.key is None:
        raise Skipped("the service is open: API_KEYS are not set")
    error_of(answer, 401, "unauthorized", also=("WWW-Authenticate",))
    wrong = stt.ask("POST", TRANSCRIBE, form(b"", {}), FORM, key="smoke-test-wrong-key")
    error_of(wrong, 401, "unauthorized", also=("WWW-Authenticate",))
    with SyncSTTClient(stt.url, api_key="smoke-test-wrong-key") as client:
        try:
            client.transcribe(silence(0.5))
        except UnauthorizedError:
            return "without a key, and with a wrong one"
    raise Failed("no UnauthorizedError")


def not_found(stt: Service) -> str:
    return error_of(stt.ask("GET", "/v1/smoke-test"), 404, "not_found")


def method_not_allowed(stt: Service) -> str:
    answer = stt.ask("GET", TRANSCRIBE)
    error_of(answer, 405, "method_not_allowed", also=("Allow",))
    return f"Allow: {answer.headers['Allow']}"


def payload_too_large(stt: Service) -> str:
    return error_of(_only_head(stt, {"Content-Length": str(10**11)}), 413, "payload_too_large")


def audio_too_long(stt: Service) -> str:
    if stt.quick:
        raise Skipped("--quick")
    seconds = 15 * 2**20 / 8000
    answer = stt.send(silence(seconds))
    if answer.status == 200 or answer.headers["X-Error-Type"] == "payload_too_large":
        raise Skipped(f"{seconds:.0f} s in 15 MiB are within MAX_AUDIO_SECONDS, or too many bytes")
    return error_of(answer, 413, "audio_too_long")


def request_timeout(stt: Service) -> str:
    if stt.quick:
        raise Skipped("--quick")
    return error_of(_only_head(stt, {"Content-Length": "1000"}), 408, "request_timeout")


def _only_head(stt: Service, head: Mapping[str, str]) -> Answer:
    """What comes to a request whose body does not."""
    began = time.monotonic()
    try:
        with stt.raw(head) as connection:
            assert connection.sock is not None
            connection.sock.settimeout(SLOW_ANSWER_S)
            got = connection.getresponse()
            return Answer(got.status, got.headers, got.read(), time.monotonic() - began)
    except TimeoutError:
        raise Failed(f"no answer within {SLOW_ANSWER_S:g} s") from None
    except (OSError, http.client.HTTPException) as error:
        raise Failed(f"no answer: {error}") from None


def deadline(stt: Service) -> str:
    kinds = {504: "deadline_exceeded", 503: "overloaded", 408: "request_timeout"}
    body = form(stt.calls()[0].clip.file.read_bytes(), {})
    answer = stt.ask("POST", TRANSCRIBE, body, {**FORM, "X-Deadline-Ms": "1"}, again=0)
    expect(answer.status in kinds, f"{answer.status} for a deadline of 1 ms")
    error_of(answer, answer.status, kinds[answer.status])
    return f"{answer.status} {kinds[answer.status]}"


def rate_limited(stt: Service) -> str:
    if not stt.burst:
        raise Skipped("no burst may be sent: --burst 300")
    for sent in range(1, stt.burst + 1):
        answer = stt.ask("POST", TRANSCRIBE, form(None, {}), FORM, again=0)
        if answer.status == 429:
            error_of(answer, 429, "rate_limited", also=("Retry-After",))
            expect(int(answer.headers["Retry-After"]) >= 1, "Retry-After is less than 1")
            time.sleep(int(answer.headers["Retry-After"]))
            return f"at request {sent}"
    raise Skipped(f"{stt.burst} requests one after the other did not meet it")


def fallback_rate(stt: Service) -> str:
    counted: defaultdict[str, list[bool]] = defaultdict(list)
    for call in stt.calls():
        language = call.clip.language or call.result.language
        if language:
            counted[language].append(call.escalated)
    told = ", ".join(
        f"{language} {sum(of) / len(of):.0%} of {len(of)}"
        for language, of in sorted(counted.items())
    )
    enough = {language: of for language, of in counted.items() if len(of) >= LEAST_CALLS}
    if not enough:
        raise Skipped(f"{told or 'no clip'}: too few for a rate")
    high = any(sum(of) / len(of) > stt.most_fallback for of in enough.values())
    expect(not high, f"{told}; {stt.most_fallback:.0%} allowed")
    return told


def latency(stt: Service) -> str:
    waits = [call.answer.seconds for call in stt.calls() if call.result.duration <= SLO_CLIP_S]
    if not waits:
        raise Skipped(f"no clip of at most {SLO_CLIP_S:g} s")
    told = f"p95 {p95(waits):.2f} s of {len(waits)} calls, one at a time"
    if not stt.slo:
        raise Skipped(f"{told}; not judged")
    expect(p95(waits) <= stt.slo, f"{told}; {stt.slo:g} s allowed")
    return told


Check = Callable[[Service], str]
CHECKS: dict[str, Check] = {
    "GET /v1/health": health,
    "GET /v1/ready, and HEAD": ready,
    "GET /openapi.json": openapi,
    "GET /v1/metrics": snapshot,
    "GET /metrics": prometheus,
    "texts": texts,
    "headers of a text": headers,
    "language detected": detected,
    "language forced": forced,
    "short and long clips": lengths,
    "nobody speaks": nobody_speaks,
    "times of words": word_times,
    "request id": request_id,
    "escalation": escalation,
    "the client": sdk,
    "400 invalid_request": invalid_request,
    "400 invalid_audio": invalid_audio,
    "401 unauthorized": unauthorized,
    "404 not_found": not_found,
    "405 method_not_allowed": method_not_allowed,
    "408 request_timeout": request_timeout,
    "413 payload_too_large": payload_too_large,
    "413 audio_too_long": audio_too_long,
    "429 rate_limited": rate_limited,
    "a deadline of 1 ms": deadline,
    "fallback rate by language": fallback_rate,
    "p95 within the SLO": latency,
}


def verdict(stt: Service, check: Check) -> tuple[str, str]:
    """`pass`, `FAIL` or `skipped`, and what is to be said of it."""
    try:
        return "pass", check(stt)
    except Skipped as why:
        return "skipped", str(why)
    except Failed as why:
        return "FAIL", str(why)
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        return "FAIL", f"an answer is not of the agreed form: {error!r}"


def show(rows: Sequence[tuple[str, str, str]]) -> None:
    try:
        from rich.console import Console
        from rich.markup import escape
        from rich.table import Table
    except ImportError:
        for name, state, said in rows:
            print(f"{state:8} {name:26} {said}")
        return
    table = Table("check", "", "what was seen")
    colors = {"FAIL": "red", "skipped": "yellow"}
    for name, state, said in rows:
        table.add_row(name, state, escape(said), style=colors.get(state, ""))
    console = Console()
    (console if console.is_terminal else Console(width=140)).print(table)


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=_Form)
    parser.add_argument("--url", required=True, help="address of the primary")
    parser.add_argument("--key", help="bearer key of a caller")
    parser.add_argument("--metrics-key", help="where METRICS_KEYS are set, one of them")
    parser.add_argument("--audio", type=Path, default=SAMPLES, help="folder of clips")
    parser.add_argument("--slo", type=float, default=1.0, help="of the p95, s; 0: not judged")
    parser.add_argument("--most-fallback", type=float, default=0.5, help="share, by language")
    parser.add_argument("--burst", type=int, default=0, help="requests for the rate limit's sake")
    parser.add_argument("--repeat", type=int, default=3, help="how often each clip is sent")
    parser.add_argument("--quick", action="store_true", help="without what takes long")
    parser.add_argument("--json", type=Path, help="write the verdicts there")
    options = vars(parser.parse_args(words))
    file = options.pop("json")
    if file is not None and (file.is_dir() or not os.access(file.parent, os.W_OK)):
        parser.error(f"{file} cannot be written")  # which is better known now
    stt = Service(**options)
    rows = tried(stt)
    failed = [name for name, state, _ in rows if state == "FAIL"]
    skipped = sum(state == "skipped" for _, state, _ in rows)
    early = len(rows) < len(CHECKS)
    told = f"{len(rows) - len(failed) - skipped} checks passed, {skipped} skipped"
    told += f", {len(CHECKS) - len(rows)} not tried" if early else ""
    if file is not None:  # before anything is printed: who reads that may be gone
        found = [{"check": name, "state": state, "said": said} for name, state, said in rows]
        file.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    print(f"{stt.url}: {told}, {len(failed)} failed{': ' if failed else ''}{', '.join(failed)}")
    show(rows)
    return 1 if failed or early else 0


def tried(stt: Service) -> list[tuple[str, str, str]]:
    """Each check with its verdict; those until Ctrl-C."""
    rows: list[tuple[str, str, str]] = []
    terminal = sys.stderr.isatty()
    try:
        for name, check in CHECKS.items():
            if terminal:
                print(f"\r{len(rows)}/{len(CHECKS)} {name:30}", end="", file=sys.stderr, flush=True)
            rows.append((name, *verdict(stt, check)))
    except KeyboardInterrupt:
        print("\nEnded early", file=sys.stderr)
    if terminal:
        print(f"\r{'':40}\r", end="", file=sys.stderr, flush=True)
    return rows


class _Form(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    pass


if __name__ == "__main__":
    sys.exit(main())
else:
    import pytest

    @pytest.fixture(scope="module")
    def stt() -> Iterator[Service]:
        """The service that the environment names, else two tiers of our own: real ones, where the
        weights are.
        """
        if url := os.environ.get("STT_SMOKE_URL"):
            yield Service(url, os.environ.get("STT_SMOKE_KEY"), slo=0)
            return
        from running import running_cascade

        with running_cascade() as primary:
            # Whether this machine is fast enough is not the question.
            yield Service(primary.url, primary.key, slo=0, repeat=1)

    @pytest.mark.process
    @pytest.mark.weights
    @pytest.mark.parametrize("name", CHECKS)
    def test_the_service_does_what_its_interface_says(stt: Service, name: str) -> None:
        state, said = verdict(stt, CHECKS[name])
        if state == "skipped":
            pytest.skip(said)
        assert state == "pass", said
