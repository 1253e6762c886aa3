"""Whether it is the clips that an engine fails on, or the engine."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import structlog

from stt_cascade.engine.protocol import Engine, Options, Samples, Span, Utterance

log = structlog.get_logger("stt.engine")

Result = TypeVar("Result")


class Proven:
    """An engine that is tried on its warm-up clip after `limit` failures in a row.

    The trial runs in the thread, and so in the slot, of the inference that failed last. If it
    succeeds the clips were at fault, and the count starts again. If it fails it is repeated alone,
    since other clips may hold the memory that it lacks. An engine that fails then, too, is broken
    until it has given a text.

    Args:
        limit: failures in a row.
        failed: told of each failure.
    """

    def __init__(
        self, engine: Engine, limit: int, failed: Callable[[], None] = lambda: None
    ) -> None:
        self._engine = engine
        self._limit = limit
        self._failed = failed
        self._changed = threading.Condition()
        self._in_a_row = 0
        self._running = 0
        self._on_trial = False
        self._broken_since: float | None = None

    @property
    def languages(self) -> frozenset[str]:
        return self._engine.languages

    @property
    def device(self) -> str:
        return self._engine.device

    @property
    def broken_seconds(self) -> float:
        """For how long it has been broken; 0 if it is not."""
        since = self._broken_since
        return 0.0 if since is None else time.monotonic() - since

    def warm_up(self) -> None:
        self._engine.warm_up()

    def encode(self, samples: Samples, speech: Sequence[Span] = ()) -> Any:
        return self._counted(lambda: self._engine.encode(samples, speech))

    def decode(self, encodings: Sequence[Any], options: Options) -> list[Utterance]:
        utterances = self._counted(lambda: self._engine.decode(encodings, options))
        with self._changed:
            if self._broken_since is not None:
                log.warning("the engine works again")
            self._in_a_row, self._broken_since = 0, None
        return utterances

    def _counted(self, work: Callable[[], Result]) -> Result:
        with self._changed:
            self._changed.wait_for(lambda: not self._on_trial)
            self._running += 1
        try:
            return work()
        except Exception:
            self._failed()
            self._count()
            raise
        finally:
            with self._changed:
                self._running -= 1
                self._changed.notify_all()

    def _count(self) -> None:
        with self._changed:
            self._in_a_row += 1
            if self._in_a_row < self._limit or self._broken_since is not None or self._on_trial:
                return
            self._in_a_row = 0
        error = self._trial()
        if error is not None:
            with self._changed:
                if self._on_trial:
                    return  # another thread runs the trial, and logs its result
                self._on_trial = True
            error = self._trial_alone()
        if error is not None:
            log.error("the engine is broken: not ready", failures=self._limit, exc_info=error)
        else:
            log.warning("the engine works: its last failures were the clips'", failures=self._limit)

    def _trial_alone(self) -> Exception | None:
        with self._changed:
            self._changed.wait_for(lambda: self._running == 1)
        error = self._trial()
        with self._changed:
            self._on_trial = False
            self._changed.notify_all()
            if error is not None:
                self._broken_since = time.monotonic()
        return error

    def _trial(self) -> Exception | None:
        """The error of the warm-up clip; None if it succeeds."""
        try:
            self._engine.warm_up()
        except Exception as error:  # noqa: BLE001  # any error that a clip could cause
            return error
        return None
