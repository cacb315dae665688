"""Threads at one end of a pipe, for streams that this process makes, reads or throws away."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

from pannier.host.process import has_reader, open_pipe
from pannier.storage.blocking import (
    finished,
    in_own_thread,
    told_as_not_sent,
    told_as_storage_error,
)

T = TypeVar("T")
_CHUNK_BYTES = 1 << 20


@asynccontextmanager
async def feeding(write: Callable[[int], None]) -> AsyncIterator[int]:
    """The read end of a pipe that ``write`` fills from a thread.

    Raises:
        StorageError: ``write`` failed, or the block did not read to the end. Unreadable: the disk failed it.
    """
    reader, writer = open_pipe()

    def work() -> None:
        try:
            with told_as_not_sent("send the tree to its end"):
                write(writer)
        finally:
            os.close(writer)

    feeder = in_own_thread(work)
    try:
        yield reader
    except BaseException:
        os.close(reader)  # breaks the pipe, which ends the thread
        await asyncio.wait([feeder])
        feeder.exception()
        raise
    os.close(reader)
    await finished(feeder)


@asynccontextmanager
async def reading(
    read: Callable[[int, threading.Event], T],
) -> AsyncIterator[tuple[int, asyncio.Future[T]]]:
    """The write end of a pipe that ``read`` empties in a thread, and what it will return.

    Args:
        read: gets the read end, and an event that is set when nobody waits any more. The pipe's end then ends it soon
            anyway, unless it is busy for long without reading.

    Raises:
        StorageError: ``read`` failed.
    """
    reader, writer = open_pipe()
    stop = threading.Event()

    def work() -> T:
        try:
            with told_as_storage_error("receive the tree"):
                return read(reader, stop)
        finally:
            os.close(reader)

    result = in_own_thread(work)
    try:
        yield writer, result
    except BaseException as error:
        # If the pipe broke, the reader gave up in the middle, and its error is the cause.
        gave_up = isinstance(error, (BrokenPipeError, ConnectionResetError))
        gave_up = gave_up and not has_reader(writer)
        stop.set()
        os.close(writer)  # the end of the stream, which ends the thread
        await asyncio.wait([result])
        if (reason := result.exception()) and gave_up:
            raise reason from error
        raise
    os.close(writer)
    try:
        await asyncio.shield(result)
    except asyncio.CancelledError:
        stop.set()
        await asyncio.wait([result])
        result.exception()  # retrieved, so that asyncio does not log it
        raise


@asynccontextmanager
async def swallow_stream() -> AsyncIterator[int]:
    """A pipe whose other end reads all and keeps nothing."""
    reader, writer = open_pipe()
    drain = in_own_thread(lambda: _drain(reader))
    try:
        yield writer
    finally:
        os.close(writer)
        await asyncio.shield(drain)


def _drain(reader: int) -> None:
    try:
        while os.read(reader, _CHUNK_BYTES):
            pass
    finally:
        os.close(reader)
