"""The cluster as one of its nodes knows it."""

from __future__ import annotations

from pannier.cluster.catalog import Catalog
from pannier.cluster.registry import Registry, Versioned
from pannier.core.errors import VolumeNotFound
from pannier.core.volume import Volume


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

        Raises:
            VolumeNotFound; StoreUnavailable.
        """
        found = await self.registry.volume(name)
        if found is None:
            self.catalog.forget(name)
            raise no_such_volume(name)
        self.catalog.remember(found.record, revision=found.revision)
        return found

    async def replace(self, record: Volume, *, expect: int) -> int:
        """Change a volume's record if it is at revision ``expect``, and remember it.

        Returns:
            The new revision.

        Raises:
            Stale, StoreUnavailable: it was not changed; OutcomeUnknown: it may have been, or may yet be.
        """
        revision = await self.registry.replace_volume(record, expect=expect)
        self.catalog.remember(record, revision=revision)
        return revision


def no_such_volume(name: str) -> VolumeNotFound:
    """The error for an unknown name."""
    return VolumeNotFound(
        f"there is no volume {name}", remedy="pannier volume ls shows all; create it first"
    )
