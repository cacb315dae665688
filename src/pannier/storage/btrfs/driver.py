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
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from pannier.core.generation import Generation
from pannier.core.line import OnTop
from pannier.host.files import DRAFT
from pannier.storage.base import Reading, RootAttributes
from pannier.storage.blocking import in_thread, told_as_storage_error
from pannier.storage.btrfs import ioctl, pool
from pannier.storage.btrfs.checked import checked
from pannier.storage.btrfs.intake import receive
from pannier.storage.btrfs.layout import Home, sweep_groups
from pannier.storage.btrfs.stream import send_stream
from pannier.storage.btrfs.subvolumes import SubvolumeDriver, existing_live
from pannier.storage.tree.check import check_tree
from pannier.storage.tree.size import allocated_bytes

_DELETIONS_BETWEEN_SWEEPS = 64


class BtrfsDriver(SubvolumeDriver):
    """Driver for a pool on btrfs.

    Args:
        mountpoint: where the pool is mounted.
        source: its device or file; where given, :meth:`open` mounts it and :meth:`close` unmounts.
    """

    name = "btrfs"
    generations_in_use = True
    compares = False

    def __init__(self, mountpoint: Path, *, source: Path | None = None) -> None:
        super().__init__(mountpoint, mountpoint / "volumes")
        self._source = source
        self._quotas = False
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
        self._open_volumes()
        if self._quotas:
            self._idle_groups = sweep_groups(self._volumes, seen=self._idle_groups)

    async def close(self) -> None:
        """See :meth:`Driver.close`."""
        if self._source is not None:
            await pool.close_pool(self._mountpoint)

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

    async def attach(self, volume: str, *, epoch: int, grow: bool) -> None:
        """See :meth:`Driver.attach`: a tree can be used as it is."""

    async def attached(self) -> frozenset[str]:
        """See :meth:`Driver.attached`."""
        return frozenset()

    async def detach(self, volume: str, *, epoch: int) -> None:
        """See :meth:`Driver.detach`."""

    def generation_path(self, volume: str, generation: Generation) -> Path:
        """The read-only data directory of a generation, for reading it without promoting it."""
        return self._home(volume).tree(generation) / "data"

    async def seal(self, volume: str, *, epoch: int) -> Generation:
        """See :meth:`Driver.seal`.

        Setting it read-only does not stop a file descriptor that is open for writing: the kernel
        checks that only when a file is opened. Where quotas are on, an exhausted quota stops those
        writes too; and :meth:`drop_live` refuses a tree that has more than its last generation.
        """
        return await in_thread(self._seal, self._home(volume), epoch)

    def _seal(self, home: Home, epoch: int) -> Generation:
        with told_as_storage_error(f"seal volume {home.volume}"):
            live = existing_live(home, epoch)
            self._switch(live, sealed=True)
        return self._snapshot(home, epoch)

    async def unseal(self, volume: str, *, epoch: int) -> None:
        """See :meth:`Driver.unseal`."""
        await in_thread(self._unseal, self._home(volume), epoch)

    def _unseal(self, home: Home, epoch: int) -> None:
        with told_as_storage_error(f"unseal volume {home.volume}"):
            live = existing_live(home, epoch)
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
        self,
        volume: str,
        generation: Generation,
        *,
        epoch: int,
        size_bytes: int | None,
        on_top: OnTop,
    ) -> None:
        """See :meth:`Driver.promote`."""
        await in_thread(self._promote_limited, self._home(volume), generation, epoch, size_bytes)

    def _promote_limited(
        self, home: Home, generation: Generation, epoch: int, size_bytes: int | None
    ) -> None:
        self._promote(home, generation, epoch)
        with told_as_storage_error(f"limit volume {home.volume}"):
            self._limit(home.live(epoch), size_bytes)

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

    def _delete_generation(self, home: Home, generation: Generation) -> None:
        super()._delete_generation(home, generation)
        self._deletions += 1
        if self._quotas and self._deletions % _DELETIONS_BETWEEN_SWEEPS == 0:
            self._idle_groups = sweep_groups(self._volumes, seen=self._idle_groups)

    async def verify(self, volume: str, generation: Generation | None) -> Reading:
        """See :meth:`CheckedDriver.verify`. btrfs has a checksum of every block."""
        await in_thread(self._quarantine.check, volume)
        await checked(self._home(volume), generation, check_tree)
        return Reading(proved=True)

    def _delete(self, home: Home) -> None:
        super()._delete(home)
        self._walked.pop(home.volume, None)

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
