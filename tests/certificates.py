"""Certificates for a test: made by openssl, signed by an authority of the test's own."""

from __future__ import annotations

import shutil
import ssl
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

_CURVE = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")


@dataclass(frozen=True)
class Pair:
    """A certificate and its key."""

    cert: Path
    key: Path

    def client(self, trusts: Path) -> ssl.SSLContext:
        """What somebody who shows it speaks TLS with."""
        context = ssl.create_default_context(cafile=str(trusts))
        context.load_cert_chain(self.cert, self.key)
        return context


class Authority:
    """Signs certificates. Skips where there is no openssl."""

    def __init__(self, folder: Path, name: str = "a test's authority") -> None:
        self._folder = folder
        self.cert, self._key = folder / "ca.pem", folder / "ca.key"
        folder.mkdir(parents=True, exist_ok=True)
        own = ("-keyout", self._key, "-out", self.cert, "-days", "2", "-subj", f"/CN={name}")
        openssl("req", "-x509", *_CURVE, *own)

    def issue(self, name: str, san: str = "", days: int = 2) -> Pair:
        """A certificate of its own for that name, valid from now on for so many days.

        Args:
            san: who it is for, such as `DNS:stt-fallback,IP:127.0.0.1`; by default the name.
            days: negative: it has expired.
        """
        cert, key = self._folder / f"{name}.pem", self._folder / f"{name}.key"
        asked, ext = self._folder / f"{name}.csr", self._folder / f"{name}.ext"
        openssl("req", "-new", *_CURVE, "-keyout", key, "-out", asked, "-subj", f"/CN={name}")
        ext.write_text(f"basicConstraints=CA:FALSE\nsubjectAltName={san or f'DNS:{name}'}\n")
        signed = ("-CA", self.cert, "-CAkey", self._key, "-days", str(days), "-extfile", ext)
        openssl("x509", "-req", "-in", asked, "-out", cert, *signed)
        return Pair(cert, key)


def openssl(*words: str | Path) -> None:
    program = shutil.which("openssl")
    if program is None:
        pytest.skip("there is no openssl to make a certificate with")
    subprocess.run([program, *words], check=True, capture_output=True)


def demanding(server: Pair, ca: Path, client: Pair) -> tuple[dict[str, Any], ssl.SSLContext]:
    """How a tier terminates TLS itself and demands certificates, and how a test gets in."""
    options = {
        "ssl_certfile": server.cert,
        "ssl_keyfile": server.key,
        "ssl_ca_certs": ca,
        "ssl_cert_reqs": int(ssl.CERT_REQUIRED),
    }
    return options, client.client(ca)
