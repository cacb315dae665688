"""The pool: one btrfs file system per node, on a block device or in a sparse file, that is ours.

Two things make a file system ours: the label ``pannier`` and a marker file in its root. A pool is
never formatted twice: :func:`create_pool` takes an existing one as it is, *even with*
``force_format``; whoever wants to destroy one runs ``wipefs`` on it first. Everything else that a
device or file may hold is foreign and left alone unless ``force_format`` says otherwise.

Mounts are made in the mount namespace of the calling process. Every function may be repeated.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import uuid
from dataclasses import dataclass
from pathlib import Path

from pannier.core.errors import (
    Conflict,
    ForeignData,
    InvalidInput,
    PoolFull,
    PoolMissing,
    StorageError,
)
from pannier.core.record import newer_format
from pannier.core.size import format_size
from pannier.host.files import draft_of, keep_private, sync_directory, write_file
from pannier.host.ioctls import control
from pannier.host.mountflags import forbid_devices_and_setuid
from pannier.host.mountinfo import mount_at
from pannier.storage.blocking import told_as_storage_error
from pannier.storage.btrfs import ioctl, loop
from pannier.storage.commands import run
from pannier.storage.disk_check import check_disk
from pannier.storage.probe import LABEL, Signature, describe, find_signatures

MARKER = ".pannier-pool"
SMALLEST_BYTES = 128 << 20  # mkfs.btrfs wants some 110 MiB
_FORMAT_VERSION = 1
_LOOP = re.compile(r"/dev/loop[0-9]+")
_COMMIT_S = 5
"""How long the kernel may put off a commit: what was deleted is free only after one, and a pool that many
snapshots come and go in is full of it otherwise."""
_LEAF_BYTES = 4096
"""Of btrfs' own trees. The kernel's default is four times that: after each snapshot, a writer at random
places rewrites a leaf for each place, which halved its speed."""
_COMMAND_S = 60.0
_MKFS = ("mkfs.btrfs", "-q", "-L", LABEL, "-n", str(_LEAF_BYTES), "-s", "4096")
_MKFS_S = 600.0  # mkfs discards the whole disk
_NOCOW_FLAG, _GETFLAGS, _SETFLAGS = 0x00800000, 0x80086601, 0x40086602


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """An open pool.

    Attributes:
        uuid: written into it when it was made.
        quotas: whether simple quotas are on, so that size limits hold and use is counted.
    """

    mountpoint: Path
    uuid: str
    quotas: bool


async def create_pool(
    source: Path, *, mountpoint: Path, size_bytes: int | None = None, force_format: bool = False
) -> Pool:
    """Make the pool in ``source`` and mount it; an existing pool is opened and kept as it is.

    Args:
        source: a block device, or the path of a sparse file that is made where there is none.
        mountpoint: directory to mount it at, made where there is none.
        size_bytes: of the sparse file; must be None for a device.
        force_format: overwrite foreign data. A pool of ours is not overwritten even so.

    Raises:
        ForeignData: ``source`` holds something; it was not touched.
        PoolMissing: no such device.
        Conflict: another pool is mounted there.
        InvalidInput: the size is missing, not wanted or too small.
    """
    mounted = await asyncio.to_thread(mount_at, mountpoint)
    if mounted is not None:
        if not source.exists():
            raise Conflict(
                f"a pool from {mounted.source} is mounted at {mountpoint} already, and {source} is "
                f"not there",
                remedy="name the pool that is there, or unmount it first",
            )
        return await open_pool(source, mountpoint=mountpoint)
    is_device = await asyncio.to_thread(_is_device, source)
    found = await find_signatures(source) if source.exists() else ()
    if _is_labelled_ours(found):
        return await _adopt(source, mountpoint=mountpoint)
    if found and not force_format:
        raise _foreign(source, describe(found))
    if is_device:
        await _format_device(source, size_bytes=size_bytes, force=force_format)
    else:
        await _format_file(source, size_bytes=size_bytes)
    await _mount(source, mountpoint=mountpoint)
    return await asyncio.to_thread(_furnish, mountpoint)


async def open_pool(source: Path, *, mountpoint: Path) -> Pool:
    """Mount the pool where it is not mounted, and make sure that it is ours. Never formats.

    Raises:
        PoolMissing: no such device or file, or it cannot be mounted.
        ForeignData: it is not a pool.
        NewerFormat: it was made by a newer version.
    """
    if (await asyncio.to_thread(mount_at, mountpoint)) is None:
        if not source.exists():
            raise PoolMissing(
                f"the pool {source} is not there",
                remedy="attach the device or restore the file, then restart pannierd; "
                "on a new node run `pannier init` or `pannier join`",
            )
        found = await find_signatures(source)
        if not _is_labelled_ours(found):
            raise _not_a_pool(source, describe(found) or "no file system")
        await _mount(source, mountpoint=mountpoint)
    return await asyncio.to_thread(take_pool, mountpoint)


async def close_pool(mountpoint: Path) -> bool:
    """Unmount the pool; False if something still uses it. The loop device is detached with it."""
    if (await asyncio.to_thread(mount_at, mountpoint)) is None:
        return True
    finished = await run(["umount", "--", str(mountpoint)], timeout_s=_COMMAND_S, check=False)
    if finished.status and "busy" in finished.stderr:
        return False
    if finished.status:
        raise finished.error()
    return True


async def grow_pool(source: Path, *, mountpoint: Path, size_bytes: int | None = None) -> None:
    """Grow the pool in use: a sparse file to ``size_bytes``, a device to the size it has now.

    Raises:
        InvalidInput: smaller than it is, or a size for a device; StorageError.
    """
    await asyncio.to_thread(verify_pool, mountpoint)
    mount = await asyncio.to_thread(mount_at, mountpoint)
    assert mount is not None
    if await asyncio.to_thread(_is_device, source):
        if size_bytes is not None:
            raise InvalidInput(
                f"{source} is a device and has its own size", remedy="leave the size out"
            )
    else:
        await asyncio.to_thread(_extend, source, size_bytes)
        await run(["losetup", "--set-capacity", mount.source], timeout_s=_COMMAND_S)
    await run(["btrfs", "filesystem", "resize", "max", str(mountpoint)], timeout_s=_COMMAND_S)


def check(mountpoint: Path) -> None:
    """Make sure that the pool is mounted, ours and writable; takes microseconds, blocks.

    Raises:
        PoolMissing: not mounted; ForeignData: something else is; DiskFailed: it went read-only.
    """
    _mounted_btrfs(mountpoint)
    check_disk(mountpoint)  # before it is read: nothing of a pool on a failed disk can be
    verify_pool(mountpoint)


def take_pool(mountpoint: Path) -> Pool:
    """Make a mounted pool safe to use, however it was mounted; blocks.

    Device nodes and setuid programs do not work on this mount; on the containers' own mounts they do.
    Only root can reach what is in it. A loop device that somebody else has attached is made to flush.

    Raises:
        As :func:`verify_pool`; StorageError: its loop device cannot be made to flush.
    """
    found = verify_pool(mountpoint)
    mount = mount_at(mountpoint)
    if mount is not None and _LOOP.fullmatch(mount.source):
        loop.make_sound(Path(mount.source))
    with told_as_storage_error(f"close the pool {mountpoint} to others"):
        forbid_devices_and_setuid(mountpoint)
        with contextlib.suppress(OSError):  # read-only: check_disk reports that
            keep_private(mountpoint)
    return found


def verify_pool(mountpoint: Path) -> Pool:
    """Read the marker of a mounted pool; blocks.

    Raises:
        PoolMissing: nothing is mounted there; ForeignData: what is mounted there is not a pool;
        NewerFormat: it was made by a newer version; StorageError: it cannot be read.
    """
    _mounted_btrfs(mountpoint)
    with told_as_storage_error(f"read the pool at {mountpoint}"):
        marker = _read_marker(mountpoint)
        quotas = ioctl.charged_bytes(mountpoint, group=ioctl.TOP_LEVEL) is not None
    return Pool(mountpoint=mountpoint, uuid=marker, quotas=quotas)


def _mounted_btrfs(mountpoint: Path) -> None:
    mount = mount_at(mountpoint)
    if mount is None:
        what = "a file is in its place" if mountpoint.is_file() else "nothing is mounted there"
        raise PoolMissing(
            f"the pool is not mounted at {mountpoint}: {what}",
            remedy="see `journalctl -u pannierd` for why, and `pannier doctor`",
        )
    if mount.fstype != "btrfs":
        raise _not_a_pool(mountpoint, f"a {mount.fstype} file system")


def _read_marker(mountpoint: Path) -> str:
    try:
        marker = json.loads((mountpoint / MARKER).read_text())
        version, pool = marker["format"], marker["pool"]
    except (FileNotFoundError, ValueError, KeyError, TypeError) as error:
        raise _not_a_pool(mountpoint, "a btrfs without our marker file") from error
    if type(version) is not int or version < 1:
        raise _not_a_pool(mountpoint, "a btrfs without our marker file")
    if version > _FORMAT_VERSION:
        raise newer_format(f"the pool at {mountpoint}", version, known=_FORMAT_VERSION)
    return str(pool)


async def _adopt(source: Path, *, mountpoint: Path) -> Pool:
    """Take a file system with our label. One without a marker must be empty, as after a crash
    between mkfs and :func:`_furnish`.

    The marker's draft may be there: that was a crash in :func:`_furnish`.
    """
    await _mount(source, mountpoint=mountpoint)
    try:
        marker = mountpoint / MARKER
        if not marker.exists() and set(os.listdir(mountpoint)) <= {draft_of(marker).name}:
            return await asyncio.to_thread(_furnish, mountpoint)
        return await asyncio.to_thread(verify_pool, mountpoint)
    except StorageError:
        await close_pool(mountpoint)
        raise


def _furnish(mountpoint: Path) -> Pool:
    """Quotas first, while it is empty: they do not count what was there before. Marker last."""
    with contextlib.suppress(OSError):  # an older kernel: no limits, and verify_pool says so
        ioctl.enable_simple_quota(mountpoint)
    marker = mountpoint / MARKER
    content = json.dumps({"format": _FORMAT_VERSION, "pool": str(uuid.uuid4())}) + "\n"
    write_file(marker, content.encode())
    ioctl.sync_filesystem(mountpoint)
    return verify_pool(mountpoint)


async def _format_device(source: Path, *, size_bytes: int | None, force: bool) -> None:
    if size_bytes is not None:
        raise InvalidInput(
            f"{source} is a device and has its own size", remedy="leave the size out"
        )
    # Without -f mkfs checks the device once more itself, and it opens the device exclusively.
    options = ["-f"] if force else []
    await run([*_MKFS, *options, "--", str(source)], timeout_s=_MKFS_S)


async def _format_file(source: Path, *, size_bytes: int | None) -> None:
    """Make the file system in a draft beside ``source`` and rename it: whole or not there."""
    if size_bytes is None or size_bytes < SMALLEST_BYTES:
        raise InvalidInput(
            f"a pool in a file needs a size of at least {format_size(SMALLEST_BYTES)}",
            remedy=f"give a size, such as 50G, or a block device instead of {source}",
        )
    draft = source.with_name(f"{source.name}.new")
    await asyncio.to_thread(_allocate, draft, size_bytes)
    await run([*_MKFS, "-f", "--", str(draft)], timeout_s=_MKFS_S)
    await asyncio.to_thread(_publish, draft, source)


def _allocate(draft: Path, size_bytes: int) -> None:
    draft.parent.mkdir(parents=True, exist_ok=True)
    draft.unlink(missing_ok=True)
    fd = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with contextlib.suppress(OSError):  # a btrfs below must not copy on write a second time
            block = bytearray(8)
            control(fd, _GETFLAGS, block)
            flags = int.from_bytes(block, "little") | _NOCOW_FLAG
            control(fd, _SETFLAGS, flags.to_bytes(8, "little"))
        os.ftruncate(fd, size_bytes)
    except OSError as error:
        raise PoolFull(
            f"cannot make the pool file {draft}: {error.strerror}", remedy="choose a smaller size"
        ) from error
    finally:
        os.close(fd)


def _publish(draft: Path, source: Path) -> None:
    with draft.open("rb") as written:
        os.fsync(written.fileno())
    draft.rename(source)
    sync_directory(source.parent)


def _extend(source: Path, size_bytes: int | None) -> None:
    now = source.stat().st_size
    if size_bytes is None or size_bytes < now:
        raise InvalidInput(
            f"the pool {source} has {format_size(now)} and can only grow",
            remedy="give a larger size",
        )
    os.truncate(source, size_bytes)


async def _mount(source: Path, *, mountpoint: Path) -> None:
    await asyncio.to_thread(_prepare_mountpoint, mountpoint)
    device = None if await asyncio.to_thread(_is_device, source) else await loop.attach(source)
    try:
        await run(
            [
                "mount",
                "-t",
                "btrfs",
                "-o",
                f"noatime,nodev,nosuid,commit={_COMMIT_S}",
                "--",
                str(device or source),
                str(mountpoint),
            ],
            timeout_s=_COMMAND_S,
        )
    except StorageError as error:
        raise PoolMissing(
            f"the pool {source} cannot be mounted at {mountpoint}: {error.message}",
            remedy="see `dmesg`; a damaged one can be read with `mount -o ro,rescue=all`",
        ) from error
    finally:
        if device is not None:  # if mounted, this only marks it to be detached at the unmount
            await loop.detach(device)


def _prepare_mountpoint(mountpoint: Path) -> None:
    try:
        mountpoint.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise ForeignData(
            f"a file is in the place of the pool's directory {mountpoint}",
            remedy="move it away, then try again",
        ) from error
    if os.listdir(mountpoint):
        raise ForeignData(
            f"the directory {mountpoint} is not empty, and a mount would hide what is in it",
            remedy="move its content away, then try again",
        )


def _is_device(source: Path) -> bool:
    """Whether it is a block device; False also where there is nothing.

    Raises:
        ForeignData: it is something else than a device or file.
        PoolMissing: it would be a device, and is not there.
    """
    if source.is_block_device():
        return True
    if source.exists() and not source.is_file():
        raise ForeignData(
            f"{source} is neither a block device nor a file", remedy="give the pool another place"
        )
    if not source.exists() and source.is_relative_to("/dev"):
        raise PoolMissing(f"there is no device {source}", remedy="see `lsblk` for the devices")
    return False


def _is_labelled_ours(found: tuple[Signature, ...]) -> bool:
    return len(found) == 1 and found[0].type == "btrfs" and found[0].label == LABEL


def _foreign(source: Path, what: str) -> ForeignData:
    return ForeignData(
        f"{source} holds {what}; it was not touched",
        remedy="choose an empty device or file, or, if nothing on it is needed, "
        "repeat with --force-format",
    )


def _not_a_pool(place: Path, what: str) -> ForeignData:
    return ForeignData(
        f"{place} is not a Pannier pool but {what}; it was not touched",
        remedy="mount the pool there, or give this node another place for its pool",
    )
