"""``btrfs send`` and ``btrfs receive`` at the ends of a pipe."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from pannier.core.errors import Corrupt, PoolFull, StorageError
from pannier.storage.process import Finished, Running, has_reader, open_pipe, start

_END_S = 600.0  # after the stream's end there is little left to do, but disks can be slow


@asynccontextmanager
async def send_stream(tree: Path, *, parent: Path | None) -> AsyncIterator[int]:
    """Stream a read-only subvolume, whole or as the difference to ``parent``, into a pipe."""
    options = ["-p", str(parent)] if parent is not None else []
    reader, writer = open_pipe()
    try:
        try:
            running = await start(["btrfs", "send", "-q", *options, str(tree)], stdout=writer)
        finally:
            os.close(writer)
        try:
            yield reader
        except BaseException:
            await running.stop()
            raise
    finally:
        os.close(reader)
    # Whoever did not read to the end broke the pipe, and the sender's failure says so.
    finished = await running.wait(timeout_s=_END_S)
    if finished.status:
        raise finished.error(remedy="try again; see `dmesg` for errors of the disk")


@asynccontextmanager
async def receive_stream(into: Path) -> AsyncIterator[int]:
    """Receive a subvolume into a directory from what is written to a pipe.

    Raises:
        Corrupt: the stream was damaged, cut short or does not fit; PoolFull; StorageError.
    """
    reader, writer = open_pipe()
    try:
        try:
            running = await start(["btrfs", "receive", "-q", "-e", str(into)], stdin=reader)
        finally:
            os.close(reader)
        try:
            yield writer
        except (BrokenPipeError, ConnectionResetError):
            if has_reader(writer):  # not ours: the connection that the block reads from
                await running.stop()
                raise
            # The receiver gave up in the middle; what it said is the better message.
            await _check_received(running)
            raise
        except BaseException:
            await running.stop()
            raise
    finally:
        os.close(writer)
    await _check_received(running)


async def _check_received(running: Running) -> None:
    finished = await running.wait(timeout_s=_END_S)
    if finished.status:
        raise _receive_error(finished)


def _receive_error(finished: Finished) -> StorageError:
    words = finished.stderr
    if "No space left" in words:
        return PoolFull(
            f"no room to receive: {finished.last_words}",
            remedy="delete old snapshots or volumes, or enlarge the pool",
        )
    if "Input/output error" in words or "Read-only file system" in words:
        return finished.error(remedy="see `dmesg` for errors of the disk")
    return Corrupt(
        f"the stream could not be received: {finished.last_words}", remedy="send it again"
    )
