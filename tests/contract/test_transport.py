"""Generations go from node to node, whole, and only between those who may."""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from transport_world import (
    PATIENCE_SECONDS,
    OpenGate,
    World,
    node_credentials,
    node_record,
    offer_of,
    threads_of_transfers,
)

from pannier.core.errors import Conflict, Denied, PannierError, PeerUnavailable, Stale
from pannier.core.generation import Generation
from pannier.core.node import Fingerprints
from pannier.pki.authority import Authority
from pannier.pki.credentials import Credentials, new_request
from pannier.storage.base import LocalCopy
from pannier.transport.client import TransportClient
from pannier.transport.rate import Rate
from pannier.transport.server import TransportServer

pytestmark = pytest.mark.timeout(PATIENCE_SECONDS)
MEBIBYTE = 1 << 20


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    world = World(tmp_path)
    async with world.server:
        yield world
        await world.client.close()
    assert not list(threads_of_transfers())


async def test_a_generation_arrives_whole_where_nothing_was(world: World) -> None:
    content = os.urandom(3 * MEBIBYTE + 17)
    world.ours.add("v1", "1.1", content)
    sent = await world.send("v1", "1.1")
    assert world.theirs.content("v1", "1.1") == content
    assert sent.base is None
    assert sent.bytes > len(content)
    assert world.gate.asked[0][0] == "alder"
    assert world.gate.asked[0][1] == offer_of("v1", "1.1")


async def test_what_is_here_is_looked_at_once_the_receiver_has_answered(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Records go there meanwhile, and each is noted here first: one that is not noted proves a disk that was set back."""
    world.ours.add("v1", "1.1", b"x")
    answered: list[int] = []
    inspect = world.ours.inspect

    async def inspected(volume: str) -> LocalCopy:
        answered.append(len(world.gate.asked))
        return await inspect(volume)

    monkeypatch.setattr(world.ours, "inspect", inspected)
    await world.send("v1", "1.1")
    assert answered == [1]


async def test_an_empty_stream_arrives(world: World) -> None:
    world.ours.add("v1", "1.1", b"")
    await world.send("v1", "1.1")
    assert world.theirs.content("v1", "1.1") == b""


async def test_the_newest_generation_that_both_have_is_the_base(world: World) -> None:
    for generation in ("1.1", "1.2", "1.4", "2.1"):
        world.ours.add("v1", generation, b"x")
    for generation in ("1.1", "1.2", "1.3"):
        world.theirs.add("v1", generation, b"x")
    sent = await world.send("v1", "2.1")
    assert sent.base == Generation(1, 2)
    assert world.theirs.bases == [Generation(1, 2)]
    assert world.theirs.content("v1", "2.1") == b"x"


async def test_what_the_receiver_has_is_not_sent_again(world: World) -> None:
    world.ours.add("v1", "1.1", b"x")
    world.theirs.add("v1", "1.1", b"x")
    sent = await world.send("v1", "1.1")
    assert (sent.bytes, sent.base) == (0, None)
    assert world.ours.sends == 0


class NotedRate(Rate):
    """A rate that nobody has to wait for."""

    def __init__(self) -> None:
        super().__init__(1)
        self.noted: list[int] = []

    def wait(self, sent_bytes: int) -> None:
        self.noted.append(sent_bytes)


async def test_only_what_may_wait_keeps_to_the_rate(world: World) -> None:
    rate = NotedRate()
    client = TransportClient(world.alder, rate=rate)
    world.ours.add("v1", "1.1", bytes(3 * MEBIBYTE))
    world.ours.add("v1", "1.2", bytes(3 * MEBIBYTE))
    answers = itertools.chain([True, True], itertools.repeat(False))
    offer = offer_of("v1", "1.1")
    sent = await client.send(
        offer, to=world.birch_at(), driver=world.ours, may_wait=lambda: next(answers)
    )
    assert len(rate.noted) == 2
    assert 0 < sum(rate.noted) < sent.bytes
    await client.send(offer_of("v1", "1.2"), to=world.birch_at(), driver=world.ours)
    assert len(rate.noted) == 2
    await client.close()


async def test_progress_ends_with_the_number_of_bytes_sent(world: World) -> None:
    world.ours.add("v1", "1.1", bytes(5 * MEBIBYTE))
    seen: list[int] = []
    offer = offer_of("v1", "1.1")
    sent = await world.client.send(
        offer, to=world.birch_at(), driver=world.ours, progress=seen.append
    )
    assert seen == sorted(seen)
    assert seen[-1] == sent.bytes


async def test_a_refusal_of_the_gate_reaches_the_sender_as_its_own_class(world: World) -> None:
    world.gate.refusal = Stale("epoch 1 is over", remedy="read the record again")
    world.ours.add("v1", "1.1", b"x")
    with pytest.raises(Stale) as caught:
        await world.send("v1", "1.1")
    assert caught.value.message == "node birch: epoch 1 is over"
    assert caught.value.remedy == "read the record again"
    assert world.ours.sends == 0


async def test_a_bug_in_the_gate_is_reported_and_the_server_lives_on(world: World) -> None:
    world.ours.add("v1", "1.1", b"x")
    admit, world.gate.admit = world.gate.admit, None  # type: ignore[method-assign,assignment]
    with pytest.raises(PannierError) as caught:
        await world.send("v1", "1.1")
    assert caught.value.code == "internal"
    world.gate.admit = admit  # type: ignore[method-assign]
    await world.send("v1", "1.1")


async def test_sixty_four_volumes_arrive_at_the_same_time(world: World) -> None:
    contents = {f"v{n}": os.urandom(100_000 + n) for n in range(64)}
    for volume, content in contents.items():
        world.ours.add(volume, "1.1", content)
    await asyncio.gather(*(world.send(volume, "1.1") for volume in contents))
    assert {v: world.theirs.content(v, "1.1") for v in contents} == contents


async def test_the_latest_offer_ends_an_older_transfer_of_the_same_volume(world: World) -> None:
    """A holder that gave a transfer up must not wait until the receiver has noticed."""
    world.ours.add("v1", "1.1", b"x")
    world.theirs.trouble.verify = asyncio.Event()
    first = asyncio.create_task(world.send("v1", "1.1"))
    await world.theirs.trouble.receiving.wait()
    second = asyncio.create_task(world.send("v1", "1.1"))
    with pytest.raises(PeerUnavailable):
        await first
    world.theirs.trouble.verify.set()
    await second
    assert world.theirs.content("v1", "1.1") == b"x"


async def test_an_older_epochs_offer_does_not_end_a_newer_ones_transfer(world: World) -> None:
    world.ours.add("v1", "1.1", b"old")
    world.ours.add("v1", "2.1", b"new")
    world.theirs.trouble.verify = asyncio.Event()
    first = asyncio.create_task(world.send("v1", "2.1"))
    await world.theirs.trouble.receiving.wait()
    with pytest.raises(Conflict):
        await world.send("v1", "1.1")
    world.theirs.trouble.verify.set()
    await first
    assert world.theirs.content("v1", "2.1") == b"new"


async def test_a_newer_epoch_ends_the_transfer_of_an_older_one(world: World) -> None:
    """After a takeover, the old holder's broken connection must not block the new holder."""
    world.ours.add("v1", "1.1", b"old")
    world.ours.add("v1", "2.1", b"new")
    world.theirs.trouble.verify = asyncio.Event()
    first = asyncio.create_task(world.send("v1", "1.1"))
    await world.theirs.trouble.receiving.wait()
    second = asyncio.create_task(world.send("v1", "2.1"))
    with pytest.raises(PeerUnavailable):
        await first
    world.theirs.trouble.verify.set()
    await second
    assert world.theirs.content("v1", "1.1") is None
    assert world.theirs.content("v1", "2.1") == b"new"


async def test_a_node_of_another_cluster_is_refused_on_both_sides(
    world: World, tmp_path: Path
) -> None:
    # The same id, since nothing may hang on that alone.
    foreign = Authority.create(tmp_path / "other-ca", cluster="c1")
    stranger = node_credentials(foreign, tmp_path / "other", name="alder")
    # Its own view: birch's certificate is not from its cluster.
    with pytest.raises(Denied, match="not from this cluster"):
        await TransportClient(stranger).send(
            offer_of("v1", "1.1"), to=world.birch_at(), driver=world.ours
        )
    # Birch's view, of one that accepts birch.
    (stranger.directory / "ca.crt").write_text(world.authority.certificate_pem)
    with pytest.raises(Denied, match="certificate"):
        await TransportClient(stranger).send(
            offer_of("v1", "1.1"), to=world.birch_at(), driver=world.ours
        )
    assert not world.gate.asked


async def test_an_expired_certificate_is_refused_with_a_word_about_clocks(
    world: World, tmp_path: Path
) -> None:
    old = Authority.load(tmp_path / "ca", clock=lambda: 1_000_000_000.0)
    expired = node_credentials(old, tmp_path / "expired", name="alder")
    with pytest.raises(Denied, match=r"expired.*clocks"):
        await TransportClient(expired).send(
            offer_of("v1", "1.1"), to=world.birch_at(), driver=world.ours
        )
    assert not world.gate.asked


async def test_a_users_certificate_is_refused(world: World, tmp_path: Path) -> None:
    request = new_request("ann")
    issued = world.authority.issue_user(request.csr_pem, user="ann")
    ann = Credentials.save(
        tmp_path / "ann",
        ca=world.authority.certificate_pem,
        certificate=issued,
        key=request.key_pem,
        kind="user",
    )
    with pytest.raises(Denied, match="only nodes"):
        await TransportClient(ann).send(
            offer_of("v1", "1.1"), to=world.birch_at(), driver=world.ours
        )
    assert not world.gate.asked


async def test_another_node_at_the_address_gets_nothing(world: World, tmp_path: Path) -> None:
    cedar = node_credentials(world.authority, tmp_path / "cedar", name="cedar")
    record = node_record(cedar, port=world.server.port)
    with pytest.raises(Denied, match="another machine"):
        await world.client.send(offer_of("v1", "1.1"), to=record, driver=world.ours)
    assert not world.gate.asked


async def test_an_older_certificate_of_the_right_node_gets_nothing(
    world: World, tmp_path: Path
) -> None:
    newer = node_credentials(world.authority, tmp_path / "newer", name="birch")
    record = node_record(newer, port=world.server.port)
    with pytest.raises(Denied, match="another certificate"):
        await world.client.send(offer_of("v1", "1.1"), to=record, driver=world.ours)
    assert not world.gate.asked


async def test_a_node_that_was_removed_is_refused(tmp_path: Path) -> None:
    world = World(tmp_path)
    seen: list[tuple[str, Fingerprints]] = []

    async def check(name: str, shown: Fingerprints) -> None:
        seen.append((name, shown))
        raise Denied(f"node {name} was removed")

    world.server = TransportServer(
        world.birch, OpenGate(world.theirs), host="127.0.0.1", port=0, check_peer=check
    )
    async with world.server:
        with pytest.raises(Denied, match="was removed"):
            await world.send("v1", "1.1")
    assert seen == [("alder", world.alder.fingerprints)]


async def test_nobody_listening_is_peer_unavailable(world: World) -> None:
    record = world.birch_at()
    await world.server.close()
    with pytest.raises(PeerUnavailable, match="does not answer"):
        await world.client.send(offer_of("v1", "1.1"), to=record, driver=world.ours)
