"""What a generation of an image has of its own on every node, and when it was last written in this pool.

A generation that was received is a snapshot of the subvolume that it was received into. That one is marked with the
identity, and with itself: a snapshot of anything else that has the same mark, such as a live image that was made
of the generation, is not meant. The kernel's own mark (``BTRFS_IOC_SET_RECEIVED_SUBVOL``) commits a transaction for itself.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

from pannier.storage.btrfs import ioctl

_MARK = "user.pannier.received"


def identity_of(tree: Path) -> str:
    """What a generation has of its own on every node: where it was made, its subvolume's UUID, hex."""
    found = ioctl.subvolume_info(tree)
    return found.received_uuid or _marked(tree, of=found.parent_uuid) or found.uuid


def mark(tree: Path, identity: str) -> None:
    """Give the next snapshot of a writable subvolume its identity. Durable with the snapshot."""
    own = ioctl.subvolume_info(tree).uuid
    os.setxattr(tree, _MARK, f"{own} {identity}".encode(), follow_symlinks=False)


def _marked(tree: Path, *, of: str) -> str:
    """The identity that the subvolume ``of`` was marked with when this snapshot of it was made; empty without one."""
    try:
        found = os.getxattr(tree, _MARK, follow_symlinks=False).decode()
    except OSError as error:
        if error.errno != errno.ENODATA:
            raise
        return ""
    own, _, identity = found.partition(" ")
    return identity if own == of else ""


def last_change_of(tree: Path) -> int:
    """The last transaction in which the content of a generation was written, in this pool.

    One that was mended keeps the number of what it replaced: what was mended in it counts as newer.
    """
    found = ioctl.subvolume_info(tree)
    return found.received_ctransid or found.ctransid
