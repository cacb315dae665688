"""Threads for blocking work that may take long, apart from the event loop's default executor."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from queue import SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")
_Outcome = TypeVar("_Outcome")


class _OwnThreads:
    """Threads for work that may take hours. One whose work has ended takes the next: to start one
    stops the event loop until it runs, which takes tens of milliseconds on busy processors.

    They block all signals, which are for the main thread.
    """

    _MOST_FREE = 16
    """More of them end with their work. Each costs some 50 KiB."""

    def __init__(self) -> None:
        self._free: list[SimpleQueue[Callable[[], None]]] = []

    def run(self, work: Callable[[], None]) -> None:
        """Have ``work``, which raises nothing, done at once."""
        try:
            self._free.pop().put(work)
        except IndexError:
            begin: SimpleQueue[Callable[[], None]] = SimpleQueue()
            begin.put(work)
            threading.Thread(target=self._serve, args=(begin,), name="own", daemon=True).start()

    def _serve(self, mine: SimpleQueue[Callable[[], None]]) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        while True:
            mine.get()()
            if len(self._free) >= self._MOST_FREE:
                return
            self._free.append(mine)


_own_threads = _OwnThreads()


def in_own_thread(function: Callable[[], T]) -> asyncio.Future[T]:
    """Have ``function`` run at once in a thread of its own, for work that may take hours."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def work() -> None:
        try:
            result = function()
        except BaseException as error:
            tell(future.set_exception, error)
        else:
            tell(future.set_result, result)

    def tell(how: Callable[[_Outcome], None], outcome: _Outcome) -> None:
        with suppress(RuntimeError):  # the loop was closed
            loop.call_soon_threadsafe(_unless_done, future, how, outcome)

    _own_threads.run(work)
    return future


def _unless_done(
    future: asyncio.Future[Any], tell: Callable[[_Outcome], None], outcome: _Outcome
) -> None:
    if not future.done():  # nobody waits for it any more
        tell(outcome)
