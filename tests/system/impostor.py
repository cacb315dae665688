"""Runs on a node: calls its ports with a certificate that it must not accept, and prints the answer.

usage: python impostor.py KIND PORT NODE ADDRESS VOLUME ID EPOCH
"""

import asyncio
import sys
import tempfile
from pathlib import Path
from typing import Any

from pannier.api.client import ApiClient, PeerClient
from pannier.api.connection import TlsEndpoint
from pannier.core.errors import PannierError
from pannier.core.generation import Generation
from pannier.core.node import Node
from pannier.pki.authority import Authority
from pannier.pki.credentials import Credentials, new_request
from pannier.pki.identity import fingerprint
from pannier.storage.base import LocalCopy
from pannier.transport.base import Offer
from pannier.transport.client import TransportClient

OURS = Path("/etc/pannier")


def credentials(kind: str, folder: Path) -> Credentials:
    """Of another cluster (`foreign`), or of our own CA but not node2's present one (`forged`)."""
    authority = Authority.load(OURS / "ca")
    request = new_request("node2")
    if kind == "foreign":
        other = Authority.create(folder / "ca", cluster=authority.cluster)
        certificate = other.issue_node(request.csr_pem, node="node2", addresses=["192.0.2.1"])
    else:
        certificate = authority.issue_node(request.csr_pem, node="node2", addresses=["192.0.2.1"])
    (folder / "ca.crt").write_text(authority.certificate_pem)
    (folder / "node.crt").write_text(certificate)
    (folder / "node.key").write_text(request.key_pem)
    (folder / "node.key").chmod(0o600)
    return Credentials.load(folder)


class Nothing:
    """A driver that has nothing of any volume: whoever is refused does not come to send."""

    async def inspect(self, volume: str) -> LocalCopy:
        return LocalCopy()


async def call(
    kind: str, port: str, node: str, address: str, volume: str, volume_id: str, epoch: str
) -> Any:
    shown = credentials(kind, Path(tempfile.mkdtemp(dir="/run")))
    endpoint = TlsEndpoint(address=address, port=7400, context=shown.client_context(), node=node)
    match port:
        case "api":
            async with ApiClient(endpoint) as client:
                return await client.volumes()
        case "peer":
            async with PeerClient(endpoint) as peer:
                return await peer.peer_handover(volume, epoch=int(epoch))
        case _:
            to = Node(
                name=node, address=address, drivers=("btrfs",), version="", joined_at=0.0,
                certificate=fingerprint((OURS / "node.crt").read_text()),
            )  # fmt: skip
            offer = Offer(
                volume_id=volume_id, volume_name=volume, driver="btrfs", epoch=int(epoch),
                generation=Generation(int(epoch), 99),
            )  # fmt: skip
            nothing: Any = Nothing()
            return await TransportClient(shown).send(offer, to=to, driver=nothing)


try:
    print("accepted:", asyncio.run(call(*sys.argv[1:])))
except PannierError as error:
    print(f"{error.code}: {error}")
