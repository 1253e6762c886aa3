"""The GPU's load and memory, through NVML."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from typing import Any

import structlog

from stt_cascade.engine import cuda

log = structlog.get_logger("stt.gpu")
MB = 1024 * 1024
FULL_UUID = len("GPU-01234567-89ab-cdef-0123-456789abcdef")


def installed() -> bool:
    """Whether there is what asks NVML, `nvidia-ml-py`."""
    try:
        import pynvml  # noqa: F401
    except ImportError:
        return False
    return True


@dataclass(frozen=True, slots=True)
class Reading:
    """One look at a GPU; None for what it does not report, such as its load in MIG mode."""

    utilization_pct: float | None
    mem_used_mb: float | None
    mem_total_mb: float | None

    def as_dict(self) -> dict[str, float | None]:
        return asdict(self)


class Gpu:
    """An NVIDIA GPU. `open` gives None where there is none, or no NVML to ask."""

    def __init__(self, nvml: Any, handle: Any) -> None:
        self._nvml = nvml
        self._handle = handle
        self._lost: set[str] = set()

    @classmethod
    def open(cls, index: int) -> Gpu | None:
        """The GPU with that index among those that CUDA may see, which NVML knows nothing of.

        Source: NVML API, by `nvidia-ml-py`.
        """
        try:
            import pynvml
        except ImportError:
            return None
        names = cuda.visible()
        try:
            name = str(index) if names is None else names[index]
            pynvml.nvmlInit()
        except (IndexError, pynvml.NVMLError) as error:
            log.debug("no GPU to watch", reason=str(error))
            return None
        try:
            return cls(pynvml, _handle(pynvml, name))
        except (LookupError, pynvml.NVMLError) as error:
            log.warning("the GPU cannot be watched", gpu=name, reason=str(error))
            pynvml.nvmlShutdown()
            return None

    def read(self) -> Reading | None:
        """Its state now. One log line tells what cannot be read, from then on; None: nothing can.

        Source: NVML API, nvmlDeviceGetUtilizationRates ("not supported" in MIG mode) and
        nvmlDeviceGetMemoryInfo.
        """
        failed: dict[str, str] = {}

        def ask(what: str, question: Any) -> Any:
            try:
                return question(self._handle)
            except self._nvml.NVMLError as error:
                failed[what] = str(error)
                return None

        load = ask("utilization", self._nvml.nvmlDeviceGetUtilizationRates)
        memory = ask("memory", self._nvml.nvmlDeviceGetMemoryInfo)
        if failed.keys() - self._lost:
            log.warning("the GPU cannot be read", **failed)
        self._lost = set(failed)
        if load is None and memory is None:
            return None
        return Reading(
            None if load is None else float(load.gpu),
            None if memory is None else memory.used / MB,
            None if memory is None else memory.total / MB,
        )

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


def _handle(nvml: Any, name: str) -> Any:
    """NVML's handle of the GPU that CUDA knows by that index or UUID.

    Raises:
        LookupError: it cannot be told which one it is.
        NVMLError: there is none.
    """
    if name.isdigit():
        order = os.environ.get("CUDA_DEVICE_ORDER")
        if order != "PCI_BUS_ID" and nvml.nvmlDeviceGetCount() > 1:
            raise LookupError(
                f"CUDA_DEVICE_ORDER={order} counts GPUs as NVML does not: unset it, or list UUIDs "
                f"in {cuda.VISIBLE}"
            )
        return nvml.nvmlDeviceGetHandleByIndex(int(name))
    if name.startswith("MIG-") or len(name) == FULL_UUID:
        return nvml.nvmlDeviceGetHandleByUUID(name)
    handles = map(nvml.nvmlDeviceGetHandleByIndex, range(nvml.nvmlDeviceGetCount()))
    found = [each for each in handles if nvml.nvmlDeviceGetUUID(each).startswith(name)]
    if len(found) != 1:
        raise LookupError(f"{len(found)} GPUs have a UUID that begins so")
    return found[0]
