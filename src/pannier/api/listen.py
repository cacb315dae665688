"""The sockets on which the API listens."""

from __future__ import annotations

import os
import socket
import ssl
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from aiohttp import web

from pannier.api.cut_off import bounded
from pannier.api.strangers import LIMITS, Doorkeeper, StrangerLimits
from pannier.core.errors import Conflict, ForeignData
from pannier.core.node import API_PORT
from pannier.host.listening import tcp_listener

STOP_SECONDS = 5.0
"""How long requests that are under way may take when the server stops."""


@asynccontextmanager
async def serve_socket(
    application: web.Application, listener: socket.socket
) -> AsyncIterator[None]:
    """Serve on a bound socket, such as systemd hands over; it is closed at the end."""
    runner = _runner(application)
    await runner.setup()
    try:
        await web.SockSite(runner, listener).start()
        yield
    finally:
        await runner.cleanup()


@asynccontextmanager
async def serve_unix(application: web.Application, *, path: Path) -> AsyncIterator[None]:
    """Serve on a unix socket that only its owner may open (0600); it is removed at the end.

    Raises:
        Conflict: somebody listens there already.
        ForeignData: ``path`` is something other than a socket.
    """
    listener = _bind_unix(path)
    try:
        async with serve_socket(application, listener):
            yield
    finally:
        path.unlink(missing_ok=True)


@asynccontextmanager
async def serve_tls(
    application: web.Application,
    *,
    context: ssl.SSLContext,
    host: str,
    port: int = API_PORT,
    strangers: StrangerLimits = LIMITS,
) -> AsyncIterator[int]:
    """Serve on TCP with TLS, and give the port (useful when ``port`` is 0).

    Args:
        context: must ask for client certificates without insisting (``CERT_OPTIONAL``): a machine
            that joins has none yet, and each route decides who may use it.
        host: the address; empty for all of this machine.
        strangers: bounds connections that show no certificate.

    Raises:
        OSError: the address is taken or not ours.
    """
    runner = _runner(application)
    await runner.setup()
    try:
        assert runner.server is not None
        door = Doorkeeper(runner.server, context=context, limits=strangers)
        listener = bounded(tcp_listener(host, port))
        async with door.listening(listener):
            yield listener.getsockname()[1]
    finally:
        await runner.cleanup()


def _runner(application: web.Application) -> web.AppRunner:
    return web.AppRunner(application, access_log=None, shutdown_timeout=STOP_SECONDS)


def _bind_unix(path: Path) -> socket.socket:
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    if path.exists() or path.is_symlink():
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise ForeignData(f"{path} is not a socket", remedy="move it away")
        if _answers(path):
            raise Conflict(
                f"another daemon listens at {path}", remedy="see 'systemctl status pannierd'"
            )
        path.unlink()
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(os.fspath(path))
        # Nobody can connect before listen(), so there is no moment with wider permissions.
        path.chmod(0o600)
    except OSError:
        listener.close()
        raise
    listener.setblocking(False)
    return listener


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(os.fspath(path))
        except OSError:
            return False
        return True
