"""The listeners take turns, so that a container that makes very many sync calls delays no other one much."""

from __future__ import annotations

import asyncio
import select
from collections.abc import Callable

_AT_ONCE = 8
"""How many calls are taken in a row before the event loop's other work has its turn. Each takes some 50 us, and a group
needs about ten turns of the loop."""


class Turns:
    """Asks which listeners have something to say, and lets each of these take one call before any takes a second one.

    The kernel keeps the order: what it has told goes to the end of its list. For one event loop; not thread-safe.
    """

    def __init__(self) -> None:
        self._ready = select.epoll()
        self._told: dict[int, Callable[[int], None]] = {}  # by descriptor

    def add(self, fd: int, told: Callable[[int], None]) -> None:
        """Call ``told`` with the events of select.epoll, once for each turn, while ``fd`` has any."""
        if not self._told:
            asyncio.get_running_loop().add_reader(self._ready.fileno(), self._turn)
        self._ready.register(fd, select.EPOLLIN)
        self._told[fd] = told

    def rest(self, fd: int) -> None:
        """Tell only of the end (EPOLLHUP) from now on."""
        self._ready.modify(fd, 0)

    def go_on(self, fd: int) -> None:
        """Undo :meth:`rest`."""
        self._ready.modify(fd, select.EPOLLIN)

    def remove(self, fd: int) -> None:
        """Tell no more; called before ``fd`` is closed."""
        # Said expressly: another descriptor of the same listener, which systemd keeps, would go on being told.
        self._ready.unregister(fd)
        del self._told[fd]
        if not self._told:
            asyncio.get_running_loop().remove_reader(self._ready.fileno())

    def _turn(self) -> None:
        left = _AT_ONCE
        while left > 0 and (ready := self._ready.poll(0, left)):
            left -= len(ready)
            for fd, events in ready:
                if told := self._told.get(fd):  # another one's turn may have removed it
                    told(events)
