"""Whatever breaks during a transfer, both ends learn it, and nothing half remains."""

from __future__ import annotations

import asyncio
import ssl
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from transport_world import HEAD, PATIENCE_SECONDS, Proxy, World, threads_of_transfers

from pannier.core.errors import Conflict, Corrupt, PeerUnavailable, PoolFull, StorageError
from pannier.core.generation import Generation
from pannier.transport import frames
from pannier.transport.channel import TransportTiming

pytestmark = pytest.mark.timeout(PATIENCE_SECONDS)
BIG = bytes(20 << 20)
"""More than all buffers on the way hold, so that a transfer of it waits when it is not read."""


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    world = World(tmp_path)
    async with world.server:
        yield world
        await world.client.close()
    assert not list(threads_of_transfers())


@pytest.fixture
async def impatient(tmp_path: Path) -> AsyncIterator[World]:
    """A world in which silence of a second means death."""
    world = World(tmp_path, timing=TransportTiming(stall=1.0, quiet=PATIENCE_SECONDS))
    async with world.server:
        yield world
        await world.client.close()
    assert not list(threads_of_transfers())


async def discarded(world: World) -> None:
    await asyncio.wait_for(world.theirs.trouble.discarded.wait(), PATIENCE_SECONDS)
    assert world.theirs.content("v1", "1.1") is None


@pytest.mark.parametrize("cut_after_bytes", [3_000, 300_000, 5_000_000])
async def test_a_connection_cut_in_mid_stream_leaves_nothing(
    world: World, cut_after_bytes: int
) -> None:
    world.ours.add("v1", "1.1", BIG)
    proxy = Proxy(world.server.port, cut_after_bytes=cut_after_bytes)
    async with proxy.listening() as port:
        with pytest.raises(PeerUnavailable):
            await world.send("v1", "1.1", port=port)
    if world.theirs.trouble.receiving.is_set():
        await discarded(world)
    assert await _retry(world) > len(BIG)
    assert world.theirs.content("v1", "1.1") == BIG


async def test_a_connection_cut_before_the_confirmation_is_found_out_by_sending_again(
    world: World,
) -> None:
    world.ours.add("v1", "1.1", b"x")
    world.theirs.trouble.verify = asyncio.Event()
    proxy = Proxy(world.server.port)
    async with proxy.listening() as port:
        first = asyncio.create_task(world.send("v1", "1.1", port=port))
        await world.theirs.trouble.receiving.wait()
        proxy.cut()
        with pytest.raises(PeerUnavailable):
            await first
    world.theirs.trouble.verify.set()
    await _retry(world)
    assert world.theirs.content("v1", "1.1") == b"x"


async def _retry(world: World) -> int:
    """Send again until the first transfer's end no longer conflicts."""
    while True:
        try:
            return (await world.send("v1", "1.1")).bytes
        except Conflict:
            await asyncio.sleep(0)


async def test_a_network_that_swallows_everything_is_noticed_at_both_ends(
    impatient: World,
) -> None:
    impatient.ours.add("v1", "1.1", BIG)
    proxy = Proxy(impatient.server.port)
    async with proxy.listening() as port:
        transfer = asyncio.create_task(impatient.send("v1", "1.1", port=port))
        await proxy.busy.wait()
        proxy.clog()
        with pytest.raises(PeerUnavailable, match="silent"):
            await transfer
        await discarded(impatient)


async def test_a_receiver_that_is_slow_to_verify_is_waited_for(impatient: World) -> None:
    impatient.ours.add("v1", "1.1", b"x")
    impatient.theirs.trouble.verify = asyncio.Event()
    transfer = asyncio.create_task(impatient.send("v1", "1.1"))
    await impatient.theirs.trouble.receiving.wait()
    await asyncio.sleep(2 * impatient.timing.stall)
    impatient.theirs.trouble.verify.set()
    await transfer
    assert impatient.theirs.content("v1", "1.1") == b"x"


async def test_a_receiver_that_is_slow_to_read_is_waited_for(impatient: World) -> None:
    """A disk that flushes for long fills the TCP window, which Linux may take for a dead peer."""
    impatient.ours.add("v1", "1.1", BIG)
    impatient.theirs.trouble.take = threading.Event()
    transfer = asyncio.create_task(impatient.send("v1", "1.1"))
    await impatient.theirs.trouble.receiving.wait()
    await asyncio.sleep(2.5 * impatient.timing.stall)
    impatient.theirs.trouble.take.set()
    await transfer
    assert impatient.theirs.content("v1", "1.1") == BIG


async def test_a_sending_driver_that_hangs_is_given_up(tmp_path: Path) -> None:
    world = World(tmp_path, timing=TransportTiming(stall=0.5, quiet=1.0))
    world.ours.add("v1", "1.1", b"x")
    world.ours.trouble.send_hangs = True
    async with world.server:
        with pytest.raises(StorageError, match="did nothing"):
            await world.send("v1", "1.1")
        await discarded(world)


async def test_a_receiving_driver_that_hangs_is_given_up(tmp_path: Path) -> None:
    world = World(tmp_path, timing=TransportTiming(stall=0.5, quiet=1.0))
    world.ours.add("v1", "1.1", BIG)
    world.theirs.trouble.take = threading.Event()
    async with world.server:
        with pytest.raises(StorageError, match="node birch: the storage driver did nothing"):
            await world.send("v1", "1.1")
        await discarded(world)


@pytest.mark.parametrize("size", [0, 100, len(BIG)])
async def test_a_receiver_without_room_says_so_to_the_sender(world: World, size: int) -> None:
    world.ours.add("v1", "1.1", BIG[:size])
    world.theirs.trouble.receive_error = PoolFull("no room", remedy="enlarge the pool")
    with pytest.raises(PoolFull) as caught:
        await world.send("v1", "1.1")
    assert str(caught.value) == "node birch: no room; enlarge the pool"
    assert world.theirs.content("v1", "1.1") is None


async def test_a_sending_driver_that_fails_makes_the_receiver_discard(world: World) -> None:
    world.ours.add("v1", "1.1", BIG)
    world.ours.trouble.send_error = StorageError("read error on the disk")
    with pytest.raises(StorageError, match="read error"):
        await world.send("v1", "1.1")
    await discarded(world)


async def test_a_stream_that_does_not_fit_its_base_is_corrupt_at_the_sender(world: World) -> None:
    """The base was deleted and made anew between the negotiation and the stream."""
    world.ours.add("v1", "1.2", b"x")
    send = world.ours.send
    world.ours.send = lambda volume, generation, *, base: send(  # type: ignore[method-assign]
        volume, generation, base=Generation(1, 1)
    )
    with pytest.raises(Corrupt, match="does not fit"):
        await world.send("v1", "1.2")


async def test_cancelling_stops_both_ends(world: World) -> None:
    world.ours.add("v1", "1.1", BIG)
    world.theirs.trouble.take = threading.Event()
    transfer = asyncio.create_task(world.send("v1", "1.1"))
    await world.theirs.trouble.receiving.wait()
    transfer.cancel()
    with pytest.raises(asyncio.CancelledError):
        await transfer
    assert not [name for name in threads_of_transfers() if name.startswith("send-")]
    await discarded(world)


async def test_cancelling_while_the_driver_is_silent_stops_both_ends(world: World) -> None:
    world.ours.add("v1", "1.1", b"x")
    world.ours.trouble.send_hangs = True
    transfer = asyncio.create_task(world.send("v1", "1.1"))
    await world.theirs.trouble.receiving.wait()
    transfer.cancel()
    with pytest.raises(asyncio.CancelledError):
        await transfer
    assert world.ours.trouble.send_cancelled.is_set()
    await discarded(world)


async def test_closing_the_server_discards_and_tells_the_sender(world: World) -> None:
    world.ours.add("v1", "1.1", BIG)
    world.theirs.trouble.take = threading.Event()
    transfer = asyncio.create_task(world.send("v1", "1.1"))
    await world.theirs.trouble.receiving.wait()
    await world.server.close()
    with pytest.raises(PeerUnavailable):
        await transfer
    await discarded(world)


async def test_garbage_on_the_port_harms_nobody(world: World) -> None:
    for garbage in (b"", b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\xff\xff" + bytes(1000), BIG):
        reader, writer = await asyncio.open_connection("127.0.0.1", world.server.port)
        try:
            writer.write(garbage)
            if not garbage:
                writer.write_eof()
            while await reader.read(65536):
                pass
        except OSError:
            pass
        finally:
            writer.transport.abort()
    world.ours.add("v1", "1.1", b"x")
    await world.send("v1", "1.1")
    assert world.theirs.content("v1", "1.1") == b"x"


@pytest.mark.parametrize(
    "garbage",
    [
        b"\xff" * 100,
        frames.HEADER.pack(frames.Kind.MESSAGE, 1 << 31),
        frames.HEADER.pack(frames.Kind.MESSAGE, 3) + b"[1]",
        frames.HEADER.pack(frames.Kind.DATA, 3) + b"abc",
        frames.encode(frames.Done()),
        frames.encode(
            frames.Offered(
                volume_id="../../etc", volume_name="vol", driver="d", epoch=1, generation="1.1"
            )
        ),
    ],
)
async def test_a_node_that_talks_nonsense_gets_an_error_and_is_not_listened_to(
    world: World, garbage: bytes
) -> None:
    context = world.alder.client_context()
    context.set_alpn_protocols([frames.PROTOCOL])
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", world.server.port, ssl=context, server_hostname="birch"
    )
    writer.write(garbage)
    answer = b""
    try:
        while data := await reader.read(65536):
            answer += data
    except (OSError, ssl.SSLError):
        pass
    writer.transport.abort()
    assert b'"failed"' in answer
    assert not world.gate.asked


async def test_a_stream_with_fewer_bytes_than_counted_is_discarded(world: World) -> None:
    context = world.alder.client_context()
    context.set_alpn_protocols([frames.PROTOCOL])
    _, writer = await asyncio.open_connection(
        "127.0.0.1", world.server.port, ssl=context, server_hostname="birch"
    )
    stream = HEAD + b"None\nabc"
    offered = frames.Offered(
        volume_id="v1", volume_name="name-v1", driver="memory", epoch=1, generation="1.1"
    )
    writer.write(frames.encode(offered) + frames.encode(frames.Start(None)))
    writer.write(frames.HEADER.pack(frames.Kind.DATA, len(stream)) + stream)
    writer.write(frames.encode(frames.End(len(stream) + 1)))
    await discarded(world)
    writer.transport.abort()


async def test_connections_that_never_say_anything_block_nobody(world: World) -> None:
    world.ours.add("v1", "1.1", b"x")
    port = world.server.port
    silent = [await asyncio.open_connection("127.0.0.1", port) for _ in range(300)]
    try:
        for _, writer in silent:
            writer.write(b"\x16")
        await world.send("v1", "1.1")
    finally:
        for _, writer in silent:
            writer.transport.abort()
    assert world.theirs.content("v1", "1.1") == b"x"


async def test_another_service_with_the_same_certificates_is_not_taken_for_a_node(
    world: World,
) -> None:
    """Such as the API's port: it must not be sent an offer."""
    context = world.birch.server_context(client_certificate_required=True)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=context)
    async with server:
        with pytest.raises(PeerUnavailable, match="does not speak"):
            await world.send("v1", "1.1", port=server.sockets[0].getsockname()[1])
