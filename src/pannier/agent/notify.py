"""Telling systemd how the service is doing (the sd_notify protocol: one datagram of assignments)."""

from __future__ import annotations

import os
import socket


def notify(*assignments: str) -> None:
    """Send such as ``READY=1``; nothing where systemd did not start us."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        name = "\0" + address[1:] if address[0] == "@" else address
        sender.sendto("\n".join(assignments).encode(), name)
