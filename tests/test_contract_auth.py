"""Who is let in, and that keys change without a restart."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from fakes import FALLBACK_KEY, PATIENCE, PRIMARY_KEY, FakeEngine, ScriptedFallback
from running import TRANSCRIBE, RunningTier, Tiers, env_file, running_tiers, until
from stt_cascade.admission import keys as keys_module
from stt_cascade.config import FallbackConfig, PrimaryConfig
from stt_cascade.config_file import contents, load
from tones import wav

OTHER_KEY = "other-key-9876543210"
FAKE_MODEL = {"DEVICE": "cpu", "VAD": "off", "RATE_LIMIT_BURST": 1000}


@pytest.fixture(scope="module")
def guarded(shared_tiers: Tiers) -> RunningTier:
    return shared_tiers.fallback(api_keys=(PRIMARY_KEY, OTHER_KEY))


def status_with(tier: RunningTier, *authorization: str | bytes) -> int:
    """The status for these Authorization headers."""
    headers = [("Authorization", value) for value in authorization]
    return tier.client.post(
        TRANSCRIBE,
        files={"audio": wav()},
        headers=headers,  # type: ignore[arg-type]  # str and bytes may be mixed
    ).status_code


def lets_in(tier: RunningTier, key: str) -> bool:
    status = status_with(tier, f"Bearer {key}")
    assert status in (200, 401)
    return status == 200


def key_id(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()[:8]


@pytest.mark.parametrize("key", [PRIMARY_KEY, OTHER_KEY])
@pytest.mark.parametrize("scheme", ["Bearer ", "bearer ", "BEARER ", "Bearer   "])
def test_each_key_of_the_list_is_let_in(guarded: RunningTier, key: str, scheme: str) -> None:
    assert status_with(guarded, scheme + key) == 200


@pytest.mark.parametrize(
    "authorization",
    [
        "",
        "Bearer",
        f"Basic {PRIMARY_KEY}",
        PRIMARY_KEY,
        f"Bearer {PRIMARY_KEY}x",
        f"Bearer {PRIMARY_KEY[:-1]}",
        f"Bearer {PRIMARY_KEY.upper()}",
        f"Bearer {PRIMARY_KEY},{OTHER_KEY}",
        f"Bearer {PRIMARY_KEY} {OTHER_KEY}",
        "Bearer grüße".encode(),
        b"Bearer \xff\xfe",
    ],
)
def test_anything_else_is_not(guarded: RunningTier, authorization: str | bytes) -> None:
    assert status_with(guarded, authorization) == 401


@pytest.mark.parametrize("second", ["Bearer wrong", f"Bearer {OTHER_KEY}", ""])
def test_two_authorization_headers_are_refused(guarded: RunningTier, second: str) -> None:
    right = f"Bearer {PRIMARY_KEY}"
    assert status_with(guarded, right, second) == status_with(guarded, second, right) == 401


@pytest.mark.parametrize("path", ["/v1/transcribe", "/v1/transcribe/", "/nowhere", "//v1/health"])
def test_an_unknown_caller_does_not_learn_which_paths_exist(
    guarded: RunningTier, path: str
) -> None:
    assert guarded.client.post(path).status_code == 401


def test_without_keys_everybody_is_let_in(tiers: Tiers) -> None:
    open_tier = tiers.fallback()
    assert status_with(open_tier) == status_with(open_tier, "Bearer whatever") == 200


def test_an_open_service_says_so_at_the_start(tiers: Tiers) -> None:
    with capture_logs() as lines:
        tiers.fallback()
        tiers.fallback(api_keys=(PRIMARY_KEY,))
    assert len([line for line in lines if "no API_KEYS" in line["event"]]) == 1


def test_the_snapshot_shows_each_keys_use_and_no_key(tiers: Tiers) -> None:
    guarded = tiers.fallback(api_keys=(PRIMARY_KEY, OTHER_KEY))
    before = time.time()
    lets_in(guarded, PRIMARY_KEY)
    lets_in(guarded, PRIMARY_KEY)
    lets_in(guarded, "wrong")

    answer = guarded.get("/v1/metrics")

    keys = answer.json()["keys"]
    assert set(keys) == {key_id(PRIMARY_KEY), key_id(OTHER_KEY)}
    assert keys[key_id(PRIMARY_KEY)]["requests"] == 2
    assert before - 1 <= keys[key_id(PRIMARY_KEY)]["last_use"] <= time.time()
    assert keys[key_id(OTHER_KEY)] == {"requests": 0, "last_use": None}
    assert PRIMARY_KEY not in answer.text
    assert OTHER_KEY not in answer.text


def fallback_from(tiers: Tiers, file: Path, **settings: Any) -> RunningTier:
    env_file(file, CT2_MEDIUM_PATH="models/fake", **FAKE_MODEL, **settings)
    return tiers.run(load(FallbackConfig, file))


def test_a_key_in_the_settings_file_changes_without_a_restart(tiers: Tiers, tmp_path: Path) -> None:
    file = tmp_path / "fallback.env"
    tier = fallback_from(tiers, file, API_KEYS=PRIMARY_KEY)
    assert (lets_in(tier, PRIMARY_KEY), lets_in(tier, OTHER_KEY)) == (True, False)

    env_file(file, CT2_MEDIUM_PATH="models/fake", **FAKE_MODEL, API_KEYS=OTHER_KEY)

    until(lambda: lets_in(tier, OTHER_KEY), "the poll has seen the new key")
    assert not lets_in(tier, PRIMARY_KEY)


def mounted_secret(folder: Path, **files: str) -> None:
    """Change a folder as Kubernetes changes a mounted Secret: `..data` is swapped in one step."""
    version = folder / f"..{len(list(folder.iterdir()))}"
    version.mkdir()
    for name, content in files.items():
        (version / name).write_text(content)
        if not (folder / name).is_symlink():
            (folder / name).symlink_to(f"..data/{name}")
    new = folder / "..data_tmp"
    new.symlink_to(version.name)
    new.replace(folder / "..data")


def test_a_key_in_a_mounted_secret_changes_without_a_restart(tiers: Tiers, tmp_path: Path) -> None:
    mounted_secret(tmp_path, keys=f"# ours\n{PRIMARY_KEY}\n")
    tier = tiers.fallback(api_keys_file=tmp_path / "keys")
    assert (lets_in(tier, PRIMARY_KEY), lets_in(tier, OTHER_KEY)) == (True, False)

    mounted_secret(tmp_path, keys=f"{PRIMARY_KEY}\n\n{OTHER_KEY}\r\n")
    tier.service.secrets.refresh()
    assert (lets_in(tier, PRIMARY_KEY), lets_in(tier, OTHER_KEY)) == (True, True)

    mounted_secret(tmp_path, keys=OTHER_KEY)
    tier.service.secrets.refresh()
    assert (lets_in(tier, PRIMARY_KEY), lets_in(tier, OTHER_KEY)) == (False, True)


def test_keys_of_the_list_and_of_the_file_count(tiers: Tiers, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text(OTHER_KEY)
    tier = tiers.fallback(api_keys=(PRIMARY_KEY,), api_keys_file=tmp_path / "keys")
    assert lets_in(tier, PRIMARY_KEY)
    assert lets_in(tier, OTHER_KEY)


def test_the_key_for_the_fallback_changes_without_a_restart(
    tiers: Tiers, tmp_path: Path, scripted: Callable[..., ScriptedFallback]
) -> None:
    mounted_secret(tmp_path, key=FALLBACK_KEY)
    fallback = scripted()
    tier = tiers.primary(
        FakeEngine("hm"),
        fallback=fallback,
        fallback_api_key=None,
        fallback_api_key_file=tmp_path / "key",
    )
    tier.transcribe()
    mounted_secret(tmp_path, key=OTHER_KEY + "\n")
    tier.service.secrets.refresh()
    tier.transcribe()
    shown = [asked.headers["authorization"] for asked in fallback.asked]
    assert shown == [f"Bearer {FALLBACK_KEY}", f"Bearer {OTHER_KEY}"]


def spoil(file: Path, how: str) -> None:
    if how == "gone":
        file.unlink()
    elif how == "a folder":
        file.unlink()
        file.mkdir()
    else:
        file.write_bytes({"empty": b"", "comment": b"# none\n", "binary": b"\xff\x00key"}[how])


@pytest.mark.parametrize("how", ["gone", "a folder", "empty", "comment", "binary"])
def test_a_key_file_that_went_bad_leaves_the_old_keys(
    tiers: Tiers, tmp_path: Path, how: str
) -> None:
    file = tmp_path / "keys"
    file.write_text(PRIMARY_KEY)
    tier = tiers.fallback(api_keys_file=file)

    spoil(file, how)
    with capture_logs() as lines:
        tier.service.secrets.refresh()
        tier.service.secrets.refresh()

    assert (lets_in(tier, PRIMARY_KEY), lets_in(tier, OTHER_KEY)) == (True, False)
    (line,) = (line for line in lines if line["log_level"] == "error")
    assert "the old keys stay" in line["event"]
    assert "API_KEYS_FILE" in line["reason"]


def test_a_key_file_that_is_well_again_counts_again(tiers: Tiers, tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(PRIMARY_KEY)
    tier = tiers.fallback(api_keys_file=file)
    file.unlink()
    tier.service.secrets.refresh()
    file.write_text(OTHER_KEY)
    tier.service.secrets.refresh()
    assert (lets_in(tier, PRIMARY_KEY), lets_in(tier, OTHER_KEY)) == (False, True)


@pytest.mark.parametrize("keys", ["", "bad key with spaces", "größe"])
def test_settings_without_usable_keys_do_not_open_the_service(
    tiers: Tiers, tmp_path: Path, keys: str
) -> None:
    file = tmp_path / "fallback.env"
    tier = fallback_from(tiers, file, API_KEYS=PRIMARY_KEY)
    env_file(file, CT2_MEDIUM_PATH="models/fake", **FAKE_MODEL, API_KEYS=keys)
    with capture_logs() as lines:
        tier.service.secrets.refresh()
    assert (lets_in(tier, PRIMARY_KEY), status_with(tier)) == (True, 401)
    assert any("the old keys stay" in line["event"] for line in lines)
    assert keys == "" or keys not in str(lines)


def test_a_mistake_in_the_settings_leaves_the_old_keys(tiers: Tiers, tmp_path: Path) -> None:
    file = tmp_path / "fallback.env"
    tier = fallback_from(tiers, file, API_KEYS=PRIMARY_KEY)
    fallback_from_again = {**FAKE_MODEL, "API_KEYS": OTHER_KEY, "MAX_CONCURENCY": 2}
    env_file(file, CT2_MEDIUM_PATH="models/fake", **fallback_from_again)
    with capture_logs() as lines:
        tier.service.secrets.refresh()
    assert (lets_in(tier, PRIMARY_KEY), lets_in(tier, OTHER_KEY)) == (True, False)
    assert "did you mean MAX_CONCURRENCY" in str(lines)


def test_a_typo_in_an_address_does_not_end_the_watch(tiers: Tiers, tmp_path: Path) -> None:
    file = tmp_path / "primary.env"
    common = {"CT2_SMALL_PATH": "models/fake", **FAKE_MODEL}
    env_file(file, **common, FALLBACK_URL="http://127.0.0.1:9", API_KEYS=PRIMARY_KEY)
    tier = tiers.run(load(PrimaryConfig, file))
    with capture_logs() as lines:
        env_file(file, **common, FALLBACK_URL="http://127.0.0.1:8O82", API_KEYS=OTHER_KEY)
        until(lambda: "must be an address" in str(lines), "the poll has seen the typo")
    env_file(file, **common, FALLBACK_URL="http://127.0.0.1:8082", API_KEYS=OTHER_KEY)
    until(lambda: lets_in(tier, OTHER_KEY), "the poll has seen the new key")


@pytest.mark.parametrize("what", ["pipe", "device"])
def test_a_key_file_that_becomes_something_else_ends_no_rotation(
    tiers: Tiers, tmp_path: Path, what: str
) -> None:
    file, other = tmp_path / "keys", tmp_path / "other"
    file.write_text(PRIMARY_KEY)
    tier = tiers.fallback(api_keys_file=file)
    if what == "pipe":
        os.mkfifo(other)
    else:
        other.symlink_to("/dev/zero")
    with capture_logs() as lines:
        other.replace(file)
        until(lambda: "Not a regular file" in str(lines), "the log says so")
    assert lets_in(tier, PRIMARY_KEY)
    other.write_bytes(b"\xef\xbb\xbf" + OTHER_KEY.encode())
    other.replace(file)
    until(lambda: lets_in(tier, OTHER_KEY), "the poll has seen the new key")


def test_whatever_a_look_at_the_keys_ends_with_another_one_follows(
    tiers: Tiers, tmp_path: Path
) -> None:
    def misbehaving(path: Path) -> bytes:
        raise RuntimeError("nobody has thought of this")

    file = tmp_path / "keys"
    file.write_text(PRIMARY_KEY)
    tier = tiers.fallback(api_keys_file=file)
    with pytest.MonkeyPatch.context() as unwell, capture_logs() as lines:
        unwell.setattr(keys_module, "contents", misbehaving)
        until(lambda: "could not be looked at" in str(lines), "a look has failed")
    file.write_text(OTHER_KEY)
    until(lambda: lets_in(tier, OTHER_KEY), "the poll has seen the new key")


def test_a_disk_that_does_not_answer_stops_no_request_and_no_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers, asked = threading.Event(), threading.Event()

    def hanging(path: Path) -> bytes:
        asked.set()
        assert answers.wait(PATIENCE)
        return contents(path)

    monkeypatch.setattr(keys_module, "SLOW_S", 0.01)
    monkeypatch.setattr(keys_module, "contents", hanging)
    answers.set()
    file = tmp_path / "keys"
    file.write_text(PRIMARY_KEY)
    with running_tiers() as tiers:
        tier = tiers.fallback(api_keys_file=file)
        answers.clear()
        asked.clear()
        with capture_logs() as lines:
            assert asked.wait(PATIENCE)
            assert lets_in(tier, PRIMARY_KEY)
            until(lambda: "do not answer" in str(lines), "the log says so")

        file.write_text(OTHER_KEY)
        answers.set()
        until(lambda: lets_in(tier, OTHER_KEY), "the disk has answered")

        answers.clear()
        asked.clear()
        assert asked.wait(PATIENCE)
    # The tier has stopped while a look was under way.
    answers.set()


def test_a_key_file_named_later_is_watched_too(tiers: Tiers, tmp_path: Path) -> None:
    file, keys = tmp_path / "fallback.env", tmp_path / "keys"
    tier = fallback_from(tiers, file, API_KEYS=PRIMARY_KEY)
    keys.write_text(OTHER_KEY)
    env_file(file, CT2_MEDIUM_PATH="models/fake", **FAKE_MODEL, API_KEYS_FILE=keys)
    tier.service.secrets.refresh()
    assert (lets_in(tier, PRIMARY_KEY), lets_in(tier, OTHER_KEY)) == (False, True)
    keys.write_text(PRIMARY_KEY)
    tier.service.secrets.refresh()
    assert (lets_in(tier, PRIMARY_KEY), lets_in(tier, OTHER_KEY)) == (True, False)


def test_other_changed_settings_are_said_to_need_a_restart(tiers: Tiers, tmp_path: Path) -> None:
    file = tmp_path / "primary.env"
    common = {"CT2_SMALL_PATH": "models/fake", "FALLBACK_URL": "http://127.0.0.1:9", **FAKE_MODEL}
    env_file(file, **common, API_KEYS=PRIMARY_KEY)
    tier = tiers.run(load(PrimaryConfig, file))
    env_file(file, **common, API_KEYS=OTHER_KEY, MIN_WORDS_FOR_CONF=9, BEAM_SIZE=2)
    with capture_logs() as lines:
        tier.service.secrets.refresh()
    (line,) = (line for line in lines if "restart" in line["event"])
    assert set(line["settings"]) == {"MIN_WORDS_FOR_CONF", "BEAM_SIZE"}
    assert tier.get("/v1/metrics").json()["thresholds"]["words"] == 3
    assert OTHER_KEY not in str(lines)


def test_no_request_fails_while_keys_change(tiers: Tiers, tmp_path: Path) -> None:
    """A caller whose key stays in the list never notices."""
    file = tmp_path / "keys"
    file.write_text(f"{PRIMARY_KEY}\n{OTHER_KEY}")
    tier = tiers.fallback(api_keys_file=file)
    statuses: list[int] = []
    enough = threading.Event()

    def call() -> None:
        while not enough.is_set():
            statuses.append(status_with(tier, f"Bearer {PRIMARY_KEY}"))

    caller = threading.Thread(target=call)
    caller.start()
    for number in range(50):
        file.write_text(f"{PRIMARY_KEY}\nkey-{number}")
        tier.service.secrets.refresh()
    until(lambda: len(statuses) > 20, "calls were made")
    enough.set()
    caller.join()
    assert set(statuses) == {200}
