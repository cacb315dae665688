"""Removing files by their path in a directory, which symbolic links in it cannot lead out of."""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path

from pannier.host.beneath import open_beneath

_HERE = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def remove_within(root: Path, path: str) -> None:
    """Remove a file, or a directory with all in it.

    Args:
        path: below ``root``. Only its last part may be a symbolic link, and the link is removed then.

    Raises:
        ValueError: it names nothing below ``root``.
        OSError: it is not there, or cannot be removed; a part of a directory may be gone.
    """
    names = [name for name in path.split("/") if name not in ("", ".")]
    if not names or ".." in names:
        raise ValueError(f"{path!r} names nothing below {root}")
    top = os.open(root, _HERE)
    try:
        at = open_beneath(top, os.fsencode("/".join(names[:-1]) or "."), _HERE)
    finally:
        os.close(top)
    try:
        found = os.stat(names[-1], dir_fd=at, follow_symlinks=False)
        if stat.S_ISDIR(found.st_mode):
            shutil.rmtree(names[-1], dir_fd=at)
        else:
            os.unlink(names[-1], dir_fd=at)
    finally:
        os.close(at)
