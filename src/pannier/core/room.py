"""When a pool has too little room left for images that may grow: pure decisions.

Images are sparse, and all of them together may be larger than their pool. An image's file system takes
a full pool for a broken disk, and what a sync call was told may then not be true. So its writers are
stopped before that, with enough room left for what they can still write until everything stands still.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

_SHARED_LIMIT = 64 << 20
"""What the memory of a node may hold of data that is not written yet, for all images together, once room
is scarce. Less makes unsynced writes slower still; they are up to six times slower as it is."""
_LEAST_LIMIT = 4 << 20
"""The same for one image, however many there are: with less, its writers hardly proceed."""
_SLACK = 32 << 20
"""What a file system needs to stop: ext4's journal and own blocks, and btrfs' own last transaction."""
_LEAST_RATE = 512 << 20
"""Bytes a second that a pool is taken to be able to take in until it was seen to take more."""
_MOST_RATE = 4 << 30
"""Fast disks take in no more. Room can go faster than that without any writing: when it is set aside."""
_FORGET_S = 600.0
"""In this time half of a rate is forgotten, unless nobody could write."""
_SMALL_POOL = 8
"""No more than this part of a pool is kept free for the disk's speed, and as much for what memory holds: a
small one would always be full."""
_AT_ONCE = 2
"""So many images at most may each take an equal part of the room at once. With more of them each still gets
that part: it is rare that three writers fill a pool between two looks."""
_LATE_LOOKS = 3
"""A look may come this many times later than it was meant to: the machine may be busy."""
_RELEASE = 1.25
"""Writers go on when there is this many times the room that they were stopped for. Otherwise they would
stand and go on with every megabyte."""
_TIGHT = 2
"""What :mod:`pannier.core.freeing` lists is freed when there is less than this many times the room at which
writers go on: before they stand still, and no sooner than it must be."""


class RoomLevel(StrEnum):
    """How much room a pool has."""

    AMPLE = "ample"
    SCARCE = "scarce"
    """The memory for data that is not written yet is limited."""
    FULL = "full"
    """Nobody may write to an image."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """A pool's room, as measured.

    Attributes:
        total_bytes: the pool's size.
        free_bytes: what images can take before the pool says that it is full.
        dirty_bytes: what the node's memory may hold of data that is not written yet.
        images: how many are attached.
    """

    total_bytes: int
    free_bytes: int
    dirty_bytes: int
    images: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageLimits:
    """What the kernel lets each image take until the next look.

    Attributes:
        dirty_bytes: what memory may hold of its data that is not written yet.
        growth_bytes: what its files may take in addition to what they have in the pool. A writer that needs
            more is told that there is no space: that is for one which fills a pool between two looks.
    """

    dirty_bytes: int
    growth_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RoomPlan:
    """What follows from it.

    Attributes:
        limits: of each image; None for none.
        needed_bytes: the room at which images may be written to again.
        tight: whether writers will soon stand still.
        next_look: seconds.
    """

    level: RoomLevel
    limits: ImageLimits | None
    needed_bytes: int
    tight: bool
    next_look: float


def shrinking(known: float, *, taken: int, seconds: float, level: RoomLevel) -> float:
    """The rate at which room shrinks at worst, in bytes a second.

    Args:
        known: what this returned last time.
        taken: by how many bytes the room has shrunk since, in ``seconds``, at this ``level``.
    """
    if seconds <= 0:
        return known
    faded = known if level is RoomLevel.FULL else known * 0.5 ** (seconds / _FORGET_S)
    return max(faded, min(taken / seconds, _MOST_RATE))


def plan(
    room: Room,
    *,
    before: RoomLevel,
    rate: float,
    shortest: float,
    longest: float,
    gives_bytes: int = 0,
) -> RoomPlan:
    """Decide what a pool's images may do, and when to look again.

    Args:
        gives_bytes: what gives its room by itself before writers stand still, such as the trash. Files may count
            on it as long as there is time to free it.
        before: what was decided last time.
        rate: see :func:`shrinking`.
        shortest: the shortest time between two looks, in seconds; longest: the longest one.
    """
    rate = max(rate, _LEAST_RATE)
    part = room.total_bytes // _SMALL_POOL
    limit = max(_LEAST_LIMIT, min(_SHARED_LIMIT, part) // max(room.images, 1))
    unseen = min(round(rate * shortest * _LATE_LOOKS), part)
    stop = limit * room.images + unseen + _SLACK
    release = round(stop * _RELEASE)
    tight = room.free_bytes < release * _TIGHT
    growth = max(0, room.free_bytes - _SLACK) // min(max(room.images, 1), _AT_ONCE)
    growth += 0 if tight else gives_bytes
    limits = ImageLimits(dirty_bytes=limit, growth_bytes=growth)
    if room.free_bytes < (release if before is RoomLevel.FULL else stop):
        return RoomPlan(
            level=RoomLevel.FULL,
            limits=limits,
            needed_bytes=release,
            tight=True,
            next_look=shortest,
        )
    # What memory holds already is beyond any later limit. So the limit comes before that fills the rest.
    scarce = release + room.dirty_bytes
    if room.free_bytes < (round(scarce * _RELEASE) if before is RoomLevel.SCARCE else scarce):
        return RoomPlan(
            level=RoomLevel.SCARCE,
            limits=limits,
            needed_bytes=release,
            tight=tight,
            next_look=shortest,
        )
    in_time = (room.free_bytes - scarce) / _MOST_RATE
    return RoomPlan(
        level=RoomLevel.AMPLE,
        limits=None,
        needed_bytes=release,
        tight=tight,
        next_look=min(longest, max(shortest, in_time)),
    )


def ways_out(name: str) -> str:
    """What a person can do about a volume that stands still: what gives way by itself has done so already."""
    return (
        f"remove files of it (pannier volume clean {name} PATH), move it or others away (pannier volume move {name} "
        f"NODE), remove volumes that nobody needs, or enlarge the pool (pannier pool grow)"
    )
