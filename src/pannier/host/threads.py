"""Threads for blocking work that may take long, apart from the event loop's default executor."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future
from queue import SimpleQueue
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class _OwnThreads(Executor):
    """Threads for work that may take hours. One whose work has ended takes the next: to start one
    stops the event loop until it runs, which takes tens of milliseconds on busy processors.

    They block all signals, which are for the main thread.
    """

    _MOST_FREE = 16
    """More of them end with their work. Each costs some 50 KiB."""

    def __init__(self) -> None:
        self._free: list[SimpleQueue[Callable[[], None]]] = []

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Have it done at once. It runs to its end, whether or not somebody waits for it."""
        future: Future[T] = Future()
        future.set_running_or_notify_cancel()

        def work() -> None:
            try:
                result = fn(*args, **kwargs)
            except BaseException as error:
                future.set_exception(error)
            else:
                future.set_result(result)

        try:
            self._free.pop().put(work)
        except IndexError:
            begin: SimpleQueue[Callable[[], None]] = SimpleQueue()
            begin.put(work)
            threading.Thread(target=self._serve, args=(begin,), name="own", daemon=True).start()
        return future

    def _serve(self, mine: SimpleQueue[Callable[[], None]]) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        while True:
            mine.get()()
            if len(self._free) >= self._MOST_FREE:
                return
            self._free.append(mine)


_own_threads = _OwnThreads()


def in_own_thread(function: Callable[[], T]) -> asyncio.Future[T]:
    """Have ``function`` run at once in a thread of its own, for work that may take hours, or that nothing may delay."""
    return asyncio.get_running_loop().run_in_executor(_own_threads, function)
