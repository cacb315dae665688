"""Options that a volume's files cannot get where they are: they are copied into a new volume, which then has the name. Pure.

What keeps the bytes is such an option, and so is giving up the other copies. All else is changed in place
(:mod:`pannier.core.declarations`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from math import ceil

from pannier.core.errors import Conflict, NeedsCopy, VolumeInUse
from pannier.core.options import FROM, asked_of, check_together, value_of
from pannier.core.size import format_size
from pannier.core.volume import Durability, HistoryEntry, Volume, VolumeSpec

CONVERTED = "converted"
"""What a volume's history calls it."""
_READ_BYTES_PER_SECOND = 100 * 2**20
"""By what people are told how long a volume stands still: a plain disk reads this. Nothing decides by it."""
_STAYS = ("nodes", "uid", "gid", "mode")
"""Files bring their owners and permissions along, and the volume stays on its node."""
_OF_COPIES = ("interval", "min_copies", "unheld_writes")
"""Options that say nothing of a volume with one copy."""


def converted(volume: Volume, options: Mapping[str, str]) -> VolumeSpec | None:
    """What a volume is to be, if that needs a copy; None where it does not.

    Raises:
        InvalidInput: an option cannot be read, or two do not go together.
        Conflict: one of the options stays, or the volume is protected.
    """
    if FROM.name in options:
        return None
    wanted = asked_of(volume.spec, options)
    if "layout" not in options and value_of(wanted, "driver") == value_of(volume.spec, "driver"):
        wanted = replace(wanted, driver=volume.spec.driver)  # driver=btrfs is said of both layouts
    wanted = _with_defaults(wanted, options)
    if not _needs_copy(volume.spec, wanted, options):
        return None
    for name in _STAYS:
        if name in options and value_of(wanted, name) != value_of(volume.spec, name):
            raise Conflict(
                f"{name} of volume {volume.name} stays as it is",
                remedy="leave it out; chown and chmod change the owner and the permissions of what is in it",
            )
    check_together(wanted, given=frozenset(options))
    if volume.spec.protected:
        raise Conflict(
            f"volume {volume.name} is protected, and what it is now would go to the trash",
            remedy=f"pannier volume set {volume.name} protected=false first, and protected=true afterwards",
        )
    return wanted


def _needs_copy(now: VolumeSpec, wanted: VolumeSpec, options: Mapping[str, str]) -> bool:
    if wanted.driver != now.driver:
        return True
    asked = "durability" in options and wanted.durability is Durability.NONE
    return asked and now.durability is not Durability.NONE


def _with_defaults(wanted: VolumeSpec, options: Mapping[str, str]) -> VolumeSpec:
    """Copies and what is promised of them go together, as at a creation."""
    if "durability" not in options:
        promised = wanted.durability
        if wanted.copies == 1:
            promised = Durability.NONE
        elif promised is Durability.NONE:
            promised = Durability.FSYNC
        wanted = replace(wanted, durability=promised)
    if wanted.copies == 1:
        default = VolumeSpec()
        said_nothing = [name for name in _OF_COPIES if name not in options]
        wanted = replace(wanted, **{name: getattr(default, name) for name in said_nothing})
    return wanted


def needs_copy(volume: Volume, changes: Sequence[str]) -> NeedsCopy:
    """The error for options that cannot be changed in place; it says what would be done.

    Args:
        changes: what is to change, in words.
    """
    return NeedsCopy(
        f"volume {volume.name}: {', '.join(changes)}: that needs a copy. {_what_happens(volume)}",
        remedy=f"pannier volume set {volume.name} does it once nobody uses it, or with --stop-service",
    )


def in_use(volume: Volume, users: Collection[str], *, used_bytes: int) -> VolumeInUse:
    """The error for a volume that would have to be copied, and is in use.

    Args:
        users: in words for people.
        used_bytes: what it takes.
    """
    seconds = max(1, ceil(used_bytes / _READ_BYTES_PER_SECOND))
    return VolumeInUse(
        f"volume {volume.name} is in use on node {volume.grant.node} by {', '.join(users)}. {_what_happens(volume)}; for "
        f"{format_size(used_bytes)} it stands still for some {seconds} s; nothing was changed",
        remedy="stop that and do it again; or on a Swarm manager: --stop-service, which stops its service and starts it again",
    )


def _what_happens(volume: Volume) -> str:
    kept = f", with its {len(volume.snapshots)} snapshots" if volume.snapshots else ""
    return (
        "Its files are copied while it is used; then its users stop once, the rest is copied, and all files are compared. "
        f"What it is now goes to the trash{kept}"
    )


def exchanged(
    old: Volume, new: Volume, changes: Sequence[str], *, at: float, actor: str
) -> tuple[Volume, Volume]:
    """The records of a volume that was filled and of the one whose name it gets: as they are with and without it.

    Args:
        at: Unix time.
    """
    node, epoch = old.grant.node, old.grant.epoch
    said = f"{', '.join(changes)}, by {actor}; what it was is in the trash as {old.id}"
    entry = HistoryEntry(at=at, what=CONVERTED, node=node, epoch=new.grant.epoch, detail=said)
    gone = HistoryEntry(
        at=at, what="removed", node=node, epoch=epoch, detail=f"converted by {actor}, into {new.id}"
    )
    given = replace(
        new, created_at=old.created_at, declared=dict(old.declared), history=old.history
    )
    return given.with_entry(entry), replace(old, removed_at=at).with_entry(gone)
