"""What survives a restart of the daemon: listeners in systemd's file descriptor store, facts on tmpfs.

systemd keeps a descriptor under a name, and hands it to the next process of the service together
with the sockets (sd_notify(3), ``FDSTORE=1``). What the descriptor is about lies beside it in files
of the same name.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import structlog

from pannier.barrier.pending import Pending
from pannier.core.errors import PannierError
from pannier.core.record import Record
from pannier.host.mountinfo import Location
from pannier.host.records import encode, read_file
from pannier.host.state_files import UnsyncedFile
from pannier.host.systemd import notify

log = structlog.get_logger(__name__)

_PREFIX = "listener-"


@dataclass(frozen=True, slots=True)
class Origin(Record):
    """Where a listener comes from; kept in a file beside the descriptor.

    Attributes:
        container: the container's id.
        pid: the process that installed the filter: the container's first, or one of an exec.
        places: the container's held volumes, and where each tree was seen at the start.
        passing: it mounts a directory below which volumes come and go, such as the machine's root.
    """

    container: str
    pid: int
    places: Mapping[str, Location | None]
    passing: bool = False


def is_listener(name: str) -> bool:
    """Whether a descriptor that systemd hands down under this name is one of ours."""
    return name.startswith(_PREFIX)


class Keeping:
    """Listeners by name. All methods may be repeated."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)

    def store(self, fd: int) -> str:
        """Have systemd keep a listener from now on; returns the name."""
        name = _PREFIX + secrets.token_hex(8)
        try:
            notify("FDSTORE=1", f"FDNAME={name}", "FDPOLL=0", fds=(fd,))
        except OSError as error:
            log.warning("barrier.not-kept", listener=name, error=str(error))
        return name

    def describe(self, name: str, origin: Origin) -> None:
        """Write down what the listener is about."""
        self._origin(name).write(encode(origin))

    def recall(self, name: str) -> Origin | None:
        """What was written down; None where the daemon was killed before that, or it is damaged."""
        try:
            return read_file(self._origin(name), Origin, remedy="all held volumes count")
        except PannierError as error:
            log.warning("barrier.origin-unreadable", listener=name, error=str(error))
            return None

    def _origin(self, name: str) -> UnsyncedFile:
        return UnsyncedFile(self._file(name, "json"))

    def pending(self, name: str) -> Pending:
        """The listener's unanswered calls.

        A file that is damaged or of a newer format is replaced by an empty one. Its calls then hang,
        but none is answered wrongly.
        """
        file = self._file(name, "ids")
        try:
            return Pending(file)
        except PannierError as error:
            log.error("barrier.calls-lost", listener=name, error=str(error))
            file.unlink()
            return Pending(file)

    def forget(self, name: str) -> None:
        """Let systemd close the descriptor, and remove the files."""
        try:
            notify("FDSTOREREMOVE=1", f"FDNAME={name}")
        except OSError as error:
            log.warning("barrier.not-forgotten", listener=name, error=str(error))
        for kind in ("ids", "json"):
            self._file(name, kind).unlink(missing_ok=True)

    def sweep(self, names: Collection[str]) -> None:
        """Remove the files of all listeners but ``names``."""
        for file in self._directory.iterdir():
            if file.stem not in names:
                file.unlink(missing_ok=True)

    def _file(self, name: str, kind: str) -> Path:
        return self._directory / f"{name}.{kind}"
