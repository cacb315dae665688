"""The receiver's end of the transport of records."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import structlog

from pannier.core.errors import PannierError
from pannier.transport.base import RecordGate
from pannier.transport.channel import TransportTiming
from pannier.transport.handshake import Secured
from pannier.transport.record_crew import RecordCrew
from pannier.transport.wire import RecordWire

_LOOK_SECONDS = 10.0
"""A node that was removed, or has another certificate by now, is sent away within this time. Until then the gate
refuses what it may not send, since it holds no volume."""
_LEAVE_SECONDS = 5.0
"""How long the end of a connection waits for a gate whose disk does not answer."""

_log = structlog.get_logger("pannier.transport")


class RecordServer:
    """Takes in records on connections that :class:`~pannier.transport.server.TransportServer` has accepted."""

    def __init__(self, gate: RecordGate, *, timing: TransportTiming | None = None) -> None:
        """Prepare. ``gate`` decides about each record, and keeps it."""
        self._gate = gate
        self._timing = timing or TransportTiming()

    async def serve(
        self, secured: Secured, *, peer: str, check: Callable[[], Awaitable[None]]
    ) -> None:
        """Take in records until the connection ends, and close it. Raises nothing but cancellation.

        Args:
            secured: the connection after its handshake.
            peer: the name in the sender's certificate.
            check: raises Denied once the sender may say nothing any more.
        """
        crew = self._crew(secured, peer)
        try:
            failure = await _failure_of(check)
            if failure is None:
                crew.start()
            while failure is None and not await crew.ended_within(_LOOK_SECONDS):
                failure = await _failure_of(check)
            if failure is not None:
                await _dismiss(crew, failure, peer=peer)
        finally:
            await _end(crew, peer=peer)

    async def refuse(self, secured: Secured, error: PannierError, *, peer: str) -> None:
        """Tell the sender that it may not send records at all, and close the connection."""
        crew = self._crew(secured, peer)
        try:
            await _dismiss(crew, error, peer=peer)
        finally:
            await _end(crew, peer=peer)

    def _crew(self, secured: Secured, peer: str) -> RecordCrew:
        wire = RecordWire(secured, peer=f"node {peer}", timing=self._timing, listens=False)
        return RecordCrew(wire, self._gate, peer=peer, timing=self._timing)


async def _failure_of(check: Callable[[], Awaitable[None]]) -> PannierError | None:
    try:
        await check()
    except PannierError as error:
        return error
    return None


async def _dismiss(crew: RecordCrew, error: PannierError, *, peer: str) -> None:
    """Tell the sender why, and give it time to close the connection, so that it reads that."""
    _log.info("transport.refused", peer=peer, reason=str(error))
    crew.dismiss(error)
    await crew.ended_within(_LEAVE_SECONDS)


async def _end(crew: RecordCrew, *, peer: str) -> None:
    crew.stop()
    if not await crew.ended_within(_LEAVE_SECONDS):
        _log.warning("transport.gate_hangs", peer=peer)
