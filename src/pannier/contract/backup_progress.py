"""What the streams of long work with backups say."""

from __future__ import annotations

from dataclasses import dataclass

from pannier.contract.views import BackupTargetView, BackupView, DrillView
from pannier.contract.volumes import VolumeView
from pannier.contract.words import BackupPhase


@dataclass(frozen=True, slots=True, kw_only=True)
class BackupProgress:
    """One line of the stream with which long work with backups answers.

    Attributes:
        node: the one that works.
        volume: on which it works, where there are several.
        done_bytes: of files, read or written by now, to within some megabytes.
        percent: how much of the phase is done; None where that is not known.
        backup, backups, restored, drill, verified: what came of it, on the last line: one of them, by what was asked for.
    """

    phase: BackupPhase
    node: str
    done_bytes: int = 0
    percent: int | None = None
    volume: str = ""
    backup: BackupView | None = None
    backups: list[BackupView] | None = None
    restored: VolumeView | None = None
    drill: DrillView | None = None
    verified: BackupTargetView | None = None

    @property
    def ended(self) -> bool:
        """Whether nothing comes after it."""
        return self.phase is BackupPhase.DONE
