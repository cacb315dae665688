"""Connections that are open and have nothing to do, kept for the next offer to the same node.

With a new connection, a small difference would wait for two round trips and a handshake first.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from pannier.core.node import Node
from pannier.transport.channel import TransportTiming
from pannier.transport.lane import Lane


@dataclass(slots=True, eq=False)
class _Kept:
    """A connection, the loop's time until which it is kept, and the timer for the next check."""

    lane: Lane
    until: float
    timer: asyncio.TimerHandle | None = None


_Key = tuple[str, str, int, str]


def _key(node: Node) -> _Key:
    """What must be the same for a connection to ``node`` to be used again."""
    return node.name, node.address, node.transport_port, node.pin


class IdleConnections:
    """Idle connections by node. Only the event loop calls the methods; nobody else uses a kept one."""

    def __init__(self, timing: TransportTiming) -> None:
        self._timing = timing
        self._kept: dict[_Key, list[_Kept]] = {}

    def keep(self, to: Node, lane: Lane) -> None:
        """Keep a connection whose conversation has ended, for at most ``TransportTiming.idle``."""
        kept = _Kept(lane, asyncio.get_running_loop().time() + self._timing.idle)
        self._kept.setdefault(_key(to), []).append(kept)
        self._look_later(_key(to), kept)

    def take(self, to: Node) -> Lane | None:
        """One that still works, if there is any; those that do not are closed."""
        key = _key(to)
        while key in self._kept:
            kept = self._kept[key][-1]  # the last one used: the others may grow old
            self._remove(key, kept)
            if kept.lane.channel.usable():
                return kept.lane
            kept.lane.close(abort=True)
        return None

    def close(self) -> None:
        """Close all."""
        for key, several in list(self._kept.items()):
            for kept in list(several):
                self._remove(key, kept)
                kept.lane.close(abort=False)

    def _look_later(self, key: _Key, kept: _Kept) -> None:
        loop = asyncio.get_running_loop()
        due = min(kept.until, loop.time() + self._timing.stall / 4)
        kept.timer = loop.call_at(due, self._look, key, kept)

    def _look(self, key: _Key, kept: _Kept) -> None:
        """Hear the other side and let it hear us, or close what is old or does not work any more."""
        old = asyncio.get_running_loop().time() >= kept.until
        if not old and kept.lane.channel.usable():
            self._look_later(key, kept)
            return
        self._remove(key, kept)
        kept.lane.close(abort=not old)

    def _remove(self, key: _Key, kept: _Kept) -> None:
        if kept.timer is not None:
            kept.timer.cancel()
        self._kept[key].remove(kept)
        if not self._kept[key]:
            del self._kept[key]
