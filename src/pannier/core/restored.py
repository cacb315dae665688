"""Whether the store knows less than the nodes do, as after it was restored from an older backup. Pure.

What a node remembers of a volume's record only grows: so does the epoch, and so does the number of changes. The epochs
on a disk are never later than the record. So a store that has less than a node remembers, or than a disk has, is older.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from pannier.core.errors import StoreIsOlder
from pannier.core.ownership import LocalState, is_older
from pannier.core.volume import Volume


def is_behind(record: Volume, known: Volume) -> bool:
    """Whether a record of the same volume is older than a known one, or went another way after it was restored."""
    return (
        record.grant.epoch < known.grant.epoch
        or record.changes < known.changes
        or parted(record, known)
    )


def parted(one: Volume, other: Volume) -> bool:
    """Whether two records of one volume have no common history: an epoch has two holders, or two beginnings."""
    if one.grant.epoch == other.grant.epoch and one.grant.node != other.grant.node:
        return True
    beginnings = {each.epoch: each.base for each in one.lineage}
    return any(beginnings.get(each.epoch, each.base) != each.base for each in other.lineage)


def is_news(record: Volume, known: Volume | None) -> bool:
    """Whether another node remembers more of a volume than this one does."""
    if known is None:
        return True
    if record.id != known.id or parted(record, known):
        return False
    return is_behind(known, record)


def store_is_older(known: Volume, found: Volume | None) -> StoreIsOlder:
    """The error for a volume of which the store knows less than the nodes do.

    Args:
        found: what the store has of it; None for nothing.
    """
    has = (
        f"that node {found.grant.node} holds it at epoch {found.grant.epoch} (change {found.changes})"
        if found is not None
        else "nothing of it"
    )
    return StoreIsOlder(
        f"volume {known.name}: the store says {has}, and the nodes know that node {known.grant.node} holds it at epoch "
        f"{known.grant.epoch} (change {known.changes}): the store was restored from an older backup, and is not believed",
        remedy=f"its holder puts the record back by itself when all nodes answer; if one is gone for good: pannier volume "
        f"recover {known.name}",
    )


def check_disk_is_not_newer(record: Volume, copy: LocalState, *, node: str) -> None:
    """Refuse to act on a record that is older than this node's disk.

    Raises:
        StoreIsOlder: it is.
    """
    if is_older(record, copy):
        raise disk_is_newer(record, copy.newest_epoch, node=node)


def disk_is_newer(record: Volume, newest: int, *, node: str) -> StoreIsOlder:
    """The error for a record that is older than a node's disk, which has data of epoch ``newest``."""
    return StoreIsOlder(
        f"volume {record.name}: the store says that node {record.grant.node} holds it at epoch {record.grant.epoch}, and node "
        f"{node} has data of epoch {newest}: the store was restored from an older backup, and is not believed",
        remedy="start all nodes: the one that holds it puts the newer record back; see pannier doctor",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Knowledge:
    """What is known of a volume whose record in the store is older.

    Attributes:
        known: the newest record that any node which answered remembers.
        found: the store's; None where it has none.
        silent: nodes that have not answered since.
        whole: whether this node's disk has what the holder's should have.
    """

    known: Volume
    found: Volume | None
    silent: Collection[str]
    whole: bool


def may_put_back(knowledge: Knowledge, *, node: str) -> bool:
    """Whether ``node`` may put the known record back by itself: it holds the volume by it, it has the data, and no other
    node can know of a later one."""
    known, found = knowledge.known, knowledge.found
    apart = found is not None and found.id == known.id and parted(found, known)
    return known.grant.node == node and knowledge.whole and not knowledge.silent and not apart
