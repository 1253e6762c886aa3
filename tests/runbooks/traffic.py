"""Callers in the background, who go on asking whatever comes back."""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from collections.abc import Callable, Sequence
from functools import cache
from types import TracebackType

from faults import load
from stt_sdk._within import within
from tones import tone, wav

PATIENCE_S = 60.0
# Of a caller whose request was not answered with a text.
BACKOFF_S = 0.2


@cache
def _audio(seconds: float) -> bytes:
    return wav(tone(seconds, rate=8000), 8000)


def clip(
    *, prompt: str = "", key: str | None = None, language: str = "", seconds: float = 1.0
) -> bytes:
    """A whole request to transcribe a tone.

    Args:
        prompt: `faults.stub.DOUBT` or `HANG` make the stub do so.
    """
    fields = {"prompt": prompt, "language": language}
    body = load.part("audio", _audio(seconds), "clip.wav")
    for name, text in fields.items():
        if text:
            body += load.part(name, text.encode())
    key_header = [] if key is None else [f"Authorization: Bearer {key}"]
    return load.request(body + load.END, load.FORM, *key_header)


def audio_of(request: bytes) -> bytes:
    """The WAV file inside a request."""
    start = request.index(b"RIFF")
    return request[start : start + 8 + int.from_bytes(request[start + 4 : start + 8], "little")]


class Traffic:
    """So many callers. An async context manager.

    Args:
        ports: whom they ask, in turn, as behind a load balancer; may be changed meanwhile.
        pause: seconds between an answer and a caller's next question.
        tls: they speak it.
    """

    def __init__(
        self,
        ports: Sequence[int],
        request: bytes,
        *,
        callers: int = 2,
        pause: float = 0.1,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.ports = list(ports)
        self.request = request
        self.answers: deque[load.Answer] = deque(maxlen=5000)
        self._callers = callers
        self._tls = tls
        self._pause = pause
        self._turn = 0
        self._tasks: list[asyncio.Task[None]] = []
        self._came = asyncio.Condition()

    async def __aenter__(self) -> Traffic:
        self._tasks = [
            # One after the other, not all at once.
            asyncio.create_task(self._ask(number * self._pause / self._callers))
            for number in range(self._callers)
        ]
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _ask(self, after: float) -> None:
        await asyncio.sleep(after)
        while True:
            self._turn += 1
            port = self.ports[self._turn % len(self.ports)]
            answer = await load.call(port, self.request, tls=self._tls)
            async with self._came:
                self.answers.append(answer)
                self._came.notify_all()
            await asyncio.sleep(self._pause if answer.status == 200 else BACKOFF_S + self._pause)

    async def see(
        self,
        what: str,
        is_it: Callable[[load.Answer], bool],
        *,
        times: int = 1,
        patience: float = PATIENCE_S,
    ) -> load.Answer:
        """Wait until that has come so many times in a row to those who asked from now on.

        Returns:
            the last of them.

        Raises:
            RuntimeError: it did not come.
        """
        since = asyncio.get_running_loop().time()

        def last() -> list[load.Answer]:
            return [one for one in self.answers if one.began >= since][-times:]

        async with self._came:
            try:
                await within(
                    patience,
                    self._came.wait_for(lambda: len(last()) == times and all(map(is_it, last()))),
                )
            except TimeoutError:
                came = load.told(load.statuses(self.answers))
                raise RuntimeError(f"no caller saw {what}; of all, {came}") from None
            return last()[-1]


def is_status(status: int, **headers: str) -> Callable[[load.Answer], bool]:
    """Whether an answer has that status, and headers that begin so: `x_error_type="internal"`."""
    wanted = {name.replace("_", "-"): value for name, value in headers.items()}

    def is_it(answer: load.Answer) -> bool:
        return answer.status == status and all(
            answer.headers.get(name, "").startswith(value) for name, value in wanted.items()
        )

    return is_it
