"""Nodes that were removed, and the serial numbers of all certificates with which they could use the store.

A serial number stands for a membership: for one node, from a join to the removal that follows. All certificates of a
membership have it, also renewed ones. So whoever knows a node's name can refuse everything that was ever issued
for it, without the authority and without a list of what it issued. A node that joins again begins its next membership,
and gets another number.

Each node keeps the counts of removals and passes them on. They only grow, so they can be put together in any order.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from pannier.core.record import Record

MOST_REMOVALS: Final = 1000
"""How often one name can be removed; nobody joins under it after that. It bounds the list that etcd reads at each
handshake, whatever a node says."""
MEMBER_PREFIX: Final = "etcd-"
"""The etcd member on node NAME is called ``etcd-NAME`` in its certificate; other members are on no node of ours."""
REMOVALS_FILE: Final = "removals.json"
"""Where each node keeps them, in its state directory."""

_SERIAL_BYTES: Final = 19
"""X.509 allows 20, and the first bit must not be set."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Removals(Record):
    """How often each node was removed, by name; others are left out."""

    counts: Mapping[str, int] = field(default_factory=dict)

    def membership(self, node: str) -> int:
        """The number of the node's present or next membership; the first is 1."""
        return self.counts.get(node, 0) + 1

    def with_removed(self, node: str) -> Removals:
        """After one more removal; at :data:`MOST_REMOVALS` it stays as it is."""
        return self.merged({node: min(self.membership(node), MOST_REMOVALS)})

    def merged(self, counts: Mapping[str, int]) -> Removals:
        """With what another node knows; this very object where that is nothing new."""
        names = sorted(self.counts.keys() | counts.keys())
        most = {name: max(self.counts.get(name, 0), counts.get(name, 0)) for name in names}
        return self if most == self.counts else replace(self, counts=most)

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
