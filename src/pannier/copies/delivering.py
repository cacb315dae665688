"""Sending generations so that they arrive: where differences fail again and again, everything is sent.

Whoever sends generations does so by this: replication, and the last transfers of a move. So there is no way on which a
difference can fail for ever. What is known of the tries is in memory: after a restart they are counted anew.

What this node's own disk does not give back is told in the volume's history, until a copy that failed by it has arrived.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import structlog

from pannier.agent.custody import Custody
from pannier.cluster.cluster import Cluster
from pannier.core import damage
from pannier.core.delivery import (
    SENT_ANEW,
    Begin,
    Tries,
    after_arrival,
    after_failure,
    is_refusal,
)
from pannier.core.errors import PannierError, Unreadable
from pannier.core.generation import Generation
from pannier.core.node import Node
from pannier.core.pace import CopiesPace
from pannier.storage.base import Driver
from pannier.transport.base import ChoosingSender, Offer, Sender, Sent

log = structlog.get_logger(__name__)

_Copy = tuple[str, str]
"""A volume's id, and the node of the copy."""


@dataclass(frozen=True, slots=True)
class _Line:
    """Of a volume's history, by the volume's name: what is said of which node, and why."""

    volume: str
    what: str
    node: str
    why: str


@dataclass(slots=True)
class _Try:
    """One transfer. ``begin``: how it began; None until it does."""

    begin: Begin | None = None


class Delivering(Sender):
    """Sends generations of the volumes that this node holds."""

    def __init__(
        self, *, cluster: Cluster, custody: Custody, sender: ChoosingSender, pace: CopiesPace
    ) -> None:
        self._cluster = cluster
        self._custody = custody
        self._sender = sender
        self._pace = pace
        self._tries: dict[_Copy, Tries] = {}
        self._untold: dict[_Copy, _Line] = {}
        """What the volumes' histories do not say yet, by the volume's id and the node that it is about."""
        self._has_untold = asyncio.Event()

    async def send(
        self,
        offer: Offer,
        *,
        to: Node,
        driver: Driver,
        progress: Callable[[int], None] | None = None,
        may_wait: Callable[[], bool] | None = None,
    ) -> Sent:
        """See :meth:`pannier.transport.base.Sender.send`.

        Raises:
            PannierError: as there; also where it failed in a way that was not foreseen.
        """
        return await self._send(
            offer, _Try(), to=to, driver=driver, progress=progress, may_wait=may_wait
        )

    async def insist(
        self, offer: Offer, *, to: Node, driver: Driver, progress: Callable[[int], None]
    ) -> Sent:
        """As :meth:`send`, where a container waits: a difference that is refused is followed at once by the next try, and
        in the end by everything. Not so where this node cannot read it: everything is more than that, and takes longer."""
        send = partial(self._send, to=to, driver=driver, progress=progress, may_wait=None)
        for _ in range(self._pace.refused_tries):
            this = _Try()
            try:
                return await send(offer, this)
            except PannierError as error:
                refused = is_refusal(error) and not isinstance(error, Unreadable)
                if not refused or this.begin is None or this.begin.base is None:
                    raise
        return await send(offer, _Try())

    async def _send(
        self,
        offer: Offer,
        this: _Try,
        *,
        to: Node,
        driver: Driver,
        progress: Callable[[int], None] | None,
        may_wait: Callable[[], bool] | None,
    ) -> Sent:
        copy = (offer.volume_id, to.name)

        def choose_base(common: Generation | None, arrived: int) -> Generation | None:
            base = self._of(copy).base(common)
            this.begin = Begin(base, arrived if base == common else 0)
            return base

        try:
            sent = await self._sender.send(
                offer,
                to=to,
                driver=driver,
                progress=progress,
                may_wait=may_wait,
                choose_base=choose_base,
            )
        except PannierError as error:
            self._failed(copy, offer, error, this.begin)
            raise
        except Exception as error:
            log.exception("transfer.bug", volume=offer.volume_name, node=to.name)
            told = PannierError(
                f"sending failed in a way that was not foreseen: {error!r}",
                remedy="see the log of pannierd on the holder, and report it",
            )
            self._failed(copy, offer, told, this.begin)
            raise told from error
        self._arrived(copy, offer, this.begin)
        return sent

    async def run(self) -> None:
        """Write the lines of the volumes' histories, for ever: run as a task. No transfer waits for the store."""
        while True:
            await self._has_untold.wait()
            for about, line in list(self._untold.items()):
                await self._tell(about, line)
            if self._untold:
                await asyncio.sleep(self._pace.verify_finish)
            else:
                self._has_untold.clear()

    def tries(self, volume_id: str, node: str) -> Tries:
        """How the tries went to bring a copy up to date."""
        return self._of((volume_id, node))

    def _of(self, copy: _Copy) -> Tries:
        return self._tries.get(copy, Tries())

    def _note(self, copy: _Copy, tries: Tries) -> None:
        if tries == Tries():
            self._tries.pop(copy, None)
        else:
            self._tries[copy] = tries

    def _failed(self, copy: _Copy, offer: Offer, error: PannierError, begin: Begin | None) -> None:
        before = self._of(copy)
        now = after_failure(before, error, begin=begin, pace=self._pace)
        self._forget_others()
        self._note(copy, now)
        if now.unfit is not None and now.unfit != before.unfit:
            log.error(
                "transfer.anew",
                volume=offer.volume_name,
                node=copy[1],
                base=str(now.unfit),
                why=now.why,
            )
            # Otherwise no difference has arrived since the last line, or it is not the copy that fails.
            if before.unfit is None and not now.unreadable:
                self._say(copy, _Line(offer.volume_name, SENT_ANEW, copy[1], now.why))
        if isinstance(error, Unreadable):
            self._tell_unreadable(copy[0], offer.volume_name, error)

    def _tell_unreadable(self, volume_id: str, name: str, error: Unreadable) -> None:
        if not self._is_open(name, damage.DAMAGED, damage.UNREADABLE):
            me = self._cluster.node
            log.error("volume.unreadable", volume=name, why=error.message)
            self._say((volume_id, me), _Line(name, damage.UNREADABLE, me, error.message))

    def _arrived(self, copy: _Copy, offer: Offer, begin: Begin | None) -> None:
        before = self._of(copy)
        self._note(copy, after_arrival(before, begin=begin))
        read = before.unreadable or (begin is not None and begin.base is None and not begin.arrived)
        others = any(each[0] == copy[0] and its.unreadable for each, its in self._tries.items())
        me = self._cluster.node
        if read and not others and self._is_open(offer.volume_name, damage.UNREADABLE):
            self._say((copy[0], me), _Line(offer.volume_name, damage.WHOLE, me, ""))

    def _is_open(self, name: str, *words: str) -> bool:
        """Whether one of these is the last that a volume's history says of what this node holds, or will say."""
        volume = self._cluster.catalog.volume(name)
        if volume is None:
            return False
        untold = self._untold.get((volume.id, self._cluster.node))
        return (untold.what if untold else damage.last_of_holder(volume)) in words

    def _say(self, about: _Copy, line: _Line) -> None:
        self._untold[about] = line
        self._has_untold.set()

    def _forget_others(self) -> None:
        """Forget the copies of volumes that this node does not hold any more."""
        me = self._cluster.node
        held = {v.id for v in self._cluster.catalog.volumes() if v.grant.node == me}
        self._tries = {copy: tries for copy, tries in self._tries.items() if copy[0] in held}
        self._untold = {copy: line for copy, line in self._untold.items() if copy[0] in held}

    async def _tell(self, about: _Copy, line: _Line) -> None:
        volume = self._cluster.catalog.volume(line.volume)
        is_mine = volume is not None and (volume.id, volume.grant.node) == (
            about[0],
            self._cluster.node,
        )
        if (
            volume is None
            or not is_mine
            or await self._custody.note(volume, line.what, line.why, of=line.node)
        ) and self._untold.get(about) is line:
            del self._untold[about]
