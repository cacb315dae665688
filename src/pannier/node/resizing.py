"""Whether a volume's holder could keep it with another size: as strict as at a creation."""

from __future__ import annotations

from collections.abc import Mapping

from pannier.cluster.cluster import Cluster
from pannier.core.errors import InvalidInput, Unavailable
from pannier.core.size import format_size, parse_size
from pannier.node.cluster_wide import ClusterWide


async def check_size(
    name: str, options: Mapping[str, str], *, cluster: Cluster, cluster_wide: ClusterWide
) -> None:
    """Refuse a size that is larger than the holder's pool.

    Raises:
        InvalidInput: it is, or it is no size. Unavailable: the holder does not say how large its pool is.
        VolumeNotFound; StoreUnavailable.
    """
    if "size" not in options:
        return
    wanted = parse_size(options["size"])
    holder = (await cluster.fresh(name)).record.grant.node
    total = (await cluster_wide.node(holder)).pool_total_bytes
    if total is None:
        raise Unavailable(
            f"node {holder} does not say how large its pool is; nothing was changed",
            remedy=f"try again when node {holder} is up, or move the volume first",
        )
    if wanted > total:
        raise InvalidInput(
            f"size={format_size(wanted)} is more than the pool of node {holder} has: {format_size(total)}",
            remedy="ask for less, enlarge the pool, or move the volume to a node with a larger one",
        )
