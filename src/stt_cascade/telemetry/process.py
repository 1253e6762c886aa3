"""Resources of this process and its children, and returning free memory to the system."""

from __future__ import annotations

import ctypes
from typing import Any

import psutil

# glibc's; other C libraries have none, and give back more by themselves.
_malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)


def snapshot() -> dict[str, Any]:
    """The process's part of the JSON snapshot.

    Returns:
        `rss_mb` in units of 1,048,576 bytes and `cpu_s`, of this process and its decoding
        processes; `descriptors` and `threads` of this one.
    """
    this = psutil.Process()
    rss, cpu = 0, 0.0
    for process in (this, *this.children()):
        try:
            rss += process.memory_info().rss
            times = process.cpu_times()
        except (psutil.NoSuchProcess, psutil.ZombieProcess):
            continue  # it ended meanwhile
        cpu += times.user + times.system
    return {
        "rss_mb": round(rss / 1_048_576, 1),
        "cpu_s": round(cpu, 2),
        "descriptors": this.num_fds(),
        "threads": this.num_threads(),
    }


def trim() -> None:
    """Return free memory to the system: glibc keeps what a long clip took."""
    if _malloc_trim is not None:
        _malloc_trim(0)
