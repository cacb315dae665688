"""A rate that several transfers share."""

from __future__ import annotations

import threading
import time

_BURST_S = 0.1
"""So much of a second may be sent at once after a pause: less would make many short sleeps of one."""


class Rate:
    """What may be sent, in bytes a second, by all who share it. Threads may call it together."""

    def __init__(self, bytes_per_second: int) -> None:
        self._seconds_per_byte = 1 / bytes_per_second
        self._free_at = 0.0
        self._lock = threading.Lock()

    def wait(self, sent_bytes: int) -> None:
        """Wait for as long as ``sent_bytes`` more take at this rate."""
        with self._lock:
            now = time.monotonic()
            self._free_at = max(self._free_at, now - _BURST_S) + sent_bytes * self._seconds_per_byte
            pause = self._free_at - now
        if pause > 0:
            time.sleep(pause)
