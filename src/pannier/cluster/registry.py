"""The cluster's records in the store: where each one is kept, and how it changes.

::

    cluster            ClusterRecord
    nodes/NAME         Node
    alive/NAME         the node's boot id; lives as long as the node's lease
    volumes/NAME       Volume
    trash/ID           Volume with removed_at
    purged/ID          Purged: the volume's data may be deleted wherever it is; until no node has any
    schedules/NAME     SchedulePolicy: which snapshots volumes with some labels have by themselves
    evacuated/NODE     Evacuated: what was done to the node in Docker Swarm

Nodes of several versions read and write them: see :mod:`pannier.core.record`. Decisions are made on
what :meth:`Registry.volume` and the like read; they refuse a record that only a newer version can act
on. Lists for people show such a record too. Writing one is always refused.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

import structlog

from pannier.core.errors import PannierError, Stale
from pannier.core.evacuation import Evacuated
from pannier.core.node import Node
from pannier.core.record import Record
from pannier.core.schedules import SchedulePolicy
from pannier.core.volume import HistoryEntry, Volume
from pannier.host.records import RecordType
from pannier.host.records import decode as decode_json
from pannier.host.records import encode as encode_json
from pannier.store.base import ABSENT, Change, Entry, Store

log = structlog.get_logger(__name__)

Kept = TypeVar("Kept")
CLUSTER_KEY = "cluster"
TRIES = 20
"""How often a change is tried that loses its race. Another change wins each time, so losing this many in
a row means that something is wrong."""


@dataclass(frozen=True, slots=True)
class ClusterRecord(Record):
    """The cluster's identity."""

    id: str
    created_at: float


@dataclass(frozen=True, slots=True)
class Purged(Record):
    """The mark of a purged volume, whose id is in the key.

    Attributes:
        name: the volume's; empty in marks of earlier versions.
        entry: the last line of its history; None in marks of earlier versions.
        cleared: nodes that have nothing of it any more, as they found when the mark was due to go.
    """

    name: str = ""
    entry: HistoryEntry | None = None
    cleared: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Versioned(Generic[Kept]):
    """A record and the revision at which it was read."""

    record: Kept
    revision: int


def encode(record: Record) -> bytes:
    """A record as the store keeps it.

    Raises:
        NewerFormat: this version knows too little about the record to change it.
    """
    record.check_format(f"the {type(record).__name__} record that is to be written")
    return encode_json(record)


def decode(entry: Entry, kind: type[RecordType], *, shown: bool = False) -> RecordType:
    """The record of an entry; with ``shown`` also one of a newer format, on which nobody acts.

    Raises:
        NewerFormat: only a newer version can act on it; Corrupt: the entry is not such a record.
    """
    return decode_json(
        entry.value,
        kind,
        what=f"the store's entry {entry.key}",
        remedy="restore the store from a snapshot; the volumes' data is on the nodes",
        shown=shown,
    )


def volume_key(name: str) -> str:
    return f"volumes/{name}"


def purged_key(volume_id: str) -> str:
    """The key of the mark of a purged volume."""
    return f"purged/{volume_id}"


def trash_key(volume_id: str) -> str:
    return f"trash/{volume_id}"


def _key(record: Volume | Node) -> str:
    match record:
        case Volume():
            return volume_key(record.name)
        case Node():
            return f"nodes/{record.name}"


Changing = TypeVar("Changing", Volume, Node)


def _changed(volume: Volume) -> Volume:
    """A volume's record as it is written: it counts how often it was, so that an older store is known as such."""
    return replace(volume, changes=volume.changes + 1)


class Registry:
    """Typed reads and compare-and-swap changes of the store's records.

    All methods may raise StoreUnavailable; those that read may raise Corrupt and NewerFormat; those
    that change may raise Stale (somebody was faster; nothing was changed) and OutcomeUnknown.
    """

    def __init__(self, store: Store) -> None:
        self.store = store

    async def _read(self, key: str, kind: type[RecordType]) -> Versioned[RecordType] | None:
        entry = await self.store.get(key)
        return Versioned(decode(entry, kind), entry.revision) if entry else None

    async def _all(
        self, prefix: str, kind: type[RecordType], *, skip_damaged: bool = False
    ) -> list[Versioned[RecordType]]:
        found = []
        for entry in await self.store.list(prefix):
            try:
                found.append(Versioned(decode(entry, kind, shown=True), entry.revision))
            except PannierError as error:
                if not skip_damaged:
                    raise
                log.error("registry.unreadable", key=entry.key, error=str(error))
        return found

    async def change(
        self,
        read: Callable[[], Awaitable[Versioned[Changing]]],
        decide: Callable[[Changing], Changing | None],
        *,
        write: Callable[[Changing, Versioned[Changing]], Awaitable[Versioned[Changing]]]
        | None = None,
    ) -> Versioned[Changing]:
        """Change a record. If somebody else changes it first, read it and decide again.

        Args:
            read: the newest committed record.
            decide: the record to write, a pure function of the one that was read; None leaves that
                one as it is. If it is the same record, it is written anew: a change that may still be on
                its way fails then.
            write: writes the decided record if the one that was read is still the newest, and returns
                it as it was written; for callers that must act right before and after it.

        Returns:
            The record as it is now.

        Raises:
            Stale: lost every race, and nothing was changed; StoreUnavailable: nothing was changed;
            OutcomeUnknown: it may have been, or may be yet; and what ``read`` and ``decide`` raise.
        """
        for _ in range(TRIES):
            found = await read()
            record = decide(found.record)
            if record is None:
                return found
            try:
                if write is not None:
                    return await write(record, found)
                return await self._put(record, found.revision)
            except Stale:
                continue
        raise Stale(f"{_key(found.record)} keeps changing in the store", remedy="try again")

    async def _put(self, record: Changing, expect: int) -> Versioned[Changing]:
        """Returns the record as it was written."""
        written = _changed(record) if isinstance(record, Volume) else record
        revision = await self.store.commit(Change(_key(record), encode(written), expect))
        return Versioned(written, revision)

    # -- the cluster ----------------------------------------------------------------------------

    async def cluster(self) -> ClusterRecord | None:
        """The cluster's identity, None in an empty store."""
        found = await self._read(CLUSTER_KEY, ClusterRecord)
        return found.record if found else None

    async def found(self, cluster: ClusterRecord) -> None:
        """Write the identity of a new cluster; Stale where there is one already."""
        await self.store.commit(Change(CLUSTER_KEY, encode(cluster), ABSENT))

    async def remove_tokens(self) -> None:
        """Remove join tokens, which an earlier version kept here."""
        for entry in await self.store.list("tokens/"):
            with suppress(Stale):  # another node does the same
                await self.store.commit(Change(entry.key, None, entry.revision))

    # -- volumes --------------------------------------------------------------------------------

    async def volume(self, name: str) -> Versioned[Volume] | None:
        """A volume's newest committed record."""
        return await self._read(volume_key(name), Volume)

    async def volumes(self) -> list[Volume]:
        """All volumes outside the trash; Corrupt where one is damaged."""
        return [found.record for found in await self._all("volumes/", Volume)]

    async def add_volume(self, volume: Volume) -> Versioned[Volume]:
        """A new volume; Stale where the name is taken, or the id was given up. Returns the record as it was written."""
        written = _changed(volume)
        revision = await self.store.commit(
            Change(volume_key(volume.name), encode(written), ABSENT),
            Change(purged_key(volume.id), None, ABSENT),
        )
        return Versioned(written, revision)

    async def replace_volume(self, volume: Volume, *, expect: int) -> Versioned[Volume]:
        """Change a volume's record. Returns it as it was written."""
        return await self._put(volume, expect)

    async def replace_volumes(
        self, changes: Sequence[Versioned[Volume]]
    ) -> list[Versioned[Volume]]:
        """Change the records of several volumes at once, or of none. Returns them as they were written.

        Args:
            changes: each record as it shall be, with the revision that the present one has.
        """
        written = [_changed(each.record) for each in changes]
        revision = await self.store.commit(
            *(
                Change(volume_key(record.name), encode(record), each.revision)
                for record, each in zip(written, changes, strict=True)
            )
        )
        return [Versioned(record, revision) for record in written]

    async def take_volume(self, volume: Volume, *, expect: int, former: str) -> Versioned[Volume]:
        """Change a volume's record if its former holder's lease is gone, else Stale.

        The lease's key is deleted if it is absent: so the store checks, in the same transaction, that
        it is. Returns the record as it was written.
        """
        written = _changed(volume)
        revision = await self.store.commit(
            Change(volume_key(volume.name), encode(written), expect),
            Change(f"alive/{former}", None, ABSENT),
        )
        return Versioned(written, revision)

    async def is_up(self, node: str) -> bool:
        """Whether the node's lease is alive now."""
        return await self.store.get(f"alive/{node}") is not None

    async def alive(self) -> frozenset[str]:
        """The nodes whose lease is alive now."""
        entries = await self.store.list("alive/")
        return frozenset(entry.key.removeprefix("alive/") for entry in entries)

    async def trash_volume(
        self, volume: Volume, *, expect: int, lost_with: str | None = None
    ) -> None:
        """Take a volume out of use; ``volume`` has its removed_at.

        With ``lost_with`` a node, this is Stale unless that node's lease is gone.

        Raises:
            Conflict: it is protected. The only other way into the trash is :meth:`exchange_volume`, and out of it :meth:`purge_volume` and back.
        """
        volume.check_not_protected()
        guard = (Change(f"alive/{lost_with}", None, ABSENT),) if lost_with else ()
        await self.store.commit(
            Change(volume_key(volume.name), None, expect),
            Change(
                trash_key(volume.id), encode(_changed(replace(volume, removed_in=None))), ABSENT
            ),
            *guard,
        )

    async def exchange_volume(
        self, volume: Volume, *, expect: int, removed: Volume
    ) -> Versioned[Volume]:
        """Give a new volume the name of another one, which goes to the trash: both in one step. Returns the new record as it
        was written.

        Args:
            expect: the revision of the other one's record, which is Stale where it is another.
            removed: that record, with its removed_at.

        Raises:
            Conflict: the other one is protected.
        """
        removed.check_not_protected()
        written = _changed(volume)
        gone = encode(_changed(replace(removed, removed_in=None)))
        revision = await self.store.commit(
            # First: whoever watches must know that the one is in the trash before the other has its name.
            Change(trash_key(removed.id), gone, ABSENT),
            Change(volume_key(volume.name), encode(written), expect),
            Change(purged_key(volume.id), None, ABSENT),
        )
        return Versioned(written, revision)

    async def trash(self) -> list[Versioned[Volume]]:
        """All removed volumes that are still there, without those whose record is damaged."""
        return await self._all("trash/", Volume, skip_damaged=True)

    async def every_volume(self) -> list[Volume]:
        """All volumes, the removed ones too; Corrupt where one is damaged."""
        removed = await self._all("trash/", Volume)
        return [*await self.volumes(), *(found.record for found in removed)]

    async def restore_volume(self, volume: Volume, *, expect: int) -> Versioned[Volume]:
        """Take a volume out of the trash; Stale where its name was taken meanwhile. Returns the record as it was written."""
        written = _changed(volume)
        revision = await self.store.commit(
            Change(trash_key(volume.id), None, expect),
            Change(volume_key(volume.name), encode(written), ABSENT),
        )
        return Versioned(written, revision)

    async def trashed(self, volume_id: str) -> Versioned[Volume] | None:
        """The record of a removed volume."""
        return await self._read(trash_key(volume_id), Volume)

    async def replace_trashed(self, volume: Volume, *, expect: int) -> int:
        """Change the record of a volume in the trash, which keeps its place there. Returns the record's new revision."""
        volume.check_format(f"the record of volume {volume.name} in the trash")
        if volume.removed_in is None:
            volume = replace(volume, removed_in=expect)
        changed = encode(_changed(volume))
        return await self.store.commit(Change(trash_key(volume.id), changed, expect))

    async def purge_volume(self, volume: Volume, *, expect: int, entry: HistoryEntry) -> None:
        """Give a trashed volume up: from now on every node deletes what it has of it.

        Args:
            entry: the last line of its history.

        Raises:
            Conflict: it is protected.
        """
        volume.check_not_protected()
        volume.check_format(f"the record of volume {volume.name} in the trash")
        await self.store.commit(
            Change(trash_key(volume.id), None, expect),
            Change(purged_key(volume.id), encode(Purged(name=volume.name, entry=entry)), ABSENT),
        )

    async def give_up_unborn(
        self, name: str, volume_id: str, *, beside: Versioned[Volume] | None, entry: HistoryEntry
    ) -> None:
        """Give up a volume that has no record: it never gets one then, not even by a change that is still on its way, and
        what is on a disk of it may be deleted. Stale where it is in the trash.

        Args:
            beside: the record of the other volume of that name, as it was just read; None where there is none. It is written
                anew, so that this is Stale if another record came in its place.
            entry: the last line of its history.
        """
        key = volume_key(name)
        guard = Change(key, None, ABSENT)
        if beside is not None:
            guard = Change(key, encode(_changed(beside.record)), beside.revision)
        mark = encode(Purged(name=name, entry=entry))
        await self.store.commit(
            guard,
            Change(trash_key(volume_id), None, ABSENT),
            Change(purged_key(volume_id), mark, ABSENT),
        )

    async def known_ids(self) -> frozenset[str]:
        """Ids of all volumes, trashed and purged ones included."""
        return frozenset(volume.id for volume in await self.every_volume()) | await self.purged()

    async def purged(self) -> frozenset[str]:
        """Ids of volumes whose data may be deleted. That an id is in no list is never a reason to delete."""
        entries = await self.store.list("purged/")
        return frozenset(entry.key.removeprefix("purged/") for entry in entries)

    async def purge_of(self, volume_id: str) -> Purged | None:
        """The mark of a purged volume; None where it is not purged."""
        found = await self._read(purged_key(volume_id), Purged)
        return found.record if found else None

    async def purges(self) -> dict[str, Versioned[Purged]]:
        """The marks of all purged volumes by id, in the order of the ids, without those that are damaged."""
        found = {}
        for entry in await self.store.list("purged/"):
            try:
                mark = decode(entry, Purged, shown=True)
            except PannierError as error:
                log.error("registry.unreadable", key=entry.key, error=str(error))
            else:
                found[entry.key.removeprefix("purged/")] = Versioned(mark, entry.revision)
        return found

    async def replace_purge(self, volume_id: str, mark: Purged | None, *, expect: int) -> None:
        """Change the mark of a purged volume, or remove it: then nobody may delete its data any more."""
        value = None if mark is None else encode(mark)
        await self.store.commit(Change(purged_key(volume_id), value, expect))

    async def put_back(
        self, volume: Volume, *, expect: int, removed: Versioned[Volume] | None
    ) -> Versioned[Volume]:
        """Write a volume's record into a store that was restored from an older backup. Returns it as it was written.

        Args:
            expect: the revision of the older record; ABSENT for none.
            removed: the older record in the trash, which goes.
        """
        written = _changed(volume)
        changes = [Change(volume_key(volume.name), encode(written), expect)]
        if removed is not None:
            changes.append(Change(trash_key(volume.id), None, removed.revision))
        return Versioned(written, await self.store.commit(*changes))

    # -- nodes ----------------------------------------------------------------------------------

    async def node(self, name: str) -> Versioned[Node] | None:
        """A node's record."""
        return await self._read(f"nodes/{name}", Node)

    async def nodes(self) -> list[Node]:
        """All nodes; Corrupt where one's record is damaged."""
        return [found.record for found in await self._all("nodes/", Node)]

    async def put_node(self, node: Node, *, expect: int = ABSENT) -> int:
        """Add or change a node's record."""
        return (await self._put(node, expect)).revision

    async def remove_node(self, name: str, *, expect: int) -> None:
        """Remove a node's record."""
        await self.store.commit(Change(f"nodes/{name}", None, expect))

    async def policies(self) -> dict[str, Versioned[SchedulePolicy]]:
        """All policies by name; Corrupt or NewerFormat where one cannot be read: then nobody knows what is to be kept."""
        entries = await self.store.list("schedules/")
        found = (Versioned(decode(entry, SchedulePolicy), entry.revision) for entry in entries)
        return {one.record.name: one for one in found}

    async def put_policy(self, policy: SchedulePolicy, *, expect: int) -> int:
        """Add or change a policy."""
        return await self.store.commit(Change(f"schedules/{policy.name}", encode(policy), expect))

    async def remove_policy(self, name: str, *, expect: int) -> None:
        """Remove a policy."""
        await self.store.commit(Change(f"schedules/{name}", None, expect))

    async def evacuations(self) -> dict[str, Versioned[Evacuated]]:
        """What was done to nodes in Docker Swarm, by node."""
        entries = await self.store.list("evacuated/")
        found = (Versioned(decode(entry, Evacuated), entry.revision) for entry in entries)
        return {one.record.node: one for one in found}

    async def put_evacuation(self, record: Evacuated, *, expect: int, lost: bool = False) -> int:
        """Add or change a node's evacuation; with ``lost`` only while its lease is gone, else Stale."""
        guard = (Change(f"alive/{record.node}", None, ABSENT),) if lost else ()
        change = Change(f"evacuated/{record.node}", encode(record), expect)
        return await self.store.commit(change, *guard)

    async def remove_evacuation(self, node: str, *, expect: int) -> None:
        """Forget a node's evacuation."""
        await self.store.commit(Change(f"evacuated/{node}", None, expect))
