"""Connections that show no certificate: few, and for a short time. Whoever shows one is not touched by that."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import socket
import ssl
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from pannier.api.caller import identify_tls
from pannier.api.client import ApiClient
from pannier.api.connection import TlsEndpoint
from pannier.api.listen import serve_tls
from pannier.api.server import build_application
from pannier.api.strangers import StrangerLimits
from pannier.core.errors import Denied
from pannier.pki.authority import Authority
from pannier.pki.credentials import Credentials, new_request
from pannier.testing.api import FakeCluster

PATIENCE_SECONDS = 10.0
Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority.create(tmp_path / "ca", cluster="test")


def credentials(authority: Authority, folder: Path, name: str) -> Credentials:
    request = new_request(name)
    issued = authority.issue_node(request.csr_pem, node=name, addresses=["127.0.0.1"])
    return Credentials.save(
        folder / name, ca=authority.certificate_pem, certificate=issued, key=request.key_pem
    )


@contextlib.asynccontextmanager
async def serving(authority: Authority, folder: Path, limits: StrangerLimits) -> AsyncIterator[int]:
    cluster = FakeCluster()
    application = build_application(
        cluster.by, peers=cluster.by_node, identify=identify_tls("test")
    )
    context = credentials(authority, folder, "node1").server_context(
        client_certificate_required=False
    )
    async with serve_tls(
        application, context=context, host="127.0.0.1", port=0, strangers=limits
    ) as port:
        yield port


def anonymous(folder: Path) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(folder / "ca" / "ca.crt"))
    context.check_hostname = False
    return context


async def opened(port: int, context: ssl.SSLContext | None = None) -> Connection:
    return await asyncio.open_connection("127.0.0.1", port, ssl=context)


async def asked(port: int, folder: Path) -> None:
    """Have a question of a stranger answered."""
    endpoint = TlsEndpoint(address="127.0.0.1", port=port, context=anonymous(folder))
    async with ApiClient(endpoint) as client:
        with pytest.raises(Denied):
            await client.status()


async def ends(connection: Connection) -> float:
    """Wait until the server has ended it; returns after how many seconds."""
    began = time.monotonic()
    with contextlib.suppress(ConnectionError, ssl.SSLError):
        assert await asyncio.wait_for(connection[0].read(1), PATIENCE_SECONDS) == b""
    connection[1].close()
    return time.monotonic() - began


async def test_who_says_nothing_is_not_kept(authority: Authority, tmp_path: Path) -> None:
    """Neither before the handshake nor after it, nor in the middle of a request."""
    limits = StrangerLimits(handshake_seconds=0.3, seconds=0.6, most=8)
    async with serving(authority, tmp_path, limits) as port:
        silent = await opened(port)
        half = await opened(port)
        half[1].write(b"\x16\x03\x01\x02\x00")
        secured = [await opened(port, anonymous(tmp_path)) for _ in range(2)]
        secured[1][1].write(b"POST /v1/join HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\n{")
        assert all([await ends(each) < 5 for each in (silent, half, *secured)])


async def test_a_further_stranger_ends_the_oldest(authority: Authority, tmp_path: Path) -> None:
    """So nobody is kept out for long by those who hold connections open."""
    limits = StrangerLimits(handshake_seconds=60, seconds=60, most=4)
    async with serving(authority, tmp_path, limits) as port:
        first = [await opened(port) for _ in range(2)]
        secured = [await opened(port, anonymous(tmp_path)) for _ in range(2)]
        rest = [await opened(port) for _ in range(2)]
        for each in first:
            await ends(each)
        await asked(port, tmp_path)
        await ends(secured[0])
        for _reader, writer in (*secured, *rest):
            writer.close()


async def test_whoever_shows_a_certificate_is_no_stranger(
    authority: Authority, tmp_path: Path
) -> None:
    limits = StrangerLimits(handshake_seconds=60, seconds=0.3, most=1)
    async with serving(authority, tmp_path, limits) as port:
        context = credentials(authority, tmp_path, "node2").client_context()
        context.check_hostname = False
        known = await asyncio.open_connection(
            "127.0.0.1", port, ssl=context, server_hostname="node1"
        )
        await ends(await opened(port, anonymous(tmp_path)))
        await ends(await opened(port))
        known[1].write(b"GET /v1/nodes HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        assert (await asyncio.wait_for(known[0].readline(), PATIENCE_SECONDS)).endswith(
            b"200 OK\r\n"
        )
        known[1].close()


async def test_a_stranger_that_goes_makes_room(authority: Authority, tmp_path: Path) -> None:
    limits = StrangerLimits(handshake_seconds=60, seconds=60, most=2)
    async with serving(authority, tmp_path, limits) as port:
        stays = await opened(port, anonymous(tmp_path))
        for _ in range(5):
            await asked(port, tmp_path)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(stays[0].read(1), 0.2)
        stays[1].close()


async def test_the_end_of_the_server_ends_all(authority: Authority, tmp_path: Path) -> None:
    limits = StrangerLimits(handshake_seconds=60, seconds=60, most=8)
    async with serving(authority, tmp_path, limits) as port:
        connections = [await opened(port), await opened(port, anonymous(tmp_path))]
    for each in connections:
        await ends(each)
    with socket.socket() as probe, pytest.raises(ConnectionRefusedError):
        probe.connect(("127.0.0.1", port))


async def test_one_that_asks_and_goes_is_no_error(authority: Authority, tmp_path: Path) -> None:
    told: list[str] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(str(context)))
    async with serving(authority, tmp_path, StrangerLimits()) as port:
        await asked(port, tmp_path)
    gc.collect()
    assert told == []
