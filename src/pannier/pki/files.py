"""Writing keys and certificates so that a crash leaves the old file or the new one, never half."""

from __future__ import annotations

import os
import secrets
import stat
from pathlib import Path

from pannier.core.errors import AlreadyExists, Denied, NotFound

PRIVATE_MODE = 0o600
PUBLIC_MODE = 0o644
DIRECTORY_MODE = 0o700


def private_directory(path: Path) -> Path:
    """Make ``path`` with its parents; the directory itself is for its owner only."""
    path.mkdir(parents=True, exist_ok=True, mode=DIRECTORY_MODE)
    path.chmod(DIRECTORY_MODE)
    return path


def write(path: Path, text: str, *, mode: int, replace: bool) -> None:
    """Write ``text`` atomically and durably.

    Raises:
        AlreadyExists: the file is there and ``replace`` is False.
        OSError: the disk refused.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        with os.fdopen(fd, "wb") as file:
            os.fchmod(file.fileno(), mode)
            file.write(text.encode())
            file.flush()
            os.fsync(file.fileno())
        if replace:
            os.replace(temporary, path)
        else:
            # A link, unlike a rename, refuses an existing name, whoever made it just now.
            os.link(temporary, path)
    except FileExistsError as error:
        raise AlreadyExists(
            f"{path} exists and was left as it is",
            remedy="use what is there, or move it away yourself if it is really not needed",
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def read(path: Path) -> str:
    """The text of a certificate file.

    Raises:
        NotFound: it is not there.
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
        Denied: its permissions are too open, so that the key may be known to others.
    """
    text = read(path)
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o077:
        raise Denied(
            f"the key {path} has mode {mode:04o}: others may have read it",
            remedy=f"run 'chmod 600 {path}', and replace the key if you do not trust all users here",
        )
    return text
