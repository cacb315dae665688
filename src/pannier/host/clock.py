"""The clocks of a machine: one that decisions may use, and one for people."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime


def boottime() -> float:
    """Seconds since boot, suspended time included; not moved by clock changes."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


@dataclass(frozen=True, slots=True)
class Clock:
    """A machine's two clocks; all parts of a node are given the same one.

    Attributes:
        now: seconds since boot; never goes back. Leases and all decisions use it.
        unix: seconds since 1970, for people. It may jump at any time.
    """

    now: Callable[[], float]
    unix: Callable[[], float]


class Stopwatch:
    """Seconds from one moment to the next, the first being its making."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._last = clock.now()

    def lap(self) -> float:
        """Since the last call, or the making."""
        before, self._last = self._last, self._clock.now()
        return self._last - before


def machine_clock() -> Clock:
    """The clocks of the machine that this process runs on."""
    return Clock(now=boottime, unix=time.time)


def rfc3339(unix_seconds: float) -> str:
    """A time as Docker and the API write it: UTC, whole seconds."""
    return datetime.fromtimestamp(unix_seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
