"""How long a node may believe that it holds a volume: arithmetic of leases and promises.

All times are seconds on the node's own clock that only ever passes (CLOCK_BOOTTIME). A span that
somebody else counts is counted here from *before* we asked, and ends a margin early: so a node
stops before anybody else may begin, as long as no clock runs wrong by more than the margin.

See docs/guarantees.md for the sum of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import inf

from pannier.core.errors import InvalidInput

SHORTEST_TTL_SECONDS = 2.0
LONGEST_TTL_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Terms:
    """A lease's length.

    Attributes:
        ttl: seconds after its last renewal at which the store ends it.
    """

    ttl: float = 4.0

    def __post_init__(self) -> None:
        if not SHORTEST_TTL_SECONDS <= self.ttl <= LONGEST_TTL_SECONDS:
            raise InvalidInput(
                f"a lease of {self.ttl:g} s is not possible",
                remedy=f"use {SHORTEST_TTL_SECONDS:g} to {LONGEST_TTL_SECONDS:g} seconds",
            )

    @property
    def margin(self) -> float:
        """What the node stops earlier: for clocks that run unevenly, and to end its containers."""
        return self.ttl / 4

    @property
    def renewal(self) -> float:
        """Seconds between renewals: two may be lost. An election of the store's leader, hardly ever 2 s
        with etcd's settings, must not end what a node holds; and each renewal is work for idle nodes.
        """
        return self.ttl / 5

    def trusted_until(self, asked_at: float) -> float:
        """The end of a lease whose renewal was asked for at ``asked_at`` and granted."""
        return asked_at + self.ttl - self.margin


def promised_until(asked_at: float, seconds: float) -> float:
    """The end of a promise of ``seconds`` that was asked for at ``asked_at`` and given."""
    return asked_at + seconds * 0.9


def held_until(
    rivals: Iterable[str], *, lease_until: float, promises: Mapping[str, float]
) -> float:
    """Until when a node may act as the holder.

    Args:
        rivals: every node that could take the volume over.
        lease_until: the end of its lease, if it knows since that lease's beginning that it holds.
        promises: by node, until when that one has promised to leave the volume alone.
    """
    ends = [promises.get(name, -inf) for name in rivals]
    if not ends:
        return inf
    return max(lease_until, min(ends))


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """What a node can show at one moment for its belief that it holds a volume.

    Attributes:
        now: that moment.
        read: this run of the daemon has read the record, so that it knows every rival. What an
            earlier run remembered may lack one. True where there are no copies to take over with.
        lease_until: the end of its lease; -inf where the record was not read and written anew since
            that lease began.
        promises: by node, until when that one has promised to leave the volume alone.
    """

    now: float
    read: bool
    lease_until: float
    promises: Mapping[str, float]

    def until(self, rivals: Iterable[str]) -> float:
        """Until when the node may act as the holder, where ``rivals`` could take the volume over."""
        if not self.read:
            return -inf
        return held_until(rivals, lease_until=self.lease_until, promises=self.promises)

    def holds(self, rivals: Iterable[str]) -> bool:
        """Whether it may now."""
        return self.now < self.until(rivals)
