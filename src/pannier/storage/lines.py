"""Drivers that tell what was written between two moments, and keep what others tell: the protocol beyond that of
all drivers. See :mod:`pannier.core.line`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol, cast, runtime_checkable

from pannier.core.errors import PannierError
from pannier.core.generation import Generation
from pannier.core.line import Buffer, Cut, Doubt, LinePlace
from pannier.storage.base import Driver
from pannier.storage.kinds import by_class


@dataclass(frozen=True, slots=True, kw_only=True)
class JournalState:
    """What keeps the records of other nodes' volumes.

    Attributes:
        total_bytes, live_bytes, most_bytes: of its file, what is needed of it, and what may be; None where there is none.
        volumes: what each volume needs, in bytes, by id.
        damaged: the volumes that may lack records which were confirmed, by id, and why.
        trouble: why there is none, or it takes nothing; None where it is in order.
        unreadable: whether there was one: then each copy on this node may lack records.
        taken: whether another process has it: then it is opened once that is gone.
    """

    total_bytes: int | None = None
    live_bytes: int | None = None
    most_bytes: int | None = None
    volumes: Mapping[str, int] = field(default_factory=dict)
    damaged: Mapping[str, str] = field(default_factory=dict)
    trouble: PannierError | None = None
    unreadable: bool = False
    taken: bool = False


def line_driver(driver: Driver) -> LineDriver | None:
    """The same driver, if it is one for lines."""
    return cast("LineDriver", driver) if _is_for_lines(driver) else None


_is_for_lines = by_class(lambda driver: isinstance(driver, LineDriver))


@runtime_checkable
class LineDriver(Driver, Protocol):
    """A driver for lines of records.

    For one volume, one task calls :meth:`watch`, :meth:`cut` and :meth:`snapshot`. A copy keeps records of
    different volumes at the same time.
    """

    async def watch(self, volume: str, *, epoch: int) -> Doubt | None:
        """Begin to note what is written to the live tree; what was noted before is forgotten.

        Whatever was written before this returns is in the next generation, which is a new one: see :meth:`renew`.

        Returns:
            None; or why it cannot be noted.
        """
        ...

    async def renew(self, volume: str, *, epoch: int) -> None:
        """Let the next generation be a new one, even if nothing was written since the newest.

        Copies may have records on top of that which a power cut has taken from here. A new one ends them.
        """
        ...

    async def snapshot_disk(self, volume: str, *, epoch: int) -> Generation:
        """As :meth:`Driver.snapshot`, of what is on the disk by now: what is in memory only need not be in it, and
        nobody waits for that.

        Raises:
            StorageError: as there. What the disk refused of what was in memory is not found by this.
        """
        ...

    def cut_now(self, place: LinePlace) -> Cut | Doubt:
        """What was written since :meth:`watch` or the cut before, as the disk could have it after a power cut.

        It blocks, and any thread may call it. All that was durable here before the call is in this cut or an earlier one.
        After a doubt, or where the answer was lost, :meth:`watch` comes first again.

        Args:
            place: of the record that the cut becomes, of a volume that is held here.

        Raises:
            StorageError: the disk failed.
        """
        ...

    def note(self, place: LinePlace) -> None:
        """Remember a record that was made: see :func:`pannier.core.set_back.noting`. ``inspect`` tells it as
        :attr:`LocalCopy.noted`. It blocks, and any thread may call it.

        On return it is written, to where it goes back together with the volume if the disk is set back; but it need not be
        durable. What makes the volume's next sync call durable makes this durable as well. A power cut before that leaves
        this note or an earlier one, whole.

        Raises:
            StorageError: the disk failed.
        """
        ...

    async def cut(self, place: LinePlace) -> Cut | Doubt:
        """:meth:`cut_now`, and :meth:`note` if anything was written."""
        ...

    def keep(self, place: LinePlace, encoded: Buffer) -> None:
        """Keep a record of another node's volume; it is durable on return. Repeatable. Any thread may call it, and it
        waits for the disk: a sync call waits for it, and must not wait for the event loop.

        Args:
            encoded: the bytes of :func:`pannier.core.line.encode`, with this place.

        Raises:
            NotFollowing: something before it is not here.
            JournalFull: there is no room; a generation would free some.
            StorageError: the disk failed, or the volume is quarantined.
        """
        ...

    async def settle(self, volume: str, generation: Generation) -> None:
        """Free the records that a generation makes useless; nothing happens if it is not here.

        Not when it has come, but when it is confirmed: a takeover that has begun meanwhile begins with an older
        one and the records on top of that.
        """
        ...

    async def drop_records(self, volume: str) -> None:
        """Free all records of a volume; durable on return. Repeatable.

        Whoever calls this has made sure that nobody takes the volume over with them.

        Raises:
            JournalFull, StorageError: they are freed until the next restart.
        """
        ...

    async def missing(self, volume: str) -> str:
        """Why this node may lack records that it has confirmed; empty if it lacks none, as far as memory knows.

        It ends with a generation that was made after the holder heard of it.
        """
        ...

    async def lack(self, volume: str) -> None:
        """Remember that the copy here lacks what this node has confirmed, though nothing here shows it: see :meth:`missing`.

        On return it is durable, where there is a journal.

        Raises:
            JournalFull, StorageError: only memory knows it.
        """
        ...

    async def mend_records(self, volume: str) -> None:
        """Forget that the copy may lack something: a generation is here that was made after its holder had heard of it. Durable on
        return. What cannot be read at all is not mended by it.

        Raises:
            JournalFull, StorageError: it is not durable.
        """
        ...

    async def lost(self, volume: str, generation: Generation) -> str:
        """What an epoch that begins with a generation here would lack of what was confirmed: :meth:`missing`, and what cannot
        be read of the records on top of it; empty if it lacks nothing.

        Where it is not empty, :meth:`Driver.promote` does not promote with :attr:`OnTop.ALL`, asked before or not.

        Raises:
            StorageError: the disk refused.
        """
        ...

    async def end_journal(self) -> None:
        """Keep no records any more, since the process ends: what keeps them is ended in order. Repeatable.

        It takes some seconds at most: a disk that does not answer is not waited for.
        """
        ...

    async def journal(self) -> JournalState:
        """How full what keeps the records is, and whether it is in order."""
        ...
