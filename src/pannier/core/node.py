"""Nodes: machines that run ``pannierd``."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from pannier.core.errors import InvalidInput
from pannier.core.record import Record

_NAME = re.compile(r"[a-zA-Z0-9](?:[a-zA-Z0-9.-]{0,61}[a-zA-Z0-9])?", re.ASCII)
API_PORT = 7400
TRANSPORT_PORT = 7401


@dataclass(frozen=True, slots=True)
class Fingerprints:
    """What tells a certificate from others: SHA-256, hexadecimal.

    Attributes:
        certificate: of the certificate (DER).
        key: of its public key (DER). A renewed certificate has the same.
    """

    certificate: str
    key: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Node(Record):
    """The store's record of a node.

    Attributes:
        address: IP address or host name at which the other nodes reach it.
        drivers: names of the storage drivers it can serve, its default first.
        joined_at: Unix time, for people only.
        certificate: SHA-256 of its certificate, hexadecimal. It counts where there is no ``key``.
        swarm: its engine's node id in Docker Swarm; None outside a Swarm, or before it was asked.
        stopping: its daemon was told to stop; it takes this back when it starts.
        room: tenths of its pool that are free, rounded down: coarse, so that it seldom changes.
        trash_seconds: how long it keeps removed volumes that it held, while its daemon runs and there is room.
        key: SHA-256 of its public key, hexadecimal: only certificates of this key may act for it. Empty until a
            version that renews certificates has written the record.
        authority: whether it has the key of the cluster's certificate authority.
    """

    name: str
    address: str
    drivers: tuple[str, ...]
    version: str
    joined_at: float
    certificate: str
    api_port: int = API_PORT
    transport_port: int = TRANSPORT_PORT
    drained: bool = False
    swarm: str | None = None
    stopping: bool = False
    room: int = 10
    trash_seconds: float = 86_400.0
    key: str = ""
    authority: bool = False

    @property
    def pin(self) -> str:
        """What its certificate is recognised by: another one only after the node was set up anew."""
        return self.key or self.certificate

    def is_shown_by(self, shown: Fingerprints) -> bool:
        """Whether this certificate may act for the node."""
        return self.pin == (shown.key if self.key else shown.certificate)

    def started_as(self, now: Node) -> Node:
        """This record with the fields that a start of the node sets anew; the rest stays as it was."""
        return replace(
            self,
            address=now.address,
            drivers=now.drivers,
            version=now.version,
            certificate=now.certificate,
            key=now.key,
            authority=now.authority,
            api_port=now.api_port,
            transport_port=now.transport_port,
            trash_seconds=now.trash_seconds,
            stopping=False,
        )


def check_node_name(name: str) -> str:
    """Return ``name`` if it can name a node: a host name.

    Raises:
        InvalidInput: it cannot.
    """
    if not _NAME.fullmatch(name) or ".." in name:
        raise InvalidInput(
            f"{name[:40]!r} cannot name a node",
            remedy="use letters, digits, '-' and '.', at most 63 characters, as in a host name",
        )
    return name
