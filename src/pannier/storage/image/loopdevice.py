"""The loop device of an image: direct I/O unless that has failed, sectors of 4 KiB, gone with the last mount.

A loop device's number keeps settings of whoever used it before. Some of them break a promise that a
sync call makes: ``write through`` lets no flush reach the disk. So they are read back after each attach,
and a number whose settings are not what they must be is made anew.

Nothing here asks about devices that are not ours by their paths (see :mod:`pannier.storage.btrfs.loop`).
"""

from __future__ import annotations

import errno
import os
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import structlog

from pannier.core.errors import StorageError
from pannier.host.ioctls import control

log = structlog.get_logger(__name__)

_CONTROL = Path("/dev/loop-control")
_ADD, _REMOVE, _GET_FREE = 0x4C80, 0x4C81, 0x4C82
_CONFIGURE, _SET_CAPACITY, _GET_STATUS = 0x4C0A, 0x4C07, 0x4C05
_CONFIG = struct.Struct("<II232s64x")
_INFO = struct.Struct("<QQQQQIIII64s64s32s16x")
_READ_ONLY, _AUTOCLEAR, _DIRECT = 1, 4, 16
_MAJOR = 7
SECTOR_BYTES = 4096
_OTHERS_SECONDS = 2.0
"""How long a device that was given up may stay attached: programs that look at all devices, as udev and mkfs
do, have it open for a moment, and the kernel detaches it when the last one closes it."""
_OTHERS_LOOK_SECONDS = 0.05
_TRIES = 50
"""Others attach loop devices too: the free number that the kernel names may be taken a moment later."""


@dataclass(frozen=True, slots=True)
class LoopDevice:
    """An attached loop device.

    Attributes:
        number: N of ``/dev/loopN``.
        path: its node.
    """

    number: int
    path: Path

    @classmethod
    def numbered(cls, number: int) -> LoopDevice:
        return cls(number, Path(f"/dev/loop{number}"))

    @property
    def settings(self) -> Path:
        """Its directory in sysfs."""
        return Path(f"/sys/block/loop{self.number}")

    @property
    def limits(self) -> Path:
        """The directory in sysfs of the limits of its dirty memory."""
        return Path(f"/sys/class/bdi/{_MAJOR}:{self.number}")

    @property
    def is_direct(self) -> bool:
        """Whether it reads and writes its file past the page cache."""
        return (self.settings / "loop/dio").read_text().strip() == "1"

    @property
    def takes_writes(self) -> bool:
        """Whether it was attached for writing too."""
        return (self.settings / "ro").read_text().strip() == "0"

    def limit_dirty(self, limit_bytes: int | None) -> None:
        """Limit what memory may hold of data that is not written to it yet; None lifts the limit.

        Raises:
            OSError: the kernel refused; FileNotFoundError: it is gone.
        """
        strict = self.limits / "strict_limit"
        if not strict.exists():  # before Linux 6.2
            return
        if limit_bytes is None:
            strict.write_text("0")
            (self.limits / "max_ratio").write_text("100")
        else:
            (self.limits / "max_bytes").write_text(str(limit_bytes))
            strict.write_text("1")


@contextmanager
def attached(image: Path, *, direct: bool = True, read_only: bool = False) -> Iterator[LoopDevice]:
    """Attach an image for as long as the block lasts, or, if it is mounted then, as long as that.

    An image that a loop device has already is refused: two file systems on one image destroy it.

    Args:
        direct: past the page cache; without, every write costs a copy, and random ones much more.
        read_only: for a file that cannot be written.

    Raises:
        StorageError: it is attached already, no device is to be had, or one with sound settings.
        OSError: the kernel refused.
    """
    flags = _AUTOCLEAR | (_DIRECT if direct else 0) | (_READ_ONLY if read_only else 0)
    device, fd = _attach(image, flags)
    try:
        yield device
    finally:
        os.close(fd)  # the last one to close it detaches it


@contextmanager
def held(image: Path) -> Iterator[LoopDevice | None]:
    """The loop device that has an image, kept from being detached while the block lasts; or None.

    A program that only looks at the device, as udev does, is waited for.

    Raises:
        StorageError: somebody else has attached it, with settings that lose data.
    """
    until = time.monotonic() + _OTHERS_SECONDS
    while (device := find(image)) is not None and not _is_mounted(device):
        if time.monotonic() >= until:
            break
        time.sleep(_OTHERS_LOOK_SECONDS)
    if device is None:
        yield None
        return
    with _opened(device.path, os.O_RDWR) as fd:
        if not _has(fd, image):  # detached in this moment
            yield None
            return
        if wrong := _wrong_settings(
            device, direct=device.is_direct, writes=device.takes_writes, limited=True
        ):
            raise StorageError(
                f"{device.path} has the image {image}, and not as it must be: {', '.join(wrong)}",
                remedy=f"end who uses it: grep loop{device.number} /proc/*/mountinfo",
            )
        yield device


def find(image: Path) -> LoopDevice | None:
    """The loop device that has an image, or None. By device and inode: a path may be another file's."""
    for folder in Path("/sys/block").glob("loop*/loop"):
        try:
            # The kernel asks the file system below for a device's status, and others' may hang.
            name = (folder / "backing_file").read_text().strip().removesuffix(" (deleted)")
            if name.rpartition("/")[2] != image.name:
                continue
            device = LoopDevice.numbered(int(folder.parent.name.removeprefix("loop")))
            _make_node(device)
            with _opened(device.path, os.O_RDONLY) as fd:
                if _has(fd, image):
                    return device
        except OSError:  # detached meanwhile
            continue
    return None


def _has(fd: int, image: Path) -> bool:
    """Whether an open loop device has an image."""
    status = bytearray(_INFO.size)
    try:
        control(fd, _GET_STATUS, status)
    except OSError:  # it has none any more
        return False
    found = os.stat(image)
    return _INFO.unpack(status)[:2] == (found.st_dev, found.st_ino)


def _is_mounted(device: LoopDevice) -> bool:
    """Whether a file system is mounted from it, in whatever namespace."""
    return Path(f"/sys/fs/ext4/loop{device.number}").exists()


def grow(device: LoopDevice) -> None:
    """Take the image's present size over."""
    with _opened(device.path, os.O_RDONLY) as fd:
        control(fd, _SET_CAPACITY)


def _attach(image: Path, flags: int) -> tuple[LoopDevice, int]:
    """The device of an image, open: it would go with its last open file."""
    until = time.monotonic() + _OTHERS_SECONDS
    while (other := find(image)) is not None:
        if time.monotonic() < until:
            time.sleep(_OTHERS_LOOK_SECONDS)
            continue
        raise StorageError(
            f"the image {image} is attached to {other.path} already",
            remedy=f"see who uses it: grep loop{other.number} /proc/*/mountinfo",
        )
    way = os.O_RDONLY if flags & _READ_ONLY else os.O_RDWR
    how = way | (os.O_DIRECT if flags & _DIRECT else 0)
    with _opened(image, how) as file, _opened(_CONTROL, os.O_RDWR) as numbers:
        for _ in range(_TRIES):
            device = LoopDevice.numbered(control(numbers, _GET_FREE))
            _make_node(device)
            fd = os.open(device.path, way | os.O_CLOEXEC)
            try:
                if not _configure(fd, file, flags):
                    os.close(fd)
                    continue
                wrong = _wrong_settings(
                    device, direct=bool(flags & _DIRECT), writes=not flags & _READ_ONLY
                )
            except BaseException:
                os.close(fd)
                raise
            if not wrong:
                return device, fd
            log.warning("loop.settings", device=str(device.path), wrong=", ".join(wrong))
            os.close(fd)
            _renew(numbers, device)
    raise StorageError(
        f"no loop device is to be had for {image}, or only with settings that lose data",
        remedy="see losetup --list, and /sys/block/loop*/queue/write_cache",
    )


def _configure(fd: int, file: int, flags: int) -> bool:
    """Attach the file; False if somebody else took the device meanwhile."""
    info = _INFO.pack(0, 0, 0, 0, 0, 0, 0, 0, flags, b"", b"", b"")
    try:
        control(fd, _CONFIGURE, _CONFIG.pack(file, SECTOR_BYTES, info))
    except OSError as error:
        if error.errno == errno.EBUSY:
            return False
        raise
    return True


def _wrong_settings(
    device: LoopDevice, *, direct: bool, writes: bool = True, limited: bool = False
) -> list[str]:
    """What of its settings loses data or hides it: "queue/write_cache is write through".

    Args:
        direct: what its way to the file shall be.
        writes: whether it is written to: one that is not has nothing to flush, and nothing to discard.
        limited: whether its dirty memory may have limits.
    """
    wanted = {
        "loop/dio": "1" if direct else "0",
        "queue/iostats": "1",
        "queue/logical_block_size": str(SECTOR_BYTES),
    }
    if writes:
        wanted["queue/write_cache"] = "write back"
    read = {name: (device.settings / name).read_text().strip() for name in wanted}
    wrong = [f"{name} is {read[name]}" for name in wanted if read[name] != wanted[name]]
    if writes and (device.settings / "queue/discard_max_bytes").read_text().strip() == "0":
        wrong.append("queue/discard_max_bytes is 0")
    limits = {"min_bytes": "0", "strict_limit": "0", "max_ratio": "100", "min_ratio": "0"}
    for name, usual in () if limited else limits.items():
        with suppress(FileNotFoundError):
            if (found := (device.limits / name).read_text().strip()) != usual:
                wrong.append(f"{name} of its dirty memory is {found}")
    return wrong


def _renew(numbers: int, device: LoopDevice) -> None:
    """Remove a device's number and add it again: its settings are then those of a new one."""
    for _ in range(_TRIES):
        try:
            control(numbers, _REMOVE, device.number)
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
        else:
            break
    with suppress(FileExistsError):
        control(numbers, _ADD, device.number)


def _make_node(device: LoopDevice) -> None:
    """Make the device's node where there is no udev to do it."""
    if not device.path.exists():
        with suppress(FileExistsError):
            os.mknod(device.path, 0o660 | 0o060000, os.makedev(_MAJOR, device.number))


@contextmanager
def _opened(path: Path, flags: int) -> Iterator[int]:
    fd = os.open(path, flags | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)
