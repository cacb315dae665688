"""One connection carries one offer after the other, and is given up as soon as it is of no use."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from transport_world import PATIENCE_SECONDS, Proxy, World, offer_of, threads_of_transfers

from pannier.core.errors import Denied, Stale
from pannier.core.node import Fingerprints
from pannier.transport.channel import TransportTiming
from pannier.transport.client import TransportClient
from pannier.transport.server import TransportServer

pytestmark = pytest.mark.timeout(PATIENCE_SECONDS)


@dataclass
class Way:
    """A world, and the proxy that all its connections go through."""

    world: World
    proxy: Proxy
    port: int

    async def send(self, generation: str, *, volume: str = "v1") -> None:
        """Send something new, and look that it arrives."""
        content = f"{volume} {generation}".encode()
        self.world.ours.add(volume, generation, content)
        await self.world.send(volume, generation, port=self.port)
        assert self.world.theirs.content(volume, generation) == content


@asynccontextmanager
async def way(world: World) -> AsyncIterator[Way]:
    async with world.server:
        proxy = Proxy(world.server.port)
        async with proxy.listening() as port:
            yield Way(world, proxy, port)
            await world.client.close()
    assert not list(threads_of_transfers())


@pytest.fixture
async def there(tmp_path: Path) -> AsyncIterator[Way]:
    async with way(World(tmp_path)) as found:
        yield found


async def until(what: Callable[[], object]) -> None:
    """Wait until something is so; the test's time limit ends it."""
    while not what():
        await asyncio.sleep(0.01)


async def test_offers_follow_each_other_on_one_connection(there: Way) -> None:
    for generation in ("1.1", "1.2", "1.3"):
        await there.send(generation)
    await there.send("1.1", volume="v2")
    assert there.proxy.connections == 1
    assert there.world.theirs.bases == [None, *there.world.theirs.bases[1:3], None]


async def test_a_generation_that_is_there_already_leaves_the_connection_open(there: Way) -> None:
    await there.send("1.1")
    sent = await there.world.send("v1", "1.1", port=there.port)
    assert sent.bytes == 0
    await there.send("1.2")
    assert there.proxy.connections == 1


async def test_transfers_at_the_same_time_have_connections_of_their_own(there: Way) -> None:
    world = there.world
    world.theirs.trouble.verify = asyncio.Event()
    sending = [asyncio.create_task(there.send("1.1", volume=f"v{n}")) for n in range(3)]
    await until(lambda: len(world.theirs.bases) == 3)
    world.theirs.trouble.verify.set()
    await asyncio.gather(*sending)
    assert there.proxy.connections == 3
    await there.send("1.2")
    assert there.proxy.connections == 3


async def test_an_idle_connection_that_the_other_side_closed_is_replaced(there: Way) -> None:
    await there.send("1.1")
    there.proxy.cut()
    await there.send("1.2")
    assert there.proxy.connections == 2


async def test_a_connection_that_breaks_with_the_offer_on_it_is_replaced(there: Way) -> None:
    await there.send("1.1")
    there.proxy.cut_at_next_byte()
    await there.send("1.2")
    assert there.proxy.connections == 2


async def test_a_receiver_that_restarted_is_no_error(there: Way) -> None:
    world = there.world
    await there.send("1.1")
    port = world.server.port
    await world.server.close()
    world.server = TransportServer(world.birch, world.gate, host="127.0.0.1", port=port)
    await world.server.start()
    try:
        await there.send("1.2")
    finally:
        await world.server.close()


async def test_an_idle_connection_stays_alive_for_longer_than_the_stall_time(
    tmp_path: Path,
) -> None:
    world = World(tmp_path, timing=TransportTiming(stall=0.5))
    async with way(world) as there:
        await there.send("1.1")
        await asyncio.sleep(4 * world.timing.stall)
        await there.send("1.2")
        assert there.proxy.connections == 1


async def test_an_idle_connection_ends_after_its_time(tmp_path: Path) -> None:
    async with way(World(tmp_path, timing=TransportTiming(idle=0.2))) as there:
        await there.send("1.1")
        await until(lambda: not list(threads_of_transfers()))
        await there.send("1.2")
        assert there.proxy.connections == 2


async def test_an_idle_connection_to_a_node_that_vanished_is_not_waited_for(
    tmp_path: Path,
) -> None:
    """No FIN comes from a machine without power: only its silence tells."""
    async with way(World(tmp_path, timing=TransportTiming(stall=1.0, idle=1000.0))) as there:
        await there.send("1.1")
        there.proxy.clog()
        await until(lambda: not list(threads_of_transfers()))
        there.proxy.unclog()
        await there.send("1.2")
        assert there.proxy.connections == 2


async def test_a_node_that_is_removed_later_is_refused_on_its_open_connection(
    tmp_path: Path,
) -> None:
    removed = False
    world = World(tmp_path)

    async def check(name: str, shown: Fingerprints) -> None:
        if removed:
            raise Denied(f"node {name} was removed")

    world.server = TransportServer(
        world.birch, world.gate, host="127.0.0.1", port=0, check_peer=check
    )
    async with way(world) as there:
        await there.send("1.1")
        removed = True
        world.ours.add("v1", "1.2", b"x")
        with pytest.raises(Denied, match="was removed"):
            await world.send("v1", "1.2", port=there.port)
        assert there.proxy.connections == 1
        assert world.theirs.content("v1", "1.2") is None


async def test_a_record_with_another_certificate_gets_a_connection_of_its_own(there: Way) -> None:
    """The name in an old record, on a machine that was set up anew."""
    await there.send("1.1")
    changed = replace(there.world.birch_at(there.port), key="0" * 64)
    with pytest.raises(Denied, match="another certificate"):
        await there.world.client.send(offer_of("v1", "1.2"), to=changed, driver=there.world.ours)


async def test_a_refused_offer_costs_only_its_connection(there: Way) -> None:
    await there.send("1.1")
    there.world.gate.refusal = Stale("epoch 1 is over")
    with pytest.raises(Stale):
        await there.send("1.2")
    there.world.gate.refusal = None
    await there.send("1.2")


async def test_cancelling_in_the_middle_costs_only_its_connection(there: Way) -> None:
    world = there.world
    await there.send("1.1")
    world.theirs.trouble.take = threading.Event()
    world.theirs.trouble.receiving.clear()
    world.ours.add("v1", "1.2", bytes(20 << 20))
    transfer = asyncio.create_task(world.send("v1", "1.2", port=there.port))
    await world.theirs.trouble.receiving.wait()
    await there.proxy.busy.wait()
    transfer.cancel()
    with pytest.raises(asyncio.CancelledError):
        await transfer
    await asyncio.wait_for(world.theirs.trouble.discarded.wait(), PATIENCE_SECONDS)
    assert world.theirs.content("v1", "1.2") is None
    world.theirs.trouble.take = None
    await there.send("1.2")


async def test_the_gate_is_asked_again_when_all_is_durable(there: Way) -> None:
    world = there.world
    world.theirs.trouble.verify = asyncio.Event()
    sending = asyncio.create_task(there.send("1.1"))
    await world.theirs.trouble.receiving.wait()
    assert (len(world.gate.asked), world.gate.confirmed) == (1, [])
    world.theirs.trouble.verify.set()
    await sending
    assert world.gate.confirmed == [("alder", offer_of("v1", "1.1"))]


@pytest.mark.parametrize("there_already", [False, True])
async def test_a_takeover_that_began_meanwhile_gets_no_confirmation_out(
    there: Way, there_already: bool
) -> None:
    """The generation is kept, but whoever sent it must not tell anybody that it is safe."""
    world = there.world
    world.ours.add("v1", "1.1", b"x")
    if there_already:
        world.theirs.add("v1", "1.1", b"x")
    world.gate.unconfirmed = Stale("birch takes the volume over")
    with pytest.raises(Stale, match="node birch: birch takes"):
        await world.send("v1", "1.1", port=there.port)
    assert world.theirs.content("v1", "1.1") == b"x"
    assert len(world.gate.confirmed) == 1


async def test_a_client_that_was_closed_can_send_again(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.client = TransportClient(world.alder)
    async with way(world) as there:
        await there.send("1.1")
        await world.client.close()
        await until(lambda: not list(threads_of_transfers()))
        await there.send("1.2")
        assert there.proxy.connections == 2
