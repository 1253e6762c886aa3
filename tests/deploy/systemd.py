"""`deploy/systemd/`: read by systemd itself, and held to what a tier wants of its supervisor."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from deploy import engines
from stt_cascade.config import ConfigError, FallbackConfig, PrimaryConfig, TierConfig
from stt_cascade.config_file import load

FOLDER = Path("deploy/systemd")
TIERS: dict[str, tuple[type[TierConfig], int]] = {
    "primary": (PrimaryConfig, 8081),
    "fallback": (FallbackConfig, 8082),
}
DEVICES = ("cpu", "gpu")
UNITS = tuple(f"stt-{tier}.service" for tier in TIERS)
# Makes the devices that the tiers find; a tier has no rights to.
DEVICE_UNIT = "stt-gpu.service"
# Out of ten.
MOST_EXPOSURE = 2.5
COMMAND = (
    "/opt/stt/venv/bin/uvicorn stt_{tier}:app --host 0.0.0.0 --port {port} --workers 1"
    " --http stt_cascade.http.protocol:Protocol --no-proxy-headers"
)
# What has to be as it is, and what happens otherwise.
WANTED = {
    "Type": ("notify", "started is who can answer"),
    "NotifyAccess": ("main", "no decoder speaks for the service"),
    "User": ("stt", "it is not root"),
    "Group": ("stt", "it can read its keys"),
    "WorkingDirectory": ("/opt/stt", "a relative path in the settings means something"),
    "Restart": ("always", "it comes back whatever ended it"),
    "RestartSec": ("3", "so says the specification"),
    "StartLimitIntervalSec": ("0", "no number of ends keeps it down"),
    "RestartPreventExitStatus": ("78", "wrong settings are not tried for ever"),
    "KillMode": ("mixed", "a stop spoils no clip that a decoder has"),
    "OOMPolicy": ("continue", "a decoder that is killed does not take the service along"),
    "LimitCORE": ("0", "no core keeps callers' audio"),
    "MemorySwapMax": ("0", "no disk keeps callers' audio"),
    "UMask": ("0077", "what it caches is nobody else's"),
    "DevicePolicy": ("closed", "it sees no devices but those that are named"),
    "DeviceAllow": ("char-nvidia* rw", "it sees the GPU"),
    "ProtectSystem": ("strict", "it writes nowhere but into its cache"),
    "NoNewPrivileges": ("yes", "it gains no privileges"),
    "CapabilityBoundingSet": ("", "it has no capabilities"),
}
# The engine makes machine code as it runs, and the GPU has its devices.
UNWANTED = {"MemoryDenyWriteExecute": "oneDNN and CUDA", "PrivateDevices": "CUDA"}


def check(root: Path) -> Iterator[str]:
    """A line a finding."""
    units = [FOLDER / name for name in (*UNITS, DEVICE_UNIT, "stt.target")]
    if missing := [unit for unit in units if not (root / unit).is_file()]:
        yield from (f"{unit}: missing" for unit in missing)
        return
    yield from _verified(root, units)
    for tier, (model, port) in TIERS.items():
        unit = FOLDER / f"stt-{tier}.service"
        yield from _exposed(root, unit)
        settings = []
        for device in DEVICES:
            file = FOLDER / device / f"stt_{tier}.env"
            try:
                settings.append(load(model, root / file))
            except ConfigError as error:
                yield f"{file}: {error}"
                continue
            yield from _secret(root / file, file)
        for finding in _kept(options(root / unit), tier, port, settings):
            yield f"{unit}: {finding}"
    yield from _devices(root, FOLDER / DEVICE_UNIT)
    yield from _linted(root, FOLDER / "install.sh")


def _devices(root: Path, unit: Path) -> Iterator[str]:
    found = options(root / unit)
    for name in ("Before", "WantedBy"):
        if set(" ".join(found[name]).split()) != set(UNITS):
            yield f"{unit}: {name} does not name both tiers, which find no GPU after a boot"
    programs = {Path(line.split()[0]).name for line in found["ExecStart"]}
    if programs != {"nvidia-smi", "nvidia-modprobe"}:
        yield f"{unit}: nvidia-smi makes a device for each GPU, nvidia-modprobe nvidia-uvm"


def options(unit: Path) -> dict[str, list[str]]:
    """The options of a unit, whatever their sections, in order."""
    found = defaultdict(list)
    for line in unit.read_text().splitlines():
        if match := re.fullmatch(r"(\w+)=(.*)", line):
            found[match[1]].append(match[2].strip())
    return found


def _verified(root: Path, units: list[Path]) -> Iterator[str]:
    """As the system manager reads them; it exits with 0 on unknown keys, so its words count."""
    with tempfile.TemporaryDirectory() as folder:
        # A root of its own, with this host's units, and the programs that are installed later.
        shutil.copytree(
            "/usr/lib/systemd/system", Path(folder, "usr/lib/systemd/system"), symlinks=True
        )
        for name in ("opt/stt/venv/bin/uvicorn", "usr/bin/nvidia-smi", "usr/bin/nvidia-modprobe"):
            Path(folder, name).parent.mkdir(parents=True, exist_ok=True)
            Path(folder, name).touch(mode=0o755)
        there = Path(folder, "etc/systemd/system")
        there.mkdir(parents=True)
        for unit in units:
            shutil.copy(root / unit, there)
        command = [str(engines.path("systemd-analyze")), "verify", "--man=no", f"--root={folder}"]
        command += [unit.name for unit in units]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        said = (done.stdout + done.stderr).replace(f"{there}/", "").splitlines()
        yield from (f"{FOLDER}/{line}" for line in said)
        if done.returncode and not said:
            yield f"{FOLDER}: systemd-analyze verify ends with {done.returncode}"


def _exposed(root: Path, unit: Path) -> Iterator[str]:
    done = subprocess.run(
        [engines.path("systemd-analyze"), "security", "--offline=yes", "--no-pager", root / unit],
        capture_output=True,
        text=True,
        check=False,
    )
    score = re.search(r"Overall exposure level for \S+: ([\d.]+)", done.stdout)
    if score is None:
        yield f"{unit}: systemd-analyze security says no score: {done.stderr.strip()}"
    elif float(score[1]) > MOST_EXPOSURE:
        yield f"{unit}: exposure {score[1]}, at most {MOST_EXPOSURE} is allowed"


def _secret(file: Path, shown: Path) -> Iterator[str]:
    for line in file.read_text().splitlines():
        if match := re.match(r"(API_KEYS|FALLBACK_API_KEY|METRICS_KEYS)=\S", line):
            yield f"{shown}: {match[1]} belongs into a file of its own, which can change"


def _kept(
    unit: dict[str, list[str]], tier: str, port: int, settings: list[TierConfig]
) -> Iterator[str]:
    """What a tier needs of its unit."""
    command = COMMAND.format(tier=tier, port=port)
    if unit["ExecStart"] != [command]:
        yield f"ExecStart is not {command}"
    if f"CONFIG_PATH=/opt/stt/stt_{tier}.env" not in unit["Environment"]:
        yield f"CONFIG_PATH is not /opt/stt/stt_{tier}.env"
    for name, (value, reason) in WANTED.items():
        if unit[name] != [value]:
            yield f"{name} has to be {value!r}, so that {reason}"
    for name, who in UNWANTED.items():
        if unit[name]:
            yield f"{name}: {who} would fail"
    for config in settings:
        if _seconds(unit["TimeoutStopSec"]) <= config.drain_timeout_s:
            yield f"TimeoutStopSec is not longer than DRAIN_TIMEOUT_S, {config.drain_timeout_s:g}"
    if _seconds(unit["WatchdogSec"]) == 0:
        yield "WatchdogSec: an event loop that hangs would not be noticed"
    if tier == "fallback" and unit["IPAddressDeny"] != ["any"]:
        yield "IPAddressDeny has to be 'any': primaries are named one by one"


def _seconds(values: list[str]) -> float:
    """Of a time without a unit; 0 of any other."""
    return float(values[0]) if len(values) == 1 and re.fullmatch(r"[\d.]+", values[0]) else 0.0


def _linted(root: Path, script: Path) -> Iterator[str]:
    done = subprocess.run(
        [engines.path("shellcheck"), "--format=gcc", script],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )
    yield from (done.stdout + done.stderr).splitlines()
