"""Promises for many volumes, over the real API: one order has no more than its body may have."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest

from pannier.agent.lease import Lease
from pannier.agent.own_name import OwnName
from pannier.agent.promises import Promises
from pannier.agent.renewal import Renewal
from pannier.api.caller import Caller, NodeCaller
from pannier.api.client import PeerClient
from pannier.api.connection import UnixEndpoint
from pannier.api.listen import serve_unix
from pannier.api.server import BODY_LIMIT_BYTES, build_application
from pannier.cluster.catalog import Catalog
from pannier.cluster.cluster import Cluster
from pannier.cluster.registry import Registry
from pannier.contract import bodies
from pannier.contract.peers import Peer
from pannier.core.lease import Terms
from pannier.core.node import Node
from pannier.core.pace import Pace
from pannier.core.volume import Durability, Grant, Volume, VolumeSpec
from pannier.holding.promising import Promising
from pannier.host.clock import machine_clock
from pannier.host.state_files import DurableFile
from pannier.testing.api import FakeCluster
from pannier.testing.store import MemoryData, MemoryStore

MANY = 2000
LONGEST_NAME = 128
OTHER = Node(
    name="b", address="10.0.0.2", drivers=("image",), version="1", joined_at=0.0, certificate="x"
)


def volume(number: int) -> Volume:
    name = f"{number:0{LONGEST_NAME}}"
    return Volume(
        name=name,
        id=f"{name}.{secrets.token_hex(4)}",
        spec=VolumeSpec(copies=2, durability=Durability.FSYNC),
        grant=Grant("a", 1),
        replicas=("b",),
        in_sync=("b",),
        created_at=0.0,
    )


@dataclass
class Peers:
    """One other node, whatever its name."""

    other: Peer

    def to(self, node: Node) -> Peer:
        return self.other


@pytest.fixture
async def other(tmp_path: Path) -> AsyncIterator[Peer]:
    fake = FakeCluster()

    def identify(_request: object) -> Caller:
        return NodeCaller("a")

    application = build_application(fake.by, peers=fake.by_node, identify=identify)
    async with (
        serve_unix(application, path=tmp_path / "sock"),
        PeerClient(UnixEndpoint(tmp_path / "sock")) as peer,
    ):
        yield peer


async def test_a_node_that_holds_thousands_of_volumes_gets_all_promises(
    tmp_path: Path, other: Peer
) -> None:
    """Else everything that uses one is frozen while the store is away."""
    store, clock = MemoryStore(MemoryData()), machine_clock()
    catalog = Catalog(file=DurableFile(tmp_path / "catalog"), cluster=None, boot_id="x")
    registry = Registry(store)
    async with store.session():
        await registry.put_node(OTHER)
        following = asyncio.create_task(catalog.follow(store))
        await catalog.synced.wait()
        following.cancel()
    volumes = [volume(number) for number in range(MANY)]
    for each in volumes:
        catalog.remember(each, revision=1)
    terms = Terms(8.0)
    keeper = Renewal(store, node="a", boot_id="x", terms=terms, clock=clock)
    lease = Lease(store, keeper=keeper, name=OwnName("a", "x"), terms=terms, clock=clock)
    promising = Promising(
        cluster=Cluster(node="a", registry=registry, catalog=catalog),
        lease=lease,
        peers=Peers(other),
        promises=Promises(file=DurableFile(tmp_path / "promises"), clock=clock, longest=10.0),
        rivals=lambda _name: frozenset({"b"}),
        clock=clock,
        pace=Pace().holding,
    )
    await promising.ask()
    assert all(set(lease.standing(each).promises) == {"b"} for each in volumes)


def test_a_volume_with_the_longest_name_can_be_removed_by_its_id() -> None:
    order = bodies.PeerRemoval(volume_id=volume(1).id, actor="anna")
    assert msgspec.json.decode(msgspec.json.encode(order), type=bodies.PeerRemoval) == order


def test_the_largest_orders_of_nodes_fit() -> None:
    """A limit on their number is one that the body's limit allows."""
    promises = bodies.PeerPromiseOrder(
        volumes={volume(number).id: 2**62 for number in range(bodies.MOST_PROMISES)}, seconds=60.0
    )
    blocks = bodies.BlocksOrder(
        generation="9" * 60,
        blocks=[bodies.BlockSum(2**62, 2**32 - 1) for _ in range(bodies.MOST_BLOCKS)],
    )
    for order in (promises, blocks):
        assert len(msgspec.json.encode(order)) <= BODY_LIMIT_BYTES
