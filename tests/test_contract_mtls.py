"""TLS between the tiers: each knows the other by its certificate, on real sockets."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from certificates import Authority, Pair, demanding, openssl
from config_loader import ConfigError, PrimaryConfig, load
from fakes import FALLBACK_KEY, FakeEngine
from running import RunningTier, Tiers, env_file, fallback_config
from stt_cascade.admission.keys import check_keys
from test_contract_fallback import check_502
from tones import wav

FOR_HERE = "DNS:stt-fallback,IP:127.0.0.1"


@dataclass(frozen=True)
class Guarded:
    """A fallback that lets in only whom its authority vouches for.

    Attributes:
        primary: the certificate of such a one.
    """

    tier: RunningTier
    authority: Authority
    primary: Pair

    def settings(self, **other: Any) -> dict[str, Any]:
        """Of a primary that gets in."""
        return {
            "fallback_ca_file": self.authority.cert,
            "fallback_cert_file": self.primary.cert,
            "fallback_key_file": self.primary.key,
            **other,
        }


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "ours")


def guarded(tiers: Tiers, authority: Authority, server: Pair | None = None) -> Guarded:
    primary = authority.issue("stt-primary")
    server = server or authority.issue("stt-fallback", FOR_HERE)
    tier = tiers.run(
        fallback_config(api_keys=(FALLBACK_KEY,)),
        FakeEngine("from the fallback"),
        tls=demanding(server, authority.cert, primary),
        wait=False,
    )
    return Guarded(tier, authority, primary)


def escalated(tiers: Tiers, fallback: RunningTier | str, settings: dict[str, Any]) -> Any:
    """What a clip gets that the primary cannot answer by itself."""
    return tiers.primary(FakeEngine("hm"), fallback=fallback, **settings).transcribe()


def test_who_shows_the_right_certificate_gets_the_fallbacks_text(
    tiers: Tiers, authority: Authority
) -> None:
    fallback = guarded(tiers, authority)
    answer = escalated(tiers, fallback.tier, fallback.settings())
    assert (answer.status_code, answer.json()["text"]) == (200, "from the fallback")
    assert answer.headers["X-Fallback-Used"] == "true"


def test_a_large_clip_gets_through_as_well(tiers: Tiers, authority: Authority) -> None:
    fallback = guarded(tiers, authority)
    primary = tiers.primary(FakeEngine("hm"), fallback=fallback.tier, **fallback.settings())
    clip = wav() + bytes(4 * 1024 * 1024)
    assert primary.transcribe(clip).json()["text"] == "from the fallback"


@pytest.mark.parametrize("shown", ["none", "another authority's", "expired"])
def test_a_primary_without_a_certificate_that_holds_is_502_and_told_that_it_is_tls(
    tiers: Tiers, authority: Authority, tmp_path: Path, shown: str
) -> None:
    fallback = guarded(tiers, authority)
    settings = {"fallback_ca_file": authority.cert}
    if shown != "none":
        by = authority if shown == "expired" else Authority(tmp_path / "theirs")
        pair = by.issue("stranger", days=-1 if shown == "expired" else 2)
        settings |= {"fallback_cert_file": pair.cert, "fallback_key_file": pair.key}
    check_502(escalated(tiers, fallback.tier, settings), "TLS")
    assert not fallback.tier.fake.heard


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("expired", "certificate has expired"),
        ("another name's", "certificate is not valid for '127.0.0.1'"),
        ("another authority's", "unable to get local issuer certificate"),
    ],
)
def test_a_fallback_whose_certificate_does_not_hold_gets_no_audio(
    tiers: Tiers, authority: Authority, tmp_path: Path, wrong: str, said: str
) -> None:
    by = Authority(tmp_path / "theirs") if wrong == "another authority's" else authority
    san = "" if wrong == "another name's" else FOR_HERE
    server = by.issue("stt-fallback", san, -1 if wrong == "expired" else 2)
    fallback = guarded(tiers, authority, server)
    answer = escalated(tiers, fallback.tier, fallback.settings())
    check_502(answer, "TLS: its certificate does not hold")
    assert said in answer.headers["X-Fallback-Error"]
    assert answer.headers["X-Fallback-Error"].startswith("unreachable: ")
    assert not fallback.tier.fake.heard


def test_a_new_certificate_is_shown_without_a_restart(tiers: Tiers, authority: Authority) -> None:
    fallback = guarded(tiers, authority)
    old = authority.issue("old", days=-1)
    settings = fallback.settings(fallback_cert_file=old.cert, fallback_key_file=old.key)
    primary = tiers.primary(FakeEngine("hm"), fallback=fallback.tier, **settings)
    check_502(primary.transcribe(), "TLS")

    shutil.copy(fallback.primary.cert, old.cert)
    with capture_logs() as lines:  # half of it is there
        primary.service.secrets.refresh()
    assert "is not the key of" in lines[0]["reason"]
    shutil.copy(fallback.primary.key, old.key)
    primary.service.secrets.refresh()

    assert primary.transcribe().json()["text"] == "from the fallback"


def test_who_vouches_for_the_fallback_changes_without_a_restart(
    tiers: Tiers, authority: Authority, tmp_path: Path
) -> None:
    fallback = guarded(tiers, authority)
    trusted = tmp_path / "trusted.pem"
    shutil.copy(Authority(tmp_path / "theirs").cert, trusted)
    settings = fallback.settings(fallback_ca_file=trusted)
    primary = tiers.primary(FakeEngine("hm"), fallback=fallback.tier, **settings)
    check_502(primary.transcribe(), "TLS: its certificate does not hold")

    shutil.copy(authority.cert, trusted)
    primary.service.secrets.refresh()

    assert primary.transcribe().json()["text"] == "from the fallback"


@pytest.mark.parametrize("how", ["gone", "empty"])
def test_a_certificate_that_went_bad_leaves_the_old_one(
    tiers: Tiers, authority: Authority, how: str
) -> None:
    fallback = guarded(tiers, authority)
    primary = tiers.primary(FakeEngine("hm"), fallback=fallback.tier, **fallback.settings())
    if how == "gone":
        fallback.primary.cert.unlink()
    else:
        fallback.primary.cert.write_text("")
    with capture_logs() as lines:
        primary.service.secrets.refresh()
        primary.service.secrets.refresh()
    (line,) = (line for line in lines if line["log_level"] == "error")
    assert line["reason"].startswith(f"FALLBACK_CERT_FILE: {fallback.primary.cert}")
    assert primary.transcribe().json()["text"] == "from the fallback"


def test_another_address_waits_for_a_restart_with_its_certificates(
    tiers: Tiers, authority: Authority, tmp_path: Path
) -> None:
    fallback = guarded(tiers, authority)
    file = tmp_path / "primary.env"
    common = {"CT2_SMALL_PATH": "models/fake", "DEVICE": "cpu", "VAD": "off"}
    tls = {name.upper(): path for name, path in fallback.settings().items()}
    env_file(file, **common, **tls, FALLBACK_URL=fallback.tier.url, FALLBACK_API_KEY=FALLBACK_KEY)
    primary = tiers.run(load(PrimaryConfig, file), FakeEngine("hm"))

    env_file(file, **common, FALLBACK_URL="http://127.0.0.1:9", FALLBACK_API_KEY=FALLBACK_KEY)
    with capture_logs() as lines:
        primary.service.secrets.refresh()

    assert [line["settings"] for line in lines if "restart" in line["event"]] == [["FALLBACK_URL"]]
    assert primary.transcribe().json()["text"] == "from the fallback"


def started(tmp_path: Path, *, url: str = "https://stt-fallback:8443", **files: Path) -> str:
    """What the primary says at the start with these settings; empty: nothing is wrong."""
    file = env_file(tmp_path / "p.env", CT2_SMALL_PATH="m", FALLBACK_URL=url, **files)
    try:
        check_keys(load(PrimaryConfig, file))
    except ConfigError as mistake:
        return str(mistake).removeprefix(f"{file}: ")
    return ""


def test_a_start_says_in_one_line_what_is_wrong_with_a_certificate(
    tmp_path: Path, authority: Authority
) -> None:
    ours, other = authority.issue("stt-primary"), authority.issue("other")
    locked, nothing, junk = (tmp_path / name for name in ("locked.key", "nothing", "junk"))
    openssl("ec", "-in", ours.key, "-out", locked, "-aes256", "-passout", "pass:sesame")
    junk.write_bytes(b"\xffno PEM")
    cert: dict[str, Any] = {"FALLBACK_CERT_FILE": ours.cert}
    key: dict[str, Any] = {"FALLBACK_KEY_FILE": ours.key}

    assert started(tmp_path, **cert, **key, FALLBACK_CA_FILE=authority.cert) == ""
    assert started(tmp_path) == ""
    assert started(tmp_path, FALLBACK_CA_FILE=nothing) == (
        f"FALLBACK_CA_FILE: {nothing} cannot be read: No such file or directory"
    )
    assert started(tmp_path, FALLBACK_CA_FILE=junk) == (
        f"FALLBACK_CA_FILE: {junk} holds no certificate in PEM"
    )
    together = "FALLBACK_CERT_FILE and FALLBACK_KEY_FILE go together; one is missing"
    assert started(tmp_path, **cert) == started(tmp_path, **key) == together
    assert started(tmp_path, **cert, FALLBACK_KEY_FILE=other.key) == (
        f"FALLBACK_KEY_FILE: {other.key} is not the key of {ours.cert}"
    )
    assert started(tmp_path, **cert, FALLBACK_KEY_FILE=nothing) == (
        f"FALLBACK_KEY_FILE: {nothing} cannot be read: No such file or directory"
    )
    assert started(tmp_path, **cert, FALLBACK_KEY_FILE=ours.cert) == (
        f"FALLBACK_KEY_FILE: {ours.cert} holds no private key in PEM"
    )
    assert started(tmp_path, **key, FALLBACK_CERT_FILE=junk) == (
        f"FALLBACK_CERT_FILE: {junk} holds no certificate in PEM"
    )
    assert started(tmp_path, **cert, FALLBACK_KEY_FILE=locked) == (
        f"FALLBACK_KEY_FILE: {locked} is protected by a passphrase, for which nobody can be asked"
    )
    assert started(tmp_path, **cert, **key, url="http://stt-fallback:8082") == (
        "FALLBACK_CERT_FILE, FALLBACK_KEY_FILE: only with a FALLBACK_URL that begins https://"
    )


def test_a_certificate_of_no_environment_variable_is_trusted(
    tiers: Tiers, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.cert))
    fallback = guarded(tiers, authority)
    settings = fallback.settings(fallback_ca_file=None)
    check_502(escalated(tiers, fallback.tier, settings), "TLS: its certificate does not hold")
