"""What a node that is alone knows of removed nodes: no other node is there, and no member of the store."""

from __future__ import annotations

from pannier.cluster.catalog import Catalog
from pannier.cluster.cluster import Cluster
from pannier.cluster.registry import Registry
from pannier.contract.peers import Peer
from pannier.core.node import Node
from pannier.core.pace import NodePace
from pannier.host.state_files import StateFile
from pannier.node.removing import Removing, StoreMember


class NoPeers:
    """There is no other node."""

    def to(self, node: Node) -> Peer:
        raise AssertionError(f"{node.name} was asked")


class NoMember:
    """No member of the store runs here."""

    def lets_in(self, serials: frozenset[int]) -> bool:
        """See :class:`pannier.node.removing.StoreMember`."""
        return False

    async def start_again(self, serials: frozenset[int]) -> None:
        """See :class:`pannier.node.removing.StoreMember`."""
        raise AssertionError


def removing_alone(
    node: str,
    registry: Registry,
    catalog: Catalog,
    *,
    file: StateFile,
    member: StoreMember | None = None,
) -> Removing:
    """What ``node`` knows."""
    return Removing(
        cluster=Cluster(node=node, registry=registry, catalog=catalog),
        address="10.0.0.1",
        peers=NoPeers(),
        member=member or NoMember(),
        file=file,
        pace=NodePace(),
    )
