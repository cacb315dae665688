"""The files of an image that are encrypted: made so, and readable for as long as it is mounted.

A directory without its key is there all the same: its files have other names, and no new one can be made. So what the image
says is compared with what the cluster says before anything of it is given to anybody.
"""

from __future__ import annotations

import os
from pathlib import Path

from pannier.core.errors import Corrupt
from pannier.host import detached
from pannier.storage.image import ext4, fscrypt, loopdevice
from pannier.storage.keys import VolumeKeys

_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def encrypt(image: Path, key: bytes) -> None:
    """Have all that comes into an image encrypted, which was just made and that nobody uses. Durable with the image.

    Nothing is left mounted, also where the process is killed.

    Raises:
        OSError: the kernel refused, as where it cannot encrypt. StorageError: no loop device can be had.
    """
    with loopdevice.attached(image) as device:
        root = detached.mount_nowhere("ext4", device.path, options=ext4.OPTIONS, read_only=False)
        try:
            data = os.open(ext4.DATA, _FLAGS, dir_fd=root)
            try:
                fscrypt.set_policy(data, fscrypt.add_key(data, key))
                os.fsync(data)
            finally:
                os.close(data)
        finally:
            os.close(root)


def unlock(data: int, volume: str, keys: VolumeKeys) -> None:
    """Make what containers see of a mounted image readable, unless it is. Repeatable.

    Args:
        data: a descriptor of :data:`~pannier.storage.image.ext4.DATA` in it.
        volume: whose image it is.

    Raises:
        KeyMissing: the key is not here. Corrupt: the files are encrypted with another key, or not at all where they
            should be, or are and should not be. OSError: the kernel refused.
    """
    identifier = fscrypt.policy_of(data)
    if identifier is not None and fscrypt.has_key(data, identifier):
        return  # only who had the key could bring it there
    key = keys.key_of(volume)
    if key is None and identifier is None:
        return
    if identifier is None:
        raise _not_as_recorded(volume, "should be encrypted, and are not")
    if key is None:
        raise _not_as_recorded(volume, "are encrypted, and the cluster has no key of them")
    if fscrypt.add_key(data, key) != identifier:
        raise _not_as_recorded(
            volume, "are encrypted with another key than the cluster has of them"
        )


def unlock_at(place: Path, volume: str, keys: VolumeKeys) -> None:
    """The same of an image that is mounted at ``place``."""
    data = os.open(place / ext4.DATA, _FLAGS)
    try:
        unlock(data, volume, keys)
    finally:
        os.close(data)


def has_names(data: int) -> bool:
    """Whether there is anything in what containers see of a mounted image. It takes no key.

    Raises:
        OSError: it cannot be read.
    """
    return bool(os.listdir(data))


def _not_as_recorded(volume: str, how: str) -> Corrupt:
    return Corrupt(
        f"the files in the image of volume {volume} {how}; nothing of them is given to anybody",
        remedy="take the volume's copy on another node; see docs/operations/encryption.md",
    )
