"""Log lines: structured, one a request, uvicorn's own among them.

A thread writes them, so nothing waits for a log that is not read, or fails because it is full.
"""

from __future__ import annotations

import io
import json
import logging
import os
import queue
import select
import sys
import textwrap
import threading
import time
from typing import IO, Any, Literal, TextIO

import structlog
from structlog.typing import ExcInfo, Processor

# Passed through to the JSON line; everything else in a line is named where it is logged.
_SHARED: tuple[Processor, ...] = (
    structlog.contextvars.merge_contextvars,
    structlog.stdlib.add_log_level,
    structlog.stdlib.add_logger_name,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
)
# Lines that wait to be written take at most this much memory; further ones are dropped.
MAX_HELD_BYTES = 4 * 1024 * 1024
# How long the end of the process waits until its last lines are written.
LAST_LINES_S = 0.5


class Writer(logging.Handler):
    """Writes lines in a thread of its own, so that logging never blocks.

    It writes to the descriptor, past the stream's buffer: Python flushes that buffer at the end of
    the process, for as long as it takes.

    Args:
        stream: where to. None, or one without a descriptor: every line is dropped. Python has no
            stream where the process was started without one, whose number is another file's now.
        held: bytes that may wait to be written.
    """

    def __init__(self, stream: IO[str] | None, held: int = MAX_HELD_BYTES) -> None:
        super().__init__()
        self._descriptor = _descriptor(stream)
        self._held = held
        # Unlike `queue.Queue`, it may be used while a signal interrupts a use of it.
        self._lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        # Each is changed on one side only: by loggers, under the handler's lock, or by the thread.
        self._bytes_in = self._refused = 0
        self._bytes_out = self._unwritten = 0
        self._torn = False
        self._written = threading.Condition()
        self._ends: float | None = None
        threading.Thread(target=self._write_all, name="log", daemon=True).start()

    @property
    def dropped(self) -> int:
        """Lines that were not written, and will not be."""
        return self._refused + self._unwritten

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self.format(record)
        except Exception as error:  # noqa: BLE001  # a line that cannot be made must end nothing
            line = f"a log line of {record.name} cannot be made: {type(error).__name__}: {error}"
        self.put(line)
        if self._ends is not None:
            self.flush(self._ends - time.monotonic())

    def put(self, line: str) -> None:
        data = line.encode("utf-8", "backslashreplace") + b"\n"
        if self._bytes_in - self._bytes_out + len(data) > self._held:
            self._refused += 1
        else:
            self._bytes_in += len(data)
            self._lines.put(data)

    def flush(self, seconds: float = LAST_LINES_S) -> None:
        """Wait until the lines so far are written, for at most so long."""
        so_far = self._bytes_in
        with self._written:
            self._written.wait_for(lambda: self._bytes_out >= so_far, max(0.0, seconds))

    def finish(self, seconds: float = LAST_LINES_S) -> None:
        """Flush now and after each line to come, for at most so long in all: the end is near."""
        self._ends = time.monotonic() + seconds
        self.flush(seconds)

    def _write_all(self) -> None:
        told = 0
        while True:
            line = self._lines.get()
            if not self._write(line):
                self._unwritten += 1
            elif self._lines.empty() and (lost := self.dropped) > told:
                note = logging.makeLogRecord(
                    {
                        "name": "stt.log",
                        "levelno": logging.WARNING,
                        "levelname": "WARNING",
                        "msg": f"{lost - told} log lines were dropped: they could not be written",
                    }
                )
                if self._write(self.format(note).encode() + b"\n"):
                    told = lost
            with self._written:
                self._bytes_out += len(line)
                self._written.notify_all()

    def _write(self, line: bytes) -> bool:
        """Whether all of it could be written."""
        if self._descriptor is None:
            return False
        left = memoryview(b"\n" + line if self._torn else line)
        try:
            while left:
                try:
                    size = os.write(self._descriptor, left)
                except BlockingIOError:  # somebody has made it non-blocking
                    ready = select.poll()
                    ready.register(self._descriptor, select.POLLOUT)
                    ready.poll()
                else:
                    self._torn = True  # a full disk takes a part of a line
                    left = left[size:]
        except OSError:
            return False
        self._torn = False
        return True


def _descriptor(stream: IO[str] | None) -> int | None:
    try:
        return None if stream is None else stream.fileno()
    except OSError:
        return None


def dropped() -> int:
    """Log lines of this process that were dropped because they could not be written."""
    return sum(writer.dropped for writer in _writers())


def finish(seconds: float = LAST_LINES_S) -> None:
    """See that the last lines are written; wait for at most so long."""
    for writer in _writers():
        writer.finish(seconds)


def last_words(text: str, seconds: float = LAST_LINES_S) -> None:
    """Say on stderr why the process ends, and write its last lines; wait for at most so long."""
    stderr = Writer(sys.stderr)
    stderr.put(text)
    stderr.flush(seconds)
    finish(seconds)


def _writers() -> list[Writer]:
    return [one for one in logging.getLogger().handlers if isinstance(one, Writer)]


def configure(form: Literal["json", "console"]) -> None:
    """Send every log line of the process, uvicorn's too, to stdout in one form."""
    structlog.configure(
        processors=[*_SHARED, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )
    final: list[Processor] = [structlog.stdlib.ProcessorFormatter.remove_processors_meta]
    if form == "json":
        final += [
            # Without the frames' variables, which hold keys, texts and audio.
            structlog.processors.ExceptionRenderer(
                structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
            ),
            structlog.processors.EventRenamer("message"),
            structlog.processors.JSONRenderer(serializer=_json),
        ]
    else:
        final += [_console(colors=sys.stdout is not None and sys.stdout.isatty())]
    # A stream in memory blocks nobody.
    in_memory = sys.stdout is not None and _descriptor(sys.stdout) is None
    handler = logging.StreamHandler(sys.stdout) if in_memory else Writer(sys.stdout)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(processors=final, foreign_pre_chain=list(_SHARED))
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(logging.INFO)
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logger = logging.getLogger(name)
        logger.handlers = []
        logger.propagate = True
    # Our own line for each request says more, and twice the lines help nobody.
    logging.getLogger("uvicorn.access").disabled = True
    # httpx2 logs every call at INFO; the request's own line has it.
    for name in ("httpx2", "httpcore2"):
        logging.getLogger(name).setLevel(logging.WARNING)


def catch_strays() -> None:
    """Make log lines of warnings and of exceptions that nobody catches, which go to stderr else."""
    logging.captureWarnings(True)
    sys.excepthook = lambda kind, error, _: _uncaught("unexpected error", error)
    sys.unraisablehook = lambda stray: _uncaught("unexpected error", stray.exc_value)
    threading.excepthook = lambda stray: _uncaught("a thread failed", stray.exc_value)


def _uncaught(what: str, error: BaseException | None) -> None:
    structlog.get_logger("stt.service").error(what, exc_info=error)


def _json(line: dict[str, Any], **options: Any) -> str:
    """JSON that is one line to whoever reads it, and nothing to a terminal."""
    text = json.dumps(line, ensure_ascii=False, **options)
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else json.dumps(char)[1:-1] for char in text)


def _console(*, colors: bool) -> structlog.dev.ConsoleRenderer:
    """Lines for people, in which nothing that a caller sent commands their terminal."""
    console = structlog.dev.ConsoleRenderer(colors=colors, exception_formatter=_traceback)
    for column in console.columns:
        if isinstance(column.formatter, structlog.dev.KeyValueColumnFormatter):
            # The others, such as the time, have no name before them.
            named = column.formatter.key_style is not None
            column.formatter.value_repr = _quoted if named else _escaped
    return console


def _quoted(value: object) -> str:
    # As structlog would, but for what cannot be printed: it looks for blanks and quotes only.
    if isinstance(value, str) and value.isprintable() and not set(value) & set(" ='\""):
        return value
    return _escaped(repr(value))


def _escaped(value: object) -> str:
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in str(value))


def _traceback(stream: TextIO, exc_info: ExcInfo) -> None:
    # Indented, so that what a message holds cannot pass for the next line of the log.
    text = io.StringIO()
    structlog.dev.plain_traceback(text, exc_info)
    lines = "\n".join(_escaped(line) for line in text.getvalue().split("\n"))
    stream.write(textwrap.indent(lines, "  "))
