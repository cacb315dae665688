"""Telling systemd how the service is doing (the sd_notify protocol: one datagram of assignments)."""

from __future__ import annotations

import array
import os
import socket
from collections.abc import Sequence


def notify(*assignments: str, fds: Sequence[int] = ()) -> None:
    """Send assignments such as ``READY=1``, with descriptors for ``FDSTORE=1``.

    Does nothing where systemd did not start us.
    """
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        name = "\0" + address[1:] if address[0] == "@" else address
        sender.sendmsg(["\n".join(assignments).encode()], rights, 0, name)
