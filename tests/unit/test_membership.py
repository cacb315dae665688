"""Joining, draining and leaving, on the memory store and with a real CA."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from pannier.cluster.catalog import Catalog
from pannier.cluster.registry import Registry
from pannier.contract.bodies import JoinOrder
from pannier.contract.views import JoinReply
from pannier.core.errors import AlreadyExists, Conflict, Denied, InvalidInput, NodeNotFound
from pannier.core.volume import Grant, Volume, VolumeSpec
from pannier.host.clock import machine_clock
from pannier.host.state_files import DurableFile
from pannier.node.membership import Membership
from pannier.pki.authority import Authority
from pannier.pki.credentials import new_request
from pannier.pki.identity import fingerprint
from pannier.testing.store import MemoryStore


@pytest.fixture
async def membership(tmp_path: Path) -> AsyncIterator[Membership]:
    authority = Authority.create(tmp_path / "ca", cluster="c0ffee")
    store = MemoryStore()
    async with store.session():
        yield Membership(
            node="n1",
            registry=Registry(store),
            catalog=Catalog(file=DurableFile(tmp_path / "catalog"), cluster=None, boot_id="b"),
            authority=lambda: authority,
            store_address="etcd://a:2379",
            clock=machine_clock(),
        )


def registry(membership: Membership) -> Registry:
    return membership._registry


async def token(membership: Membership, *, uses: int = 1, ttl_seconds: float = 60) -> str:
    return (await membership.create_token(ttl_seconds=ttl_seconds, uses=uses)).token


def request(token: str, name: str = "n2") -> JoinOrder:
    csr = new_request(name).csr_pem
    return JoinOrder(token=token, name=name, address="10.0.0.2", csr=csr, version="1")


async def test_a_machine_with_a_token_becomes_a_node_with_its_own_certificate(
    membership: Membership,
) -> None:
    reply = await membership.join(request(await token(membership)))
    found = await registry(membership).node("n2")
    assert found is not None
    assert found.record.certificate == fingerprint(reply.certificate)
    assert (reply.cluster, reply.store) == ("c0ffee", "etcd://a:2379")


async def test_a_token_lets_in_as_many_as_it_says_also_when_all_ask_at_once(
    membership: Membership,
) -> None:
    text = await token(membership, uses=3)
    answers = await asyncio.gather(
        *(membership.join(request(text, f"n{number}")) for number in range(2, 9)),
        return_exceptions=True,
    )
    assert sum(isinstance(answer, JoinReply) for answer in answers) == 3
    assert sum(isinstance(answer, Denied) for answer in answers) == 4
    assert len(await registry(membership).nodes()) == 3


async def test_a_taken_name_is_refused_and_does_not_use_the_token_up(
    membership: Membership,
) -> None:
    text = await token(membership, uses=2)
    await membership.join(request(text))
    with pytest.raises(AlreadyExists, match="n2"):
        await membership.join(request(text))
    await membership.join(request(text, "n3"))


async def test_a_wrong_or_expired_token_is_refused(membership: Membership) -> None:
    good = await token(membership)
    other = await token(membership)
    wrong = "-".join([*good.split("-")[:2], other.split("-")[2], good.split("-")[3]])
    with pytest.raises(Denied):
        await membership.join(request(wrong))
    with pytest.raises(InvalidInput):
        await membership.join(request("nonsense"))
    expired = await token(membership, ttl_seconds=1e-9)
    with pytest.raises(Denied, match="expired"):
        await membership.join(request(expired))
    assert await registry(membership).nodes() == []


async def test_a_node_that_holds_a_volume_cannot_be_removed(membership: Membership) -> None:
    await membership.join(request(await token(membership)))
    volume = Volume(
        name="data", id="data.1", spec=VolumeSpec(), grant=Grant("n2", 1), created_at=0.0
    )
    revision = await registry(membership).add_volume(volume)
    with pytest.raises(Conflict, match="holds data"):
        await membership.remove("n2")
    await registry(membership).trash_volume(replace(volume, removed_at=1.0), expect=revision)
    with pytest.raises(Conflict, match="in the trash"):
        await membership.remove("n2")
    with pytest.raises(NodeNotFound):
        await membership.remove("n9")


async def test_a_lost_nodes_volumes_go_to_the_trash_and_free_their_names(
    membership: Membership,
) -> None:
    await membership.join(request(await token(membership)))
    volume = Volume(
        name="data", id="data.1", spec=VolumeSpec(), grant=Grant("n2", 3), created_at=0.0
    )
    await registry(membership).add_volume(volume)
    membership._catalog._known.alive["n2"] = None
    with pytest.raises(Conflict, match="is up"):
        await membership.remove("n2", lost=True)
    membership._catalog._known.alive.clear()
    await membership.remove("n2", lost=True)
    assert await registry(membership).volume("data") is None
    [trashed] = await registry(membership).trash()
    assert (trashed.record.id, trashed.record.history[-1].what) == ("data.1", "lost")
    assert await registry(membership).nodes() == []


async def test_a_removed_node_cannot_come_back_with_its_old_certificate(
    membership: Membership,
) -> None:
    await membership.join(request(await token(membership)))
    found = await registry(membership).node("n2")
    assert found is not None
    mine = replace(found.record, drivers=("btrfs",))
    await membership.introduce(mine)
    again = await registry(membership).node("n2")
    assert again is not None
    assert again.record.drivers == ("btrfs",)
    await membership.remove("n2")
    with pytest.raises(Denied, match="removed"):
        await membership.introduce(mine)
    await membership.join(request(await token(membership)))
    with pytest.raises(Denied, match="removed"):
        await membership.introduce(mine)


async def test_a_drain_survives_the_nodes_restart(membership: Membership) -> None:
    await membership.join(request(await token(membership)))
    drained = await membership.drain("n2", drained=True)
    await membership.introduce(replace(drained, drained=False, drivers=("btrfs",)))
    found = await registry(membership).node("n2")
    assert found is not None
    assert found.record.drained


async def test_an_expired_token_is_told_as_such_for_a_while_and_then_forgotten(
    membership: Membership,
) -> None:
    text = await token(membership, ttl_seconds=60)
    await token(membership, ttl_seconds=7200)
    at_first = machine_clock()
    membership._clock = replace(at_first, unix=lambda: at_first.unix() + 3600)
    await membership.forget_tokens(after=3600)
    with pytest.raises(Denied, match="expired"):
        await membership.join(request(text))
    for _ in range(2):
        await membership.forget_tokens(after=600)
        assert len(await registry(membership).tokens()) == 1
    with pytest.raises(Denied, match="not known"):
        await membership.join(request(text))


async def test_only_the_node_with_the_ca_forgets_tokens(membership: Membership) -> None:
    await token(membership)

    def elsewhere() -> Authority:
        raise Conflict("the CA is on node n2")

    membership._authority = elsewhere
    await membership.forget_tokens(after=-3600)
    assert len(await registry(membership).tokens()) == 1
