"""The clocks: one that decisions may use, and one for people."""

from __future__ import annotations

import time
from datetime import UTC, datetime


def boottime() -> float:
    """Seconds since boot, suspended time included; not moved by clock changes."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def rfc3339(unix_seconds: float) -> str:
    """A time as Docker and the API write it: UTC, whole seconds."""
    return datetime.fromtimestamp(unix_seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
