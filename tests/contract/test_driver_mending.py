"""What every driver that mends blocks does; also those in memory: tests/simulation/test_fake_driver.py."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from test_driver_kit import Nodes, image_nodes, overwrite, pools, workplace

from pannier.core.errors import StorageError
from pannier.core.generation import Generation
from pannier.storage.base import Reading
from pannier.storage.blocks import BLOCK_BYTES, MendingDriver, Piece
from pannier.storage.btrfs.subvolumes import SubvolumeDriver
from pannier.storage.image import check

__all__ = ["image_nodes", "pools", "workplace"]
pytestmark = pytest.mark.root
MIB = 1 << 20
BLOCK = BLOCK_BYTES


@dataclass(frozen=True)
class Damaged:
    """A holder with a copy, and what can happen to their disks.

    Attributes:
        spoil: a disk gives back other bytes in the place of these, wherever the driver has them; not in what lies
            elsewhere.
    """

    nodes: Nodes
    holder: MendingDriver
    copy: MendingDriver
    spoil: Callable[[MendingDriver, bytes], None]

    @property
    def volume(self) -> str:
        return self.nodes.volume

    async def written(self, data: Path, name: str, content: bytes) -> Generation:
        """The holder's generation after a file was written, which the copy has, too."""
        base = max((await self.copy.inspect(self.volume)).generations, default=None)
        (data / name).write_bytes(content)
        generation = await self.holder.snapshot(self.volume, epoch=1)
        await self.nodes.transfer(self.holder, self.copy, generation, base)
        return generation

    async def pieces(
        self,
        driver: MendingDriver,
        generation: Generation,
        piece_bytes: int,
        start: int = 0,
        end: int | None = None,
    ) -> dict[int, Piece]:
        """What is not zero."""
        found = await driver.pieces(
            self.volume, generation, start=start, end=end, piece_bytes=piece_bytes
        )
        return {piece.start: piece for piece in found if piece.digest}


@pytest.fixture
def world(image_nodes: Nodes) -> Damaged:
    def spoil(driver: MendingDriver, content: bytes) -> None:
        assert isinstance(driver, SubvolumeDriver)
        overwrite(driver, content)

    holder, copy = image_nodes.a, image_nodes.b
    assert isinstance(holder, MendingDriver)
    assert isinstance(copy, MendingDriver)
    return Damaged(image_nodes, holder, copy, spoil)


def block() -> bytes:
    """Some bytes that are nowhere else."""
    return os.urandom(BLOCK)


async def test_a_damaged_block_is_mended_with_what_another_node_has(world: Damaged) -> None:
    wanted, data = block(), await world.nodes.create()
    first = await world.written(data, "file", wanted)
    second = await world.written(data, "other", block())
    world.spoil(world.copy, wanted)
    found = await world.copy.verify(world.volume, second)
    assert (found.proved, len(found.damaged)) == (False, 1)
    sums = await world.copy.wanted(world.volume, second, [*found.damaged, 0])
    assert list(sums) == list(found.damaged)
    known = {at: each for at, each in sums.items() if each is not None}
    right = await world.holder.find(world.volume, known)
    assert list(right) == list(found.damaged)
    assert await world.copy.find(world.volume, known) == {}
    await world.copy.mend(world.volume, right)
    for generation in (first, second):
        theirs = await world.holder.verify(world.volume, generation)
        assert await world.copy.verify(world.volume, generation) == Reading(
            proved=True, digest=theirs.digest
        )
    assert await world.copy.wanted(world.volume, second, found.damaged) == {}
    await world.copy.mend(world.volume, right)
    assert (await world.copy.verify(world.volume, second)).proved
    third = await world.written(data, "third", block())
    assert (await world.copy.verify(world.volume, third)).proved


async def test_bytes_that_are_not_what_was_received_are_not_taken(world: Damaged) -> None:
    wanted, data = block(), await world.nodes.create()
    generation = await world.written(data, "file", wanted)
    world.spoil(world.copy, wanted)
    (at,) = (await world.copy.verify(world.volume, generation)).damaged
    await world.copy.mend(world.volume, {at: block(), 1 << 50: block()})
    assert (await world.copy.verify(world.volume, generation)).damaged == (at,)


async def test_a_whole_block_is_not_touched(world: Damaged) -> None:
    data = await world.nodes.create()
    generation = await world.written(data, "file", block())
    places = await world.pieces(world.copy, generation, BLOCK)
    before = await world.copy.verify(world.volume, generation)
    await world.copy.mend(world.volume, {at: block() for at in places})
    assert await world.copy.verify(world.volume, generation) == before
    assert before.proved


async def test_what_a_node_made_itself_is_never_mended(world: Damaged) -> None:
    wanted, data = block(), await world.nodes.create()
    generation = await world.written(data, "file", wanted)
    places = await world.pieces(world.holder, generation, BLOCK)
    await world.holder.detach(world.volume, epoch=1)
    world.spoil(world.holder, wanted)
    before = await world.holder.verify(world.volume, generation)
    assert (before.proved, before.damaged) == (False, ())
    assert await world.holder.wanted(world.volume, generation, places) == {}
    await world.holder.mend(world.volume, dict.fromkeys(places, wanted))
    assert await world.holder.verify(world.volume, generation) == before


async def test_no_node_is_told_of_more_pieces_than_any_asks_for(
    world: Damaged, monkeypatch: pytest.MonkeyPatch
) -> None:
    generation = await world.written(await world.nodes.create(), "file", block())
    found = await world.pieces(world.holder, generation, 1)
    monkeypatch.setattr(check, "MOST_PIECES", len(found) - 1)
    with pytest.raises(StorageError):
        await world.pieces(world.holder, generation, 1)


async def test_pieces_tell_where_two_nodes_differ_and_who_can_prove_it(world: Damaged) -> None:
    wanted, data = block(), await world.nodes.create()
    await world.written(data, "file", wanted)
    generation = await world.written(data, "other", block())

    async def differing(piece_bytes: int, start: int = 0, end: int | None = None) -> list[int]:
        mine, theirs = [
            await world.pieces(driver, generation, piece_bytes, start, end)
            for driver in (world.holder, world.copy)
        ]
        assert mine.keys() == theirs.keys()
        assert not any(piece.proved for piece in mine.values())
        assert all(piece.proved for piece in theirs.values())
        return [at for at, piece in mine.items() if piece.digest != theirs[at].digest]

    assert await differing(MIB) == []
    await world.holder.detach(world.volume, epoch=1)
    world.spoil(world.holder, wanted)
    (piece,) = await differing(MIB)
    (at,) = await differing(BLOCK, piece, piece + MIB)
    assert piece <= at < piece + MIB
    assert await differing(BLOCK, at + BLOCK, piece + MIB) == []


async def test_a_damaged_block_is_not_proved(world: Damaged) -> None:
    wanted, data = block(), await world.nodes.create()
    generation = await world.written(data, "file", wanted)
    world.spoil(world.copy, wanted)
    (at,) = (await world.copy.verify(world.volume, generation)).damaged
    found = await world.pieces(world.copy, generation, BLOCK)
    assert [start for start, piece in found.items() if not piece.proved] == [at]


async def test_a_generation_that_is_not_here_has_no_blocks(world: Damaged) -> None:
    await world.nodes.create()
    other = Generation(7, 1)
    with pytest.raises(StorageError):
        await world.copy.wanted(world.volume, other, [0])
    with pytest.raises(StorageError):
        await world.copy.pieces(world.volume, other, start=0, end=None, piece_bytes=MIB)
    assert await world.copy.find(world.volume, {0: 1}) == {}
    await world.copy.mend(world.volume, {0: block()})
