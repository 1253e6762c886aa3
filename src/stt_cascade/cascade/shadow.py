"""Shadow calls: what would the fallback have said of a clip that nobody doubted?

A share of the accepted clips goes to the fallback too, once the answer is out. How much the two
texts differ shows the errors that the primary is sure of, which no gate can see.

Nobody waits for a shadow, so it gives way to everything: it takes no slot, no place for a body and
no place among the calls to the fallback, is not made under load, and is given up as soon as a
request needs the fallback or the service stops. What it holds is the clip's bytes, so few are held
at once.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Literal, get_args

import structlog

from stt_cascade.answer import Answer
from stt_cascade.cascade.disagreement import disagreement
from stt_cascade.cascade.fallback_answer import FallbackError
from stt_cascade.cascade.fallback_client import FallbackClient
from stt_cascade.config import PrimaryConfig
from stt_cascade.record import Record
from stt_cascade.upload import Upload

log = structlog.get_logger("stt.shadow")

#   compared  both texts are there
#   skipped   there was no room for it, or something came up that goes before it
#   failed    the fallback gave no text
Result = Literal["compared", "skipped", "failed"]
RESULTS: tuple[Result, ...] = get_args(Result)

# Clips that are held for it at once, from the decision to draw them.
AT_ONCE = 2
# What the fallback shows in its log line of a shadow; the rest is the request's own id.
PREFIX = "shadow-"
MAX_REQUEST_ID = 128


class Shadows:
    """Draws accepted clips, and compares the fallback's texts of them with those that went out.

    Args:
        busy: whether requests wait.
        ended: is told how each that was drawn ended, once.
        differed: is told the disagreement of each that was compared, 0 to 1.
        chance: what draws; no caller knows or steers it.
    """

    def __init__(
        self,
        config: PrimaryConfig,
        fallback: FallbackClient,
        *,
        busy: Callable[[], bool],
        ended: Callable[[Result], None],
        differed: Callable[[float], None],
        chance: random.Random | None = None,
    ) -> None:
        self._rate = config.shadow_rate
        self._log_text = config.log_text
        self._fallback = fallback
        self._busy = busy
        self._ended = ended
        self._differed = differed
        self._chance = chance or random.Random()
        self._running: set[asyncio.Task[Result]] = set()
        self._draining = False
        self.held = 0

    def draw(self, upload: Upload, answer: Answer) -> Callable[[], None]:
        """Perhaps hold a clip for a shadow.

        Returns:
            to be called when the answer has gone out, or could not.
        """
        if answer.routing.reason != "accepted" or self._chance.random() >= self._rate:
            return _nothing
        if self.held >= AT_ONCE or not self._quiet:
            self._ended("skipped")
            return _nothing
        self.held += 1

        def begin() -> None:
            task = asyncio.ensure_future(self._compare(upload, answer.text, answer.request_id))
            self._running.add(task)
            task.add_done_callback(self._end)

        return begin

    def give_way(self) -> None:
        """Give up what is under way: the fallback is needed."""
        for task in self._running:
            task.cancel()

    def drain(self) -> None:
        """Begin none any more, and give up what is under way."""
        self._draining = True
        self.give_way()

    async def close(self) -> None:
        """The same, and wait until nothing of it is left."""
        self.drain()
        if self._running:
            await asyncio.wait(self._running)

    @property
    def _quiet(self) -> bool:
        return not self._draining and not self._busy() and self._fallback.idle

    async def _compare(self, upload: Upload, text: str, request_id: str) -> Result:
        if not self._quiet:  # it may have taken a while to send the answer
            return "skipped"
        record = Record(f"{PREFIX}{request_id}"[:MAX_REQUEST_ID], endpoint="shadow", client="")
        try:
            theirs = await self._fallback.ask_aside(upload, record)
            # A long text takes a while: not in the event loop.
            difference = await asyncio.to_thread(disagreement, text, theirs.text)
        except FallbackError as error:
            if error.cause == "overloaded":
                return "skipped"
            log.warning("shadow failed", request_id=request_id, error=f"{error.cause}: {error}")
            return "failed"
        except Exception:  # nobody else would notice
            log.exception("shadow failed", request_id=request_id)
            return "failed"
        self._differed(difference)
        texts = {"primary_text": text, "fallback_text": theirs.text} if self._log_text else {}
        log.info(
            "shadow compared", request_id=request_id, disagreement=round(difference, 3), **texts
        )
        return "compared"

    def _end(self, task: asyncio.Task[Result]) -> None:
        # Also of one that was cancelled before it began.
        self._running.discard(task)
        self.held -= 1
        self._ended("skipped" if task.cancelled() else task.result())


def _nothing() -> None:
    pass
