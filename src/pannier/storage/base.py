"""The Driver protocol: one node's copies of volumes.

Every implementation passes the same contract suite (tests/contract/test_driver.py).

A volume is named here by its id. On each node it has at most one *live tree* for each epoch (what
the holder's containers write) and any number of complete *generations*. A generation is listed only
when it is whole and durable. Different volumes are independent. For one volume, the agent changes
live trees and deletes generations from one task at a time. At the same time another task may call
:meth:`Driver.snapshot`, and any number of tasks :meth:`Driver.inspect`: what is deleted meanwhile may
or may not be listed, but causes no error. Each method may be repeated after a crash at any point and
then finishes what was begun. :meth:`Driver.open` removes what a crash left half done.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from pannier.core.errors import StorageError
from pannier.core.generation import Generation
from pannier.core.line import LinePlace, OnTop
from pannier.core.ownership import LocalState
from pannier.core.room import ImageLimits, Room
from pannier.core.set_back import Noted


@dataclass(frozen=True, slots=True, kw_only=True)
class RootAttributes:
    """Owner and permissions of a new volume's root directory."""

    uid: int = 0
    gid: int = 0
    mode: int = 0o755


@dataclass(frozen=True, slots=True)
class LiveTree:
    """The tree that containers write. A sealed one refuses every write."""

    epoch: int
    sealed: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Begun:
    """A generation of which a broken transfer has brought a part.

    Attributes:
        base: what it is received as the difference to; None where it is received whole.
        position: all that belongs before this byte of the volume is here, and durable.
    """

    generation: Generation
    base: Generation | None
    position: int


@dataclass(frozen=True, slots=True)
class LocalCopy:
    """What this node has of one volume, as read from the disk.

    Attributes:
        live: live trees, oldest epoch first. More than one only after a crash or a takeover.
        generations: whole generations, oldest first.
        bases: generations that are no longer here, but that :meth:`Driver.send` still takes as
            ``base``, oldest first. Only drivers that keep one tree have any.
        begun: what the next transfer can go on with. Only a :class:`ResumingDriver` has any.
        last: the newest record that is kept of another node's volume, and that no generation has made useless.
        noted: what is remembered of the records of a volume that is held here, by
            :meth:`pannier.storage.lines.LineDriver.note`.
    """

    live: tuple[LiveTree, ...] = ()
    generations: tuple[Generation, ...] = ()
    bases: tuple[Generation, ...] = ()
    begun: Begun | None = None
    last: LinePlace | None = None
    noted: tuple[Noted, ...] = ()

    @property
    def state(self) -> LocalState:
        """What is decided by: trees, generations, and the latest epoch of which there are records."""
        ours = (each.epoch for each in self.noted)
        theirs = self.last.epoch if self.last is not None else 0
        return LocalState(
            {tree.epoch: tree.sealed for tree in self.live},
            frozenset(self.generations),
            max(theirs, *ours, 0),
        )


@dataclass(frozen=True, slots=True)
class Capacity:
    """Bytes of the pool."""

    total_bytes: int
    free_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Space:
    """What there is for the files of one volume, as ``df`` shows it.

    ``direct``: whether its writes go past the page cache, which is much faster.
    """

    size_bytes: int
    free_bytes: int
    inodes: int
    free_inodes: int
    direct: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What was found by reading all of a generation.

    Attributes:
        proved: whether each byte was compared with a checksum.
        digest: the same for the same bytes, hex; None where the file system has checksums.
        damaged: where blocks begin that are not what was received, or cannot be read, ascending. Only a
            driver that mends says so, instead of raising Corrupt; the rest was read all the same.
    """

    proved: bool
    digest: str | None = None
    damaged: tuple[int, ...] = ()


class Driver(Protocol):
    """Keeps volumes' bytes on one node.

    Every method but :meth:`data_path` may raise StorageError when the disk, the file system or a
    command fails, and PoolFull when that is for lack of room. Every method with a ``volume`` raises
    InvalidInput for an id that is not a plain name. ``Raises:`` lists what a method raises beyond that.
    """

    name: str
    """``btrfs`` or ``directory``: what users write in ``-o driver=``."""

    pool: Path
    """Where it keeps its volumes. Drivers of one pool share its room."""

    generations_in_use: bool
    """Whether :meth:`snapshot` works while containers write. If not, only :meth:`seal` makes one."""

    async def open(self) -> None:
        """Make the pool usable and remove what a crash left half done. Never formats anything.

        A volume for which that fails is :meth:`quarantined`; the others can be used.

        Raises:
            PoolMissing: the pool is not there.
            ForeignData: something else is in its place.
            NewerFormat: a newer version made it.
            Corrupt: its marker cannot be read.
            DiskFailed: its file system takes no writes.
        """
        ...

    async def close(self) -> None:
        """Release what :meth:`open` took, except what containers still use."""
        ...

    async def volumes(self) -> tuple[str, ...]:
        """Ids of all volumes of which this node has anything."""
        ...

    async def quarantined(self) -> Mapping[str, StorageError]:
        """Volumes that cannot be tidied up, read or removed here: their ids, each with the reason.

        Each is tried again first, so a quarantine ends by itself. While it lasts, :meth:`inspect`,
        :meth:`create`, :meth:`promote` and :meth:`receive` of the volume raise the reason. What uses
        it already goes on. If only the removal of a deleted volume fails, nothing is refused.
        """
        ...

    async def set_apart(self, volume: str) -> Path:
        """Move everything of a quarantined volume out of the way, durably and as it is, for a person to look at.
        Then nothing of the volume is here, and it can be received anew.

        Returns:
            Where it is kept: see :meth:`apart`.

        Raises:
            StorageError: it is not quarantined any more, or is mounted, or cannot be moved; or something of it was
                set apart before, and is still there.
        """
        ...

    async def apart(self) -> Mapping[str, Path]:
        """Where there is something that was :meth:`set_apart`, by the ids of the volumes. Only a person removes it."""
        ...

    async def inspect(self, volume: str) -> LocalCopy:
        """What is here of ``volume``; an empty LocalCopy if nothing is.

        Raises:
            StorageError: it cannot be read, or is quarantined.
        """
        ...

    async def create(
        self, volume: str, *, epoch: int, root: RootAttributes, size_bytes: int | None
    ) -> None:
        """Make an empty live tree. One that exists already for this epoch is left as it is.

        Raises:
            StorageError: the volume is quarantined.
        """
        ...

    def data_path(self, volume: str, epoch: int) -> Path:
        """The directory to hand to containers, once attached. It begins empty, with no file of ours.

        No disk is asked for this, and the driver need not be open.
        """
        ...

    async def attach(self, volume: str, *, epoch: int, grow: bool) -> None:
        """Make :meth:`data_path` of a live tree that is not sealed what containers can use. Repeatable.

        Args:
            grow: a volume with a size of its own, smaller than the pool, becomes as large as that. One that
                is in use may grow only the next time.

        Raises:
            StorageError: no such live tree, or it is sealed, damaged or in somebody else's hands.
            KeyMissing: it is encrypted, and its key is not on this node.
        """
        ...

    async def attached(self) -> frozenset[str]:
        """Ids of the volumes for which :meth:`attach` took something of the machine, such as a device."""
        ...

    async def detach(self, volume: str, *, epoch: int) -> None:
        """Release what :meth:`attach` took; nothing uses the live tree. No error if it took nothing."""
        ...

    async def snapshot(self, volume: str, *, epoch: int) -> Generation:
        """Make the next generation of the live tree, crash-consistent, durable before it returns.

        It has all that was written before the call, and what it has of later writes is what a disk may
        have after a power cut: the order of sync calls is kept, that of other writes is not.

        Returns the newest one again if nothing was written since (whatever its epoch).
        The time it takes depends on what changed, not on the size of the volume.

        Raises:
            StorageError: no such live tree, or the driver cannot (``generations_in_use`` is False).
        """
        ...

    async def seal(self, volume: str, *, epoch: int) -> Generation:
        """Refuse all further writes to the live tree and return its last generation, durable.

        The caller has ended all use. A repeated call returns the same generation.

        Raises:
            StorageError: no such live tree.
        """
        ...

    async def unseal(self, volume: str, *, epoch: int) -> None:
        """Allow writes again, since the hand-over did not happen. No error if it is not sealed.

        Raises:
            StorageError: no such live tree.
        """
        ...

    async def promote(
        self,
        volume: str,
        generation: Generation,
        *,
        epoch: int,
        size_bytes: int | None,
        on_top: OnTop,
    ) -> None:
        """Make the live tree of ``epoch`` out of a whole generation. Where the driver can, the cost
        does not depend on its size. A live tree that exists for this epoch is left as it is.
        A driver that keeps one tree uses the generation up: it is then one of the ``bases``.

        Args:
            on_top: which records are put on top of the generation; a driver without records has none.

        Raises:
            Corrupt: the generation is not here or not whole; or something that has to be on top of it may be missing.
            StorageError: the volume is quarantined.
        """
        ...

    async def drop_live(self, volume: str, *, epoch: int) -> None:
        """Remove a *sealed* live tree; its generations stay. No error where there is none.

        Raises:
            StorageError: it is not sealed: it may hold what no generation has.
        """
        ...

    def send(
        self, volume: str, generation: Generation, *, base: Generation | None
    ) -> AbstractAsyncContextManager[int]:
        """Stream a generation, whole or as the difference to ``base`` (present at both ends).

        The block gets the file descriptor of a pipe to read to its end. Leaving the block waits
        for the sender; cancelling or raising stops it.

        Raises:
            Corrupt: the generation, or what is needed of ``base``, is not here or not whole.
            Unreadable: the disk does not give back what is to be sent.
            StorageError: the sender failed, or the block did not read to the end.
        """
        ...

    def receive(
        self, volume: str, generation: Generation, *, base: Generation | None
    ) -> AbstractAsyncContextManager[int]:
        """Receive what :meth:`send` streams. The block writes it to the given pipe and does not close
        that.

        The generation exists, verified and durable, if and only if the block is left without an
        error. For a generation that is already here, the stream is read and thrown away.

        Raises:
            Corrupt: the stream was damaged, cut short or does not fit ``base``, or ``base`` is not here.
            StorageError: the volume is quarantined.
        """
        ...

    async def delete_generation(self, volume: str, generation: Generation) -> None:
        """Remove one generation. No error if there is none.

        Raises:
            StorageError: it is the sealed live tree of a driver that keeps one tree.
        """
        ...

    async def delete(self, volume: str) -> None:
        """Remove everything of a volume for ever. No error if there is nothing.

        Raises:
            StorageError: some of it cannot be removed; that is :meth:`quarantined`.
        """
        ...

    async def used_bytes(self, volume: str) -> int:
        """Bytes that the volume takes here, to within some megabytes; must be quick (under 10 ms)."""
        ...

    async def capacity(self) -> Capacity:
        """Size of the pool and what is free in it."""
        ...

    async def check_disk(self, *, by_writing: bool = False) -> None:
        """Make sure that the file system takes writes, as far as the kernel knows.

        Args:
            by_writing: also write something durably, so that a failure is found now.

        Raises:
            DiskFailed: it takes none, and will take none until it is mounted again. A full file system
                does not count as failed.
        """
        ...

    def writes_done(self) -> int | None:
        """How many writes and flushes the disk has completed, whoever's they were; None where nobody counts them.

        It rises while the disk does anything. Never waits for the disk.
        """
        ...


@runtime_checkable
class ResumingDriver(Driver, Protocol):
    """A driver that keeps what a broken transfer has brought: see :attr:`LocalCopy.begun`.

    :meth:`Driver.receive` goes on with that if the stream begins there, and throws it away if the stream begins
    with the first byte, or is of another generation.
    """

    def send_rest(
        self, volume: str, generation: Generation, *, base: Generation | None, position: int
    ) -> AbstractAsyncContextManager[int]:
        """Stream what :meth:`Driver.send` would, but nothing before ``position``.

        Args:
            position: a byte of the volume. The receiver has what belongs before it.

        Raises:
            Corrupt, StorageError: as :meth:`Driver.send`.
        """
        ...


@runtime_checkable
class CheckedDriver(Driver, Protocol):
    """A driver that notices when the disk does not give back what was written."""

    compares: bool
    """Whether copies of one generation are to be compared: the file system has no checksums."""

    async def verify(self, volume: str, generation: Generation | None) -> Reading:
        """Read a generation to the last byte from the disk, slowly, since others use the disk too.
        With None, read the newest live tree as it is now.

        Raises:
            Corrupt: it is not what was written; the message says which file.
            StorageError: it is not here, or the volume is quarantined.
        """
        ...

    async def quarantine(self, volume: str) -> None:
        """Stop counting every generation of the volume; :meth:`drop_quarantined` deletes them.

        A generation that is being received on top of one of them is not accepted either.
        """
        ...

    async def drop_quarantined(self, volume: str) -> None:
        """Remove what is in quarantine. No error if that is nothing."""
        ...


@runtime_checkable
class FileSystemDriver(Driver, Protocol):
    """A driver whose volumes have file systems of their own."""

    async def check_file_system(
        self, volume: str, generation: Generation | None
    ) -> tuple[str, ...]:
        """What a repair of the file system would mend, line by line; nothing is changed.

        A snapshot is checked: of a generation, or with None of the newest live volume. What a restart
        after a power cut puts in order does not count.

        Raises:
            StorageError: it is not here, or the check could not run.
        """
        ...

    async def show(self, volume: str, *, tree: int | Generation, at: Path) -> None:
        """Mount the files of a former live volume, or of a generation, read-only at a directory.

        What is mounted is a snapshot, so nothing here changes, and it goes with its unmount.

        Args:
            tree: the epoch of a live volume, or a generation.
            at: an empty directory, which exists.

        Raises:
            StorageError: it is not here, or cannot be mounted. Corrupt: it is damaged.
            KeyMissing: it is encrypted, and its key is not on this node.
        """
        ...

    def opened(self, volume: str, *, tree: int | Generation) -> AbstractAsyncContextManager[int]:
        """A descriptor of the directory that :meth:`show` would mount, for as long as the block lasts.

        It is mounted nowhere. With the last descriptor in it nothing is left of it, also where the process is killed.

        Raises:
            As :meth:`show`.
        """
        ...

    async def has_files(self, volume: str, *, epoch: int) -> bool:
        """Whether there is anything in a live volume, which need not be attached. It takes no key.

        Raises:
            StorageError: it is not here, or cannot be mounted. Corrupt: it is damaged.
        """
        ...


@runtime_checkable
class RollingBackDriver(Driver, Protocol):
    """A driver that makes a live tree what a generation is."""

    async def roll_back(self, volume: str, generation: Generation, *, epoch: int) -> None:
        """Make a sealed live tree what a generation is, writable again and durable, in one step.

        What it was until now is in the generation that :meth:`Driver.seal` returned. The next generation of the live tree is
        a new one. After a power cut the live tree is what it was, sealed or not, or what it shall be. It costs nothing that
        depends on the size of the volume.

        Raises:
            Corrupt: the generation is not here, or not whole.
            StorageError: no such live tree, or it is not sealed.
        """
        ...


@dataclass(frozen=True, slots=True)
class Shares:
    """What a volume takes of its pool, in bytes of the disk; what two of them have in common counts for the first.

    Attributes:
        files_bytes: the newest live volume, or without one the newest generation.
        generations_bytes: what generations without a name keep besides.
        snapshots_bytes: what only generations with a name keep.
    """

    files_bytes: int
    generations_bytes: int
    snapshots_bytes: int


@runtime_checkable
class MeasuredDriver(Driver, Protocol):
    """A driver that tells what a volume's generations keep."""

    async def shares(self, volume: str, *, named: Collection[Generation]) -> Shares:
        """What a volume takes of its pool. It takes a second for each 100,000 extents.

        Raises:
            StorageError: it cannot be read.
        """
        ...


@runtime_checkable
class CloningDriver(Driver, Protocol):
    """A driver that makes a new volume out of a generation of another one, at a cost that does not depend on its size."""

    async def clone(
        self, source: str, generation: Generation, *, volume: str, base: Generation, unborn: bool
    ) -> None:
        """Make a generation of the volume ``source`` the generation ``base`` of another volume, durable.

        Both share their bytes on the disk, and neither needs the other from then on. Copies of ``base`` that were made so
        on several nodes are the same generation. One that exists is left as it is.

        Args:
            volume: the other volume's id. Nothing is here of it, or nothing that counts.
            unborn: the volume's record is not written yet: see :meth:`unborn`.

        Raises:
            Corrupt: the generation is not here, or not whole.
            StorageError: the volume is quarantined, or something of it is set aside.
        """
        ...

    async def enlarge(
        self, volume: str, generation: Generation, *, epoch: int, size_bytes: int, more_bytes: int
    ) -> None:
        """Make the live tree of ``epoch`` out of a generation, as :meth:`Driver.promote` without records does, with room for
        more files. It takes a check of the file system.

        Args:
            size_bytes: what files can fill then.
            more_bytes: how much of that is new.

        Raises:
            InvalidInput: the pool is smaller than that.
            Corrupt: the generation is not here, or its file system is damaged.
        """
        ...

    async def unborn(self) -> frozenset[str]:
        """Ids of volumes that were begun by :meth:`clone` with ``unborn``, and are not :meth:`born`, also after a crash."""
        ...

    async def born(self, volume: str) -> None:
        """The record of a volume is written: it is none of the :meth:`unborn` any more. No error if it is none."""
        ...


@runtime_checkable
class GrowingDriver(Driver, Protocol):
    """A driver whose volumes have a size that can become larger."""

    def give_room(self, volume: str, room_bytes: int) -> None:
        """From the next :meth:`Driver.attach` on, a volume's files can fill at least so much. Nothing ever shrinks.

        An attach of a volume that is in use grows it where the kernel allows that, and else leaves it to the next one.
        This only notes it, until the driver is made anew.
        """
        ...


@runtime_checkable
class SparseDriver(Driver, Protocol):
    """A driver whose volumes may be larger, all together, than the pool, and that must not get full."""

    async def space(self, volume: str) -> Space | None:
        """What there is for the files of the newest live volume; None where it is not attached."""
        ...

    def behind(self, volume: str, epoch: int) -> Path:
        """The directory of what is behind a live volume. While it is attached, nobody else may read there:
        the kernel would fail the volume's own writes."""
        ...

    async def room(self, *, note_used: bool) -> Room:
        """What the pool can still take.

        Args:
            note_used: remember before that what each image has by now: :meth:`restrict` limits what it takes from then
                on. So what it takes meanwhile is not taken twice. Without it, no limits may follow.
        """
        ...

    async def gives_back(self) -> bool:
        """Whether the kernel still gives back what was deleted: the pool has more room a little later."""
        ...

    async def parts(self) -> frozenset[str]:
        """Ids of volumes of which a broken transfer has left a part, with which the next one may go on."""
        ...

    async def drop_part(self, volume: str) -> None:
        """Remove such a part. One that is just being received stays. No error if there is none.

        Raises:
            StorageError: it cannot be removed.
        """
        ...

    async def restrict(
        self, *, full: bool, limits: ImageLimits | None, frozen: frozenset[str]
    ) -> None:
        """Say what may be written until this is called again, now and whenever a volume is attached.

        Args:
            full: :meth:`create`, :meth:`attach` and :meth:`receive` raise PoolFull, also what is being received.
            limits: of each volume.
            frozen: ids of attached volumes whose writers wait in the kernel, also those that are in no
                container. Who waits cannot be killed. All others go on that were frozen by an earlier call.
        """
        ...

    async def write_out(self, volume: str) -> None:
        """Bring everything that was written to a volume to the disk, if it is attached.

        Raises:
            StorageError: the disk refused something.
        """
        ...

    async def thaw(self, volume: str) -> None:
        """Let who waits for a frozen volume go on: they are about to be killed. Until :meth:`restrict`."""
        ...

    async def hold_still(self, volume: str, *, epoch: int, seconds: float) -> bool:
        """Bring everything to the disk, and let every writer of an attached volume wait until :meth:`let_go`, but no longer than
        ``seconds``. The end of that time needs nobody. Generations can be made meanwhile.

        Returns whether it stands still; False where it is not attached, and nobody can write.

        Raises:
            Conflict: it stands still already, for want of room or by somebody else. StorageError: the disk refused something.
        """
        ...

    async def let_go(self, volume: str, *, epoch: int) -> bool:
        """End :meth:`hold_still`. Returns whether it stood still until now, without a break. Repeatable."""
        ...

    async def trim(self, volume: str, *, go_on: Callable[[], bool]) -> None:
        """Give what the volume's files no longer need back to the pool, as long as ``go_on`` says so.

        It is asked from another thread. Nothing is done to a volume that is not attached.
        """
        ...

    async def failed(self) -> frozenset[str]:
        """Ids of the attached volumes of which the disk refused a write.

        Nothing is made durable of them, since what was lost is not known: :meth:`snapshot` raises
        until they were detached and attached again, which checks them.
        """
        ...

    async def refused(self, volume: str, *, epoch: int) -> bool:
        """Whether a volume is one of the :meth:`failed`. Does not wait for the disk, and writes nothing out.

        Asked after a group of sync calls, so what memory still holds of other files is not in it.

        Raises:
            StorageError: the kernel does not tell.
        """
        ...

    async def note_refused(self, volume: str, *, epoch: int) -> None:
        """A sync call on the attached volume was told that the disk refused something: it is :meth:`failed`."""
        ...
