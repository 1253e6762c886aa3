"""Keys: who is known, and keeping them current while the service runs."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import time
from collections.abc import Callable, Coroutine, Iterable
from pathlib import Path
from typing import Any

import structlog
from pydantic import SecretStr

from stt_cascade.admission.certificates import FILES, fallback_tls
from stt_cascade.config import ConfigError, PrimaryConfig, TierConfig
from stt_cascade.config_file import contents, in_force, load
from stt_sdk._apart import once

log = structlog.get_logger("stt.keys")
POLL_SECONDS = 1.0
# A disk that takes so long to give a few small files has gone, or may have.
SLOW_S = 10.0
# Settings that do not need a restart.
REREAD = (
    *("API_KEYS", "API_KEYS_FILE", "METRICS_KEYS", "METRICS_KEYS_FILE"),
    *("FALLBACK_API_KEY", "FALLBACK_API_KEY_FILE", *(name.upper() for name in FILES)),
)


class KeyRing:
    """The keys that callers may use. No keys at all: everybody is let in.

    Only digests are kept. A key is named by its `key_id`, the first 8 hex digits of its SHA-256.
    """

    def __init__(self, keys: Iterable[str]) -> None:
        self._digests: tuple[bytes, ...] = ()
        self._usage: dict[str, tuple[int, float]] = {}
        self.replace(keys)

    @property
    def open(self) -> bool:
        """Whether no key is needed."""
        return not self._digests

    def replace(self, keys: Iterable[str]) -> None:
        """Put other keys in force."""
        self._digests = tuple({_digest(key): None for key in keys})

    def find(self, key: str) -> str | None:
        """The `key_id` of a known key, else None; takes the same time for each wrong one."""
        presented = _digest(key)
        matches = [hmac.compare_digest(presented, digest) for digest in self._digests]
        if not any(matches):
            return None
        key_id = presented.hex()[:8]
        count, _ = self._usage.get(key_id, (0, 0.0))
        self._usage[key_id] = (count + 1, time.time())
        return key_id

    def usage(self) -> dict[str, dict[str, float | int | None]]:
        """Requests and last use (Unix seconds; None: never) of each key in force."""
        result: dict[str, dict[str, float | int | None]] = {}
        for digest in self._digests:
            count, last = self._usage.get(digest.hex()[:8], (0, None))
            result[digest.hex()[:8]] = {
                "requests": count,
                "last_use": None if last is None else round(last, 3),
            }
        return result


class Secrets:
    """The keys and certificates of one tier, re-read when the file of one of them changes.

    The files are polled by content: a mounted Kubernetes Secret is a symbolic link that changes
    underneath. What cannot be read or parsed changes nothing, and neither does a file that would
    leave a guarded service open.

    Raises:
        ConfigError: at the start, a file cannot be read, or holds no usable key or certificate.
    """

    def __init__(self, config: TierConfig) -> None:
        check_keys(config)
        self._started_with = config
        self._latest = config
        self._seen = self._contents(config)
        self.ring = KeyRing(api_keys(config))
        self.metrics_ring = KeyRing(metrics_keys(config))
        self.fallback_key = fallback_key(config)
        self.fallback_tls = fallback_tls(config)
        if self.ring.open:
            log.warning("no API_KEYS: everybody may use this service")

    async def watch(self) -> None:
        """Poll the files for ever."""
        while True:
            await asyncio.sleep(POLL_SECONDS)
            try:
                await _patiently(once(self.refresh, "keys"))
            except Exception:  # whatever it is, keys must go on changing
                log.exception("the files of keys could not be looked at")

    def refresh(self) -> None:
        """Look at the files once.

        For a thread of its own: requests see one assignment after the other, each of which is
        whole.
        """
        contents = self._contents(self._latest)
        if contents == self._seen:
            return
        self._seen = contents
        try:
            config = self._latest
            if config.source is not None:
                config = load(type(config), config.source)
            keys, keys_of_metrics = api_keys(config), metrics_keys(config)
            if not keys and not self.ring.open:
                raise ConfigError("no API key is left, which would open the service")
            if not keys_of_metrics and not self.metrics_ring.open:
                raise ConfigError("no key of the metrics is left, which would open them")
            new_fallback_key, new_fallback_tls = fallback_key(config), fallback_tls(config)
        except ConfigError as error:
            log.error("changed settings cannot be used; the old keys stay", reason=str(error))
            return
        self.ring.replace(keys)
        self.metrics_ring.replace(keys_of_metrics)
        self.fallback_key = new_fallback_key
        before, after = in_force(self._started_with), in_force(config)
        if after.get("FALLBACK_URL") == before.get("FALLBACK_URL"):  # another one needs a restart
            self.fallback_tls = new_fallback_tls
        log.info("keys re-read", key_ids=list(self.ring.usage()))
        self._latest = config
        if set(self._contents(config)) != set(contents):
            self._seen = {}  # other key files are named now: the next look takes them in
        changed = [name for name in after if after[name] != before[name] and name not in REREAD]
        if changed:
            log.warning("changed settings need a restart", settings=changed)

    @staticmethod
    def _contents(config: TierConfig) -> dict[Path, bytes | None]:
        paths = [config.source, config.api_keys_file, config.metrics_keys_file]
        if isinstance(config, PrimaryConfig):
            paths += [config.fallback_api_key_file, *(getattr(config, each) for each in FILES)]
        return {path: _read(path) for path in paths if path is not None}


async def _patiently(look: Coroutine[Any, Any, None]) -> None:
    """Wait for a look however long it takes, and say so if that is long."""
    looking = asyncio.ensure_future(look)
    try:
        await asyncio.wait({looking}, timeout=SLOW_S)
        if not looking.done():
            log.warning("the files of keys do not answer; the old keys stay until they do")
            await asyncio.wait({looking})
        looking.result()
    finally:
        looking.cancel()


def check_keys(config: TierConfig) -> None:
    """See that the keys and certificates of a tier can be used.

    Raises:
        ConfigError: they cannot; a line for each mistake, with the settings file's name.
    """
    mistakes = []
    checks: tuple[Callable[[TierConfig], object], ...]
    checks = (api_keys, metrics_keys, fallback_key, fallback_tls)
    for check in checks:
        try:
            check(config)
        except ConfigError as error:
            mistakes.append(f"{config.source}: {error}" if config.source else str(error))
    if mistakes:
        raise ConfigError("\n".join(mistakes))


def api_keys(config: TierConfig) -> tuple[str, ...]:
    """Keys from `API_KEYS` and `API_KEYS_FILE`.

    Raises:
        ConfigError: the file cannot be read or names no key.
    """
    return _listed(config.api_keys, config.api_keys_file, "API_KEYS")


def metrics_keys(config: TierConfig) -> tuple[str, ...]:
    """Keys from `METRICS_KEYS` and `METRICS_KEYS_FILE`.

    Raises:
        ConfigError: the file cannot be read or names no key.
    """
    return _listed(config.metrics_keys, config.metrics_keys_file, "METRICS_KEYS")


def fallback_key(config: TierConfig) -> str | None:
    """The key that the primary shows the fallback, from the setting or the file.

    Raises:
        ConfigError: both are set, or the file cannot be read or does not hold exactly one key.
    """
    if not isinstance(config, PrimaryConfig):
        return None
    inline, file = config.fallback_api_key, config.fallback_api_key_file
    if inline is not None and file is not None:
        raise ConfigError("FALLBACK_API_KEY and FALLBACK_API_KEY_FILE exclude each other")
    if file is not None:
        keys = _keys_in(file, "FALLBACK_API_KEY_FILE")
        if len(keys) != 1:
            raise ConfigError(f"FALLBACK_API_KEY_FILE: {file} must hold exactly one key")
        return keys[0]
    return None if inline is None else _checked(inline.get_secret_value(), "FALLBACK_API_KEY")


def _listed(inline: tuple[SecretStr, ...], file: Path | None, setting: str) -> tuple[str, ...]:
    keys = tuple(_checked(key.get_secret_value(), setting) for key in inline)
    return keys if file is None else keys + _keys_in(file, f"{setting}_FILE")


def _keys_in(path: Path, setting: str) -> tuple[str, ...]:
    try:
        text = contents(path).decode("utf-8-sig", "replace")
    except OSError as error:
        raise ConfigError(f"{setting}: {path} cannot be read: {error.strerror}") from None
    lines = (line.strip() for line in text.splitlines())
    keys = tuple(_checked(line, setting) for line in lines if line and not line.startswith("#"))
    if not keys:
        raise ConfigError(f"{setting}: {path} holds no key; it takes one a line")
    return keys


def _checked(key: str, setting: str) -> str:
    # Anything else could not arrive in a header, and would look like a key that does not work.
    if not key.isascii() or not key.isprintable() or " " in key:
        raise ConfigError(f"{setting}: a key may hold printable ASCII without spaces only")
    if not key.strip(","):
        raise ConfigError(f"{setting}: a key may not be of commas only")
    if key.startswith("#"):
        raise ConfigError(f"{setting}: a key may not begin with #, which begins a comment")
    return key


def _read(path: Path) -> bytes | None:
    try:
        return contents(path)
    except OSError:
        return None


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
