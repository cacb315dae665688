"""Threads for blocking work that may take long, apart from the event loop's default executor."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import TypeVar

T = TypeVar("T")


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
    outcome: Future[T] = Future()
    outcome.set_running_or_notify_cancel()

    def work() -> None:
        try:
            outcome.set_result(function())
        except BaseException as error:
            outcome.set_exception(error)

    future = asyncio.wrap_future(outcome)
    _own_threads.run(work)
    return future
