"""Blocking work in threads, and the translation of OSErrors into storage errors."""

from __future__ import annotations

import asyncio
import contextvars
import errno
import functools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import ParamSpec, TypeVar

from pannier.core.errors import PoolFull, StorageError, Unreadable
from pannier.host.threads import in_own_thread as in_own_thread
from pannier.storage.slow_reading import DAMAGE

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


@contextmanager
def told_as_storage_error(what: str) -> Iterator[None]:
    """Turn OSError into the StorageError that it means; ``what`` reads as "cannot <what>"."""
    try:
        yield
    except OSError as error:
        raise storage_error(what, error) from error


@contextmanager
def told_as_not_sent(what: str) -> Iterator[None]:
    """As :func:`told_as_storage_error`, around what reads a generation and writes it to a pipe.

    Raises:
        Unreadable: the disk does not give it back.
    """
    try:
        yield
    except OSError as error:
        if error.errno in DAMAGE:
            raise Unreadable(
                f"cannot {what}: {error.strerror or error}", remedy="see `dmesg` on this node"
            ) from error
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
