"""Nodes, and the parts of them that have to do with certificates, with real keys and files and one store."""

from __future__ import annotations

import ssl
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

from alone import removing_alone

from pannier.cluster.catalog import Catalog
from pannier.cluster.cluster import Cluster
from pannier.cluster.registry import Registry
from pannier.contract.bodies import RenewalOrder
from pannier.contract.views import CertificateView, FindingView, RenewalReply
from pannier.contract.words import CertificateKind
from pannier.core.certificates import DAY_SECONDS
from pannier.core.errors import Conflict, PannierError, PeerUnavailable
from pannier.core.node import Node
from pannier.core.pace import NodePace
from pannier.host.clock import Clock
from pannier.host.state_files import DurableFile, UnsyncedFile
from pannier.node.certificate_ports import CertificatePorts
from pannier.node.certificates import Certificates
from pannier.node.membership import Membership
from pannier.node.renewing import Renewing
from pannier.node.signing import Signing
from pannier.node.tokens import Tokens
from pannier.pki import files
from pannier.pki.authority import STORE_DIRECTORY, STORE_NAME, Authority
from pannier.pki.credentials import Credentials, new_request, store_credentials
from pannier.pki.facts import CertificateFacts
from pannier.pki.issued import IssuedToUsers
from pannier.pki.own import OwnCertificate
from pannier.pki.renewal import Prover, RenewalRequest
from pannier.store.etcd_member import member_certificate
from pannier.testing.store import MemoryData, MemoryStore

START = float(int(time.time()))
"""Real, since TLS looks at the real clock; in whole seconds, as certificates have them."""


class Time:
    """A wall clock that anybody may set, and the seconds since a boot."""

    def __init__(self) -> None:
        self.wall = START
        self.boot = 1000.0

    def clock(self) -> Clock:
        return Clock(now=lambda: self.boot, unix=lambda: self.wall)

    def pass_by(self, *, days: float) -> None:
        self.wall += days * DAY_SECONDS
        self.boot += days * DAY_SECONDS


@dataclass
class PeerOf:
    """A node as another one calls it."""

    node: Party

    async def peer_renew(self, order: RenewalOrder) -> RenewalReply:
        self.node.asked += 1
        if not self.node.up:
            raise PeerUnavailable(f"{self.node.name} does not answer")
        request = RenewalRequest(order.certificate, order.csr)
        return RenewalReply(certificate=await self.node.signing.renew_here(request))

    async def peer_certificates(self) -> list[CertificateView]:
        if not self.node.up:
            raise PeerUnavailable(f"{self.node.name} does not answer")
        return self.node.world.listing[self.node.name]()


class Party:
    """One node, with the parts that have to do with its certificate."""

    def __init__(self, world: World, name: str, *, has_authority: bool) -> None:
        self.world, self.name, self.has_authority = world, name, has_authority
        self.directory = world.directory / name
        self.time = Time()
        self.up = True
        self.asked = 0
        self.store = MemoryStore(world.data)
        self.start()

    def start(self) -> None:
        """The daemon starts, with nothing but what is on the disk."""
        self.credentials = Credentials.load(self.directory)
        theirs = self.store_credentials = store_credentials(self.credentials)
        clock = self.time.clock()
        registry = Registry(self.store)
        self.catalog = Catalog(
            file=DurableFile(self.directory / "catalog"), cluster=None, boot_id="b"
        )
        self.ports = CertificatePorts(
            own=OwnCertificate(self.credentials),
            store_client=OwnCertificate(theirs) if theirs is not self.credentials else None,
            store_member=self.member,
            prove=Prover(
                ca=self.credentials.ca_path,
                store_ca=theirs.ca_path if theirs is not self.credentials else None,
            ).prove,
            issued=IssuedToUsers(self.world.directory / "ca"),
            stranger=self.world.ask_as_stranger,
            store=no_members,
        )
        self.removing = removing_alone(
            self.name,
            registry,
            self.catalog,
            file=UnsyncedFile(self.directory / "removals.json"),
        )
        self.signing = Signing(
            node=self.name,
            registry=registry,
            catalog=self.catalog,
            peers=self.world,  # type: ignore[arg-type]
            prove=self.ports.prove,
            authority=self.authority,
            store_authority=self.store_authority,
            removals=lambda: self.removing.known,
            issued=self.ports.issued,
            clock=clock,
        )
        self.membership = Membership(
            node=self.name,
            registry=registry,
            catalog=self.catalog,
            authority=self.authority,
            tokens=Tokens(file=UnsyncedFile(self.directory / "tokens.json")),
            store_authority=lambda: None,
            removing=self.removing,
            store_address="etcd://a:2379",
            clock=clock,
        )
        self.renewing = Renewing(
            node=self.name,
            ports=self.ports,
            signing=self.signing,
            membership=self.membership,
            catalog=self.catalog,
            files={kind: UnsyncedFile(self.note(kind)) for kind in CertificateKind},
            clock=clock,
            pace=NodePace(),
        )

    def note(self, kind: CertificateKind) -> Path:
        """Of the last question, which is on a tmpfs."""
        return self.directory / f"renewal-{kind}.json"

    def member(self) -> OwnCertificate | None:
        """That of the member of etcd on this machine."""
        store_ca = self.store_credentials.ca_path
        return member_certificate(store_ca=store_ca, directory=self.directory / "etcd")

    @property
    def trouble(self) -> str:
        return self.renewing.trouble(str(self.ports.own.path))

    def store_authority(self) -> Authority | None:
        directory = self.world.directory / "ca" / STORE_DIRECTORY
        if not self.has_authority or not directory.exists():
            return None
        return Authority.load(directory, clock=lambda: self.time.wall)

    def authority(self) -> Authority:
        if not self.has_authority:
            raise Conflict("the authority is not here")
        return Authority.load(self.world.directory / "ca", clock=lambda: self.time.wall)

    def record(self) -> Node:
        shown = self.credentials.fingerprints
        return Node(
            name=self.name,
            address=self.name,
            drivers=(),
            version="1",
            joined_at=0.0,
            certificate=shown.certificate,
            key=shown.key,
            authority=self.has_authority,
        )

    async def look(self) -> None:
        await self.world.tell_catalogs()
        await self.renewing.look()

    def facts(self) -> CertificateFacts:
        return self.ports.own.facts()

    def days_left_of(self, kind: CertificateKind) -> float:
        """By this node's clock, of one of the certificates that it keeps."""
        [kept] = [each for each in self.ports.kept() if each.kind is kind]
        return (kept.certificate.facts().ends - self.time.wall) / DAY_SECONDS

    @property
    def days_left(self) -> float:
        """By a clock that is right."""
        return (self.facts().ends - self.world.nodes["n1"].time.wall) / DAY_SECONDS


async def no_members() -> dict[str, CertificateFacts | PannierError]:
    return {}


class World:
    """Two nodes and their store. The first has the authority.

    Args:
        life_days: how long the nodes' own certificates last; None for as long as they do.
        with_etcd: the store is an etcd that has an authority of its own, and a member on each node.
    """

    def __init__(
        self, directory: Path, *, life_days: float | None = None, with_etcd: bool = False
    ) -> None:
        self.directory = directory
        self.data = MemoryData()
        self.listing: dict[str, Callable[[], list[CertificateView]]] = {}
        authority = Authority.create(directory / "ca", cluster="c1", clock=lambda: START)
        self.nodes: dict[str, Party] = {}
        for name in ("n1", "n2"):
            request = new_request(name)
            unsigned = authority.prepare_node(request.csr_pem, node=name, addresses=["127.0.0.1"])
            if life_days is not None:
                unsigned = replace(unsigned, life=timedelta(days=life_days))
            Credentials.save(
                directory / name,
                ca=authority.certificate_pem,
                certificate=authority.sign(unsigned),
                key=request.key_pem,
            )
        if with_etcd:
            self._issue_for_etcd(
                Authority.create(
                    directory / "ca" / STORE_DIRECTORY,
                    cluster="c1",
                    name=STORE_NAME,
                    clock=lambda: START,
                )
            )
        self.nodes = {name: Party(self, name, has_authority=name == "n1") for name in ("n1", "n2")}

    def _issue_for_etcd(self, authority: Authority) -> None:
        for name in ("n1", "n2"):
            client, member = new_request(name), new_request(name)
            Credentials.save(
                self.directory / name / STORE_DIRECTORY,
                ca=authority.certificate_pem,
                certificate=authority.issue_store_client(client.csr_pem, node=name, membership=1),
                key=client.key_pem,
            )
            etcd = files.private_directory(self.directory / name / "etcd")
            issued = authority.issue_etcd(
                member.csr_pem, member=f"etcd-{name}", addresses=["127.0.0.1"], membership=1
            )
            (etcd / "ca.crt").write_text(authority.certificate_pem)
            files.write(etcd / "tls.key", member.key_pem, mode=0o600, replace=False)
            (etcd / "tls.crt").write_text(issued)

    def to(self, node: Node) -> PeerOf:
        return PeerOf(self.nodes[node.name])

    async def ask_as_stranger(
        self, address: str, port: int, node: str | None, order: RenewalOrder
    ) -> RenewalReply:
        return await PeerOf(self.nodes[address]).peer_renew(order)

    async def tell_catalogs(self) -> None:
        known = await Registry(self.nodes["n1"].store).nodes()
        for node in self.nodes.values():
            node.catalog._known.nodes = {each.name: each for each in known}

    def pass_by(self, *, days: float) -> None:
        for node in self.nodes.values():
            node.time.pass_by(days=days)


async def running(world: World) -> AsyncIterator[World]:
    one, two = world.nodes["n1"], world.nodes["n2"]
    async with one.store.session(), two.store.session():
        for node in (one, two):
            await Registry(node.store).put_node(node.record())
        yield world


class PowerCut(BaseException):
    """The machine is off."""


def cut(*_: object, **__: object) -> None:
    raise PowerCut


class Told:
    """What a node lists and finds, with one member of a store."""

    def __init__(self, world: World, name: str, *, member: CertificateFacts | PannierError) -> None:
        node = world.nodes[name]

        self.looks = 0

        async def members() -> dict[str, CertificateFacts | PannierError]:
            self.looks += 1
            return {"10.0.0.1:2379": member}

        self.certificates = Certificates(
            cluster=Cluster(node=name, registry=Registry(node.store), catalog=node.catalog),
            ports=replace(node.ports, store=members),
            peers=world,  # type: ignore[arg-type]
            trouble=node.renewing.trouble,
            has_authority=lambda: node.signing.is_here,
            clock=node.time.clock(),
            pace=NodePace(),
        )

    async def found(self) -> dict[str, FindingView]:
        return {each.subject: each async for each in self.certificates.findings()}


def greet(server: ssl.SSLContext, client: ssl.SSLContext) -> tuple[bytes, bytes]:
    """Shake hands in memory; what each end showed the other."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    near = client.wrap_bio(to_client, to_server, server_hostname="n1")
    far = server.wrap_bio(to_server, to_client, server_side=True)
    for end in (near, far) * 3:
        try:
            end.do_handshake()
        except ssl.SSLWantReadError:
            continue
    shown = far.getpeercert(True), near.getpeercert(True)
    assert shown[0] is not None
    assert shown[1] is not None
    return shown[0], shown[1]
