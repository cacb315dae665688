"""The receiver's end of the transport: a TCP port of its own."""

from __future__ import annotations

import asyncio
import os
import select
import socket
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import structlog

from pannier.core.errors import Conflict, Corrupt, PannierError, PeerUnavailable
from pannier.core.node import TRANSPORT_PORT, Fingerprints
from pannier.host.listening import tcp_listener
from pannier.pki.credentials import Credentials
from pannier.pki.failures import explain_tls
from pannier.pki.identity import fingerprints, require_node
from pannier.transport.base import Gate, Offer
from pannier.transport.channel import Channel, TransportTiming
from pannier.transport.frames import (
    PROTOCOL,
    Done,
    End,
    Failed,
    Have,
    Offered,
    Start,
)
from pannier.transport.handshake import Secured, shake_hands
from pannier.transport.lane import Lane
from pannier.transport.pipes import prepare_pipe
from pannier.transport.record_frames import RECORDS_PROTOCOL
from pannier.transport.record_server import RecordServer

CheckPeer = Callable[[str, Fingerprints], Awaitable[None]]
"""Judges a node by its name and its certificate's fingerprints, before it may say anything."""

_STRANGERS = 256
"""Largest number of connections that have not shown a certificate yet. A further one ends the oldest."""

_log = structlog.get_logger("pannier.transport")


@dataclass(frozen=True, slots=True)
class _Claim:
    """A volume that is being received, at which epoch, and the task that does it."""

    epoch: int
    task: asyncio.Task[Any]


class TransportServer:
    """Takes in generations from other nodes of the cluster, one after the other on a connection.

    Different volumes are received at the same time. Of one volume, one generation is received at a
    time, as drivers require. A later offer of the same or a newer epoch ends the transfer under way.
    """

    def __init__(
        self,
        credentials: Credentials,
        gate: Gate,
        *,
        host: str | None = None,
        port: int = TRANSPORT_PORT,
        timing: TransportTiming | None = None,
        check_peer: CheckPeer | None = None,
        records: RecordServer | None = None,
    ) -> None:
        """Prepare; :meth:`start` listens.

        Args:
            credentials: this node's.
            gate: decides about each offer.
            host: address to listen at; None for all.
            port: TCP port; 0 for a free one.
            timing: how long to wait for what.
            check_peer: raises Denied for a node that was removed or has another certificate by now;
                asked again at each offer.
            records: takes in records on the same port; None to let nobody send any.
        """
        self._gate = gate
        self._cluster = credentials.identity.cluster
        self._context = credentials.server_context(client_certificate_required=True)
        self._records = records
        self._context.set_alpn_protocols([PROTOCOL, *([RECORDS_PROTOCOL] if records else [])])
        self._address = (host, port)
        self._timing = timing or TransportTiming()
        self._check_peer = check_peer
        self._listener: socket.socket | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._strangers: dict[asyncio.Task[Any], None] = {}
        self._claims: dict[str, _Claim] = {}

    async def __aenter__(self) -> TransportServer:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    @property
    def port(self) -> int:
        """The port that it listens at."""
        if self._listener is None:
            return self._address[1]
        port: int = self._listener.getsockname()[1]
        return port

    async def start(self) -> None:
        """Listen.

        Raises:
            OSError: the address is taken or not ours.
        """
        host, port = self._address
        listener = tcp_listener(host or "", port)
        self._listener = listener
        self._start_task(self._accept(listener))

    async def close(self) -> None:
        """Stop listening and break off all transfers. Drivers may keep what they can go on with."""
        while tasks := set(self._tasks):
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
        # Only now: the event loop has let go of its file descriptor.
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                sock, address = await loop.sock_accept(listener)
            except OSError as error:
                # Out of file descriptors, or a peer that went away while it waited.
                _log.warning("transport.accept_failed", error=str(error))
                await asyncio.sleep(0.1)
                continue
            self._start_task(self._serve(sock, f"{address[0]}:{address[1]}"))

    def _start_task(self, work: Any) -> None:
        task: asyncio.Task[None] = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, sock: socket.socket, address: str) -> None:
        """One connection, from the handshake to its end. Raises nothing but cancellation."""
        try:
            secured = await self._greet(sock, address)
        except (PannierError, OSError, TimeoutError) as error:
            sock.close()
            reason = explain_tls(error, peer=address) if isinstance(error, ssl.SSLError) else error
            _log.info("transport.refused", address=address, reason=str(reason) or "too slow")
            return
        except BaseException:
            sock.close()
            raise
        if secured.protocol == RECORDS_PROTOCOL:
            await self._take_records(secured, address)
            return
        channel = secured.channel(peer=address, timing=self._timing, listens=False)
        lane = Lane(channel, timing=self._timing, name=f"receive-{address}")
        abort = True
        try:
            abort = not await self._answer(secured.tls, lane, address)
        finally:
            lane.close(abort=abort)

    async def _greet(self, sock: socket.socket, address: str) -> Secured:
        task = asyncio.current_task()
        assert task is not None
        if len(self._strangers) >= _STRANGERS:
            # Those that hold a connection open silently make room for those that speak.
            next(iter(self._strangers)).cancel()
        self._strangers[task] = None
        try:
            async with asyncio.timeout(self._timing.connect):
                secured = await shake_hands(
                    sock, context=self._context, server_name=None, timing=self._timing
                )
        finally:
            del self._strangers[task]
        if secured.protocol is None:
            raise PeerUnavailable(
                f"{address} speaks neither {PROTOCOL} nor {RECORDS_PROTOCOL}",
                remedy="check the port, and that all nodes run compatible versions",
            )
        return secured

    async def _take_records(self, secured: Secured, address: str) -> None:
        """Hand a connection over to the part that takes in records."""
        assert self._records is not None, "the protocol is offered only with it"
        try:
            node = require_node(secured.tls, cluster=self._cluster)
            shown = fingerprints(secured.tls.getpeercert(True) or b"")
        except PannierError as error:
            await self._records.refuse(secured, error, peer=address)
            return
        check = partial(self._check, node.name, shown)
        await self._records.serve(secured, peer=node.name, check=check)

    async def _answer(self, tls: ssl.SSLObject, lane: Lane, address: str) -> bool:
        """Hold conversations, and report a failure; False if nobody is left to hear it."""
        channel, log = lane.channel, _log.bind(address=address)
        try:
            node = require_node(tls, cluster=self._cluster)
            channel.peer = str(node)
            log = log.bind(peer=node.name)
            shown = fingerprints(tls.getpeercert(True) or b"")
            await self._converse(lane, node.name, shown)
            await lane.run(channel.linger)
        except PannierError as error:
            log.info("transport.failed", code=error.code, reason=str(error))
            if channel.failure is not None:
                return False
            failure = error
        except Exception:
            failure = PannierError(
                "receiving failed in a way that was not foreseen",
                remedy="see the log of pannierd there",
            )
            log.exception("transport.bug")
        else:
            return True
        try:
            await lane.run(partial(channel.say, Failed.of(failure)))
            await lane.run(channel.linger)
        except PannierError:
            return False
        return True

    async def _converse(self, lane: Lane, peer: str, shown: Fingerprints) -> None:
        """Take in one offer after the other, until the sender has no more."""
        await self._check(peer, shown)
        offered: Offered | None = await _hear_offer(lane)
        while offered is not None:
            await self._receive(offered.offer(), lane, peer)
            if offered := await _hear_next_offer(lane):
                # The node may have been removed while its connection was open.
                await self._check(peer, shown)

    async def _check(self, peer: str, shown: Fingerprints) -> None:
        if self._check_peer is not None:
            await self._check_peer(peer, shown)

    async def _receive(self, offer: Offer, lane: Lane, peer: str) -> None:
        """Take in one generation, if it is not here yet, and confirm it."""
        began = time.monotonic()
        channel = lane.channel
        driver = await self._gate.admit(offer, peer=peer)
        async with self._claim(offer):
            here = await driver.inspect(offer.volume_id)
            if offer.generation in here.generations:
                await self._gate.confirm(offer, peer=peer)
                await lane.run(partial(channel.say, Have.of(here)))
                return
            start = await lane.run(partial(_agree, channel, Have.of(here)))
            intake = _Inlet(channel)
            async with driver.receive(
                offer.volume_id, offer.generation, base=start.parsed()
            ) as pipe:
                await lane.run(partial(intake.pour, pipe))
            if not intake.ended:
                await lane.run(intake.finish)
            await self._gate.confirm(offer, peer=peer)
        # The claim is released before the sender is told, since its next offer may come at once.
        await lane.run(partial(channel.say, Done()))
        _log.info(
            "transport.received",
            volume=offer.volume_name,
            generation=str(offer.generation),
            base=start.base,
            peer=peer,
            bytes=intake.received_bytes,
            seconds=round(time.monotonic() - began, 3),
        )

    @asynccontextmanager
    async def _claim(self, offer: Offer) -> AsyncIterator[None]:
        """Be the only transfer of the volume.

        The latest offer counts: a holder sends one at a time, so it has given up any older one, or
        a broken connection has left that behind.

        Raises:
            Conflict: another one of a newer epoch is under way.
        """
        task = asyncio.current_task()
        assert task is not None
        while (other := self._claims.get(offer.volume_id)) is not None:
            if offer.epoch < other.epoch:
                raise Conflict(
                    f"volume {offer.volume_name} is being received already, at epoch {other.epoch}",
                    remedy="wait until that transfer has ended, then try again",
                )
            other.task.cancel()
            await asyncio.wait({other.task})
        self._claims[offer.volume_id] = _Claim(offer.epoch, task)
        try:
            yield
        finally:
            del self._claims[offer.volume_id]


async def _hear_offer(lane: Lane) -> Offered:
    offered = await lane.run(lane.channel.hear)
    if not isinstance(offered, Offered):
        raise lane.channel.unexpected(offered)
    return offered


async def _hear_next_offer(lane: Lane) -> Offered | None:
    """None where the sender is gone, which it may be between two conversations."""
    try:
        return await _hear_offer(lane)
    except PeerUnavailable:
        if lane.channel.parted:
            return None
        raise


def _agree(channel: Channel, have: Have) -> Start:
    """Say what is here, and hear what the stream will be a difference to."""
    channel.say(have)
    start = channel.hear()
    if not isinstance(start, Start):
        raise channel.unexpected(start)
    return start


class _Inlet:
    """Takes the stream from the channel to the driver's pipe, and counts it."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self.ended = False
        self.received_bytes = 0

    def pour(self, pipe: int) -> None:
        """Fill ``pipe`` until the stream's end, or until the driver reads no more.

        A driver that stops reading has failed, or knows that it has all (an archive's padding may
        follow): leaving its block without an error lets the driver say which.
        """
        prepare_pipe(pipe)
        try:
            while size := self._next():
                self._write(pipe, self._channel.body[:size])
        except BrokenPipeError:
            return

    def finish(self) -> None:
        """Hear the rest of the stream, if the driver accepted it without reading that."""
        while not self.ended:
            self._next()

    def _next(self) -> int:
        """The size of the next DATA in the channel's body; 0 at the end.

        Raises:
            Corrupt: another number of bytes was sent than arrived.
        """
        while True:
            frame = self._channel.hear()
            if isinstance(frame, int) and frame > 0:
                self.received_bytes += frame
                return frame
            if isinstance(frame, End):
                break
            if frame != 0:
                raise self._channel.unexpected(frame)
        if frame.bytes != self.received_bytes:
            raise Corrupt(
                f"{frame.bytes} bytes were sent and {self.received_bytes} arrived",
                remedy="send it again; report it if it repeats",
            )
        self.ended = True
        return 0

    def _write(self, pipe: int, view: memoryview) -> None:
        while view:
            try:
                view = view[os.write(pipe, view) :]
            except BlockingIOError:
                self._channel.wait_pipe(pipe, events=select.POLLOUT)
