"""GPU gauges: there with a GPU, absent without one, and gone when it is lost."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from structlog.testing import capture_logs

from fakes import PATIENCE, FakeEngine
from running import RunningTier, Tiers, until
from stt_cascade.telemetry import machine

GPU = {"stt_gpu_utilization_pct", "stt_gpu_mem_used_mb", "stt_gpu_mem_total_mb"}


def gauges(tier: RunningTier) -> set[str]:
    return {name for name, _ in tier.samples() if name.startswith("stt_gpu_")}


class FakeNvml(ModuleType):
    """`pynvml`, as far as it is used."""

    class NVMLError(Exception):
        pass

    def __init__(self, *, there: bool = True) -> None:
        super().__init__("pynvml")
        self.there = there
        self.mig = False
        self.index: int | None = None
        self.pids = [os.getpid()]
        self.open = 0
        self.asked = 0
        self.answers = threading.Event()
        self.answers.set()

    def nvmlInit(self) -> None:
        if not self.there:
            raise self.NVMLError("driver not loaded")
        self.open += 1

    def nvmlShutdown(self) -> None:
        self.open -= 1

    def nvmlDeviceGetHandleByIndex(self, index: int) -> object:
        self.index = index
        return self

    def nvmlDeviceGetMemoryInfo(self, handle: object) -> Any:
        if not self.there:
            raise self.NVMLError("GPU is lost")
        self.asked += 1
        assert self.answers.wait(PATIENCE)
        return SimpleNamespace(used=3 * 1024**3, total=24 * 1024**3)

    def nvmlDeviceGetComputeRunningProcesses(self, handle: object) -> list[Any]:
        return [SimpleNamespace(pid=pid) for pid in self.pids]

    def nvmlDeviceGetUtilizationRates(self, handle: object) -> Any:
        if not self.there:
            raise self.NVMLError("GPU is lost")
        if self.mig:
            raise self.NVMLError("Not Supported")
        return SimpleNamespace(gpu=37, memory=12)


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> FakeNvml:
    nvml = FakeNvml()
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    return nvml


@pytest.mark.parametrize(("pids", "warned"), [([], False), ([1, 2], True)])
def test_a_second_process_on_the_gpu_is_warned_of(
    tiers: Tiers, nvml: FakeNvml, pids: list[int], warned: bool
) -> None:
    nvml.pids += pids
    with capture_logs() as lines:
        tiers.fallback(FakeEngine(device="cuda"), device="cuda")
    found = [line for line in lines if "other processes use this GPU" in line["event"]]
    assert [line["processes"] for line in found] == ([2] if warned else [])


def test_a_gpu_has_its_gauges(tiers: Tiers, nvml: FakeNvml) -> None:
    tier = tiers.fallback(FakeEngine(device="cuda"), device="cuda", device_index=1)
    assert nvml.index == 1
    assert tier.metric("stt_gpu_utilization_pct") == 37
    assert tier.metric("stt_gpu_mem_used_mb") == 3072
    assert tier.metric("stt_gpu_mem_total_mb") == 24576
    assert tier.get("/v1/metrics").json()["gpu"] == {
        "utilization_pct": 37.0,
        "mem_used_mb": 3072.0,
        "mem_total_mb": 24576.0,
    }
    assert tier.get("/v1/health").json()["device"] == "cuda"
    tiers.stop()
    assert nvml.open == 0


def test_a_lost_gpu_loses_its_gauges_and_says_so_once(tiers: Tiers, nvml: FakeNvml) -> None:
    tier = tiers.fallback(device="cuda")
    nvml.there = False
    with capture_logs() as lines:
        assert gauges(tier) == set()
        assert gauges(tier) == set()
        assert tier.get("/v1/metrics").json()["gpu"] is None
    assert [line["log_level"] for line in lines if "GPU" in line["event"]] == ["warning"]
    assert tier.transcribe().status_code == 200
    nvml.there = True
    assert gauges(tier) == GPU


def test_what_a_gpu_in_mig_mode_does_not_tell_is_absent_alone(tiers: Tiers, nvml: FakeNvml) -> None:
    nvml.mig = True
    with capture_logs() as lines:
        tier = tiers.fallback(device="cuda")
        assert gauges(tier) == GPU - {"stt_gpu_utilization_pct"}
        assert gauges(tier) == GPU - {"stt_gpu_utilization_pct"}
    assert tier.get("/v1/metrics").json()["gpu"] == {
        "utilization_pct": None,
        "mem_used_mb": 3072.0,
        "mem_total_mb": 24576.0,
    }
    told = [line for line in lines if "GPU" in line["event"]]
    assert [line.get("utilization") for line in told] == ["Not Supported"]


def test_without_a_driver_there_are_no_gpu_gauges(tiers: Tiers, nvml: FakeNvml) -> None:
    nvml.there = False
    tier = tiers.fallback(device="cuda")
    assert gauges(tier) == set()
    assert tier.get("/v1/metrics").json()["gpu"] is None


def test_without_the_library_there_are_no_gpu_gauges(
    tiers: Tiers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert gauges(tiers.fallback(device="cuda")) == set()


@pytest.mark.parametrize(
    ("device", "runs_on", "library", "warned"),
    [
        ("cuda", "cuda", False, True),
        ("auto", "cuda", False, True),
        ("auto", "cpu", False, False),
        ("cpu", "cpu", False, False),
        ("cuda", "cuda", True, False),
    ],
)
def test_a_tier_on_a_gpu_says_what_its_gauges_lack(
    tiers: Tiers,
    nvml: FakeNvml,
    monkeypatch: pytest.MonkeyPatch,
    device: str,
    runs_on: str,
    library: bool,
    warned: bool,
) -> None:
    if not library:
        monkeypatch.setitem(sys.modules, "pynvml", None)
    with capture_logs() as lines:
        tiers.fallback(FakeEngine(device=runs_on), device=device)
    found = [line for line in lines if "nvidia-ml-py" in line["event"]]
    assert [line["log_level"] for line in found] == (["warning"] if warned else [])
    assert all("the extra gpu" in line["event"] for line in found)


@pytest.mark.parametrize(("runs_on", "found"), [("cpu", set()), ("cuda", GPU)])
def test_the_gauges_are_those_of_the_device_that_auto_has_chosen(
    tiers: Tiers, nvml: FakeNvml, runs_on: str, found: set[str]
) -> None:
    tier = tiers.fallback(FakeEngine(device=runs_on), device="auto")
    assert gauges(tier) == found
    assert (tier.get("/v1/metrics").json()["gpu"] is None) is (runs_on == "cpu")


def test_a_tier_on_the_cpu_asks_for_no_gpu(tiers: Tiers, nvml: FakeNvml) -> None:
    assert gauges(tiers.fallback(device="cpu")) == set()
    assert nvml.index is None


def test_a_driver_that_does_not_answer_stops_no_request_and_is_asked_once(
    tiers: Tiers, nvml: FakeNvml, monkeypatch: pytest.MonkeyPatch
) -> None:
    tier = tiers.fallback(device="cuda")
    asked = nvml.asked
    nvml.answers.clear()
    with ThreadPoolExecutor(4) as scrapers:
        scrapes = [scrapers.submit(tier.get, "/metrics") for _ in range(4)]
        until(lambda: nvml.asked > asked, "the driver is asked")
        assert tier.transcribe().status_code == 200
        assert tier.get("/v1/health").status_code == 200
        nvml.answers.set()
        assert all("stt_gpu_utilization_pct 37" in scrape.result().text for scrape in scrapes)

    nvml.answers.clear()
    monkeypatch.setattr(machine, "PATIENCE_S", 0.01)
    asked = nvml.asked
    with capture_logs() as lines:
        assert gauges(tier) == set()
        assert tier.get("/v1/metrics").json()["gpu"] is None
    assert nvml.asked == asked + 1
    assert [line["event"] for line in lines if "in time" in line["event"]] == [
        "the GPU and the processes cannot be read in time"
    ]
    nvml.answers.set()
    until(lambda: gauges(tier) == GPU, "the driver has answered")


@pytest.mark.parametrize("given", [None, "FASTEST_FIRST"])
@pytest.mark.process
def test_the_gpu_in_use_is_the_one_whose_gauges_are_read(given: str | None) -> None:
    """NVML counts by slots, and CUDA does so where it is told to; who says otherwise means it."""
    environment = {**os.environ, "CUDA_DEVICE_ORDER": given or ""}
    if given is None:
        del environment["CUDA_DEVICE_ORDER"]
    code = "import stt_cascade, os; print(os.environ['CUDA_DEVICE_ORDER'])"
    ran = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert ran.stdout.strip() == (given or "PCI_BUS_ID")
