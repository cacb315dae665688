"""Whose turn it is to be brought up to date: a few copies at a time for each node, the smallest first.

A node that was away comes back with all its copies behind, often hundreds. Sent all at once, each would
be complete only when nearly all are, and whoever writes meanwhile would share disk and network with all
of them. Two small ones after the other take a processor, too. So there may be a rest after each.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field


@dataclass(eq=False, slots=True)
class _Waiter:
    volume: str
    size: int
    admitted: asyncio.Event = field(default_factory=asyncio.Event)


class CatchUps:
    """The copies that are sent what they lack, and those that wait for that."""

    def __init__(self, *, at_once: int) -> None:
        """``at_once`` is the number for each node."""
        self._at_once = at_once
        self._waiting: defaultdict[str, list[_Waiter]] = defaultdict(list)
        self._running: defaultdict[str, list[_Waiter]] = defaultdict(list)

    @asynccontextmanager
    async def turn(
        self, volume: str, node: str, *, size: int, rest: Callable[[float], float]
    ) -> AsyncIterator[None]:
        """Wait for this copy's turn, and have it until the end of the block.

        Args:
            volume: an id. size: what may have to be sent, in bytes.
            rest: how long nobody else has this turn after the block, by the time that the block took; both in seconds.
        """
        waiter = _Waiter(volume, size)
        self._waiting[node].append(waiter)
        self._admit(node)
        loop, began = asyncio.get_running_loop(), None
        try:
            await waiter.admitted.wait()
            began = loop.time()
            yield
        finally:
            if waiter in self._waiting[node]:
                self._waiting[node].remove(waiter)
            else:
                after = 0.0 if began is None else rest(loop.time() - began)
                if after > 0:
                    loop.call_later(after, self._end, waiter, node)
                else:
                    self._end(waiter, node)

    def hurry(self, volume: str, node: str) -> None:
        """Somebody waits for this copy: it is its turn now, beside the others."""
        for waiter in [each for each in self._waiting[node] if each.volume == volume]:
            self._start(waiter, node)

    def waiting(self, node: str) -> int:
        """How many copies on a node wait for their turn."""
        return len(self._waiting[node])

    def _admit(self, node: str) -> None:
        while self._waiting[node] and len(self._running[node]) < self._at_once:
            self._start(min(self._waiting[node], key=lambda each: each.size), node)

    def _end(self, waiter: _Waiter, node: str) -> None:
        self._running[node].remove(waiter)
        self._admit(node)

    def _start(self, waiter: _Waiter, node: str) -> None:
        self._waiting[node].remove(waiter)
        self._running[node].append(waiter)
        waiter.admitted.set()
