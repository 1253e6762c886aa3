"""What is wrong with a unit is found, whichever way it is wrong."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from deploy import engines, systemd
from pages import ROOT

pytestmark = pytest.mark.engines

PRIMARY, FALLBACK = "stt-primary.service", "stt-fallback.service"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of the files that are checked; skips where an engine is missing."""
    for engine in ("systemd-analyze", "shellcheck"):
        try:
            engines.path(engine)
        except engines.MissingEngine as missing:
            pytest.skip(str(missing))
    shutil.copytree(ROOT / systemd.FOLDER, tmp_path / systemd.FOLDER)
    return tmp_path


def test_nothing_is_wrong_with_the_units(checkout: Path) -> None:
    assert list(systemd.check(checkout)) == []


@pytest.mark.parametrize(
    ("file", "right", "wrong", "found"),
    [
        (PRIMARY, "KillMode=", "KillMood=", "Unknown key 'KillMood'"),
        (PRIMARY, "RestartSec=3", "RestartSec=soon", "Failed to parse"),
        (PRIMARY, "ProtectSystem=strict", "ProtectSystem=very", "Failed to parse"),
        (PRIMARY, "venv/bin/uvicorn", "venv/bin/unicorn", "is not executable"),
        ("stt.target", "WantedBy", "WantedFrom", "Unknown key"),
        ("stt-gpu.service", "RemainAfterExit", "RemainAfter", "Unknown key"),
        ("stt-gpu.service", "Before=stt-primary.service ", "Before=", "find no GPU after a boot"),
        ("stt-gpu.service", "/usr/bin/nvidia-smi", "/bin/true", "makes a device for each GPU"),
        (FALLBACK, "User=stt", "User=root", "User has to be 'stt'"),
        (FALLBACK, "NoNewPrivileges=yes\n", "", "NoNewPrivileges has to be"),
        (PRIMARY, "SystemCallFilter=", "SystemCallFilder=", "exposure"),
        (PRIMARY, "RestrictNamespaces=yes", "MemoryDenyWriteExecute=yes", "CUDA would fail"),
        (PRIMARY, "PrivateTmp=yes", "PrivateTmp=yes\nPrivateDevices=yes", "CUDA would fail"),
        (FALLBACK, "DeviceAllow=char-nvidia* rw\n", "", "sees the GPU"),
        (FALLBACK, "IPAddressDeny=any\n", "", "IPAddressDeny"),
        (PRIMARY, " --http stt_cascade.http.protocol:Protocol", "", "ExecStart is not"),
        (PRIMARY, "--workers 1", "--workers 2", "ExecStart is not"),
        (FALLBACK, "--port 8082", "--port 8081", "ExecStart is not"),
        (FALLBACK, "opt/stt/stt_fallback.env", "opt/stt/stt_primary.env", "CONFIG_PATH is not"),
        (PRIMARY, "Type=notify", "Type=exec", "Type has to be"),
        (PRIMARY, "WatchdogSec=30\n", "", "WatchdogSec"),
        (PRIMARY, "TimeoutStopSec=45", "TimeoutStopSec=30", "not longer than DRAIN_TIMEOUT_S"),
        ("cpu/stt_primary.env", "DEVICE=cpu", "DRAIN_TIMEOUT_S=60", "DRAIN_TIMEOUT_S, 60"),
        (PRIMARY, "KillMode=mixed", "KillMode=process", "KillMode has to be"),
        (PRIMARY, "OOMPolicy=continue", "OOMPolicy=stop", "OOMPolicy has to be"),
        (PRIMARY, "LimitCORE=0", "LimitCORE=infinity", "no core keeps callers' audio"),
        (FALLBACK, "MemorySwapMax=0\n", "", "no disk keeps callers' audio"),
        (PRIMARY, "Restart=always", "Restart=on-success", "Restart has to be"),
        (PRIMARY, "StartLimitIntervalSec=0", "StartLimitIntervalSec=300", "keeps it down"),
        (FALLBACK, "RestartPreventExitStatus=78\n", "", "tried for ever"),
        ("cpu/stt_fallback.env", "BEAM_SIZE=5", "BEAM_SIZE=many", "BEAM_SIZE=many"),
        ("gpu/stt_fallback.env", "DEVICE_INDEX", "DEVICE_INDICES", "DEVICE_INDICES"),
        ("gpu/stt_primary.env", "API_KEYS_FILE=", "API_KEYS=abc\n#", "a file of its own"),
        ("install.sh", '"$home/keys/$tier"', "$home/keys/$tier", "SC2086"),
        ("install.sh", "\nfi\n", "\n", "error"),
    ],
)
def test_a_planted_fault_is_found(
    checkout: Path, file: str, right: str, wrong: str, found: str
) -> None:
    planted = checkout / systemd.FOLDER / file
    text = planted.read_text()
    assert right in text
    planted.write_text(text.replace(right, wrong))
    findings = list(systemd.check(checkout))
    assert any(found in line for line in findings), findings
    assert all(line.startswith(str(systemd.FOLDER)) for line in findings), findings


def test_a_unit_that_is_not_there_is_found(checkout: Path) -> None:
    (checkout / systemd.FOLDER / PRIMARY).unlink()
    assert list(systemd.check(checkout)) == [f"{systemd.FOLDER}/{PRIMARY}: missing"]
