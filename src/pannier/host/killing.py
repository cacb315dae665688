"""The one place where processes of others are killed: never one that has got the number of another.

A process that was found in /proc, or in a control group, may have ended since, and its number may be another one's. A
pidfd always means the same process.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Collection
from contextlib import ExitStack, suppress
from typing import Protocol


class Kill(Protocol):
    """Kills processes; see :func:`kill`."""

    def __call__(self, pids: Collection[int], *, found: Callable[[], Collection[int]]) -> list[int]:
        """Kill those of ``pids`` that ``found`` names as well, and return their numbers."""
        ...


def kill(pids: Collection[int], *, found: Callable[[], Collection[int]]) -> list[int]:
    """Kill processes by SIGKILL, if they are still what they were found for. Blocks as long as ``found`` does.

    Each is held by a pidfd before ``found`` looks. Whoever has its number at that look is then either this very
    process, or a later one, and then the pidfd means one that has ended.

    Args:
        pids: the processes, as an earlier look has found them.
        found: looks again, and returns the numbers of those that are to be killed.

    Returns:
        The numbers of those that were killed.

    Raises:
        OSError: the kernel has no pidfd for one of them. What ``found`` raises.
    """
    with ExitStack() as stack:
        held: dict[int, int] = {}
        for pid in pids:
            with suppress(ProcessLookupError):
                held[pid] = os.pidfd_open(pid)
                stack.callback(os.close, held[pid])
        still = set(found()) if held else set()
        return [pid for pid in held if pid in still and _kill(held[pid])]


def _kill(pidfd: int) -> bool:
    try:
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True
