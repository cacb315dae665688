"""Joining, draining and leaving, on the memory store and with a real CA."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from alone import removing_alone
from cryptography import x509

from pannier.cluster.catalog import Catalog
from pannier.cluster.registry import Registry, Versioned, encode
from pannier.contract.bodies import JoinOrder
from pannier.contract.views import JoinReply
from pannier.core.errors import (
    AlreadyExists,
    Conflict,
    Denied,
    InvalidInput,
    NodeNotFound,
    OutcomeUnknown,
    StorageError,
    StoreUnavailable,
)
from pannier.core.node import Node
from pannier.core.removals import MOST_NAMES, MOST_REMOVALS, Removals
from pannier.core.volume import Grant, Volume, VolumeSpec
from pannier.host.clock import machine_clock
from pannier.host.state_files import DurableFile
from pannier.node.membership import Membership
from pannier.node.tokens import Tokens
from pannier.pki.authority import STORE_NAME, Authority
from pannier.pki.credentials import new_request
from pannier.pki.identity import fingerprint
from pannier.pki.token import new_token
from pannier.store.base import ABSENT, Change
from pannier.testing.store import MemoryStore


class Member:
    """The member of the store on this machine, as far as it is told."""

    def __init__(self) -> None:
        self.refused: frozenset[int] = frozenset()

    def lets_in(self, serials: frozenset[int]) -> bool:
        return not serials <= self.refused

    async def start_again(self, serials: frozenset[int]) -> None:
        self.refused = serials


@pytest.fixture
async def membership(tmp_path: Path) -> AsyncIterator[Membership]:
    authority = Authority.create(tmp_path / "ca", cluster="c0ffee")
    etcds = Authority.create(tmp_path / "ca" / "store", cluster="c0ffee", name=STORE_NAME)
    store = MemoryStore()
    catalog = Catalog(file=DurableFile(tmp_path / "catalog"), cluster=None, boot_id="b")
    registry = Registry(store)
    removing = removing_alone(
        "n1", registry, catalog, file=DurableFile(tmp_path / "removals"), member=Member()
    )
    async with store.session():
        yield Membership(
            node="n1",
            registry=registry,
            catalog=catalog,
            authority=lambda: authority,
            tokens=Tokens(file=DurableFile(tmp_path / "tokens")),
            store_authority=lambda: etcds,
            removing=removing,
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


WRONG = "pannier1-" + "a" * 8 + "-" + "b" * 32 + "-" + "0" * 64
REFUSALS = (
    "the join token is not known here",
    "this is not a join token",
)


def changed(order: JoinOrder, **fields: str) -> JoinOrder:
    return msgspec.structs.replace(order, **fields)


def beside(membership: Membership, authority: Callable[[], Authority], store: str) -> Membership:
    """Another node's, on the same store."""
    return Membership(
        node="n5",
        registry=registry(membership),
        catalog=membership._catalog,
        authority=authority,
        tokens=membership._tokens,
        store_authority=lambda: None,
        removing=membership._removing,
        store_address=store,
        clock=machine_clock(),
    )


def no_authority() -> Authority:
    raise Conflict("the CA of cluster c0ffee is on n1")


@pytest.mark.parametrize("shown", [WRONG, "nonsense"])
@pytest.mark.parametrize("store", ["etcd://a:2379", "sqlite:/secret"])
@pytest.mark.parametrize("name", ["n1", "n2"])
async def test_without_a_right_token_nothing_but_a_refusal_is_told(
    membership: Membership, shown: str, store: str, name: str
) -> None:
    """Neither who is a node, nor where authority and store are."""
    await membership.join(request(await token(membership)))
    for each in (membership, beside(membership, no_authority, store)):
        with pytest.raises((Denied, InvalidInput)) as refused:
            await each.join(changed(request(shown, name), csr="nonsense", address="..."))
        assert refused.value.message in REFUSALS


async def test_what_can_be_refused_is_refused_before_the_token_is_redeemed(
    membership: Membership,
) -> None:
    text = await token(membership)
    for order in (
        changed(request(text), csr="nonsense"),
        changed(request(text), address="no..host"),
    ):
        with pytest.raises(InvalidInput):
            await membership.join(order)
    for store in ("etcd://a:2379", "sqlite:/s"):
        with pytest.raises(Conflict):
            await beside(membership, no_authority, store).join(request(text))
    await membership.join(request(text))


class PowerCut(BaseException):
    """The node is off."""


async def test_a_power_cut_between_redeeming_and_signing_costs_the_token(
    membership: Membership,
) -> None:
    text = await token(membership)

    def cut() -> float:  # a certificate has the time at which it is signed
        raise PowerCut

    cut_off = replace(membership._authority(), _clock=cut)
    with pytest.raises(PowerCut):
        await beside(membership, lambda: cut_off, "etcd://a:2379").join(request(text))
    with pytest.raises(Denied, match="not known here") as refused:
        await membership.join(request(text))
    assert "pannier token create" in refused.value.remedy
    await membership.join(request(await token(membership)))


async def test_of_two_machines_with_one_token_one_wins(membership: Membership) -> None:
    """Both tokens are looked at before either is redeemed."""
    text = await token(membership)
    answers = await asyncio.gather(
        membership.join(request(text, "n2")),
        membership.join(request(text, "n3")),
        return_exceptions=True,
    )
    [lost] = [answer for answer in answers if isinstance(answer, Denied)]
    assert "used up" in lost.message
    assert "pannier token create" in lost.remedy
    assert len(await registry(membership).nodes()) == 1


async def test_a_store_that_does_not_answer_after_the_redeeming_leaves_the_outcome_open(
    membership: Membership,
) -> None:
    text = await token(membership)
    store = registry(membership).store
    assert isinstance(store, MemoryStore)

    def cut() -> float:  # a certificate has the time at which it is signed
        store.cut()
        return 1_800_000_000.0

    losing = replace(membership._authority(), _clock=cut)
    with pytest.raises(OutcomeUnknown, match="n2"):
        await beside(membership, lambda: losing, "etcd://a:2379").join(request(text))


async def test_a_node_that_holds_a_volume_cannot_be_removed(membership: Membership) -> None:
    await membership.join(request(await token(membership)))
    volume = Volume(
        name="data", id="data.1", spec=VolumeSpec(), grant=Grant("n2", 1), created_at=0.0
    )
    revision = (await registry(membership).add_volume(volume)).revision
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


async def test_who_asks_after_a_change_sees_it(membership: Membership) -> None:
    """Though the watch has not told it yet."""
    await membership.join(request(await token(membership)))
    catalog = membership._catalog
    assert catalog.node("n2") is None  # nobody follows the store here
    await membership.drain("n2", drained=True)
    node = catalog.node("n2")
    assert node is not None
    assert node.drained
    await membership.remove("n2")
    assert catalog.node("n2") is None


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
        assert len(membership._tokens._saved.tokens) == 1
    with pytest.raises(Denied, match="not known"):
        await membership.join(request(text))


async def test_nothing_in_the_store_is_a_token(membership: Membership) -> None:
    """As an earlier version kept them; whoever can write the store may know the secret."""
    planted, record = new_token(
        membership._clock.unix(),
        ttl_seconds=60,
        uses=9,
        ca_fingerprint=membership._authority().fingerprint,
    )
    store = registry(membership).store
    await store.commit(Change(f"tokens/{planted.id}", encode(record), ABSENT))
    with pytest.raises(Denied, match="not known"):
        await membership.join(request(planted.text()))
    await membership.forget_tokens(after=0)
    assert await store.list("tokens/") == ()


async def test_a_used_up_token_stays_so_after_a_restart_and_whoever_writes_the_store(
    membership: Membership, tmp_path: Path
) -> None:
    text = await token(membership)
    await membership.join(request(text))
    membership._tokens = Tokens(file=DurableFile(tmp_path / "tokens"))
    with pytest.raises(Denied, match="not known"):
        await membership.join(request(text, "n3"))


async def test_a_token_is_not_used_up_where_the_disk_does_not_take_that(
    membership: Membership, tmp_path: Path
) -> None:
    text = await token(membership)
    (tmp_path / "tokens").unlink()
    (tmp_path / "tokens").mkdir()  # nothing can be written there, also by root
    with pytest.raises(StorageError, match="tokens"):
        await membership.join(request(text))
    (tmp_path / "tokens").rmdir()
    assert await registry(membership).nodes() == []
    await membership.join(request(text))


async def test_a_removed_node_joins_again_with_what_its_removal_does_not_refuse(
    membership: Membership,
) -> None:
    first = await membership.join(request(await token(membership)))
    await membership.remove("n2")
    again = await membership.join(request(await token(membership)))
    member = membership._removing._member
    assert isinstance(member, Member)
    assert serial_in(first.store_certificate) in member.refused
    assert serial_in(again.store_certificate) not in member.refused
    assert first.store_ca == again.store_ca != first.ca


async def test_nobody_joins_under_a_name_that_could_not_be_removed_any_more(
    membership: Membership,
) -> None:
    await membership._removing.take_in(Removals(counts={"n2": MOST_REMOVALS}))
    text = await token(membership)
    with pytest.raises(Conflict, match="removed 1000 times"):
        await membership.join(request(text))
    await membership.join(request(text, "n3"))  # the token was not used


async def test_where_too_many_names_were_removed_nodes_join_under_those(
    membership: Membership,
) -> None:
    many = {f"gone-{number}": 1 for number in range(MOST_NAMES)}
    membership._removing._known = Removals(counts=many)
    text = await token(membership)
    with pytest.raises(Conflict, match="10000 names"):
        await membership.join(request(text))
    await membership.join(request(text, "gone-7"))


async def test_a_node_stays_until_etcd_refuses_it(
    membership: Membership, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If its record went first, it could write that again."""
    await membership.join(request(await token(membership)))

    async def broken(serials: frozenset[int]) -> None:
        raise StorageError("etcd does not start")

    monkeypatch.setattr(membership._removing._member, "start_again", broken)
    with pytest.raises(StorageError):
        await membership.remove("n2")
    assert await registry(membership).node("n2") is not None


async def test_what_the_node_wrote_until_the_end_and_a_store_without_a_leader_keep_no_record(
    membership: Membership, monkeypatch: pytest.MonkeyPatch
) -> None:
    await membership.join(request(await token(membership)))
    there = registry(membership)
    read, failed = there.node, False

    async def starts_again(serials: frozenset[int]) -> None:
        found = await read("n2")
        assert found is not None
        await there.put_node(replace(found.record, swarm="x"), expect=found.revision)

    async def answers_late(name: str) -> Versioned[Node] | None:
        nonlocal failed
        if not failed and membership._removing.known.counts:
            failed = True
            raise StoreUnavailable("there is no leader")
        return await read(name)

    monkeypatch.setattr(membership._removing._member, "start_again", starts_again)
    monkeypatch.setattr(there, "node", answers_late)
    await membership.remove("n2")
    assert failed
    assert await read("n2") is None


def serial_in(chain: str) -> int:
    return x509.load_pem_x509_certificate(chain.encode()).serial_number
