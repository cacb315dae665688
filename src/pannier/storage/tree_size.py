"""How much room a tree takes."""

from __future__ import annotations

import os
from pathlib import Path

_BLOCK_BYTES = 512


def allocated_bytes(root: Path) -> int:
    """Bytes allocated to all files under ``root``, hard links counted once. Walks the tree."""
    total = 0
    seen: set[int] = set()
    pending = [os.fsencode(root)]
    while pending:
        with os.scandir(pending.pop()) as entries:
            for entry in entries:
                found = entry.stat(follow_symlinks=False)
                if found.st_nlink > 1 and not entry.is_dir(follow_symlinks=False):
                    if found.st_ino in seen:
                        continue
                    seen.add(found.st_ino)
                total += found.st_blocks * _BLOCK_BYTES
                if entry.is_dir(follow_symlinks=False):
                    pending.append(entry.path)
    return total
