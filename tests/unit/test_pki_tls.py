"""Real TLS between the cluster's members: who gets through, and how a cluster is recognised."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from pannier.core.errors import Denied, PannierError, PeerUnavailable
from pannier.pki.authority import Authority
from pannier.pki.credentials import Credentials, new_request
from pannier.pki.failures import explain_tls
from pannier.pki.identity import Identity, NodeIdentity, UserIdentity, identity_of, require_node
from pannier.pki.pin import pin


def node(authority: Authority, directory: Path, *, name: str) -> Credentials:
    request = new_request(name)
    chain = authority.issue_node(request.csr_pem, node=name, addresses=["127.0.0.1"])
    return Credentials.save(
        directory, ca=authority.certificate_pem, certificate=chain, key=request.key_pem
    )


class Listener:
    """Greets each client, remembers who it is and all bytes that it sent.

    A thread with plain sockets: asyncio's servers close a failed handshake without the TLS alert
    that tells the client why.
    """

    def __init__(self) -> None:
        self.seen: list[Identity | None] = []
        self.heard = b""
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]

    def _serve(self, context: ssl.SSLContext) -> None:
        while True:
            try:
                accepted, _ = self._socket.accept()
            except OSError:
                return
            with contextlib.suppress(OSError), accepted:
                self._answer(context.wrap_socket(accepted, server_side=True))

    def _answer(self, tls: ssl.SSLSocket) -> None:
        with tls:
            self.seen.append(identity_of(tls) if tls.getpeercert(True) else None)
            tls.sendall(b"hello")
            self.heard += tls.recv(65536)

    @asynccontextmanager
    async def listening(self, context: ssl.SSLContext) -> AsyncIterator[Listener]:
        thread = threading.Thread(target=self._serve, args=(context,))
        thread.start()
        try:
            yield self
        finally:
            self._socket.shutdown(socket.SHUT_RDWR)
            self._socket.close()
            await asyncio.to_thread(thread.join)


async def connect(
    port: int, context: ssl.SSLContext, *, name: str, check: Callable[[ssl.SSLObject], object]
) -> None:
    """Connect as a client, and read the greeting: TLS 1.3 tells a client only then of its refusal."""
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", port, ssl=context, server_hostname=name
    )
    try:
        check(writer.get_extra_info("ssl_object"))
        assert await reader.readexactly(5) == b"hello"
    finally:
        writer.transport.abort()


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority.create(tmp_path / "ca", cluster="c1")


@pytest.fixture
def alder(authority: Authority, tmp_path: Path) -> Credentials:
    return node(authority, tmp_path / "alder", name="alder")


@pytest.fixture
def birch(authority: Authority, tmp_path: Path) -> Credentials:
    return node(authority, tmp_path / "birch", name="birch")


async def test_two_nodes_know_each_other_over_tls_1_3(
    alder: Credentials, birch: Credentials
) -> None:
    versions = []

    def check(tls: ssl.SSLObject) -> None:
        versions.append(tls.version())
        require_node(
            tls, cluster="c1", name="birch", admits=lambda shown: shown == birch.fingerprints
        )

    context = birch.server_context(client_certificate_required=True)
    async with Listener().listening(context) as listener:
        await connect(listener.port, alder.client_context(), name="birch", check=check)
    assert versions == ["TLSv1.3"]
    assert listener.seen == [NodeIdentity("c1", "alder")]


@pytest.mark.parametrize(
    ("expected", "why"),
    [
        ({"cluster": "c2"}, "belongs to cluster c1"),
        ({"cluster": "c1", "name": "cedar"}, "where node cedar was expected"),
        ({"cluster": "c1", "admits": lambda _: False}, "another certificate"),
    ],
)
async def test_a_node_that_is_not_the_one_meant_is_denied(
    alder: Credentials, birch: Credentials, expected: dict[str, Any], why: str
) -> None:
    def check(tls: ssl.SSLObject) -> None:
        with pytest.raises(Denied, match=why):
            require_node(tls, **expected)

    context = birch.server_context(client_certificate_required=True)
    async with Listener().listening(context) as listener:
        await connect(listener.port, alder.client_context(), name="birch", check=check)


async def test_the_name_decides_and_not_the_address(alder: Credentials, birch: Credentials) -> None:
    context = birch.server_context(client_certificate_required=True)
    async with Listener().listening(context) as listener:
        with pytest.raises(ssl.SSLCertVerificationError) as caught:
            await connect(listener.port, alder.client_context(), name="cedar", check=id)
    assert isinstance(explain_tls(caught.value, peer="node cedar"), Denied)


async def test_without_a_certificate_the_api_answers_and_the_transport_does_not(
    authority: Authority, birch: Credentials
) -> None:
    anonymous = ssl.create_default_context(cadata=authority.certificate_pem)
    context = birch.server_context(client_certificate_required=False)
    async with Listener().listening(context) as listener:
        await connect(listener.port, anonymous, name="birch", check=id)
    assert listener.seen == [None]
    context = birch.server_context(client_certificate_required=True)
    async with Listener().listening(context) as listener:
        with pytest.raises(ssl.SSLError) as caught:
            await connect(listener.port, anonymous, name="birch", check=id)
    error = explain_tls(caught.value, peer="node birch")
    assert isinstance(error, Denied)
    assert "wants a certificate" in error.message
    assert listener.seen == []


async def test_the_api_refuses_a_strange_certificate_even_though_none_is_needed(
    birch: Credentials, authority: Authority, tmp_path: Path
) -> None:
    foreign = Authority.create(tmp_path / "foreign", cluster="c1")
    stranger = node(foreign, tmp_path / "stranger", name="alder")
    stranger.ca_path.write_text(authority.certificate_pem)
    context = birch.server_context(client_certificate_required=False)
    async with Listener().listening(context) as listener:
        with pytest.raises(ssl.SSLError) as caught:
            await connect(listener.port, stranger.client_context(), name="birch", check=id)
    assert isinstance(explain_tls(caught.value, peer="node birch"), Denied)
    assert listener.seen == []


@pytest.mark.parametrize(("at", "why"), [(1e9, "expired"), (4e9, "not valid yet")])
async def test_clocks_and_old_certificates_are_named_as_the_reason(
    alder: Credentials, tmp_path: Path, at: float, why: str
) -> None:
    then = Authority.create(tmp_path / "then", cluster="c1", clock=lambda: at)
    birch = node(then, tmp_path / "birch", name="birch")
    alder.ca_path.write_text(then.certificate_pem)
    context = birch.server_context(client_certificate_required=False)
    async with Listener().listening(context) as listener:
        with pytest.raises(ssl.SSLError) as caught:
            await connect(listener.port, alder.client_context(), name="birch", check=id)
    error = explain_tls(caught.value, peer="node birch")
    assert isinstance(error, Denied)
    assert why in error.message
    assert "clocks" in error.remedy


async def test_a_user_asks_but_cannot_serve(
    authority: Authority, alder: Credentials, birch: Credentials, tmp_path: Path
) -> None:
    request = new_request("ann")
    ann = Credentials.save(
        tmp_path / "ann",
        ca=authority.certificate_pem,
        certificate=authority.issue_user(request.csr_pem, user="ann"),
        key=request.key_pem,
        kind="user",
    )
    context = birch.server_context(client_certificate_required=False)
    async with Listener().listening(context) as listener:
        await connect(listener.port, ann.client_context(), name="birch", check=id)
    assert listener.seen == [UserIdentity("c1", "ann")]
    context = ann.server_context(client_certificate_required=False)
    async with Listener().listening(context) as listener:
        with pytest.raises(ssl.SSLCertVerificationError) as caught:
            await connect(listener.port, alder.client_context(), name="ann", check=id)
    assert "not for this purpose" in str(explain_tls(caught.value, peer="it"))


async def test_a_cluster_is_recognised_by_the_fingerprint_in_the_token(
    authority: Authority, birch: Credentials
) -> None:
    context = birch.server_context(client_certificate_required=False)
    async with Listener().listening(context) as listener:
        pinned = await pin("127.0.0.1", port=listener.port, ca_fingerprint=authority.fingerprint)
        await connect(listener.port, pinned.context, name=pinned.member.name, check=id)
    assert pinned.member == NodeIdentity("c1", "birch")
    assert pinned.ca_pem == authority.certificate_pem
    # Looking at the certificates sent nothing at all.
    assert listener.heard == b""


async def test_another_cluster_is_told_from_the_one_in_the_token(
    birch: Credentials, tmp_path: Path
) -> None:
    other = Authority.create(tmp_path / "other", cluster="c2")
    context = birch.server_context(client_certificate_required=False)
    async with Listener().listening(context) as listener:
        with pytest.raises(Denied, match="does not belong to the cluster"):
            await pin("127.0.0.1", port=listener.port, ca_fingerprint=other.fingerprint)


async def test_an_impostor_that_repeats_the_clusters_ca_is_found_out(
    authority: Authority, tmp_path: Path
) -> None:
    """The CA's certificate is public: showing it proves nothing."""
    own = Authority.create(tmp_path / "impostor-ca", cluster="c1")
    impostor = node(own, tmp_path / "impostor", name="birch")
    text = impostor.certificate_path.read_text().removesuffix(own.certificate_pem)
    impostor.certificate_path.write_text(text + authority.certificate_pem)
    context = impostor.server_context(client_certificate_required=False)
    async with Listener().listening(context) as listener:
        with pytest.raises(Denied, match="not from it"):
            await pin("127.0.0.1", port=listener.port, ca_fingerprint=authority.fingerprint)
    assert listener.heard == b""


async def test_an_etcd_member_is_not_taken_for_a_node(authority: Authority, tmp_path: Path) -> None:
    request = new_request("etcd1")
    chain = authority.issue_etcd(
        request.csr_pem, member="etcd1", addresses=["127.0.0.1"], membership=1
    )
    (tmp_path / "chain").write_text(chain)
    (tmp_path / "key").write_text(request.key_pem)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "chain", tmp_path / "key")
    async with Listener().listening(context) as listener:
        with pytest.raises(Denied, match="names no node"):
            await pin("127.0.0.1", port=listener.port, ca_fingerprint=authority.fingerprint)


async def test_who_is_not_there_or_speaks_no_tls_is_unavailable(authority: Authority) -> None:
    async def shout(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"SSH-2.0-OpenSSH_9.2\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(shout, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server:
        with pytest.raises(PeerUnavailable):
            await pin("127.0.0.1", port=port, ca_fingerprint=authority.fingerprint)
    with pytest.raises(PeerUnavailable, match="no node answers"):
        await pin("127.0.0.1", port=port, ca_fingerprint=authority.fingerprint)


async def test_a_server_that_never_answers_is_given_up(authority: Authority) -> None:
    done = asyncio.Event()

    async def be_silent(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await done.wait()
        writer.close()

    server = await asyncio.start_server(be_silent, "127.0.0.1", 0)
    async with server:
        began = time.monotonic()
        with pytest.raises(PannierError, match="no answer in time"):
            await pin(
                "127.0.0.1",
                port=server.sockets[0].getsockname()[1],
                ca_fingerprint=authority.fingerprint,
                timeout_seconds=0.2,
            )
        assert time.monotonic() - began < 5
        done.set()
