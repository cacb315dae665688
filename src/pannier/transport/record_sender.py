"""The sender's end of the transport of records: one lasting connection to each node that takes them."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from functools import partial

from pannier.core.errors import PannierError, PeerUnavailable
from pannier.core.node import Node
from pannier.pki.credentials import Credentials
from pannier.transport.base import Parcel
from pannier.transport.channel import TransportTiming
from pannier.transport.connecting import connect
from pannier.transport.record_frames import RECORDS_PROTOCOL
from pannier.transport.record_link import RecordLink
from pannier.transport.wire import RecordWire

RECORD_TIMING = TransportTiming(idle=300.0)
"""As for generations, but a connection is kept for five minutes: a sync call after a pause should not wait for a new
one, which takes two round trips and a handshake."""
_FIRST_PAUSE_SECONDS = 0.5
_LONGEST_PAUSE_SECONDS = 10.0
"""After a connection that was of no use, none is tried for the first time; after each further one for twice as long,
up to the longest. A sync call each few milliseconds would be a handshake each few milliseconds otherwise."""

_Key = tuple[str, str, int, str]


@dataclass(frozen=True, slots=True)
class _Refusal:
    """Why no connection is tried until the loop's time ``until``, and after which pause, in seconds."""

    reason: PannierError
    pause: float
    until: float


class RecordSender:
    """Sends records to other nodes: :class:`~pannier.transport.base.SendsRecords`.

    A connection to a node is opened with the first record for it, used for the records of all volumes, and closed
    when there was none for ``TransportTiming.idle``. Only the event loop calls the methods.
    """

    def __init__(
        self, credentials: Credentials, *, timing: TransportTiming = RECORD_TIMING
    ) -> None:
        """Prepare. ``credentials`` are this node's."""
        self._cluster = credentials.identity.cluster
        self._timing = timing
        self._context = credentials.client_context()
        self._context.set_alpn_protocols([RECORDS_PROTOCOL])
        self._links: dict[RecordLink, _Key] = {}
        self._refusals: dict[_Key, _Refusal] = {}

    async def send(self, parcel: Parcel, *, to: Node, volume_name: str) -> None:
        """See :meth:`pannier.transport.base.SendsRecords.send`."""
        await self._link(to).send(parcel, volume_name)

    async def close(self) -> None:
        """End all connections; what is being sent fails with PeerUnavailable. Sending again opens new ones."""
        while self._links:
            for link in self._links:
                link.stop()
            await asyncio.wait([link.ended for link in self._links])

    def _link(self, to: Node) -> RecordLink:
        """The connection to a node; a new one where there is none, unless that was of no use lately."""
        key = (to.name, to.address, to.transport_port, to.pin)
        for link, its_key in self._links.items():
            if its_key == key and not link.over:
                return link
        refusal = self._refusals.get(key)
        if refusal is not None and asyncio.get_running_loop().time() < refusal.until:
            raise type(refusal.reason)(refusal.reason.message, remedy=refusal.reason.remedy)
        link = RecordLink(to.name, partial(self._connect, to), idle=self._timing.idle)
        self._links[link] = key
        link.ended.add_done_callback(partial(self._ended, link))
        return link

    async def _connect(self, to: Node) -> RecordWire:
        secured = await connect(
            to, context=self._context, cluster=self._cluster, timing=self._timing
        )
        peer = f"node {to.name}"
        if secured.protocol != RECORDS_PROTOCOL:
            secured.sock.close()
            raise PeerUnavailable(
                f"{peer} does not take records: it runs an older version",
                remedy="update pannierd there",
            )
        return RecordWire(secured, peer=peer, timing=self._timing, listens=True)

    def _ended(self, link: RecordLink, task: asyncio.Task[PannierError | None]) -> None:
        key = self._links.pop(link)
        before = self._refusals.pop(key, None)
        reason = None if task.cancelled() else task.result()
        if reason is None or link.useful:
            return
        pause = min(_LONGEST_PAUSE_SECONDS, before.pause * 2) if before else _FIRST_PAUSE_SECONDS
        until = asyncio.get_running_loop().time() + pause
        self._refusals[key] = _Refusal(reason, pause, until)
