"""Receiving the multipart body: bounded, in memory only, never on disk."""

from __future__ import annotations

from typing import TypeVar, get_args

from multipart import MultipartError, MultipartSegment, PushMultipartParser, parse_options_header
from starlette.requests import ClientDisconnect, Request

from stt_cascade.admission.uploads import Body
from stt_cascade.config import ENVELOPE_BYTES
from stt_cascade.engine.languages import allowed, whisper_code
from stt_cascade.engine.protocol import Options, Task, Timestamps
from stt_cascade.errors import InvalidRequest, PayloadTooLarge
from stt_cascade.http.envelope import Abandoned
from stt_cascade.upload import Upload

AUDIO_FIELDS = ("audio", "file")
TEXT_FIELDS = ("language", "prompt", "timestamps", "task")
# As errors name them; `file` is another name for `audio`.
FIELDS = ("audio", *TEXT_FIELDS)
MAX_NAME = 64  # characters of a caller's name that an error repeats
MAX_PARTS = 16
# RFC 7578 knows three headers of a part, each of which names something short.
MAX_PART_HEADERS = 8
MAX_PART_HEADER_BYTES = 4096
# RFC 2046
MAX_BOUNDARY = 70
# Whisper looks at no more than 223 tokens of a prompt.
MAX_FIELD_BYTES = 16 * 1024

Choice = TypeVar("Choice", bound=str)


async def receive(request: Request, limit: int, body: Body) -> Upload:
    """Read and check the body.

    Args:
        limit: bytes that the audio file may have; 64 KiB more are allowed for everything else.

    Raises:
        InvalidRequest: it is no multipart body, or a part is missing, unknown, double or wrong.
        PayloadTooLarge: by Content-Length, or by count.
        RequestTimeout: it came too slowly, or had not come by the deadline.
        Draining: the service stops, and it had not come yet.
        Abandoned: the caller went away.
    """
    kind, options = parse_options_header(request.headers.get("Content-Type", ""))
    if kind != "multipart/form-data" or not options.get("boundary"):
        raise InvalidRequest("the body must be multipart/form-data with an `audio` part")
    if len(options["boundary"]) > MAX_BOUNDARY:
        raise InvalidRequest(f"the boundary must have at most {MAX_BOUNDARY} characters")
    whole = limit + ENVELOPE_BYTES
    announced = request.headers.get("Content-Length", "")
    if announced.isdecimal() and int(announced) > whole:
        raise _too_large(limit)
    form = _Form(limit)
    received = 0
    try:
        parser = PushMultipartParser(
            options["boundary"],
            max_segment_count=MAX_PARTS,
            max_header_count=MAX_PART_HEADERS,
            max_header_size=MAX_PART_HEADER_BYTES,
            # A file's name may be in any encoding: it does not count, and all that does is ASCII.
            header_charset="latin-1",
        )
        chunks = request.stream()
        while chunk := await body.next(chunks):
            received += len(chunk)
            if received > whole:
                raise _too_large(limit)
            for event in parser.parse(chunk):
                form.take(event)
        parser.close()
    except MultipartError as error:
        raise InvalidRequest(f"the multipart body cannot be read: {error}") from None
    except ClientDisconnect:
        raise Abandoned from None
    return form.upload()


def _too_large(limit: int) -> PayloadTooLarge:
    return PayloadTooLarge(f"the audio file is larger than the allowed {limit} bytes")


class _Form:
    """The parts as they come."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._fields: dict[str, bytearray] = {}
        self._raw_g722 = False
        self._current = bytearray()
        self._name = ""

    def take(self, event: MultipartSegment | bytes | bytearray | None) -> None:
        if isinstance(event, MultipartSegment):
            self._begin(event)
        elif event is not None:
            self._current += event
            if self._name == "audio" and len(self._current) > self._limit:
                raise _too_large(self._limit)
            if self._name != "audio" and len(self._current) > MAX_FIELD_BYTES:
                raise InvalidRequest(f"{self._name} is longer than {MAX_FIELD_BYTES} bytes")

    def _begin(self, part: MultipartSegment) -> None:
        name = part.name or ""
        if name not in AUDIO_FIELDS and name not in TEXT_FIELDS:
            raise InvalidRequest(
                f"unknown field {name[:MAX_NAME]!r}; allowed are: {', '.join(FIELDS)}"
            )
        if name in AUDIO_FIELDS:
            self._raw_g722 = (part.content_type or "").lower() == "audio/g722" or (
                part.filename or ""
            ).lower().endswith(".g722")
            name = "audio"
        if name in self._fields:
            raise InvalidRequest(f"the field {name!r} is there twice; send it once")
        self._name = name
        self._current = self._fields[name] = bytearray()

    def upload(self) -> Upload:
        if "audio" not in self._fields:
            raise InvalidRequest("the `audio` part is missing")
        return Upload(
            audio=bytes(self._fields.pop("audio")),
            raw_g722=self._raw_g722,
            options=Options(
                language=language_code(self._text("language")),
                prompt=self._text("prompt") or None,
                timestamps=self._choice("timestamps", get_args(Timestamps)),
                task=self._choice("task", get_args(Task)),
            ),
        )

    def _text(self, name: str) -> str:
        try:
            return self._fields.get(name, b"").decode("utf-8").strip()
        except UnicodeDecodeError:
            raise InvalidRequest(f"{name} must be UTF-8 text") from None

    def _choice(self, name: str, allowed: tuple[Choice, ...]) -> Choice:
        given = self._text(name)
        for choice in allowed:
            if given in (choice, ""):  # the first one is the default
                return choice
        raise InvalidRequest(f"{name} must be one of: {', '.join(allowed)}; it is {given[:64]!r}")


def language_code(text: str) -> str | None:
    """Whisper's code for what a caller wrote; None: detect it.

    Raises:
        InvalidRequest: Whisper has no such language.
    """
    if text.lower() in ("", "auto"):
        return None
    if (code := whisper_code(text)) is None:
        raise InvalidRequest(
            f"language {text[:64]!r} is not known; send auto, or one of: {allowed()}"
        )
    return code
