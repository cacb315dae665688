"""The directories that Docker is given: bind mounts of the volumes' data under one root.

*Guard.* The directory under each mount is made unwritable even for root (immutable), so that
nothing can be written where a volume should be and is not (guarantee G5).

*Propagation.* Nothing is changed: a mount here gets the propagation of the mount that holds the
root directory, which under systemd is shared. Then services with private mount namespaces receive
a copy and, what matters more, lose it again when we unmount. Were these mounts private, copies in
namespaces made meanwhile would stay until their service ended and pin the data. Docker's own
namespace must be the same as ours or a slave of it; its default (no MountFlags) is the former.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from pannier.core.errors import Conflict, StorageError, VolumeInUse
from pannier.core.volume import check_name, is_name
from pannier.host.files import keep_private
from pannier.host.ioctls import control
from pannier.host.mountflags import bind
from pannier.host.mountinfo import Mount, below, locate, own_mounts, visible_at

DEFAULT_ROOT = Path("/var/lib/pannier/mounts")

_MNT_DETACH = 0x2
_UMOUNT_NOFOLLOW = 0x8
_LONG = struct.Struct("l")
_FS_IOC_GETFLAGS = 0x80006601 | _LONG.size << 16
_FS_IOC_SETFLAGS = 0x40006602 | _LONG.size << 16
_FS_IMMUTABLE_FL = 0x10
_UNSUPPORTED = (errno.ENOTTY, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS, errno.EPERM)

_libc = ctypes.CDLL(None, use_errno=True)
_libc.umount2.argtypes = (ctypes.c_char_p, ctypes.c_int)


class Mounts(Protocol):
    """What Docker is given: a path for each volume, which shows its tree or nothing.

    Every method with a ``name`` raises InvalidInput for one that cannot name a volume. ``Raises:``
    lists what a method raises beyond that.
    """

    @property
    def root(self) -> Path:
        """The directory that holds all paths."""
        ...

    @property
    def unguarded(self) -> frozenset[str]:
        """Volumes whose path could be written while nothing is mounted there."""
        ...

    def path(self, name: str) -> Path:
        """Where the volume is shown, or would be."""
        ...

    def mount(self, name: str, source: Path) -> Path:
        """Show ``source`` at the volume's path, and return the path.

        Raises:
            Conflict: another directory is shown there.
            StorageError: ``source`` is no directory, or the kernel refused.
        """
        ...

    def replace(self, name: str, source: Path) -> Path:
        """Show ``source`` instead of whatever is shown, and return the path.

        The caller has made sure that nothing uses what is shown.

        Raises:
            VolumeInUse: a process on the node itself uses it. Containers do not count here.
            Conflict: another program mounted something there meanwhile.
            StorageError: as :meth:`mount`.
        """
        ...

    def unmount(self, name: str, *, detach: bool = False) -> None:
        """Show nothing.

        Args:
            detach: also if processes use what is shown; they keep it.

        Raises:
            VolumeInUse: a process on the node itself uses it. Containers do not count here.
            StorageError: the kernel refused for another reason.
        """
        ...

    def prepared(self) -> frozenset[str]:
        """Names of the volumes whose path has been made."""
        ...

    def forget(self, name: str) -> bool:
        """Remove the path of a volume that is gone. Returns False, and removes nothing, while something is shown there.

        Raises:
            StorageError: something is in the directory, or the kernel refused.
        """
        ...


class MountTable(Mounts):
    """Bind mounts at ``root/NAME``. The kernel's own table is the only state.

    All methods are short system calls, may be repeated, and may be called from several threads:
    the thread of a call whose task was cancelled goes on beside the next one.

    Args:
        root: is made accessible to root alone, even if it exists: volumes may have setuid programs.
        ours: directories where volumes are mounted by us, as the pool. Bind mounts of what is in them
            allow device nodes and setuid programs; the mounts themselves do not. Other sources keep the
            administrator's flags.
    """

    def __init__(self, root: Path = DEFAULT_ROOT, *, ours: Sequence[Path] = ()) -> None:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        keep_private(root)
        self._root = root.resolve()
        self._ours = tuple(place.resolve() for place in ours)
        self._unguarded: set[str] = set()
        self._lock = threading.RLock()

    @property
    def root(self) -> Path:
        """The directory that holds all mountpoints, free of symbolic links."""
        return self._root

    @property
    def unguarded(self) -> frozenset[str]:
        """Volumes mounted by this object whose directory could not be made immutable.

        The file system has no such flag or the process may not set it; root could then write
        under an unmounted path.
        """
        return frozenset(self._unguarded)

    def path(self, name: str) -> Path:
        """Where the volume is, or would be, mounted."""
        return self._root / check_name(name)

    def mounted(self) -> dict[str, Mount]:
        """What is mounted, by volume name; of several mounts at one path, the visible one."""
        found: dict[str, Mount] = {}
        for mount in own_mounts():
            rest = below(mount.point, str(self._root))
            if rest and "/" not in rest[1:]:
                found[rest[1:]] = mount
        return found

    def is_mounted(self, name: str, source: Path) -> bool:
        """Whether what is visible at the volume's path is the directory ``source``."""
        mounts = own_mounts()
        top = visible_at(str(self.path(name)), mounts)
        return top is not None and top.location == locate(source.resolve(), mounts)

    def mount(self, name: str, source: Path) -> Path:
        """Mount ``source`` and return the path; does nothing if it is mounted already.

        Raises:
            StorageError: ``source`` is no directory, or the kernel refused.
            Conflict: another directory is mounted there; see :meth:`replace`.
        """
        target = self.path(name)
        source = self._check_source(name, source)
        with self._lock:
            mounts = own_mounts()
            top = visible_at(str(target), mounts)
            if top is None:
                self._guard(name, target)
                self._bind(name, source, target)
            elif top.location != locate(source, mounts):
                raise Conflict(
                    f"volume {name}: {target} shows {top.root} of device {top.device},"
                    f" not {source}",
                    remedy="stop what uses it, then restart pannierd: it replaces what nothing"
                    " uses",
                )
        return target

    def replace(self, name: str, source: Path) -> Path:
        """Mount ``source`` instead of whatever is mounted there.

        The caller has made sure that nothing uses the old mount: the kernel would not refuse for
        a container, which has its own copy.

        Raises:
            VolumeInUse: a process on the node itself uses the old mount.
            Conflict: another program mounted something there meanwhile.
            StorageError: as :meth:`mount`.
        """
        source = self._check_source(name, source)
        with self._lock:
            if not self.is_mounted(name, source):
                self.unmount(name)
            return self.mount(name, source)

    def unmount(self, name: str, *, detach: bool = False) -> None:
        """Unmount whatever is mounted there; nothing mounted is no error.

        Args:
            detach: unmount also what processes use; they keep what they have. For fencing, and where
                they only look on.

        Raises:
            VolumeInUse: a process on the node itself uses it. Containers do not count here.
            StorageError: the kernel refused for another reason.
        """
        target = self.path(name)
        flags = _UMOUNT_NOFOLLOW | (_MNT_DETACH if detach else 0)
        with self._lock:
            while visible_at(str(target), own_mounts()) is not None:
                if _libc.umount2(os.fsencode(target), flags) != 0:
                    _check_unmount(name, target, ctypes.get_errno())

    def prepared(self) -> frozenset[str]:
        """See :class:`Mounts`."""
        return frozenset(entry.name for entry in os.scandir(self._root) if is_name(entry.name))

    def forget(self, name: str) -> bool:
        """See :class:`Mounts`. After a power cut the directory may be there without its guard: a Mount renews that."""
        target = self.path(name)
        with self._lock:
            if visible_at(str(target), own_mounts()) is not None:
                return False
            try:
                _set_immutable(target, False)
                target.rmdir()
            except FileNotFoundError:
                pass
            except OSError as error:
                raise StorageError(
                    f"volume {name}: {target} cannot be removed: {error.strerror}",
                    remedy="look what is in it; it should be empty and is not Pannier's to delete",
                ) from error
            self._unguarded.discard(name)
            return True

    def _check_source(self, name: str, source: Path) -> Path:
        linked = source.is_symlink()  # what it points to is not the volume
        source = source.resolve()
        if linked or not source.is_dir():
            raise StorageError(
                f"volume {name}: {source} is not a directory",
                remedy="see pannier doctor for the state of the pool",
            )
        return source

    def _guard(self, name: str, target: Path) -> None:
        """Make the directory, so that nothing can be written into it while nothing is mounted there."""
        try:
            target.mkdir(mode=0o700, exist_ok=True)
            if _set_immutable(target, True):
                self._unguarded.discard(name)
            else:
                target.chmod(0)
                self._unguarded.add(name)
        except OSError as error:
            raise StorageError(
                f"volume {name}: {target} cannot be prepared: {error.strerror}",
                remedy=f"{target} must be an empty directory that Pannier may own",
            ) from error

    def _bind(self, name: str, source: Path, target: Path) -> None:
        in_ours = any(source.is_relative_to(place) for place in self._ours)
        try:
            bind(source, target, allow_devices_and_setuid=in_ours)
        except OSError as error:
            raise StorageError(
                f"volume {name}: mounting {source} at {target} failed: {error.strerror}",
                remedy="pannierd needs CAP_SYS_ADMIN and the node's own mount namespace",
            ) from error
        if not self.is_mounted(name, source):
            raise StorageError(
                f"volume {name}: {target} does not show {source} although it was mounted",
                remedy="look at /proc/self/mountinfo on this node; another program mounts there",
            )


def _check_unmount(name: str, target: Path, number: int) -> None:
    """Translate the errno of a failed umount2(2)."""
    if number == errno.EBUSY:
        raise VolumeInUse(
            f"volume {name}: {target} cannot be unmounted, a process on this node uses it",
            remedy=f"find it with: fuser -vm {target}",
        )
    if number != errno.EINVAL:  # EINVAL: another program unmounted it first; the caller looks again
        raise StorageError(
            f"volume {name}: unmounting {target} failed: {os.strerror(number)}",
            remedy="look at the kernel's messages (dmesg)",
        )


def _set_immutable(directory: Path, wanted: bool) -> bool:
    """Set or clear the flag; False where that is not possible. Other failures raise OSError."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        block = bytearray(_LONG.size)
        control(fd, _FS_IOC_GETFLAGS, block)
        (flags,) = _LONG.unpack(block)
        if bool(flags & _FS_IMMUTABLE_FL) != wanted:
            if wanted:
                os.fchmod(fd, 0o700)
            control(fd, _FS_IOC_SETFLAGS, _LONG.pack(flags ^ _FS_IMMUTABLE_FL))
        return True
    except OSError as error:
        if error.errno in _UNSUPPORTED:
            return False
        raise
    finally:
        os.close(fd)
