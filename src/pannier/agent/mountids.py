"""Which mount ids Docker has given for which volume: hints, never the truth about use.

Docker repeats ids, forgets Unmounts and shares one id among containers; what counts is
:mod:`pannier.agent.usage`. The hints cover what /proc cannot show: the moments in which a container
has been given its volume and has no process yet. They live on tmpfs, so that they outlast pannierd
and not the node's boot, as the containers do.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import structlog

from pannier.core.errors import PannierError
from pannier.core.record import Record
from pannier.host.records import encode, read_file
from pannier.host.state_files import StateFile

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class MountHints(Record):
    """The file of :class:`MountIds`: by volume and mount id, CLOCK_BOOTTIME in seconds."""

    ids: dict[str, dict[str, float]] = field(default_factory=dict)


class MountIds:
    """The hints, kept in ``file`` (JSON: volume, id, CLOCK_BOOTTIME in seconds).

    A file that cannot be read counts as empty, and one that cannot be written is kept in memory;
    both are logged. Losing hints costs caution for a moment, not data.
    """

    def __init__(self, file: StateFile) -> None:
        self._file = file
        self._saved = self._load()
        self._ids = self._saved.ids

    def add(self, name: str, mount_id: str, at_boottime: float) -> None:
        """Docker has been given ``name`` under ``mount_id``; a repeated id takes the new time.

        ``at_boottime`` is CLOCK_BOOTTIME in seconds, as everywhere here.
        """
        self._ids.setdefault(name, {})[mount_id] = at_boottime
        self._save()

    def discard(self, name: str, mount_id: str) -> None:
        """Docker has given it back. Unknown ids are no error."""
        ids = self._ids.get(name, {})
        if ids.pop(mount_id, None) is None:
            return
        if not ids:
            del self._ids[name]
        self._save()

    def forget(self, name: str) -> None:
        """Drop all hints of a volume, when /proc has shown them wrong or the volume has gone."""
        if self._ids.pop(name, None) is not None:
            self._save()

    def ages(self, name: str, now_boottime: float) -> dict[str, float]:
        """The ids of a volume that were not given back, each with its age in seconds."""
        ids = self._ids.get(name, {})
        return {mount_id: max(now_boottime - at, 0.0) for mount_id, at in ids.items()}

    def names(self) -> frozenset[str]:
        """Volumes that have hints."""
        return frozenset(self._ids)

    def _load(self) -> MountHints:
        try:
            saved = read_file(self._file, MountHints, remedy="the hints of this boot are lost")
        except PannierError as error:
            _log.warning("mount ids not readable, starting empty", error=str(error))
            saved = None
        return saved or MountHints()

    def _save(self) -> None:
        try:
            self._file.write(encode(replace(self._saved, ids=self._ids)))
        except OSError as error:
            _log.warning("mount ids not written", path=str(self._file.path), error=str(error))
