"""When the kernel gives a TCP connection of the API up, since the other end is cut off from this one.

Without this it sends again for a quarter of an hour, and asks an end that owes nothing after two hours. For so long a hook that was
begun would not be ended, and a caller would wait for an answer that cannot come.
"""

from __future__ import annotations

import socket
from typing import Any

from pannier.api.ndjson import KEEPALIVE_SECONDS

CUT_OFF_SECONDS = 6 * KEEPALIVE_SECONDS
"""For so long the other end may confirm nothing that was sent. It is the time after which a client gives a silent server up, so that
both ends end at about the same time; a network that is put right sooner breaks nothing. A client that stands still with a full
window counts as one that is cut off."""
_OPTIONS = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, int(KEEPALIVE_SECONDS)),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, int(KEEPALIVE_SECONDS)),
    (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(CUT_OFF_SECONDS * 1000)),
)


def bounded(sock: socket.socket) -> socket.socket:
    """The same socket, so bounded. Those that are accepted from a listening one are bounded as it is."""
    for level, option, value in _OPTIONS:
        sock.setsockopt(level, option, value)
    return sock


def bounded_socket(address: tuple[Any, ...]) -> socket.socket:
    """A new socket for an address as :func:`socket.getaddrinfo` gives it, to connect with."""
    family, kind, protocol, _, _ = address
    return bounded(socket.socket(family=family, type=kind, proto=protocol))
