"""Sending generations so that they arrive: where differences fail again and again, everything is sent.

Whoever sends generations does so by this: replication, and the last transfers of a move. So there is no way on which a
difference can fail for ever. What is known of the tries is in memory: after a restart they are counted anew.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import structlog

from pannier.agent.custody import Custody
from pannier.cluster.cluster import Cluster
from pannier.core.delivery import (
    SENT_ANEW,
    Begin,
    Tries,
    after_arrival,
    after_failure,
    is_refusal,
)
from pannier.core.errors import PannierError
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
    """Of a volume's history, by the volume's name."""

    volume: str
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
        """What the volumes' histories do not say yet."""
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
        in the end by everything."""
        send = partial(self._send, to=to, driver=driver, progress=progress, may_wait=None)
        for _ in range(self._pace.refused_tries):
            this = _Try()
            try:
                return await send(offer, this)
            except PannierError as error:
                if not is_refusal(error) or this.begin is None or this.begin.base is None:
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
        self._note(copy, after_arrival(self._of(copy), begin=this.begin))
        return sent

    async def run(self) -> None:
        """Write the lines of the volumes' histories, for ever: run as a task. No transfer waits for the store."""
        while True:
            await self._has_untold.wait()
            for copy, line in list(self._untold.items()):
                await self._tell(copy, line)
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
        if now.unfit != before.unfit:
            log.error(
                "transfer.anew",
                volume=offer.volume_name,
                node=copy[1],
                base=str(now.unfit),
                why=now.why,
            )
            if before.unfit is None:  # otherwise no difference has arrived since the last line
                self._untold[copy] = _Line(offer.volume_name, now.why)
                self._has_untold.set()

    def _forget_others(self) -> None:
        """Forget the copies of volumes that this node does not hold any more."""
        me = self._cluster.node
        held = {v.id for v in self._cluster.catalog.volumes() if v.grant.node == me}
        self._tries = {copy: tries for copy, tries in self._tries.items() if copy[0] in held}
        self._untold = {copy: line for copy, line in self._untold.items() if copy[0] in held}

    async def _tell(self, copy: _Copy, line: _Line) -> None:
        volume = self._cluster.catalog.volume(line.volume)
        is_mine = volume is not None and (volume.id, volume.grant.node) == (
            copy[0],
            self._cluster.node,
        )
        if (
            volume is None
            or not is_mine
            or await self._custody.note(volume, SENT_ANEW, line.why, of=copy[1])
        ):
            self._untold.pop(copy, None)
