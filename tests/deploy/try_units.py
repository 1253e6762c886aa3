"""`make try-units`: docs/deploy.md on hosts with systemd, from the checkout to what may go wrong.

The hosts are containers (`machine.py`) without a network but each other; the packages are brought
before, with their hashes, into `.engines/wheels`. The tiers run Whisper base.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conftest import model
from deploy import machine as machines
from deploy.machine import Machine, machine
from pages import ROOT, named, page_command
from stt_cascade.audio.decode import decode
from tones import wav

WHEELS = ROOT / ".engines/wheels"
IP, SHELL = "/usr/sbin/ip", "/bin/bash"
TIERS = ("stt-fallback.service", "stt-primary.service")
METRICS = "http://127.0.0.1:8081/v1/metrics"
AUTHORIZED = '-H "Authorization: Bearer $(head -n 1 /opt/stt/keys/primary/api.keys)"'
READY = "curl -sf http://127.0.0.1:8081/v1/ready"


@pytest.fixture(scope="module", autouse=True)
def packages() -> None:
    """Brings the locked packages, once."""
    if why := machines.unable():
        pytest.skip(why)
    locked = [ROOT / f"requirements-{kind}.txt" for kind in ("cpu", "build")]
    digest = hashlib.sha256(b"".join(each.read_bytes() for each in locked)).hexdigest()
    done = WHEELS / digest
    if not done.exists():
        line = page_command("What to keep", "pip download", "docs/resilience.md")
        typed_here(
            line.replace("pip", f"{sys.executable} -m pip", 1).replace("wheels", str(WHEELS))
        )
        done.touch()


def typed_here(line: str) -> None:
    subprocess.run([SHELL, "-c", line], cwd=ROOT, check=True)


def typed(host: Machine, line: str, *, check: bool = True) -> subprocess.CompletedProcess[str]:
    """What the page says, typed by root in the checkout."""
    alone = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(WHEELS)}
    return host.run(f"cd {ROOT} && {line.replace('sudo ', '')}", check=check, environment=alone)


def bring_model(host: Machine) -> None:
    typed(host, page_command("What to keep", "sudo mkdir", "docs/resilience.md"))
    line = page_command("What to keep", "sudo cp", "docs/resilience.md")
    typed(host, line.replace("cp -r", "cp -rL"))  # here, `models` may be a link


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """A host that has no network; both tiers, restored from what is kept, and started."""
    folder = model("base").parent
    stt = Path(sys.executable).with_name("stt")
    pull = page_command("What to keep", "stt models pull", "docs/resilience.md")
    verify = page_command("What to keep", "stt models verify", "docs/resilience.md")
    for line in (pull, verify):
        typed_here(line.replace("stt", str(stt), 1) + f" --root {folder}")
    with machine(tmp_path_factory.mktemp("host"), "stt-host") as host:
        bring_model(host)
        install = page_command("What to keep", "sudo env PIP_NO_INDEX=1", "docs/resilience.md")
        typed(host, install.replace("$PWD/wheels", str(WHEELS)))
        pulled = typed(host, page_command("systemd", "sudo /opt/stt/venv/bin/stt models pull base"))
        assert "base" in pulled.stdout
        typed(host, page_command("systemd", "sudo systemctl start stt.target"))
        yield host


def transcribed(host: Machine, line: str) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(typed(host, line).stdout)
    return answer


def settled(host: Machine, unit: str) -> None:
    """It runs, without a change of the test's."""
    host.run(f"rm -rf /run/systemd/system/{unit}.d; systemctl daemon-reload")
    host.run(f"systemctl reset-failed {unit}; systemctl restart {unit}")


def set_option(host: Machine, unit: str, option: str) -> None:
    host.run(f"mkdir -p /run/systemd/system/{unit}.d")
    host.run(f"printf '[Service]\\n{option}\\n' > /run/systemd/system/{unit}.d/test.conf")
    host.run("systemctl daemon-reload")


def test_both_tiers_run_when_the_start_comes_back(host: Machine) -> None:
    status = typed(host, page_command("systemd", "systemctl status")).stdout
    assert status.count("Active: active (running)") == 2
    assert status.count('Status: "ready"') == 2
    assert host.said(READY) == '{"ready":true,"state":"ready"}'
    for unit in (*TIERS, "stt.target"):
        assert host.said(f"systemctl is-enabled {unit}") == "enabled"
    assert TIERS[0] in host.said("systemctl list-dependencies --plain multi-user.target")


def test_real_speech_is_heard_by_both_tiers_in_their_sandboxes(host: Machine) -> None:
    line = page_command("systemd", "curl -s http://127.0.0.1:8081/v1/transcribe")
    answer = transcribed(host, line)
    assert "ask not what your country can do for you" in answer["text"]
    assert answer["routing"]["tier"] == "primary"
    answer = transcribed(host, line.replace("jfk", "bad-line"))
    assert answer["routing"]["fallback_used"] is True, answer
    journal = typed(host, page_command("systemd", "journalctl")).stdout
    assert '"path": "/v1/transcribe"' in journal
    # CACHE_DIR can be written to: the next start need not prepare anew.
    assert host.said("ls /var/cache/stt")


def test_what_a_tier_may_do_is_little(host: Machine) -> None:
    said = typed(host, page_command("systemd", "systemd-analyze security")).stdout
    assert float(said.split("exposure level for stt-primary.service: ")[1].split()[0]) <= 2.5
    assert re.search(r"✓ SystemCallFilter=~@debug\b", said)  # so no process traces another
    for unit, other in (TIERS, TIERS[::-1]):
        main = host.property(unit, "MainPID")
        status = host.said(f"cat /proc/{main}/status")
        assert "NoNewPrivs:\t1" in status
        assert "Seccomp:\t2" in status
        assert "CapEff:\t0000000000000000" in status
        inside = f"nsenter --mount --target {main} setpriv --reuid=stt --regid=stt --clear-groups"
        own, others = (name[4:-8] for name in (unit, other))
        assert host.said(f"{inside} cat /opt/stt/keys/{own}/api.keys")
        assert host.run(f"{inside} cat /opt/stt/keys/{others}/api.keys", check=False).returncode
        for folder in ("/opt/stt", f"/opt/stt/keys/{own}", "/etc", "/var/lib", "/usr/lib"):
            assert host.run(f"{inside} touch {folder}/x", check=False).returncode, folder


def test_a_key_is_added_and_removed_without_a_restart(host: Machine) -> None:
    before = host.property(TIERS[1], "MainPID")
    keys = "/opt/stt/keys/primary/api.keys"
    first = host.said(f"cat {keys}")
    assert host.said(f"stat -c '%U:%G %a' {keys}") == "root:stt 640"
    host.run(f"truncate -s -1 {keys}")  # an editor may leave out the end of the line
    typed(host, page_command("systemd", "sudo cp -p"))
    typed(host, page_command("systemd", "sudo sed -i"))
    typed(host, page_command("systemd", "openssl rand"))
    typed(host, page_command("systemd", "sudo mv"))
    assert host.said(f"stat -c '%U:%G %a' {keys}") == "root:stt 640"
    old, new = host.said(f"cat {keys}").splitlines()
    assert old == first

    host.until(asks(new))
    host.run(asks(old))
    host.run(f"cp -p {keys} {keys}.new; echo {new} > {keys}.new; mv {keys}.new {keys}")
    host.until(f"! {asks(old)}")
    host.run(asks(new))
    assert host.property(TIERS[1], "MainPID") == before


def asks(key: str) -> str:
    """Fails if this key does not open the service."""
    header = f"Authorization: Bearer {key}"
    status = f"curl -s -o /dev/null -w '%{{http_code}}' -H '{header}' http://127.0.0.1:8081/x"
    return f"{status} | grep -q 404"


def test_nobody_but_this_host_reaches_the_fallback_unless_named(host: Machine) -> None:
    host.run("ip address add 198.51.100.1/32 dev lo")
    there = "curl -s --max-time 2 http://198.51.100.1:8082/v1/ready"
    assert host.run(there, check=False).returncode
    main = host.property(TIERS[0], "MainPID")
    host.run(f"systemctl set-property --runtime {TIERS[0]} IPAddressAllow=198.51.100.1")
    assert "ready" in host.said(there)
    assert host.property(TIERS[0], "MainPID") == main


def test_a_stop_answers_what_has_begun(host: Machine) -> None:
    speech = decode((ROOT / "samples/jfk.flac").read_bytes(), max_seconds=60)
    (host.root / "var/long.wav").write_bytes(wav(np.tile(speech, 8)))
    line = page_command("systemd", "curl -s http://127.0.0.1:8081/v1/transcribe")
    line = line.replace("samples/jfk.flac", "/var/long.wav")
    typed(host, f"({line} > /var/answered) > /dev/null 2>&1 &")
    host.until("curl -s http://127.0.0.1:8081/metrics | grep -q 'stt_in_flight 1.0'")
    host.run(f"systemctl stop {TIERS[1]}")
    answered = json.loads((host.root / "var/answered").read_text())
    assert answered["text"].count("fellow Americans") > 1
    assert host.property(TIERS[1], "Result") == "success"
    settled(host, TIERS[1])


def test_a_process_that_hangs_is_killed_and_started_again(host: Machine) -> None:
    set_option(host, TIERS[1], "WatchdogSec=3")
    host.run(f"systemctl restart {TIERS[1]}")
    main = host.property(TIERS[1], "MainPID")
    host.run(f"kill -STOP {main}")
    host.until(f"journalctl -u {TIERS[1]} | grep -q 'Watchdog timeout'")
    host.until(READY)
    assert host.property(TIERS[1], "MainPID") not in (main, "0")
    settled(host, TIERS[1])


def test_an_inference_that_never_ends_is_ended_with_70_and_the_tier_started_again(
    host: Machine,
) -> None:
    """As far as can be seen here: an inference that takes longer than it may is one."""
    host.run("printf 'INFER_TIMEOUT_S=0.01\\nWEDGED_EXIT_S=0\\n' >> /opt/stt/stt_primary.env")
    settled(host, TIERS[1])
    line = page_command("systemd", "curl -s http://127.0.0.1:8081/v1/transcribe")
    typed(host, line, check=False)
    host.until(f"journalctl -u {TIERS[1]} | grep -q 'status=70'")
    host.run("sed -i '/^INFER_TIMEOUT_S/d; /^WEDGED_EXIT_S/d' /opt/stt/stt_primary.env")
    host.until(READY)
    assert int(host.property(TIERS[1], "NRestarts")) >= 1
    settled(host, TIERS[1])


def test_wrong_settings_leave_a_unit_down_until_they_are_mended(host: Machine) -> None:
    host.run("echo BEAM_SICE=2 >> /opt/stt/stt_primary.env")
    wrong = typed(
        host, page_command("systemd", "sudo /opt/stt/venv/bin/stt config check"), check=False
    )
    assert wrong.returncode
    assert "did you mean BEAM_SIZE?" in wrong.stdout + wrong.stderr
    typed(host, page_command("systemd", "sudo systemctl restart stt-primary"), check=False)
    host.until(f"systemctl is-failed --quiet {TIERS[1]}")
    assert host.property(TIERS[1], "ExecMainStatus") == "78"
    assert "did you mean BEAM_SIZE?" in host.said(f"journalctl -u {TIERS[1]} -n 40")
    host.run("sed -i '/BEAM_SICE/d' /opt/stt/stt_primary.env")
    typed(host, page_command("systemd", "sudo systemctl start stt-primary"))
    host.run(READY)


def test_the_lines_that_are_left_out_would_do_harm(host: Machine) -> None:
    lines = named("docs/deploy.md", "## systemd", 1)
    assert lines.pop() == "PrivateDevices=yes"  # nothing shows that without a GPU
    for line in lines:
        set_option(host, TIERS[1], line)
        host.run(f"systemctl reset-failed {TIERS[1]}")
        started = host.run(f"systemctl restart {TIERS[1]}", check=False).returncode == 0
        asked = f"curl -s -o /dev/null -w '%{{http_code}}' {AUTHORIZED} {METRICS}"
        assert not started or host.said(asked) == "500", line
    settled(host, TIERS[1])


def test_a_new_version_is_installed_and_taken_back(host: Machine) -> None:
    version = "readlink /opt/stt/venv"
    first = host.said(version)
    keys = host.said("cat /opt/stt/keys/*/*")
    again = typed(host, page_command("systemd", "sudo sh deploy/systemd/install.sh"))
    if "is installed already" in again.stdout:  # a clean checkout; as if it had changed
        clone = f"git clone --quiet --no-hardlinks {ROOT} /var/checkout"
        typed(host, f"{clone} && cd /var/checkout && touch new && sh deploy/systemd/install.sh")
    second = host.said(version)
    assert second != first
    typed(host, page_command("systemd", "sudo systemctl restart stt-fallback"))
    typed(host, page_command("systemd", "sudo systemctl restart stt-primary"))
    running = "cat /proc/$(systemctl show --value -p MainPID stt-primary)/maps"
    assert second in host.said(running)
    typed(host, page_command("systemd", "sudo sh deploy/systemd/install.sh --rollback"))
    assert host.said(version) == first
    assert first in host.said(running)
    host.run(READY)
    assert host.said("cat /opt/stt/keys/*/*") == keys


def test_the_tiers_work_together_from_two_hosts(
    host: Machine, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with (
        machine(tmp_path_factory.mktemp("a"), "stt-a") as primary,
        machine(tmp_path_factory.mktemp("b"), "stt-b") as fallback,
    ):
        for each in (primary, fallback):  # what was installed once need not be again
            venvs = each.root / "opt/stt/venvs"
            shutil.copytree(host.root / "opt/stt/venvs", venvs, symlinks=True)
        link = [IP, "link", "add", "left", "netns", str(primary.leader), "type", "veth"]
        subprocess.run([*link, "peer", "name", "right", "netns", str(fallback.leader)], check=True)
        primary.run("ip address add 192.0.2.10/24 dev left && ip link set left up")
        fallback.run("ip address add 192.0.2.20/24 dev right && ip link set right up")
        for each in (primary, fallback):
            bring_model(each)
        typed(fallback, page_command("Two hosts", "sudo sh deploy/systemd/install.sh fallback"))
        typed(fallback, page_command("Two hosts", "sudo /opt/stt/venv/bin/stt models pull"))
        typed(fallback, page_command("Two hosts", "sudo systemctl start stt.target"))
        ready = page_command("Two hosts", "curl -s http://192.0.2.20:8082/v1/ready")
        assert typed(primary, ready.replace("-s", "-s --max-time 3"), check=False).returncode
        typed(fallback, page_command("Two hosts", "sudo systemctl set-property"))
        typed(fallback, page_command("Two hosts", "sudo head"))
        typed(primary, page_command("Two hosts", "sudo sh deploy/systemd/install.sh primary"))
        typed(primary, page_command("Two hosts", "sudo /opt/stt/venv/bin/stt models pull"))
        carried = (fallback.root / f".{ROOT}/fallback.key").read_text()
        (primary.root / f".{ROOT}/fallback.key").write_text(carried)
        typed(primary, page_command("Two hosts", "sudo install"))
        typed(primary, page_command("Two hosts", "sudo sed"))
        typed(primary, page_command("Two hosts", "sudo /opt/stt/venv/bin/stt config check"))
        typed(primary, page_command("Two hosts", "sudo systemctl start stt.target"))
        assert '"ready":true' in typed(primary, ready).stdout
        line = page_command("Two hosts", "curl -s http://127.0.0.1:8081/v1/transcribe")
        assert transcribed(primary, line)["routing"]["fallback_used"] is True


def test_a_stop_of_both_ends_the_primary_first(host: Machine) -> None:
    typed(host, page_command("systemd", "sudo systemctl stop"))
    for unit in TIERS:
        assert host.property(unit, "ActiveState") == "inactive"
        assert host.property(unit, "Result") == "success"
    journal = host.said(f"journalctl -o cat -u {TIERS[0]} -u {TIERS[1]} -n 200")
    assert journal.rindex("Stopped stt-primary") < journal.rindex("Stopping stt-fallback")
