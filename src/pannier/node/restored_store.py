"""What doctor and the views say of volumes of which the store knows less than the nodes."""

from __future__ import annotations

from collections.abc import AsyncIterator

from pannier.cluster.cluster import Cluster, Older
from pannier.contract.views import FindingView
from pannier.contract.words import Level
from pannier.core.restored import store_is_older


async def older_store_findings(cluster: Cluster) -> AsyncIterator[FindingView]:
    """One for each volume of which the store says something older than is remembered.

    Raises:
        StoreUnavailable: it cannot be asked.
    """
    for name in cluster.catalog.doubted():
        found = await cluster.compared(name)
        if isinstance(found, Older):
            stored = found.stored.record if found.stored is not None else None
            error = store_is_older(found.known, stored)
            yield FindingView(
                level=Level.PROBLEM,
                subject=f"volume {name}",
                what=error.message,
                remedy=error.remedy,
            )


def doubt_of(cluster: Cluster, name: str) -> str:
    """Why the store's word about a volume is not believed, and what to do; empty where it is."""
    if not cluster.catalog.doubts(name):
        return ""
    return "the store was restored from an older backup, and knows less of it than the nodes; see pannier doctor"
