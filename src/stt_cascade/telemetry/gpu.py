"""The GPU's load and memory, through NVML."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from typing import Any

import structlog

log = structlog.get_logger("stt.gpu")
MB = 1024 * 1024


def installed() -> bool:
    """Whether there is what asks NVML, `nvidia-ml-py`."""
    try:
        import pynvml  # noqa: F401
    except ImportError:
        return False
    return True


@dataclass(frozen=True, slots=True)
class Reading:
    """One look at a GPU."""

    utilization_pct: float
    mem_used_mb: float
    mem_total_mb: float

    def as_dict(self) -> dict[str, float]:
        return asdict(self)


class Gpu:
    """An NVIDIA GPU. `open` gives None where there is none, or no NVML to ask."""

    def __init__(self, nvml: Any, handle: Any) -> None:
        self._nvml = nvml
        self._handle = handle
        self._lost = False

    @classmethod
    def open(cls, index: int) -> Gpu | None:
        """The GPU with that index.

        Source: NVML API, nvmlInit and nvmlDeviceGetHandleByIndex, by `nvidia-ml-py`.
        """
        try:
            import pynvml
        except ImportError:
            return None
        try:
            pynvml.nvmlInit()
            return cls(pynvml, pynvml.nvmlDeviceGetHandleByIndex(index))
        except pynvml.NVMLError as error:
            log.debug("no GPU to watch", reason=str(error))
            return None

    def read(self) -> Reading | None:
        """Its state now; None, and one log line, once it cannot be read."""
        try:
            memory = self._nvml.nvmlDeviceGetMemoryInfo(self._handle)
            load = self._nvml.nvmlDeviceGetUtilizationRates(self._handle)
        except self._nvml.NVMLError as error:
            if not self._lost:
                log.warning("the GPU cannot be read", reason=str(error))
            self._lost = True
            return None
        self._lost = False
        return Reading(float(load.gpu), memory.used / MB, memory.total / MB)

    def others(self) -> int:
        """How many other processes compute on it; in a container, those outside are not seen.

        Source: NVML API, nvmlDeviceGetComputeRunningProcesses.
        """
        try:
            running = self._nvml.nvmlDeviceGetComputeRunningProcesses(self._handle)
        except self._nvml.NVMLError as error:
            log.debug("the GPU's processes cannot be read", reason=str(error))
            return 0
        return sum(process.pid != os.getpid() for process in running)

    def close(self) -> None:
        self._nvml.nvmlShutdown()
