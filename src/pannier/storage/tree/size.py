"""How much room a tree takes."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from pannier.storage.tree.walk import open_directory

_BLOCK_BYTES = 512


def allocated_bytes(root: Path) -> int:
    """Bytes allocated to all files under ``root``, hard links counted once. Walks the tree.

    What disappears meanwhile is not counted.
    """
    total = 0
    seen: set[int] = set()
    pending = [""]
    while pending:
        path = pending.pop()
        try:
            with open_directory(root, path) as directory:
                for name in os.listdir(directory):
                    found = _status(name, directory)
                    if found is None or found.st_ino in seen:
                        continue
                    if stat.S_ISDIR(found.st_mode):
                        pending.append(f"{path}/{name}" if path else name)
                    elif found.st_nlink > 1:
                        seen.add(found.st_ino)
                    total += found.st_blocks * _BLOCK_BYTES
        except (FileNotFoundError, NotADirectoryError):
            continue
    return total


def _status(name: str, directory: int) -> os.stat_result | None:
    try:
        return os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return None
