"""Certificates for etcd are renewed as nodes' are: a node's with which it uses etcd, and that of the member beside it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from renewing_world import PeerOf, PowerCut, Told, World, cut, running

from pannier.contract.bodies import RenewalOrder
from pannier.contract.views import RenewalReply
from pannier.contract.words import CertificateKind, CertificateState, Level
from pannier.core.certificates import DAY_SECONDS, LIFE_SECONDS, WARN_SECONDS
from pannier.core.errors import Conflict, Denied, OutcomeUnknown, StoreUnavailable
from pannier.core.removals import Removals
from pannier.pki import files
from pannier.pki.authority import Authority
from pannier.pki.credentials import Credentials, new_request
from pannier.pki.facts import CertificateFacts
from pannier.pki.identity import identity_of
from pannier.pki.own import OwnCertificate
from pannier.pki.renewal import RenewalRequest

NODE, STORE, ETCD = CertificateKind.NODE, CertificateKind.STORE, CertificateKind.ETCD
KINDS = (NODE, STORE, ETCD)
NEARLY_FIVE_YEARS = 1826 - 100


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async for each in running(World(tmp_path, with_etcd=True)):
        await each.tell_catalogs()
        yield each


def certificate(own: OwnCertificate | None) -> OwnCertificate:
    assert own is not None
    return own


def serials(certificate: CertificateFacts) -> set[int]:
    return {int(certificate.serial, 16)}


# -- in time ------------------------------------------------------------------------------------------


async def test_nothing_ends_in_nine_years(world: World) -> None:
    """Also not after five, when all that etcd was set up with ends on one day."""
    for _ in range(9 * 12):
        world.pass_by(days=30)
        for node in world.nodes.values():
            await node.look()
            for kind in KINDS:
                assert node.days_left_of(kind) * DAY_SECONDS > WARN_SECONDS


@pytest.mark.parametrize("kind", [STORE, ETCD])
async def test_a_renewed_one_is_for_the_same_key_the_same_names_and_the_same_membership(
    world: World, kind: CertificateKind
) -> None:
    """So what etcd refuses after a removal refuses every certificate that was ever signed for the membership."""
    world.pass_by(days=NEARLY_FIVE_YEARS)
    for node in world.nodes.values():
        [own] = [each.certificate for each in node.ports.kept() if each.kind is kind]
        before, was = own.facts(), parsed(own.path)
        await node.look()
        after, now = own.facts(), parsed(own.path)
        assert after.ends == node.time.wall + LIFE_SECONDS
        assert (after.serial, after.subject) == (before.serial, before.subject)
        assert after.fingerprints.key == before.fingerprints.key
        for what in (x509.SubjectAlternativeName, x509.ExtendedKeyUsage):
            find = now.extensions.get_extension_for_class
            assert find(what) == was.extensions.get_extension_for_class(what)
        assert serials(after) <= Removals().with_removed(node.name).refused()


def parsed(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


async def test_a_members_certificate_may_be_read_by_the_user_that_etcd_runs_as(
    world: World,
) -> None:
    node = world.nodes["n2"]
    path = certificate(node.member()).path
    path.chmod(0o600)
    world.pass_by(days=NEARLY_FIVE_YEARS)
    await node.look()
    assert path.stat().st_mode & 0o777 == 0o644
    assert (path.parent / "tls.key").stat().st_mode & 0o777 == 0o600


# -- where the power fails, and what does not answer ----------------------------------------------------


@pytest.mark.parametrize("when", ["before asking", "before writing the first", "before the second"])
async def test_a_power_cut_between_the_files_leaves_certificates_that_count(
    world: World, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    world.pass_by(days=NEARLY_FIVE_YEARS)
    node = world.nodes["n2"]
    await node.renewing._look_at(node.ports.kept()[0])
    written = list[Path]()

    def write(path: Path, text: str, *, mode: int, replace: bool) -> None:
        if when == "before writing the first" or written:
            raise PowerCut
        written.append(path)
        whole(path, text, mode=mode, replace=replace)

    whole = files.write
    with monkeypatch.context() as patch:
        if when == "before asking":
            patch.setattr(PeerOf, "peer_renew", cut)
        else:
            patch.setattr(files, "write", write)
        with pytest.raises(PowerCut):
            await node.look()
    for kind in KINDS:
        node.note(kind).unlink(missing_ok=True)
    node.time.boot = 0.0
    node.start()
    await node.look()
    for kind in (STORE, ETCD):
        assert node.days_left_of(kind) == 365


async def test_an_authority_that_is_away_is_asked_for_each_and_not_often(world: World) -> None:
    world.pass_by(days=300)
    one, two = world.nodes["n1"], world.nodes["n2"]
    one.up = False
    for _ in range(50):
        await two.look()
        two.time.boot += 60
        two.start()
    assert one.asked == 2, "its own and that for the store; the member's is not due"
    two.time.boot += 3600
    await two.look()
    assert "n1 does not answer" in two.renewing.trouble(str(two.store_credentials.certificate_path))
    one.up = True
    two.time.boot += 3600
    await two.look()
    assert two.days_left_of(STORE) == 365


async def test_an_answer_that_never_comes_costs_an_hour(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.pass_by(days=NEARLY_FIVE_YEARS)
    node = world.nodes["n2"]
    before = [node.days_left_of(kind) for kind in KINDS]
    answer = PeerOf.peer_renew

    async def lost(self: PeerOf, order: RenewalOrder) -> RenewalReply:
        await answer(self, order)
        raise OutcomeUnknown("the connection broke")

    with monkeypatch.context() as patch:
        patch.setattr(PeerOf, "peer_renew", lost)
        await node.look()
    assert [node.days_left_of(kind) for kind in KINDS] == before
    node.time.boot += 3600
    await node.look()
    assert [node.days_left_of(kind) for kind in KINDS] == [365] * 3


@pytest.mark.parametrize("days", [NEARLY_FIVE_YEARS, 30_000, -2000])
async def test_a_nodes_clock_that_jumps_changes_nothing(world: World, days: float) -> None:
    node = world.nodes["n2"]
    before = [kept.certificate.facts() for kept in node.ports.kept()]
    node.time.wall += days * DAY_SECONDS
    for _ in range(20):
        await node.look()
        node.start()
    assert world.nodes["n1"].asked <= len(KINDS), "and nobody is asked again and again"
    assert [kept.certificate.facts() for kept in node.ports.kept()] == before


async def test_a_cluster_that_was_off_until_all_had_ended_comes_back_by_itself(
    world: World,
) -> None:
    """etcd serves only after its members' are renewed, so these need no store."""
    world.pass_by(days=6 * 365)
    one, two = world.nodes["n1"], world.nodes["n2"]
    for node in (one, two):
        node.store.cut()
        await node.renewing.look()
        assert node.days_left_of(STORE) == node.days_left_of(ETCD) == 365
    assert one.days_left_of(NODE) == 365
    assert two.days_left_of(NODE) < 0, "it is known by its record"
    for node in (one, two):
        node.store.mend()
    two.time.boot += 60
    await two.look()
    assert two.days_left_of(NODE) == 365


async def test_a_person_renews_all_that_is_due_and_is_told_what_failed(world: World) -> None:
    world.pass_by(days=6 * 365)
    one, two = world.nodes["n1"], world.nodes["n2"]
    one.store.cut()
    with pytest.raises(StoreUnavailable):
        await two.renewing.renew(address="n1")
    assert two.days_left_of(STORE) == two.days_left_of(ETCD) == 365
    one.store.mend()
    await two.renewing.renew(address="n1")
    with pytest.raises(Conflict, match="is good until"):
        await two.renewing.renew(address="n1")


# -- who may ask ----------------------------------------------------------------------------------------


async def test_of_a_node_that_was_removed_nothing_is_renewed(world: World) -> None:
    one, two = world.nodes["n1"], world.nodes["n2"]
    await one.removing.take_in(Removals(counts={"n2": 1}))
    world.pass_by(days=NEARLY_FIVE_YEARS)
    before = [two.days_left_of(kind) for kind in (STORE, ETCD)]
    await two.renewing.look()
    assert [two.days_left_of(kind) for kind in (STORE, ETCD)] == before
    for path in (two.store_credentials.certificate_path, certificate(two.member()).path):
        assert "was removed" in two.renewing.trouble(str(path))


async def test_only_etcds_authority_renews_what_it_issued(world: World, tmp_path: Path) -> None:
    """A member's of an earlier version, which the cluster's own authority issued, gets nothing that opens etcd."""
    one = world.nodes["n1"]
    world.pass_by(days=NEARLY_FIVE_YEARS)
    theirs = one.store_authority()
    assert theirs is not None
    key = new_request("etcd-n2")
    old = one.authority().issue_etcd(
        key.csr_pem, member="etcd-n2", addresses=["10.0.0.2"], membership=1
    )
    stranger = Authority.create(tmp_path / "other", cluster="c1", name="Pannier store CA")
    foreign = stranger.issue_etcd(
        key.csr_pem, member="etcd-n2", addresses=["10.0.0.2"], membership=1
    )
    good = certificate(one.member()).request()
    for request in (
        RenewalRequest(old, key.csr_pem),
        RenewalRequest(foreign, key.csr_pem),
        RenewalRequest(theirs.certificate_pem, key.csr_pem),
        RenewalRequest(good.certificate, key.csr_pem),
    ):
        with pytest.raises(Denied, match="is not accepted"):
            await one.signing.renew(request)
    assert await one.signing.renew(good)
    for authority, issued in ((theirs, old), (one.authority(), good.certificate)):
        with pytest.raises(Denied, match="another authority"):
            authority.renew(x509.load_pem_x509_certificate(issued.encode()))


async def test_a_renewed_one_for_etcd_opens_nothing_else(world: World) -> None:
    world.pass_by(days=NEARLY_FIVE_YEARS)
    node = world.nodes["n2"]
    await node.look()
    member = parsed(certificate(node.member()).path)
    with pytest.raises(Denied, match="names no node or user"):
        identity_of(member.public_bytes(Encoding.DER))
    assert Credentials.load(node.store_credentials.directory).identity.name == "n2"
    with pytest.raises(Denied, match="was not issued by the CA"):
        Credentials.save(
            node.directory / "elsewhere",
            ca=files.read(node.credentials.ca_path),
            certificate=files.read(node.store_credentials.certificate_path),
            key=files.read(node.store_credentials.key_path),
        )


async def test_a_member_that_another_authority_has_issued_is_left_alone(
    world: World, tmp_path: Path
) -> None:
    node = world.nodes["n2"]
    stranger = Authority.create(tmp_path / "other", cluster="c1", name="Pannier store CA")
    issued = stranger.issue_etcd(
        new_request("e").csr_pem, member="etcd-n2", addresses=["10.0.0.2"], membership=1
    )
    path = certificate(node.member()).path
    for text in (issued, "nonsense", ""):
        path.write_text(text)
        assert node.member() is None
        await node.look()
        assert path.read_text() == text
    path.unlink()
    assert node.member() is None


# -- what people are told ---------------------------------------------------------------------------------


async def test_those_for_etcd_are_listed_once(world: World) -> None:
    one, two = world.nodes["n1"], world.nodes["n2"]
    shown = certificate(two.member()).facts()
    world.listing["n2"] = Told(world, "n2", member=shown).certificates.here
    views = await Told(world, "n1", member=shown).certificates.everywhere()
    assert [(view.kind, view.name, view.node) for view in views] == [
        ("node", "n1", "n1"),
        ("store", "n1", "n1"),
        ("etcd", "etcd-n1", "n1"),
        ("authority", "Pannier cluster CA", "n1"),
        ("authority", "Pannier store CA", "n1"),
        ("node", "n2", "n2"),
        ("store", "n2", "n2"),
        ("etcd", "etcd-n2", "n2"),
    ]
    assert {view.state for view in views} == {"good"}
    world.pass_by(days=NEARLY_FIVE_YEARS)
    await two.look()
    *_, last = await Told(world, "n1", member=shown).certificates.everywhere()
    assert (last.kind, last.node, last.where) == ("etcd", None, "10.0.0.1:2379"), (
        "it does not show the renewed one"
    )
    assert one.ports.store_client is not None


async def test_doctor_tells_of_each_that_cannot_be_renewed(world: World) -> None:
    one, two = world.nodes["n1"], world.nodes["n2"]
    world.pass_by(days=NEARLY_FIVE_YEARS)
    one.up = False
    await two.look()
    found = await Told(world, "n2", member=certificate(two.member()).facts()).found()
    mine = found["certificate of etcd etcd-n2"]
    assert (mine.level, "n1 does not answer" in mine.what) == (Level.WARNING, True)
    assert found["certificate of store n2"].level is Level.PROBLEM, "it has ended"
    one.up = True
    two.time.boot += 3600
    await two.look()
    assert await Told(world, "n2", member=certificate(two.member()).facts()).found() == {}


async def test_one_that_cannot_be_read_is_told_and_hides_no_other(world: World) -> None:
    two = world.nodes["n2"]
    two.store_credentials.certificate_path.write_text("nonsense")
    world.pass_by(days=300)
    await two.look()
    assert two.days_left == 365
    told = Told(world, "n2", member=certificate(two.member()).facts())
    found = await told.found()
    assert "cannot be read" in found["certificate of store n2"].what
    states = {view.kind: view.state for view in told.certificates.here()}
    assert states == {
        NODE: CertificateState.GOOD,
        STORE: CertificateState.UNSEEN,
        ETCD: CertificateState.GOOD,
    }
