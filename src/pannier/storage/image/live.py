"""One live image on this node: attached, written out, frozen, shut down, mended; one thing at a time.

A loop device goes with its last mount, and a mount may have been copied: into another namespace, as
with ``docker run -v /:/host``, and into the directory that containers see. So an unmount proves nothing.
An image has no user only if no loop device has it, and only one that has none is changed from outside. While
somebody keeps a copy of what was shut down, the volume goes on as another file of the same bytes.

What the disk refused is heard of by the mount's :class:`~pannier.storage.image.watched.WatchedMount`, or told by
a sync call of the volume's user (:meth:`LiveImage.note_refused`). Nothing is confirmed of a mount that lost something.

A program may use direct I/O from memory that is aligned to 512 bytes: the pool then goes through its page cache
for that, and next to writes that go past it, the kernel refuses one of them. No setting cures it. So an image
of which a write was refused twice, although there was room, is attached through the page cache from then on.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import structlog

from pannier.core.errors import Conflict, Corrupt, PannierError, StorageError
from pannier.core.line import Cut, Doubt
from pannier.core.room import ImageLimits
from pannier.cut.cutter import Cutter
from pannier.cut.doubt import DoubtKind
from pannier.cut.tracer import Tracer
from pannier.host.files import DRAFT, exchange
from pannier.host.mountflags import takes_no_writes
from pannier.host.mountinfo import mount_at
from pannier.storage.btrfs import ioctl
from pannier.storage.btrfs.layout import Home
from pannier.storage.image import ext4, loopdevice, nocow
from pannier.storage.image.nocow import IMAGE
from pannier.storage.image.sums import SUMS
from pannier.storage.image.unlocking import unlock_at
from pannier.storage.image.watched import WatchedMount
from pannier.storage.keys import VolumeKeys

log = structlog.get_logger(__name__)

_EXACT_BYTES = 1 << 20
"""So much less than what was asked for is exact: a file system has a few blocks of its own in what it counts."""
_WORTH_GROWING = 64
"""An image is grown by this part of its pool at least: it takes a check of the whole file system."""


class LiveImage:
    """A live image. Methods block, may be called from several threads, and raise OSError or StorageError.

    Args:
        home: of its volume.
        epoch: of the live subvolume, which need not exist.
        place: where it is mounted.
        has_room: whether a write that the disk refuses is not one that a full pool refuses.
        keys: has the volume's key, if it is encrypted.
    """

    def __init__(
        self,
        home: Home,
        epoch: int,
        *,
        place: Path,
        has_room: Callable[[], bool],
        keys: VolumeKeys,
    ) -> None:
        self.volume = home.volume
        self._keys = keys
        self.place = place
        self._live = home.live(epoch)
        self._image = self._live / IMAGE
        self._shut = home.path / f"shut-{epoch}"
        """Says that its mount takes no more writes, or is about to take none."""
        self._lost_note = home.path / f"lost-{epoch}"
        """Says that the disk refused something that was written to it."""
        self._refused_note = home.path / "refused"
        """Says that this happened once although there was room."""
        self._buffered_note = home.path / "buffered"
        """Says that it happened again: direct I/O cannot be relied upon for this volume."""
        self._has_room = has_room
        self._aside = home.path / f"{DRAFT}{self._live.name}"
        self._lock = threading.RLock()
        """One thing at a time. Whoever has it may be waiting for the disk."""
        self._mount_lock = threading.RLock()
        """Taken after the other, to unmount it, and alone, to limit or freeze it. Only freezing waits for the disk,
        and lifting a limit, which reads one block."""
        self._lost = self._lost_note.exists()
        self._note_lock = threading.Lock()
        """Taken to set ``_lost``, for a moment."""
        self._watched = WatchedMount(place)
        self._cutter: Cutter | None = None
        """Told what is written to the device of this mount."""
        self._frozen: bool | None = None
        """Whether we have frozen it; None if an earlier run may have."""
        self._held: threading.Timer | None = None
        """While it stands still for :meth:`hold_still`: what lets it go on in any case."""
        self._may_grow = False
        """Whether its files may take all that there is in it; an earlier run may have limited them."""
        self._used_blocks: int | None = None
        """See :meth:`note_used`; None since it was mounted."""
        self._alone = False
        """Whether it was unmounted, and no loop device had it then."""

    # -- attached ------------------------------------------------------------------------------------

    @property
    def is_mounted(self) -> bool:
        """Whether it is mounted at its place."""
        with self._lock:
            there = mount_at(self.place) is not None
            if not there:
                # Somebody else has unmounted it; a descriptor would keep it alive.
                self._watched.forget()
                self.end_cuts()
            return there

    def attach(self, *, limits: ImageLimits | None, size: int | None, room: int | None) -> None:
        """Mount it, unless it is mounted.

        Args:
            limits: what the kernel lets it take.
            size: what it should grow to, in bytes; one that is in use may grow only the next time.
            room: what its files should be able to fill at least, in bytes; the same.

        Raises:
            StorageError: it is sealed, or somebody has what was only shown. Corrupt: it is damaged, or not encrypted as it
            should be. KeyMissing: it is encrypted, and its key is not here; it is not mounted then.
        """
        with self._lock:
            if not self.is_mounted:
                self._keys.key_of(self.volume)  # without it nothing is begun: a mount writes
            shown = self.is_mounted and self._is_only_shown()
            if self.is_mounted and (shown or self._shut.exists()):
                self._detach()
            if not self.is_mounted:
                self._mount_or_show(size=size, shown=shown)
                self._used_blocks = None
                if room is not None and (larger := self._size_for(room)) is not None:
                    self._grow_anew(larger)
            elif size is not None:
                self._grow_mounted(size)
            elif room is not None and (larger := self._size_for(room)) is not None:
                self._grows_mounted(larger)
            self._unlock()
            self._watched.watch()
            with self._mount_lock:
                self._limit(limits)

    def _unlock(self) -> None:
        """Nobody was given what is mounted without its key, so it does not stay mounted."""
        try:
            unlock_at(self.place, self.volume, self._keys)
        except (OSError, PannierError):
            with suppress(OSError):
                self._detach()
            raise

    def _mount_or_show(self, *, size: int | None, shown: bool) -> None:
        """Mount it. Where that fails, what was shown until now can be read again.

        The old mount must go first: an image has one loop device, and that one takes no writes. Nothing is
        written to the image before the new mount, so what was fit to be shown still is. And a device is to be had for it:
        the one that was given back, or the old one where somebody has a copy of its mount.
        """
        try:
            self._mount(size=size)
        except (OSError, StorageError):
            if shown:
                self._show_again()
            raise

    def _show_again(self) -> None:
        try:
            with loopdevice.held(self._image) as device:
                if device is None:
                    self._mount_read_only(errors=nocow.check(self._image))
                else:
                    self.place.mkdir(mode=0o700, exist_ok=True)
                    ext4.mount(device.path, self.place, read_only=True)
            self._unlock()
        except (OSError, PannierError) as error:  # why it cannot be mounted is what is told
            log.warning("volume.not-shown", volume=self.volume, error=str(error))

    def _mount(self, *, size: int | None) -> None:
        if ioctl.is_read_only(self._live):
            raise StorageError(f"the live image {self._live} is sealed", remedy="unseal it first")
        errors = nocow.check(self._image)
        if takes_no_writes(self._live):
            self._mount_read_only(errors=errors)
            return
        (self._live / SUMS).unlink(missing_ok=True)  # they are of what was received
        self.place.mkdir(mode=0o700, exist_ok=True)
        self._alone = False
        with loopdevice.held(self._image) as device:
            if device is not None:
                # Somebody has a copy of an earlier mount, and with it the one file system that there is.
                if not device.takes_writes:
                    raise self._in_use(device)
                if not self._shut.exists() and not self.lost:
                    self._join(device)
                    return
                self._leave_behind(device)
        self._shut.unlink(missing_ok=True)
        if errors or self.lost:
            self._mend()
        if size is not None:
            self._grow_aside(size)
        direct = not self._buffered_note.exists()
        if not direct:
            log.warning("volume.buffered", volume=self.volume)
        with loopdevice.attached(self._image, direct=direct) as device:
            self._frozen = False
            ext4.mount(device.path, self.place)

    def _join(self, device: loopdevice.LoopDevice) -> None:
        """Mount the file system that somebody has a copy of an earlier mount of: it is the same one."""
        self._frozen = None
        self.place.mkdir(mode=0o700, exist_ok=True)
        ext4.mount(device.path, self.place)

    def _leave_behind(self, device: loopdevice.LoopDevice) -> None:
        """Let who has a copy of an earlier mount keep it, dead, and go on with another file of the same bytes.

        What was shut down, or lost something, cannot be mounted anew while somebody has it.
        """
        log.warning("volume.left-behind", volume=self.volume, device=str(device.path))
        self._join_whatever(device)
        self._refuse_writes()
        ext4.unmount(self.place, detach=True)
        with self._anew():
            pass

    def _join_whatever(self, device: loopdevice.LoopDevice) -> None:
        """The same with one that may have found itself damaged, and takes no writes since."""
        try:
            self._join(device)
        except OSError as error:
            if error.errno not in (errno.EBUSY, errno.EROFS):
                raise
            ext4.mount(device.path, self.place, read_only=True)

    def _join_who_has_it(self) -> None:
        """Mount it if somebody has a copy of an earlier mount, through which it can still be written."""
        with loopdevice.held(self._image) as device:
            if device is not None and device.takes_writes:
                self._join_whatever(device)

    @contextmanager
    def _anew(self) -> Iterator[Path]:
        """A snapshot of the image, which is in its place after the block; after a power cut, one or the other is."""
        with self._replaced(by=self._live) as image:
            yield image

    @contextmanager
    def _replaced(self, *, by: Path) -> Iterator[Path]:
        """The same of the image in the subvolume ``by``."""
        if self._aside.exists():
            ioctl.destroy_subvolume(self._aside)
        ioctl.create_snapshot(by, target=self._aside, read_only=False)
        yield self._aside / IMAGE
        ioctl.sync_filesystem(self._aside)
        exchange(self._aside, self._live)
        ioctl.sync_filesystem(self._live)
        ioctl.destroy_subvolume(self._aside)

    def _is_only_shown(self) -> bool:
        """Whether it was mounted while the pool took no writes, which it does by now."""
        return not self.lost and takes_no_writes(self.place) and not takes_no_writes(self._live)

    def _mount_read_only(self, *, errors: int) -> None:
        """Show what is there while the pool takes no writes: its disk may be failing."""
        if errors or self.lost:
            raise self._not_checked()
        self.place.mkdir(mode=0o700, exist_ok=True)
        with loopdevice.attached(self._image, read_only=True) as device:
            ext4.mount(device.path, self.place, read_only=True)

    def _in_use(self, device: loopdevice.LoopDevice) -> StorageError:
        return StorageError(
            f"volume {self.volume} is mounted from {device.path} by somebody else",
            remedy=f"end who uses it: grep loop{device.number} /proc/*/mountinfo",
        )

    def detach(self) -> None:
        """Write it out and unmount it. Who has a copy of the mount keeps it."""
        with self._lock:
            self._detach()

    def _detach(self) -> None:
        if self.is_mounted:
            self.thaw()
            if not self._shut.exists():
                with suppress(OSError, StorageError):  # what was lost is noted
                    self._write_out()
            self._watched.forget()
            self.end_cuts()
            try:
                with self._mount_lock:
                    # One that is unmounted while it is frozen is neither there nor gone.
                    self._thaw()
                    ext4.unmount(self.place, detach=self._is_dead())
                    self._may_grow = False
            except OSError:
                self._watched.watch()
                raise
        with suppress(FileNotFoundError):
            self.place.rmdir()

    def _is_dead(self) -> bool:
        """Whether nothing that is written through this mount counts: who looks on may keep it."""
        return self._shut.exists() or self.lost

    def take_over(self) -> None:
        """Go on with what an earlier run left mounted, and finish what it may have begun to seal."""
        with self._lock:
            if not self.is_mounted:
                return
            self._frozen, self._may_grow = None, False
            self._watched.watch()
            if self._shut.exists():
                self._refuse_writes()
                self._detach()

    # -- what was written ----------------------------------------------------------------------------

    @property
    def lost(self) -> bool:
        """Whether the disk is known to have refused something that was written, and it was not mended since."""
        return self._lost

    def look(self) -> bool:
        """Whether it is mounted and lost something, also if nobody made a sync call since.

        Does not wait for the disk.
        """
        try:
            return self._watched.is_watched and self.refused()
        except OSError as error:  # it was unmounted meanwhile
            log.info("volume.not-looked-at", volume=self.volume, error=str(error))
            return self._lost

    def refused(self) -> bool:
        """Whether the disk refused something, as far as is known without writing anything out.

        Takes no lock: what waits for the disk delays no sync call of another file.

        Raises:
            OSError: the kernel does not tell.
        """
        if not self._lost and self._watched.is_watched and self._watched.errors():
            self.note_refused()
        return self._lost

    def write_out(self) -> None:
        """Bring everything that was written into the image.

        Raises:
            OSError: the disk refused something just now. StorageError: it did earlier.
        """
        with self._lock:
            if self.is_mounted:
                self._alone = False
                self._write_out()
            elif self.lost:
                raise self._not_checked()
            elif not self._alone:
                with loopdevice.held(self._image) as device:
                    if device is not None and device.takes_writes:
                        self._join(device)  # it may lack what memory holds
                        self._write_out()
                        return
                self._alone = True

    def _write_out(self) -> None:
        self._watched.watch()
        try:
            self._watched.write_out()
        except OSError:
            self.note_refused()
            raise
        if count := self._watched.errors():
            self.note_refused()
            raise OSError(errno.EIO, f"ext4 has counted {count} errors", str(self.place))
        if self.lost:
            raise self._not_checked()

    def note_refused(self) -> None:
        """The disk refused something that was written to this mount: a sync call was told so, or ext4 says so."""
        with self._note_lock:
            known, self._lost = self._lost, True  # first: the kernel does not tell it again
        try:
            self._lost_note.touch()
            if not known and self._has_room():
                again = self._refused_note.exists()
                (self._buffered_note if again else self._refused_note).touch()
        except OSError as error:  # as on a full pool
            log.warning("volume.loss-not-noted", volume=self.volume, error=str(error))

    def require_sound(self) -> None:
        """Make sure that nothing is known to be lost, without writing anything out.

        Raises:
            OSError: the kernel does not tell. StorageError: something is.
        """
        if self.refused():
            raise self._not_checked()

    def _not_checked(self) -> StorageError:
        return StorageError(
            f"the disk refused something that was written to volume {self.volume}; until it is mounted "
            f"anew nothing of it is confirmed or sent",
            remedy="its containers are ended and it is mounted anew by itself; see dmesg for the reason",
        )

    def watch_writes(self, tracer: Tracer) -> Doubt | None:
        """See :meth:`pannier.storage.lines.LineDriver.watch`."""
        with self._lock:
            if not self.is_mounted:
                return Doubt("it is not mounted")
            if self._cutter is not None:
                self._cutter.restart()
                return None
            cutter = Cutter(self.place.stat().st_dev, self._image, tracer)
            try:
                cutter.begin()
            except BaseException:
                cutter.close()
                raise
            self._cutter = cutter
            return None

    def cut(self, limit_bytes: int) -> Cut | Doubt:
        """See :meth:`pannier.storage.lines.LineDriver.cut`."""
        cutter = self._cutter
        if cutter is None:
            return Doubt("it is not watched")
        found = cutter.take(limit_bytes)
        if isinstance(found, Cut):
            return found
        too_much = found.reason is DoubtKind.TOO_MUCH
        return Doubt(found.detail, remedy=found.remedy, too_much=too_much)

    def end_cuts(self) -> None:
        """Watch what is written no more."""
        cutter, self._cutter = self._cutter, None
        if cutter is not None:
            with suppress(OSError):
                cutter.close()

    # -- the end -------------------------------------------------------------------------------------

    def shut(self) -> None:
        """Bring everything into the image, refuse every further write through whatever mount, unmount.

        Raises:
            OSError, StorageError: that cannot be done, or what the disk had refused cannot be mended.
        """
        with self._lock:
            if not self.is_mounted and not self._shut.exists():
                self._join_who_has_it()
            if self.is_mounted:
                if not self._shut.exists():
                    with suppress(
                        OSError, StorageError
                    ):  # what was lost is noted, and mended below
                        self._write_out()
                    self._shut.touch()
                self._refuse_writes()
                self._detach()
            if self.lost:
                with loopdevice.held(self._image) as device:
                    if device is not None:
                        self._leave_behind(device)
                self._mend()

    def _refuse_writes(self) -> None:
        """Shut the file system down while it is frozen. May be repeated after a crash.

        One that has found itself damaged cannot be frozen, nor can one that was shut down.
        """
        with self._mount_lock:
            try:
                with ext4.frozen(self.place) as fd:
                    ext4.shut_down(fd)
            except OSError as error:
                log.warning("volume.not-frozen", volume=self.volume, error=str(error))
                with ext4.directory(self.place) as fd:
                    ext4.shut_down(fd)

    def _mend(self) -> None:
        """Bring the file system in the image in order. No loop device has it."""
        with loopdevice.attached(self._image) as device:
            ext4.mend(device.path)
        self._lost_note.unlink(missing_ok=True)
        self._lost = False

    def roll_back(self, tree: Path) -> None:
        """Make it what a generation is, which has the subvolume ``tree``. It is shut, and a generation has what it is now."""
        with self._lock:
            with self._replaced(by=tree) as image:
                (image.parent / SUMS).unlink(missing_ok=True)  # they are of what was received
                os.utime(image)  # a change of its own: it is not taken for that generation
            self._alone = False

    # -- growing -------------------------------------------------------------------------------------

    def _grow_mounted(self, size: int) -> None:
        try:
            if not self._is_worth_growing(size):
                return
            self._check_goes_on()
            os.truncate(self._image, size)
            loopdevice.grow(self._device())
            ext4.grow(self.place, size)
        except (OSError, StorageError) as error:  # it goes on with the size that it has
            log.info("volume.not-grown", volume=self.volume, error=str(error))

    def _size_for(self, room: int) -> int | None:
        """The size of the file system, in bytes, with which its files could fill so much; None where they can already."""
        if takes_no_writes(self.place):
            return None
        there = os.statvfs(self.place)
        now = ext4.room_of(there.f_blocks * there.f_frsize)
        if room - now <= _EXACT_BYTES:
            return None
        return ext4.size_for(room, now=now, size=nocow.filesystem_bytes(self._image))

    def _grow_anew(self, size: int) -> None:
        """Grow what was mounted just now; nobody uses it, unless somebody has a copy of an earlier mount."""
        if self._grows_mounted(size):
            return
        self._detach()
        with loopdevice.held(self._image) as device:
            alone = device is None
        if alone:
            with self._growing():
                self._enlarge(size)
        self._mount(size=None)

    def _grows_mounted(self, size: int) -> bool:
        """Grow it while it is mounted; False where the kernel does not let us."""
        try:
            self._check_goes_on()
            ext4.grow(self.place, nocow.filesystem_bytes(self._image))  # changes nothing
        except PermissionError:
            return False
        except OSError as error:  # it goes on with the size that it has
            log.warning("volume.not-grown", volume=self.volume, error=str(error))
            return True
        with self._growing():
            os.truncate(self._image, max(size, self._image.stat().st_size))
            loopdevice.grow(self._device())
            ext4.grow(self.place, size)
        return True

    def _check_goes_on(self) -> None:
        """Look whether the mounted file system stands still: the kernel would wait for its thaw, and all who want the volume with it.

        Raises:
            OSError: it does.
        """
        with self._mount_lock:
            if not ext4.freeze(self.place):
                raise OSError(
                    errno.EBUSY,
                    "it is frozen, and grows when it is next attached; if somebody else has frozen it, as an agent for backups: "
                    f"fsfreeze --unfreeze {self.place}",
                )
            ext4.thaw(self.place)

    def _grow_aside(self, size: int) -> None:
        """Grow an unmounted image if that is worth it."""
        with self._growing():
            if self._is_worth_growing(size):
                self._enlarge(size)

    def _enlarge(self, size: int) -> None:
        """Grow a snapshot of an unmounted image, and put it in its place: a power cut in the midst of it
        would leave a file system half grown."""
        with self._anew() as image:
            os.truncate(image, size)
            with loopdevice.attached(image) as device:
                ext4.mend(device.path)
                ext4.grow_unmounted(device.path)

    @contextmanager
    def _growing(self) -> Iterator[None]:
        """What cannot grow goes on with the size that it has, unless it is damaged."""
        try:
            yield
        except Corrupt:
            raise
        except (OSError, StorageError) as error:
            log.warning("volume.not-grown", volume=self.volume, error=str(error))

    def _is_worth_growing(self, size: int) -> bool:
        there = max(nocow.filesystem_bytes(self._image), self._image.stat().st_size)
        return size > there + size // _WORTH_GROWING

    # -- room ----------------------------------------------------------------------------------------

    def restrict(self, *, limits: ImageLimits | None, frozen: bool) -> None:
        """Limit what it may take, and freeze or thaw it, if it is mounted.

        A thaw that was not ours, as by an agent for backups, is undone by the next call. What is just being
        written out is not waited for: meanwhile a pool could get full.
        """
        if limits is None and not frozen and self._is_free:
            return
        with self._mount_lock:
            if mount_at(self.place) is None:
                return
            self._limit(limits)
            if frozen:
                self._frozen = True
                ext4.freeze(self.place)
            elif self._frozen is not False and self._held is None:
                self._thaw()

    @property
    def _is_free(self) -> bool:
        """Whether nothing of this daemon limits it, or holds it up. A new mount begins as one that may be limited."""
        return self._may_grow and self._frozen is False

    def note_used(self) -> None:
        """Remember what it has by now, if it is mounted. See :meth:`SparseDriver.room`.

        Raises:
            OSError: the kernel does not tell.
        """
        with self._mount_lock:
            self._used_blocks = None
            if mount_at(self.place) is not None:
                self._used_blocks = ext4.used_blocks(self.place)

    def thaw(self) -> None:
        """Let who writes to it go on."""
        with self._mount_lock:
            if mount_at(self.place) is not None:
                self._thaw()

    def _thaw(self) -> None:
        self._end_hold()
        ext4.thaw(self.place)
        self._frozen = False

    # -- standing still for a moment -----------------------------------------------------------------

    def hold_still(self, seconds: float) -> bool:
        """See :meth:`pannier.storage.base.SparseDriver.hold_still`."""
        with self._mount_lock:
            if mount_at(self.place) is None:
                return False
            if not ext4.freeze(self.place):
                raise Conflict(
                    f"volume {self.volume} is frozen already, for want of room or by somebody else",
                    remedy="see pannier volume show; if it is somebody else, as an agent for backups: fsfreeze --unfreeze "
                    f"{self.place}",
                )
            # A thread of its own: what else the daemon does, or waits for, does not delay it.
            self._held = threading.Timer(seconds, self._hold_is_over)
            self._held.daemon = True
            self._held.start()
            return True

    def _hold_is_over(self) -> None:
        with self._mount_lock:
            if self._held is threading.current_thread():
                log.warning("volume.held-too-long", volume=self.volume)
                self._go_on()

    def let_go(self) -> bool:
        """See :meth:`pannier.storage.base.SparseDriver.let_go`."""
        with self._mount_lock:
            if self._held is None or mount_at(self.place) is None:
                self._end_hold()
                return False
            try:
                # A file system that stands still refuses to be frozen.
                return not ext4.freeze(self.place)
            finally:
                self._go_on()

    def _go_on(self) -> None:
        self._end_hold()
        if not self._frozen:  # else it stands still for want of room, too
            self._thaw()

    def _end_hold(self) -> None:
        held, self._held = self._held, None
        if held is not None:
            held.cancel()

    @property
    def is_direct(self) -> bool:
        """Whether its loop device uses direct I/O; it is mounted."""
        return self._device().is_direct

    def _device(self) -> loopdevice.LoopDevice:
        return loopdevice.LoopDevice.numbered(os.minor(self.place.stat().st_dev))

    def _limit(self, limits: ImageLimits | None) -> None:
        self._device().limit_dirty(None if limits is None else limits.dirty_bytes)
        if limits is not None:
            self._may_grow = False
            ext4.limit_growth(self.place, limits.growth_bytes, since=self._used_blocks)
        elif not self._may_grow:
            ext4.lift_limit(self.place, size=nocow.filesystem_bytes(self._image))
            self._may_grow = True

    def trim(self, *, go_on: Callable[[], bool]) -> int:
        """Give what no file needs back to the pool, in pieces, as long as ``go_on`` says so.

        Returns the bytes that are in no file.
        """
        found, at = 0, 0
        while go_on():
            with self._lock:
                if not self.is_mounted:
                    break
                piece = ext4.trim(self.place, at)
            if piece is None:
                break
            found, at = found + piece, at + ext4.TRIM_BYTES
        return found
