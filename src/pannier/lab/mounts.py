"""The host's mount table."""

from __future__ import annotations

import re
from pathlib import Path

from pannier.lab.process import run

_ESCAPE = re.compile(r"\\([0-7]{3})")


def mount_points() -> list[Path]:
    """All mount points that we see, in the order in which they were made."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return [Path(_ESCAPE.sub(_unescape, line.split(" ")[4])) for line in lines]


def _unescape(match: re.Match[str]) -> str:
    return chr(int(match[1], 8))


def unmount_below(folder: Path) -> None:
    """Unmount whatever is mounted on or below ``folder``, the last mounted first."""
    for point in reversed(mount_points()):
        if point.is_relative_to(folder):
            run(["umount", "--lazy", str(point)])
