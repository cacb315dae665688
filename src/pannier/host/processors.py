"""Whether a process wants processors: it runs, or waits until it may."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable


class ProcessorDemand:
    """How much one process wants of the processors, from one question to the next.

    Args:
        pid: of the process.
    """

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._asked, self._wanted = time.monotonic_ns(), self._read()

    def share(self) -> float:
        """The part of the time since the last call in which its busiest thread ran or waited for a processor; 0 if that
        cannot be told."""
        before, wanted = self._asked, self._wanted
        self._asked, self._wanted = time.monotonic_ns(), self._read()
        more = (self._wanted[thread] - wanted.get(thread, 0) for thread in self._wanted)
        return max(more, default=0) / max(self._asked - before, 1)

    def _read(self) -> dict[str, int]:
        """Nanoseconds by thread, since its beginning."""
        folder = f"/proc/{self._pid}/task"
        try:
            return dict(self._times(folder, os.listdir(folder)))
        except (OSError, ValueError):  # it has ended, or the kernel does not tell
            return {}

    def _times(self, folder: str, threads: Iterable[str]) -> Iterable[tuple[str, int]]:
        for thread in threads:
            try:
                with open(f"{folder}/{thread}/schedstat", encoding="ascii") as file:
                    ran, waited, _slices = map(int, file.read().split())
            except FileNotFoundError:  # the thread has ended
                continue
            yield thread, ran + waited
