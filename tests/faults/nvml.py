"""A GPU that is not there, as NVML would tell of it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

MB = 1024 * 1024
TOTAL_MB, WEIGHTS_MB = 24_576, 1_500


class Nvml(ModuleType):
    """`pynvml`, as far as it is used."""

    class NVMLError(Exception):
        pass

    def __init__(self, mb_each: int, slots: int, running: Callable[[], int]) -> None:
        super().__init__("pynvml")
        self._used = WEIGHTS_MB + mb_each * slots
        self._slots = slots
        self._running = running

    def nvmlInit(self) -> None:
        pass

    def nvmlShutdown(self) -> None:
        pass

    def nvmlDeviceGetHandleByIndex(self, index: int) -> object:
        return index

    def nvmlDeviceGetMemoryInfo(self, handle: object) -> Any:
        return SimpleNamespace(used=self._used * MB, total=TOTAL_MB * MB)

    def nvmlDeviceGetComputeRunningProcesses(self, handle: object) -> list[Any]:
        return [SimpleNamespace(pid=os.getpid())]

    def nvmlDeviceGetUtilizationRates(self, handle: object) -> Any:
        return SimpleNamespace(gpu=round(100 * self._running() / self._slots), memory=0)


def pretend(mb_each: int, slots: int, running: Callable[[], int]) -> None:
    """From now on this process has a GPU.

    Args:
        mb_each: memory that each slot takes.
        running: how many of the slots compute.
    """
    sys.modules["pynvml"] = Nvml(mb_each, slots, running)
