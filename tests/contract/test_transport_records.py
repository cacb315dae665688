"""Records go from node to node over one lasting connection, in order, and only between those who may."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

import pytest
from records_world import (
    MEBIBYTE,
    RecordsWorld,
    bulk,
    descriptors,
    record,
    threads_of_records,
    until,
)
from transport_world import (
    PATIENCE_SECONDS,
    MemoryDriver,
    node_credentials,
    node_record,
    offer_of,
)

from pannier.core.errors import (
    Denied,
    DiskFailed,
    InvalidInput,
    JournalFull,
    NotFollowing,
    PannierError,
    PeerUnavailable,
    Stale,
    StorageError,
)
from pannier.core.line import LineRecord, Zeros, encode
from pannier.core.node import Fingerprints
from pannier.pki.authority import Authority
from pannier.pki.credentials import Credentials, new_request
from pannier.transport import record_server
from pannier.transport.base import Parcel
from pannier.transport.channel import TransportTiming
from pannier.transport.client import TransportClient
from pannier.transport.record_sender import RecordSender

pytestmark = pytest.mark.timeout(PATIENCE_SECONDS)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[RecordsWorld]:
    async with RecordsWorld(tmp_path).running() as world:
        yield world


@pytest.mark.parametrize("size", [4096, 8192, 65536, 100_000 // 4096 * 4096, 4 * MEBIBYTE])
@pytest.mark.parametrize("make", [record, bulk])
async def test_a_record_arrives_as_it_was_encoded(
    world: RecordsWorld, make: Callable[..., LineRecord], size: int
) -> None:
    sent = make(1, size=size)
    await world.send(sent)
    assert world.shelf.taken == [("v1", 1, b"".join(encode(sent)))]
    assert world.shelf.peers == {("alder", "name-v1")}


async def test_one_connection_carries_the_records_of_all_volumes(world: RecordsWorld) -> None:
    for number in range(1, 51):
        await world.send(record(number, volume=f"v{number % 5}"))
    assert len(world.shelf.taken) == 50
    assert world.proxy is not None
    assert world.proxy.connections == 1


async def test_one_parcel_goes_to_several_nodes(world: RecordsWorld, tmp_path: Path) -> None:
    other = RecordsWorld(tmp_path / "other")
    other.birch = node_credentials(world.authority, tmp_path / "cedar", name="cedar")
    other.server = other.new_server()
    parcel = Parcel.of(record(1))
    async with other.server:
        cedar = node_record(other.birch, port=other.server.port)
        await asyncio.gather(
            world.sender.send(parcel, to=world.birch_at(), volume_name="name"),
            world.sender.send(parcel, to=cedar, volume_name="name"),
        )
        await world.sender.close()
    assert world.shelf.taken == other.shelf.taken != []


async def test_a_volumes_records_reach_the_gate_in_order_without_waiting_for_answers(
    world: RecordsWorld,
) -> None:
    sizes = [4096, 300_000 // 4096 * 4096, 4096, 2 * MEBIBYTE]
    tasks = [world.begin(bulk(n, size=sizes[n % 4])) for n in range(1, 201)]
    await asyncio.gather(*tasks)
    assert world.shelf.numbers() == list(range(1, 201))


async def test_volumes_are_at_the_gate_at_the_same_time(world: RecordsWorld) -> None:
    """Else they could not share a flush of the journal."""
    world.shelf.open.clear()
    tasks = [world.begin(record(1, volume=f"v{n}")) for n in range(20)]
    await until(lambda: world.shelf.inside == 20)
    world.shelf.open.set()
    await asyncio.gather(*tasks)


async def test_a_volume_that_is_slow_at_the_gate_delays_no_other(world: RecordsWorld) -> None:
    world.shelf.open.clear()
    slow = [world.begin(record(n)) for n in (1, 2, 3)]
    await until(lambda: world.shelf.inside == 1)
    world.shelf.passing.add("v2")
    await world.send(record(1, volume="v2"))
    assert not any(task.done() for task in slow)
    world.shelf.open.set()
    await asyncio.gather(*slow)
    assert world.shelf.numbers() == [1, 2, 3]


async def test_sixty_four_volumes_send_at_the_same_time(world: RecordsWorld) -> None:
    async def one(volume: str) -> None:
        for number in range(1, 11):
            await world.send(record(number, volume=volume))

    await asyncio.gather(*(one(f"v{n}") for n in range(64)))
    assert all(world.shelf.numbers(f"v{n}") == list(range(1, 11)) for n in range(64))
    assert len(list(threads_of_records())) <= 33


@pytest.mark.parametrize(
    "refusal",
    [
        NotFollowing("lacks record 6", remedy="send a generation"),
        JournalFull("the journal is full", remedy="send a generation"),
        Stale("node alder does not hold it"),
        Denied("the volume is another one now"),
        DiskFailed("the disk takes no writes"),
        StorageError("input/output error"),
    ],
)
async def test_a_refusal_reaches_the_sender_as_its_own_class(
    world: RecordsWorld, refusal: PannierError
) -> None:
    world.shelf.refusals["v1"] = refusal
    with pytest.raises(type(refusal)) as caught:
        await world.send(record(1))
    assert type(caught.value) is type(refusal)
    assert caught.value.message == f"node birch: {refusal.message}"
    assert caught.value.remedy == refusal.remedy
    await world.send(record(1, volume="v2"))
    assert world.proxy is not None
    assert world.proxy.connections == 1


async def test_a_bug_in_the_gate_is_reported_and_the_connection_lives_on(
    world: RecordsWorld,
) -> None:
    world.shelf.refusals["v1"] = ValueError("a bug")
    with pytest.raises(PannierError, match="not foreseen"):
        await world.send(record(1))
    del world.shelf.refusals["v1"]
    await world.send(record(1))
    assert world.proxy is not None
    assert world.proxy.connections == 1


async def test_a_record_that_was_changed_on_its_way_is_corrupt(world: RecordsWorld) -> None:
    pieces = [bytearray(piece) for piece in encode(record(1))]
    pieces[-1][0] ^= 1
    with pytest.raises(StorageError, match="damaged"):
        await world.sender.send(Parcel(tuple(pieces)), to=world.birch_at(), volume_name="name-v1")
    await world.send(record(1))
    assert world.shelf.numbers() == [1]


async def test_a_record_that_is_too_long_is_not_sent(world: RecordsWorld) -> None:
    for _ in range(10):
        with pytest.raises(InvalidInput, match="at most"):
            await world.send(bulk(1, size=6 * MEBIBYTE))
    with pytest.raises(InvalidInput, match="name"):
        await world.sender.send(Parcel.of(record(1)), to=world.birch_at(), volume_name="../x")
    await world.send(record(1))
    assert world.shelf.numbers() == [1]


async def test_a_record_of_zeros_arrives(world: RecordsWorld) -> None:
    one = record(1)
    await world.send(replace(one, size=1 << 40, ranges=(Zeros(0, 1 << 40),)))
    assert world.shelf.numbers() == [1]


async def test_cancelling_costs_only_the_one_who_waits(world: RecordsWorld) -> None:
    world.shelf.open.clear()
    tasks = [world.begin(record(n)) for n in range(1, 11)]
    await until(lambda: world.shelf.inside == 1)
    for task in tasks[::2]:
        task.cancel()
    await asyncio.wait(tasks[::2])
    world.shelf.open.set()
    await asyncio.gather(*tasks[1::2])
    await world.send(record(11))
    kept = world.shelf.numbers()
    assert kept == sorted(kept)
    assert {1, 2, 4, 6, 8, 10, 11} <= set(kept)
    assert world.proxy is not None
    assert world.proxy.connections == 1


async def test_cancelling_while_it_connects_costs_only_the_one_who_waits(
    world: RecordsWorld,
) -> None:
    first, second = world.begin(record(1)), world.begin(record(2))
    await asyncio.sleep(0)
    first.cancel()
    await second
    assert first.cancelled()
    assert world.shelf.numbers() == [2]


async def test_more_than_may_be_under_way_waits_and_arrives_in_order(world: RecordsWorld) -> None:
    world.shelf.open.clear()
    tasks = [world.begin(bulk(n)) for n in range(1, 13)]
    await until(lambda: world.shelf.inside == 1)
    tasks += [world.begin(record(n)) for n in range(13, 400)]
    given_up = tasks.pop(100)
    given_up.cancel()
    await asyncio.wait([given_up])
    world.shelf.open.set()
    await asyncio.gather(*tasks)
    assert world.shelf.numbers() == [n for n in range(1, 400) if n != 101]


async def test_an_idle_connection_ends_and_the_next_record_opens_another(tmp_path: Path) -> None:
    world = RecordsWorld(tmp_path, timing=TransportTiming(idle=0.2))
    async with world.running():
        before = descriptors()
        await world.send(record(1))
        await until(lambda: not list(threads_of_records()))
        await until(lambda: descriptors() <= before)
        await world.send(record(2))
        assert world.proxy is not None
        assert world.proxy.connections == 2
        assert world.shelf.numbers() == [1, 2]


async def test_a_connection_outlives_the_stall_time_while_nobody_sends(tmp_path: Path) -> None:
    world = RecordsWorld(tmp_path, timing=TransportTiming(stall=0.4))
    async with world.running():
        await world.send(record(1))
        await asyncio.sleep(3 * world.timing.stall)
        await world.send(record(2))
        assert world.proxy is not None
        assert world.proxy.connections == 1


async def test_generations_and_records_share_a_port(world: RecordsWorld) -> None:
    await world.send(record(1), port=world.server.port)
    ours = MemoryDriver()
    ours.add("v1", "1.1", b"x")
    client = TransportClient(world.alder)
    await client.send(offer_of("v1", "1.1"), to=world.birch_at(world.server.port), driver=ours)
    await client.close()


async def test_a_sender_that_was_closed_can_send_again(world: RecordsWorld) -> None:
    await world.send(record(1))
    await world.sender.close()
    await until(lambda: not list(threads_of_records()))
    await world.send(record(2))
    assert world.shelf.numbers() == [1, 2]


async def test_closing_fails_what_is_under_way(world: RecordsWorld) -> None:
    world.shelf.open.clear()
    task = world.begin(record(1))
    await until(lambda: world.shelf.inside == 1)
    await world.sender.close()
    with pytest.raises(PeerUnavailable):
        await task
    world.shelf.open.set()


async def test_a_node_of_another_cluster_is_refused_on_both_sides(
    world: RecordsWorld, tmp_path: Path
) -> None:
    foreign = Authority.create(tmp_path / "other-ca", cluster="c1")
    stranger = node_credentials(foreign, tmp_path / "other", name="alder")
    world.sender = RecordSender(stranger)
    with pytest.raises(Denied, match="not from this cluster"):
        await world.send(record(1))
    (stranger.directory / "ca.crt").write_text(world.authority.certificate_pem)
    world.sender = RecordSender(stranger)
    with pytest.raises(Denied, match="certificate"):
        await world.send(record(1))
    assert not world.shelf.taken


async def test_a_users_certificate_is_refused(world: RecordsWorld, tmp_path: Path) -> None:
    request = new_request("ann")
    ann = Credentials.save(
        tmp_path / "ann",
        ca=world.authority.certificate_pem,
        certificate=world.authority.issue_user(request.csr_pem, user="ann"),
        key=request.key_pem,
        kind="user",
    )
    world.sender = RecordSender(ann)
    with pytest.raises(Denied, match="only nodes"):
        await world.send(record(1))
    assert not world.shelf.taken


async def test_another_node_at_the_address_gets_nothing(
    world: RecordsWorld, tmp_path: Path
) -> None:
    cedar = node_credentials(world.authority, tmp_path / "cedar", name="cedar")
    newer = node_credentials(world.authority, tmp_path / "newer", name="birch")
    for credentials, why in ((cedar, "another machine"), (newer, "another certificate")):
        to = node_record(credentials, port=world.server.port)
        with pytest.raises(Denied, match=why):
            await world.sender.send(Parcel.of(record(1)), to=to, volume_name="name-v1")
    assert not world.shelf.taken


async def test_a_node_that_was_removed_is_refused_at_once_and_on_its_open_connection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(record_server, "_LOOK_SECONDS", 0.05)
    removed = False

    async def check(name: str, shown: Fingerprints) -> None:
        if removed:
            raise Denied(f"node {name} was removed")

    world = RecordsWorld(tmp_path, check_peer=check)
    async with world.running():
        await world.send(record(1))
        world.shelf.open.clear()
        task = world.begin(record(2))
        await until(lambda: world.shelf.inside == 1)
        removed = True
        with pytest.raises(Denied, match="was removed"):
            await task
        with pytest.raises(Denied, match="was removed"):
            await world.send(record(3))
        world.shelf.open.set()
        assert 3 not in world.shelf.numbers()
