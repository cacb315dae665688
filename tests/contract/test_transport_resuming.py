"""A transfer of an image that broke goes on where its durable part ended, whichever end was restarted."""

from __future__ import annotations

import asyncio
import os
import shutil
import threading
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from test_driver_kit import Nodes, image_nodes, overwrite, pools, read_stream, workplace
from transport_world import PATIENCE_SECONDS, OpenGate, Proxy, World

from pannier.core.errors import Corrupt, InvalidInput, PeerUnavailable, PoolFull
from pannier.core.generation import Generation
from pannier.core.line import OnTop
from pannier.host.files import write_file
from pannier.storage.base import Begun, LocalCopy, ResumingDriver
from pannier.storage.blocks import BLOCK_BYTES
from pannier.storage.btrfs import ioctl
from pannier.storage.btrfs.pool import close_pool, create_pool
from pannier.storage.image import partial
from pannier.storage.image.driver import ImageDriver
from pannier.transport.base import Offer, Sent
from pannier.transport.client import TransportClient
from pannier.transport.frames import BegunPart, Have
from pannier.transport.server import TransportServer

__all__ = ["image_nodes", "pools", "workplace"]
pytestmark = [pytest.mark.root, pytest.mark.timeout(2 * PATIENCE_SECONDS)]
MEBIBYTE = 1 << 20
CONTENT_BYTES = 40 * MEBIBYTE
LATE_BYTES = CONTENT_BYTES * 15 // 16
EACH_BYTES = 4 * MEBIBYTE


class Pair:
    """Alder, which has the volume, and birch, which gets it; each can be restarted."""

    def __init__(self, world: World, nodes: Nodes) -> None:
        self._world = world
        self.volume = nodes.volume
        self.nodes = nodes
        self.alder = self._is_image(nodes.a)
        self.birch = self._is_image(nodes.b)
        self._reopened: list[ImageDriver] = []
        self._serve()
        self.client = TransportClient(world.alder)

    @staticmethod
    def _is_image(driver: object) -> ImageDriver:
        assert isinstance(driver, ImageDriver)
        assert isinstance(driver, ResumingDriver)
        return driver

    def _serve(self) -> None:
        gate = OpenGate(self.birch)
        self.server = TransportServer(self._world.birch, gate, host="127.0.0.1", port=0)

    async def restart_birch(self) -> None:
        """Another daemon takes over what is on the disk."""
        await self.server.close()
        self.birch = ImageDriver(self.birch._mountpoint, staging=self.birch._staging)
        await self.birch.open()
        self._serve()
        await self.server.start()

    async def restart_alder(self) -> None:
        await self.client.close()
        await self.alder.detach(
            self.volume, epoch=1
        )  # its descriptors end with a daemon, and not here
        self.alder = ImageDriver(self.alder._mountpoint, staging=self.alder._staging)
        await self.alder.open()
        self.client = TransportClient(self._world.alder)

    async def send(
        self, generation: Generation, *, port: int | None = None, seen: list[int] | None = None
    ) -> Sent:
        offer = Offer(
            volume_id=self.volume, volume_name="web", driver="image", epoch=1, generation=generation
        )
        return await self.client.send(
            offer,
            to=self._world.birch_at(port or self.server.port),
            driver=self.alder,
            progress=(seen if seen is not None else []).append,
        )

    async def break_off(self, generation: Generation, *, after_bytes: int) -> None:
        """Send until the connection breaks, and wait until birch has noticed."""
        assert not await self.arrives(generation, within_bytes=after_bytes)

    async def arrives(self, generation: Generation, *, within_bytes: int) -> bool:
        """Send over a connection that breaks after so many bytes."""
        proxy = Proxy(self.server.port, cut_after_bytes=within_bytes)
        try:
            async with proxy.listening() as port:
                await self.send(generation, port=port)
        except PeerUnavailable:
            while self.server._claims:
                await asyncio.sleep(0)
            return False
        return True

    async def write(
        self, *, megabytes: int = CONTENT_BYTES // MEBIBYTE, name: str = "file"
    ) -> Generation:
        with (self.alder.data_path(self.volume, 1) / name).open("wb", buffering=0) as file:
            for _ in range(megabytes):
                file.write(os.urandom(MEBIBYTE))
            os.fsync(file.fileno())
        return await self.alder.snapshot(self.volume, epoch=1)

    async def begun(self) -> Begun | None:
        return (await self.birch.inspect(self.volume)).begun

    async def stream_bytes(self, begun: Begun, *, position: int) -> int:
        """How much alder sends from a position on."""
        async with self.alder.send_rest(
            self.volume, begun.generation, base=begun.base, position=position
        ) as source:
            return await asyncio.to_thread(pump, source, None)

    async def check(self, generation: Generation) -> None:
        """Both have the same bytes, and birch has the checksum of each that it was sent."""
        ours = await self.alder.verify(self.volume, generation)
        theirs = await self.birch.verify(self.volume, generation)
        assert theirs.proved
        assert theirs.digest == ours.digest
        tree = self.birch._home(self.volume).tree(generation)
        assert sorted(os.listdir(tree)) == ["image", "sums"]
        assert ioctl.is_read_only(tree)
        assert await self.begun() is None
        assert os.listdir(tree.parent.parent.parent / "incoming") == ["workbench"]


@pytest.fixture(autouse=True)
def notes_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partial, "EACH_BYTES", EACH_BYTES)


@pytest.fixture
async def pair(tmp_path: Path, image_nodes: Nodes) -> AsyncIterator[Pair]:
    pair = Pair(World(tmp_path), image_nodes)
    await image_nodes.create()
    await pair.server.start()
    yield pair
    await pair.client.close()
    await pair.server.close()


@pytest.mark.parametrize("restarts", ["none", "birch", "alder"])
@pytest.mark.parametrize("with_base", [False, True])
async def test_a_broken_transfer_goes_on(pair: Pair, restarts: str, with_base: bool) -> None:
    if with_base:
        await pair.send(await pair.write(megabytes=1, name="before"))
    generation = await pair.write()
    await pair.break_off(generation, after_bytes=LATE_BYTES)
    begun = await pair.begun()
    assert begun is not None
    assert begun.generation == generation
    assert (begun.base is not None) == with_base
    if restarts == "birch":
        await pair.restart_birch()
    elif restarts == "alder":
        await pair.restart_alder()
    assert await pair.begun() == begun
    seen: list[int] = []
    sent = await pair.send(generation, seen=seen)
    assert sent.bytes == await pair.stream_bytes(begun, position=begun.position)
    assert sent.bytes <= await pair.stream_bytes(begun, position=0) - EACH_BYTES
    assert seen[-1] == sent.bytes
    await pair.check(generation)


async def test_a_transfer_may_break_again_and_again(pair: Pair) -> None:
    generation = await pair.write()
    positions = [0]
    while not await pair.arrives(generation, within_bytes=CONTENT_BYTES // 3):
        begun = await pair.begun()
        assert begun is not None
        assert begun.position > positions[-1]
        positions.append(begun.position)
    assert len(positions) >= 3
    await pair.check(generation)


async def test_the_begun_generation_comes_before_a_newer_one(pair: Pair) -> None:
    """A sender that was restarted makes a new generation, while the receiver has most of another."""
    older = await pair.write()
    await pair.break_off(older, after_bytes=LATE_BYTES)
    newer = await pair.write(megabytes=1, name="other")
    await pair.restart_alder()
    seen: list[int] = []
    sent = await pair.send(newer, seen=seen)
    assert sent.base == older
    assert MEBIBYTE < sent.bytes < CONTENT_BYTES
    assert seen == sorted(seen)
    assert seen[-1] == sent.bytes
    await pair.check(older)
    await pair.check(newer)


async def test_a_receiver_that_says_for_ever_that_it_has_a_part_is_not_sent_to_for_ever(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    older = await part(pair)
    begun = await pair.begun()
    newer = await pair.write(megabytes=1, name="other")
    inspect = pair.birch.inspect

    async def says(volume: str) -> LocalCopy:
        return replace(await inspect(volume), generations=(), begun=begun)

    with monkeypatch.context() as patched:
        patched.setattr(pair.birch, "inspect", says)
        sent = await pair.send(newer)
    assert sent.base is None
    await pair.check(older)
    await pair.check(newer)


async def test_another_generation_takes_the_place_of_one_that_the_sender_has_deleted(
    pair: Pair,
) -> None:
    older = await pair.write()
    await pair.break_off(older, after_bytes=LATE_BYTES)
    newer = await pair.write(megabytes=1, name="other")
    await pair.alder.delete_generation(pair.volume, older)
    assert (await pair.send(newer)).bytes > CONTENT_BYTES
    await pair.check(newer)


async def test_a_part_on_another_base_is_begun_anew(pair: Pair) -> None:
    first = await pair.write(megabytes=1, name="before")
    await pair.send(first)
    generation = await pair.write()
    await pair.break_off(generation, after_bytes=LATE_BYTES)
    await pair.birch.delete_generation(pair.volume, first)
    assert await pair.begun() is None
    assert (await pair.send(generation)).bytes > CONTENT_BYTES
    await pair.check(generation)


async def test_an_end_that_knows_of_no_parts_sends_all(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    generation = await pair.write()
    await pair.break_off(generation, after_bytes=LATE_BYTES)
    parsed = Have.parsed
    monkeypatch.setattr(
        Have, "parsed", lambda have: LocalCopy(generations=parsed(have).generations)
    )
    assert (await pair.send(generation)).bytes > CONTENT_BYTES
    await pair.check(generation)


# -- parts that are of no use ------------------------------------------------------------------------


async def part(pair: Pair) -> Generation:
    """A generation of which birch has a part."""
    generation = await pair.write()
    await pair.break_off(generation, after_bytes=LATE_BYTES)
    begun = await pair.begun()
    assert begun is not None
    assert begun.generation == generation
    return generation


def incoming(pair: Pair) -> list[str]:
    return os.listdir(pair.birch._home(pair.volume).path / "incoming")


async def test_what_is_begun_is_of_a_volume_that_is_here(pair: Pair) -> None:
    """Or nobody would remove it with the volume."""
    await part(pair)
    assert pair.volume in await pair.birch.volumes()
    await pair.birch.delete(pair.volume)
    assert pair.volume not in await pair.birch.volumes()
    assert not pair.birch._home(pair.volume).path.exists()


async def test_a_part_can_be_given_up_for_its_room(pair: Pair) -> None:
    generation = await part(pair)
    assert await pair.birch.parts() == {pair.volume}
    for _ in range(2):
        await pair.birch.drop_part(pair.volume)
        assert incoming(pair) == []
        assert await pair.birch.parts() == frozenset()
    await pair.send(generation)
    await pair.check(generation)


async def test_a_pool_that_gets_full_meanwhile_keeps_no_part(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    generation, looks = await pair.write(), iter(range(20))
    check = pair.birch._check_room

    def gets_full() -> None:
        if next(looks, None) is None:
            raise PoolFull("it is full")
        check()

    monkeypatch.setattr(pair.birch, "_check_room", gets_full)
    with pytest.raises(PoolFull):
        await pair.send(generation)
    assert incoming(pair) == []


async def test_a_new_holder_keeps_no_part(pair: Pair) -> None:
    first = await pair.write(megabytes=1, name="before")
    await pair.send(first)
    await part(pair)
    await pair.birch.promote(pair.volume, first, epoch=2, size_bytes=None, on_top=OnTop.NOTHING)
    assert incoming(pair) == []


@pytest.mark.parametrize("content", [b"", b"{", b'{"format":2}', None])
async def test_a_note_that_cannot_be_read_is_no_part(pair: Pair, content: bytes | None) -> None:
    generation = await part(pair)
    note = pair.birch._home(pair.volume).incoming(generation) / "tree" / partial.NOTE
    if content is None:
        found = msgspec.json.decode(note.read_bytes())
        content = msgspec.json.encode({**found, "format": 2})
    note.write_bytes(content)
    assert await pair.begun() is None
    await pair.restart_birch()
    assert incoming(pair) == []
    await pair.send(generation)
    await pair.check(generation)


async def test_a_rest_of_something_else_is_refused(pair: Pair) -> None:
    """Whatever a sender believes: the rest must begin exactly where the part ends."""
    generation = await part(pair)
    begun = await pair.begun()
    assert begun is not None
    position = begun.position + BLOCK_BYTES
    async with pair.alder.send_rest(
        pair.volume, generation, base=None, position=position
    ) as source:
        with pytest.raises(Corrupt, match="goes on with something"):
            async with pair.birch.receive(pair.volume, generation, base=None) as target:
                await asyncio.to_thread(pump, source, target)
        await asyncio.to_thread(pump, source, None)
    assert incoming(pair) == []


def pump(source: int, target: int | None) -> int:
    """Pass a stream on, or throw it away; its bytes."""
    count = 0
    while piece := os.read(source, MEBIBYTE):
        count += len(piece)
        if target is not None:
            write_all(target, piece)
    return count


async def test_a_part_on_a_base_that_was_mended_is_begun_anew(pair: Pair) -> None:
    """It was begun as a snapshot of what was damaged."""
    wanted = os.urandom(BLOCK_BYTES)
    path = pair.alder.data_path(pair.volume, 1) / "before"
    path.write_bytes(wanted)
    first = await pair.write(megabytes=1, name="other")
    await pair.send(first)
    generation = await part(pair)
    overwrite(pair.birch, wanted)
    (at,) = (await pair.birch.verify(pair.volume, first)).damaged
    await pair.birch.mend(pair.volume, {at: wanted})
    assert await pair.begun() is None
    await pair.send(generation)
    await pair.check(generation)


# -- power ---------------------------------------------------------------------------------------------


async def test_a_power_cut_takes_what_came_after_the_note_and_no_more(
    pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pool's file is what a disk has at this moment: what is only in the page cache is not in it."""
    generation = await pair.write()
    stream = await read_stream(pair.alder, pair.volume, generation)
    mountpoint = tmp_path / "pool"
    disk, cut = mountpoint.with_suffix(".img"), tmp_path / "cut.img"
    noted = threading.Event()

    def note(path: Path, content: bytes) -> None:
        write_file(path, content)
        if not noted.is_set():
            shutil.copyfile(disk, cut)
            noted.set()

    monkeypatch.setattr(partial, "write_file", note)
    await create_pool(disk, mountpoint=mountpoint, size_bytes=512 * MEBIBYTE)
    try:
        driver = ImageDriver(mountpoint, staging=tmp_path / "staging")
        await driver.open()

        async def receive_half() -> None:
            async with driver.receive(pair.volume, generation, base=None) as pipe:
                await asyncio.to_thread(write_all, pipe, stream[: len(stream) // 2])
                await asyncio.to_thread(noted.wait)
                raise Cut

        with pytest.raises(Cut):
            await receive_half()
        assert await close_pool(mountpoint)
        cut.rename(disk)
        driver = ImageDriver(mountpoint, staging=tmp_path / "staging", source=disk)
        await driver.open()
        found = (await driver.inspect(pair.volume)).begun
        assert found is not None
        async with (
            pair.alder.send_rest(
                pair.volume, generation, base=None, position=found.position
            ) as source,
            driver.receive(pair.volume, generation, base=None) as target,
        ):
            await asyncio.to_thread(pump, source, target)
        ours = await pair.alder.verify(pair.volume, generation)
        theirs = await driver.verify(pair.volume, generation)
        assert theirs.proved
        assert theirs.digest == ours.digest
    finally:
        assert await close_pool(mountpoint)


class Cut(Exception):
    """The power is gone."""


def write_all(pipe: int, content: bytes) -> None:
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(pipe, rest) :]


# -- versions ------------------------------------------------------------------------------------------


class OldHave(msgspec.Struct, tag="have", frozen=True):
    """What earlier versions say and read."""

    generations: tuple[str, ...]


def test_earlier_versions_are_understood_and_understand() -> None:
    first = Generation(1, 1, "0f3a94c1")
    begun = Begun(generation=Generation(1, 2, "0f3a94c2"), base=first, position=BLOCK_BYTES)
    copy = LocalCopy(generations=(first,), begun=begun)
    said = msgspec.json.encode(Have.of(copy))
    assert msgspec.json.decode(said, type=OldHave) == OldHave((str(first),))
    assert msgspec.json.decode(said, type=Have).parsed() == copy
    old = msgspec.json.encode(OldHave((str(first),)))
    assert msgspec.json.decode(old, type=Have).parsed() == LocalCopy(generations=(first,))
    assert msgspec.json.encode(Have.of(LocalCopy(generations=(first,)))) == old


@pytest.mark.parametrize("position", [0, -1])
def test_a_part_of_nothing_is_refused(position: int) -> None:
    begun = BegunPart(generation="1.1", base=None, position=position)
    with pytest.raises(InvalidInput):
        Have((), begun).parsed()
