"""What the store keeps of backups off-site.

::

    backup-targets/NAME    BackupTarget
    backup-states/ID       BackupState: of the volume with this id
    backup-drills/TARGET/VOLUME    BackupDrill
"""

from __future__ import annotations

from pannier.cluster.registry import Registry, Versioned, decode, encode
from pannier.core.backup_plans import BackupState
from pannier.core.backups import BackupDrill, BackupTarget
from pannier.core.errors import NotFound
from pannier.store.base import ABSENT, Change

_TARGETS = "backup-targets/"
_STATES = "backup-states/"
_DRILLS = "backup-drills/"


class BackupRecords:
    """Typed reads and changes. They raise what those of :class:`Registry` raise."""

    def __init__(self, registry: Registry) -> None:
        self._store = registry.store

    async def targets(self) -> list[BackupTarget]:
        """All targets, by name."""
        return [decode(each, BackupTarget, shown=True) for each in await self._store.list(_TARGETS)]

    async def target(self, name: str) -> Versioned[BackupTarget]:
        """One target.

        Raises:
            NotFound: there is none of that name.
        """
        found = await self._store.get(_TARGETS + name)
        if found is None:
            raise NotFound(
                f"there is no backup target {name}", remedy="pannier backup target ls shows all"
            )
        return Versioned(decode(found, BackupTarget), found.revision)

    async def add_target(self, target: BackupTarget) -> None:
        """A new target; Stale where its name is taken."""
        await self._store.commit(Change(_TARGETS + target.name, encode(target), ABSENT))

    async def replace_target(self, target: BackupTarget, *, expect: int) -> None:
        """Change a target; Stale where somebody else has."""
        await self._store.commit(Change(_TARGETS + target.name, encode(target), expect))

    async def remove_target(self, name: str, *, expect: int) -> None:
        """Forget a target."""
        await self._store.commit(Change(_TARGETS + name, None, expect))

    async def states(self) -> dict[str, Versioned[BackupState]]:
        """What is remembered of volumes' backups, by volume id."""
        return {
            each.key.removeprefix(_STATES): Versioned(decode(each, BackupState), each.revision)
            for each in await self._store.list(_STATES)
        }

    async def state(self, volume_id: str) -> Versioned[BackupState] | None:
        """The same of one volume; None before its first backup."""
        found = await self._store.get(_STATES + volume_id)
        return Versioned(decode(found, BackupState), found.revision) if found else None

    async def put_state(self, volume_id: str, state: BackupState | None, *, expect: int) -> int:
        """Change what is remembered, or forget it; Stale where somebody else has. Returns its new revision."""
        value = None if state is None else encode(state)
        return await self._store.commit(Change(_STATES + volume_id, value, expect))

    async def drills(self) -> list[BackupDrill]:
        """The last drill of each volume at each target."""
        return [decode(each, BackupDrill, shown=True) for each in await self._store.list(_DRILLS)]

    async def drill(self, target: str, volume: str) -> Versioned[BackupDrill] | None:
        """The last drill of one volume; None before the first."""
        found = await self._store.get(f"{_DRILLS}{target}/{volume}")
        return Versioned(decode(found, BackupDrill), found.revision) if found else None

    async def put_drill(self, drill: BackupDrill, *, expect: int) -> int:
        """Remember a drill; Stale where somebody else has just remembered one. Returns its new revision."""
        key = f"{_DRILLS}{drill.target}/{drill.volume}"
        return await self._store.commit(Change(key, encode(drill), expect))
