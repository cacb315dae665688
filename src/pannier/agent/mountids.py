"""Which mount ids Docker has given for which volume: hints, never the truth about use.

Docker repeats ids, forgets Unmounts and shares one id among containers; what counts is
:mod:`pannier.agent.usage`. The hints cover what /proc cannot show: the moments in which a container
has been given its volume and has no process yet. They live on tmpfs, so that they outlast pannierd
and not the node's boot, as the containers do.
"""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import structlog

_log = structlog.get_logger(__name__)

DEFAULT_PATH = Path("/run/pannier/mounts.json")


class MountIds:
    """The hints, kept in the file at ``path`` (JSON: volume, id, CLOCK_BOOTTIME in seconds).

    A file that cannot be read counts as empty, and one that cannot be written is kept in memory;
    both are logged. Losing hints costs caution for a moment, not data.
    """

    def __init__(self, path: Path = DEFAULT_PATH) -> None:
        self._path = path
        self._ids = self._load()

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

    def _load(self) -> dict[str, dict[str, float]]:
        try:
            raw = self._path.read_bytes()
        except FileNotFoundError:
            return {}
        except OSError as error:
            _log.warning("mount ids not readable", path=str(self._path), error=str(error))
            return {}
        try:
            return msgspec.json.decode(raw, type=dict[str, dict[str, float]])
        except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
            _log.warning(
                "mount ids corrupt, starting empty", path=str(self._path), error=str(error)
            )
            return {}

    def _save(self) -> None:
        draft = self._path.with_name(self._path.name + ".new")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            # No fsync: after a power cut the ids mean nothing.
            draft.write_bytes(msgspec.json.encode(self._ids))
            os.replace(draft, self._path)
        except OSError as error:
            _log.warning("mount ids not written", path=str(self._path), error=str(error))
