"""What is mounted where, from the kernel's own list."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

_MOUNTINFO = Path("/proc/self/mountinfo")


@dataclass(frozen=True, slots=True)
class Mount:
    """One mount: its type and its source as the kernel names them."""

    type: str
    source: str


def _unescape(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)


def mount_at(path: Path) -> Mount | None:
    """The topmost mount at exactly ``path`` in our mount namespace, or None."""
    wanted = os.path.realpath(path)
    found = None
    for line in _MOUNTINFO.read_text(errors="surrogateescape").splitlines():
        place, _, kind = line.partition(" - ")
        if _unescape(place.split(" ")[4]) == wanted:
            type_, source = kind.split(" ")[:2]
            found = Mount(type_, _unescape(source))
    return found
