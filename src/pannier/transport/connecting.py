"""The sender's way to another node: addresses, the handshake, and whether it is the node that is meant."""

from __future__ import annotations

import asyncio
import socket
import ssl
from typing import Any

from pannier.core.errors import PeerUnavailable
from pannier.core.node import Node
from pannier.pki.failures import explain_tls
from pannier.pki.identity import require_node
from pannier.transport.channel import TransportTiming
from pannier.transport.handshake import Secured, shake_hands


async def connect(
    to: Node, *, context: ssl.SSLContext, cluster: str, timing: TransportTiming
) -> Secured:
    """A connection to the node that ``to`` describes. The caller looks at the protocol.

    Raises:
        PeerUnavailable: it does not answer within ``TransportTiming.connect``, or does not speak TLS.
        Denied: certificates do not fit.
    """
    peer, where = f"node {to.name}", f"{to.address}:{to.transport_port}"
    try:
        async with asyncio.timeout(timing.connect):
            sock = await _connected(to.address, to.transport_port)
            try:
                secured = await shake_hands(
                    sock, context=context, server_name=to.name, timing=timing
                )
                require_node(secured.tls, cluster=cluster, name=to.name, admits=to.is_shown_by)
            except BaseException:
                sock.close()
                raise
    except ssl.SSLError as error:
        raise explain_tls(error, peer=f"{peer} ({where})") from error
    except (OSError, TimeoutError, UnicodeError) as error:
        raise PeerUnavailable(
            f"{peer} does not answer at {where}: {str(error) or 'no answer in time'}",
            remedy="check that pannierd runs there, and the firewalls between",
        ) from error
    return secured


async def _connected(address: str, port: int) -> socket.socket:
    """A TCP connection to the first of the host's addresses that answers."""
    loop = asyncio.get_running_loop()
    failure = OSError("the name has no address")
    for family, kind, protocol, _, target in await _addresses(address, port):
        sock = socket.socket(family, kind | socket.SOCK_NONBLOCK, protocol)
        try:
            await loop.sock_connect(sock, target)
        except OSError as error:
            sock.close()
            failure = error
        except BaseException:
            sock.close()
            raise
        else:
            return sock
    raise failure


async def _addresses(address: str, port: int) -> list[tuple[Any, ...]]:
    """Where to connect to. An IP address needs no thread, which a name does."""
    try:
        return socket.getaddrinfo(
            address, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST
        )
    except socket.gaierror:
        loop = asyncio.get_running_loop()
        return await loop.getaddrinfo(address, port, type=socket.SOCK_STREAM)
