"""Blocking work in threads, and OSErrors told as the storage errors that they mean."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import ParamSpec, TypeVar

from pannier.core.errors import PoolFull, StorageError

P = ParamSpec("P")
T = TypeVar("T")


async def in_thread(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run ``function`` in a thread. A cancelled caller still waits for the function to end.

    A thread cannot be stopped; letting go of it would let the next operation on the same volume
    run beside it.
    """
    work = asyncio.ensure_future(asyncio.to_thread(function, *args, **kwargs))
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        await asyncio.wait([work])
        if not work.cancelled():
            work.exception()  # looked at, so that asyncio does not complain about it
        raise


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
                message, remedy="see `dmesg` for errors of the disk; move the volumes elsewhere"
            )
        case _:
            return StorageError(message, remedy="see the log of pannierd on this node")
