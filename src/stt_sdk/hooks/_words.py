"""What the hooks call errors and hosts."""

from __future__ import annotations

import asyncio
import re

from stt_sdk._errors import ServiceError, STTError

OTHER = "other"


def outcome(error: BaseException | None) -> str:
    """How something ended, in a word of `OUTCOMES` (or of an error class that came later).

    `ok`; `cancelled`; the contract's type of a service's error (`unknown`: one that this version
    does not know); the name of another error of the SDK, such as `timed_out`; `other`.
    """
    if error is None:
        return "ok"
    if isinstance(error, asyncio.CancelledError):
        return "cancelled"
    return _word(type(error))


def _word(kind: type[BaseException]) -> str:
    if issubclass(kind, ServiceError):
        return kind.type or "unknown"
    if issubclass(kind, STTError) and kind is not STTError:
        return re.sub(r"(?<!^)(?=[A-Z])", "_", kind.__name__.removesuffix("Error")).lower()
    return OTHER


def _words(kind: type[STTError]) -> set[str]:
    return {_word(kind)}.union(*(_words(below) for below in kind.__subclasses__()))


OUTCOMES = ("ok", "cancelled", *sorted(_words(STTError)))


def shown(host: str) -> str:
    """An address without the name and password that it may hold."""
    return re.sub(r"//[^/@\s]*@", "//", host)


def one_line(error: BaseException | None) -> str:
    """An error in one line, whatever a stranger wrote into it, and without passwords."""
    return shown(" ".join(str(error).split())) or type(error).__name__


def needs(hook: str, extra: str) -> str:
    """Says what to install for a hook."""
    return f"{hook} needs the extra {extra}: pip install '.[{extra}]' in a checkout of stt-cascade"
