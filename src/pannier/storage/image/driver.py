"""The image driver: a volume is an ext4 in one file of a btrfs pool; a generation is a snapshot of it.

::

    POOL/images/VOLUME/                        as the btrfs driver's POOL/volumes/VOLUME, but the subvolumes
        live-EPOCH/image                       have one file each, without copy-on-write
        generations/EPOCH.SEQUENCE/tree/image
        incoming/EPOCH.SEQUENCE/tree/image     what is being received, or was when the transfer broke
        incoming/workbench/tree/image          a writable copy of the newest one that was received
    STAGING/VOLUME.EPOCH/                      where a live image is mounted while it is used
        data/                                  what containers see

Without copy-on-write the pool keeps no checksums of an image, and overwrites it in place: but for what
a snapshot shares, which goes to a new place the first time. So a snapshot keeps its content, and two
snapshots are compared by where their bytes lie (:mod:`pannier.storage.image.extents`).

A mounted image changes by itself: the kernel notes in it when it was mounted. So a volume that was only
attached has a new generation, too.
"""

from __future__ import annotations

import asyncio
import functools
import os
import threading
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import structlog

from pannier.core.errors import (
    Conflict,
    Corrupt,
    InvalidInput,
    PannierError,
    PoolFull,
    StorageError,
    Unavailable,
)
from pannier.core.generation import Generation, new_identity
from pannier.core.line import MOST_BYTES, Buffer, Cut, Doubt, LinePlace, OnTop
from pannier.core.room import ImageLimits, Room
from pannier.core.size import format_size
from pannier.cut.tracer import Tracer
from pannier.host.files import DRAFT
from pannier.host.memory import dirty_limit_bytes
from pannier.host.mountinfo import Mount, mounts_here
from pannier.storage.base import LocalCopy, Reading, RootAttributes, Shares, Space
from pannier.storage.blocking import in_own_thread, in_thread, told_as_storage_error
from pannier.storage.blocks import BLOCK_BYTES, Piece
from pannier.storage.btrfs import ioctl, pool
from pannier.storage.btrfs.allocation import Allocation
from pannier.storage.btrfs.checked import checked
from pannier.storage.btrfs.layout import Home, existing_tree, tidy
from pannier.storage.btrfs.subvolumes import SubvolumeDriver, existing_live
from pannier.storage.image import cloning, ext4, mending, nocow
from pannier.storage.image.check import check_image, pieces_of
from pannier.storage.image.extents import disk_bytes, on_disk
from pannier.storage.image.intake import ImageIntake
from pannier.storage.image.kept import KeptRecords
from pannier.storage.image.live import LiveImage
from pannier.storage.image.nocow import IMAGE
from pannier.storage.image.noted import NotedRuns
from pannier.storage.image.partial import begun, discard_parts, is_of_use
from pannier.storage.image.showing import has_files, open_root, show
from pannier.storage.image.sums import SUMS
from pannier.storage.image.transfer import send
from pannier.storage.image.unlocking import encrypt
from pannier.storage.keys import NoKeys, VolumeKeys
from pannier.storage.lines import JournalState
from pannier.storage.streams import feeding, reading, swallow_stream

log = structlog.get_logger(__name__)

_ROOM_BYTES = 64 << 20
"""With more room than this it was not the pool's being full that made a write fail."""


class ImageDriver(SubvolumeDriver):
    """Driver for volumes as images on a btrfs pool.

    Args:
        mountpoint: where the pool is mounted; somebody else closes it.
        staging: a directory of ours, where live images are mounted.
        source: the pool's device or file; None for a pool that somebody else mounts.
        trace: name of the kernel's trace that tells what is written; without one there are only generations.
        keys: has the keys of encrypted volumes; without it there are none.
    """

    name = "image"
    generations_in_use = True
    compares = True

    def __init__(
        self,
        mountpoint: Path,
        *,
        staging: Path,
        source: Path | None = None,
        trace: str | None = None,
        keys: VolumeKeys | None = None,
    ) -> None:
        images = mountpoint / "images"
        super().__init__(mountpoint, images, tidy_volume=partial(tidy, stays=is_of_use))
        self._staging = staging
        self._source = source
        self._keys = keys or NoKeys()
        self._images: dict[tuple[str, int], LiveImage] = {}
        self._pool: Allocation | None = None
        self._mender = mending.Mender()
        self._trace = trace
        self._tracer: Tracer | None = None
        self._tracing = threading.Lock()
        """Held while the trace is opened."""
        self._showing = threading.Lock()
        """Held while a state is being mounted to be shown: all of a volume use one place for that."""
        self._kept: KeptRecords | None = None
        self._reopening: asyncio.Future[None] | None = None
        """Whoever looks whether the journal can be had by now."""
        self._noted: dict[str, NotedRuns] = {}
        self._rooms: dict[str, int] = {}
        self._full = False
        self._limits: ImageLimits | None = None
        self._mounted_then: tuple[tuple[Mount, ...], tuple[tuple[str, int], ...]] = (), ()
        """All mounts as they were when that was looked for, and the live images among them."""

    async def open(self) -> None:
        """See :meth:`Driver.open`."""
        if self._source is not None:
            await pool.open_pool(self._source, mountpoint=self._mountpoint)
        await in_thread(self._open)

    def _open(self) -> None:
        self._staging.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._open_volumes()
        with told_as_storage_error("see how the pool is made"):
            self._pool = Allocation.of(self._mountpoint)
            if self._kept is None:
                self._kept = KeptRecords(
                    self._mountpoint, pool_bytes=self._pool_bytes(), volumes=self._list_volumes()
                )
            places = list(self._staging.iterdir())
        for volume, epoch in filter(None, map(_named, places)):
            try:
                self._image(volume, epoch).take_over()
            except (OSError, PannierError) as error:  # the others can be used
                log.warning("volume.not-taken-over", id=volume, epoch=epoch, error=str(error))

    async def close(self) -> None:
        """See :meth:`Driver.close`."""
        await in_thread(self._close)

    def _close(self) -> None:
        for volume, epoch in self._mounted():
            image = self._image(volume, epoch)
            with suppress(OSError, StorageError):
                image.thaw()  # nobody would be there to do it
            image.end_cuts()
        for notes in self._noted.values():
            notes.close()
        if self._kept is not None:
            self._kept.close()
            self._kept = None
        if self._tracer is not None:
            self._tracer.close()
            self._tracer = None

    def _image(self, volume: str, epoch: int) -> LiveImage:
        image = self._images.get((volume, epoch))
        if image is None:
            home, place = self._home(volume), self._place(volume, epoch)
            made = LiveImage(home, epoch, place=place, has_room=self._has_room, keys=self._keys)
            # Two threads may be here; all must get the same one.
            image = self._images.setdefault((volume, epoch), made)
        return image

    def _place(self, volume: str, epoch: int) -> Path:
        """Where an image is mounted."""
        return self._staging / f"{volume}.{epoch}"

    # -- making ---------------------------------------------------------------------------------

    async def create(
        self, volume: str, *, epoch: int, root: RootAttributes, size_bytes: int | None
    ) -> None:
        """See :meth:`Driver.create`."""
        home = self._home(volume)
        await in_thread(self._check_intake, volume)
        if size_bytes is not None and size_bytes < ext4.SMALLEST_ROOM:
            raise InvalidInput(
                f"size={format_size(size_bytes)} is too small for a file system",
                remedy=f"ask for {format_size(ext4.SMALLEST_ROOM)} or more, or leave size out",
            )
        if size_bytes is not None:
            await in_thread(self._check_size, size_bytes)
        key = self._keys.key_of(volume)
        encrypted = key is not None
        with told_as_storage_error(f"create volume {volume}"):
            draft = await in_thread(self._draft, home, epoch)
            if draft is None:
                return
            image = draft / IMAGE
            if size_bytes is None:
                size = await in_thread(self._pool_bytes)
                await ext4.make(image, size=size, root=root, encrypted=encrypted)
            else:
                await ext4.make_with_room(image, room=size_bytes, root=root, encrypted=encrypted)
            if key is not None:
                await in_thread(encrypt, image, key)
            await in_thread(self._publish, draft, home.live(epoch))

    def _check_size(self, size_bytes: int) -> None:
        total = self._pool_bytes()
        if size_bytes > total:
            raise InvalidInput(
                f"size={format_size(size_bytes)} is more than the pool at {self._mountpoint} has: "
                f"{format_size(total)}",
                remedy="ask for less, enlarge the pool, or name other nodes with nodes=",
            )

    def _draft(self, home: Home, epoch: int) -> Path | None:
        live = home.live(epoch)
        if live.exists():
            return None
        home.make(quotas=False)
        draft = home.path / f"{DRAFT}{live.name}"
        if draft.exists():
            ioctl.destroy_subvolume(draft)
        ioctl.create_subvolume(draft)
        nocow.make_empty(draft / IMAGE)
        return draft

    def _pool_bytes(self) -> int:
        found = os.statvfs(self._mountpoint)
        return found.f_blocks * found.f_frsize // BLOCK_BYTES * BLOCK_BYTES

    def _publish(self, draft: Path, live: Path) -> None:
        with open(draft / IMAGE, "rb") as image:
            os.fsync(image.fileno())
        draft.rename(live)
        ioctl.sync_filesystem(live.parent)

    def _check_intake(self, volume: str) -> None:
        """Make sure that a volume can be taken in.

        Raises:
            StorageError: it is quarantined, or the pool cannot keep images; PoolFull.
        """
        self._quarantine.check(volume)
        self._check_room()
        with told_as_storage_error("see what the pool can keep"):
            if self._allocation.keeps_data_twice:
                raise StorageError(
                    f"the pool at {self._mountpoint} keeps its data twice, and the two could differ: "
                    f"an image has no checksums",
                    remedy="turn it into a pool with single data (btrfs balance start "
                    "-dconvert=single), or use layout=tree",
                )
            if self._allocation.counts_references:
                raise StorageError(
                    f"the pool at {self._mountpoint} has full quotas, with which each snapshot of an image "
                    f"makes it slower",
                    remedy=f"btrfs quota disable {self._mountpoint}, or use layout=tree",
                )

    @property
    def _allocation(self) -> Allocation:
        assert self._pool is not None, "open() comes first"
        return self._pool

    async def clone(
        self, source: str, generation: Generation, *, volume: str, base: Generation, unborn: bool
    ) -> None:
        """See :meth:`CloningDriver.clone`."""
        await in_thread(
            self._clone, self._home(source), generation, self._home(volume), base, unborn
        )

    def _clone(
        self, source: Home, generation: Generation, home: Home, base: Generation, unborn: bool
    ) -> None:
        self._check_intake(home.volume)
        tree = existing_tree(source, generation)
        with told_as_storage_error(f"make volume {home.volume} a clone of {source.volume}"):
            cloning.clone(tree, home, base, unborn=unborn)

    async def enlarge(
        self, volume: str, generation: Generation, *, epoch: int, size_bytes: int, more_bytes: int
    ) -> None:
        """See :meth:`CloningDriver.enlarge`."""
        await in_thread(self._check_size, size_bytes)
        await in_thread(self._enlarge, self._home(volume), generation, epoch, more_bytes)

    def _enlarge(self, home: Home, generation: Generation, epoch: int, more_bytes: int) -> None:
        self._quarantine.check(home.volume)
        with told_as_storage_error(f"make volume {home.volume} larger"):
            draft = self._draft_of(home, generation, epoch)
            if draft is not None:
                cloning.enlarge(draft / IMAGE, more_bytes=more_bytes)
                self._publish(draft, home.live(epoch))

    async def unborn(self) -> frozenset[str]:
        """See :meth:`CloningDriver.unborn`."""
        return await in_thread(self._unborn)

    def _unborn(self) -> frozenset[str]:
        with told_as_storage_error("list the volumes"):
            return cloning.unborn(self._volumes)

    async def born(self, volume: str) -> None:
        """See :meth:`CloningDriver.born`."""
        home = self._home(volume)
        with told_as_storage_error(f"note that volume {volume} is there"):
            await in_thread(cloning.born, home)

    # -- attached -------------------------------------------------------------------------------

    def data_path(self, volume: str, epoch: int) -> Path:
        """See :meth:`Driver.data_path`."""
        return self._place(volume, epoch) / ext4.DATA

    def behind(self, volume: str, epoch: int) -> Path:
        """See :meth:`SparseDriver.behind`."""
        return self._home(volume).live(epoch)

    async def attach(self, volume: str, *, epoch: int, grow: bool) -> None:
        """See :meth:`Driver.attach`."""
        await in_thread(self._attach, self._home(volume), epoch, grow=grow)

    def _attach(self, home: Home, epoch: int, *, grow: bool) -> None:
        self._quarantine.check(home.volume)
        self._check_room()  # mounting writes, and whoever uses it would stand still
        existing_live(home, epoch)
        with told_as_storage_error(f"attach volume {home.volume}"):
            self._image(home.volume, epoch).attach(
                limits=self._limits,
                size=self._pool_bytes() if grow else None,
                room=self._rooms.get(home.volume),
            )

    def give_room(self, volume: str, room_bytes: int) -> None:
        """See :meth:`GrowingDriver.give_room`."""
        self._rooms[volume] = room_bytes

    async def attached(self) -> frozenset[str]:
        """See :meth:`Driver.attached`."""
        return await in_own_thread(lambda: frozenset(volume for volume, _ in self._mounted()))

    def _mounted(self) -> tuple[tuple[str, int], ...]:
        """Volumes and epochs of the live images that are mounted."""
        mounts = mounts_here()
        seen, found = self._mounted_then
        if mounts is not seen:
            top = f"{self._staging.resolve()}/"
            points = (mount.point for mount in mounts if mount.fstype == "ext4")
            ours = (at for at in points if at.startswith(top) and "/" not in at[len(top) :])
            found = tuple(filter(None, (_named(Path(at)) for at in ours)))
            self._mounted_then = mounts, found  # at once: another thread may look
        return found

    async def detach(self, volume: str, *, epoch: int) -> None:
        """See :meth:`Driver.detach`."""
        await in_thread(self._detach, self._home(volume), epoch)

    def _detach(self, home: Home, epoch: int) -> None:
        self._end_notes(home.volume)
        with told_as_storage_error(f"detach volume {home.volume}"):
            self._image(home.volume, epoch).detach()

    # -- generations ----------------------------------------------------------------------------

    def _snapshot(self, home: Home, epoch: int) -> Generation:
        existing_live(home, epoch)
        with told_as_storage_error(f"write out volume {home.volume}"):
            self._image(home.volume, epoch).write_out()
        return super()._snapshot(home, epoch)

    def _new_identity(self) -> str:
        return new_identity()

    async def seal(self, volume: str, *, epoch: int) -> Generation:
        """See :meth:`Driver.seal`. Whoever still has a copy of the mount gets EIO."""
        return await in_thread(self._seal, self._home(volume), epoch)

    def _seal(self, home: Home, epoch: int) -> Generation:
        live = existing_live(home, epoch)
        self._end_notes(home.volume)
        with told_as_storage_error(f"seal volume {home.volume}"):
            self._image(home.volume, epoch).shut()
            generation = super()._snapshot(home, epoch)
            ioctl.set_read_only(live, read_only=True)
            return generation

    async def unseal(self, volume: str, *, epoch: int) -> None:
        """See :meth:`Driver.unseal`."""
        await in_thread(self._unseal, self._home(volume), epoch)

    def _unseal(self, home: Home, epoch: int) -> None:
        with told_as_storage_error(f"unseal volume {home.volume}"):
            ioctl.set_read_only(existing_live(home, epoch), read_only=False)

    async def roll_back(self, volume: str, generation: Generation, *, epoch: int) -> None:
        """See :meth:`RollingBackDriver.roll_back`."""
        await in_thread(self._roll_back, self._home(volume), generation, epoch)

    def _roll_back(self, home: Home, generation: Generation, epoch: int) -> None:
        self._quarantine.check(home.volume)
        tree, live = existing_tree(home, generation), existing_live(home, epoch)
        with told_as_storage_error(f"make volume {home.volume} what generation {generation} is"):
            if not ioctl.is_read_only(live):
                raise StorageError(f"the live image {live} is not sealed", remedy="seal it first")
            self._image(home.volume, epoch).roll_back(tree)

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
        await in_thread(self._promote_with, self._home(volume), generation, epoch, on_top)

    def _promote_with(self, home: Home, generation: Generation, epoch: int, on_top: OnTop) -> None:
        self._quarantine.check(home.volume)
        if on_top is not OnTop.NOTHING and not home.live(epoch).exists():
            self._put_records(home, generation, epoch, on_top)
        self._promote(home, generation, epoch)
        with told_as_storage_error(f"remove what a transfer left of volume {home.volume}"):
            discard_parts(home)  # a holder receives nothing

    def _put_records(self, home: Home, generation: Generation, epoch: int, on_top: OnTop) -> None:
        """Make a live image of a generation and the records on top of it; it has its name only when it is whole."""
        kept = self._kept_records
        with told_as_storage_error(
            f"put the records of volume {home.volume} on top of {generation}"
        ):
            # Of what shall all be there, each is read anyway when it is put on top.
            look = kept.tail if on_top is OnTop.ALL else kept.readable
            found = look(home.volume, generation)
            if found.lacks and on_top is OnTop.ALL:
                raise _may_lack(home.volume, found.lacks)
            if found.lacks:
                log.warning("volume.without-records", id=home.volume, lost=found.lacks)
            if not found.places:
                return
            draft = self._draft_of(home, generation, epoch)
            assert draft is not None, "there is no live image yet"
            try:
                kept.put_on_top(draft / IMAGE, found.places)
            except Corrupt as error:  # it was damaged since the last look
                raise _may_lack(home.volume, error.message) from error
            self._publish(draft, home.live(epoch))
        log.info(
            "volume.with-records",
            id=home.volume,
            generation=str(generation),
            records=len(found.places),
        )

    def _draft_of(self, home: Home, generation: Generation, epoch: int) -> Path | None:
        """A writable subvolume of what a generation is, which has no name yet; None if there is a live image of the epoch."""
        live = home.live(epoch)
        if live.exists():
            return None
        draft = home.path / f"{DRAFT}{live.name}"
        if draft.exists():
            ioctl.destroy_subvolume(draft)
        ioctl.create_snapshot(existing_tree(home, generation), target=draft, read_only=False)
        (draft / SUMS).unlink(missing_ok=True)  # they are of what the generation has
        return draft

    def _inspect(self, home: Home) -> LocalCopy:
        # Before the generations: one that arrives meanwhile frees records, and would else be missing in what is told, too.
        last = self._kept.last(home.volume) if self._kept is not None else None
        copy = super()._inspect(home)
        with told_as_storage_error(f"read what was begun of volume {home.volume}"):
            return replace(
                copy,
                begun=begun(home),
                last=last,
                noted=self._notes(home.volume).runs() if copy.live else (),
            )

    def _has_anything(self, home: Home) -> bool:
        return super()._has_anything(home) or bool(home.arriving())

    @asynccontextmanager
    async def send(
        self, volume: str, generation: Generation, *, base: Generation | None
    ) -> AsyncIterator[int]:
        """See :meth:`Driver.send`."""
        async with self.send_rest(volume, generation, base=base, position=0) as reader:
            yield reader

    @asynccontextmanager
    async def send_rest(
        self, volume: str, generation: Generation, *, base: Generation | None, position: int
    ) -> AsyncIterator[int]:
        """See :meth:`ResumingDriver.send_rest`."""
        home = self._home(volume)

        def write(fd: int) -> None:
            tree = existing_tree(home, generation)
            parent = existing_tree(home, base) if base is not None else None
            send(tree, parent, fd, position=position)

        await in_thread(existing_tree, home, generation)
        if base is not None:
            await in_thread(existing_tree, home, base)
        async with feeding(write) as reader:
            yield reader

    @asynccontextmanager
    async def receive(
        self, volume: str, generation: Generation, *, base: Generation | None
    ) -> AsyncIterator[int]:
        """See :meth:`Driver.receive`."""
        home = self._home(volume)
        await in_thread(self._check_intake, volume)
        intake = ImageIntake(home, generation, base, check_room=self._check_room)
        if not await in_thread(intake.prepare):
            async with swallow_stream() as writer:
                yield writer
            return
        with self._mender.receiving(home):
            try:
                async with reading(lambda pipe, _stop: intake.take(pipe)) as (writer, _):
                    yield writer
                await in_thread(self._accept, home, intake)
            except BaseException as error:
                await in_thread(intake.break_off, error)
                raise

    def _accept(self, home: Home, intake: ImageIntake) -> None:
        with self._mender.naming(home) as put_right:
            intake.accept(put_right)

    async def verify(self, volume: str, generation: Generation | None) -> Reading:
        """See :meth:`CheckedDriver.verify`. What this node made itself has no checksums."""
        await in_thread(self._quarantine.check, volume)
        return await checked(self._home(volume), generation, check_image)

    async def pieces(
        self, volume: str, generation: Generation, *, start: int, end: int | None, piece_bytes: int
    ) -> tuple[Piece, ...]:
        """See :meth:`MendingDriver.pieces`."""
        await in_thread(self._quarantine.check, volume)
        read = partial(pieces_of, start=start, end=end, piece_bytes=piece_bytes)
        return await checked(self._home(volume), generation, read)

    async def wanted(
        self, volume: str, generation: Generation, blocks: Iterable[int]
    ) -> Mapping[int, int | None]:
        """See :meth:`MendingDriver.wanted`."""
        home = self._home(volume)
        with told_as_storage_error(f"read blocks of generation {generation} of volume {volume}"):
            return await in_thread(mending.wanted, home, generation, tuple(blocks))

    async def find(self, volume: str, sums: Mapping[int, int]) -> Mapping[int, bytes]:
        """See :meth:`MendingDriver.find`."""
        with told_as_storage_error(f"read blocks of volume {volume}"):
            return await in_thread(mending.find, self._home(volume), sums)

    async def mend(self, volume: str, blocks: Mapping[int, bytes]) -> None:
        """See :meth:`MendingDriver.mend`."""
        await in_thread(self._mender.mend, self._home(volume), blocks)

    async def quarantine(self, volume: str) -> None:
        """See :meth:`CheckedDriver.quarantine`. Records stay: the journal has them, and it is not what is damaged. They
        were confirmed, and the generation that comes next may have been on its way before they were made."""
        with told_as_storage_error(f"quarantine what is here of volume {volume}"):
            try:
                await in_thread(self._mender.quarantine, self._home(volume))
            finally:
                self._kept_records.note_set_aside(volume)

    def _set_apart(self, home: Home) -> Path:
        if any(volume == home.volume for volume, _ in self._mounted()):
            raise StorageError(
                f"volume {home.volume} is still mounted on this node",
                remedy="end what uses it: pannier volume show says what that is",
            )
        self._end_notes(home.volume)
        self._noted.pop(home.volume, None)
        try:
            place = super()._set_apart(home)
        finally:
            self._kept_records.note_set_aside(home.volume)  # they stay, as in `quarantine`
        self._forget_images(home.volume)
        return place

    def _forget_images(self, volume: str) -> None:
        for key in [key for key in self._images if key[0] == volume]:
            del self._images[key]

    async def check_file_system(
        self, volume: str, generation: Generation | None
    ) -> tuple[str, ...]:
        """See :meth:`FileSystemDriver.check_file_system`."""

        def check(tree: Path, _what: str, _stop: threading.Event) -> tuple[str, ...]:
            return ext4.findings(tree / IMAGE)

        await in_thread(self._quarantine.check, volume)
        return await checked(self._home(volume), generation, check, writable=True)

    async def show(self, volume: str, *, tree: int | Generation, at: Path) -> None:
        """See :meth:`FileSystemDriver.show`."""
        await in_thread(self._quarantine.check, volume)
        await in_thread(self._show, self._home(volume), tree, at)

    def _show(self, home: Home, tree: int | Generation, at: Path) -> None:
        source, what = _state(home, tree)
        with self._showing, told_as_storage_error(f"mount {what} of volume {home.volume} at {at}"):
            show(
                source,
                at,
                volume=home.volume,
                keys=self._keys,
                aside=home.shown,
                staging=self._staging / f"{DRAFT}{home.volume}",
            )

    @asynccontextmanager
    async def opened(self, volume: str, *, tree: int | Generation) -> AsyncIterator[int]:
        """See :meth:`FileSystemDriver.opened`."""
        await in_thread(self._quarantine.check, volume)
        opening = asyncio.ensure_future(in_thread(self._open_root, self._home(volume), tree))
        try:
            root = await asyncio.shield(opening)
        except asyncio.CancelledError:
            with suppress(PannierError, OSError):
                await in_thread(os.close, await opening)
            raise
        try:
            yield root
        finally:
            await in_thread(os.close, root)  # the unmount waits for the disk

    def _open_root(self, home: Home, tree: int | Generation) -> int:
        source, what = _state(home, tree)
        with self._showing, told_as_storage_error(f"look into {what} of volume {home.volume}"):
            return open_root(source, volume=home.volume, keys=self._keys, aside=home.shown)

    async def has_files(self, volume: str, *, epoch: int) -> bool:
        """See :meth:`FileSystemDriver.has_files`."""
        await in_thread(self._quarantine.check, volume)
        return await in_thread(self._has_files, self._home(volume), epoch)

    def _has_files(self, home: Home, epoch: int) -> bool:
        source, what = _state(home, epoch)
        with self._showing, told_as_storage_error(f"look into {what} of volume {home.volume}"):
            return has_files(source, aside=home.shown)

    def _delete(self, home: Home) -> None:
        for epoch in home.epochs():
            self._detach(home, epoch)
        self._kept_records.forget(home.volume)
        self._end_notes(home.volume)
        self._noted.pop(home.volume, None)
        super()._delete(home)
        self._forget_images(home.volume)

    async def used_bytes(self, volume: str) -> int:
        """See :meth:`Driver.used_bytes`: what the newest image takes on the disk."""
        return await in_thread(self._used_bytes, self._home(volume))

    def _used_bytes(self, home: Home) -> int:
        with told_as_storage_error(f"measure volume {home.volume}"):
            trees = [home.live(epoch) for epoch in home.epochs()[-1:]]
            trees += [home.tree(generation) for generation in home.generations()[-1:]]
            return (trees[0] / IMAGE).stat().st_blocks * 512 if trees else 0

    async def shares(self, volume: str, *, named: Collection[Generation]) -> Shares:
        """See :meth:`MeasuredDriver.shares`."""
        return await in_own_thread(
            functools.partial(self._shares, self._home(volume), frozenset(named))
        )

    def _shares(self, home: Home, named: frozenset[Generation]) -> Shares:
        with told_as_storage_error(f"measure volume {home.volume}"):
            live = [home.live(epoch) for epoch in home.epochs()[-1:]]
            generations = sorted(home.generations())
            current = live or [home.tree(generation) for generation in generations[-1:]]
            files, kept, apart = frozenset[bytes](), set[bytes](), set[bytes]()
            for tree in current:
                files = _disk_of(tree)
            for generation in generations:
                (apart if generation in named else kept).update(_disk_of(home.tree(generation)))
        return Shares(
            files_bytes=disk_bytes(files),
            generations_bytes=disk_bytes(kept - files),
            snapshots_bytes=disk_bytes(apart - kept - files),
        )

    # -- room -----------------------------------------------------------------------------------
    # In threads of their own: what keeps a pool from getting full never waits behind other work.

    async def room(self, *, note_used: bool) -> Room:
        """See :meth:`SparseDriver.room`."""
        return await in_own_thread(functools.partial(self._room, note_used))

    def _room(self, note_used: bool) -> Room:
        with told_as_storage_error("see how much room the pool has"):
            mounted = self._mounted()
            if note_used:
                for volume, epoch in mounted:
                    try:
                        self._image(volume, epoch).note_used()
                    except (OSError, PannierError) as error:  # it is limited from now on
                        log.warning("volume.use-not-noted", id=volume, error=str(error))
            return Room(
                total_bytes=self._pool_bytes(),
                free_bytes=self._allocation.free_bytes(),
                dirty_bytes=dirty_limit_bytes(),
                images=len(mounted),
            )

    async def gives_back(self) -> bool:
        """See :meth:`SparseDriver.gives_back`. What was deleted is free after the commit that follows it."""
        return await in_own_thread(self._gives_back)

    def _gives_back(self) -> bool:
        with told_as_storage_error("see whether the pool still frees what was deleted"):
            found = ioctl.has_deleted(self._mountpoint)
            ioctl.sync_filesystem(self._mountpoint)  # wakes the kernel's cleaner, too
            return found

    async def parts(self) -> frozenset[str]:
        """See :meth:`SparseDriver.parts`."""
        return await in_own_thread(self._parts)

    def _parts(self) -> frozenset[str]:
        with told_as_storage_error("list the volumes"):
            homes = [self._home(name) for name in os.listdir(self._volumes) if name[0] != "."]
            return frozenset(
                home.volume
                for home in homes
                if home.arriving() and not self._mender.is_receiving(home)
            )

    async def drop_part(self, volume: str) -> None:
        """See :meth:`SparseDriver.drop_part`."""
        await in_own_thread(functools.partial(self._drop_part, self._home(volume)))

    def _drop_part(self, home: Home) -> None:
        with told_as_storage_error(f"remove what was received of volume {home.volume}"):
            if not self._mender.is_receiving(home):
                discard_parts(home)

    async def restrict(
        self, *, full: bool, limits: ImageLimits | None, frozen: frozenset[str]
    ) -> None:
        """See :meth:`SparseDriver.restrict`."""
        self._full, self._limits = full, limits
        await in_own_thread(functools.partial(self._restrict, frozen))

    def _restrict(self, frozen: frozenset[str]) -> None:
        for volume, epoch in self._mounted():
            try:
                self._image(volume, epoch).restrict(limits=self._limits, frozen=volume in frozen)
            except (OSError, PannierError) as error:  # the others must stand still all the same
                log.warning("volume.not-restricted", id=volume, error=str(error))

    def _has_room(self) -> bool:
        return self._allocation.free_bytes() > _ROOM_BYTES

    def _check_room(self) -> None:
        if self._full:
            raise PoolFull(
                f"the pool at {self._mountpoint} is nearly full: nothing new is taken in",
                remedy="remove volumes or files that nobody needs, move volumes to other nodes, or "
                "enlarge the pool's disk",
            )

    async def write_out(self, volume: str) -> None:
        """See :meth:`SparseDriver.write_out`."""
        self._home(volume)
        await in_own_thread(lambda: self._each(volume, LiveImage.write_out))

    # -- records --------------------------------------------------------------------------------
    # In threads of their own: a sync call waits for each.

    async def watch(self, volume: str, *, epoch: int) -> Doubt | None:
        """See :meth:`LineDriver.watch`."""
        image = self._image(volume, epoch)
        if not image.place.exists():  # asked for each idle volume, again and again
            return Doubt("it is not mounted")
        return await in_own_thread(lambda: self._watch(image))

    async def renew(self, volume: str, *, epoch: int) -> None:
        """See :meth:`LineDriver.renew`."""
        self._anew.add(volume)

    def _watch(self, image: LiveImage) -> Doubt | None:
        with told_as_storage_error(f"watch what is written to volume {image.volume}"):
            try:
                doubt = image.watch_writes(self._open_trace())
            except (Unavailable, Conflict) as error:
                return Doubt(error.message, remedy=error.remedy)
            except OSError as error:  # of the trace: the image itself is not read here
                return Doubt(
                    f"the kernel's trace cannot be had: {error}",
                    remedy="see dmesg, then restart pannierd on this node",
                )
        if doubt is None:
            self._anew.add(image.volume)
        return doubt

    def _open_trace(self) -> Tracer:
        if self._trace is None:
            raise Unavailable("this node was told to use no trace")
        with self._tracing:
            if self._tracer is None:
                self._tracer = Tracer(self._trace)
            return self._tracer

    async def snapshot_disk(self, volume: str, *, epoch: int) -> Generation:
        """See :meth:`LineDriver.snapshot_disk`."""
        home, image = self._home(volume), self._image(volume, epoch)
        return await in_own_thread(lambda: self._snapshot_disk(home, image, epoch))

    def _snapshot_disk(self, home: Home, image: LiveImage, epoch: int) -> Generation:
        existing_live(home, epoch)
        with told_as_storage_error(f"make a generation of volume {home.volume}"):
            image.require_sound()
        return super()._snapshot(home, epoch)

    def cut_now(self, place: LinePlace) -> Cut | Doubt:
        """See :meth:`LineDriver.cut_now`."""
        with told_as_storage_error(f"read what was written to volume {place.volume}"):
            return self._image(place.volume, place.epoch).cut(MOST_BYTES)

    def note(self, place: LinePlace) -> None:
        """See :meth:`LineDriver.note`."""
        with told_as_storage_error(f"note a record of volume {place.volume}"):
            self._notes(place.volume).note(place)

    async def cut(self, place: LinePlace) -> Cut | Doubt:
        """See :meth:`LineDriver.cut`."""
        return await in_own_thread(lambda: self._cut(place))

    def _cut(self, place: LinePlace) -> Cut | Doubt:
        found = self.cut_now(place)
        if isinstance(found, Cut) and found.ranges:
            self.note(place)
        return found

    def keep(self, place: LinePlace, encoded: Buffer) -> None:
        """See :meth:`LineDriver.keep`."""
        home = self._home(place.volume)
        self._quarantine.check(place.volume)
        with told_as_storage_error(f"keep a record of volume {place.volume}"):
            self._kept_records.keep(home, place, encoded)

    async def settle(self, volume: str, generation: Generation) -> None:
        """See :meth:`LineDriver.settle`."""
        self._kept_records.settle(volume, generation)

    async def drop_records(self, volume: str) -> None:
        """See :meth:`LineDriver.drop_records`."""
        kept = self._kept_records
        await in_own_thread(lambda: kept.forget(volume))

    def _notes(self, volume: str) -> NotedRuns:
        notes = self._noted.get(volume)
        if notes is None:
            notes = self._noted.setdefault(volume, NotedRuns(self._home(volume).path))
        return notes

    def _end_notes(self, volume: str) -> None:
        """No record is made, until the volume is mounted again."""
        if (notes := self._noted.get(volume)) is not None:
            notes.close()

    async def missing(self, volume: str) -> str:
        """See :meth:`LineDriver.missing`."""
        return self._kept_records.missing(volume)

    async def lack(self, volume: str) -> None:
        """See :meth:`LineDriver.lack`."""
        kept = self._kept_records
        await in_own_thread(lambda: kept.lack(volume))

    async def mend_records(self, volume: str) -> None:
        """See :meth:`LineDriver.mend_records`."""
        kept = self._kept_records
        await in_own_thread(lambda: kept.mend(volume))

    async def lost(self, volume: str, generation: Generation) -> str:
        """See :meth:`LineDriver.lost`."""
        kept = self._kept_records
        return await in_own_thread(lambda: kept.readable(volume, generation).lacks)

    async def end_journal(self) -> None:
        """See :meth:`LineDriver.end_journal`."""
        await in_own_thread(self._kept_records.close)

    async def journal(self) -> JournalState:
        """See :meth:`LineDriver.journal`. Where another process has it, this looks whether it still does, and waits for no
        disk: the next call tells it."""
        kept = self._kept_records
        if kept.is_taken and (self._reopening is None or self._reopening.done()):
            self._reopening = in_own_thread(lambda: self._open_journal_again(kept))
        return kept.state()

    def _open_journal_again(self, kept: KeptRecords) -> None:
        try:
            kept.open_again(self._list_volumes())
        except PannierError as error:
            log.warning("journal.not-opened", error=str(error))

    @property
    def _kept_records(self) -> KeptRecords:
        assert self._kept is not None, "open() comes first"
        return self._kept

    async def thaw(self, volume: str) -> None:
        """See :meth:`SparseDriver.thaw`."""
        self._home(volume)
        await in_own_thread(lambda: self._each(volume, LiveImage.thaw))

    async def hold_still(self, volume: str, *, epoch: int, seconds: float) -> bool:
        """See :meth:`SparseDriver.hold_still`."""
        image = self._image(self._home(volume).volume, epoch)
        with told_as_storage_error(f"freeze volume {volume}"):
            return await in_own_thread(lambda: image.hold_still(seconds))

    async def let_go(self, volume: str, *, epoch: int) -> bool:
        """See :meth:`SparseDriver.let_go`."""
        image = self._image(self._home(volume).volume, epoch)
        with told_as_storage_error(f"thaw volume {volume}"):
            return await in_own_thread(image.let_go)

    async def trim(self, volume: str, *, go_on: Callable[[], bool]) -> None:
        """See :meth:`SparseDriver.trim`."""
        self._home(volume)
        await in_own_thread(lambda: self._each(volume, partial(LiveImage.trim, go_on=go_on)))

    def _each(self, volume: str, work: Callable[[LiveImage], object]) -> None:
        """Do something with the images of a volume that are mounted: of its present epoch, or a former."""
        with told_as_storage_error(f"write out volume {volume}"):
            for name, epoch in self._mounted():
                if name == volume:
                    work(self._image(name, epoch))

    async def failed(self) -> frozenset[str]:
        """See :meth:`SparseDriver.failed`."""
        return await in_own_thread(self._failed)

    def _failed(self) -> frozenset[str]:
        return frozenset(key[0] for key, image in tuple(self._images.items()) if image.look())

    async def refused(self, volume: str, *, epoch: int) -> bool:
        """See :meth:`SparseDriver.refused`. It waits for no disk, so it needs no thread."""
        with told_as_storage_error(f"see what was lost of volume {volume}"):
            return self._image(volume, epoch).refused()

    async def note_refused(self, volume: str, *, epoch: int) -> None:
        """See :meth:`SparseDriver.note_refused`."""
        image = self._image(self._home(volume).volume, epoch)
        await in_own_thread(image.note_refused)

    async def space(self, volume: str) -> Space | None:
        """See :meth:`SparseDriver.space`."""
        self._home(volume)
        return await in_own_thread(functools.partial(self._space, volume))

    def _space(self, volume: str) -> Space | None:
        epochs = [epoch for name, epoch in self._mounted() if name == volume]
        if not epochs:
            return None
        with told_as_storage_error(f"see what volume {volume} has room for"):
            image = self._image(volume, max(epochs))
            found, direct = os.statvfs(image.place), image.is_direct
        return Space(
            size_bytes=found.f_blocks * found.f_frsize,
            free_bytes=found.f_bavail * found.f_frsize,
            inodes=found.f_files,
            free_inodes=found.f_ffree,
            direct=direct,
        )


def _named(place: Path) -> tuple[str, int] | None:
    """The volume and epoch that a place in the staging directory is for."""
    volume, _, epoch = place.name.rpartition(".")
    return (volume, int(epoch)) if volume and epoch.isdecimal() else None


def _may_lack(volume: str, why: str) -> Corrupt:
    return Corrupt(
        f"this node may lack what it has confirmed of volume {volume}: {why}",
        remedy="if no other node has it either, accept the loss: pannier volume recover NAME --accept-loss",
    )


def _disk_of(tree: Path) -> frozenset[bytes]:
    """What an image has of the disk; nothing where it was just deleted."""
    try:
        file = os.open(tree / IMAGE, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return frozenset()
    try:
        return on_disk(file)
    finally:
        os.close(file)


def _state(home: Home, tree: int | Generation) -> tuple[Path, str]:
    """The subvolume of an epoch or a generation, and what it is, for people."""
    if isinstance(tree, Generation):
        return existing_tree(home, tree), f"generation {tree}"
    return existing_live(home, tree), f"epoch {tree}"
