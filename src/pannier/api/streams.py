"""The server's side of streams: what a generator yields, as lines of JSON."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import msgspec
from aiohttp import web

from pannier.api.ndjson import CONTENT_TYPE
from pannier.contract.views import ErrorView
from pannier.core.errors import Unavailable


@dataclass(frozen=True, slots=True)
class _End:
    """The source has ended, with ``error`` when it failed."""

    error: Exception | None = None


class Streams:
    """The streams that a server is sending, so that it can end them when it stops."""

    def __init__(
        self, describe: Callable[[Exception], ErrorView], *, keepalive_seconds: float
    ) -> None:
        self._describe = describe
        self._keepalive_seconds = keepalive_seconds
        self._pumps: set[asyncio.Task[None]] = set()

    def stop(self) -> None:
        """End all streams; their readers are told that the daemon stops."""
        for pump in self._pumps:
            pump.cancel()

    async def send(self, request: web.Request, source: AsyncIterator[Any]) -> web.StreamResponse:
        """Answer ``request`` with what ``source`` yields.

        If the source fails before its first value, the answer is an ordinary error; if it fails later,
        the stream's last line is an ErrorView. When the client goes away, the source is closed: work
        that must go on without a client runs elsewhere.

        Raises:
            Exception: what the source raised before its first value.
        """
        # One task runs the source from beginning to end, because a generator may hold timeouts and
        # task groups, which are bound to the task that entered them.
        lines: asyncio.Queue[Any] = asyncio.Queue(maxsize=1)
        pump = asyncio.create_task(_pump(source, lines))
        self._pumps.add(pump)
        try:
            first = await self._next(lines)
            if isinstance(first, _End) and first.error is not None:
                raise first.error
            response = web.StreamResponse(
                headers={"Content-Type": CONTENT_TYPE, "Cache-Control": "no-store"}
            )
            await self._write(request, response, lines, first)
            return response
        finally:
            pump.cancel()
            await asyncio.gather(pump, return_exceptions=True)
            self._pumps.discard(pump)

    async def _next(self, lines: asyncio.Queue[Any]) -> Any:
        """The next value, ``_End``, or None when it is time for a blank line."""
        try:
            async with asyncio.timeout(self._keepalive_seconds):
                return await lines.get()
        except TimeoutError:
            return None

    async def _write(
        self,
        request: web.Request,
        response: web.StreamResponse,
        lines: asyncio.Queue[Any],
        first: Any,
    ) -> None:
        try:
            await response.prepare(request)
            value = first
            while not isinstance(value, _End):
                line = b"" if value is None else msgspec.json.encode(value)
                await response.write(line + b"\n")
                value = await self._next(lines)
            if value.error is not None:
                await response.write(msgspec.json.encode(self._describe(value.error)) + b"\n")
            await response.write_eof()
        except (ConnectionError, OSError):
            # The reader has gone; there is nobody left to tell.
            return


async def _pump(source: AsyncIterator[Any], lines: asyncio.Queue[Any]) -> None:
    try:
        async for value in source:
            await lines.put(value)
    except asyncio.CancelledError:
        stopping = Unavailable(
            "the daemon is stopping", remedy="ask again when it runs; nothing was lost"
        )
        _put_last(lines, _End(stopping))
    except Exception as error:
        # Whatever it is, the reader's stream must end; the server logs what nobody foresaw.
        await lines.put(_End(error))
    else:
        await lines.put(_End())
    finally:
        close = getattr(source, "aclose", None)
        if close is not None:
            await close()


def _put_last(lines: asyncio.Queue[Any], end: _End) -> None:
    """Put ``end`` without waiting: room is made, since nothing after it will be read."""
    if lines.full():
        lines.get_nowait()
    lines.put_nowait(end)
