"""Whether the records of several volumes go into the store in one step, which is known before anybody has to wait for that."""

from __future__ import annotations

from collections.abc import Sequence

from pannier.cluster.registry import encode, volume_key
from pannier.core.errors import Conflict
from pannier.core.volume import Volume
from pannier.store.changes import MAX_BYTES

SPARE_BYTES = 64 << 10
"""What may come to the records until they are written, as by snapshots of a schedule and lines of history: a few hundred of those."""


def check_fit(records: Sequence[Volume]) -> None:
    """Refuse what the store would refuse, or could refuse by the time that it is written.

    Args:
        records: as they are to be written, all in one step.

    Raises:
        Conflict: they are too large.
    """
    sizes = {each.name: len(volume_key(each.name)) + len(encode(each)) for each in records}
    total = sum(sizes.values())
    if total + SPARE_BYTES <= MAX_BYTES:
        return
    largest = sorted(records, key=lambda each: sizes[each.name])[-1]
    raise Conflict(
        f"the records of {len(records)} volumes would have {total >> 10} KiB, of which {largest.name} with {len(largest.snapshots)} "
        f"snapshots has {sizes[largest.name] >> 10}; the store takes {MAX_BYTES - SPARE_BYTES >> 10} KiB in one step",
        remedy="remove snapshots: pannier volume snapshot rm; or make snapshots one by one: pannier volume snapshot create",
    )
