"""How the primary knows its fallback, and the fallback its primary, by certificates."""

from __future__ import annotations

import ssl
from pathlib import Path

import httpx2

from stt_cascade.config import ConfigError, PrimaryConfig, TierConfig
from stt_cascade.config_file import contents

FILES = ("fallback_ca_file", "fallback_cert_file", "fallback_key_file")


def fallback_tls(config: TierConfig) -> ssl.SSLContext | None:
    """What the primary speaks TLS with; None: in the clear, or no primary.

    Raises:
        ConfigError: a file cannot be read or holds something else, the key is not the
            certificate's, or they are of no use, since the address has no TLS.
    """
    if not isinstance(config, PrimaryConfig):
        return None
    ca, cert, key = (getattr(config, name) for name in FILES)
    if httpx2.URL(config.fallback_url).scheme != "https":
        if named := [name.upper() for name in FILES if getattr(config, name) is not None]:
            raise ConfigError(f"{', '.join(named)}: only with a FALLBACK_URL that begins https://")
        return None
    if (cert is None) != (key is None):
        raise ConfigError("FALLBACK_CERT_FILE and FALLBACK_KEY_FILE go together; one is missing")
    # No setting comes from the process environment, so neither do certificates.
    context = httpx2.create_ssl_context(trust_env=False) if ca is None else _trusting(ca)
    if cert is not None:
        _certificates(cert, "FALLBACK_CERT_FILE")  # else nobody could tell which of both is wrong
        _show(context, cert, key)
    return context


def _trusting(file: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=_certificates(file, "FALLBACK_CA_FILE"))
    return context


def _certificates(file: Path, setting: str) -> str:
    """The file's text, if there are certificates in it."""
    try:
        text = contents(file).decode("ascii", "ignore")  # comments may be anything
    except OSError as error:
        raise ConfigError(f"{setting}: {file} cannot be read: {error.strerror}") from None
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=text)
    except (ssl.SSLError, ValueError):
        raise ConfigError(f"{setting}: {file} holds no certificate in PEM") from None
    return text


def _show(context: ssl.SSLContext, cert: Path, key: Path) -> None:
    try:
        contents(key)  # OpenSSL would wait for a pipe
        context.load_cert_chain(cert, key, _refuse_passphrase)
    except _Passphrase:
        why = "is protected by a passphrase, for which nobody can be asked"
    except ssl.SSLError as error:
        other = error.reason == "KEY_VALUES_MISMATCH"
        why = f"is not the key of {cert}" if other else "holds no private key in PEM"
    except OSError as error:
        why = f"cannot be read: {error.strerror}"
    else:
        return
    raise ConfigError(f"FALLBACK_KEY_FILE: {key} {why}")


class _Passphrase(Exception):
    pass


def _refuse_passphrase() -> str:
    # OpenSSL would otherwise ask at the terminal, and wait for ever where there is one.
    raise _Passphrase
