"""How long a node may believe that it holds a volume: arithmetic of leases and promises.

All times are seconds on the node's own clock that never jumps (CLOCK_BOOTTIME). A time that the store
or another node measures is counted here from *before* we asked, and ends a margin early. So a node
stops before another one may begin, as long as no clock is off by more than the margin.

See docs/guarantees.md for the whole calculation.
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
        """Seconds by which the node stops earlier: for uneven clocks, and to end its containers."""
        return self.ttl / 4

    @property
    def renewal(self) -> float:
        """Seconds between renewals; two in a row may be lost.

        Short enough that an election of the store's leader does not end what a node holds: with etcd's
        settings it hardly ever takes 2 s. Not shorter, since each renewal is work for idle nodes.
        """
        return self.ttl / 5

    @property
    def of_earlier_boot(self) -> float:
        """Seconds after which a lease that still lives is no earlier boot's of the same machine.

        Twice its length, since an election of the store's leader begins it anew once. Words depend on this, and
        nothing else: whoever has the lease is waited for, however long that takes.
        """
        return 2 * self.ttl

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
        lease_until: the end of its lease; -inf if the record was not read and written in that lease.
        promises: by node, until when that one has promised to leave the volume alone.
    """
    ends = [promises.get(name, -inf) for name in rivals]
    if not ends:
        return inf
    return max(lease_until, min(ends))


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """What proves at one moment that a node holds a volume.

    Attributes:
        now: that moment.
        read: this run of the daemon has read the record, so that it knows every rival. A record that
            an earlier run remembered may lack one. True if there is no other copy to take over. False if another
            machine has this node's name: that one is a rival that no record names.
        lease_until: the end of its lease; -inf if the record was not read and written anew since that
            lease began.
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
