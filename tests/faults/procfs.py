"""What the kernel knows of processes and connections. Linux only, as the service is."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")
ESTABLISHED = "01"
_PAGE = os.sysconf("SC_PAGE_SIZE")


def tree(pid: int) -> list[int]:
    """A process and all below it that are there now."""
    found = [pid]
    for parent in found:
        with suppress(FileNotFoundError, ProcessLookupError):
            for task in Path(f"/proc/{parent}/task").iterdir():
                with suppress(FileNotFoundError, ProcessLookupError):
                    found += map(int, (task / "children").read_text().split())
    return found


def alive(pid: int) -> bool:
    """Whether it runs; one that has ended and is not waited for does not."""
    try:
        return _stat(pid)[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def resident(pid: int) -> int:
    """Bytes of memory of a process and all below it."""
    total = 0
    for each in tree(pid):
        with suppress(FileNotFoundError, ProcessLookupError):
            total += int(Path(f"/proc/{each}/statm").read_text().split()[1]) * _PAGE
    return total


def cpu_seconds(pid: int) -> float:
    """Processor time of a process and all below it, those that have ended included."""
    ticks = 0
    for each in tree(pid):
        with suppress(FileNotFoundError, ProcessLookupError):
            ticks += sum(map(int, _stat(each)[11:15]))
    return ticks / _TICKS


def descriptors(pid: int) -> int:
    """Open files and sockets of a process."""
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def _stat(pid: int) -> list[str]:
    # The second field is the name in parentheses, which may hold spaces.
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


@dataclass(frozen=True)
class Queues:
    """Bytes of one end of a connection: written and not acknowledged, come and not read."""

    unsent: int
    unread: int


Ends = tuple[int, int]


def connections() -> dict[Ends, Queues]:
    """Of all connections that are open both ways, by the port of the end and that of its peer."""
    found = {}
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, local, remote, state, sizes, *_ = line.split()
        if state == ESTABLISHED:
            unsent, unread = sizes.split(":")
            ends = (int(local[-4:], 16), int(remote[-4:], 16))
            found[ends] = Queues(int(unsent, 16), int(unread, 16))
    return found


def taken(sent: int, ends: Ends, table: dict[Ends, Queues]) -> int:
    """Of the bytes that this end has written, those that the program at the other end has read.

    Args:
        sent: bytes written.
        table: from `connections`.

    Returns:
        0 once the connection is closing, when nobody can tell any more.
    """
    here, there = table.get(ends), table.get(ends[::-1])
    return sent - here.unsent - there.unread if here and there else 0
