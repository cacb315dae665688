"""The Driver protocol: one node's copies of volumes.

Every implementation passes the same contract suite (tests/contract/test_driver.py).

On each node a volume, named here by its id, has at most one *live tree* for each epoch (what the
holder's containers write) and any number of complete *generations*. A generation is either whole
and durable or it is not listed. Different volumes are independent. Of one volume, the agent changes
live trees and deletes generations from one task at a time; beside that, another task may call
:meth:`Driver.snapshot`, and any number :meth:`Driver.inspect`: what is deleted meanwhile is listed or
not, and no error. Each method may be repeated after a crash at any point and then finishes what was
begun; what a crash left half done is removed by :meth:`Driver.open`.
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
    """Keeps volumes' bytes on one node. Raises StorageError and its children."""

    name: str
    """``btrfs`` or ``directory``: what users write in ``-o driver=``."""

    generations_in_use: bool
    """Whether :meth:`snapshot` works while containers write. Where not, only :meth:`seal` makes one."""

    async def open(self) -> None:
        """Make the pool usable and remove what a crash left half done. Never formats anything.

        A volume for which that fails is :meth:`quarantined`; the others are there.

        Raises:
            PoolMissing: the pool is not there; ForeignData: something else is in its place.
        """
        ...

    async def close(self) -> None:
        """Let go of what :meth:`open` took, except what containers still use."""
        ...

    async def volumes(self) -> tuple[str, ...]:
        """Ids of all volumes of which this node has anything."""
        ...

    async def quarantined(self) -> Mapping[str, StorageError]:
        """Volumes that cannot be tidied up, read or removed here, by their ids, each with the reason.

        Each is tried again first: a quarantine ends by itself. While it lasts, :meth:`inspect`,
        :meth:`create`, :meth:`promote` and :meth:`receive` of the volume raise the reason; what uses
        it already goes on. Of a volume that is only to be removed, nothing is refused.
        """
        ...

    async def inspect(self, volume: str) -> LocalCopy:
        """What is here of ``volume``; an empty LocalCopy where nothing is.

        Raises:
            StorageError: it cannot be read, or is quarantined.
        """
        ...

    async def create(
        self, volume: str, *, epoch: int, root: RootAttributes, size_bytes: int | None
    ) -> None:
        """Make an empty live tree. One that exists already for this epoch is left as it is.

        Raises:
            PoolFull: no room.
        """
        ...

    def data_path(self, volume: str, epoch: int) -> Path:
        """The directory to hand to containers: an own, empty-born one, without any mark of ours."""
        ...

    async def snapshot(self, volume: str, *, epoch: int) -> Generation:
        """Make the next generation of the live tree, crash-consistent, durable before it returns.

        Returns the newest one again where nothing was written since (whatever its epoch).
        Costs time for what changed, never for what there is.

        Raises:
            StorageError: not possible in use (``generations_in_use`` is False).
        """
        ...

    async def seal(self, volume: str, *, epoch: int) -> Generation:
        """Refuse all further writes to the live tree and return its last generation, durable.

        The caller has ended all use. Repeated: the same generation again.
        """
        ...

    async def unseal(self, volume: str, *, epoch: int) -> None:
        """Allow writes again: the hand-over did not happen. No error where it is not sealed."""
        ...

    async def promote(
        self, volume: str, generation: Generation, *, epoch: int, size_bytes: int | None
    ) -> None:
        """Make the live tree of ``epoch`` out of a whole generation, at a cost that does not depend
        on its size where the driver can. A live tree that exists for this epoch is left as it is.
        A driver that keeps one tree uses the generation up: it is then one of the ``bases``.

        Raises:
            Corrupt: the generation is not here or not whole.
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
        for the sender and raises StorageError where it failed; cancelling or raising stops it.
        """
        ...

    def receive(
        self, volume: str, generation: Generation, *, base: Generation | None
    ) -> AbstractAsyncContextManager[int]:
        """Take in what :meth:`send` streams: the block writes it to the given pipe and closes nothing.

        The generation exists, verified and durable, exactly when the block was left without an
        error. Repeating it for a generation that is already here swallows the stream.

        Raises:
            Corrupt: the stream was damaged, cut short or does not fit ``base``; PoolFull.
        """
        ...

    async def delete_generation(self, volume: str, generation: Generation) -> None:
        """Remove one generation. No error where there is none."""
        ...

    async def delete(self, volume: str) -> None:
        """Remove everything of a volume for ever. No error where there is nothing."""
        ...

    async def used_bytes(self, volume: str) -> int:
        """Bytes that the volume takes here, good to some megabytes; must be quick (under 10 ms)."""
        ...

    async def capacity(self) -> Capacity:
        """Size of the pool and what is free in it."""
        ...

    async def check_disk(self, *, by_writing: bool = False) -> None:
        """Make sure that the file system takes writes, as far as it knows by now.

        Args:
            by_writing: make one durable, so that it does know.

        Raises:
            DiskFailed: it does not, and will not before it is mounted anew. A full one is none such.
        """
        ...


@runtime_checkable
class CheckedDriver(Driver, Protocol):
    """A driver that notices where the disk does not give back what was written."""

    async def verify(self, volume: str, generation: Generation | None) -> None:
        """Read a generation to the last byte, from the disk; slowly, since others use that. With None
        the newest live tree, as it is now.

        Raises:
            Corrupt: it is not what was written, and says which file; StorageError: it is not here.
        """
        ...

    async def quarantine(self, volume: str) -> None:
        """Let no generation of the volume count any more; :meth:`drop_quarantined` deletes them.

        Nor is one taken in whose base was among them, however far that had come.
        """
        ...

    async def drop_quarantined(self, volume: str) -> None:
        """Remove what is in quarantine. No error where that is nothing."""
        ...
