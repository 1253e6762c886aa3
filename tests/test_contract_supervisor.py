"""What systemd hears of a tier that it started."""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from fakes import PATIENCE, FakeEngine
from running import Tiers, fallback_config, until
from stt_cascade.http.supervisor import Supervisor


class Manager:
    """Stands in systemd's place: what it was told, in order."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(f"\0{address[1:]}" if address.startswith("@") else address)
        self._socket.settimeout(PATIENCE)

    def hear(self) -> dict[str, str]:
        """The next message."""
        lines = self._socket.recv(4096).decode().splitlines()
        return dict(line.split("=", 1) for line in lines)

    def hear_until(self, name: str, value: str) -> list[dict[str, str]]:
        """All messages up to the one that says this."""
        give_up = time.monotonic() + PATIENCE
        heard = [self.hear()]
        while heard[-1].get(name) != value:
            assert time.monotonic() < give_up, f"it never said {name}={value}"
            heard.append(self.hear())
        return heard

    def close(self) -> None:
        self._socket.close()


@pytest.fixture(params=["a file", "abstract"])
def manager(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Manager]:
    """It started this process, with a watchdog of 0.3 s."""
    name = f"@stt-{secrets.token_hex(8)}" if request.param == "abstract" else str(tmp_path / "n")
    manager = Manager(name)
    monkeypatch.setenv("NOTIFY_SOCKET", name)
    monkeypatch.setenv("WATCHDOG_USEC", "300000")
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    yield manager
    manager.close()


def test_systemd_hears_that_a_tier_is_ready_when_it_is_and_is_asked_for_time_before(
    tiers: Tiers, manager: Manager
) -> None:
    engine = FakeEngine(loads=threading.Event())
    tier = tiers.run(fallback_config(), engine, wait=False)
    heard = [manager.hear() for _ in range(4)]
    assert {"STATUS": "loading"} in heard
    assert [each for each in heard if "EXTEND_TIMEOUT_USEC" in each]
    assert not [each for each in heard if "READY" in each or "WATCHDOG" in each]
    assert tier.get("/v1/ready").status_code == 503
    engine.let_go()
    manager.hear_until("READY", "1")
    assert tier.get("/v1/ready").status_code == 200


def test_the_watchdog_is_fed_except_while_an_inference_is_stuck(
    tiers: Tiers, manager: Manager
) -> None:
    engine = FakeEngine(holds=threading.Event())
    tier = tiers.run(fallback_config(infer_timeout_s=0.5, wedged_exit_s=600), engine)
    manager.hear_until("READY", "1")
    manager.hear_until("WATCHDOG", "1")
    manager.hear_until("WATCHDOG", "1")

    tier.begin(language="en")
    manager.hear_until("STATUS", "wedged")
    assert tier.get("/v1/health").status_code == 503
    oldest = "stt_oldest_inference_seconds"
    until(lambda: tier.metric(oldest) > 1.5, "it is stuck for several meals")
    engine.let_go()

    assert manager.hear_until("STATUS", "ready") == [{"STATUS": "ready"}]
    manager.hear_until("WATCHDOG", "1")


def test_a_stop_is_announced_with_the_time_that_it_may_take(tiers: Tiers, manager: Manager) -> None:
    tier = tiers.run(fallback_config(drain_timeout_s=120))
    manager.hear_until("READY", "1")
    tier.service.drain()
    told = manager.hear_until("STOPPING", "1")[-1]
    assert int(told["EXTEND_TIMEOUT_USEC"]) > 120_000_000


def test_another_process_s_watchdog_is_not_fed(manager: Manager) -> None:
    other = Supervisor(
        {"NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": "3000", "WATCHDOG_PID": "1"}
    )

    async def scenario() -> None:
        telling = asyncio.create_task(other.keep_telling(lambda: "ready"))
        await asyncio.sleep(0)  # its first words
        telling.cancel()

    asyncio.run(scenario())
    other.ready()
    assert [each for each in manager.hear_until("READY", "1") if "WATCHDOG" in each] == []


def test_without_systemd_nobody_is_told_and_nothing_waits() -> None:
    alone = Supervisor({})
    with capture_logs() as lines:
        alone.ready()
        alone.stopping(30)
        asyncio.run(alone.keep_telling(lambda: "ready"))
    assert lines == []


def test_a_tier_outlives_a_manager_that_is_gone(
    tiers: Tiers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "gone"))
    with capture_logs() as lines:
        tier = tiers.run(fallback_config())
        assert tier.transcribe().status_code == 200
    assert [line for line in lines if line["event"] == "systemd cannot be told"]
