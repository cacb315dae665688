"""The directory driver: for machines without btrfs. One tree per volume, moved by full comparison.

A generation exists only of a sealed tree, and only one tree exists: promoting a generation turns it
into the live tree (it is then no longer listed, only described, see :attr:`LocalCopy.bases`), and
receiving one on top of a base replaces the base. An ordinary file system cannot be told to refuse
writes to one tree: sealing relies on the caller having unmounted the volume, and every later step
(send, drop_live) checks that nothing has changed. Sizes are not enforced.

Costs: seal walks the tree and reads what changed since the last time; receive links what did not
change and walks the result; promote and drop_live are renames.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

from pannier.core.errors import Corrupt, StorageError
from pannier.core.generation import Generation
from pannier.core.line import OnTop
from pannier.host.files import DRAFT, keep_private, sync_directory, sync_filesystem_of, write_file
from pannier.storage.base import Capacity, LiveTree, LocalCopy, RootAttributes
from pannier.storage.blocking import in_own_thread, in_thread, told_as_storage_error
from pannier.storage.directory.layout import DirectoryHome, tidy
from pannier.storage.directory.root import verify_directory
from pannier.storage.disk_check import DiskWrites, check_disk
from pannier.storage.quarantine import Quarantine
from pannier.storage.streams import feeding, reading, swallow_stream
from pannier.storage.tree.manifest import Manifest, difference
from pannier.storage.tree.size import allocated_bytes
from pannier.storage.tree.stream import Tree, receive_tree, send_tree
from pannier.storage.tree.walk import CachedHasher, ManifestHasher, scan

_TICK_S = 0.02  # longer than a tick of the kernel's clock for file times
_MEASURE_EVERY_S = 60.0


class DirectoryDriver:
    """Driver for a plain directory, see the module.

    Args:
        root: made by :func:`~pannier.storage.directory.root.create_directory`. All volumes must be on
            its own file system.
    """

    name = "directory"
    generations_in_use = False

    def __init__(self, root: Path) -> None:
        self.pool = self._root = root
        self._writes = DiskWrites(root)
        self._volumes = root / "volumes"
        self._quarantine = Quarantine(self._volumes, tidy)
        self._used: dict[str, tuple[float, int]] = {}
        self._measuring: dict[str, asyncio.Task[int]] = {}

    async def open(self) -> None:
        """See :meth:`Driver.open`."""
        await in_thread(self._open)

    def _open(self) -> None:
        verify_directory(self._root)
        with told_as_storage_error("clean up the volumes"):
            keep_private(self._root)
            self._volumes.mkdir(mode=0o700, exist_ok=True)
            self._quarantine.sweep()
            check_disk(self._root)  # on a failed disk every volume would look bad

    async def close(self) -> None:
        """See :meth:`Driver.close`."""
        for task in self._measuring.values():
            task.cancel()
        await asyncio.gather(*self._measuring.values(), return_exceptions=True)
        self._measuring.clear()

    async def volumes(self) -> tuple[str, ...]:
        """See :meth:`Driver.volumes`."""
        return await in_thread(self._list_volumes)

    def _list_volumes(self) -> tuple[str, ...]:
        with told_as_storage_error("list the volumes"):
            names = sorted(name for name in os.listdir(self._volumes) if not name.startswith("."))
            homes = ((name, self._home(name)) for name in names)
            return tuple(name for name, home in homes if self._has_anything(home))

    def _has_anything(self, home: DirectoryHome) -> bool:
        try:
            return bool(home.epochs() or home.generations())
        except (OSError, ValueError, Corrupt) as error:
            self._quarantine.add(home.volume, error)
            return True

    async def quarantined(self) -> Mapping[str, StorageError]:
        """See :meth:`Driver.quarantined`."""
        return await in_thread(self._quarantine.reasons)

    async def inspect(self, volume: str) -> LocalCopy:
        """See :meth:`Driver.inspect`."""
        return await in_thread(self._inspect, self._home(volume))

    def _inspect(self, home: DirectoryHome) -> LocalCopy:
        self._quarantine.check(home.volume)
        with told_as_storage_error(f"read what is here of volume {home.volume}"):
            live = (LiveTree(e, sealed=home.sealed_as(e) is not None) for e in home.epochs())
            generations = home.generations()
            bases = tuple(g for g in home.described() if g not in generations)
            return LocalCopy(live=tuple(live), generations=generations, bases=bases)

    async def create(
        self, volume: str, *, epoch: int, root: RootAttributes, size_bytes: int | None
    ) -> None:
        """See :meth:`Driver.create`. The size is not enforced."""
        await in_thread(self._create, self._home(volume), epoch, root)

    def _create(self, home: DirectoryHome, epoch: int, root: RootAttributes) -> None:
        self._quarantine.check(home.volume)
        live = home.live(epoch)
        with told_as_storage_error(f"create volume {home.volume}"):
            if live.exists():
                return
            home.make()
            draft = home.path / f"{DRAFT}{live.name}"
            home.doom(draft)
            data = draft / "data"
            data.mkdir(parents=True)
            os.chown(data, root.uid, root.gid)
            data.chmod(root.mode)  # last: chown clears the setuid bits
            sync_directory(data)
            sync_directory(draft)
            draft.rename(live)
            sync_directory(home.path)

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

    async def snapshot(self, volume: str, *, epoch: int) -> Generation:
        """See :meth:`Driver.snapshot`: not possible."""
        raise StorageError(
            f"volume {volume} is in a plain directory, which has no snapshots",
            remedy="stop its containers first, or use driver=btrfs",
        )

    async def seal(self, volume: str, *, epoch: int) -> Generation:
        """See :meth:`Driver.seal`."""
        return await in_thread(self._seal, self._home(volume), epoch)

    def _seal(self, home: DirectoryHome, epoch: int) -> Generation:
        with told_as_storage_error(f"seal volume {home.volume}"):
            live = _existing_live(home, epoch)
            manifest, hasher = _describe(home, live)
            digest = manifest.digest()
            generation = _same_as_before(home, live, digest)
            if generation is None:
                generation = home.next_generation(epoch)
                home.store_manifest(generation, manifest)
            home.store_stamps(hasher.seen)
            write_file(home.mark(epoch), f"{generation}\n".encode())
            home.prune_manifests()
            self._note_size(home, allocated_bytes(live / "data"))
            time.sleep(_TICK_S)  # so that any later write has a later time than the stamps
            return generation

    async def unseal(self, volume: str, *, epoch: int) -> None:
        """See :meth:`Driver.unseal`."""
        await in_thread(self._unseal, self._home(volume), epoch)

    def _unseal(self, home: DirectoryHome, epoch: int) -> None:
        with told_as_storage_error(f"unseal volume {home.volume}"):
            live = _existing_live(home, epoch)
            if home.sealed_as(epoch) is not None:
                home.mark(epoch).rename(live / "origin")
                sync_directory(live)

    async def promote(
        self,
        volume: str,
        generation: Generation,
        *,
        epoch: int,
        size_bytes: int | None,
        on_top: OnTop,
    ) -> None:
        """See :meth:`Driver.promote`. The generation becomes the live tree: it is used up."""
        await in_thread(self._promote, self._home(volume), generation, epoch)

    def _promote(self, home: DirectoryHome, generation: Generation, epoch: int) -> None:
        self._quarantine.check(home.volume)
        with told_as_storage_error(f"make generation {generation} of {home.volume} writable"):
            if home.live(epoch).exists():
                return
            directory = _existing_tree(home, generation)
            if directory == home.generation(generation):
                home.settle(generation)
                home.clear_mark(generation, epoch=epoch)
            directory.rename(home.live(epoch))
            sync_directory(home.path)
            sync_directory(home.path / "generations")

    async def drop_live(self, volume: str, *, epoch: int) -> None:
        """See :meth:`Driver.drop_live`."""
        await in_thread(self._drop_live, self._home(volume), epoch)

    def _drop_live(self, home: DirectoryHome, epoch: int) -> None:
        with told_as_storage_error(f"drop the live tree {epoch} of volume {home.volume}"):
            live = home.live(epoch)
            if not live.exists():
                return
            generation = home.sealed_as(epoch)
            if (
                generation is None
                or _same_as_before(home, live, _describe(home, live)[0].digest()) != generation
            ):
                raise StorageError(
                    f"the live tree {epoch} of volume {home.volume} may hold what no generation has",
                    remedy="seal it first",
                )
            if home.generation(generation).exists():
                home.doom(live)
                return
            live.rename(home.generation(generation))
            sync_directory(home.path / "generations")
            sync_directory(home.path)

    @asynccontextmanager
    async def send(
        self, volume: str, generation: Generation, *, base: Generation | None
    ) -> AsyncIterator[int]:
        """See :meth:`Driver.send`. Only the manifest of ``base`` must be here."""
        home = self._home(volume)
        directory = await in_thread(_existing_tree, home, generation)
        known = await in_thread(home.manifest, base) if base is not None else None
        tree = Tree(directory / "data", await in_thread(home.manifest, generation))
        async with feeding(lambda fd: send_tree(fd, tree=tree, base=known)) as reader:
            yield reader

    @asynccontextmanager
    async def receive(
        self, volume: str, generation: Generation, *, base: Generation | None
    ) -> AsyncIterator[int]:
        """See :meth:`Driver.receive`. Once it is here, the base's tree is gone."""
        home = self._home(volume)
        await in_thread(self._quarantine.check, volume)
        if await in_thread(home.locate, generation) is not None:
            async with swallow_stream() as writer:
                yield writer
            return
        known = await in_thread(_base_tree, home, base) if base is not None else None
        incoming = home.incoming(generation)
        # Files of a live tree may still be written to, sealed or not: copied, not linked.
        share = base is not None and home.generation(base).is_dir()
        await in_thread(self._prepare_incoming, home, generation)
        try:
            async with reading(
                lambda fd, stop: receive_tree(
                    fd, root=incoming / "data", base=known, share=share, stop=stop
                )
            ) as (writer, manifest):
                yield writer
            await in_thread(self._accept, home, generation, await manifest, base if share else None)
        except BaseException:
            await asyncio.shield(in_thread(home.doom, incoming))
            raise

    def _prepare_incoming(self, home: DirectoryHome, generation: Generation) -> None:
        with told_as_storage_error(f"receive generation {generation} of volume {home.volume}"):
            home.make()
            home.doom(home.incoming(generation))
            (home.incoming(generation) / "data").mkdir(parents=True)

    def _accept(
        self,
        home: DirectoryHome,
        generation: Generation,
        manifest: Manifest,
        shared: Generation | None,
    ) -> None:
        """Verify what was built, make it durable, and only then give it its name."""
        with told_as_storage_error(f"take in generation {generation} of volume {home.volume}"):
            incoming = home.incoming(generation)
            built = scan(incoming / "data", hasher=ManifestHasher(manifest))
            if built.digest() != manifest.digest():
                odd = difference(built, manifest)
                name = odd.changed[0].path if odd.changed else odd.removed[0]
                raise Corrupt(
                    f"{name!r} of volume {home.volume} cannot be kept here as it is",
                    remedy="see whether this node's file system keeps owners, ACLs and xattrs",
                )
            if shared is not None:
                (incoming / "base").write_text(f"{shared}\n")
            (incoming / "origin").write_text(f"{generation}\n")
            home.store_manifest(generation, manifest)
            sync_filesystem_of(incoming)
            incoming.rename(home.generation(generation))
            sync_directory(home.path / "generations")
            home.settle(generation)
            home.prune_manifests()
            # Only now: removing the base changed the ctime of every file that was shared with it.
            hasher = ManifestHasher(manifest)
            scan(home.generation(generation) / "data", hasher=hasher)
            home.store_stamps(hasher.seen)
            self._note_size(home, allocated_bytes(home.generation(generation) / "data"))
            time.sleep(_TICK_S)

    async def delete_generation(self, volume: str, generation: Generation) -> None:
        """See :meth:`Driver.delete_generation`.

        Raises:
            StorageError: the sealed live tree is this generation: there is only one tree.
        """
        await in_thread(self._delete_generation, self._home(volume), generation)

    def _delete_generation(self, home: DirectoryHome, generation: Generation) -> None:
        with told_as_storage_error(f"delete generation {generation} of volume {home.volume}"):
            if not home.generation(generation).exists() and home.locate(generation) is not None:
                raise StorageError(
                    f"generation {generation} of volume {home.volume} is its sealed live tree",
                    remedy="drop the live tree first",
                )
            home.doom(home.generation(generation))
            if home.path.exists():
                home.prune_manifests()

    async def delete(self, volume: str) -> None:
        """See :meth:`Driver.delete`."""
        await in_thread(self._delete, self._home(volume))

    def _delete(self, home: DirectoryHome) -> None:
        with told_as_storage_error(f"delete volume {home.volume}"):
            self._quarantine.remove(home.doom_all().name)
        self._used.pop(home.volume, None)

    async def used_bytes(self, volume: str) -> int:
        """See :meth:`Driver.used_bytes`. Measured in the background, at most once a minute."""
        home = self._home(volume)
        measured = self._used.get(volume)
        if measured is None:
            measured = self._used[volume] = (float("-inf"), await in_thread(_noted_size, home))
        if time.monotonic() - measured[0] > _MEASURE_EVERY_S and volume not in self._measuring:
            task = asyncio.create_task(in_thread(self._measure, home))
            self._measuring[volume] = task
            task.add_done_callback(lambda _: self._measuring.pop(volume, None))
        return measured[1]

    def _measure(self, home: DirectoryHome) -> int:
        places = [home.live(epoch) for epoch in home.epochs()]
        places += [home.generation(g) for g in home.generations() if home.generation(g).is_dir()]
        used = sum(allocated_bytes(place / "data") for place in places)
        self._note_size(home, used)
        return used

    def _note_size(self, home: DirectoryHome, used: int) -> None:
        self._used[home.volume] = (time.monotonic(), used)
        if home.path.exists():
            (home.path / "used").write_text(f"{used}\n")

    async def capacity(self) -> Capacity:
        """See :meth:`Driver.capacity`: of the file system that the directory is on."""
        found = await in_thread(os.statvfs, self._root)
        return Capacity(
            total_bytes=found.f_blocks * found.f_frsize, free_bytes=found.f_bavail * found.f_frsize
        )

    async def check_disk(self, *, by_writing: bool = False) -> None:
        """See :meth:`Driver.check_disk`."""
        await in_own_thread(partial(check_disk, self._root, by_writing=by_writing))

    def writes_done(self) -> int | None:
        """See :meth:`Driver.writes_done`."""
        return self._writes.done()

    def _home(self, volume: str) -> DirectoryHome:
        return DirectoryHome.of(volume, volumes=self._volumes)


def _describe(home: DirectoryHome, live: Path) -> tuple[Manifest, CachedHasher]:
    """Flush a tree that nobody writes to, and read its manifest."""
    sync_filesystem_of(live)
    hasher = CachedHasher(home.stamps())
    return scan(live / "data", hasher=hasher), hasher


def _same_as_before(home: DirectoryHome, live: Path, digest: str) -> Generation | None:
    known = set(home.described())
    for generation in home.former_selves(live):
        if generation in known and home.manifest(generation).digest() == digest:
            return generation
    return None


def _existing_live(home: DirectoryHome, epoch: int) -> Path:
    live = home.live(epoch)
    if not live.is_dir():
        raise StorageError(
            f"volume {home.volume} has no live tree of epoch {epoch} on this node",
            remedy="see `pannier volume show` for who holds it",
        )
    return live


def _existing_tree(home: DirectoryHome, generation: Generation) -> Path:
    directory = home.locate(generation)
    if directory is None:
        raise Corrupt(
            f"generation {generation} of volume {home.volume} is not here, or not whole",
            remedy="take another generation, or let this node catch up first",
        )
    return directory


def _base_tree(home: DirectoryHome, base: Generation) -> Tree:
    return Tree(_existing_tree(home, base) / "data", home.manifest(base))


def _noted_size(home: DirectoryHome) -> int:
    try:
        return int((home.path / "used").read_text())
    except (FileNotFoundError, ValueError):
        return 0
