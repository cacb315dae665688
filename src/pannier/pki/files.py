"""The files that keys and certificates are in, and who may read them."""

from __future__ import annotations

import stat
from pathlib import Path

from pannier.core.errors import AlreadyExists, Denied, NotFound
from pannier.host.files import write_file

PRIVATE_MODE = 0o600
PUBLIC_MODE = 0o644
DIRECTORY_MODE = 0o700


def private_directory(path: Path) -> Path:
    """Make ``path`` with its parents; the directory itself is for its owner only."""
    path.mkdir(parents=True, exist_ok=True, mode=DIRECTORY_MODE)
    path.chmod(DIRECTORY_MODE)
    return path


def write(path: Path, text: str, *, mode: int, replace: bool) -> None:
    """Write ``text``, whole and durable: see :func:`pannier.host.files.write_file`.

    Raises:
        AlreadyExists: the file is there and ``replace`` is False.
        OSError: the disk refused.
    """
    try:
        write_file(path, text.encode(), mode=mode, replace=replace)
    except FileExistsError as error:
        raise AlreadyExists(
            f"{path} exists and was left as it is",
            remedy="use what is there, or move it away yourself if it is really not needed",
        ) from error


def read(path: Path) -> str:
    """The text of a certificate file.

    Raises:
        NotFound: it is not there.
        Denied: it is not ASCII text.
    """
    try:
        return path.read_text(encoding="ascii")
    except FileNotFoundError as error:
        raise NotFound(
            f"{path} does not exist",
            remedy="run 'pannier init' on the first node and 'pannier join' on every other",
        ) from error
    except UnicodeDecodeError as error:
        raise Denied(f"{path} is not PEM text", remedy="restore it from a backup") from error


def read_private(path: Path) -> str:
    """The text of a key file that nobody but its owner may read.

    Raises:
        NotFound: it is not there.
        Denied: it is not ASCII text, or others may have read the key, as its permissions are too open.
    """
    text = read(path)
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o077:
        raise Denied(
            f"the key {path} has mode {mode:04o}: others may have read it",
            remedy=f"run 'chmod 600 {path}', and replace the key if you do not trust all users here",
        )
    return text
