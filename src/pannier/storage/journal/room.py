"""How much may live in a journal. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pannier.core.errors import InvalidInput, JournalFull
from pannier.core.size import format_size
from pannier.storage.journal.layout import (
    BLOCK_BYTES,
    FEWEST_SEGMENTS,
    SEGMENT_BYTES,
    SUPER_BYTES,
    Geometry,
)

_LARGEST_FRAME = 9, 32
"""The part of a segment that one frame takes at most. Of a whole segment these are 4.5 MiB: a record of line.MOST_BYTES, and
half a MiB for its table. What is at the end of a segment and too little for the next frame is never more than that."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JournalUsage:
    """How full a journal is, in bytes of the file.

    Attributes:
        total_bytes: of the file.
        live_bytes: what is needed.
        most_bytes: of ``live_bytes``; what does not fit is refused.
        most_volume_bytes: the same for each volume.
        volumes: what each volume needs.
    """

    total_bytes: int
    live_bytes: int
    most_bytes: int
    most_volume_bytes: int
    volumes: Mapping[str, int]


def segments_in(size_bytes: int, *, segment_bytes: int = SEGMENT_BYTES) -> int:
    """How many segments a file of this size has.

    Raises:
        InvalidInput: they are too few.
    """
    count = (size_bytes - SUPER_BYTES) // segment_bytes
    if count < FEWEST_SEGMENTS:
        least = SUPER_BYTES + FEWEST_SEGMENTS * segment_bytes
        raise InvalidInput(
            f"a journal of {format_size(size_bytes)} is too small",
            remedy=f"give it {format_size(least)}",
        )
    return count


def largest_frame(geometry: Geometry) -> int:
    """What one frame may take."""
    part, of = _LARGEST_FRAME
    return geometry.segment_bytes * part // of // BLOCK_BYTES * BLOCK_BYTES


def most_live(geometry: Geometry) -> int:
    """What may live.

    When a segment is full, what lives in the oldest one is moved, until one is free. This comes to an end as long as all that
    lives, packed badly, leaves two segments: the one that is written, and the free one. Of each segment
    its head, a MOVED, the place of a CLOSED, and less than the largest frame at its end, have nothing that lives.
    """
    packed = geometry.segment_bytes - 3 * BLOCK_BYTES - largest_frame(geometry)
    return (geometry.segments - 2) * packed


def most_of_volume(geometry: Geometry) -> int:
    """What may live of one volume: half. One whose generations do not come leaves room for all others."""
    return most_live(geometry) // 2


def check_room(geometry: Geometry, *, more: int, live: int, volume: str, of_volume: int) -> None:
    """Make sure that a frame may be added.

    Args:
        more: bytes of the frame.
        live, of_volume: what lives already, and of this volume, with what is on its way.

    Raises:
        JournalFull: it may not. InvalidInput: no journal takes such a frame.
    """
    if more > largest_frame(geometry):
        raise InvalidInput(
            f"a record of volume {volume} takes {format_size(more)}, and the journal takes "
            f"{format_size(largest_frame(geometry))} at most"
        )
    if of_volume + more > most_of_volume(geometry):
        raise JournalFull(
            f"records of volume {volume} take {format_size(of_volume)} of the journal already",
            remedy="a generation of the volume makes room",
        )
    if live + more > most_live(geometry):
        raise JournalFull(
            f"the journal has {format_size(live)} of records that are needed, and takes "
            f"{format_size(most_live(geometry))}",
            remedy="generations of its volumes make room",
        )
