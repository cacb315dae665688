"""The certificates that etcd's members show: whoever made them, and whether or not they still count."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from pannier.core.errors import PannierError
from pannier.pki.facts import CertificateFacts, facts_of
from pannier.pki.pin import shown_chain
from pannier.store.address import EtcdAddress, parse_address

_SHOW_SECONDS = 3.0
"""How long a member may take: as long as a listing waits for another node."""


async def shown_by_store(address: str) -> Mapping[str, CertificateFacts | PannierError]:
    """What each member shows, by ``host:port``; empty for a store that is a file.

    Raises:
        InvalidInput: ``address`` is no store's.
    """
    match parse_address(address):
        case EtcdAddress(endpoints):
            found = await asyncio.gather(*map(_shown_by, endpoints))
            return dict(zip(endpoints, found, strict=True))
    return {}


async def _shown_by(member: str) -> CertificateFacts | PannierError:
    host, _, port = member.rpartition(":")
    try:
        chain = await shown_chain(host.strip("[]"), port=int(port), timeout_seconds=_SHOW_SECONDS)
        return facts_of(chain[0])
    except PannierError as error:
        return error
