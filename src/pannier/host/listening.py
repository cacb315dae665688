"""TCP sockets to listen on."""

from __future__ import annotations

import socket

_BACKLOG = 256


def tcp_listener(host: str, port: int) -> socket.socket:
    """A non-blocking listening socket; the caller closes it.

    Args:
        host: the address; empty for all of this machine, of IPv4 and IPv6.
        port: 0 for a free one.

    Raises:
        OSError: the address is taken or not ours.
    """
    if not host and socket.has_dualstack_ipv6():
        listener = socket.create_server(
            ("", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=_BACKLOG
        )
    else:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.create_server((host, port), family=family, backlog=_BACKLOG)
    listener.setblocking(False)
    return listener
