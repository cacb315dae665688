"""In which blocks nodes differ that have the same generation: by digests of ever smaller pieces."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from pannier.agent.drivers import Drivers
from pannier.cluster.cluster import Cluster
from pannier.contract.peers import Peers
from pannier.contract.views import PiecesView, PieceView
from pannier.core.errors import Corrupt, NotHolder, PannierError, PeerUnavailable, StorageError
from pannier.core.generation import Generation
from pannier.core.volume import Volume
from pannier.storage.blocks import BLOCK_BYTES, MendingDriver, Piece

LEVELS = (64 << 20, 256 << 10, BLOCK_BYTES)
"""Bytes of the pieces. The first level reads all of an image, and an answer on one of 1 TiB has 16,384 of them;
each next level reads only what differs, 256 or 64 pieces in each."""
MOST_PIECES = 256
"""With more pieces of one level that differ, a disk has lost more than blocks."""
_TRIES = 5
"""A busy volume's generations are deleted within seconds: the newest may go before all have begun to read it."""


class Differences:
    """Finds them, and reads this node's part.

    Attributes:
        reading: held while a copy is read, one at a time: the disk has others to serve.
    """

    def __init__(self, *, cluster: Cluster, drivers: Drivers, peers: Peers) -> None:
        self._cluster = cluster
        self._drivers = drivers
        self._peers = peers
        self.reading = asyncio.Lock()

    async def newest_of_all(self, volume: Volume, names: Sequence[str]) -> Generation | None:
        """The newest generation that all have that have any: of a busy volume, each has a newer one."""
        answers = await asyncio.gather(*(self._generations(name, volume) for name in names))
        found = [generations for generations in answers if generations]
        return max(frozenset.intersection(*found), default=None) if found else None

    async def _generations(self, name: str, volume: Volume) -> frozenset[Generation]:
        """What a node has of a volume; nothing where it does not answer."""
        try:
            if name == self._cluster.node:
                return frozenset((await self._drivers.of(volume).inspect(volume.id)).generations)
            node = self._cluster.catalog.node(name)
            if node is None or not self._cluster.catalog.is_up(name):
                return frozenset()
            seen = await self._peers.to(node).peer_volume(volume.name)
            return frozenset(map(Generation.parse, seen.generations))
        except PannierError:  # its answer to the question itself says why
            return frozenset()

    async def between(self, volume: Volume, names: Sequence[str]) -> dict[str, dict[int, Piece]]:
        """What each node has of the blocks that are not the same on all of them.

        Each piece is looked at in the newest generation that all have by then: what was written anew
        meanwhile, and is the same now, is no difference.

        Raises:
            PeerUnavailable, StorageError: some node cannot say. Corrupt: they differ in more than blocks.
        """
        ranges: list[tuple[int, int | None]] = [(0, None)]
        found: dict[str, dict[int, Piece]] = {}
        for piece_bytes in LEVELS:
            found = {name: {} for name in names}
            for start, end in ranges:
                said = await self._pieces(volume, names, start, end, piece_bytes)
                for name in names:
                    found[name] |= {piece.start: piece for piece in said[name]}
            differing = _differing(found)
            if len(differing) > MOST_PIECES:
                raise Corrupt(
                    f"the copies of volume {volume.name} differ in more than {MOST_PIECES} places"
                )
            ranges = [(at, at + piece_bytes) for at in differing]
            found = {
                name: {at: pieces[at] for at in differing if at in pieces}
                for name, pieces in found.items()
            }
        return found

    async def _pieces(
        self,
        volume: Volume,
        names: Sequence[str],
        start: int,
        end: int | None,
        piece_bytes: int,
    ) -> dict[str, list[Piece]]:
        """What all nodes have in a range of one generation."""
        for attempt in range(_TRIES):
            generation = await self.newest_of_all(volume, names)
            if generation is None:
                raise StorageError(f"there is no generation of volume {volume.name} that all have")
            order = (str(generation), start, end, piece_bytes)
            try:
                views = await asyncio.gather(*(self._on(name, volume, *order) for name in names))
            except Corrupt:
                raise
            except StorageError:  # it may be gone by now
                if attempt == _TRIES - 1:
                    raise
            else:
                return {
                    name: [Piece(start=p.start, digest=p.digest, proved=p.proved) for p in v.pieces]
                    for name, v in zip(names, views, strict=True)
                }
        raise AssertionError("the last try returns or raises")

    async def _on(
        self, name: str, volume: Volume, generation: str, start: int, end: int | None, size: int
    ) -> PiecesView:
        if name == self._cluster.node:
            return await self.here(
                volume, generation=generation, start=start, end=end, piece_bytes=size
            )
        node = self._cluster.catalog.node(name)
        if node is None or not self._cluster.catalog.is_up(name):
            raise PeerUnavailable(f"node {name} is down")
        return await self._peers.to(node).peer_pieces(
            volume.name, generation=generation, start=start, end=end, piece_bytes=size
        )

    async def here(
        self, volume: Volume, *, generation: str, start: int, end: int | None, piece_bytes: int
    ) -> PiecesView:
        """What this node has in a range of one generation.

        Raises:
            Corrupt: a block cannot be read; StorageError: the generation is not here; NotHolder.
        """
        driver = self._drivers.of(volume)
        if not isinstance(driver, MendingDriver):
            raise NotHolder(f"volume {volume.name} is not kept in blocks on {self._cluster.node}")
        async with self.reading:
            pieces = await driver.pieces(
                volume.id,
                Generation.parse(generation),
                start=start,
                end=end,
                piece_bytes=piece_bytes,
            )
        return PiecesView(
            pieces=[PieceView(start=p.start, digest=p.digest, proved=p.proved) for p in pieces]
        )


def _differing(found: Mapping[str, Mapping[int, Piece]]) -> list[int]:
    places = sorted({at for pieces in found.values() for at in pieces})
    return [
        at
        for at in places
        if len({pieces[at].digest if at in pieces else "" for pieces in found.values()}) > 1
    ]
