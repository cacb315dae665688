"""A generation of an image as a stream: what differs from its base, read from snapshots and written to one."""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pannier.core.errors import Corrupt, StorageError
from pannier.core.generation import Generation
from pannier.core.line import Buffer, Data, Zeros
from pannier.host.files import punch_hole
from pannier.storage.blocking import told_as_storage_error
from pannier.storage.btrfs import ioctl
from pannier.storage.btrfs.layout import Home, existing_tree, is_whole
from pannier.storage.image import nocow
from pannier.storage.image.extents import Range, difference, extents
from pannier.storage.image.nocow import IMAGE
from pannier.storage.image.partial import Noting, PartNote, discard_parts, drop_note, noted
from pannier.storage.image.stream import RECORD_BYTES, Encoder, StreamHeader, decode
from pannier.storage.image.sums import Sums, sums_into


def send(tree: Path, parent: Path | None, pipe: int, *, position: int = 0) -> None:
    """Write what a generation has that its base has not, or all of it, to a pipe.

    Args:
        tree: the subvolume of the generation; parent: of the base.
        position: leave out what is before this byte. It need not have been sent by this node: whoever sends it,
            no byte that differs is left out.

    Raises:
        OSError: reading or writing failed. Corrupt: the image is none of ours.
    """
    with _image(tree) as file:
        size = os.fstat(file).st_size
        if parent is None:
            base, ranges = None, difference(extents(file), size)
        else:
            with _image(parent) as other:
                made = last_change_of(parent)
                base = identity_of(parent)
                ranges = difference(extents(file), size, extents(other), made=made)
        encoder = Encoder()
        header = StreamHeader(size=size, identity=identity_of(tree), base=base, position=position)
        _write(pipe, encoder.header(header))
        for record in _records(file, behind(ranges, position)):
            head, content = encoder.record(record)
            _write(pipe, head)
            _write(pipe, content)
        _write(pipe, encoder.end())


@contextmanager
def _image(tree: Path) -> Iterator[int]:
    fd = os.open(tree / IMAGE, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def identity_of(tree: Path) -> str:
    """What a generation has of its own on every node: where it was made, its subvolume's."""
    found = ioctl.subvolume_info(tree)
    return found.received_uuid or found.uuid


def last_change_of(tree: Path) -> int:
    """The last transaction in which the content of a generation was written, in this pool.

    One that was mended keeps the number of what it replaced: what was mended in it counts as newer.
    """
    found = ioctl.subvolume_info(tree)
    return found.received_ctransid or found.ctransid


def behind(ranges: Iterable[Range], position: int) -> Iterator[Range]:
    """What of some ranges is not before a byte."""
    for each in ranges:
        if each.end > position:
            yield Range(max(each.start, position), each.end, each.zero)


def _records(file: int, ranges: Iterable[Range]) -> Iterator[Zeros | Data]:
    """The records of these ranges. The bytes of one are good until the next."""
    buffer = memoryview(mmap.mmap(-1, RECORD_BYTES))
    for each in ranges:
        if each.zero:
            yield Zeros(each.start, each.end)
            continue
        for start in range(each.start, each.end, RECORD_BYTES):
            content = buffer[: min(RECORD_BYTES, each.end - start)]
            if os.preadv(file, [content], start) != len(content):
                raise OSError(errno.EIO, "the image is shorter than its extents")
            yield Data(start, content)
            os.posix_fadvise(file, start, len(content), os.POSIX_FADV_DONTNEED)


def _write(pipe: int, content: Buffer) -> None:
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(pipe, rest) :]


# -- receiving --------------------------------------------------------------------------------------


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
        with open(self._tree / IMAGE, "r+b", buffering=0) as image, sums_into(self._tree) as sums:
            image.truncate(header.size)
            noting = Noting(self._tree, image.fileno(), sums, note)
            for record in records:
                self._check_room()
                _apply(image.fileno(), sums, record)
                noting.applied(record)
            os.fsync(image.fileno())
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
        """Make what was received durable, and only then give it its name.

        Args:
            put_right: called with the tree if the base was mended since this was begun on top of it. Until
                this returns, nothing of the volume is mended.

        Raises:
            Corrupt: the base is not here any more.
        """
        with told_as_storage_error(f"take in {self._what}"):
            parent, tree = self._parent(), self._tree
            made_of = ioctl.subvolume_info(tree).parent_uuid
            if parent is not None and ioctl.subvolume_info(parent).uuid != made_of:
                put_right(tree)
            drop_note(tree)
            ioctl.set_received(tree, uuid=self._identity, ctransid=0)
            ioctl.set_read_only(tree, read_only=True)
            ioctl.sync_filesystem(tree)
            place = self._home.tree(self._generation).parent
            if place.exists():
                place.rmdir()  # the number of a deleted generation, which now comes back
            tree.parent.rename(place)
            ioctl.sync_filesystem(place)

    def _parent(self) -> Path | None:
        return None if self._base is None else existing_tree(self._home, self._base)


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


def _apply(image: int, sums: Sums, record: Zeros | Data) -> None:
    match record:
        case Data(start, content):
            sums.keep(start, memoryview(content))
            rest, at = memoryview(content), start
            while rest:
                written = os.pwrite(image, rest, at)
                rest, at = rest[written:], at + written
        case Zeros(start, end):
            punch_hole(image, start, end - start)
            sums.forget(start, end)
