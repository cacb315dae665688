"""What is sent between two btrfs pools: a header of ours, then the kernel's stream.

The header tells a small stream from a large one, so that the receiver can apply a small one by
itself (:mod:`pannier.storage.btrfs.apply`) and leave a large one to ``btrfs receive``. For a small one
it also has a hash: checking the checksums in the stream itself would take too long in Python.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import struct
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Protocol

from pannier.core.errors import Corrupt, PannierError, PoolFull
from pannier.core.generation import Generation
from pannier.host.process import (
    Finished,
    Running,
    has_reader,
    open_pipe,
    pipe_bytes,
    waiting_bytes,
)
from pannier.storage.blocking import (
    finished,
    in_own_thread,
    in_thread,
    told_as_not_sent,
)
from pannier.storage.btrfs import ioctl
from pannier.storage.btrfs.layout import Home, existing_tree
from pannier.storage.commands import start

SMALL_BYTES = 256 * 1024
"""Above this, `btrfs receive` is faster than we are."""
_SMALL_WITHIN_S = 1.0  # a stream that takes longer is sent as a large one, as it comes
_LOOK_S = 0.005
_HEADER = struct.Struct(">8sI32s")
_MAGIC = b"pannier1"
_LARGE = _HEADER.pack(_MAGIC, 0, bytes(32))

_WRITE_OUT_S = 1.0
_END_S = 600.0  # after the stream's end there is little left to do, but disks can be slow


@asynccontextmanager
async def send_stream(
    home: Home, generation: Generation, *, base: Generation | None
) -> AsyncIterator[int]:
    """See :meth:`pannier.storage.base.Driver.send`.

    Raises:
        StorageError: it failed, or the block left more unread than a pipe holds; Corrupt.
    """
    reader, writer = open_pipe()
    os.write(writer, _LARGE)
    sending = in_own_thread(partial(_send, home, generation, base, writer))
    try:
        try:
            if await _is_small(sending, reader):
                _turn_small(reader, writer)
        finally:
            sending.add_done_callback(lambda _: os.close(writer))
        yield reader
    except BaseException:
        os.close(reader)  # breaks the pipe, which ends the thread
        await asyncio.wait([sending])
        sending.exception()
        raise
    os.close(reader)
    await finished(sending)


def _send(home: Home, generation: Generation, base: Generation | None, writer: int) -> None:
    with told_as_not_sent(f"send generation {generation} of volume {home.volume}"):
        tree = existing_tree(home, generation)
        parent = existing_tree(home, base) if base is not None else None
        ioctl.send(tree, parent=parent, into=writer)


async def _is_small(sending: asyncio.Future[None], reader: int) -> bool:
    """Wait for the stream's end. False as soon as it is too large or too slow for a small one."""
    # A pipe may be full with half of its bytes: pieces do not share its pages.
    limit = _HEADER.size + min(SMALL_BYTES, pipe_bytes(reader) // 2)
    for _ in range(round(_SMALL_WITHIN_S / _LOOK_S)):
        await asyncio.wait([sending], timeout=_LOOK_S)
        if waiting_bytes(reader) > limit:
            return False
        if sending.done():
            sending.result()
            return True
    return False


def _turn_small(reader: int, writer: int) -> None:
    """Replace the header of the finished stream in the pipe by that of a small one."""
    stream = _read(reader, waiting_bytes(reader))[_HEADER.size :]
    os.write(writer, _HEADER.pack(_MAGIC, len(stream), _hash(stream)) + stream)


@asynccontextmanager
async def receive_stream(intake: Intake) -> AsyncIterator[int]:
    """A pipe to write a stream to; ``intake`` makes something of it.

    Raises:
        Corrupt: the stream was damaged, cut short or does not fit; PoolFull; StorageError.
    """
    reader, writer = open_pipe()
    whole = threading.Event()
    taking = asyncio.create_task(_take(reader, whole, intake))
    try:
        yield writer
    except BaseException as error:
        gave_up = isinstance(error, (BrokenPipeError, ConnectionResetError))
        gave_up = gave_up and not has_reader(writer)
        os.close(writer)  # the end of the stream, and so of the thread that reads it
        await finished(asyncio.ensure_future(_break_off(taking, gave_up=gave_up)))
        raise
    whole.set()
    os.close(writer)
    if receiving := await finished(taking):
        await receiving.end()
        await in_thread(intake.accept_large)


async def _break_off(taking: asyncio.Task[_Receiving | None], *, gave_up: bool) -> None:
    """Stop what reads the pipe. If it ``gave_up`` in the middle, raise its error, which says more."""
    await asyncio.wait([taking])
    if taking.exception() and not gave_up:
        return
    if receiving := taking.result():
        await (receiving.end() if gave_up else receiving.stop())


class Intake(Protocol):
    """What is done with a stream.

    All methods block. Each may raise StorageError when a system call fails, and PoolFull when that is
    for lack of room.
    """

    def apply_small(self, stream: bytes) -> None:
        """Make the generation of a whole small stream.

        Raises:
            Corrupt: the stream is damaged or does not fit its base, or the base is not here.
        """
        ...

    def begin_large(self) -> Path:
        """A directory for ``btrfs receive`` to receive into."""
        ...

    def accept_large(self) -> None:
        """Make the generation of what ``btrfs receive`` received there.

        Raises:
            Corrupt: it is not complete or does not fit its base, or the base is not here.
        """
        ...


async def _take(reader: int, whole: threading.Event, intake: Intake) -> _Receiving | None:
    """Take in a small stream, or start ``btrfs receive`` for a large one."""
    try:
        into = await in_own_thread(partial(_take_small, reader, whole, intake))
        if into is None:
            return None
        return _Receiving(
            await start(["btrfs", "receive", "-q", "-e", "-C", str(into)], stdin=reader), into=into
        )
    finally:
        os.close(reader)


def _take_small(reader: int, whole: threading.Event, intake: Intake) -> Path | None:
    """Make the generation of a small stream, if its writer says that it is ``whole``.

    Returns:
        The directory to receive into if a large stream follows, else None.
    """
    header = _read(reader, _HEADER.size)
    if header == _LARGE:
        return intake.begin_large()
    magic, size, expected = _HEADER.unpack(header.ljust(_HEADER.size))
    stream = _read(reader, min(size, SMALL_BYTES))
    if magic != _MAGIC or len(stream) != size or _hash(stream) != expected:
        raise Corrupt("the stream is garbled, or was cut short", remedy="send it again")
    while os.read(reader, 1024):
        pass  # only at the end of the pipe has the writer decided about ``whole``
    if whole.is_set():
        intake.apply_small(stream)
    return None


def _read(reader: int, size: int) -> bytes:
    """So many bytes, or fewer at the end."""
    found = b""
    while len(found) < size and (piece := os.read(reader, size - len(found))):
        found += piece
    return found


def _hash(stream: bytes) -> bytes:
    return hashlib.sha256(stream).digest()


class _Receiving:
    """``btrfs receive`` at work.

    What it has received is written out to the disk meanwhile, so that little is left for the end.
    """

    def __init__(self, running: Running, *, into: Path) -> None:
        self._running = running
        self._writing_out = asyncio.create_task(_write_out(into))

    async def end(self) -> None:
        """Wait for its end, which is near. If it failed, raise its error."""
        try:
            done = await self._running.wait(timeout_s=_END_S)
        finally:
            await self._rest()
        if done.status:
            raise _receive_error(done)

    async def stop(self) -> None:
        """End it."""
        await self._running.stop()
        await self._rest()

    async def _rest(self) -> None:
        self._writing_out.cancel()
        await asyncio.wait([self._writing_out])


async def _write_out(into: Path) -> None:
    with suppress(OSError):  # the sync at the end reports a bad disk
        while True:
            await asyncio.sleep(_WRITE_OUT_S)
            await in_thread(ioctl.sync_filesystem, into)


def _receive_error(finished: Finished) -> PannierError:
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
