"""What a broken transfer has brought of a generation, and how far that is durable.

It stays where it was being received. A note in its subvolume says up to where everything is on the disk, so that
a power cut takes no more than what came after the note. What is behind the noted position may be there, or half:
it is sent again. The note goes before the generation gets its name.
"""

from __future__ import annotations

import os
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import msgspec

from pannier.core.errors import InvalidInput
from pannier.core.generation import Generation
from pannier.core.line import Data, Zeros
from pannier.host.files import draft_of, write_file
from pannier.host.syncing import start_writing
from pannier.storage.base import Begun
from pannier.storage.btrfs import ioctl
from pannier.storage.btrfs.layout import Home, is_whole, stands_on
from pannier.storage.image.sums import Sums

NOTE = "arrived"
_FORMAT = 1
WRITE_BYTES = 8 << 20
"""So much of the image is received until the disk is asked to write it: large enough for whole extents, and little beside
what is dirty on a machine anyway."""
EACH_BYTES = 64 << 20
"""So much of the image is received between the begins of two notes, or more while the disk is slow with one. A broken
transfer sends that much again, and what came while the last note was being made."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PartNote:
    """What is noted of a part.

    Attributes:
        identity: of the generation, as its stream's header says.
        size: of the image, in bytes.
        base: as :class:`~pannier.storage.base.Begun` has it, as text; position likewise.
    """

    identity: str
    size: int
    base: str | None
    position: int
    format: int = _FORMAT


class Noting:
    """Notes from time to time how far a generation has been received, in a thread: nothing waits for the disk.

    A context manager: when its block ends, so has the note that was being made.

    Args:
        tree: the subvolume that it is received into.
        image: the open image in it. sums: of that.
        note: what is to be noted; its position is where this transfer begins.
    """

    def __init__(self, tree: Path, image: int, sums: Sums, note: PartNote) -> None:
        self._tree = tree
        self._image = image
        self._sums = sums
        self._note = note
        self._new_bytes = 0
        self._begun_at = note.position
        """The disk has been asked to write what is before this."""
        self._is_durable = note.position > 0
        """Whether the subvolume itself is."""
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="noting")
        self._noting: Future[None] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, failed: type[BaseException] | None, *_: object) -> None:
        self._thread.shutdown()
        if self._noting is not None and failed is None:
            self._noting.result()

    def applied(self, record: Data | Zeros) -> None:
        """A record is in the image, and so is all that belongs before its end.

        Raises:
            OSError: the disk refused something that was written.
        """
        if isinstance(record, Data):
            self._new_bytes += len(record.content)
            if record.end - self._begun_at >= WRITE_BYTES:
                # The disk begins to write it, and nobody waits: the flush at the end has little left to do.
                start_writing(self._image, self._begun_at, record.end - self._begun_at)
                self._begun_at = record.end
        if self._new_bytes >= EACH_BYTES and (self._noting is None or self._noting.done()):
            if self._noting is not None:
                self._noting.result()
            self._noting = self._thread.submit(self._write, record.end)
            self._new_bytes = 0

    def _write(self, position: int) -> None:
        if not self._is_durable:
            ioctl.sync_filesystem(self._tree)
            self._is_durable = True
        os.fdatasync(self._image)
        self._sums.sync()
        self._note = replace(self._note, position=position)
        write_file(self._tree / NOTE, msgspec.json.encode(self._note))


def begun(home: Home) -> Begun | None:
    """The generation that the next transfer can go on with."""
    for generation in home.arriving():
        note = noted(home, generation)
        if note is not None:
            base = None if note.base is None else Generation.parse(note.base)
            return Begun(generation=generation, base=base, position=note.position)
    return None


def noted(home: Home, generation: Generation) -> PartNote | None:
    """The note of a part that can be gone on with; None where there is none.

    A part on top of a base that was mended since has the damage of that base, and is of no use.
    """
    tree = home.incoming(generation) / "tree"
    try:
        note = msgspec.json.decode((tree / NOTE).read_bytes(), type=PartNote)
        base = None if note.base is None else home.tree(Generation.parse(note.base))
        if note.format != _FORMAT or is_whole(home.tree(generation)) or ioctl.is_read_only(tree):
            return None
        if base is not None and not (is_whole(base) and stands_on(tree, base)):
            return None
    except (FileNotFoundError, NotADirectoryError, msgspec.MsgspecError, InvalidInput, ValueError):
        return None
    return note


def drop_note(tree: Path) -> None:
    """Remove the note of what has arrived as a whole."""
    for each in (tree / NOTE, draft_of(tree / NOTE)):
        with suppress(FileNotFoundError):
            each.unlink()


def discard_parts(home: Home, *, but: Generation | None = None) -> None:
    """Remove what broken transfers have brought, but for one generation's part."""
    for generation in home.arriving():
        if generation != but:
            home.discard_incoming(generation)


def is_of_use(home: Home, leftover: Path) -> bool:
    """Whether what is in the directory of what is being received may stay over a restart."""
    return any(
        leftover == home.incoming(generation) and noted(home, generation) is not None
        for generation in home.arriving()
    )
