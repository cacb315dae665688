"""``pannier ca refused``: the list of certificates that an etcd member on this machine is to refuse.

It runs before etcd's start, also at a boot, when pannierd may not run yet. So it reads what this node knows, and asks the
other nodes what it has missed. Only what it knows must be readable: whom it asks, and how, may be lost in a power cut, and
without etcd's start there would be no way back.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Mapping
from pathlib import Path

import structlog

from pannier.api.client import PeerClient
from pannier.api.connection import TlsEndpoint
from pannier.cluster.catalog import SavedCatalog
from pannier.config import CONFIG_DIRECTORY, RUN_DIRECTORY, STATE_DIRECTORY, load_config
from pannier.core.errors import PannierError
from pannier.core.node import Node
from pannier.core.removals import REMOVALS_FILE, Removals
from pannier.host.files import write_file
from pannier.host.records import read_file
from pannier.host.state_files import HostFiles
from pannier.pki.credentials import Credentials
from pannier.pki.refusal import refusal_list

log = structlog.get_logger(__name__)

ASK_SECONDS = 3.0
"""For one node's answer."""
WAIT_SECONDS = 5.0
"""How long it asks until another node answers. Where all start at once, none does yet; then etcd must start without, and
pannierd here asks again as soon as it runs."""
_PAUSE_SECONDS = 0.5


def write_refused(*, out: str) -> list[str]:
    """Write the list, readable by all. Returns the names of the nodes that were asked and answered.

    Raises:
        StorageError, Corrupt, NewerFormat: what this node knows cannot be read.
        OSError: the list cannot be written.
    """
    files = HostFiles(state=STATE_DIRECTORY, run=RUN_DIRECTORY)
    remedy = "move it away: the other nodes know it, too"
    known = read_file(files.durable(REMOVALS_FILE), Removals, remedy=remedy) or Removals()
    try:
        heard = asyncio.run(_ask_until_one_answers(_others(files)))
    except (PannierError, OSError) as error:
        log.warning("removals.not-asked", error=str(error))
        heard = {}
    for counts in heard.values():
        known = known.merged(counts)
    write_file(Path(out), refusal_list(known.refused(), now=time.time()), mode=0o644)
    return sorted(heard)


def _others(files: HostFiles) -> list[Node]:
    """The other nodes, as last heard; none before this machine is a node."""
    if not (CONFIG_DIRECTORY / "pannierd.toml").exists():
        return []
    saved = read_file(files.unsynced("catalog.json"), SavedCatalog, remedy="move it away")
    own = load_config().node
    return [node for node in saved.nodes if node.name != own] if saved else []


async def _ask_until_one_answers(nodes: list[Node]) -> dict[str, Mapping[str, int]]:
    """Raises: PannierError, OSError: this node's certificate cannot be read."""
    if not nodes:
        return {}
    loop, context = asyncio.get_running_loop(), Credentials.load(CONFIG_DIRECTORY).client_context()
    end = loop.time() + WAIT_SECONDS
    while True:
        answers = await asyncio.gather(*(_ask(node, context) for node in nodes))
        heard = {
            node.name: counts
            for node, counts in zip(nodes, answers, strict=True)
            if counts is not None
        }
        if heard or loop.time() > end:
            return heard
        await asyncio.sleep(_PAUSE_SECONDS)


async def _ask(node: Node, context: ssl.SSLContext) -> Mapping[str, int] | None:
    endpoint = TlsEndpoint(
        address=node.address, port=node.api_port, context=context, node=node.name
    )
    try:
        async with asyncio.timeout(ASK_SECONDS), PeerClient(endpoint) as peer:
            return (await peer.peer_removals({})).counts
    except (PannierError, TimeoutError):
        return None
