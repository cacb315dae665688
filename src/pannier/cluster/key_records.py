"""What the store keeps of the cluster's key::

backup-key             ClusterKey; the name is of the time when it encrypted the secrets of backups only
"""

from __future__ import annotations

from pannier.cluster.registry import Registry, Versioned, decode, encode
from pannier.core.encryption import ClusterKey
from pannier.store.base import ABSENT, Change

_KEY = "backup-key"


class KeyRecords:
    """Typed reads and changes. They raise what those of :class:`Registry` raise."""

    def __init__(self, registry: Registry) -> None:
        self._store = registry.store

    async def current(self) -> Versioned[ClusterKey] | None:
        """Which key encrypts what is new; None where nothing was encrypted yet."""
        found = await self._store.get(_KEY)
        return Versioned(decode(found, ClusterKey), found.revision) if found else None

    async def name(self, key: ClusterKey, *, expect: int = ABSENT) -> None:
        """Name another key, or the first; Stale where somebody was faster."""
        await self._store.commit(Change(_KEY, encode(key), expect))
