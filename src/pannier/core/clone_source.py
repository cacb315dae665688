"""What a new volume is to be a clone of, as people write it."""

from __future__ import annotations

from dataclasses import dataclass

from pannier.core.errors import InvalidInput
from pannier.core.snapshots import check_snapshot_name
from pannier.core.volume import check_name


@dataclass(frozen=True, slots=True)
class CloneSource:
    """A volume as it was in a snapshot; without one, as it is now."""

    volume: str
    snapshot: str = ""

    def __str__(self) -> str:
        return f"{self.volume}@{self.snapshot}" if self.snapshot else self.volume

    @classmethod
    def parse(cls, text: str) -> CloneSource:
        """Read ``NAME`` or ``NAME@SNAPSHOT``.

        Raises:
            InvalidInput: one of the names cannot be one.
        """
        volume, at, snapshot = text.partition("@")
        if at and not snapshot:
            raise InvalidInput(
                f"{text[:80]!r} names no snapshot",
                remedy="write NAME@SNAPSHOT, or NAME for the volume as it is now",
            )
        return cls(check_name(volume), check_snapshot_name(snapshot) if at else "")
