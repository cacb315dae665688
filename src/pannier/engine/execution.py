"""Running a command in a container, and ending it: the engine itself can only begin one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import TypeVar

import aiohttp
import msgspec

from pannier.core.errors import PannierError
from pannier.engine.base import Executed
from pannier.engine.connection import EngineConnection

OUTPUT_BYTES = 16 * 1024
"""How much of the end of a command's output is kept."""
END_SECONDS = 5.0
_POLL_SECONDS = 0.05
_HEADER_BYTES = 8
_STDOUT = 1
# The engine makes this the leader of a session, so its process id is enough to kill its children too.
_SHELL = 'echo "$$"; exec sh -c "$1"'

T = TypeVar("T")


class _Made(msgspec.Struct, frozen=True, rename="pascal"):
    id: str


class _ExecState(msgspec.Struct, frozen=True, rename="pascal"):
    running: bool = False
    exit_code: int | None = None


@dataclass(slots=True)
class _Output:
    """What a command printed, without the first line, which is its process id."""

    number: bytes = b""
    numbered: bool = False
    kept: bytearray = field(default_factory=bytearray)

    def take(self, stream: int, content: bytes) -> None:
        if stream == _STDOUT and not self.numbered:
            number, line_end, content = content.partition(b"\n")
            self.number += number
            self.numbered = bool(line_end)
        self.kept += content
        del self.kept[:-OUTPUT_BYTES]

    @property
    def text(self) -> str:
        return self.kept.decode("utf-8", "replace")


class Execution:
    """Commands in one engine's containers.

    Args:
        call_seconds: for each call but the one that lasts as long as the command.
    """

    def __init__(self, connection: EngineConnection, *, call_seconds: float) -> None:
        self._connection = connection
        self._call_seconds = call_seconds

    async def run(self, container: str, command: str, *, timeout_seconds: float) -> Executed:
        """See :meth:`pannier.engine.base.Engine.execute`; ``container`` is part of a URL."""
        shell = ["sh", "-c", _SHELL, "sh", command]
        made = await self._make(container, shell)
        output = _Output()
        try:
            async with asyncio.timeout(timeout_seconds):
                async for stream, content in self._frames(made):
                    output.take(stream, content)
        except TimeoutError:
            await self._end(container, made, output)
            return Executed(None, output.text)
        except BaseException:
            await self._end(container, made, output)
            raise
        state = await self._state(made)
        if not output.numbered:
            raise self._connection.unavailable(f"could not run sh there: {output.text.strip()}")
        return Executed(state.exit_code, output.text)

    async def _make(self, container: str, words: list[str]) -> str:
        path = f"/containers/{container}/exec"
        body = {"AttachStdout": True, "AttachStderr": True, "Cmd": words}
        answer = await self._connection.post(path, body, timeout_seconds=self._call_seconds)
        return self._decode(path, answer, _Made).id

    def _decode(self, path: str, answer: bytes, kind: type[T]) -> T:
        try:
            return msgspec.json.decode(answer, type=kind)
        except (msgspec.MsgspecError, UnicodeError) as error:
            raise self._connection.unavailable(f"gave no answer to {path}: {error}") from error

    async def _frames(self, made: str) -> AsyncIterator[tuple[int, bytes]]:
        """Start the command, and yield what it prints, each piece with its stream, until it ends."""
        path = f"/exec/{made}/start"
        try:
            async with self._connection.open().post(
                path,
                json={"Detach": False, "Tty": False},
                timeout=aiohttp.ClientTimeout(total=None),
            ) as response:
                if response.status != 200:
                    raise self._connection.refused(path, response.status, await response.read())
                while True:
                    try:
                        header = await response.content.readexactly(_HEADER_BYTES)
                        length = int.from_bytes(header[4:])
                        yield header[0], await response.content.readexactly(length)
                    except asyncio.IncompleteReadError:
                        return
        except (aiohttp.ClientError, OSError) as error:
            raise self._connection.unavailable(f"broke off {path}: {error}") from error

    async def _state(self, made: str) -> _ExecState:
        path = f"/exec/{made}/json"
        found = await self._connection.get(path, _ExecState, timeout_seconds=self._call_seconds)
        if found is None:
            raise self._connection.unavailable("has forgotten the command that it ran")
        return found

    async def _end(self, container: str, made: str, output: _Output) -> None:
        """Kill the command with its children. What cannot be killed ends with its container."""
        number = output.number.decode("ascii", "replace")
        if not output.numbered or not number.isdigit():
            return
        try:
            kill = await self._make(container, ["sh", "-c", f"kill -KILL -{number}"])
            detached = {"Detach": True, "Tty": False}
            start = f"/exec/{kill}/start"
            await self._connection.post(start, detached, timeout_seconds=self._call_seconds)
            async with asyncio.timeout(END_SECONDS):
                while (await self._state(made)).running:
                    await asyncio.sleep(_POLL_SECONDS)
        except (PannierError, TimeoutError):
            return
