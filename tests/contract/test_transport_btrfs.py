"""The real drivers' streams go through the transport as they are."""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from transport_world import PATIENCE_SECONDS, OpenGate, Proxy, World

from pannier.core.errors import Conflict, PeerUnavailable, PoolFull
from pannier.core.generation import Generation
from pannier.storage.base import RootAttributes
from pannier.storage.btrfs.driver import BtrfsDriver
from pannier.storage.btrfs.pool import close_pool, create_pool
from pannier.transport.base import Offer, Sent
from pannier.transport.client import TransportClient
from pannier.transport.server import TransportServer

pytestmark = [
    pytest.mark.root,
    pytest.mark.timeout(2 * PATIENCE_SECONDS),
]
POOL_BYTES = 256 << 20


class Pools:
    """Alder with a volume in its pool, and birch with an empty pool."""

    def __init__(self, world: World, alder: BtrfsDriver, birch: BtrfsDriver) -> None:
        self.alder = alder
        self.birch = birch
        self.server = TransportServer(world.birch, OpenGate(birch), host="127.0.0.1", port=0)
        self.client = TransportClient(world.alder)
        self._world = world

    async def send(self, generation: Generation, *, port: int | None = None) -> Sent:
        offer = Offer(
            volume_id="vol1", volume_name="web", driver="btrfs", epoch=1, generation=generation
        )
        to = self._world.birch_at(port or self.server.port)
        return await self.client.send(offer, to=to, driver=self.alder)

    async def write(self, name: str, content: bytes) -> Generation:
        (self.alder.data_path("vol1", 1) / name).write_bytes(content)
        return await self.alder.snapshot("vol1", epoch=1)

    def received(self, generation: Generation, name: str) -> bytes:
        return (self.birch.generation_path("vol1", generation) / name).read_bytes()


async def pool(directory: Path, *, size_bytes: int = POOL_BYTES) -> BtrfsDriver:
    mountpoint = directory.with_suffix(".mnt")
    await create_pool(directory.with_suffix(".img"), mountpoint=mountpoint, size_bytes=size_bytes)
    driver = BtrfsDriver(mountpoint)
    await driver.open()
    return driver


def fill(path: Path) -> None:
    """Write until nothing more fits."""
    with contextlib.suppress(OSError), path.open("wb", buffering=0) as file:
        while file.write(os.urandom(1 << 20)):
            pass
        os.fsync(file.fileno())


@pytest.fixture
async def pools(tmp_path: Path) -> AsyncIterator[Pools]:
    try:
        pools = Pools(
            World(tmp_path), await pool(tmp_path / "pool-a"), await pool(tmp_path / "pool-b")
        )
        root = RootAttributes()
        await pools.alder.create("vol1", epoch=1, root=root, size_bytes=None)
        async with pools.server:
            yield pools
            await pools.client.close()
    finally:
        for name in ("pool-a.mnt", "pool-b.mnt"):
            assert await close_pool(tmp_path / name)


async def test_a_volume_arrives_whole_and_then_by_differences(pools: Pools) -> None:
    content = os.urandom(30 << 20)
    first = await pools.write("big", content)
    whole = await pools.send(first)
    assert whole.base is None
    second = await pools.write("small", b"hello")
    difference = await pools.send(second)
    assert difference.base == first
    assert difference.bytes < 100_000 < len(content) < whole.bytes
    assert pools.received(second, "big") == content
    assert pools.received(second, "small") == b"hello"
    assert (await pools.send(second)).bytes == 0


async def test_a_cut_connection_leaves_no_generation_and_the_next_try_succeeds(
    pools: Pools,
) -> None:
    generation = await pools.write("big", os.urandom(30 << 20))
    proxy = Proxy(pools.server.port, cut_after_bytes=10 << 20)
    async with proxy.listening() as port:
        with pytest.raises(PeerUnavailable):
            await pools.send(generation, port=port)
    assert (await pools.birch.inspect("vol1")).generations == ()
    while not (await pools.birch.inspect("vol1")).generations:
        with contextlib.suppress(Conflict):  # while the first one is still being cleaned away
            await pools.send(generation)


async def test_a_full_pool_is_told_to_the_sender(pools: Pools) -> None:
    filler = pools.birch.data_path("vol1", 1).parents[2] / "filler"
    fill(filler)
    generation = await pools.write("big", os.urandom(30 << 20))
    with pytest.raises(PoolFull, match="node birch"):
        await pools.send(generation)
    assert (await pools.birch.inspect("vol1")).generations == ()
    filler.unlink()
    await pools.send(generation)
    assert (await pools.birch.inspect("vol1")).generations == (generation,)
