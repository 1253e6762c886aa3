"""Reading a tier's settings from its file: checked whole, one line per mistake."""

from __future__ import annotations

import difflib
import errno
import io
import os
import stat
import sys
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

import annotated_types
from dotenv.parser import Binding, parse_stream
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from stt_cascade.config import ConfigError, Language, Proxy, TierConfig, nothing_secret

# What an image's build writes: one line, the commit that it was built from.
COMMIT_FILE = Path(sys.prefix) / "COMMIT"

# No file of settings, keys or certificates comes near this size.
MAX_FILE_BYTES = 1024 * 1024
# Settings without which a tier is open, or trusts more: a lost value must not look like none.
_GUARDS = ("_KEYS", "_KEY", "_FILE")
_LOST = "no value is left, only quotes, blanks or a comment; give it one, or remove the line"

Config = TypeVar("Config", bound=TierConfig)


def contents(path: Path) -> bytes:
    """What a small file holds. It waits for nobody, and reads no more than there can be.

    Raises:
        OSError: it cannot be read, is too large, or is a pipe, say, or a device.
    """
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(errno.EINVAL, "Not a regular file", str(path))
        data = file.read(MAX_FILE_BYTES + 1) or b""
    if len(data) > MAX_FILE_BYTES:
        raise OSError(errno.EFBIG, f"Larger than {MAX_FILE_BYTES} bytes", str(path))
    return data


def config_path(model: type[TierConfig]) -> Path:
    """The file that `CONFIG_PATH` names, else the tier's default in the working directory."""
    return Path(os.environ.get("CONFIG_PATH") or model.default_file)


def load(model: type[Config], path: Path | None = None) -> Config:
    """Read a tier's settings from its file.

    Raises:
        ConfigError: the file cannot be read, or holds mistakes: one line each, naming file, line,
            key and what is allowed.
    """
    path = path or config_path(model)
    try:
        text = contents(path).decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise ConfigError(
            f"{path}: {reason}. Set CONFIG_PATH to the {model.tier}'s .env file "
            f"(configs/ has examples)."
        ) from None

    values: dict[str, str] = {}
    lines: dict[str, int] = {}
    mistakes: list[tuple[int, str]] = []
    for binding in parse_stream(io.StringIO(text)):
        # A binding's original text may begin with the blank lines and comments above it.
        skipped = len(binding.original.string) - len(binding.original.string.lstrip())
        line = binding.original.line + binding.original.string[:skipped].count("\n")
        if binding.error or "\0" in binding.original.string:  # which no path may hold
            mistakes.append((line, "not of the form KEY=value"))
        elif binding.key is None:
            continue
        elif binding.value is None:
            mistakes.append((line, f"{binding.key}: no value; write {binding.key}=value"))
        elif binding.key in lines:
            mistakes.append((line, f"{binding.key}: already set in line {lines[binding.key]}"))
        elif binding.key not in fields(model):
            mistakes.append((line, _unknown(model, binding.key)))
        elif binding.key.endswith(_GUARDS) and _lost(binding):
            mistakes.append((line, f"{binding.key}: {_LOST}"))
        else:
            lines[binding.key] = line
            if binding.value.strip():  # KEY= leaves the default in force
                values[binding.key] = binding.value.strip()
    if "SERVER_COMMIT" not in values and (commit := _built_from()):
        values["SERVER_COMMIT"] = commit
    try:
        config = model(**values)  # type: ignore[arg-type]  # pydantic converts the strings
    except ValidationError as error:
        for problem in error.errors():
            key = str(problem["loc"][0]) if problem["loc"] else ""
            mistakes.append((lines.get(key, 0), _mistake(model, key, problem, values)))
        config = None
    if mistakes or config is None:
        raise ConfigError(
            "\n".join(
                f"{path}:{line}: {text}" if line else f"{path}: {text}"
                # Of a list's items each wrong one is reported, and in each form it might have had.
                for line, text in sorted(set(mistakes))
            )
        )
    config._source = path
    return config


def _lost(binding: Binding) -> bool:
    """Whether something stands behind the equals sign, but no value: `KEY=""`, `KEY= # none`."""
    written = binding.original.string.partition("=")[2].strip(" \t\r\n")
    return bool(written) and not (binding.value or "").strip()


def _built_from() -> str:
    """The commit that this environment was built from; empty if its build did not say.

    Raises:
        ConfigError: the file that says it cannot be read.
    """
    try:
        return contents(COMMIT_FILE).decode("utf-8-sig").strip()
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise ConfigError(f"{COMMIT_FILE}: {reason}") from None


def fields(model: type[TierConfig]) -> dict[str, FieldInfo]:
    """A tier's settings by the names they have in the file."""
    return {
        field.alias or name.upper(): field
        for name, field in sorted(model.model_fields.items(), key=lambda item: item[0])
    }


def _unknown(model: type[TierConfig], key: str) -> str:
    known = fields(model)
    near = difflib.get_close_matches(key.upper(), known, n=1)
    hint = f"did you mean {near[0]}?" if near else f"allowed are: {', '.join(sorted(known))}"
    return f"{key}: no such setting of the {model.tier}; {hint}"


def _mistake(model: type[TierConfig], key: str, problem: Any, values: dict[str, str]) -> str:
    known = fields(model)
    if problem["type"] == "missing":
        return f"{key}: missing; it must be {allowed(known[key])}"
    value, note = values.get(key, ""), ""
    if _is_address(known[key]) and not nothing_secret(value):
        value, note = "(hidden)", "; with no user, password, query or fragment"
    elif "SecretStr" in str(known[key].annotation):
        value = "(hidden)"
    mistake = f"{key}={value}: must be {allowed(known[key])}{note}"
    return f"{mistake}; {problem['ctx']['error']}" if problem["type"] == "value_error" else mistake


def _is_address(field: FieldInfo) -> bool:
    return any(hasattr(rule, "pattern") for rule in field.metadata)


def allowed(field: FieldInfo) -> str:
    """What a setting may be, in words."""
    kind = field.annotation
    if get_origin(kind) is not Literal and type(None) in get_args(kind):
        kind = next(option for option in get_args(kind) if option is not type(None))
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(str(option) for option in get_args(kind))
    if kind is bool:
        return "on or off"
    if kind in (int, float):
        words = ["a whole number" if kind is int else "a number"]
        for bound in field.metadata:
            if isinstance(bound, annotated_types.Ge):
                words.append(f"at least {bound.ge}")
            elif isinstance(bound, annotated_types.Gt):
                words.append(f"greater than {bound.gt}")
            elif isinstance(bound, annotated_types.Le):
                words.append(f"at most {bound.le}")
        return ", ".join(words)
    if kind is Path:
        return "a path"
    if _is_address(field):
        return f"an address such as {(field.examples or [''])[0]}"
    if get_origin(kind) is tuple and get_args(kind)[0] == Proxy:
        return "a comma-separated list of addresses and networks such as 10.0.0.0/8, or unix"
    if get_origin(kind) is tuple and get_args(kind)[0] == Language:
        return "a comma-separated list of Whisper's codes such as en"
    if get_origin(kind) is tuple:
        return "a comma-separated list of one or more"
    return "text"


def in_force(config: TierConfig) -> dict[str, str]:
    """The settings by name, as text, with secrets masked."""
    shown: dict[str, str] = {}
    for name, field in type(config).model_fields.items():
        value = getattr(config, name)
        if isinstance(value, tuple):
            text = ",".join(str(item) for item in value)  # SecretStr prints as asterisks
        elif isinstance(value, bool):
            text = "on" if value else "off"
        else:
            text = "" if value is None else str(value)
        shown[field.alias or name.upper()] = text
    return shown
