"""The socket on which a container runtime hands over a seccomp listener (runtime-spec, "seccomp").

Each listener comes over a connection of its own: a JSON text (the container process state), with the
descriptors attached.
"""

from __future__ import annotations

import array
import asyncio
import os
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec

from pannier.core.errors import InvalidInput

_CHUNK = 1 << 16
_LONGEST = 1 << 20
_MOST_FDS = 8
_RIGHTS = socket.CMSG_SPACE(_MOST_FDS * array.array("i").itemsize)


class _State(msgspec.Struct):
    id: str


class _Message(msgspec.Struct):
    """The fields of ContainerProcessState that are used here."""

    fds: list[str]
    pid: int
    state: _State
    metadata: str = ""


class _Metadata(msgspec.Struct):
    volumes: list[str] | None = None
    passing: bool = False


@dataclass(frozen=True, slots=True)
class Arrival:
    """A process that has just got its filter.

    Attributes:
        pid: the process, as this pid namespace numbers it.
        volumes: the names that ``pannier-runtime`` put into the metadata; None where there are none.
        passing: it sees other volumes beside these, as they come and go.
    """

    container: str
    pid: int
    volumes: Sequence[str] | None
    passing: bool


async def receive(connection: socket.socket, store: Callable[[int], None]) -> tuple[Arrival, int]:
    """Read one hand-over.

    Args:
        connection: non-blocking; stays open.
        store: called with the listener's descriptor as soon as it arrives, before the rest is read.

    Returns:
        the arrival, and the listener's descriptor, which the caller now owns.

    Raises:
        InvalidInput: it does not follow the specification; all descriptors were closed.
    """
    fds: list[int] = []
    text = b""
    try:
        while True:
            await readable(connection)
            part, came = _read(connection)
            fds += came
            if came and len(fds) == len(came) == 1:
                store(fds[0])
            if not part:
                break
            text += part
            if len(text) > _LONGEST:
                raise InvalidInput("a container's state of more than 1 MiB")
        return _decode(text, fds)
    except BaseException:
        for fd in fds:
            os.close(fd)
        raise


def _decode(text: bytes, fds: list[int]) -> tuple[Arrival, int]:
    try:
        message = msgspec.json.decode(text, type=_Message)
    except msgspec.MsgspecError as error:
        raise InvalidInput(f"a container's state that cannot be read: {error}") from error
    if message.fds != ["seccompFd"] or len(fds) != 1:
        raise InvalidInput(f"{len(fds)} descriptors, announced as {message.fds}")
    try:
        told = msgspec.json.decode(message.metadata or "{}", type=_Metadata)
    except msgspec.MsgspecError:
        told = _Metadata()
    return Arrival(message.state.id, message.pid, told.volumes, told.passing), fds[0]


def _read(connection: socket.socket) -> tuple[bytes, list[int]]:
    part, ancillary, _flags, _address = connection.recvmsg(_CHUNK, _RIGHTS, socket.MSG_CMSG_CLOEXEC)
    fds = array.array("i")
    for level, kind, payload in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds.frombytes(payload[: len(payload) - len(payload) % fds.itemsize])
    return part, list(fds)


async def readable(connection: socket.socket) -> None:
    """Wait until there is something to read, or to accept."""
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()
    loop.add_reader(connection, _settle, ready)
    try:
        await ready
    finally:
        loop.remove_reader(connection)


def _settle(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)
