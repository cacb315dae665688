"""The btrfs driver: live trees and generations are subvolumes, a transfer is send and receive.

::

    POOL/volumes/VOLUME/                 a subvolume, so that quotas of all within add up in its group
        live-EPOCH/data/                 a subvolume; containers see data/, which is all theirs
        generations/EPOCH.SEQUENCE/tree  a read-only subvolume in a plain directory
        incoming/EPOCH.SEQUENCE/tree     what `btrfs receive` is receiving
        incoming/workbench/tree          a writable copy of the newest one that was received
        incoming/check/tree              a snapshot of the one that is being verified
        quarantine/EPOCH.SEQUENCE/tree   was damaged, and counts no more

A small difference is applied to the workbench. The new generation is then a read-only snapshot of
that, made as the holder made its own. ``btrfs receive`` makes a read-only subvolume with the sender's
name, which can be renamed but not moved to another directory (EROFS). So every generation is called
``tree``, and the plain directory around it moves from ``incoming`` to ``generations``, in one rename,
once all is verified and synced.

Power may fail between any two lines here. What then remains is one of: a name with a leading dot
or something in ``incoming``, which :meth:`BtrfsDriver.open` removes; a directory in ``generations``
without a tree, which is no generation but keeps its number from being given again; or a step that
the caller repeats.
"""

from __future__ import annotations

import os
import threading
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from pannier.core.errors import StorageError
from pannier.core.generation import Generation
from pannier.host.files import DRAFT
from pannier.storage.base import Capacity, LiveTree, LocalCopy, RootAttributes
from pannier.storage.blocking import in_thread, told_as_storage_error
from pannier.storage.btrfs import ioctl, pool
from pannier.storage.btrfs.check import verify
from pannier.storage.btrfs.intake import receive
from pannier.storage.btrfs.layout import Home, existing_tree, sweep_groups, tidy
from pannier.storage.btrfs.stream import send_stream
from pannier.storage.disk_check import check_disk
from pannier.storage.quarantine import Quarantine
from pannier.storage.tree.size import allocated_bytes

_DELETIONS_BETWEEN_SWEEPS = 64


class BtrfsDriver:
    """Driver for a pool on btrfs.

    Args:
        mountpoint: where the pool is mounted.
        source: its device or file; where given, :meth:`open` mounts it and :meth:`close` unmounts.
    """

    name = "btrfs"
    generations_in_use = True

    def __init__(self, mountpoint: Path, *, source: Path | None = None) -> None:
        self._mountpoint = mountpoint
        self._source = source
        self._volumes = mountpoint / "volumes"
        self._quarantine = Quarantine(self._volumes, tidy)
        self._quotas = False
        self._changing: set[str] = set()
        """Volumes whose last snapshot had something new."""
        self._making: dict[str, threading.Lock] = {}
        """Held while a generation of a volume is made. Otherwise another thread could give the same
        number, or return a generation that is dropped again because nothing in it is new."""
        self._deletions = 0
        self._idle_groups: set[int] = set()
        """Quota groups that no subvolume had at the last look."""
        self._walked: dict[str, tuple[int, int]] = {}

    async def open(self) -> None:
        """See :meth:`Driver.open`."""
        if self._source is not None:
            found = await pool.open_pool(self._source, mountpoint=self._mountpoint)
        else:
            found = await in_thread(pool.take_pool, self._mountpoint)
        self._quotas = found.quotas
        await in_thread(self._open)

    def _open(self) -> None:
        pool.check(self._mountpoint)
        with told_as_storage_error("clean up the pool"):
            self._volumes.mkdir(mode=0o700, exist_ok=True)
            self._quarantine.sweep()
            check_disk(self._mountpoint)  # on a failed disk every volume would look bad
            if self._quotas:
                self._idle_groups = sweep_groups(self._volumes, seen=self._idle_groups)

    async def close(self) -> None:
        """See :meth:`Driver.close`."""
        if self._source is not None:
            await pool.close_pool(self._mountpoint)

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

    async def create(
        self, volume: str, *, epoch: int, root: RootAttributes, size_bytes: int | None
    ) -> None:
        """See :meth:`Driver.create`."""
        await in_thread(self._create, self._home(volume), epoch, root, size_bytes)

    def _create(self, home: Home, epoch: int, root: RootAttributes, size_bytes: int | None) -> None:
        self._quarantine.check(home.volume)
        live = home.live(epoch)
        with told_as_storage_error(f"create volume {home.volume}"):
            if not live.exists():
                home.make(quotas=self._quotas)
                draft = home.path / f"{DRAFT}{live.name}"
                if draft.exists():
                    ioctl.destroy_subvolume(draft)
                ioctl.create_subvolume(draft)
                data = draft / "data"
                data.mkdir()
                os.chown(data, root.uid, root.gid)
                data.chmod(root.mode)  # last: chown clears the setuid bits
                draft.rename(live)
            self._limit(live, size_bytes)
            ioctl.sync_filesystem(home.path)

    def _limit(self, live: Path, size_bytes: int | None) -> None:
        """Stop a runaway writer; not an exact size.

        A simple quota charges an extent to the subvolume that first wrote it, until nobody refers
        to it. Rewriting data that a generation still has is therefore charged twice, and what a
        promoted tree inherited is not charged at all. Twice the size never refuses a write that
        fits; exact accounting is for those who watch :meth:`used_bytes`.
        """
        if self._quotas and size_bytes is not None:
            number = ioctl.subvolume_info(live).id
            ioctl.set_limit(live.parent, subvolume_id=number, size_bytes=2 * size_bytes)

    def data_path(self, volume: str, epoch: int) -> Path:
        """See :meth:`Driver.data_path`."""
        return self._home(volume).live(epoch) / "data"

    def generation_path(self, volume: str, generation: Generation) -> Path:
        """The read-only data directory of a generation, for reading it without promoting it."""
        return self._home(volume).tree(generation) / "data"

    async def snapshot(self, volume: str, *, epoch: int) -> Generation:
        """See :meth:`Driver.snapshot`."""
        return await in_thread(self._snapshot, self._home(volume), epoch)

    def _snapshot(self, home: Home, epoch: int) -> Generation:
        making = self._making.setdefault(home.volume, threading.Lock())
        with making, told_as_storage_error(f"make a generation of volume {home.volume}"):
            live = _existing_live(home, epoch)
            saved = home.saved_as(live)
            if saved is not None and home.volume not in self._changing:
                # Buffered writes may show only once they are flushed; this costs 30 us when idle.
                ioctl.sync_filesystem(live)
                saved = home.saved_as(live)
                if saved is not None:
                    return saved
            made = home.make_generation(live, epoch=epoch)
            # A volume that changed last time has probably changed again. Making the generation at
            # once, and dropping it if nothing is new, then saves the commit of a separate flush.
            if saved is not None and home.same(made, saved):
                self._changing.discard(home.volume)
                home.drop_generation(made)
                return saved
            self._changing.add(home.volume)
            return made

    async def seal(self, volume: str, *, epoch: int) -> Generation:
        """See :meth:`Driver.seal`.

        Setting it read-only does not stop a file descriptor that is open for writing: the kernel
        checks that only when a file is opened. Where quotas are on, an exhausted quota stops those
        writes too; and :meth:`drop_live` refuses a tree that has more than its last generation.
        """
        return await in_thread(self._seal, self._home(volume), epoch)

    def _seal(self, home: Home, epoch: int) -> Generation:
        with told_as_storage_error(f"seal volume {home.volume}"):
            live = _existing_live(home, epoch)
            self._switch(live, sealed=True)
        return self._snapshot(home, epoch)

    async def unseal(self, volume: str, *, epoch: int) -> None:
        """See :meth:`Driver.unseal`."""
        await in_thread(self._unseal, self._home(volume), epoch)

    def _unseal(self, home: Home, epoch: int) -> None:
        with told_as_storage_error(f"unseal volume {home.volume}"):
            live = _existing_live(home, epoch)
            self._switch(live, sealed=False)

    def _switch(self, live: Path, *, sealed: bool) -> None:
        """Set a live tree read-only or writable, and its quota with it.

        A subvolume that has used up its quota refuses even to be set read-only, so the size limit
        is lifted for that moment. If power fails then, the tree is left without a size limit.
        """
        if not self._quotas:
            ioctl.set_read_only(live, read_only=sealed)
            return
        home, number = live.parent, ioctl.subvolume_info(live).id
        if ioctl.is_read_only(live) != sealed:
            size_bytes = ioctl.limit_bytes(home, subvolume_id=number)
            ioctl.refuse_new_extents(home, subvolume_id=number, refuse=False)
            ioctl.set_limit(home, subvolume_id=number, size_bytes=None)
            try:
                ioctl.set_read_only(live, read_only=sealed)
            finally:
                ioctl.set_limit(home, subvolume_id=number, size_bytes=size_bytes)
        ioctl.refuse_new_extents(home, subvolume_id=number, refuse=sealed)

    async def promote(
        self, volume: str, generation: Generation, *, epoch: int, size_bytes: int | None
    ) -> None:
        """See :meth:`Driver.promote`."""
        await in_thread(self._promote, self._home(volume), generation, epoch, size_bytes)

    def _promote(
        self, home: Home, generation: Generation, epoch: int, size_bytes: int | None
    ) -> None:
        self._quarantine.check(home.volume)
        with told_as_storage_error(f"make generation {generation} of {home.volume} writable"):
            live = home.live(epoch)
            if not live.exists():
                tree = existing_tree(home, generation)
                # A new writable snapshot, never a flipped flag: the generation must stay as it is.
                ioctl.create_snapshot(tree, target=live, read_only=False)
            home.discard_workbench()  # a holder receives nothing
            self._limit(live, size_bytes)

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

    @asynccontextmanager
    async def send(
        self, volume: str, generation: Generation, *, base: Generation | None
    ) -> AsyncIterator[int]:
        """See :meth:`Driver.send`."""
        home = self._home(volume)
        async with send_stream(home, generation, base=base) as reader:
            yield reader

    @asynccontextmanager
    async def receive(
        self, volume: str, generation: Generation, *, base: Generation | None
    ) -> AsyncIterator[int]:
        """See :meth:`Driver.receive`."""
        await in_thread(self._quarantine.check, volume)
        async with receive(
            self._home(volume), generation, base=base, quotas=self._quotas
        ) as writer:
            yield writer

    async def delete_generation(self, volume: str, generation: Generation) -> None:
        """See :meth:`Driver.delete_generation`."""
        await in_thread(self._delete_generation, self._home(volume), generation)

    def _delete_generation(self, home: Home, generation: Generation) -> None:
        with told_as_storage_error(f"delete generation {generation} of volume {home.volume}"):
            home.drop_generation(generation)
            if not home.generations():
                home.discard_workbench()
        self._deletions += 1
        if self._quotas and self._deletions % _DELETIONS_BETWEEN_SWEEPS == 0:
            self._idle_groups = sweep_groups(self._volumes, seen=self._idle_groups)

    async def verify(self, volume: str, generation: Generation | None) -> None:
        """See :meth:`CheckedDriver.verify`. btrfs has a checksum of every block."""
        await in_thread(self._quarantine.check, volume)
        await verify(self._home(volume), generation)

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
        self._walked.pop(home.volume, None)
        self._changing.discard(home.volume)

    async def used_bytes(self, volume: str) -> int:
        """See :meth:`Driver.used_bytes`. As of the last commit, at most 30 s ago.

        Without quotas (kernels before 6.7) the newest tree is walked, again only after a change.
        """
        return await in_thread(self._used_bytes, self._home(volume))

    def _used_bytes(self, home: Home) -> int:
        with told_as_storage_error(f"measure volume {home.volume}"):
            if not home.path.exists():
                return 0
            group = ioctl.group_of(ioctl.subvolume_info(home.path).id)
            charged = ioctl.charged_bytes(home.path, group=group)
            return charged if charged is not None else self._walk(home)

    def _walk(self, home: Home) -> int:
        trees = [home.live(epoch) for epoch in home.epochs()[-1:]]
        trees += [home.tree(generation) for generation in home.generations()[-1:]]
        if not trees:
            return 0
        version = ioctl.subvolume_info(trees[0]).ctransid
        known = self._walked.get(home.volume)
        if known is None or known[0] != version:
            known = self._walked[home.volume] = (version, allocated_bytes(trees[0]))
        return known[1]

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
        await in_thread(check_disk, self._mountpoint, by_writing=by_writing)

    def _home(self, volume: str) -> Home:
        return Home.of(volume, volumes=self._volumes)


def _existing_live(home: Home, epoch: int) -> Path:
    live = home.live(epoch)
    if not live.is_dir():
        raise StorageError(
            f"volume {home.volume} has no live tree of epoch {epoch} on this node",
            remedy="see `pannier volume show` for who holds it",
        )
    return live
