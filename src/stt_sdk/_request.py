"""One request to transcribe, as bytes that can be sent to any host."""

from __future__ import annotations

import re
import secrets
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing

from stt_sdk._source import Audio

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")


class SourceFailed(Exception):
    """The clip could not be read while it was being sent. The cause is for the caller."""

    def __init__(self, cause: Exception) -> None:
        super().__init__(cause)
        self.cause = cause


class TranscribeRequest:
    """The body, `multipart/form-data`, around the bytes of a clip.

    Args:
        fields: text parts.
        request_id: names it in the service's logs; None: one is made.

    Attributes:
        failure: what the source raised.
        starved: the source is being waited for.

    Raises:
        ValueError: a request id that the service would replace.
    """

    path = "/v1/transcribe"

    def __init__(self, audio: Audio, fields: Mapping[str, str], request_id: str | None) -> None:
        if request_id is not None and not _REQUEST_ID.fullmatch(request_id):
            raise ValueError(
                f"request_id must be 1 to 128 of letters, digits and ._:-, not {request_id!r}"
            )
        self.id = request_id or secrets.token_hex(16)
        self.audio = audio
        boundary = secrets.token_hex(16)
        parts = [
            f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'
            for name, value in fields.items()
        ]
        parts.append(
            f'--{boundary}\r\nContent-Disposition: form-data; name="audio"; '
            f'filename="audio{audio.suffix}"\r\nContent-Type: application/octet-stream\r\n\r\n'
        )
        self._head = "".join(parts).encode()
        self._tail = f"\r\n--{boundary}--\r\n".encode()
        # What the caller's hooks add goes with every attempt.
        self.headers = {
            "Content-Type": f"multipart/form-data; boundary={boundary}",
            "X-Req-Id": self.id,
        }
        if audio.size is not None:
            length = len(self._head) + audio.size + len(self._tail)
            self.headers["Content-Length"] = str(length)
        self.failure: Exception | None = None
        self.starved = False
        self._begun = False

    @property
    def repeatable(self) -> bool:
        """Whether all of it can be sent (again)."""
        return self.audio.rewindable or not self._begun

    def content(self) -> bytes | AsyncGenerator[bytes, None]:
        """The body, from its beginning."""
        data = self.audio.data
        if isinstance(data, bytes):
            return b"".join((self._head, data, self._tail))
        return self._stream(data)

    async def _stream(
        self, begin: Callable[[], AsyncGenerator[bytes, None]]
    ) -> AsyncGenerator[bytes, None]:
        self._begun = True
        self.starved = False
        yield self._head
        async with aclosing(begin()) as chunks:
            while chunk := await self._next(chunks):
                yield chunk
        yield self._tail

    async def _next(self, chunks: AsyncGenerator[bytes, None]) -> bytes:
        """The next chunk, which is not empty; b"": there is none."""
        self.starved = True
        try:
            chunk = await anext(chunks, b"")
        except Exception as error:
            self.failure = error
            raise
        self.starved = False
        return chunk
