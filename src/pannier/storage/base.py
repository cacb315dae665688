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

from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from pannier.core.errors import StorageError
from pannier.core.generation import Generation


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


@dataclass(frozen=True, slots=True)
class LocalCopy:
    """What this node has of one volume, as read from the disk.

    Attributes:
        live: live trees, oldest epoch first. More than one only after a crash or a takeover.
        generations: whole generations, oldest first.
        bases: generations that are no longer here, but that :meth:`Driver.send` still takes as
            ``base``, oldest first. Only drivers that keep one tree have any.
    """

    live: tuple[LiveTree, ...] = ()
    generations: tuple[Generation, ...] = ()
    bases: tuple[Generation, ...] = ()


@dataclass(frozen=True, slots=True)
class Capacity:
    """Bytes of the pool."""

    total_bytes: int
    free_bytes: int


class Driver(Protocol):
    """Keeps volumes' bytes on one node.

    Every method but :meth:`data_path` may raise StorageError when the disk, the file system or a
    command fails, and PoolFull when that is for lack of room. Every method with a ``volume`` raises
    InvalidInput for an id that is not a plain name. ``Raises:`` lists what a method raises beyond that.
    """

    name: str
    """``btrfs`` or ``directory``: what users write in ``-o driver=``."""

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
        """The directory to hand to containers. It begins empty and has no file of ours in it."""
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
        self, volume: str, generation: Generation, *, epoch: int, size_bytes: int | None
    ) -> None:
        """Make the live tree of ``epoch`` out of a whole generation. Where the driver can, the cost
        does not depend on its size. A live tree that exists for this epoch is left as it is.
        A driver that keeps one tree uses the generation up: it is then one of the ``bases``.

        Raises:
            Corrupt: the generation is not here or not whole.
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


@runtime_checkable
class CheckedDriver(Driver, Protocol):
    """A driver that notices when the disk does not give back what was written."""

    async def verify(self, volume: str, generation: Generation | None) -> None:
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
