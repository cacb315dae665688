"""An event loop in which time passes only when nobody has anything to do, and threads are inline.

Whatever runs in it takes no real time and, for one seed, happens in the same order again. What
belongs to an :data:`OWNER` can be frozen: nothing of it happens until it is thawed.
"""

from __future__ import annotations

import asyncio
import contextvars
import heapq
import selectors
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")
OWNER: contextvars.ContextVar[object] = contextvars.ContextVar("owner")
"""To whom a task belongs; inherited by the tasks and timers that it makes."""
BEGIN = 1000.0


class Deadlock(Exception):
    """Everybody waits for something that nothing will bring."""


class VirtualLoop(asyncio.SelectorEventLoop):
    """See the module."""

    # What follows from here on stands in for asyncio's waiting on sockets and the clock.
    _ready: Any
    _scheduled: Any
    _stopping: bool

    def __init__(self) -> None:
        self._virtual_now = BEGIN
        self._frozen: dict[object, list[asyncio.Handle]] = {}
        super().__init__(selectors.SelectSelector())

    def time(self) -> float:
        return self._virtual_now

    def freeze(self, owner: object) -> None:
        """Let nothing that belongs to ``owner`` happen from now on; its timers run on meanwhile."""
        self._frozen.setdefault(owner, [])

    def thaw(self, owner: object) -> None:
        """Let everything that should have happened meanwhile happen now."""
        self._ready.extend(self._frozen.pop(owner, ()))

    def is_frozen(self, owner: object) -> bool:
        return owner in self._frozen

    def _run_once(self) -> None:
        ready, scheduled, frozen = self._ready, self._scheduled, self._frozen
        if not ready and not self._stopping:
            while scheduled and scheduled[0]._cancelled:
                heapq.heappop(scheduled)._scheduled = False
            if not scheduled:
                raise Deadlock("everybody waits for something that nothing will bring")
            # Some time always passes: whoever waits for a moment so near that adding it changes
            # nothing would wait for ever.
            self._virtual_now = max(self._virtual_now + 1e-9, scheduled[0]._when)
            while scheduled and scheduled[0]._when <= self._virtual_now:
                handle = heapq.heappop(scheduled)
                handle._scheduled = False
                if not handle._cancelled:
                    ready.append(handle)
        for _ in range(len(ready)):
            handle = ready.popleft()
            if handle._cancelled:
                continue
            if frozen:
                kept = frozen.get(handle._context.get(OWNER, None))
                if kept is not None:
                    kept.append(handle)
                    continue
            handle._run()

    def run_in_executor(  # type: ignore[override]
        self, executor: Any, function: Callable[..., T], *args: Any
    ) -> asyncio.Future[T]:
        """Run at once, here: a thread's timing is nothing that could be repeated."""
        future: asyncio.Future[T] = self.create_future()
        try:
            result = function(*args)
        except BaseException as error:
            future.set_exception(error)
        else:
            future.set_result(result)
        return future


class VirtualTimePolicy(asyncio.DefaultEventLoopPolicy):
    """For pytest-asyncio: every test's loop is a virtual one."""

    def new_event_loop(self) -> asyncio.AbstractEventLoop:
        return VirtualLoop()


def run_virtual(work: Coroutine[Any, Any, T]) -> T:
    """``asyncio.run`` in virtual time."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(work)
