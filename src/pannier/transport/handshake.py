"""Opening a connection: TCP options and the TLS handshake, in the event loop.

No thread is spent on a peer before it has shown who it is.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from dataclasses import dataclass

from pannier.transport.channel import Channel, TransportTiming

_READ_BYTES = 65536
_FAREWELL_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Secured:
    """A connection after its handshake, which works on memory (see :class:`Channel`).

    Attributes:
        sock: connected, non-blocking.
        tls: TLS between the two buffers.
        incoming: what came from the network and is not decrypted yet.
        outgoing: what is encrypted and not sent yet.
    """

    sock: socket.socket
    tls: ssl.SSLObject
    incoming: ssl.MemoryBIO
    outgoing: ssl.MemoryBIO

    @property
    def protocol(self) -> str | None:
        """The protocol that both ends have chosen; None where there is none that both speak."""
        return self.tls.selected_alpn_protocol()

    def channel(self, *, peer: str, timing: TransportTiming, listens: bool) -> Channel:
        """The connection as a channel of the transport of generations. ``listens``: see :class:`Channel`."""
        return Channel(
            self.sock,
            tls=self.tls,
            incoming=self.incoming,
            outgoing=self.outgoing,
            peer=peer,
            timing=timing,
            listens=listens,
        )


async def shake_hands(
    sock: socket.socket,
    *,
    context: ssl.SSLContext,
    server_name: str | None,
    timing: TransportTiming,
) -> Secured:
    """Shake hands on a connected, non-blocking socket; as the client if ``server_name`` is given.

    The caller limits the time, closes the socket on errors, and looks at the protocol.

    Raises:
        ssl.SSLError, OSError: as they come. The peer has been told the reason where TLS has one.
    """
    receiving = server_name is None
    _tune(sock, timing=timing, receiving=receiving)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(incoming, outgoing, server_side=receiving, server_hostname=server_name)
    await _shake(sock, tls=tls, incoming=incoming, outgoing=outgoing)
    return Secured(sock, tls, incoming, outgoing)


async def _shake(
    sock: socket.socket, *, tls: ssl.SSLObject, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO
) -> None:
    loop = asyncio.get_running_loop()
    while True:
        try:
            tls.do_handshake()
            done = True
        except ssl.SSLWantReadError:
            done = False
        except ssl.SSLError:
            await _part(sock, outgoing.read())
            raise
        if outgoing.pending:
            await loop.sock_sendall(sock, outgoing.read())
        if done:
            return
        received = await loop.sock_recv(sock, _READ_BYTES)
        if not received:
            raise ConnectionResetError("the connection was closed during the handshake")
        incoming.write(received)


async def _part(sock: socket.socket, alert: bytes) -> None:
    """Send the alert and wait a moment until the peer has read it and gone."""
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(_FAREWELL_SECONDS):
            await loop.sock_sendall(sock, alert)
            sock.shutdown(socket.SHUT_WR)
            while await loop.sock_recv(sock, _READ_BYTES):
                pass
    except (OSError, TimeoutError):
        return


def _tune(sock: socket.socket, *, timing: TransportTiming, receiving: bool) -> None:
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    interval = max(1, int(timing.stall / 4))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, interval)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, interval)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
    if receiving:
        # Not for the sender: Linux counts a full window of a living receiver (its disk flushes) as
        # time without an answer, too. The sender goes by the receiver's keepalives instead.
        sock.setsockopt(
            socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, max(1000, int(timing.stall * 1000))
        )
