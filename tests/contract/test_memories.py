"""What a node remembers of thousands of volumes arrives, through a real server with its limits, in the time that it has."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from pannier.api.caller import identify_tls
from pannier.api.client import PeerClient
from pannier.api.connection import TlsEndpoint
from pannier.api.listen import serve_tls
from pannier.api.server import build_application
from pannier.cluster.catalog import Catalog
from pannier.cluster.cluster import Cluster
from pannier.cluster.registry import Registry
from pannier.contract.peers import Peer
from pannier.contract.views import MemoryView
from pannier.core.errors import PeerUnavailable
from pannier.core.generation import Generation
from pannier.core.line import OnTop
from pannier.core.node import Node
from pannier.core.pace import HoldingPace
from pannier.core.volume import Beginning, Grant, HistoryEntry, Volume, VolumeSpec
from pannier.holding.memories import Memories, remembered
from pannier.host.state_files import UnsyncedFile
from pannier.pki.authority import Authority
from pannier.pki.credentials import Credentials, new_request
from pannier.testing.api import FakeCluster
from pannier.testing.store import MemoryStore

MANY = 2000


def volume(number: int) -> Volume:
    """One with the longest name, and as much of a past as a record keeps."""
    name = f"{number:04d}-" + "v" * 58
    return Volume(
        name=name,
        id=f"v-{number:012x}",
        spec=VolumeSpec(driver="image", copies=2),
        grant=Grant("other", 50),
        replicas=("b",),
        lineage=tuple(Beginning(epoch, Generation(epoch, 1), OnTop.ALL) for epoch in range(50)),
        history=tuple(
            HistoryEntry(at=1.7e9 + at, what="moved", node="other", epoch=at, detail="d" * 100)
            for at in range(50)
        ),
        created_at=1.7e9,
        changes=100,
    )


class Remembering(FakeCluster):
    """The API of a node that remembers these volumes."""

    remembers: list[Volume]
    asked_after: list[str]
    fails_at: int
    slow = 0.0

    async def peer_memory(self, after: str) -> MemoryView:
        self.asked_after.append(after)
        if len(self.asked_after) == self.fails_at:
            raise PeerUnavailable("it goes away")
        await asyncio.sleep(self.slow)
        return remembered(self.remembers, after=after)


class World:
    """Node ``a``, and the API of node ``b``."""

    def __init__(self, directory: Path, endpoint: TlsEndpoint) -> None:
        self._endpoint = endpoint
        self._stack = AsyncExitStack()
        node = Node(
            name="b", address="127.0.0.1", drivers=(), version="1", joined_at=0.0, certificate="ab"
        )
        self.catalog = Catalog(file=UnsyncedFile(directory / "c"), cluster=None, boot_id="b")
        self.catalog._known.nodes = {"b": node}
        cluster = Cluster(node="a", registry=Registry(MemoryStore()), catalog=self.catalog)
        self.memories = Memories(cluster=cluster, peers=self, pace=HoldingPace(take_ask=0.5))

    def to(self, node: Node) -> Peer:
        return self.client

    async def __aenter__(self) -> World:
        self.client = await self._stack.enter_async_context(PeerClient(self._endpoint))
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()


def credentials(authority: Authority, directory: Path, name: str) -> Credentials:
    request = new_request(name)
    issued = authority.issue_node(request.csr_pem, node=name, addresses=("127.0.0.1",))
    ca = authority.certificate_pem
    return Credentials.save(directory / name, ca=ca, certificate=issued, key=request.key_pem)


@pytest.fixture(scope="module")
def many() -> list[Volume]:
    return [volume(number) for number in range(MANY)]


@pytest.fixture
def there(many: list[Volume]) -> Remembering:
    there = Remembering()
    there.remembers, there.asked_after, there.fails_at = many, [], 0
    return there


@pytest.fixture
async def world(tmp_path: Path, there: Remembering) -> AsyncIterator[World]:
    authority = Authority.create(tmp_path / "ca", cluster="test")
    mine, theirs = (credentials(authority, tmp_path, name) for name in ("a", "b"))
    application = build_application(there.by, peers=there.by_node, identify=identify_tls("test"))
    context = theirs.server_context(client_certificate_required=False)
    async with serve_tls(application, context=context, host="127.0.0.1", port=0) as port:
        endpoint = TlsEndpoint(
            address="127.0.0.1", port=port, context=mine.client_context(), node="b"
        )
        async with World(tmp_path, endpoint) as world:
            yield world


async def test_all_of_it_arrives_and_the_loop_goes_on(
    world: World, there: Remembering, many: list[Volume]
) -> None:
    """A loop that stands still for seconds costs a node its lease."""
    longest, done = 0.0, asyncio.Event()

    async def watch() -> None:
        nonlocal longest
        while not done.is_set():
            began = time.thread_time()
            await asyncio.sleep(0)
            longest = max(longest, time.thread_time() - began)

    watching = asyncio.create_task(watch())
    await world.memories.look()
    done.set()
    await watching
    assert [each.name for each in world.catalog.volumes()] == [each.name for each in many]
    assert world.catalog.volumes() == many
    assert longest < 0.5
    await world.memories.look()  # the store is doubted since: who knows more by now?
    assert world.memories.silent(many[0].name) == []


async def test_a_node_that_goes_away_between_two_pages_is_asked_again(
    world: World, there: Remembering, many: list[Volume]
) -> None:
    there.fails_at = 3
    await world.memories.look()
    name = many[0].name
    assert world.memories.silent(name) == ["b"], "it may know more"
    assert 0 < len(world.catalog.volumes()) < MANY
    await world.memories.look()
    assert world.memories.silent(name) == []
    assert world.catalog.volumes() == many


async def test_who_waits_for_the_answers_waits_while_pages_come(
    world: World, there: Remembering, many: list[Volume]
) -> None:
    """Also where all of them together take longer than one may."""
    there.slow = 0.02
    looking = asyncio.create_task(world.memories.look())
    async with asyncio.timeout(20):
        await world.memories.asked()
    assert len(world.catalog.volumes()) == MANY
    await looking


async def test_a_node_that_repeats_a_page_is_not_heard_for_ever(
    world: World, there: Remembering, many: list[Volume], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def repeats(self: Remembering, after: str) -> MemoryView:
        return replace(remembered(many, after=""), more=True)

    monkeypatch.setattr(Remembering, "peer_memory", repeats)
    async with asyncio.timeout(5):
        await world.memories.look()
    assert world.memories.silent(many[0].name) == ["b"]


def test_pages_have_each_volume_once() -> None:
    """A page ends behind the record that fills it, however large that is."""
    volumes = [volume(number) for number in range(3)]
    large = [replace(each, replicas=("n" * 200_000,)) for each in volumes]
    pages, after = list[MemoryView](), ""
    while not pages or pages[-1].more:
        pages.append(remembered(large, after=after))
        after = large[sum(len(page.records) for page in pages) - 1].name
    assert [len(page.records) for page in pages] == [2, 1]
    assert remembered([], after="") == MemoryView(records=[])
    assert remembered(volumes, after=volumes[-1].name) == MemoryView(records=[])
