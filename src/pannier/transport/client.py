"""The sender's end of the transport."""

from __future__ import annotations

import asyncio
import os
import select
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from functools import partial

import structlog

from pannier.core.errors import PannierError, PeerUnavailable
from pannier.core.generation import Generation
from pannier.core.node import Node
from pannier.pki.credentials import Credentials
from pannier.storage.base import Driver, ResumingDriver
from pannier.transport.agreement import Agreement, agree
from pannier.transport.base import ChooseBase, Offer, Sent
from pannier.transport.channel import Channel, TransportTiming
from pannier.transport.connecting import connect
from pannier.transport.frames import PROTOCOL, Done, End, Failed, Have, Message, Offered, Start
from pannier.transport.idle import IdleConnections
from pannier.transport.lane import Lane
from pannier.transport.pipes import prepare_pipe
from pannier.transport.rate import Rate

log = structlog.get_logger(__name__)

_PROGRESS_SECONDS = 0.25
_HASTY_BYTES = 256 * 1024
"""This much of a stream's beginning is passed on piece by piece, as it comes: most differences are not
larger, and somebody waits for them."""
_PATIENCE_SECONDS = 0.01
_NAP_SECONDS = 0.0005


class TransportClient:
    """Sends generations to other nodes: the :class:`~pannier.transport.base.ChoosingSender`.

    A connection is kept for the next offer to the same node, of whatever volume; :meth:`close`
    closes those that are idle.
    """

    def __init__(
        self,
        credentials: Credentials,
        *,
        rate: Rate | None = None,
        timing: TransportTiming | None = None,
    ) -> None:
        """Prepare.

        Args:
            credentials: this node's.
            rate: what is kept by transfers that nobody waits for; None for no limit.
        """
        self._cluster = credentials.identity.cluster
        self._timing = timing or TransportTiming()
        self._context = credentials.client_context()
        self._context.set_alpn_protocols([PROTOCOL])
        self._idle = IdleConnections(self._timing)
        self._rate = rate

    async def close(self) -> None:
        """Close the connections that nobody uses now. Sending again opens new ones."""
        self._idle.close()

    async def send(
        self,
        offer: Offer,
        *,
        to: Node,
        driver: Driver,
        progress: Callable[[int], None] | None = None,
        may_wait: Callable[[], bool] | None = None,
        choose_base: ChooseBase | None = None,
    ) -> Sent:
        """See :meth:`pannier.transport.base.ChoosingSender.send`.

        Raises:
            PeerUnavailable: no connection, or it broke, or the receiver was silent for
                ``TransportTiming.stall``. Where it broke after the last byte, the generation may be
                there all the same: sending it again finds out.
            Denied: certificates do not fit.
            PannierError: what the receiver or the driver reported.
        """
        began, rate, sent_bytes = time.monotonic(), self._rate, 0

        def keep_rate(piece_bytes: int) -> None:
            if rate is not None and may_wait is not None and may_wait():
                rate.wait(piece_bytes)

        def report(more_bytes: int) -> None:
            if progress is not None:
                progress(sent_bytes + more_bytes)

        send = partial(
            self._send_one,
            to=to,
            driver=driver,
            progress=report,
            keep_rate=keep_rate,
            choose_base=choose_base,
        )
        agreed, sent_bytes = await send(offer, finishes=True)
        if agreed.first is not None:
            # Only once: what the receiver says after that is a reason to send all of it, never to go on for ever.
            _, sent_bytes = await send(replace(offer, generation=agreed.first), finishes=False)
            agreed, more_bytes = await send(offer, finishes=False)
            sent_bytes += more_bytes
        return Sent(bytes=sent_bytes, base=agreed.base, seconds=time.monotonic() - began)

    async def _send_one(
        self,
        offer: Offer,
        *,
        finishes: bool,
        to: Node,
        driver: Driver,
        progress: Callable[[int], None],
        keep_rate: Callable[[int], None],
        choose_base: ChooseBase | None,
    ) -> tuple[Agreement, int]:
        """Send one generation; returns what was agreed, and the stream's bytes.

        Args:
            finishes: send nothing if another generation is to be sent first.
        """
        lane, have = await self._offer(offer, to)
        try:
            # After the answer: what the receiver has by then, this node must have noted.
            ours = await driver.inspect(offer.volume_id)
            agreed = agree(offer, driver, ours, have.parsed(), choose_base=choose_base)
            if finishes and agreed.first is not None:
                lane.close(abort=True)
                return agreed, 0
            sent_bytes = 0
            if not agreed.there:
                sent_bytes = await _transfer(offer, agreed, driver, lane, progress, keep_rate)
        except BaseException:
            lane.close(abort=True)
            raise
        self._idle.keep(to, lane)
        return agreed, sent_bytes

    async def _offer(self, offer: Offer, to: Node) -> tuple[Lane, Have]:
        """Make the offer and hear what the receiver has, on an open connection if there is one."""
        kept = self._idle.take(to)
        if kept is not None:
            try:
                return kept, await _make_offer(offer, kept)
            except PeerUnavailable:
                if not kept.channel.parted:
                    raise
                # The other side has closed the idle connection: a new one may still work.
        lane = Lane(await self._connect(to), timing=self._timing, name=f"send-{to.name}")
        return lane, await _make_offer(offer, lane)

    async def _connect(self, to: Node) -> Channel:
        secured = await connect(
            to, context=self._context, cluster=self._cluster, timing=self._timing
        )
        peer = f"node {to.name}"
        if secured.protocol != PROTOCOL:
            secured.sock.close()
            raise PeerUnavailable(
                f"{peer} does not speak {PROTOCOL}",
                remedy="check the port, and that all nodes run compatible versions",
            )
        return secured.channel(peer=peer, timing=self._timing, listens=True)


async def _make_offer(offer: Offer, lane: Lane) -> Have:
    """The first part of the conversation; closes the lane where it fails."""
    try:
        have = await lane.run(partial(_ask, lane.channel, Offered.of(offer)))
        if not isinstance(have, Have):
            raise lane.channel.unexpected(have)
    except BaseException:
        lane.close(abort=True)
        raise
    return have


async def _transfer(
    offer: Offer,
    agreed: Agreement,
    driver: Driver,
    lane: Lane,
    progress: Callable[[int], None],
    keep_rate: Callable[[int], None],
) -> int:
    """The rest of the conversation; returns the stream's bytes."""
    channel, base = lane.channel, agreed.base
    report = _reporter(progress, asyncio.get_running_loop())
    try:
        async with _opened(offer, agreed, driver) as pipe:
            sent_bytes = await lane.run(partial(_stream, channel, pipe, base, report, keep_rate))
    except PannierError as error:
        if channel.failure is None:
            await _tell(lane, error)
        elif error is not channel.failure:
            # The driver only knows that its reader went away; the channel knows why.
            raise channel.failure from error
        raise
    progress(sent_bytes)
    answer = await lane.run(partial(_ask, channel, End(sent_bytes)))
    if not isinstance(answer, Done):
        raise channel.unexpected(answer)
    return sent_bytes


def _opened(offer: Offer, agreed: Agreement, driver: Driver) -> AbstractAsyncContextManager[int]:
    volume, generation, base = offer.volume_id, offer.generation, agreed.base
    if agreed.position and isinstance(driver, ResumingDriver):
        log.info("transport.goes-on", volume=offer.volume_name, at=agreed.position)
        return driver.send_rest(volume, generation, base=base, position=agreed.position)
    return driver.send(volume, generation, base=base)


def _ask(channel: Channel, message: Message) -> Message | int:
    channel.say(message)
    return channel.hear()


async def _tell(lane: Lane, error: PannierError) -> None:
    """Tell the receiver why the stream ends, if it can still be reached."""
    try:
        await lane.run(partial(lane.channel.say, Failed.of(error)))
        await lane.run(lane.channel.linger)
    except PannierError:
        return


def _stream(
    channel: Channel,
    pipe: int,
    base: Generation | None,
    report: Callable[[int], None],
    keep_rate: Callable[[int], None],
) -> int:
    """Send everything that comes out of ``pipe``; returns the number of bytes.

    ``keep_rate`` is called with the size of each piece, after it, and may sleep.
    """
    prepare_pipe(pipe)
    channel.say(Start(None if base is None else str(base)))
    sent_bytes = 0
    while size := _gather(channel, pipe, patient=sent_bytes > _HASTY_BYTES):
        channel.say_data(size)
        sent_bytes += size
        report(sent_bytes)
        keep_rate(size)
    return sent_bytes


def _gather(channel: Channel, pipe: int, *, patient: bool) -> int:
    """Read what comes out of ``pipe`` into the channel's body; the number of bytes, 0 at the end.

    For small files ``btrfs send`` writes a few hundred bytes at a time. Each would be a packet of
    its own and wake four processes; a ``patient`` sender lets some come together first.
    """
    size, until = 0, time.monotonic() + _PATIENCE_SECONDS
    while size < len(channel.body):
        try:
            got = os.readv(pipe, [channel.body[size:]])
        except BlockingIOError:
            if not size:
                channel.wait_pipe(pipe, events=select.POLLIN)
                until = time.monotonic() + _PATIENCE_SECONDS
            elif patient and time.monotonic() < until:
                time.sleep(_NAP_SECONDS)
            else:
                break
            continue
        if got == 0:
            break
        size += got
    return size


def _reporter(
    progress: Callable[[int], None], loop: asyncio.AbstractEventLoop
) -> Callable[[int], None]:
    """A function for the thread that passes progress on to the loop, some times a second."""
    due = 0.0

    def report(sent_bytes: int) -> None:
        nonlocal due
        now = time.monotonic()
        if now >= due:
            due = now + _PROGRESS_SECONDS
            loop.call_soon_threadsafe(progress, sent_bytes)

    return report
