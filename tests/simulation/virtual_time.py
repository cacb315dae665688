"""An event loop in which time passes only when nobody has anything to do, and threads are inline.

Whatever runs in it takes no real time and, for one seed, happens in the same order again.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class Deadlock(Exception):
    """Everybody waits for something that nothing will bring."""


class _Selector(selectors.SelectSelector):
    """Lets time pass instead of waiting for input."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise Deadlock("everybody waits for something that nothing will bring")
        self.now += max(timeout, 0.0)
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """See the module."""

    def __init__(self) -> None:
        self._virtual = _Selector()
        super().__init__(self._virtual)

    def time(self) -> float:
        return self._virtual.now

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
