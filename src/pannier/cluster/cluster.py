"""The cluster as one of its nodes knows it."""

from __future__ import annotations

from dataclasses import dataclass

from pannier.cluster.catalog import Catalog
from pannier.cluster.registry import Registry, Versioned
from pannier.core.errors import Conflict, VolumeNotFound
from pannier.core.node import Node
from pannier.core.restored import is_behind, store_is_older
from pannier.core.volume import Volume


@dataclass(frozen=True, slots=True)
class Older:
    """The store knows less of a volume than this node: a volume never vanishes without a trace.

    Attributes:
        known: the record that this node remembers.
        stored: what the store has under its name; None for nothing.
        trashed: what it has in the trash, older than ``known``; None for nothing.
    """

    known: Volume
    stored: Versioned[Volume] | None
    trashed: Versioned[Volume] | None = None


class Cluster:
    """This node's name, the records in the store, and what is remembered of them.

    Attributes:
        node: this node's name.
        registry: the records in the store.
        catalog: what this node remembers of them.
    """

    def __init__(self, *, node: str, registry: Registry, catalog: Catalog) -> None:
        self.node = node
        self.registry = registry
        self.catalog = catalog

    async def fresh(self, name: str) -> Versioned[Volume]:
        """The newest committed record of a volume, remembered too.

        This is the one place that compares the store's word with what this node remembers.

        Raises:
            VolumeNotFound; StoreUnavailable.
            StoreIsOlder: the store knows less than this node, as after an older backup was restored.
        """
        found = await self.compared(name)
        match found:
            case None:
                self.catalog.forget(name)
                raise no_such_volume(name)
            case Versioned():
                self.catalog.remember(found.record, revision=found.revision)
                return found
            case Older(known, stored, _):
                self.catalog.doubt(name)
                raise store_is_older(known, stored.record if stored is not None else None)

    async def compared(self, name: str) -> Versioned[Volume] | Older | None:
        """What the store says of a volume, or that it says less than this node remembers; None if it is gone."""
        while True:
            known = self.catalog.volume(
                name
            )  # before the store is asked: what is learned meanwhile may be newer
            found = await self.registry.volume(name)
            if known is None or (found is not None and found.record.id == known.id):
                if known is not None and found is not None and is_behind(found.record, known):
                    return Older(known, found)
                return found
            trashed = await self.registry.trashed(known.id)
            if trashed is not None:
                return Older(known, found, trashed) if is_behind(trashed.record, known) else found
            if await self.registry.purge_of(known.id) is not None:
                return found
            again = await self.registry.volume(name)
            if again == found and self.catalog.volume(name) == known:
                return Older(known, found)

    async def replace(self, record: Volume, *, expect: int) -> Versioned[Volume]:
        """Change a volume's record if it is at revision ``expect``, and remember it.

        Returns:
            It as it was written.

        Raises:
            Stale, StoreUnavailable: it was not changed; OutcomeUnknown: it may have been, or may yet be.
        """
        written = await self.registry.replace_volume(record, expect=expect)
        self.catalog.remember(written.record, revision=written.revision)
        return written

    def holder_of(self, volume: Volume) -> Node:
        """The node that holds a volume.

        Raises:
            Conflict: it has left the cluster.
        """
        holder = self.catalog.node(volume.grant.node)
        if holder is None:
            raise Conflict(
                f"volume {volume.name} is held by node {volume.grant.node}, which left the cluster",
                remedy="bring that node back; its data is only there",
            )
        return holder


def no_such_volume(name: str) -> VolumeNotFound:
    """The error for an unknown name."""
    return VolumeNotFound(
        f"there is no volume {name}", remedy="pannier volume ls shows all; create it first"
    )
