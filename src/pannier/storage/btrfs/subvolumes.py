"""What drivers share that keep live trees and generations as subvolumes of one btrfs pool."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path

from pannier.core.errors import StorageError
from pannier.core.generation import Generation
from pannier.storage.base import Capacity, LiveTree, LocalCopy
from pannier.storage.blocking import in_own_thread, in_thread, told_as_storage_error
from pannier.storage.btrfs import ioctl, pool
from pannier.storage.btrfs.layout import Home, existing_tree, tidy
from pannier.storage.disk_check import DiskWrites, check_disk
from pannier.storage.quarantine import Quarantine


class SubvolumeDriver:
    """Finds, snapshots, promotes and removes subvolumes; what is in them is its heirs' business.

    Args:
        mountpoint: where the pool is mounted.
        volumes: the directory of the volumes' homes in it.
        tidy_volume: removes what a crash left half done of a volume.
    """

    def __init__(
        self, mountpoint: Path, volumes: Path, *, tidy_volume: Callable[[Path], None] = tidy
    ) -> None:
        self.pool = self._mountpoint = mountpoint
        self._writes = DiskWrites(mountpoint)
        self._volumes = volumes
        self._quarantine = Quarantine(volumes, tidy_volume)
        self._homes: dict[str, Home] = {}
        self._changing: set[str] = set()
        """Volumes whose last snapshot had something new."""
        self._anew: set[str] = set()
        """Volumes whose next generation is a new one, even if nothing was written since the newest."""
        self._making: dict[str, threading.Lock] = {}
        """Held while a generation of a volume is made. Otherwise another thread could give the same
        number, or return a generation that is dropped again because nothing in it is new."""

    def _open_volumes(self) -> None:
        """Make the pool's directory of volumes usable and remove what a crash left half done."""
        pool.check(self._mountpoint)
        with told_as_storage_error("clean up the pool"):
            self._volumes.mkdir(mode=0o700, exist_ok=True)
            self._quarantine.sweep()
            check_disk(self._mountpoint)  # on a failed disk every volume would look bad

    async def volumes(self) -> tuple[str, ...]:
        """See :meth:`Driver.volumes`."""
        return await in_thread(self._list_volumes)

    def _list_volumes(self) -> tuple[str, ...]:
        with told_as_storage_error("list the volumes"):
            names = sorted(name for name in os.listdir(self._volumes) if not name.startswith("."))
            homes = ((name, self._home(name)) for name in names)
            return tuple(name for name, home in homes if self._has_anything(home))

    def _has_anything(self, home: Home) -> bool:
        try:
            return bool(home.epochs() or home.generations() or home.has_quarantined)
        except (OSError, ValueError) as error:
            self._quarantine.add(home.volume, error)
            return True

    async def quarantined(self) -> Mapping[str, StorageError]:
        """See :meth:`Driver.quarantined`."""
        return await in_thread(self._quarantine.reasons)

    async def inspect(self, volume: str) -> LocalCopy:
        """See :meth:`Driver.inspect`."""
        return await in_thread(self._inspect, self._home(volume))

    def _inspect(self, home: Home) -> LocalCopy:
        self._quarantine.check(home.volume)
        with told_as_storage_error(f"read what is here of volume {home.volume}"):
            live = []
            for epoch in home.epochs():
                with suppress(FileNotFoundError):  # it was dropped since it was listed
                    live.append(LiveTree(epoch, sealed=ioctl.is_read_only(home.live(epoch))))
            return LocalCopy(live=tuple(live), generations=home.generations())

    async def snapshot(self, volume: str, *, epoch: int) -> Generation:
        """See :meth:`Driver.snapshot`."""
        return await in_thread(self._snapshot, self._home(volume), epoch)

    def _snapshot(self, home: Home, epoch: int) -> Generation:
        making = self._making.setdefault(home.volume, threading.Lock())
        with making, told_as_storage_error(f"make a generation of volume {home.volume}"):
            live = existing_live(home, epoch)
            saved = None if home.volume in self._anew else home.saved_as(live)
            if saved is not None and home.volume not in self._changing:
                # Buffered writes may show only once they are flushed; this costs 30 us when idle.
                ioctl.sync_filesystem(live)
                saved = home.saved_as(live)
                if saved is not None:
                    return saved
            made = home.make_generation(live, epoch=epoch, identity=self._new_identity())
            # A volume that changed last time has probably changed again. Making the generation at
            # once, and dropping it if nothing is new, then saves the commit of a separate flush.
            if saved is not None and home.same(made, saved):
                self._changing.discard(home.volume)
                home.drop_generation(made)
                return saved
            self._changing.add(home.volume)
            self._anew.discard(home.volume)
            return made

    def _new_identity(self) -> str:
        """The identity of the next generation."""
        return ""

    def _promote(self, home: Home, generation: Generation, epoch: int) -> None:
        """Make a live subvolume out of a generation, unless there is one."""
        self._quarantine.check(home.volume)
        with told_as_storage_error(f"make generation {generation} of {home.volume} writable"):
            live = home.live(epoch)
            if not live.exists():
                tree = existing_tree(home, generation)
                # A new writable snapshot, never a flipped flag: the generation must stay as it is.
                ioctl.create_snapshot(tree, target=live, read_only=False)
            home.discard_workbench()  # a holder receives nothing

    async def drop_live(self, volume: str, *, epoch: int) -> None:
        """See :meth:`Driver.drop_live`."""
        await in_thread(self._drop_live, self._home(volume), epoch)

    def _drop_live(self, home: Home, epoch: int) -> None:
        with told_as_storage_error(f"drop the live tree {epoch} of volume {home.volume}"):
            live = home.live(epoch)
            if not live.exists():
                return
            ioctl.sync_filesystem(live)
            if not ioctl.is_read_only(live) or home.saved_as(live) is None:
                raise StorageError(
                    f"the live tree {epoch} of volume {home.volume} may hold what no generation has",
                    remedy="seal it first",
                )
            ioctl.destroy_subvolume(live)

    async def delete_generation(self, volume: str, generation: Generation) -> None:
        """See :meth:`Driver.delete_generation`."""
        await in_thread(self._delete_generation, self._home(volume), generation)

    def _delete_generation(self, home: Home, generation: Generation) -> None:
        with told_as_storage_error(f"delete generation {generation} of volume {home.volume}"):
            home.drop_generation(generation)
            if not home.generations():
                home.discard_workbench()

    async def quarantine(self, volume: str) -> None:
        """See :meth:`CheckedDriver.quarantine`."""
        with told_as_storage_error(f"quarantine what is here of volume {volume}"):
            await in_thread(self._home(volume).quarantine)

    async def drop_quarantined(self, volume: str) -> None:
        """See :meth:`CheckedDriver.drop_quarantined`."""
        with told_as_storage_error(f"remove what is in quarantine of volume {volume}"):
            await in_thread(self._home(volume).drop_quarantined)

    async def delete(self, volume: str) -> None:
        """See :meth:`Driver.delete`."""
        await in_thread(self._delete, self._home(volume))

    def _delete(self, home: Home) -> None:
        with told_as_storage_error(f"delete volume {home.volume}"):
            doomed = home.doom()
            if doomed.exists():
                self._quarantine.remove(doomed.name)
                ioctl.sync_filesystem(self._volumes)
        self._changing.discard(home.volume)
        self._homes.pop(home.volume, None)

    async def capacity(self) -> Capacity:
        """See :meth:`Driver.capacity`."""
        return await in_thread(self._capacity)

    def _capacity(self) -> Capacity:
        with told_as_storage_error("read the size of the pool"):
            found = os.statvfs(self._mountpoint)
        return Capacity(
            total_bytes=found.f_blocks * found.f_frsize, free_bytes=found.f_bavail * found.f_frsize
        )

    async def check_disk(self, *, by_writing: bool = False) -> None:
        """See :meth:`Driver.check_disk`."""
        await in_own_thread(partial(check_disk, self._mountpoint, by_writing=by_writing))

    def writes_done(self) -> int | None:
        """See :meth:`Driver.writes_done`."""
        return self._writes.done()

    def _home(self, volume: str) -> Home:
        home = self._homes.get(volume)
        if home is None:
            home = self._homes[volume] = Home.of(volume, volumes=self._volumes)
        return home


def existing_live(home: Home, epoch: int) -> Path:
    """The live subvolume of an epoch.

    Raises:
        StorageError: it is not here.
    """
    live = home.live(epoch)
    if not live.is_dir():
        raise StorageError(
            f"volume {home.volume} has no live tree of epoch {epoch} on this node",
            remedy="see `pannier volume show` for who holds it",
        )
    return live
