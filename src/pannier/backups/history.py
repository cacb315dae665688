"""What a volume's history says of its backups."""

from __future__ import annotations

from functools import partial

import structlog

from pannier.cluster.cluster import Cluster
from pannier.core.errors import PannierError
from pannier.core.volume import HistoryEntry, Volume
from pannier.host.clock import Clock

log = structlog.get_logger(__name__)

BACKED_UP = "backed up"
FAILED = "backup failed"
NOT_REMOVED = "backups not removed"
DRILLED = "backup drilled"
DRILL_FAILED = "backup drill failed"
"""The kinds of lines. All begin so that only the last few of them stay (:meth:`Volume.with_backup_entry`)."""


class BackupHistory:
    """Adds lines."""

    def __init__(self, *, cluster: Cluster, clock: Clock) -> None:
        self._cluster = cluster
        self._clock = clock

    async def note(self, name: str, what: str, detail: str, *, id: str | None = None) -> None:
        """Add a line to a volume's history, if it is there and the store answers.

        Args:
            id: of the volume that is meant; None: whichever has the name.
        """

        def add(found: Volume) -> Volume | None:
            entry = HistoryEntry(
                at=self._clock.unix(),
                what=what,
                node=self._cluster.node,
                epoch=found.grant.epoch,
                detail=detail,
            )
            return found.with_backup_entry(entry) if id in (None, found.id) else None

        try:
            now = await self._cluster.registry.change(partial(self._cluster.fresh, name), add)
        except PannierError as error:
            log.info("backup.not-noted", volume=name, what=what, error=str(error))
            return
        self._cluster.catalog.remember(now.record, revision=now.revision)
