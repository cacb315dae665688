"""Drivers that compare and mend generations block by block: the protocol beyond that of all drivers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from pannier.core.generation import Generation
from pannier.storage.base import CheckedDriver

BLOCK_BYTES = 4096
"""What is compared and mended in one piece; also the block of the file systems that are made."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """What a generation has in a range of its bytes.

    Attributes:
        start: where it begins, in bytes.
        digest: the same for the same bytes, hex; empty if all of them are zero.
        proved: whether each byte that is not zero was compared with a checksum, and fits.
    """

    start: int
    digest: str
    proved: bool


@runtime_checkable
class MendingDriver(CheckedDriver, Protocol):
    """A driver whose generations are one range of bytes, with checksums of the blocks that were received.

    A block has BLOCK_BYTES, and begins at a multiple of that. Its stored checksum proves what it shall be: it
    was taken when the bytes came, and is in every generation that has them still.
    """

    async def pieces(
        self, volume: str, generation: Generation, *, start: int, end: int | None, piece_bytes: int
    ) -> tuple[Piece, ...]:
        """What a generation has, range by range, read from the disk and slowly, as :meth:`verify` does.

        Args:
            start, end: of what is read; None is the end of the image. Multiples of ``piece_bytes``.
            piece_bytes: of each piece, a multiple of BLOCK_BYTES.

        Returns:
            In order; pieces that are all zeros, or lie in nothing, may be left out.

        Raises:
            Corrupt: a block cannot be read. StorageError: the generation is not here.
        """
        ...

    async def wanted(
        self, volume: str, generation: Generation, blocks: Iterable[int]
    ) -> Mapping[int, int | None]:
        """The stored checksums of those of the blocks that are damaged in a generation.

        None stands for a block that cannot be read and has no checksum.

        Raises:
            StorageError: the generation is not here, or its checksums cannot be read.
        """
        ...

    async def find(self, volume: str, sums: Mapping[int, int]) -> Mapping[int, bytes]:
        """Those of the blocks that some generation here has with these very checksums.

        Raises:
            StorageError: they cannot be read.
        """
        ...

    async def mend(self, volume: str, blocks: Mapping[int, bytes]) -> None:
        """Put right bytes in the place of damaged ones, in every generation here, durably.

        A block is replaced only where the generation's own stored checksum says that it is not what was
        received, and that these bytes are. A generation is replaced as a whole, in one step: it is never
        writable, and after a crash it is as before, or mended. One that is being received meanwhile on top of one
        that is replaced is mended when it arrives. May be repeated. The caller deletes and promotes nothing meanwhile.

        Raises:
            StorageError: the disk refused something; some generations may be mended.
        """
        ...
