"""Who gets into the cluster's etcd, tried with a real one: its own authority, and nodes that were removed."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from etcd_server import Certificates, EtcdCluster

from pannier.core.errors import StoreUnavailable
from pannier.core.removals import Removals
from pannier.pki.authority import STORE_NAME, Authority
from pannier.pki.credentials import Credentials, new_request
from pannier.pki.refusal import refusal_list, refused_by
from pannier.store.base import ABSENT, Change
from pannier.store.etcd import EtcdStore
from pannier.store.etcd_gateway import Timing

IMPATIENT = Timing(deadline_seconds=2.0, try_seconds=0.5, quiet_seconds=0.3)


class StoreCertificates(Certificates):
    """A cluster's two authorities, the files of an etcd member, and nodes' credentials."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.shown: ssl.SSLContext | None = None
        self.authority = Authority.create(directory / "ca", cluster="c0ffee")
        self.store = Authority.create(directory / "store-ca", cluster="c0ffee", name=STORE_NAME)
        self.ca, self.certificate, self.key = (
            directory / name for name in ("ca.pem", "m.pem", "m.key")
        )
        self.ca.write_text(self.store.certificate_pem)
        self.issue_member(self.store)

    def issue_member(self, authority: Authority) -> None:
        """A new certificate for the members, which all have the same here."""
        request = new_request("etcd-n1")
        issued = authority.issue_etcd(
            request.csr_pem, member="etcd-n1", addresses=["127.0.0.1"], membership=1
        )
        self.key.write_text(request.key_pem)
        self.certificate.write_text(issued)

    def legacy(self, name: str) -> ssl.SSLContext:
        """As a node of an earlier version: with what it shows to other nodes, and trusts of them."""
        request = new_request(name)
        issued = self.authority.issue_node(request.csr_pem, node=name, addresses=["127.0.0.1"])
        return self._context(f"{name}-legacy", issued, request.key_pem, self.authority)

    def mixed(self, name: str) -> ssl.SSLContext:
        """As a node on the way: with its new certificate, and trust in both authorities."""
        context = self.node(name)
        context.load_verify_locations(cadata=self.authority.certificate_pem)
        return context

    def node(self, name: str, *, membership: int = 1) -> ssl.SSLContext:
        request = new_request(name)
        issued = self.store.issue_store_client(request.csr_pem, node=name, membership=membership)
        return self._context(name, issued, request.key_pem, self.store)

    def peer(self, name: str) -> ssl.SSLContext:
        """With the certificate for other nodes; trusts the members all the same."""
        request = new_request(name)
        issued = self.authority.issue_node(request.csr_pem, node=name, addresses=["127.0.0.1"])
        context = self._context(f"{name}-peer", issued, request.key_pem, self.authority)
        context.load_verify_locations(cadata=self.store.certificate_pem)
        return context

    def user(self, name: str) -> ssl.SSLContext:
        request = new_request(name)
        issued = self.authority.issue_user(request.csr_pem, user=name)
        context = self._context(f"{name}-user", issued, request.key_pem, self.authority)
        context.load_verify_locations(cadata=self.store.certificate_pem)
        return context

    def _context(self, folder: str, issued: str, key: str, authority: Authority) -> ssl.SSLContext:
        saved = Credentials.save(
            self.directory / folder, ca=authority.certificate_pem, certificate=issued, key=key
        )
        return saved.client_context()

    def client(self) -> ssl.SSLContext:
        """What the test's own requests show."""
        return self.shown or self.node("n1")


@dataclass(frozen=True, slots=True)
class World:
    """One member, its certificates, and the list that it reads."""

    etcd: EtcdCluster
    certificates: StoreCertificates
    refused: Path

    def refuse(self, removals: Removals) -> None:
        draft = self.refused.with_suffix(".new")
        draft.write_bytes(refusal_list(removals.refused(), now=time.time()))
        draft.replace(self.refused)

    def restart(self) -> None:
        [member] = self.etcd.members
        member.kill()
        self.etcd.start(member)
        self.etcd.wait_until_serving(member)

    def store(self, context: ssl.SSLContext) -> EtcdStore:
        return EtcdStore(self.etcd.endpoints, tls=context, timing=IMPATIENT)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    certificates = StoreCertificates(tmp_path)
    refused = tmp_path / "refused.crl"
    refused.write_bytes(refusal_list((), now=time.time()))
    etcd = EtcdCluster(
        tmp_path,
        size=1,
        certificates=certificates,
        options=("--client-crl-file", str(refused), "--peer-crl-file", str(refused)),
    )
    with etcd.running():
        yield World(etcd, certificates, refused)


async def can_write(world: World, context: ssl.SSLContext) -> bool:
    store = world.store(context)
    async with store.session():
        try:
            found = await store.get("tried")
            await store.commit(Change("tried", b"", found.revision if found else ABSENT))
        except StoreUnavailable:
            return False
        return True


async def test_only_what_etcds_own_authority_issued_gets_in(world: World) -> None:
    assert await can_write(world, world.certificates.node("n2"))
    assert not await can_write(world, world.certificates.peer("n2"))
    assert not await can_write(world, world.certificates.user("anna"))


async def test_a_removed_node_is_out_with_its_open_connections_and_watches(world: World) -> None:
    removed = world.certificates.node("n2")
    wire = open_watch(world, removed)
    store = world.store(removed)
    async with store.session():
        await store.get("x")  # its connection stays open
        world.refuse(Removals().with_removed("n2"))
        await asyncio.to_thread(world.restart)
        with pytest.raises(StoreUnavailable):
            await store.get("x")
    assert is_cut(wire)
    assert not await can_write(world, world.certificates.node("n2"))  # nor with a renewed one
    assert await can_write(world, world.certificates.node("n3"))


async def test_a_list_alone_does_not_cut_what_is_open(world: World) -> None:
    """Why a member is restarted: if this fails one day, that is not needed any more."""
    store = world.store(world.certificates.node("n2"))
    async with store.session():
        await store.get("x")
        world.refuse(Removals().with_removed("n2"))
        await store.get("x")
    assert not await can_write(world, world.certificates.node("n2"))


async def test_a_node_that_joins_again_is_let_in_and_its_former_self_is_not(world: World) -> None:
    removals = Removals().with_removed("n2")
    world.refuse(removals)
    again = world.certificates.node("n2", membership=removals.membership("n2"))
    assert await can_write(world, again)
    assert not await can_write(world, world.certificates.node("n2", membership=1))
    world.refuse(removals.with_removed("n2"))
    assert not await can_write(world, world.certificates.node("n2", membership=2))


async def test_without_its_list_etcd_lets_nobody_in(world: World) -> None:
    world.refused.unlink()
    assert not await can_write(world, world.certificates.node("n3"))


def test_the_list_says_what_was_put_into_it() -> None:
    removals = Removals().with_removed("n2").with_removed("n2").with_removed("n3")
    assert refused_by(refusal_list(removals.refused(), now=0.0)) == removals.refused()
    assert len(removals.refused()) == 6  # three memberships, each with an etcd member's


def test_an_etcd_of_an_earlier_version_gets_its_own_authority_while_it_serves(
    tmp_path: Path,
) -> None:
    """The steps of docs/operations; at each, members and nodes that are a step behind go on."""
    certificates = StoreCertificates(tmp_path)
    both = certificates.authority.certificate_pem + certificates.store.certificate_pem
    old, new, mixed = certificates.legacy("n1"), certificates.client(), certificates.mixed("n1")
    etcd = EtcdCluster(tmp_path, size=3, certificates=certificates)
    certificates.ca.write_text(certificates.authority.certificate_pem)
    certificates.issue_member(certificates.authority)
    certificates.shown = old
    with etcd.running():
        assert_out(etcd, new)
        certificates.ca.write_text(both)
        restart_each(etcd)
        assert_in(etcd, old)  # a node that has nothing new yet
        assert_in(etcd, mixed)
        certificates.shown = mixed
        certificates.issue_member(certificates.store)
        assert_in(etcd, mixed)
        assert_in(etcd, new)
        certificates.ca.write_text(certificates.store.certificate_pem)
        restart_each(etcd)
        assert_in(etcd, new)
        assert_out(etcd, certificates.peer("n1"))


def restart_each(etcd: EtcdCluster) -> None:
    """One after the other; each is a member again before the next ends."""
    for member in etcd.members:
        member.kill()
        etcd.start(member)
        etcd.wait_until_serving(member)


def assert_in(etcd: EtcdCluster, context: ssl.SSLContext) -> None:
    for member in etcd.members:
        etcd.post(member, "kv/put", b'{"key":"YQ=="}', context=context)


def assert_out(etcd: EtcdCluster, context: ssl.SSLContext) -> None:
    for member in etcd.members:
        with pytest.raises(OSError):  # noqa: PT011, urllib's and ssl's errors
            etcd.post(member, "kv/put", b'{"key":"YQ=="}', context=context)


def open_watch(world: World, context: ssl.SSLContext) -> ssl.SSLSocket:
    """A watch by hand, that does not come back when it is cut."""
    [member] = world.etcd.members
    plain = socket.create_connection(("127.0.0.1", member.client_port), timeout=10)
    wire = context.wrap_socket(plain, server_hostname="127.0.0.1")
    body = json.dumps({"create_request": {"key": "AA==", "range_end": "AA=="}})
    head = f"POST /v3/watch HTTP/1.1\r\nHost: e\r\nContent-Length: {len(body)}\r\n\r\n"
    wire.sendall((head + body).encode())
    assert b"200 OK" in wire.recv(4096)
    return wire


def is_cut(wire: ssl.SSLSocket) -> bool:
    """Read until the end; a watch that lives on says nothing, and this times out."""
    with wire:
        try:
            while wire.recv(4096):
                pass
        except ConnectionResetError:
            return True
        except TimeoutError:
            return False
        return True
