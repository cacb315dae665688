"""Nodes that were removed, and the serial numbers of all certificates with which they could use the store.

A serial number stands for a membership: for one node, from a join to the removal that follows. All certificates of a
membership have it, also renewed ones. So whoever knows a node's name can refuse everything that was ever issued
for it, without the authority and without a list of what it issued. A node that joins again begins its next membership,
and gets another number.

Each node keeps the counts of removals and passes them on. They only grow, so they can be put together in any order.

A name is forgotten when no certificate of it can count any more. How old a removal is, is counted while nodes run, and
passed on, too: so it is never more than the time that has passed, whatever anybody's clock says. What is forgotten leaves
the highest of its counts as a floor, from which all other names go on: no number is ever given twice.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import isfinite
from typing import Final

from pannier.core.certificates import AUTHORITY_LIFE_SECONDS
from pannier.core.record import Record

MOST_REMOVALS: Final = 1000
"""How often one name can be removed; nobody joins under it after that. It bounds the list that etcd reads at each
handshake, whatever a node says."""
MOST_NAMES: Final = 10_000
"""How many names of removed nodes are remembered at once. Nobody joins under a new name after that, but under each of those:
so the list that etcd reads has a bound, also where each node has a name of its own."""
FORGOTTEN_AFTER: Final = AUTHORITY_LIFE_SECONDS + 24 * 3600.0
"""Seconds since a removal. No certificate outlives the authority that signed it; the day is for clocks that differ."""
MOST_FORGOTTEN: Final = MOST_REMOVALS // 2
"""A name that was removed more often is never forgotten: with its count as the floor, others could hardly be removed."""
MEMBER_PREFIX: Final = "etcd-"
"""The etcd member on node NAME is called ``etcd-NAME`` in its certificate; other members are on no node of ours."""
REMOVALS_FILE: Final = "removals.json"
"""Where each node keeps them, in its state directory."""

_SERIAL_BYTES: Final = 19
"""X.509 allows 20, and the first bit must not be set."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Removals(Record):
    """How often each node was removed, by name; others are left out.

    Attributes:
        counts: by name.
        ages: by name, how many seconds ago the last removal was, at least; a name that is left out counts as just removed.
        floor: no name that is forgotten was removed more often.
    """

    counts: Mapping[str, int] = field(default_factory=dict)
    ages: Mapping[str, float] = field(default_factory=dict)
    floor: int = 0

    @classmethod
    def heard(cls, counts: Mapping[str, int], ages: Mapping[str, float], floor: int) -> Removals:
        """What another node says, within the bounds that are ours."""
        return cls(
            counts={name: min(max(count, 1), MOST_REMOVALS) for name, count in counts.items()},
            ages={
                name: age
                for name, age in ages.items()
                if name in counts and isfinite(age) and age > 0
            },
            floor=min(max(floor, 0), MOST_FORGOTTEN),
        )

    def membership(self, node: str) -> int:
        """The number of the node's next membership, and not less than that of the present one; the first is 1."""
        return max(self.counts.get(node, 0), self.floor) + 1

    def with_removed(self, node: str) -> Removals:
        """After one more removal; at :data:`MOST_REMOVALS` it stays as it is."""
        removed = Removals(counts={node: min(self.membership(node), MOST_REMOVALS)})
        return self.merged(removed)

    def merged(self, other: Removals) -> Removals:
        """With what another node knows; this very object where that is nothing new."""
        names = sorted(self.counts.keys() | other.counts.keys())
        counts = {name: max(self.counts.get(name, 0), other.counts.get(name, 0)) for name in names}
        ages = {
            name: max(
                known.ages.get(name, 0.0)
                for known in (self, other)
                if known.counts.get(name) == counts[name]
            )
            for name in names
        }
        ages = {name: age for name, age in ages.items() if age}
        floor = max(self.floor, other.floor)
        if (counts, ages, floor) == (self.counts, self.ages, self.floor):
            return self
        return replace(self, counts=counts, ages=ages, floor=floor)

    def aged(self, seconds: float) -> Removals:
        """After so many more seconds, without what no certificate needs any more."""
        if seconds <= 0:
            return self
        ages = {name: self.ages.get(name, 0.0) + seconds for name in self.counts}
        gone = {
            name: count
            for name, count in self.counts.items()
            if ages[name] > FORGOTTEN_AFTER and count <= MOST_FORGOTTEN
        }
        return replace(
            self,
            counts={name: count for name, count in self.counts.items() if name not in gone},
            ages={name: age for name, age in ages.items() if name not in gone},
            floor=max(self.floor, *gone.values()) if gone else self.floor,
        )

    def refused(self) -> frozenset[int]:
        """Serial numbers of all memberships that have ended, of nodes and of the etcd members on them."""
        return frozenset(
            serial(name, membership)
            for node, count in self.counts.items()
            for membership in range(1, count + 1)
            for name in (node, f"{MEMBER_PREFIX}{node}")
        )


def serial(name: str, membership: int) -> int:
    """The serial number of all certificates of one membership.

    Args:
        name: the common name: a node's, or an etcd member's.
        membership: see :meth:`Removals.membership`.
    """
    digest = hashlib.sha256(f"pannier-membership:{membership}:{name}".encode()).digest()
    return int.from_bytes(digest[:_SERIAL_BYTES], "big") | 1  # zero is no serial number


def node_of(member: str) -> str:
    """The node that an etcd member is on, by the member's name."""
    return member.removeprefix(MEMBER_PREFIX)
