"""What a backup has beside the volume's files: which volume it was."""

from __future__ import annotations

import msgspec

from pannier.core.errors import BackupFailed
from pannier.core.options import describe_spec
from pannier.core.snapshots import Snapshot
from pannier.core.volume import Volume, VolumeSpec
from pannier.host.clock import rfc3339

DATA = "data"
ABOUT = "volume.json"
"""What a backup has: the volume's files in a directory, and beside it what kind of volume it was."""


def about(volume: Volume, snapshot: Snapshot) -> bytes:
    """The file :data:`ABOUT` of a backup of a volume's snapshot."""
    said = AboutVolume(
        name=volume.name,
        id=volume.id,
        generation=str(snapshot.generation),
        taken_at=rfc3339(snapshot.made_at),
        options=_options(volume.spec),
    )
    return msgspec.json.format(msgspec.json.encode(said)) + b"\n"


def _options(spec: VolumeSpec) -> dict[str, str]:
    """The options that a restored volume gets: its size to the byte, or what has been in it might not fit."""
    shown = describe_spec(spec)
    return shown if spec.size is None else {**shown, "size": str(spec.size)}


class AboutVolume(msgspec.Struct, frozen=True, kw_only=True):
    """The file :data:`ABOUT` of a backup. Later versions may add fields."""

    name: str
    id: str
    generation: str
    taken_at: str
    options: dict[str, str]


def read_about(text: str) -> AboutVolume:
    """What :data:`ABOUT` of a backup says.

    Raises:
        BackupFailed: it cannot be read.
    """
    try:
        return msgspec.json.decode(text, type=AboutVolume)
    except (msgspec.MsgspecError, UnicodeError) as error:
        raise BackupFailed(
            f"the file {ABOUT} of the backup cannot be read: {error}",
            remedy="restore its files with restic: restic restore",
        ) from error
