"""Blocking work in threads, and the translation of OSErrors into storage errors."""

from __future__ import annotations

import asyncio
import contextvars
import errno
import functools
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from queue import SimpleQueue
from typing import ParamSpec, TypeVar

from pannier.core.errors import PoolFull, StorageError

P = ParamSpec("P")
T = TypeVar("T")

# Our own: asyncio's default pool has six threads on two cores, and others need those.
_threads = ThreadPoolExecutor(max_workers=32, thread_name_prefix="storage")


async def in_thread(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run ``function`` in a thread. A cancelled caller still waits for the function to end.

    A thread cannot be stopped. If the caller did not wait, the next operation on the same volume
    would run at the same time.
    """
    context = contextvars.copy_context()  # what is logged there keeps the volume and node
    call = functools.partial(context.run, function, *args, **kwargs)
    return await finished(asyncio.get_running_loop().run_in_executor(_threads, call))


async def finished(work: asyncio.Future[T]) -> T:
    """Wait for work that ends soon and cannot be stopped. A cancelled caller waits too."""
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        await asyncio.wait([work])
        if not work.cancelled():
            work.exception()  # retrieved, so that asyncio does not log it
        raise


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
            threading.Thread(
                target=self._serve, args=(begin,), name="storage-stream", daemon=True
            ).start()

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


@contextmanager
def told_as_storage_error(what: str) -> Iterator[None]:
    """Turn OSError into the StorageError that it means; ``what`` reads as "cannot <what>"."""
    try:
        yield
    except OSError as error:
        raise storage_error(what, error) from error


def storage_error(what: str, error: OSError) -> StorageError:
    """The StorageError for a failed system call."""
    message = f"cannot {what}: {error.strerror or error}"
    if error.filename:
        message += f" ({error.filename!s})"
    match error.errno:
        case errno.ENOSPC:
            return PoolFull(message, remedy="delete old snapshots or volumes, or enlarge the pool")
        case errno.EROFS | errno.EIO:
            return StorageError(
                message, remedy="see `dmesg` for errors of the disk, and `pannier doctor`"
            )
        case _:
            return StorageError(message, remedy="see the log of pannierd on this node")
