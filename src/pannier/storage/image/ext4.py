"""The ext4 in an image: made, looked at, mounted, frozen, shut down.

Everything that matters is said and not left to defaults: those of ``mke2fs.conf``, of the superblock
and of the kernel differ from node to node, and a superblock may come from another node.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import struct
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from pannier.core.errors import Corrupt, StorageError
from pannier.host import detached
from pannier.host.ioctls import control
from pannier.storage.base import RootAttributes
from pannier.storage.blocking import in_thread
from pannier.storage.blocks import BLOCK_BYTES
from pannier.storage.commands import run

DATA = "data"
"""The directory that containers are given."""
_INODE_BYTES = 256
_BYTES_PER_INODE = 8192
"""Many small files: git and Jenkins have a mean of 4 to 10 KiB."""
_JOURNAL_BYTES = (4 << 20, 64 << 20)
"""At least and at most: larger ones make a mount after a power cut slower, smaller ones every write."""
SMALLEST_ROOM = 8 << 20
"""mkfs makes no journal where there is less."""
_MKFS_S = 600.0
_SIZINGS = 4
"""How often a file system is made until its size fits: groups of blocks make the size jump."""

_FEATURES = (
    "has_journal", "ext_attr", "resize_inode", "dir_index", "filetype", "extent", "64bit", "flex_bg",
    "sparse_super", "large_file", "huge_file", "dir_nlink", "extra_isize", "metadata_csum",
)  # fmt: skip
"""What every e2fsprogs since 2014 knows. ``orphan_file`` is too new for that; ``fast_commit`` has lost
data."""
_HAS_JOURNAL, _JOURNAL_INODE = 0x4, 8
_COMPATIBLE = 0x4 | 0x8 | 0x10 | 0x20
"""has_journal, ext_attr, resize_inode, dir_index."""
_INCOMPATIBLE = 0x2 | 0x4 | 0x40 | 0x80 | 0x200 | 0x10000
"""filetype, needs_recovery, extents, 64bit, flex_bg, encrypt."""
_READ_ONLY_COMPATIBLE = 0x1 | 0x2 | 0x8 | 0x20 | 0x40 | 0x400
"""sparse_super, large_file, huge_file, dir_nlink, extra_isize, metadata_csum."""
_CONTINUE = 1

OPTIONS = {"errors": "remount-ro", "data_err": "abort", "barrier": "1", "data": "ordered"}
"""Of each mount."""
_READ_ONLY, _NOSUID, _NODEV, _NOATIME = 0x1, 0x2, 0x4, 0x400
_FREEZE, _THAW = 0xC0045877, 0xC0045878
_SHUTDOWN, _WITHOUT_LOG = 0x8004587D, 2
_UMOUNT_NOFOLLOW, _MNT_DETACH = 0x8, 0x2
_TRIM = 0xC0185879
TRIM_BYTES = 8 << 30
"""As much is trimmed at once: meanwhile the file system cannot be unmounted."""
_RESIZE = 0x40086610
_CHECK_S = 3600.0
"""A check of everything reads all of the file system's own blocks: minutes for a full disk."""
_FINDINGS = 100
"""Lines of a check's findings at most: one damaged table can give a million of them."""
_MENDED = 1
"""What e2fsck ends with when it has mended something; 2 asks for a reboot, 4 and more are failures."""

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mount.argtypes = (
    ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p,
)  # fmt: skip
_libc.umount2.argtypes = (ctypes.c_char_p, ctypes.c_int)


@dataclass(frozen=True, slots=True)
class Superblock:
    """What a superblock says of its file system.

    Attributes:
        size: in bytes.
        room: what files can fill of that, in bytes.
        errors: how many the kernel has found in it, ever.
    """

    size: int
    room: int
    errors: int


async def make(image: Path, *, size: int, root: RootAttributes, encrypted: bool) -> None:
    """Make the file system in an empty file, which becomes ``size`` bytes long, with an empty
    :data:`DATA`. Nothing is written but what is not zero.

    Args:
        encrypted: it can keep encrypted files; none is yet.

    Raises:
        StorageError: mkfs failed, as with too small a size.
    """
    await in_thread(_resize, image, size - size % BLOCK_BYTES)
    journal = min(_JOURNAL_BYTES[1], max(_JOURNAL_BYTES[0], size >> 6)) >> 20
    with tempfile.TemporaryDirectory(prefix="pannier-image-") as folder:
        data = Path(folder) / DATA
        data.mkdir()
        os.chown(data, root.uid, root.gid)
        data.chmod(root.mode)  # last: chown clears the setuid bits
        await run(
            [
                "mkfs.ext4", "-q", "-F", "-b", str(BLOCK_BYTES), "-I", str(_INODE_BYTES),
                "-i", str(_BYTES_PER_INODE), "-m", "0", "-J", f"size={journal}",
                "-O", ",".join(("none", *_FEATURES, *(["encrypt"] if encrypted else []))), "-E", "nodiscard,assume_storage_prezeroed=1",
                "-d", folder, str(image),
            ],
            timeout_s=_MKFS_S,
        )  # fmt: skip


async def make_with_room(image: Path, *, room: int, root: RootAttributes, encrypted: bool) -> None:
    """As :func:`make`, of the size in which files can fill ``room`` bytes.

    What a file system needs for itself is known only when it is made, so it is made more than once.
    """
    wanted = -(-room // BLOCK_BYTES)
    size = room + room // 24 + (16 << 20)
    for _ in range(_SIZINGS):
        await make(image, size=size, root=root, encrypted=encrypted)
        missing = wanted - superblock(await in_thread(_superblock_of, image)).room // BLOCK_BYTES
        if not missing:
            return
        size += missing * BLOCK_BYTES
    if missing > 0:
        await make(image, size=size + missing * BLOCK_BYTES, root=root, encrypted=encrypted)


def _resize(image: Path, size: int) -> None:
    os.truncate(image, 0)
    os.truncate(image, size)


def _superblock_of(image: Path) -> bytes:
    with image.open("rb", buffering=0) as file:
        return os.pread(file.fileno(), 1024, 1024)


def superblock(raw: bytes) -> Superblock:
    """Read a superblock.

    Args:
        raw: bytes 1,024 to 2,048 of the image.

    Raises:
        Corrupt: it is none, or one of a file system that we did not make.
    """

    def word(at: int) -> int:
        return int(struct.unpack_from("<I", raw, at)[0])

    def half(at: int) -> int:
        return int(struct.unpack_from("<H", raw, at)[0])

    if half(0x38) != 0xEF53:
        raise _foreign("it has no ext4")
    blocks = word(0x4) | word(0x150) << 32
    if 1024 << word(0x18) != BLOCK_BYTES:
        raise _foreign("its blocks are not of 4 KiB")
    known = (_COMPATIBLE, _INCOMPATIBLE, _READ_ONLY_COMPATIBLE)
    for at, ours in zip((0x5C, 0x60, 0x64), known, strict=True):
        if unknown := word(at) & ~ours:
            raise _foreign(f"its ext4 has features that ours has not ({at:#x}: {unknown:#x})")
    if not word(0x5C) & _HAS_JOURNAL or (word(0xE0), word(0xE4)) != (_JOURNAL_INODE, 0):
        raise _foreign("its ext4 has no journal of its own")
    if half(0x3C) != _CONTINUE:
        raise _foreign("its ext4 would stop the machine or itself at an error")
    if raw[0x200:0x240].strip(b"\0"):
        raise _foreign("its superblock has mount options")
    free = word(0xC) | word(0x158) << 32
    return Superblock(
        size=blocks * BLOCK_BYTES,
        room=(free - kept_blocks(blocks)) * BLOCK_BYTES,
        errors=word(0x194),
    )


def room_of(blocks_bytes: int) -> int:
    """What files can fill of a file system, by what it counts as its blocks without its own (statvfs), in bytes."""
    return blocks_bytes - kept_blocks(blocks_bytes // BLOCK_BYTES) * BLOCK_BYTES


def size_for(room: int, *, now: int, size: int) -> int:
    """The size in which files can fill ``room`` bytes, and little more.

    Args:
        now: what they can fill now. size: the file system's present size.
    """
    missing = room - now
    return (size + missing + missing // 24 + (1 << 20)) // BLOCK_BYTES * BLOCK_BYTES


def kept_blocks(blocks: int) -> int:
    """How many of a file system's blocks the kernel keeps for what it must write when all seems full."""
    return min(blocks // 50, 4096)


def _foreign(why: str) -> Corrupt:
    return Corrupt(
        f"the image is none that Pannier made: {why}",
        remedy="take the volume's copy on another node",
    )


def mount(device: Path, at: Path, *, read_only: bool = False) -> None:
    """Mount an ext4, never detected, with nothing left to the superblock's defaults.

    Raises:
        OSError: the kernel refused.
    """
    flags = _NODEV | _NOSUID | _NOATIME | (_READ_ONLY if read_only else 0)
    options = ",".join(f"{key}={value}" for key, value in OPTIONS.items())
    if _libc.mount(os.fsencode(device), os.fsencode(at), b"ext4", flags, options.encode()):
        _fail(at)


def open_data(device: Path) -> int:
    """A descriptor of :data:`DATA` in an ext4 that is mounted nowhere, read-only. With that descriptor the mount ends.

    What a crash has left is put in order first, as by :func:`mount`.

    Raises:
        OSError: the kernel refused.
    """
    root = detached.mount_nowhere("ext4", device, options=OPTIONS, read_only=True)
    try:
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        return os.open(DATA, flags, dir_fd=root)
    finally:
        os.close(root)


def unmount(at: Path, *, detach: bool = False) -> None:
    """Unmount. A frozen file system must not be: it would be neither there nor gone.

    Args:
        detach: also if somebody has files open there, which stay open.

    Raises:
        OSError: the kernel refused; EBUSY while it is in use.
    """
    if _libc.umount2(os.fsencode(at), _UMOUNT_NOFOLLOW | (_MNT_DETACH if detach else 0)):
        _fail(at)


@contextmanager
def frozen(at: Path) -> Iterator[int]:
    """Keep a mounted file system from changing: everything is in its image, its journal is empty.

    The block gets a descriptor for :func:`shut_down`.

    Raises:
        OSError: the kernel refused, or what was written could not be brought to the image.
    """
    with directory(at) as fd:
        _freeze(fd)
        try:
            yield fd
        finally:
            control(fd, _THAW, 0)


def freeze(at: Path) -> bool:
    """Bring everything into the image, and let every writer wait until :func:`thaw`. Repeatable.

    Returns False where it was frozen already.

    Raises:
        OSError: the kernel refused.
    """
    with directory(at) as fd:
        return _freeze(fd)


def _freeze(fd: int) -> bool:
    try:
        control(fd, _FREEZE, 0)
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        return False
    return True


def thaw(at: Path) -> None:
    """Let a mounted file system go on, if somebody has frozen it."""
    with directory(at) as fd, suppress(OSError):  # it is not frozen
        control(fd, _THAW, 0)


@contextmanager
def directory(at: Path) -> Iterator[int]:
    """A descriptor of a directory, for as long as the block lasts."""
    fd = os.open(at, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def first_block(fd: int) -> bytes:
    """The first block of a file that is open for direct I/O."""
    with mmap.mmap(-1, BLOCK_BYTES) as block:
        os.preadv(fd, [block], 0)
        return bytes(block)


def grow(at: Path, size: int) -> None:
    """Grow a mounted file system to ``size`` bytes, which its device has.

    Raises:
        PermissionError: that takes CAP_SYS_RESOURCE. OSError: the kernel refused otherwise.
    """
    with directory(at) as fd:
        control(fd, _RESIZE, struct.pack("<Q", size // BLOCK_BYTES))


def grow_unmounted(device: Path) -> None:
    """Grow a file system that was just checked to the size of its device.

    Raises:
        StorageError: resize2fs refused.
    """
    finished = _run("resize2fs", str(device))
    if finished.returncode:
        raise StorageError(
            f"the file system could not be grown: {finished.stderr.strip()[-500:]}",
            remedy="it goes on with the size that it has; see dmesg",
        )


def trim(at: Path, start: int) -> int | None:
    """Give what no file needs of the :data:`TRIM_BYTES` from ``start`` on back to the pool.

    Returns how many bytes that was; None behind the end.

    Raises:
        OSError: the kernel refused.
    """
    found = os.statvfs(at)
    if start >= found.f_blocks * found.f_frsize:
        return None
    asked = bytearray(struct.pack("<QQQ", start, TRIM_BYTES, 0))
    with directory(at) as fd:
        try:
            control(fd, _TRIM, asked)
        except OSError as error:
            if error.errno == errno.EINVAL:  # df leaves out what ext4 needs itself
                return None
            raise
    return int(struct.unpack_from("<Q", asked, 8)[0])


def used_blocks(at: Path) -> int:
    """How many blocks the files of a mounted file system have in its image by now.

    Raises:
        OSError: the kernel refused.
    """
    with directory(at) as fd:
        return _used_blocks(fd)


def _used_blocks(fd: int) -> int:
    found = os.fstatvfs(fd)
    waiting = int((_told(os.fstat(fd).st_dev) / "delayed_allocation_blocks").read_text())
    return found.f_blocks - found.f_bfree - waiting


def limit_growth(at: Path, growth_bytes: int, *, since: int | None) -> None:
    """Let the files of a mounted file system take no more than this beyond what its image has of them.

    It keeps its other free blocks to itself: a writer that needs one is told that there is no space, and
    ``df`` shows what is left. What memory has of new data counts too.

    Args:
        since: :func:`used_blocks` when there was that much room; what was taken since then counts, too. None: now.

    Raises:
        OSError: the kernel refused.
    """
    with directory(at) as fd:
        size, used = os.fstatvfs(fd).f_blocks, _used_blocks(fd)
        # What was deleted since is still in the image: to take other blocks instead takes room.
        most = min(used, used if since is None else since) + growth_bytes // BLOCK_BYTES
        folder = _told(os.fstat(fd).st_dev)
        (folder / "reserved_clusters").write_text(str(max(size - most, kept_blocks(size))))


def lift_limit(at: Path, *, size: int) -> None:
    """Undo :func:`limit_growth` for a file system of ``size`` bytes.

    Raises:
        OSError: the kernel refused.
    """
    with directory(at) as fd:
        kept = kept_blocks(size // BLOCK_BYTES)
        (_told(os.fstat(fd).st_dev) / "reserved_clusters").write_text(str(kept))


def _told(device: int) -> Path:
    """Where the kernel tells about the file system on a loop device."""
    return Path(f"/sys/fs/ext4/loop{os.minor(device)}")


def open_error_count(device: int) -> int:
    """A descriptor for :func:`error_count` of the file system on a loop device. It does not keep it from being unmounted.

    Raises:
        OSError: the kernel does not tell.
    """
    return os.open(_told(device) / "errors_count", os.O_RDONLY | os.O_CLOEXEC)


def error_count(counted: int) -> int:
    """How many errors the file system has counted, as kept in its superblock.

    Raises:
        OSError: the kernel does not tell any more.
    """
    return int(os.pread(counted, 32, 0))


def mend(device: Path) -> None:
    """After a refused write: replay the journal, and check the whole file system.

    Only what needs no decision is mended.

    Raises:
        Corrupt: more than that is damaged.
        OSError, StorageError: the check could not run.
    """
    finished = _run("e2fsck", "-f", "-p", str(device))
    if finished.returncode & ~_MENDED:
        raise Corrupt(
            f"the file system in the image is damaged: {finished.stdout.strip()[:500]}",
            remedy="take the volume's copy on another node, or see what e2fsck would do: "
            "pannier volume check",
        )


def findings(image: Path) -> tuple[str, ...]:
    """What e2fsck would mend in an image that nobody uses, in its own words.

    The journal is replayed and what a crash may leave is put in order, as the kernel does at a mount.

    Raises:
        OSError, StorageError: the check could not run.
    """
    replayed = _run("e2fsck", "-E", "journal_only", "-y", str(image))
    if replayed.returncode & ~_MENDED:
        return _lines(replayed.stdout + replayed.stderr)
    _run("e2fsck", "-p", str(image))  # it gives up where there is more, and that is seen next
    found = _run("e2fsck", "-f", "-n", str(image))
    return _lines(found.stdout + found.stderr) if found.returncode else ()


def _lines(said: str) -> tuple[str, ...]:
    """What is worth reading of e2fsck's output."""
    lines = (line.strip() for line in said.splitlines())
    return tuple(line for line in lines if line and not line.startswith(("Pass ", "e2fsck ")))[
        :_FINDINGS
    ]


def _run(*command: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=_CHECK_S, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise StorageError(
            f"{command[0]} did not end within {_CHECK_S:g} s", remedy="see dmesg and the disk"
        ) from error


def shut_down(fd: int) -> None:
    """Refuse every further write through whatever mount, for ever; inside of :func:`frozen`."""
    control(fd, _SHUTDOWN, struct.pack("<I", _WITHOUT_LOG))


def _fail(at: Path) -> None:
    number = ctypes.get_errno()
    raise OSError(number, os.strerror(number), str(at))
