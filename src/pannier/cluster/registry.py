"""The cluster's records in the store: where each one is kept, and how it changes.

::

    cluster            ClusterRecord
    nodes/NAME         Node
    alive/NAME         the node's boot id; lives as long as the node's lease
    volumes/NAME       Volume
    trash/ID           Volume with removed_at
    purged/ID          nothing: the volume's data may be deleted wherever it is
    tokens/ID          TokenRecord
    evacuated/NODE     Evacuated: what was done to the node in Docker Swarm
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

import msgspec

from pannier.core.errors import Corrupt
from pannier.core.evacuation import Evacuated
from pannier.core.node import Node
from pannier.core.volume import Volume
from pannier.store.base import ABSENT, Change, Entry, Store

Record = TypeVar("Record")
CLUSTER_KEY = "cluster"


@dataclass(frozen=True, slots=True)
class ClusterRecord:
    """The cluster's identity."""

    id: str
    created_at: float


@dataclass(frozen=True, slots=True)
class Versioned(Generic[Record]):
    """A record and the revision at which it was read."""

    record: Record
    revision: int


def encode(record: object) -> bytes:
    """A record as the store keeps it."""
    return msgspec.json.encode(record)


def decode(entry: Entry, kind: type[Record]) -> Record:
    """The record of an entry.

    Raises:
        Corrupt: the entry is not such a record.
    """
    try:
        return msgspec.json.decode(entry.value, type=kind)
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise Corrupt(
            f"the store's entry {entry.key} cannot be read: {error}",
            remedy="was it written by a newer version? Run the same version on all nodes",
        ) from error


def volume_key(name: str) -> str:
    return f"volumes/{name}"


def trash_key(volume_id: str) -> str:
    return f"trash/{volume_id}"


class Registry:
    """Typed reads and compare-and-swap changes of the store's records.

    All methods may raise StoreUnavailable; those that change may raise Stale (somebody was faster;
    nothing was changed) and OutcomeUnknown.
    """

    def __init__(self, store: Store) -> None:
        self.store = store

    async def _read(self, key: str, kind: type[Record]) -> Versioned[Record] | None:
        entry = await self.store.get(key)
        return Versioned(decode(entry, kind), entry.revision) if entry else None

    async def _all(self, prefix: str, kind: type[Record]) -> list[Record]:
        return [decode(entry, kind) for entry in await self.store.list(prefix)]

    async def cluster(self) -> ClusterRecord | None:
        """The cluster's identity, None in an empty store."""
        found = await self._read(CLUSTER_KEY, ClusterRecord)
        return found.record if found else None

    async def found(self, cluster: ClusterRecord) -> None:
        """Write the identity of a new cluster; Stale where there is one already."""
        await self.store.commit(Change(CLUSTER_KEY, encode(cluster), ABSENT))

    async def volume(self, name: str) -> Versioned[Volume] | None:
        """A volume's newest committed record."""
        return await self._read(volume_key(name), Volume)

    async def volumes(self) -> list[Volume]:
        """All volumes outside the trash."""
        return await self._all("volumes/", Volume)

    async def add_volume(self, volume: Volume) -> int:
        """A new volume; Stale where the name is taken. Returns the record's revision."""
        return await self.store.commit(Change(volume_key(volume.name), encode(volume), ABSENT))

    async def replace_volume(self, volume: Volume, *, expect: int) -> int:
        """Change a volume's record. Returns its new revision."""
        return await self.store.commit(Change(volume_key(volume.name), encode(volume), expect))

    async def take_volume(self, volume: Volume, *, expect: int, former: str) -> int:
        """Change a volume's record while its former holder's lease is gone, else Stale.

        Deleting an absent key is how the store is asked to check that it is absent.
        """
        return await self.store.commit(
            Change(volume_key(volume.name), encode(volume), expect),
            Change(f"alive/{former}", None, ABSENT),
        )

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
        """
        guard = (Change(f"alive/{lost_with}", None, ABSENT),) if lost_with else ()
        await self.store.commit(
            Change(volume_key(volume.name), None, expect),
            Change(trash_key(volume.id), encode(volume), ABSENT),
            *guard,
        )

    async def trash(self) -> list[Versioned[Volume]]:
        """All removed volumes that are still there."""
        return [
            Versioned(decode(entry, Volume), entry.revision)
            for entry in await self.store.list("trash/")
        ]

    async def restore_volume(self, volume: Volume, *, expect: int) -> int:
        """Take a volume out of the trash; Stale where its name was taken meanwhile."""
        return await self.store.commit(
            Change(trash_key(volume.id), None, expect),
            Change(volume_key(volume.name), encode(volume), ABSENT),
        )

    async def purge_volume(self, volume_id: str, *, expect: int) -> None:
        """Give a trashed volume up: from now on every node deletes what it has of it."""
        await self.store.commit(
            Change(trash_key(volume_id), None, expect), Change(f"purged/{volume_id}", b"", ABSENT)
        )

    async def known_ids(self) -> frozenset[str]:
        """Ids of all volumes, trashed and purged ones included."""
        volumes = [*await self.volumes(), *(found.record for found in await self.trash())]
        return frozenset(volume.id for volume in volumes) | await self.purged()

    async def purged(self) -> frozenset[str]:
        """Ids of volumes whose data may be deleted. Absence from all lists is never a reason."""
        entries = await self.store.list("purged/")
        return frozenset(entry.key.removeprefix("purged/") for entry in entries)

    async def node(self, name: str) -> Versioned[Node] | None:
        """A node's record."""
        return await self._read(f"nodes/{name}", Node)

    async def nodes(self) -> list[Node]:
        """All nodes."""
        return await self._all("nodes/", Node)

    async def put_node(self, node: Node, *, expect: int = ABSENT) -> int:
        """Add or change a node's record."""
        return await self.store.commit(Change(f"nodes/{node.name}", encode(node), expect))

    async def remove_node(self, name: str, *, expect: int) -> None:
        """Remove a node's record."""
        await self.store.commit(Change(f"nodes/{name}", None, expect))

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
