"""A generation of an image is taken in from a stream.

It is received into a writable subvolume, and gets its name as a read-only snapshot of that. The snapshot is one
transaction: it is there as a whole after a power cut, or not at all. The writable one stays as the workbench, and
the next difference is applied to it, so that a small one costs one commit.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable
from pathlib import Path

from pannier.core.errors import Corrupt, StorageError
from pannier.core.generation import Generation
from pannier.core.line import Buffer, Data, Zeros
from pannier.host.files import punch_hole
from pannier.host.syncing import write_out
from pannier.storage.blocking import told_as_storage_error
from pannier.storage.btrfs import ioctl
from pannier.storage.btrfs.layout import Home, existing_tree, is_whole, stands_on
from pannier.storage.image import nocow
from pannier.storage.image.identity import identity_of, mark
from pannier.storage.image.nocow import IMAGE
from pannier.storage.image.partial import Noting, PartNote, discard_parts, drop_note, noted
from pannier.storage.image.stream import RECORD_BYTES, StreamHeader, decode
from pannier.storage.image.sums import SUMS, Sums, sums_into
from pannier.storage.image.written import WrittenImage, written_image


class ImageIntake:
    """How one generation is taken in."""

    def __init__(
        self,
        home: Home,
        generation: Generation,
        base: Generation | None,
        *,
        check_room: Callable[[], None],
    ) -> None:
        self._check_room = check_room
        self._home = home
        self._generation = generation
        self._base = base
        self._what = f"generation {generation} of volume {home.volume}"
        self._tree = home.incoming(generation) / "tree"
        self._identity = ""

    def prepare(self) -> bool:
        """Prepare to receive the generation. False if it is here already."""
        home = self._home
        with told_as_storage_error(f"receive {self._what}"):
            if is_whole(home.tree(self._generation)):
                return False
            self._parent()
            home.make(quotas=False)
            discard_parts(home, but=self._generation)
            return True

    def take(self, pipe: int) -> None:
        """Read a stream to its end into an image that counts for nothing yet.

        Raises:
            Corrupt: the stream is damaged, cut short, or does not fit what is here.
        """
        header, records = decode(_Exactly(pipe), what=self._what)
        parent = self._parent()
        expected = identity_of(parent) if parent is not None else None
        if header.base != expected:
            raise Corrupt(
                f"the stream of {self._what} is not the difference to the base that was agreed",
                remedy="send it whole",
            )
        note = self._note(header)
        if header.position:
            self._check_part(note)
        else:
            self._begin(parent)
        with written_image(self._tree) as image, sums_into(self._tree) as sums:
            os.ftruncate(image.fd, header.size)
            with Noting(self._tree, image.fd, sums, note) as noting:
                for record in records:
                    self._check_room()
                    _apply(image, sums, record)
                    noting.applied(record)
            write_out(image.fd)
        self._identity = header.identity

    def _note(self, header: StreamHeader) -> PartNote:
        base = None if self._base is None else str(self._base)
        return PartNote(
            identity=header.identity, size=header.size, base=base, position=header.position
        )

    def _check_part(self, wanted: PartNote) -> None:
        """Make sure that what is here is what the stream goes on with."""
        if noted(self._home, self._generation) != wanted:
            raise Corrupt(
                f"the stream of {self._what} goes on with something that is not here",
                remedy="send it from its beginning",
            )

    def _begin(self, parent: Path | None) -> None:
        self._home.discard_incoming(self._generation)
        if parent is not None and self._home.take_workbench(self._generation, base=parent):
            return
        self._tree.parent.mkdir()
        if parent is None:
            ioctl.create_subvolume(self._tree)
            nocow.make_empty(self._tree / IMAGE)
        else:
            ioctl.create_snapshot(parent, target=self._tree, read_only=False)

    def break_off(self, error: BaseException) -> None:
        """Keep what is here for the next transfer, if it is of use and ``error`` is none of a disk or a stream."""
        part = None if isinstance(error, StorageError) else noted(self._home, self._generation)
        if part is None:
            with told_as_storage_error(f"remove what came of {self._what}"):
                self._home.discard_incoming(self._generation)

    def accept(self, put_right: Callable[[Path], None]) -> None:
        """Make what was received durable and give it its name, in one step.

        Args:
            put_right: called with the tree if the base was mended since this was begun on top of it. Until
                this returns, nothing of the volume is mended.

        Raises:
            Corrupt: the base is not here any more.
            OSError, StorageError: the disk refused something. Then it has no name.
        """
        home = self._home
        with told_as_storage_error(f"take in {self._what}"):
            parent, tree = self._parent(), self._tree
            if parent is not None and not stands_on(tree, parent):
                put_right(tree)
            drop_note(tree)
            mark(tree, self._identity)
            named = home.tree(self._generation)
            named.parent.mkdir(exist_ok=True)  # there if it was deleted, and now comes back
            ioctl.create_snapshot(tree, target=named, read_only=True)
            try:
                _check_written(tree)
            except OSError:
                home.drop_generation(self._generation)
                raise
            home.keep_as_workbench(self._generation)

    def _parent(self) -> Path | None:
        return None if self._base is None else existing_tree(self._home, self._base)


def _check_written(tree: Path) -> None:
    """Ask whether the disk has refused anything of what a snapshot has just written out; nothing is left to write.

    Raises:
        OSError: it has.
    """
    for name in (IMAGE, SUMS):
        fd = os.open(tree / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


class _Exactly:
    """Reads exactly as many bytes of a pipe as are asked for; fewer only at its end.

    What is longer than a head stands in one buffer, until the next is read: a buffer for each would
    leave holes all over the process's memory.
    """

    _HEAD_BYTES = 64

    def __init__(self, pipe: int) -> None:
        self._pipe = pipe
        self._buffer = memoryview(mmap.mmap(-1, RECORD_BYTES))

    def __call__(self, count: int) -> Buffer:
        if count > self._HEAD_BYTES:
            return self._read(self._buffer[:count])
        return bytes(self._read(memoryview(bytearray(count))))

    def _read(self, into: memoryview) -> memoryview:
        got = 0
        while got < len(into) and (more := os.readv(self._pipe, [into[got:]])):
            got += more
        return into[:got]


def _apply(image: WrittenImage, sums: Sums, record: Zeros | Data) -> None:
    match record:
        case Data(start, content):
            sums.keep(start, memoryview(content))
            image.write(start, memoryview(content))
        case Zeros(start, end):
            punch_hole(image.fd, start, end - start)
            sums.forget(start, end)
