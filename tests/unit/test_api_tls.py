"""Mutual TLS: the certificate decides who asks, and who is talked to."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from pannier.api.caller import NodeCaller, UserCaller, identify_tls
from pannier.api.client import ApiClient, PeerClient
from pannier.api.connection import ApiConnection, TlsEndpoint
from pannier.api.cut_off import _OPTIONS
from pannier.api.listen import serve_tls
from pannier.api.server import build_application
from pannier.contract.bodies import JoinOrder
from pannier.core.errors import Denied, OutcomeUnknown, PeerUnavailable
from pannier.pki.authority import Authority
from pannier.pki.credentials import Credentials, new_request
from pannier.testing.api import FakeCluster, NotedCall


class Certificates:
    """A CA and what it has issued, in a directory."""

    def __init__(self, directory: Path, *, cluster: str = "test") -> None:
        self._directory = directory
        self._authority = Authority.create(directory / "ca", cluster=cluster)

    def node(self, name: str, *, addresses: tuple[str, ...] = ("127.0.0.1",)) -> Credentials:
        request = new_request(name)
        issued = self._authority.issue_node(request.csr_pem, node=name, addresses=addresses)
        return self._save(name, issued, request.key_pem, "node")

    def user(self, name: str) -> Credentials:
        request = new_request(name)
        issued = self._authority.issue_user(request.csr_pem, user=name)
        return self._save(name, issued, request.key_pem, "user")

    def etcd(self, name: str) -> ssl.SSLContext:
        """The server's end of an etcd member's certificate."""
        request = new_request(name)
        issued = self._authority.issue_etcd(
            request.csr_pem, member=name, addresses=(), membership=1
        )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        (self._directory / "etcd.crt").write_text(issued)
        (self._directory / "etcd.key").write_text(request.key_pem)
        context.load_cert_chain(self._directory / "etcd.crt", self._directory / "etcd.key")
        return context

    def anonymous(self) -> ssl.SSLContext:
        """A client that trusts the CA and has no certificate."""
        return ssl.create_default_context(cafile=str(self._directory / "ca" / "ca.crt"))

    def _save(self, name: str, issued: str, key: str, kind: str) -> Credentials:
        ca = (self._directory / "ca" / "ca.crt").read_text()
        return Credentials.save(
            self._directory / name, ca=ca, certificate=issued, key=key, kind=kind
        )


@pytest.fixture
def certificates(tmp_path: Path) -> Certificates:
    return Certificates(tmp_path)


@pytest.fixture
def cluster() -> FakeCluster:
    return FakeCluster()


@pytest.fixture
async def port(certificates: Certificates, cluster: FakeCluster) -> AsyncIterator[int]:
    application = build_application(
        cluster.by, peers=cluster.by_node, identify=identify_tls("test")
    )
    context = certificates.node("node1").server_context(client_certificate_required=False)
    async with serve_tls(application, context=context, host="127.0.0.1", port=0) as port:
        yield port


def endpoint(port: int, context: ssl.SSLContext, *, node: str | None = None) -> TlsEndpoint:
    return TlsEndpoint(address="127.0.0.1", port=port, context=context, node=node)


async def test_user(certificates: Certificates, cluster: FakeCluster, port: int) -> None:
    context = certificates.user("anna").client_context()
    async with ApiClient(endpoint(port, context), actor="somebody-else") as client:
        await client.create_volume("data", {})
    assert cluster.calls == [NotedCall("create_volume", "data", "anna")]
    async with PeerClient(endpoint(port, context)) as peer:
        with pytest.raises(Denied, match="for nodes only"):
            await peer.peer_node()


async def test_node(certificates: Certificates, cluster: FakeCluster, port: int) -> None:
    context = certificates.node("node2").client_context()
    async with PeerClient(endpoint(port, context, node="node1")) as peer:
        await peer.peer_create("data", {}, actor="anna")
    async with ApiClient(endpoint(port, context, node="node1"), actor="anna") as client:
        await client.drain_node("node3", drained=True)
    assert NotedCall("peer_create", "data", "anna", "node2") in cluster.calls
    assert cluster.calls[-1] == NotedCall("drain_node", "node3", "anna")


def bounds(transport: Any) -> list[int]:
    sock = transport.get_extra_info("socket")
    return [sock.getsockopt(level, option) for level, option, _ in _OPTIONS]


async def test_both_ends_notice_that_they_are_cut_off(certificates: Certificates) -> None:
    """Else a hook that was begun for the other end would stay begun for a quarter of an hour."""
    wanted = [value for _, _, value in _OPTIONS]
    seen: list[list[int]] = []

    async def look(request: web.Request) -> web.Response:
        seen.append(bounds(request.transport))
        return web.json_response(None)

    application = web.Application()
    application.router.add_get("/look", look)
    context = certificates.node("node1").server_context(client_certificate_required=False)
    async with serve_tls(application, context=context, host="127.0.0.1", port=0) as port:
        client = ApiConnection(endpoint(port, certificates.user("anna").client_context()))
        async with client:
            await client.ask("GET", "/look", answer=type(None))
            pooled = client._open().connector._conns  # type: ignore[union-attr]
            assert [bounds(each.transport) for ((each, _),) in pooled.values()] == [wanted]
    assert seen == [wanted]


async def test_without_a_certificate_only_joining_is_possible(
    certificates: Certificates, cluster: FakeCluster, port: int
) -> None:
    async with ApiClient(endpoint(port, certificates.anonymous(), node="node1")) as client:
        with pytest.raises(Denied, match="needs a certificate"):
            await client.status()
        request = JoinOrder(token="token-1", name="node4", address="::1", csr="x", version="1")
        assert (await client.join(request)).cluster == "test"


async def test_certificate_of_another_ca_is_refused(
    certificates: Certificates, cluster: FakeCluster, port: int, tmp_path: Path
) -> None:
    stranger = Certificates(tmp_path / "other").user("eve").client_context()
    stranger.load_verify_locations(str(tmp_path / "ca" / "ca.crt"))
    async with ApiClient(endpoint(port, stranger)) as client:
        # In TLS 1.3 the client has sent its request before it learns of the refusal, and the
        # connection's reset may overtake the reason.
        with pytest.raises((Denied, PeerUnavailable, OutcomeUnknown)):
            await client.create_volume("data", {})
    assert cluster.calls == []


async def test_right_issuer_wrong_cluster(certificates: Certificates, cluster: FakeCluster) -> None:
    """Two clusters may have been given one CA by mistake."""
    application = build_application(
        cluster.by, peers=cluster.by_node, identify=identify_tls("other")
    )
    context = certificates.node("node1").server_context(client_certificate_required=False)
    async with serve_tls(application, context=context, host="127.0.0.1", port=0) as port:
        ours = certificates.user("anna").client_context()
        async with ApiClient(endpoint(port, ours)) as client:
            with pytest.raises(Denied, match="cluster test"):
                await client.status()


async def test_certificates_can_be_refused_later(
    certificates: Certificates, cluster: FakeCluster
) -> None:
    """A removed node's certificate is still signed by the CA."""
    asked: list[NodeCaller | UserCaller] = []

    def admit(caller: NodeCaller | UserCaller, certificate: bytes) -> bool:
        assert certificate
        asked.append(caller)
        return caller == UserCaller("anna")

    identify = identify_tls("test", admit=admit)
    application = build_application(cluster.by, peers=cluster.by_node, identify=identify)
    context = certificates.node("node1").server_context(client_certificate_required=False)
    async with serve_tls(application, context=context, host="127.0.0.1", port=0) as port:
        async with ApiClient(endpoint(port, certificates.user("anna").client_context())) as client:
            await client.status()
        gone = certificates.node("node2").client_context()
        async with PeerClient(endpoint(port, gone)) as peer:
            with pytest.raises(Denied, match="not accepted any more"):
                await peer.peer_node()
    assert asked == [UserCaller("anna"), NodeCaller("node2")]


async def test_wrong_server_gets_nothing(
    certificates: Certificates, cluster: FakeCluster, port: int
) -> None:
    context = certificates.node("node2").client_context()
    async with ApiClient(endpoint(port, context, node="node3")) as client:
        with pytest.raises(Denied, match="node1, not node3"):
            await client.create_volume("data", {})
    assert cluster.calls == []


async def test_an_address_that_looks_like_a_nodes_name_does_not_make_one(
    certificates: Certificates, cluster: FakeCluster
) -> None:
    """Host names in certificates are what a joining machine wished for; identities are not."""
    liar = certificates.node("node9", addresses=("node1",))
    application = build_application(
        cluster.by, peers=cluster.by_node, identify=identify_tls("test")
    )
    context = liar.server_context(client_certificate_required=False)
    async with serve_tls(application, context=context, host="127.0.0.1", port=0) as port:
        ours = certificates.node("node2").client_context()
        async with ApiClient(endpoint(port, ours, node="node1")) as client:
            with pytest.raises(Denied, match="node9, not node1"):
                await client.status()


async def test_servers_of_the_cluster_that_are_no_nodes(
    certificates: Certificates, cluster: FakeCluster
) -> None:
    application = build_application(
        cluster.by, peers=cluster.by_node, identify=identify_tls("test")
    )
    context = certificates.etcd("node1")
    async with serve_tls(application, context=context, host="127.0.0.1", port=0) as port:
        ours = certificates.node("node2").client_context()
        for wanted in ("node1", None):
            async with ApiClient(endpoint(port, ours, node=wanted)) as client:
                with pytest.raises(Denied, match="no node"):
                    await client.create_volume("data", {})
    assert cluster.calls == []


async def test_untrusted_server(certificates: Certificates, port: int, tmp_path: Path) -> None:
    context = Certificates(tmp_path / "other").user("anna").client_context()
    async with ApiClient(endpoint(port, context)) as client:
        with pytest.raises(Denied, match="not from this cluster"):
            await client.create_volume("data", {})


async def test_nobody_there(certificates: Certificates) -> None:
    context = certificates.user("anna").client_context()
    where = TlsEndpoint(address="127.0.0.1", port=1, context=context, node="node1")
    async with ApiClient(where) as client:
        with pytest.raises(PeerUnavailable, match=r"node1 \(https://127.0.0.1:1\)"):
            await client.status()
