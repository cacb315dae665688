"""The ids of calls that were received and not yet answered, where a killed daemon's successor finds them.

The kernel hands each notification out once. The ids are stored in shared memory of a file on tmpfs:
no system call for each, and whatever was stored is there after a SIGKILL.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from pathlib import Path

_SLOTS = 4096
_BYTES = 8 * _SLOTS


class Pending:
    """One listener's file: 4096 unsigned 64-bit numbers, 0 for none.

    The first is the id that was received last, the others are what waits.
    """

    def __init__(self, path: Path) -> None:
        """Open the file at ``path``, or make it."""
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(fd, _BYTES)
            self._memory = mmap.mmap(fd, _BYTES)
        finally:
            os.close(fd)
        self._slots = memoryview(self._memory).cast("Q")
        self._free = [slot for slot in range(_SLOTS - 1, 0, -1) if not self._slots[slot]]

    @property
    def full(self) -> bool:
        """Whether no id can be stored: the next call must stay in the kernel's queue."""
        return not self._free

    @property
    def last(self) -> int:
        """The id that was received last; 0 for none."""
        return self._slots[0]

    def add(self, ident: int) -> int:
        """Store an id; returns the slot, for :meth:`clear`."""
        slot = self._free.pop()
        self._slots[0] = ident
        self._slots[slot] = ident
        return slot

    def clear(self, slot: int) -> None:
        """The call was answered, or nobody waits for it."""
        self._slots[slot] = 0
        self._free.append(slot)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """All that is stored: slot and id."""
        return ((slot, self._slots[slot]) for slot in range(1, _SLOTS) if self._slots[slot])

    def close(self) -> None:
        """Let go of the memory; the file stays."""
        self._slots.release()
        self._memory.close()
