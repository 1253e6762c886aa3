"""Log lines: structured, one a request, uvicorn's own among them."""

from __future__ import annotations

import io
import json
import logging
import sys
import textwrap
from typing import Any, Literal, TextIO

import structlog
from structlog.typing import ExcInfo, Processor

# Passed through to the JSON line; everything else in a line is named where it is logged.
_SHARED: tuple[Processor, ...] = (
    structlog.contextvars.merge_contextvars,
    structlog.stdlib.add_log_level,
    structlog.stdlib.add_logger_name,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
)


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
        final += [_console(colors=sys.stdout.isatty())]
    handler = logging.StreamHandler(sys.stdout)
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
