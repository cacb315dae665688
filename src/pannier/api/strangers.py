"""Connections of the TLS port: those that show no certificate are few, and do not stay.

A machine that joins has no certificate yet, so such connections must be let in. What one of them may take from the
others is bounded: in time, whatever it says or does not say, and in number. A further one ends the oldest, so
that whoever holds connections open keeps nobody out.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, cast

import structlog

_ACCEPT_AGAIN_SECONDS = 0.1
"""Between two tries to accept a connection while this process is out of file descriptors."""

_log = structlog.get_logger("pannier.api")


@dataclass(frozen=True, slots=True, kw_only=True)
class StrangerLimits:
    """What connections without a certificate may take.

    Attributes:
        handshake_seconds: for the TLS handshake: many round trips of the slowest line.
        seconds: from the beginning to the end of such a connection: as long as a client waits for the answer
            to ``join``, with the handshake.
        most: how many there are at once; each has a file descriptor and some 100 KiB of TLS state.
    """

    handshake_seconds: float = 10.0
    seconds: float = 70.0
    most: int = 256


LIMITS = StrangerLimits()


class _Observed(asyncio.Protocol):
    """A protocol of which one can wait until its connection is gone."""

    def __init__(self, inner: asyncio.Protocol) -> None:
        self._inner = inner
        self.lost = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._inner.connection_made(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.set()
        self._inner.connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._inner.data_received(data)

    def eof_received(self) -> bool | None:
        return self._inner.eof_received()

    def pause_writing(self) -> None:
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        self._inner.resume_writing()


class Doorkeeper:
    """Accepts connections, and ends strangers that stay too long or are too many."""

    def __init__(
        self,
        serve: Callable[[], asyncio.Protocol],
        *,
        context: ssl.SSLContext,
        limits: StrangerLimits,
    ) -> None:
        """Prepare.

        Args:
            serve: makes the protocol of one connection.
            context: asks for client certificates, and verifies those that are shown.
        """
        self._serve = serve
        self._context = context
        self._limits = limits
        self._tasks: set[asyncio.Task[None]] = set()
        self._strangers: dict[asyncio.Task[Any], None] = {}

    @asynccontextmanager
    async def listening(self, listener: socket.socket) -> AsyncIterator[None]:
        """Accept on a socket, which is closed at the end. Connections with a certificate go on then."""
        self._start(self._accept(listener))
        try:
            yield
        finally:
            while tasks := set(self._tasks):
                for task in tasks:
                    task.cancel()
                await asyncio.wait(tasks)
            listener.close()  # only now: the event loop has let go of it

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                sock, address = await loop.sock_accept(listener)
            except (
                OSError
            ) as error:  # out of file descriptors, or a client that went away meanwhile
                _log.warning("api.accept-failed", error=str(error))
                await asyncio.sleep(_ACCEPT_AGAIN_SECONDS)
                continue
            self._start(self._meet(sock, f"{address[0]}:{address[1]}"))

    async def _meet(self, sock: socket.socket, address: str) -> None:
        """Be there until the connection is one with a certificate, or has ended. Raises only cancellation."""
        task = asyncio.current_task()
        assert task is not None
        if len(self._strangers) >= self._limits.most:
            next(iter(self._strangers)).cancel()
        self._strangers[task] = None
        try:
            async with asyncio.timeout(self._limits.seconds):
                await self._greet(sock)
        except (OSError, TimeoutError) as error:
            _log.info("api.stranger-ended", address=address, reason=str(error) or "too slow")
        except BaseException:
            sock.close()
            raise
        finally:
            self._strangers.pop(task, None)

    async def _greet(self, sock: socket.socket) -> None:
        observed = _Observed(self._serve())
        transport, _protocol = await asyncio.get_running_loop().connect_accepted_socket(
            lambda: observed,
            sock,
            ssl=self._context,
            ssl_handshake_timeout=self._limits.handshake_seconds,
            ssl_shutdown_timeout=self._limits.handshake_seconds,
        )
        tls = transport.get_extra_info("ssl_object")
        if tls.getpeercert(binary_form=True) is not None:
            return
        try:
            await observed.lost.wait()
        finally:
            if not transport.is_closing():  # else it ends by itself; asyncio's abort would fail
                cast("asyncio.WriteTransport", transport).abort()
