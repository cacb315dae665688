"""What the trace told of one device."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from pannier.cut.account import Account
from pannier.cut.ring import TraceEvent
from pannier.cut.spans import Span, Written, written

_FOLD = 8192
"""So many spans are noted before they are joined: that takes a millisecond for each thousand."""
MOST_SPANS = 1 << 16
"""Noted of one device at most, after joining: some MiB of memory. One with more, which is written to at random and
not cut, gets a generation."""


class Watch:
    """What was told of one device and not yet claimed. Thread-safe: it has the lock of its tracer.

    Args:
        device: the kernel's number of it.
        lock: held while events are given out.
    """

    def __init__(self, device: int, lock: threading.Lock) -> None:
        self.device = device
        self._lock = lock
        self._account = Account()
        self._plain: list[Span] = []
        self._hollow: list[Span] = []
        self._fold_at = _FOLD
        self._gap = ""

    @property
    def gap(self) -> str:
        """Why something may be missing: "" or words for people. It stays until :meth:`clear`."""
        return self._gap

    def note(self, event: TraceEvent) -> None:
        """An event of this device. The caller holds the lock."""
        self._account.note(event.at_ns, event.sectors)
        if event.refused:
            # Who wrote it may never be told. A generation asks the file system whether anything was lost.
            self.miss("the device refused a write")
        (self._hollow if event.may_be_hole else self._plain).append((event.start, event.end))
        if len(self._plain) + len(self._hollow) >= self._fold_at:
            self._fold()

    def miss(self, why: str) -> None:
        """Something may be missing. The caller holds the lock."""
        self._gap = self._gap or why

    def clear(self) -> None:
        """Forget everything, also that something was missing."""
        with self._lock:
            self._account = Account()
            self._plain, self._hollow, self._gap, self._fold_at = [], [], "", _FOLD

    def claim(self) -> Written:
        """What was told since the last call."""
        with self._lock:
            plain, hollow = self._plain, self._hollow
            self._plain, self._hollow, self._fold_at = [], [], _FOLD
        return written(plain, hollow)

    @contextmanager
    def compared(self) -> Iterator[None]:
        """Its account is open in the block, as often as :meth:`open` is called there: see :class:`Account`."""
        try:
            yield
        finally:
            with self._lock:
                self._account.close()

    def open(self) -> None:
        """See :class:`Account`, also for the next two."""
        with self._lock:
            self._account.open()

    def missing(self, clock_ns: int, counted: int) -> int:
        with self._lock:
            return self._account.missing(clock_ns, counted)

    def found_base(self, clock_ns: int, counted: int) -> bool:
        with self._lock:
            return self._account.found_base(clock_ns, counted)

    def _fold(self) -> None:
        joined = written(self._plain, self._hollow)
        self._plain, self._hollow = list(joined.plain), list(joined.hollow)
        self._fold_at = joined.count + _FOLD
        if joined.count > MOST_SPANS:
            self._plain, self._hollow = [], []
            self._gap = (
                self._gap or f"more than {MOST_SPANS} places were written to since the last cut"
            )
