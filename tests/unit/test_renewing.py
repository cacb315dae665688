"""Certificates are renewed, with real keys, files and TLS: power cuts, clocks that jump, ended ones, and who may not ask."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from renewing_world import START, PeerOf, PowerCut, Told, World, cut, greet, running

from pannier.cluster.registry import Registry
from pannier.contract.words import CertificateKind, Level
from pannier.core.certificates import DAY_SECONDS, LIFE_SECONDS
from pannier.core.errors import Conflict, Denied, PeerUnavailable, StoreUnavailable
from pannier.pki import files
from pannier.pki.authority import Authority
from pannier.pki.credentials import Credentials, new_request
from pannier.pki.facts import facts_of
from pannier.pki.own import OwnCertificate
from pannier.pki.renewal import RenewalRequest
from pannier.store.shown import shown_by_store

OLD_LIFE_DAYS = 1826


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async for each in running(World(tmp_path)):
        yield each


async def test_at_two_thirds_of_its_life_each_nodes_certificate_is_renewed(world: World) -> None:
    for node in world.nodes.values():
        before = node.facts()
        world.pass_by(days=0)
        await node.look()
        assert node.facts() == before, "not before"
    world.pass_by(days=2 / 3 * 365 + 1)
    for node in world.nodes.values():
        before = node.facts()
        await node.look()
        after = node.facts()
        assert after.ends == node.time.wall + LIFE_SECONDS
        assert after.fingerprints.key == before.fingerprints.key
        assert after.serial != before.serial
        assert node.trouble == ""
        found = await Registry(node.store).node(node.name)
        assert found is not None
        await node.look()
        found = await Registry(node.store).node(node.name)
        assert found is not None
        assert found.record.certificate == after.fingerprints.certificate, "for earlier versions"


async def test_one_of_five_years_counts_and_is_renewed_in_time(tmp_path: Path) -> None:
    async for world in running(World(tmp_path, life_days=OLD_LIFE_DAYS)):
        node = world.nodes["n2"]
        world.pass_by(days=4 * 365)
        await node.look()
        assert node.days_left == OLD_LIFE_DAYS - 4 * 365
        world.pass_by(days=250)
        await node.look()
        assert node.days_left == 365


async def test_a_record_of_an_earlier_version_gets_the_key_before_anything_is_signed(
    world: World,
) -> None:
    node = world.nodes["n2"]
    registry = Registry(node.store)
    found = await registry.node("n2")
    assert found is not None
    await registry.put_node(replace(found.record, key=""), expect=found.revision)
    world.pass_by(days=300)
    await node.look()
    assert node.days_left == 365
    found = await registry.node("n2")
    assert found is not None
    assert found.record.is_shown_by(node.facts().fingerprints)


# -- where the power fails, and what does not answer -------------------------------------------------


@pytest.mark.parametrize("when", ["before asking", "before writing", "before taking up"])
async def test_a_power_cut_at_any_step_leaves_a_certificate_that_counts(
    world: World, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    world.pass_by(days=300)
    node = world.nodes["n2"]
    with monkeypatch.context() as patch:
        if when == "before asking":
            patch.setattr(PeerOf, "peer_renew", cut)
        elif when == "before writing":
            patch.setattr(files, "write", cut)
        else:
            patch.setattr(Credentials, "take_up", cut)
        with pytest.raises(PowerCut):
            await node.look()
    node.time.boot = 0.0  # the note of the last question was on a tmpfs
    node.note(CertificateKind.NODE).unlink()
    node.start()
    assert node.ports.own.facts().ends > node.time.wall
    await node.membership.introduce(node.record())
    await node.look()
    assert node.days_left == 365
    assert node.trouble == ""


async def test_an_authority_that_is_away_is_asked_again_and_not_often(world: World) -> None:
    world.pass_by(days=300)
    one, two = world.nodes["n1"], world.nodes["n2"]
    one.up = False
    for _ in range(200):
        await two.look()
        two.time.boot += 60
        two.start()  # also not at each start
    assert one.asked == 4, "within 200 minutes"
    two.time.boot += 3600
    await two.look()
    assert "n1 does not answer" in two.trouble
    one.up = True
    two.time.boot += 3600
    await two.look()
    assert two.days_left == 365


async def test_without_an_authority_it_is_said(world: World) -> None:
    world.pass_by(days=300)
    node = world.nodes["n2"]
    found = await Registry(node.store).node("n1")
    assert found is not None
    await Registry(node.store).put_node(
        replace(found.record, authority=False), expect=found.revision
    )
    await node.look()
    assert "no node says that it has the key" in node.trouble


# -- clocks -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("days", [300, 2000, 30_000, -2000])
async def test_a_nodes_clock_that_jumps_changes_nothing(world: World, days: float) -> None:
    node = world.nodes["n2"]
    before = node.facts()
    node.time.wall += days * DAY_SECONDS
    for _ in range(100):
        await node.look()
        node.start()
    assert world.nodes["n1"].asked <= 1, "and nobody is asked again and again"
    assert node.facts() == before
    node.time.wall = START
    await node.look()
    assert node.trouble == ""


async def test_what_was_signed_while_all_clocks_were_ahead_counts_when_they_are_right(
    world: World,
) -> None:
    for node in world.nodes.values():
        node.time.wall += 3 * LIFE_SECONDS
    for node in world.nodes.values():
        await node.look()
        assert node.facts().ends == node.time.wall + LIFE_SECONDS
    for node in world.nodes.values():
        node.time.wall = START
        assert node.facts().begins < node.time.wall < node.facts().ends


async def test_an_authority_whose_clock_is_behind_never_shortens(world: World) -> None:
    world.pass_by(days=300)
    node = world.nodes["n2"]
    before = node.facts()
    world.nodes["n1"].time.wall = START - 5 * LIFE_SECONDS
    await node.look()
    assert node.facts() == before
    assert "check the clocks" in node.trouble


async def test_one_that_ends_with_the_authority_is_not_asked_for_again_and_again(
    tmp_path: Path,
) -> None:
    async for world in running(World(tmp_path, life_days=5000)):
        world.pass_by(days=3600)
        node = world.nodes["n2"]
        await node.look()
        assert world.nodes["n1"].asked == 0
        with pytest.raises(Conflict, match="with its authority itself"):
            await node.renewing.renew()


# -- after the end ----------------------------------------------------------------------------------


async def test_a_node_whose_certificate_has_ended_comes_back_by_itself(world: World) -> None:
    """Its store does not let it in any more; and the authority's own has ended, too."""
    world.pass_by(days=500)
    one, two = world.nodes["n1"], world.nodes["n2"]
    await world.tell_catalogs()
    one.store.cut()
    await one.renewing.look()
    assert one.days_left == 365, "its own needs no store"
    one.store.mend()
    two.store.cut()
    await two.renewing.look()
    assert two.days_left == 365


async def test_a_node_whose_certificate_has_ended_is_told_what_the_authority_said(
    world: World,
) -> None:
    world.pass_by(days=500)
    one, two = world.nodes["n1"], world.nodes["n2"]
    await world.tell_catalogs()
    two.catalog._known.nodes["n0"] = replace(one.record(), name="n0", authority=False)
    one.up = False
    await two.renewing.look()
    assert "n1 does not answer" in two.trouble
    assert one.asked == 2, "and the other node was asked, too"
    two.catalog._known.nodes.clear()
    with pytest.raises(PeerUnavailable, match="remembers no other node"):
        await two.renewing.renew()
    one.up = True
    await one.renewing.look()
    await two.renewing.renew(address="n1")
    assert two.days_left == 365


async def test_a_node_that_was_removed_is_not_renewed(world: World) -> None:
    await world.tell_catalogs()
    await world.nodes["n1"].membership.remove("n2")
    for days in (300, 500):
        world.pass_by(days=days)
        node = world.nodes["n2"]
        before = node.facts()
        await node.renewing.look()
        assert "was removed" in node.trouble
        assert node.facts() == before


async def test_a_node_that_was_set_up_anew_is_not_renewed_by_its_old_certificate(
    world: World,
) -> None:
    registry = Registry(world.nodes["n1"].store)
    found = await registry.node("n2")
    assert found is not None
    await registry.put_node(replace(found.record, key="0" * 64), expect=found.revision)
    world.pass_by(days=300)
    await world.nodes["n2"].look()
    assert "set up anew" in world.nodes["n2"].trouble


async def test_without_the_store_nothing_is_signed_for_others(world: World) -> None:
    world.pass_by(days=300)
    one, two = world.nodes["n1"], world.nodes["n2"]
    await world.tell_catalogs()
    one.store.cut()
    request = two.ports.own.request()
    with pytest.raises(StoreUnavailable):
        await one.signing.renew(request)


# -- who may ask ------------------------------------------------------------------------------------


def _order(certificate: str, csr: str) -> RenewalRequest:
    return RenewalRequest(certificate, csr)


async def test_only_the_key_of_a_certificate_renews_it(world: World, tmp_path: Path) -> None:
    world.pass_by(days=300)
    one, two = world.nodes["n1"], world.nodes["n2"]
    good = two.ports.own.request()
    stranger = Authority.create(tmp_path / "other", cluster="c1", clock=lambda: START)
    theirs = new_request("n2")
    foreign = stranger.issue_node(theirs.csr_pem, node="n2", addresses=["n2"])
    etcd = new_request("e")
    member = one.authority().issue_etcd(
        etcd.csr_pem, member="e", addresses=["10.0.0.1"], membership=1
    )
    said = set()
    for request in (
        _order(good.certificate, new_request("n2").csr_pem),
        _order(good.certificate, one.ports.own.request().csr),
        _order(foreign, theirs.csr_pem),
        _order(member, etcd.csr_pem),
        _order(one.authority().certificate_pem, good.csr),
        _order("nonsense", good.csr),
        _order(good.certificate, "nonsense"),
        _order(good.certificate + "A" * 20_000, good.csr),
    ):
        with pytest.raises(Denied) as refused:
            await one.signing.renew(request)
        said.add(str(refused.value))
    assert len(said) == 1, "nothing is told but a refusal"
    assert await one.signing.renew(good)


async def test_an_answer_that_does_not_fit_is_not_kept(world: World) -> None:
    one, two = world.nodes["n1"], world.nodes["n2"]
    before = two.facts()
    other = new_request("n2")
    chains = (
        files.read(one.ports.own.path),
        files.read(two.ports.own.path),
        one.authority().issue_node(other.csr_pem, node="n2", addresses=["n2"]),
    )
    for chain in chains:
        with pytest.raises(Denied):
            two.ports.own.keep(chain)
    assert two.facts() == before
    assert Credentials.load(two.directory).fingerprints == before.fingerprints


# -- users ------------------------------------------------------------------------------------------


async def test_a_users_certificate_is_renewed_and_noted_but_not_after_its_end(world: World) -> None:
    one, two = world.nodes["n1"], world.nodes["n2"]
    await world.tell_catalogs()
    key = new_request("ann")
    chain = one.authority().issue_user(key.csr_pem, user="ann")
    with pytest.raises(Conflict, match="good until"):
        await two.signing.renew(_order(chain, key.csr_pem))
    world.pass_by(days=300)
    renewed = await two.signing.renew(_order(chain, key.csr_pem))
    assert facts_of(renewed).ends == one.time.wall + LIFE_SECONDS
    assert [each.name for each in one.ports.issued.all()] == ["ann"]
    assert one.ports.issued.all()[0] == facts_of(renewed)
    world.pass_by(days=100)
    with pytest.raises(Denied, match="has ended"):
        await two.signing.renew(_order(chain, key.csr_pem))


async def test_of_a_user_only_the_newest_key_is_renewed(world: World) -> None:
    """So a certificate that was lost ends once another one was issued."""
    one = world.nodes["n1"]
    lost, newer = new_request("ann"), new_request("ann")
    chains = [one.authority().issue_user(each.csr_pem, user="ann") for each in (lost, newer)]
    one.ports.issued.note("ann", chains[1])
    world.pass_by(days=300)
    with pytest.raises(Denied, match="a new one was issued"):
        await one.signing.renew(_order(chains[0], lost.csr_pem))
    assert await one.signing.renew(_order(chains[1], newer.csr_pem))


# -- what people are told -----------------------------------------------------------------------------


async def test_all_certificates_are_listed_wherever_they_are(world: World) -> None:
    one, two = world.nodes["n1"], world.nodes["n2"]
    await world.tell_catalogs()
    one.ports.issued.note("ann", one.authority().issue_user(new_request("ann").csr_pem, user="ann"))
    etcd = one.authority().issue_etcd(
        new_request("e").csr_pem, member="etcd1", addresses=["10.0.0.1"], membership=1
    )
    told = Told(world, "n1", member=facts_of(etcd))
    world.listing["n2"] = Told(world, "n2", member=facts_of(etcd)).certificates.here
    views = await told.certificates.everywhere()
    assert [(view.kind, view.name, view.node) for view in views] == [
        ("node", "n1", "n1"),
        ("authority", "Pannier cluster CA", "n1"),
        ("user", "ann", "n1"),
        ("node", "n2", "n2"),
        ("etcd", "etcd1", None),
    ]
    assert {view.state for view in views} == {"good"}
    assert views[0].where == str(one.ports.own.path)
    assert views[0].serial == one.facts().serial
    two.up = False
    silent = (await told.certificates.everywhere())[-2]
    assert (silent.name, silent.state, silent.error) == ("n2", "unseen", "n2 does not answer")


async def test_doctor_tells_of_what_ends_and_of_what_cannot_be_renewed(world: World) -> None:
    one, two = world.nodes["n1"], world.nodes["n2"]
    etcd = one.authority().issue_etcd(
        new_request("e").csr_pem, member="etcd1", addresses=["10.0.0.1"], membership=1
    )
    told = Told(world, "n2", member=facts_of(etcd))
    assert await told.found() == {}
    world.pass_by(days=300)
    assert await told.found() == {}, "it is renewed by itself"
    one.up = False
    await two.look()
    mine = (await told.found())["certificate of node n2"]
    assert (mine.level, "n1 does not answer" in mine.what) == (Level.WARNING, True)
    world.pass_by(days=10)
    mine = (await told.found())["certificate of node n2"]
    assert "it ends on" in mine.what
    assert "pannier cert renew" in mine.remedy
    world.pass_by(days=60)
    mine = (await told.found())["certificate of node n2"]
    assert (mine.level, "it ended on" in mine.what) == (Level.PROBLEM, True)
    world.pass_by(days=1400)
    assert "it ends on" in (await told.found())["certificate of etcd etcd1"].what
    world.pass_by(days=1600)
    assert (
        "certificate authority Pannier cluster CA"
        in await Told(world, "n1", member=facts_of(etcd)).found()
    )
    two.time.wall = START - LIFE_SECONDS
    mine = (await told.found())["certificate of node n2"]
    assert "clock" in mine.remedy


async def test_doctor_does_not_knock_at_the_stores_members_each_time(world: World) -> None:
    """They write each handshake without a certificate into their log, and `status` asks doctor."""
    told = Told(world, "n1", member=world.nodes["n1"].facts())
    for _ in range(10):
        await told.found()
    assert told.looks == 1
    world.nodes["n1"].time.boot += 3600
    await told.found()
    assert told.looks == 2


async def test_a_member_of_the_store_that_does_not_answer_is_listed(world: World) -> None:
    gone = PeerUnavailable("nobody answers there")
    views = await Told(world, "n1", member=gone).certificates.everywhere()
    assert [view.error for view in views if view.kind == "etcd"] == ["nobody answers there"]


async def test_what_a_member_shows_is_seen_whether_or_not_it_is_trusted(world: World) -> None:
    node = world.nodes["n1"]
    server = await asyncio.start_server(
        lambda reader, writer: None,
        "127.0.0.1",
        0,
        ssl=node.credentials.server_context(client_certificate_required=True),
    )
    async with server:
        member = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        with socket.create_server(("127.0.0.1", 0)) as closed:
            silent = f"127.0.0.1:{closed.getsockname()[1]}"
        found = await shown_by_store(f"etcd://{member},{silent}")
    assert found[member] == node.facts()
    assert isinstance(found[silent], PeerUnavailable)
    assert await shown_by_store("sqlite:/store.db") == {}


# -- taken up without a restart ----------------------------------------------------------------------


async def test_running_servers_and_clients_show_the_renewed_certificate(world: World) -> None:
    """Also those of another process: it looks at the file."""
    one, two = world.nodes["n1"], world.nodes["n2"]
    server = one.credentials.server_context(client_certificate_required=True)
    client = two.credentials.client_context()
    theirs = Credentials.load(two.directory)
    elsewhere = OwnCertificate(theirs)
    its_client = theirs.client_context()
    world.pass_by(days=300)
    for node in (one, two):
        await node.look()
    assert elsewhere.refresh()
    assert not elsewhere.refresh()
    for each in (client, its_client):
        shown_by_client, shown_by_server = await asyncio.to_thread(greet, server, each)
        assert facts_of(shown_by_client) == two.facts()
        assert facts_of(shown_by_server) == one.facts()


async def test_files_that_do_not_fit_leave_the_contexts_as_they_are(world: World) -> None:
    one, two = world.nodes["n1"], world.nodes["n2"]
    server = one.credentials.server_context(client_certificate_required=True)
    client = two.credentials.client_context()
    before = two.facts()
    other = new_request("n2")
    chain = one.authority().issue_node(other.csr_pem, node="n2", addresses=["n2"])
    files.write(two.ports.own.path, chain, mode=0o644, replace=True)
    await two.look()
    assert "does not belong to the key" in two.trouble
    assert facts_of(greet(server, client)[0]) == before
