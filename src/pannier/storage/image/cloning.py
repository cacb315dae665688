"""A generation of one volume becomes the first one of another: a snapshot, which shares all bytes with it.

A clone has the file system's UUID of what it is a clone of. Another one would be written into each group of blocks and each
inode, since ext4's checksums depend on it: that is work by the size of the volume, and bytes that are shared no more.
The kernel mounts both beside each other, and tells them apart by their devices; so does Pannier.
"""

from __future__ import annotations

import os
from pathlib import Path

from pannier.core.errors import StorageError
from pannier.core.generation import Generation
from pannier.host.files import DRAFT
from pannier.storage.blocks import BLOCK_BYTES
from pannier.storage.btrfs import ioctl
from pannier.storage.btrfs.layout import Home, is_whole
from pannier.storage.image import ext4, loopdevice, nocow
from pannier.storage.image.identity import identity_of, mark

UNBORN = "unborn"
"""The file in the directory of a volume whose record may not be written. It is there before anything else is."""
_OWN_PART = 30
"""An ext4 keeps a thirty-second part of each group for its inodes, and little more for itself: this is more than that."""
_OWN_BYTES = 1 << 20
"""For what is rounded, and for what the kernel keeps of what it keeps."""


def clone(tree: Path, home: Home, base: Generation, *, unborn: bool) -> None:
    """Make a generation of another volume, which has the subvolume ``tree``, the generation ``base`` of a volume. Durable.

    It gets that one's identity, as what is received does.

    Raises:
        OSError: the disk refused. StorageError: something of the volume is set aside, since it was damaged: what it shares with
            the other volume may be what is damaged.
    """
    target = home.tree(base)
    if is_whole(target):
        return
    if home.has_quarantined:
        raise StorageError(
            f"what was here of volume {home.volume} was set aside, since it was damaged",
            remedy="its holder sends it anew",
        )
    home.make(quotas=False, note=UNBORN if unborn else "")
    draft = home.path / f"{DRAFT}clone"
    if draft.exists():
        ioctl.destroy_subvolume(draft)
    ioctl.create_snapshot(tree, target=draft, read_only=False)
    try:
        mark(draft, identity_of(tree))
        target.parent.mkdir(exist_ok=True)
        ioctl.create_snapshot(draft, target=target, read_only=True)
    finally:
        ioctl.destroy_subvolume(draft)


def enlarge(image: Path, *, more_bytes: int) -> None:
    """Give the file system in an image that nobody uses room for so many bytes more of files.

    Raises:
        OSError, StorageError: that failed. Corrupt: the file system is damaged.
    """
    before = nocow.filesystem_bytes(image) // BLOCK_BYTES
    more = more_bytes + more_bytes // _OWN_PART + _OWN_BYTES
    blocks = before + -(-more // BLOCK_BYTES)
    blocks += ext4.kept_blocks(blocks) - ext4.kept_blocks(before)
    os.truncate(image, blocks * BLOCK_BYTES)
    with loopdevice.attached(image) as device:
        ext4.mend(device.path)
        ext4.grow_unmounted(device.path)


def unborn(volumes: Path) -> frozenset[str]:
    """Ids of the volumes that may have no record, of all whose directories are in ``volumes``.

    Raises:
        OSError: they cannot be listed.
    """
    return frozenset(
        name
        for name in os.listdir(volumes)
        if not name.startswith(".") and (volumes / name / UNBORN).exists()
    )


def born(home: Home) -> None:
    """Note that a volume has its record. A power cut may take that back: then it is found again, and so is the record."""
    (home.path / UNBORN).unlink(missing_ok=True)
