"""The ids of calls that were received and not yet answered, where a killed daemon's successor finds them.

The kernel hands each notification out once. The ids are stored in a file on tmpfs that is mapped into
memory: storing one takes no system call, and what was stored is still there after a SIGKILL.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from pathlib import Path

from pannier.core.errors import Corrupt
from pannier.core.record import newer_format

_SLOTS = 4096
_BYTES = 8 * _SLOTS
_MAGIC = b"pannier"
_FORMAT = 1
_LAST, _FIRST = 1, 2


class Pending:
    """One listener's file: 4096 unsigned 64-bit numbers, 0 for none.

    The first has the bytes of "pannier" and the format, the second is the id that was received last,
    the others are the ids of the calls that wait.
    """

    def __init__(self, path: Path) -> None:
        """Open the file at ``path``, or make it.

        Raises:
            NewerFormat, Corrupt: it is not such a file; the calls that wait cannot be answered.
            OSError: there is no room for it, or it cannot be opened.
        """
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(fd, _BYTES)
            os.posix_fallocate(fd, 0, _BYTES)  # writing to memory that has no room is SIGBUS
            self._memory = mmap.mmap(fd, _BYTES)
        finally:
            os.close(fd)
        try:
            self._check_format(path)
        except BaseException:
            self._memory.close()
            raise
        self._slots = memoryview(self._memory).cast("Q")
        free = (slot for slot in range(_SLOTS - 1, _FIRST - 1, -1) if not self._slots[slot])
        self._free = list(free)

    def _check_format(self, path: Path) -> None:
        magic, format = self._memory[: len(_MAGIC)], self._memory[len(_MAGIC)]
        if magic == _MAGIC and format > _FORMAT:
            raise newer_format(str(path), format, known=_FORMAT)
        if self._memory[:] == bytes(_BYTES):
            self._memory[: len(_MAGIC) + 1] = _MAGIC + bytes((_FORMAT,))
        elif magic != _MAGIC:
            raise Corrupt(
                f"{path} is no list of sync calls that wait",
                remedy="restart the containers whose sync calls hang",
            )

    @property
    def full(self) -> bool:
        """Whether no id can be stored: the next call must stay in the kernel's queue."""
        return not self._free

    @property
    def last(self) -> int:
        """The id that was received last; 0 for none."""
        return self._slots[_LAST]

    def add(self, ident: int) -> int:
        """Store an id; returns the slot, for :meth:`clear`."""
        slot = self._free.pop()
        self._slots[_LAST] = ident
        self._slots[slot] = ident
        return slot

    def clear(self, slot: int) -> None:
        """Free a slot whose call was answered, or is waited for no longer."""
        self._slots[slot] = 0
        self._free.append(slot)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """All that is stored: slot and id."""
        return ((slot, self._slots[slot]) for slot in range(_FIRST, _SLOTS) if self._slots[slot])

    def close(self) -> None:
        """Let go of the memory; the file stays."""
        self._slots.release()
        self._memory.close()
