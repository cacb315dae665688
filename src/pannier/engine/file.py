"""Docker's configuration file on the disk, and which one it is."""

from __future__ import annotations

import stat
from pathlib import Path

from pannier.core.errors import InvalidInput
from pannier.engine.command_line import DAEMON_JSON, CommandLine, read_words
from pannier.engine.configuration import default_of, parse
from pannier.host.files import sync_directory, write_file

PID_FILE = Path("/run/docker.pid")
"""dockerd writes it at its start, before it does anything with volumes."""


def configured_default(*, file: Path = DAEMON_JSON, pid_file: Path = PID_FILE) -> str:
    """The default runtime of the engine that runs, or starts, now: by its command line or its file.

    Args:
        file: its configuration file, where its command line names no other.

    Raises:
        InvalidInput: the file cannot be read as JSON. OSError: the file cannot be read.
    """
    line = _running(pid_file)
    if line is not None and line.default_runtime is not None:
        return line.default_runtime
    found = file if line is None or line.file == DAEMON_JSON else line.file
    return default_of(parse(read_text(found), found))


def _running(pid_file: Path) -> CommandLine | None:
    try:
        pid = int(pid_file.read_text())
        words = Path(f"/proc/{pid}/cmdline").read_text(errors="surrogateescape").split("\0")
    except (OSError, ValueError):  # none runs, or another one than systemd's
        return None
    return read_words(words[:-1]) if words[0].endswith("dockerd") else None


def read_text(file: Path) -> str | None:
    """A file's text, None where there is no file.

    Raises:
        InvalidInput: it is not UTF-8.
    """
    try:
        return file.read_bytes().decode()
    except FileNotFoundError:
        return None
    except UnicodeDecodeError as error:
        raise InvalidInput(
            f"{file} is not UTF-8: {error}", remedy="mend it, then repeat"
        ) from error


def write_text(file: Path, text: str | None) -> None:
    """Replace the file in one step; it keeps its owner and permissions. None removes it."""
    if text == read_text(file):
        return
    if text is None:
        file.unlink(missing_ok=True)
        sync_directory(file.parent)
        return
    file.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    mode, owner = 0o644, None
    if file.exists():
        found = file.stat()
        mode, owner = stat.S_IMODE(found.st_mode), (found.st_uid, found.st_gid)
    write_file(file, text.encode(), mode=mode, owner=owner)
