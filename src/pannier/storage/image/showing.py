"""Looking into an image without changing it: a snapshot of it is mounted, read-only."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pannier.host.mountflags import bind
from pannier.storage.btrfs import ioctl
from pannier.storage.image import ext4, loopdevice, nocow
from pannier.storage.image.nocow import IMAGE
from pannier.storage.image.unlocking import has_names, unlock, unlock_at
from pannier.storage.keys import VolumeKeys


def show(
    source: Path, at: Path, *, volume: str, keys: VolumeKeys, aside: Path, staging: Path
) -> None:
    """Mount what containers see of an image, read-only; it is gone with its unmount.

    Args:
        source: the subvolume with the image.
        at: an empty directory.
        volume: whose image it is.
        aside, staging: paths for the snapshot and its mount until then.

    Raises:
        OSError: the kernel refused. Corrupt, StorageError: it is none of ours, or has no loop device.
        KeyMissing: it is encrypted, and its key is not here.
    """
    with _snapshot(source, aside) as device:
        staging.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            ext4.mount(device, staging, read_only=True)
            try:
                unlock_at(staging, volume, keys)
                bind(staging / ext4.DATA, at, allow_devices_and_setuid=False)
            finally:
                ext4.unmount(staging)
        finally:
            with suppress(OSError):
                staging.rmdir()


def open_root(source: Path, *, volume: str, keys: VolumeKeys, aside: Path) -> int:
    """A descriptor of what containers see of an image, read-only. Nothing is mounted anywhere, and nothing is left of it once
    the last descriptor in it is closed, also by a kill.

    Args:
        source: the subvolume with the image.
        volume: whose image it is.
        aside: a path for the snapshot until it is open.

    Raises:
        As :func:`show`.
    """
    with _snapshot(source, aside) as device:
        data = ext4.open_data(device)
        try:
            unlock(data, volume, keys)
        except BaseException:
            os.close(data)
            raise
        return data


def has_files(source: Path, *, aside: Path) -> bool:
    """Whether there is anything in what containers see of an image. It takes no key.

    Raises:
        As :func:`open_root`, but for KeyMissing.
    """
    with _snapshot(source, aside) as device:
        data = ext4.open_data(device)
        try:
            return has_names(data)
        finally:
            os.close(data)


@contextmanager
def _snapshot(source: Path, aside: Path) -> Iterator[Path]:
    """The device of a snapshot of an image, for as long as the block lasts, or, if it is mounted then, as long as that.

    The snapshot is writable, since the kernel first puts in order what a crash has left. It has no name
    any more after the block: the pool frees it when nobody has it open, also after a crash.
    """
    _discard(aside)
    aside.mkdir(parents=True)
    tree = aside / "tree"
    try:
        ioctl.create_snapshot(source, target=tree, read_only=False)
        nocow.check(tree / IMAGE)
        with loopdevice.attached(tree / IMAGE) as device:
            yield device.path
    finally:
        _discard(aside)


def _discard(aside: Path) -> None:
    if ioctl.is_subvolume(aside / "tree"):
        ioctl.destroy_subvolume(aside / "tree")
    with suppress(FileNotFoundError):
        aside.rmdir()
