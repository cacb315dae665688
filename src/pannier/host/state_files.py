"""The small files in which a node keeps what it must not forget: each replaced as a whole."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pannier.host.files import write_file


class StateFile(Protocol):
    """One such file. A method without ``Raises:`` raises nothing."""

    @property
    def path(self) -> Path:
        """Where it is, for messages."""
        ...

    def read(self) -> bytes | None:
        """Its content; None where nothing was written yet.

        Raises:
            OSError: it cannot be read.
        """
        ...

    def write(self, content: bytes) -> None:
        """Replace its content. After a crash it is the old one or the new one, whole.

        May block. If two write at once, either content may stay; the caller must order its writes.

        Raises:
            OSError: it cannot be written; the old content stays.
        """
        ...


class StateFiles(Protocol):
    """Where a node keeps its small files. The methods only name a file; they raise nothing."""

    def durable(self, name: str) -> StateFile:
        """A file that outlasts a power cut from the moment at which its write returns."""
        ...

    def unsynced(self, name: str) -> StateFile:
        """A file whose writes do not wait for the disk: after a power cut it may have an earlier
        content, or one that cannot be read."""
        ...

    def until_boot(self, name: str) -> StateFile:
        """A file that outlasts the daemon, and is gone after the next boot of the machine."""
        ...


@dataclass(frozen=True, slots=True)
class DurableFile:
    """A file on a disk."""

    path: Path

    def read(self) -> bytes | None:
        """See :class:`StateFile`."""
        return _read(self.path)

    def write(self, content: bytes) -> None:
        """See :class:`StateFile`."""
        write_file(self.path, content)


@dataclass(frozen=True, slots=True)
class UnsyncedFile:
    """A file that is replaced whole, and not flushed: on a tmpfs, or where an older content will do."""

    path: Path

    def read(self) -> bytes | None:
        """See :class:`StateFile`."""
        return _read(self.path)

    def write(self, content: bytes) -> None:
        """See :class:`StateFile`."""
        write_file(self.path, content, durable=False)


@dataclass(frozen=True, slots=True)
class HostFiles:
    """The files of the daemon on a real machine.

    Attributes:
        state: a directory on a disk.
        run: a directory on a tmpfs.
    """

    state: Path
    run: Path

    def durable(self, name: str) -> StateFile:
        """See :class:`StateFiles`."""
        return DurableFile(self.state / name)

    def unsynced(self, name: str) -> StateFile:
        """See :class:`StateFiles`."""
        return UnsyncedFile(self.state / name)

    def until_boot(self, name: str) -> StateFile:
        """See :class:`StateFiles`."""
        return UnsyncedFile(self.run / name)


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
