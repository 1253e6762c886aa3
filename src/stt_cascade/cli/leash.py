"""Run a command that dies with the process that started it.

`python -m stt_cascade.cli.leash PARENT COMMAND...`, PARENT being that process's id.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def tie_to(parent: int) -> None:
    """Have the kernel kill this process as soon as its parent is gone, whatever ended that.

    A parent that is killed with SIGKILL, or runs out of memory, can tell nobody; only the kernel
    still can. The order outlives `exec`, so that this wrapper may become the command. SIGKILL,
    because nobody is left to insist when a child ignores something milder.

    It is the parent's *thread* whose end counts: start the child from one that lives on. Other
    systems than Linux have no such call; there the parent's own clean-up must do.

    Raises:
        OSError: the kernel refused.
    """
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    if os.getppid() != parent:
        sys.exit(1)  # it went before the kernel had been told


def main() -> None:
    parent, *command = sys.argv[1:]
    tie_to(int(parent))
    os.execv(command[0], command)  # noqa: S606  # a list, never a shell


if __name__ == "__main__":
    main()
