"""Putting right bytes in the place of damaged ones in generations that were received.

A generation is never made writable for that: power may fail at any moment, and a writable one counts for
nothing. A snapshot of it is mended, marked as what it is a copy of, set read-only, made durable, and only then
changes its name with the damaged one, in one step.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import structlog

from pannier.core.errors import Corrupt
from pannier.core.generation import Generation
from pannier.host.files import exchange
from pannier.storage.blocking import told_as_storage_error
from pannier.storage.blocks import BLOCK_BYTES
from pannier.storage.btrfs import ioctl
from pannier.storage.btrfs.layout import Home, existing_tree, is_whole
from pannier.storage.image.identity import identity_of, last_change_of
from pannier.storage.image.nocow import IMAGE
from pannier.storage.image.sums import sum_of, sums_of
from pannier.storage.slow_reading import DAMAGE

log = structlog.get_logger(__name__)

_PASSES = 8
"""Looks for what is left to mend. The second one finds nothing but what arrived meanwhile; a disk that needs more
than these does not keep what it is given."""


def wanted(home: Home, generation: Generation, blocks: Iterable[int]) -> dict[int, int | None]:
    """By block that is damaged in a generation, the stored checksum; None where it has none.

    Raises:
        Corrupt: the generation is not here.
    """
    return {
        at: known or None
        for at, known, content in _read(existing_tree(home, generation), blocks)
        if content is None or known not in (0, sum_of(content))
    }


def find(home: Home, sums: Mapping[int, int]) -> dict[int, bytes]:
    """Blocks with these checksums, out of whatever generation has them."""
    found: dict[int, bytes] = {}
    for generation in reversed(home.generations()):
        left = [at for at in sums if at not in found]
        with suppress(FileNotFoundError):  # it was deleted since it was listed
            for at, known, content in _read(home.tree(generation), left):
                if content is not None and sum_of(content) == sums[at] and known in (0, sums[at]):
                    found[at] = bytes(content)
    return found


class Mender:
    """Mends generations, one thing of a volume at a time. All methods block, but :meth:`receiving`.

    What was right is remembered, for what is being received on top of a generation that is replaced meanwhile: that
    has the damaged blocks, too, and is mended before it gets its name. A sync call may be waiting for it.
    """

    def __init__(self) -> None:
        self._locks: dict[str, threading.Lock] = {}
        self._right: dict[str, dict[int, bytes]] = {}
        self._on_their_way: dict[str, int] = {}

    def _lock(self, home: Home) -> threading.Lock:
        return self._locks.setdefault(home.volume, threading.Lock())

    def mend(self, home: Home, blocks: Mapping[int, bytes]) -> None:
        """See :meth:`MendingDriver.mend`.

        What another thread takes in gets its name before that or after it. Then its receiver sees that its base was
        replaced.
        """
        with self._lock(home), told_as_storage_error(f"mend blocks of volume {home.volume}"):
            self._right.setdefault(home.volume, {}).update(blocks)
            _mend(home, blocks)

    @contextmanager
    def naming(self, home: Home) -> Iterator[Callable[[Path], None]]:
        """What was received gets its name in the block: nothing of the volume is mended or set aside meanwhile.

        Gives what is to be called before, with the tree, if it was received on top of a generation that was
        replaced since. It puts right what the tree has from there, and raises OSError or Corrupt where it cannot.
        """
        with self._lock(home):
            right = self._right.get(home.volume, {})
            yield lambda tree: _put_right(home, tree, right)

    @contextmanager
    def receiving(self, home: Home) -> Iterator[None]:
        """Something of the volume is on its way. What was right is remembered until nothing is any more."""
        volume = home.volume
        self._on_their_way[volume] = self._on_their_way.get(volume, 0) + 1
        try:
            yield
        finally:
            self._on_their_way[volume] -= 1
            lock = self._lock(home)
            if not self._on_their_way[volume] and lock.acquire(blocking=False):
                self._right.pop(volume, None)
                lock.release()

    def is_receiving(self, home: Home) -> bool:
        """Whether something of the volume is on its way."""
        return self._on_their_way.get(home.volume, 0) > 0

    def quarantine(self, home: Home) -> None:
        """See :meth:`CheckedDriver.quarantine`: nothing is put in the place of what is taken away."""
        with self._lock(home):
            home.quarantine()


def _mend(home: Home, blocks: Mapping[int, bytes]) -> None:
    for _ in range(_PASSES):
        damaged = {
            generation: wrong
            for generation in home.generations()
            if (wrong := _wrong(home.tree(generation), blocks))
        }
        if not damaged:
            return
        for generation, wrong in damaged.items():
            _replace(home, home.tree(generation), {at: blocks[at] for at in wrong})
            log.info("copy.mended", id=home.volume, generation=str(generation), blocks=len(wrong))
    raise OSError(errno.EIO, f"the disk does not keep what was mended {_PASSES} times")


def _wrong(tree: Path, blocks: Mapping[int, bytes]) -> list[int]:
    """Where a generation has not what it received, which these bytes are."""
    try:
        return [
            at
            for at, known, content in _read(tree, blocks)
            if len(blocks[at]) == BLOCK_BYTES
            and known == sum_of(memoryview(blocks[at]))
            and (content is None or sum_of(content) != known)
        ]
    except FileNotFoundError:
        return []  # it was deleted since it was listed


def _put_right(home: Home, tree: Path, blocks: Mapping[int, bytes]) -> None:
    """Put blocks right in a tree that counts for nothing yet."""
    if not blocks:
        raise Corrupt(
            f"what a generation of volume {home.volume} was received on top of is another one by now",
            remedy="send it again",
        )
    wrong = {at: blocks[at] for at in _wrong(tree, blocks)}
    _overwrite(tree, wrong)
    log.info("copy.mended-on-arrival", id=home.volume, blocks=len(wrong))


def _replace(home: Home, tree: Path, blocks: Mapping[int, bytes]) -> None:
    """Let a mended snapshot take the place of a generation, unless that is deleted meanwhile."""
    place = home.mended
    home.discard_mended()
    place.mkdir()
    with suppress(FileNotFoundError):
        _make(tree, place / "tree", blocks)
        if is_whole(tree):
            exchange(place, tree.parent)
            ioctl.sync_filesystem(place)
    home.discard_mended()


def _make(tree: Path, mended: Path, blocks: Mapping[int, bytes]) -> None:
    """Make a mended snapshot, as durable and as unchangeable as what it is made of.

    Raises:
        FileNotFoundError: the generation is deleted.
    """
    ioctl.create_snapshot(tree, target=mended, read_only=False)
    _overwrite(mended, blocks)
    ioctl.set_received(mended, uuid=identity_of(tree), ctransid=last_change_of(tree))
    ioctl.set_read_only(mended, read_only=True)
    ioctl.sync_filesystem(mended.parent)


def _overwrite(tree: Path, blocks: Mapping[int, bytes]) -> None:
    """Write whole blocks to the image in a tree, and see that the disk has them."""
    with _opened(tree, os.O_RDWR) as image:
        for at, content in blocks.items():
            if os.pwrite(image, content, at) != BLOCK_BYTES:
                raise OSError(errno.EIO, "a block was written in part", str(tree))
        os.fsync(image)
    if left := _wrong(tree, blocks):
        raise OSError(errno.EIO, f"the block at {left[0]} was written and is not there", str(tree))


def _read(tree: Path, blocks: Iterable[int]) -> Iterator[tuple[int, int, memoryview | None]]:
    """Blocks of a generation, from the disk: where each is, its stored sum or 0, and its bytes if they can be
    read. What is behind the end of the image is left out."""
    with _opened(tree, os.O_RDONLY) as image, sums_of(tree) as sums:
        size = os.fstat(image).st_size
        for at in blocks:
            if not 0 <= at <= size - BLOCK_BYTES:
                continue
            (known,) = sums.known(at, at + BLOCK_BYTES)
            os.posix_fadvise(image, at, BLOCK_BYTES, os.POSIX_FADV_DONTNEED)
            try:
                content = os.pread(image, BLOCK_BYTES, at)
            except OSError as error:
                if error.errno not in DAMAGE:
                    raise
                content = b""
            yield at, known, memoryview(content) if len(content) == BLOCK_BYTES else None


@contextmanager
def _opened(tree: Path, flags: int) -> Iterator[int]:
    fd = os.open(tree / IMAGE, flags | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)
