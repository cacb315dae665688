"""Sockets to listen on: inherited from systemd (sd_listen_fds(3)), or made at a path.

systemd hands down two kinds of descriptors in one list: listening sockets, and whatever an earlier
run put into its file descriptor store. Their names tell them apart, so the list is given as it is.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterable, Iterator, MutableMapping
from dataclasses import dataclass
from pathlib import Path

from pannier.core.errors import AlreadyExists, InvalidInput

_FIRST_FD = 3  # SD_LISTEN_FDS_START
_VARIABLES = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")
_PROBE_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class InheritedFd:
    """A descriptor from systemd. ``name`` is its FileDescriptorName, or ``unknown``."""

    fd: int
    name: str


def inherited_fds(environ: MutableMapping[str, str], *, pid: int) -> tuple[InheritedFd, ...]:
    """Take the descriptors that systemd handed to the process ``pid`` (this one).

    The variables are removed from ``environ`` and the descriptors are closed at exec, so that no
    child process takes them for its own.

    Raises:
        InvalidInput: the variables contradict each other.
    """
    wanted_pid, count_text, names_text = (environ.get(name, "") for name in _VARIABLES)
    if wanted_pid != str(pid):
        return ()  # none were sent, or they were meant for a parent of ours
    for name in _VARIABLES:
        environ.pop(name, None)
    if not (count_text.isascii() and count_text.isdigit()):
        raise _contradiction(f"LISTEN_FDS={count_text!r} is not a number")
    count = int(count_text)
    names = names_text.split(":") if names_text else ["unknown"] * count
    if len(names) != count:
        raise _contradiction(f"LISTEN_FDS={count}, but LISTEN_FDNAMES has {len(names)} names")
    found = tuple(InheritedFd(_FIRST_FD + index, name) for index, name in enumerate(names))
    for item in found:
        try:
            os.set_inheritable(item.fd, False)
        except OSError as error:
            raise _contradiction(f"descriptor {item.fd} ({item.name}) is not open") from error
    return found


def fd_named(fds: Iterable[InheritedFd], name: str) -> int | None:
    """The first descriptor of this name; None where there is none."""
    return next((item.fd for item in fds if item.name == name), None)


def listening_socket(fd: int) -> socket.socket:
    """The inherited descriptor ``fd`` as a socket; the result owns it.

    Raises:
        InvalidInput: it is not a listening unix stream socket; it stays open.
    """
    try:
        listener = socket.socket(fileno=fd)
    except OSError as error:
        raise _contradiction(f"descriptor {fd} is not a socket") from error
    accepts = listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    if (listener.family, listener.type) != (socket.AF_UNIX, socket.SOCK_STREAM) or not accepts:
        listener.detach()
        raise _contradiction(f"descriptor {fd} is not a listening unix stream socket")
    listener.setblocking(False)
    return listener


@contextlib.contextmanager
def unix_listener(path: Path, *, mode: int = 0o600) -> Iterator[socket.socket]:
    """Listen at ``path``, making its directory; the socket file goes again at the end.

    A left-over file that nobody listens on is replaced. Docker waits 15 s for such a file at each
    look-up. That is why it is removed at the end, and why the systemd socket unit is the better way.

    Raises:
        AlreadyExists: another process answers there, or the path is no socket.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftover(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # Bound under another name: the socket is seen at its path only once it has its mode and listens.
        draft = path.with_name(f".{path.name[:32]}.{os.getpid()}")
        draft.unlink(missing_ok=True)
        listener.bind(str(draft))
        try:
            draft.chmod(mode)
            listener.listen()
            listener.setblocking(False)
            inode = draft.stat().st_ino
            draft.rename(path)
        except BaseException:
            draft.unlink(missing_ok=True)
            raise
        try:
            yield listener
        finally:
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_ino == inode:  # not one that a successor has put there
                    path.unlink()
    finally:
        listener.close()


def _remove_leftover(path: Path) -> None:
    if not path.exists():
        return
    if not path.is_socket():
        raise AlreadyExists(f"{path} is there and is no socket", remedy="move it away")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(_PROBE_SECONDS)
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            path.unlink(missing_ok=True)
            return
        except OSError:  # a full queue or a timeout: somebody is there, only busy
            pass
    raise AlreadyExists(
        f"another process listens on {path}",
        remedy="stop it first; with systemd, pannierd gets this socket from pannierd.socket",
    )


def _contradiction(what: str) -> InvalidInput:
    return InvalidInput(
        f"the sockets from systemd cannot be used: {what}",
        remedy="start pannierd through its units (systemctl start pannierd.socket pannierd)",
    )
