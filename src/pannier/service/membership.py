"""Nodes: joining, listing, draining, leaving."""

from __future__ import annotations

from collections.abc import Callable

import structlog

from pannier.cluster.catalog import Catalog
from pannier.cluster.registry import Registry
from pannier.pki.authority import Authority

log = structlog.get_logger(__name__)


class Membership:
    """Who belongs to the cluster."""

    def __init__(
        self,
        *,
        node: str,
        cluster: str,
        registry: Registry,
        catalog: Catalog,
        authority: Callable[[], Authority | None],
        ca_certificate: str,
        ca_fingerprint: str,
        store_address: str,
    ) -> None:
        self._node = node
        self._cluster = cluster
        self._registry = registry
        self._catalog = catalog
        self._authority = authority
        self._ca_certificate = ca_certificate
        self._ca_fingerprint = ca_fingerprint
        self._store_address = store_address
