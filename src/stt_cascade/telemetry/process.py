"""What this process and those below it take, for whoever watches it grow."""

from __future__ import annotations

from typing import Any

import psutil


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
