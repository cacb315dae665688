"""A driver in memory whose disk outlives it: fast, and its power can be cut anywhere.

Kinds, as there are real ones: :class:`SnapshotDriver` keeps generations beside the live tree and makes
them in use (btrfs); :class:`SparseSnapshotDriver` does, and attaches what is used (image);
:class:`SingleTreeDriver` has one tree that is either live or a generation (directory). All pass the
driver contract, see test_fake_driver.py.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import tempfile
import zlib
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec

from pannier.core import line
from pannier.core.errors import (
    Conflict,
    Corrupt,
    DiskFailed,
    InvalidInput,
    JournalFull,
    NotFollowing,
    PoolFull,
    StorageError,
    Unreadable,
)
from pannier.core.generation import Generation, new_identity
from pannier.core.line import (
    Buffer,
    Cut,
    Data,
    Doubt,
    LinePlace,
    OnTop,
    Tail,
    decode,
    is_settled,
    tail,
)
from pannier.core.room import ImageLimits, Room
from pannier.core.set_back import Noted, noting
from pannier.storage.base import (
    Capacity,
    CheckedDriver,
    CloningDriver,
    FileSystemDriver,
    LiveTree,
    LocalCopy,
    Reading,
    RollingBackDriver,
    RootAttributes,
    Space,
    SparseDriver,
)
from pannier.storage.blocks import BLOCK_BYTES, MendingDriver, Piece
from pannier.storage.image import check
from pannier.storage.lines import JournalState, LineDriver

Content = Mapping[str, bytes]


@dataclass
class Tree:
    """A live tree. ``saved_as`` is the generation that it was when last looked at."""

    content: dict[str, bytes]
    sealed: bool = False
    saved_as: Generation | None = None
    root: RootAttributes = field(default_factory=RootAttributes)


@dataclass
class Home:
    """All of one volume on one disk. ``described`` are generations that are or once were here,
    ``damaged`` those of which the disk gives back other bytes everywhere, None the live tree; ``changed`` single
    files that it gives back otherwise; ``sums`` the checksums of what was received; ``unproved`` those of which
    they are not known; ``records`` what the journal keeps, in the order in which it came; ``notes`` what was noted
    since the last sync call, and what a power cut leaves of that is one of them; ``unborn``: see
    :meth:`CloningDriver.unborn`.
    """

    live: dict[int, Tree] = field(default_factory=dict)
    generations: dict[Generation, Content] = field(default_factory=dict)
    described: dict[Generation, Content] = field(default_factory=dict)
    quarantined: dict[Generation, Content] = field(default_factory=dict)
    damaged: set[Generation | None] = field(default_factory=set)
    changed: dict[tuple[Generation, str], bytes] = field(default_factory=dict)
    sums: dict[Generation, dict[str, int]] = field(default_factory=dict)
    unproved: set[Generation] = field(default_factory=set)
    records: list[tuple[LinePlace, bytes]] = field(default_factory=list)
    notes: list[tuple[Noted, ...]] = field(default_factory=lambda: [()])
    unborn: bool = False

    def with_records(self, generation: Generation) -> dict[str, bytes]:
        """What the disk gives back of a generation, and what the journal has on top of it, up to the first that is missing."""
        return self._on_top_of(generation, self.read(generation))

    def tail(self, generation: Generation) -> Tail:
        return tail([place for place, _ in self.records], generation)

    def given(self, generation: Generation) -> dict[str, bytes]:
        """The same as the disk was given it, whatever it gives back."""
        return self._on_top_of(generation, dict(self.generations[generation]))

    def _on_top_of(self, generation: Generation, content: dict[str, bytes]) -> dict[str, bytes]:
        kept = dict(self.records)
        for place in self.tail(generation).places:
            content = _with_change(content, kept[place])
        return content

    def next_generation(self, epoch: int, identity: str) -> Generation:
        known = [g.sequence for g in self.described if g.epoch == epoch]
        return Generation(epoch, max(known, default=0) + 1, identity)

    def read(self, generation: Generation) -> dict[str, bytes]:
        """What the disk gives back."""
        told = {
            file: self.changed.get((generation, file), value)
            for file, value in self.generations[generation].items()
        }
        if generation in self.damaged:
            return {file: value + b"?" for file, value in told.items()}
        return told

    def known(self, generation: Generation) -> dict[str, int]:
        """The checksums of what was received."""
        return {} if generation in self.unproved else self.sums.get(generation, {})

    def bad(self, generation: Generation) -> list[str]:
        """The files that are not what was received."""
        read, known = self.read(generation), self.known(generation)
        return [
            file for file, value in read.items() if known.get(file, sum_of(value)) != sum_of(value)
        ]


class _Stream(msgspec.Struct):
    base: str | None
    base_digest: str
    digest: str
    changed: dict[str, bytes]
    removed: list[str]


class Disk:
    """What stays when power fails."""

    def __init__(self) -> None:
        self.homes: dict[str, Home] = {}
        self.failed = False
        """Nothing can be read or written any more."""
        self.hangs = False
        """Nothing that is asked of it is answered, and nothing is lost: it goes on later."""
        self.open_waits = True
        """Whether a driver cannot be opened while it hangs: what it needs for that may be in memory."""
        self.slow = 0.0
        """Seconds that a write takes which somebody waits for."""
        self.writes = 0
        """How many it has completed."""
        self.spoilt: dict[str, StorageError] = {}
        """Volumes of which something can be neither tidied nor removed, and why."""
        self.apart: dict[str, Home] = {}
        """What was set apart."""
        self.free_bytes = 1 << 39
        self.gives_back = False
        """Whether something that was deleted is not free yet."""
        self.parts: set[str] = set()
        """Volumes of which a broken transfer has left a part."""
        self.refused: set[str] = set()
        """Volumes of which a write was lost."""
        self.attached: dict[str, int] = {}
        """Of sparse drivers; it goes with the machine's power."""
        self.untold: set[str] = set()
        """Volumes of which something was written, and the trace does not tell it."""
        self.journal_full = False
        self.journal_failed: StorageError | None = None
        """Why the journal takes in nothing."""
        self.journal_lost: set[str] = set()
        """Volumes of which the journal may have lost records."""
        self.journal = JournalState(total_bytes=1 << 20, live_bytes=0, most_bytes=1 << 19)
        """But for what is in it."""
        self.untraced: Doubt | None = None
        """Why there is no trace."""
        self.taking: Callable[[Generation | None, Content], None] | None = None
        """Raises what this disk has against a content that is received on top of a base."""
        self.bad: set[tuple[str, bytes]] = set()
        """Files with a content that lies on a bad sector: it can be written over, and not be read."""

    async def answers(self) -> None:
        """Wait as long as it hangs."""
        while self.hangs:
            await asyncio.sleep(0.05)

    def write(self, volume: str, epoch: int, file: str, value: bytes) -> None:
        """What a container does; OSError where the tree is sealed or gone."""
        tree = self.homes[volume].live.get(epoch) if volume in self.homes else None
        if tree is None or tree.sealed or self.failed:
            raise OSError(f"{volume} epoch {epoch} cannot be written")
        tree.content[file] = value
        tree.saved_as = None

    def readable(self, volume: str, epoch: int, base: Generation | None) -> Content | None:
        """What a holder of ``epoch`` has: its live tree, or the generation that it begins with."""
        home = self.homes.get(volume)
        if home is None:
            return None
        if epoch in home.live:
            return home.live[epoch].content
        if base in home.generations:
            return home.given(base)
        return next(
            (t.content for t in home.live.values() if t.sealed and t.saved_as == base), None
        )


class TreePath(type(Path())):  # type: ignore[misc]
    """The data path of a live tree in memory: it can be listed, and nothing else."""

    names: Callable[[], Iterable[str]]

    def iterdir(self) -> Iterator[Path]:
        return iter([Path(self, name) for name in self.names()])


class SnapshotDriver(CheckedDriver):
    """As btrfs: a generation is a snapshot and stays until it is deleted."""

    generations_in_use = True
    compares = False

    def __init__(self, disk: Disk, *, name: str = "btrfs", where: Path = Path("/disk")) -> None:
        self.name = name
        self.disk = disk
        self.pool = self._where = where

    # -- for the variant that keeps live trees as real directories ---------------------------------

    def _gather(self, volume: str, epoch: int, tree: Tree) -> dict[str, bytes]:
        """What containers have written by now."""
        return tree.content

    def _show(self, volume: str, epoch: int, tree: Tree) -> None:
        """Make a new live tree visible at its data path."""

    def _hide(self, volume: str, epoch: int) -> None:
        """Remove a live tree's data path."""

    # -- Driver -------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Nothing is ever half done here."""
        if self.disk.open_waits:
            await self.disk.answers()

    async def close(self) -> None:
        """Nothing was taken."""

    async def volumes(self) -> tuple[str, ...]:
        homes = self.disk.homes
        return tuple(sorted(name for name, home in homes.items() if home.live or home.generations))

    async def quarantined(self) -> Mapping[str, StorageError]:
        return dict(self.disk.spoilt)

    async def set_apart(self, volume: str) -> Path:
        place = Path("/apart") / volume
        if volume in self.disk.apart or volume not in self.disk.spoilt:
            raise StorageError(f"something is in {place} already, or nothing is to be set apart")
        home = self.disk.apart[volume] = self.disk.homes.pop(volume, Home())
        self.disk.homes[volume] = Home(records=home.records)  # the journal keeps them
        del self.disk.spoilt[volume]
        return place

    async def apart(self) -> Mapping[str, Path]:
        return {volume: Path("/apart") / volume for volume in self.disk.apart}

    async def inspect(self, volume: str) -> LocalCopy:
        self._check_usable(volume)
        home = self._home(volume)
        live = (LiveTree(epoch, sealed=home.live[epoch].sealed) for epoch in sorted(home.live))
        return LocalCopy(live=tuple(live), generations=self._listed(home))

    def _check_usable(self, volume: str) -> None:
        if volume in self.disk.spoilt:
            raise self.disk.spoilt[volume]

    def _listed(self, home: Home) -> tuple[Generation, ...]:
        return tuple(sorted(home.generations))

    async def create(
        self, volume: str, *, epoch: int, root: RootAttributes, size_bytes: int | None
    ) -> None:
        home = self._home(volume)
        if epoch not in home.live:
            self.disk.homes[volume] = home
            self._add_live(volume, epoch, Tree({}, root=root))

    def _add_live(self, volume: str, epoch: int, tree: Tree) -> None:
        self.disk.homes[volume].live[epoch] = tree
        self._show(volume, epoch, tree)

    def data_path(self, volume: str, epoch: int) -> Path:
        path = TreePath(self._where, volume, str(epoch), "data")
        path.names = lambda: self._tree(volume, epoch).content
        return path

    async def attach(self, volume: str, *, epoch: int, grow: bool) -> None:
        pass

    async def attached(self) -> frozenset[str]:
        return frozenset()

    async def detach(self, volume: str, *, epoch: int) -> None:
        pass

    async def snapshot(self, volume: str, *, epoch: int) -> Generation:
        return self._save(volume, epoch)

    def _save(self, volume: str, epoch: int) -> Generation:
        home, tree = self._home(volume), self._tree(volume, epoch)
        tree.content = self._gather(volume, epoch, tree)
        if tree.saved_as is not None and home.described.get(tree.saved_as) == tree.content:
            return tree.saved_as
        generation = home.next_generation(epoch, self._new_identity())
        home.described[generation] = dict(tree.content)
        self._keep(home, generation)
        tree.saved_as = generation
        return generation

    def _new_identity(self) -> str:
        return ""

    def _keep(self, home: Home, generation: Generation) -> None:
        home.generations[generation] = home.described[generation]

    async def seal(self, volume: str, *, epoch: int) -> Generation:
        tree = self._tree(volume, epoch)
        tree.sealed = True
        return self._save(volume, epoch)

    async def unseal(self, volume: str, *, epoch: int) -> None:
        self._tree(volume, epoch).sealed = False

    async def promote(
        self,
        volume: str,
        generation: Generation,
        *,
        epoch: int,
        size_bytes: int | None,
        on_top: OnTop,
    ) -> None:
        self._check_usable(volume)
        home = self._home(volume)
        if epoch in home.live:
            return
        content = dict(self._take(volume, home, generation, on_top))
        self._add_live(volume, epoch, Tree(content, saved_as=generation))

    def _take(self, volume: str, home: Home, generation: Generation, on_top: OnTop) -> Content:
        if generation not in home.generations:
            raise Corrupt(f"generation {generation} of volume {volume} is not here")
        return home.generations[generation]

    async def drop_live(self, volume: str, *, epoch: int) -> None:
        home = self._home(volume)
        tree = home.live.get(epoch)
        if tree is None:
            return
        tree.content = self._gather(volume, epoch, tree)
        saved = home.described.get(tree.saved_as) if tree.saved_as else None
        if not tree.sealed or saved != tree.content:
            raise StorageError(
                f"the live tree {epoch} may hold what no generation has: seal it first"
            )
        self._dropped(home, tree)
        del home.live[epoch]
        self._hide(volume, epoch)

    def _dropped(self, home: Home, tree: Tree) -> None:
        """What becomes of a tree that is dropped."""

    @asynccontextmanager
    async def send(
        self, volume: str, generation: Generation, *, base: Generation | None
    ) -> AsyncIterator[int]:
        home = self._home(volume)
        if generation not in self._listed(home):
            raise Corrupt(f"generation {generation} of volume {volume} is not here")
        stream = _difference(base, home.described, home.described[generation])
        sent = msgspec.json.decode(stream[32:], type=_Stream).changed
        if bad := sorted(sent.items() & self.disk.bad):
            raise Unreadable(f"{bad[0][0]!r} cannot be read")
        with _memory_file(stream) as fd:
            yield fd
            if os.lseek(fd, 0, os.SEEK_CUR) != len(stream):
                raise StorageError("the reader went away")

    @asynccontextmanager
    async def receive(
        self, volume: str, generation: Generation, *, base: Generation | None
    ) -> AsyncIterator[int]:
        with _memory_file(b"") as fd:
            yield fd
            stream = os.pread(fd, os.fstat(fd).st_size, 0)
        self._check_usable(volume)
        home = self._home(volume)
        if generation in self._listed(home):
            return
        content = _apply(stream, base, home.described)
        if self.disk.taking is not None:
            self.disk.taking(base, content)
        self.disk.homes[volume] = home
        self._received(home, base)
        kept = home.known(base) if base is not None else {}
        changed = msgspec.json.decode(stream[32:], type=_Stream).changed
        sums = {file: known for file, known in kept.items() if file in content}
        home.sums[generation] = sums | {file: sum_of(value) for file, value in changed.items()}
        home.described[generation] = home.generations[generation] = content

    def _received(self, home: Home, base: Generation | None) -> None:
        """What becomes of the base."""

    async def delete_generation(self, volume: str, generation: Generation) -> None:
        self._home(volume).generations.pop(generation, None)

    async def verify(self, volume: str, generation: Generation | None) -> Reading:
        home = self._home(volume)
        if not (generation in home.generations if generation else home.live):
            raise StorageError(f"generation {generation} is not here")
        if generation in home.damaged:
            raise Corrupt(f"generation {generation} of volume {volume} is damaged: file")
        return Reading(proved=True)

    async def quarantine(self, volume: str) -> None:
        home = self._home(volume)
        home.quarantined.update(home.generations)
        home.generations.clear()
        home.damaged.clear()
        home.changed.clear()

    async def drop_quarantined(self, volume: str) -> None:
        self._home(volume).quarantined.clear()

    async def delete(self, volume: str) -> None:
        if volume in self.disk.spoilt:
            raise self.disk.spoilt[volume]
        home = self.disk.homes.pop(volume, Home())
        for epoch in home.live:
            self._hide(volume, epoch)

    async def used_bytes(self, volume: str) -> int:
        home = self._home(volume)
        newest: Content = {}
        if home.generations:
            newest = home.generations[max(home.generations)]
        if home.live:
            newest = home.live[max(home.live)].content
        return sum(map(len, newest.values()))

    async def capacity(self) -> Capacity:
        return Capacity(total_bytes=1 << 40, free_bytes=1 << 39)

    async def check_disk(self, *, by_writing: bool = False) -> None:
        await asyncio.sleep(self.disk.slow if by_writing else 0.0)
        await self.disk.answers()
        self.disk.writes += by_writing
        if self.disk.failed:
            raise DiskFailed("the disk takes no writes any more")

    def writes_done(self) -> int | None:
        return self.disk.writes

    def _home(self, volume: str) -> Home:
        if not volume or volume.startswith(".") or "/" in volume:
            raise InvalidInput(f"{volume!r} is no id")
        if self.disk.failed:
            raise StorageError("Input/output error")
        return self.disk.homes.get(volume) or Home()

    def _tree(self, volume: str, epoch: int) -> Tree:
        tree = self._home(volume).live.get(epoch)
        if tree is None:
            raise StorageError(f"volume {volume} has no live tree of epoch {epoch} on this node")
        return tree


class SingleTreeDriver(SnapshotDriver):
    """As directory: the one tree is live, or it is a generation; sealed, it is both."""

    generations_in_use = False

    async def inspect(self, volume: str) -> LocalCopy:
        found = await super().inspect(volume)
        home = self._home(volume)
        bases = tuple(g for g in sorted(home.described) if g not in found.generations)
        return LocalCopy(live=found.live, generations=found.generations, bases=bases)

    def _listed(self, home: Home) -> tuple[Generation, ...]:
        sealed = {t.saved_as for t in home.live.values() if t.sealed and t.saved_as}
        return tuple(sorted(sealed.union(home.generations)))

    async def snapshot(self, volume: str, *, epoch: int) -> Generation:
        raise StorageError("there are no snapshots here")

    def _keep(self, home: Home, generation: Generation) -> None:
        """The sealed tree is the generation."""

    def _take(self, volume: str, home: Home, generation: Generation, on_top: OnTop) -> Content:
        if generation in home.generations:
            return home.generations.pop(generation)
        for epoch, tree in home.live.items():
            if tree.sealed and tree.saved_as == generation:
                self._hide(volume, epoch)
                return home.live.pop(epoch).content
        raise Corrupt(f"generation {generation} of volume {volume} is not here")

    def _dropped(self, home: Home, tree: Tree) -> None:
        assert tree.saved_as is not None
        home.generations[tree.saved_as] = home.described[tree.saved_as]

    def _received(self, home: Home, base: Generation | None) -> None:
        if base is not None:
            home.generations.pop(base, None)

    async def delete_generation(self, volume: str, generation: Generation) -> None:
        home = self._home(volume)
        if generation not in home.generations and generation in self._listed(home):
            raise StorageError(f"generation {generation} is the sealed live tree")
        await super().delete_generation(volume, generation)


class _Change(msgspec.Struct):
    """What a record of these drivers has, as JSON."""

    changed: dict[str, bytes]
    removed: list[str]


def _with_change(before: Content, encoded: bytes) -> dict[str, bytes]:
    (data,) = decode(encoded).ranges
    assert isinstance(data, Data)
    change = msgspec.json.decode(data.content, type=_Change)
    return {
        file: value for file, value in before.items() if file not in change.removed
    } | change.changed


def place_of(file: str) -> int:
    """Where the one block of a file is in the image."""
    return zlib.crc32(file.encode()) % (1 << 20) * BLOCK_BYTES


def sum_of(value: bytes) -> int:
    return zlib.crc32(value) or 1


def _digest(content: Content) -> str:
    return hashlib.sha256(msgspec.json.encode(sorted(content.items()))).hexdigest()


def _difference(
    base: Generation | None, known: Mapping[Generation, Content], wanted: Content
) -> bytes:
    before: Content = known[base] if base is not None else {}
    body = msgspec.json.encode(
        _Stream(
            base=str(base) if base else None,
            base_digest=_digest(before),
            digest=_digest(wanted),
            changed={file: v for file, v in wanted.items() if before.get(file) != v},
            removed=[file for file in before if file not in wanted],
        )
    )
    return hashlib.sha256(body).digest() + body


def _apply(stream: bytes, base: Generation | None, known: Mapping[Generation, Content]) -> Content:
    head, body = stream[:32], stream[32:]
    if hashlib.sha256(body).digest() != head:
        raise Corrupt("the stream is damaged")
    parsed = msgspec.json.decode(body, type=_Stream)
    before: Content = known[base] if base is not None else {}
    if parsed.base != (str(base) if base else None) or parsed.base_digest != _digest(before):
        raise Corrupt("the stream does not fit its base")
    kept = {file: value for file, value in before.items() if file not in parsed.removed}
    content = {**kept, **parsed.changed}
    if _digest(content) != parsed.digest:
        raise Corrupt("the result is not what was sent")
    return content


@contextmanager
def _memory_file(content: bytes) -> Iterator[int]:
    fd = os.memfd_create("stream")
    try:
        rest = memoryview(content)
        while rest:
            rest = rest[os.write(fd, rest) :]
        os.lseek(fd, 0, os.SEEK_SET)
        yield fd
    finally:
        os.close(fd)


class SparseSnapshotDriver(
    SnapshotDriver,
    SparseDriver,
    FileSystemDriver,
    RollingBackDriver,
    CloningDriver,
    MendingDriver,
    LineDriver,
):
    """As image: attached while it is used, on a pool that may get full, and that may refuse a write."""

    compares = True

    def __init__(self, disk: Disk, *, name: str = "image", where: Path = Path("/disk")) -> None:
        super().__init__(disk, name=name, where=where)
        self.frozen: set[str] = set()
        self.held: dict[str, float] = {}
        """Volumes that stand still for a moment, and until when, in the loop's time."""
        self.limits: ImageLimits | None = None
        self.noted = False
        self.full = False
        self._watched: dict[str, tuple[int, dict[str, bytes]]] = {}

    def _new_identity(self) -> str:
        return new_identity()

    async def roll_back(self, volume: str, generation: Generation, *, epoch: int) -> None:
        home, tree = self._home(volume), self._tree(volume, epoch)
        if generation not in home.generations:
            raise Corrupt(f"generation {generation} of volume {volume} is not here")
        if not tree.sealed:
            raise StorageError(f"the live tree {epoch} of volume {volume} is not sealed")
        self._watched.pop(volume, None)
        home.live[epoch] = Tree(dict(home.generations[generation]), root=tree.root)
        self._hide(volume, epoch)
        self._show(volume, epoch, home.live[epoch])

    async def clone(
        self, source: str, generation: Generation, *, volume: str, base: Generation, unborn: bool
    ) -> None:
        self._check_usable(volume)
        if self.full:
            raise PoolFull("the pool is nearly full")
        there, home = self._home(source), self._home(volume)
        if generation not in there.generations:
            raise Corrupt(f"generation {generation} of volume {source} is not here")
        if base in home.generations:
            return
        if home.quarantined:
            raise StorageError(f"something of volume {volume} is set aside")
        home.unborn = unborn if volume not in self.disk.homes else home.unborn
        self.disk.homes[volume] = home
        home.generations[base] = home.described[base] = dict(there.generations[generation])
        home.sums[base] = dict(there.known(generation))
        if generation in there.damaged:
            home.damaged.add(base)

    async def enlarge(
        self, volume: str, generation: Generation, *, epoch: int, size_bytes: int, more_bytes: int
    ) -> None:
        """Here, a size is only a number."""
        await self.promote(
            volume, generation, epoch=epoch, size_bytes=size_bytes, on_top=OnTop.NOTHING
        )

    async def unborn(self) -> frozenset[str]:
        return frozenset(volume for volume, home in self.disk.homes.items() if home.unborn)

    async def born(self, volume: str) -> None:
        self._home(volume).unborn = False

    async def watch(self, volume: str, *, epoch: int) -> Doubt | None:
        if self.disk.attached.get(volume) != epoch:
            return Doubt("it is not attached")
        if self.disk.untraced is not None:
            return self.disk.untraced
        await self.renew(volume, epoch=epoch)
        self._watched[volume] = epoch, dict(self._tree(volume, epoch).content)
        return None

    async def renew(self, volume: str, *, epoch: int) -> None:
        self._tree(volume, epoch).saved_as = None

    async def snapshot_disk(self, volume: str, *, epoch: int) -> Generation:
        return await self.snapshot(volume, epoch=epoch)

    async def cut(self, place: LinePlace) -> Cut | Doubt:
        await self.write_out(place.volume)
        found = self.cut_now(place)
        if isinstance(found, Cut) and found.ranges:
            self.note(place)
        return found

    def note(self, place: LinePlace) -> None:
        home = self._home(place.volume)
        home.notes.append(noting(home.notes[-1], place))

    def cut_now(self, place: LinePlace) -> Cut | Doubt:
        volume, epoch = place.volume, place.epoch
        watched, before = self._watched.pop(volume, (None, {}))
        if (
            watched != epoch
            or self.disk.attached.get(volume) != epoch
            or volume in self.disk.untold
        ):
            self.disk.untold.discard(volume)
            return Doubt("the trace has a gap")
        if self.disk.untraced is not None:
            return self.disk.untraced
        now = dict(self._tree(volume, epoch).content)
        self._watched[volume] = epoch, now
        if now == before:
            return Cut(size=0, ranges=())
        change = _Change(
            changed={file: value for file, value in now.items() if before.get(file) != value},
            removed=[file for file in before if file not in now],
        )
        content = msgspec.json.encode(change)
        content = content.ljust(-(-len(content) // BLOCK_BYTES) * BLOCK_BYTES)
        return Cut(size=len(content), ranges=(Data(0, content),))

    def keep(self, place: LinePlace, encoded: Buffer) -> None:
        self._check_usable(place.volume)
        home = self._home(place.volume)
        if any(kept == place for kept, _ in home.records):
            return
        last = home.records[-1][0] if home.records else None
        newest = max(home.generations, default=None)
        if newest is None or not line.follows(place, last=last, newest=newest):
            raise NotFollowing(f"record {place.number} does not follow what is here")
        if self.disk.journal_failed is not None:
            raise self.disk.journal_failed
        live = sum(len(each) for one in self.disk.homes.values() for _, each in one.records)
        if self.disk.journal_full or live + len(encoded) > (self.disk.journal.most_bytes or 0):
            raise JournalFull("the journal is full")
        home.records.append((place, bytes(encoded)))

    async def settle(self, volume: str, generation: Generation) -> None:
        home = self._home(volume)
        if generation in home.generations:
            home.records = [one for one in home.records if not is_settled(one[0], generation)]

    async def drop_records(self, volume: str) -> None:
        self._home(volume).records.clear()

    async def missing(self, volume: str) -> str:
        return self._missing(volume)

    def _missing(self, volume: str) -> str:
        if volume in self.disk.journal_lost:
            return "a part of the journal is damaged"
        return self.disk.journal.damaged.get(volume, "")

    async def lack(self, volume: str) -> None:
        self.disk.journal_lost.add(volume)

    async def mend_records(self, volume: str) -> None:
        self.disk.journal_lost.discard(volume)

    async def lost(self, volume: str, generation: Generation) -> str:
        return self._lost(volume, self._home(volume), generation)

    def _lost(self, volume: str, home: Home, generation: Generation) -> str:
        return "; ".join(filter(None, (self._missing(volume), home.tail(generation).lacks)))

    async def end_journal(self) -> None:
        """What is kept is on the disk."""

    async def journal(self) -> JournalState:
        kept = {
            name: sum(len(each) for _, each in home.records)
            for name, home in self.disk.homes.items()
        }
        lost = dict.fromkeys(self.disk.journal_lost, "a part of the journal is damaged")
        return replace(
            self.disk.journal,
            volumes=kept,
            live_bytes=sum(kept.values()),
            damaged={**self.disk.journal.damaged, **lost},
        )

    async def inspect(self, volume: str) -> LocalCopy:
        found, home = await super().inspect(volume), self._home(volume)
        last = home.records[-1][0] if home.records else None
        return replace(found, last=last, noted=home.notes[-1])

    def behind(self, volume: str, epoch: int) -> Path:
        return self._where / f"{volume}-{epoch}-behind"

    async def attach(self, volume: str, *, epoch: int, grow: bool) -> None:
        if self.full:
            raise PoolFull("the pool is nearly full")
        if self._tree(volume, epoch).sealed:
            raise StorageError(f"the live tree {epoch} of volume {volume} is sealed")
        if volume not in self.disk.attached:
            self.disk.refused.discard(volume)  # it is checked now
        self.disk.attached[volume] = epoch

    async def attached(self) -> frozenset[str]:
        return frozenset(self.disk.attached)

    async def detach(self, volume: str, *, epoch: int) -> None:
        if self.disk.attached.get(volume) == epoch:
            del self.disk.attached[volume]
            self.frozen.discard(volume)
            self._watched.pop(volume, None)

    async def snapshot(self, volume: str, *, epoch: int) -> Generation:
        await self.write_out(volume)
        return await super().snapshot(volume, epoch=epoch)

    async def seal(self, volume: str, *, epoch: int) -> Generation:
        await self.detach(volume, epoch=epoch)
        self.disk.refused.discard(volume)
        return await super().seal(volume, epoch=epoch)

    async def verify(self, volume: str, generation: Generation | None) -> Reading:
        """What was received has checksums, and what was made here has none."""
        home = self._home(volume)
        if generation is None or generation not in home.generations:
            await super().verify(volume, generation)
            return Reading(proved=False)
        read, known = home.read(generation), home.known(generation)
        if known and generation in home.damaged:
            raise Corrupt(f"generation {generation} of volume {volume} is damaged: all of it")
        bad = tuple(sorted(map(place_of, home.bad(generation))))
        received = read.keys() <= known.keys() and generation.epoch not in home.live
        return Reading(proved=received and not bad, digest=_digest(read), damaged=bad)

    async def pieces(
        self, volume: str, generation: Generation, *, start: int, end: int | None, piece_bytes: int
    ) -> tuple[Piece, ...]:
        home = self._home(volume)
        if generation not in home.generations:
            raise StorageError(f"generation {generation} is not here")
        read, known = home.read(generation), home.known(generation)
        found: dict[int, list[str]] = {}
        for file in sorted(read, key=place_of):
            if start <= place_of(file) < (end or 1 << 62):
                found.setdefault(place_of(file) // piece_bytes * piece_bytes, []).append(file)
        if len(found) > check.MOST_PIECES:
            raise StorageError("there are more pieces than any node asks for")
        return tuple(
            Piece(
                start=at,
                digest=_digest({file: read[file] for file in files}),
                proved=all(known.get(file) == sum_of(read[file]) for file in files),
            )
            for at, files in found.items()
        )

    async def wanted(
        self, volume: str, generation: Generation, blocks: Iterable[int]
    ) -> Mapping[int, int | None]:
        home = self._home(volume)
        if generation not in home.generations:
            raise Corrupt(f"generation {generation} of volume {volume} is not here")
        known = home.known(generation)
        bad = {place_of(file): known[file] for file in home.bad(generation)}
        return {at: bad[at] for at in blocks if at in bad}

    async def find(self, volume: str, sums: Mapping[int, int]) -> Mapping[int, bytes]:
        home = self._home(volume)
        return {
            place_of(file): value
            for generation in sorted(home.generations)
            for file, value in home.read(generation).items()
            if sums.get(place_of(file)) == sum_of(value) and file not in home.bad(generation)
        }

    async def mend(self, volume: str, blocks: Mapping[int, bytes]) -> None:
        home = self._home(volume)
        for generation in home.generations:
            for file in home.bad(generation):
                right = blocks.get(place_of(file))
                if right is not None and sum_of(right) == home.known(generation)[file]:
                    del home.changed[generation, file]

    def _take(self, volume: str, home: Home, generation: Generation, on_top: OnTop) -> Content:
        super()._take(volume, home, generation, on_top)
        if on_top is OnTop.NOTHING:
            return home.read(generation)
        if on_top is OnTop.ALL and (lost := self._lost(volume, home, generation)):
            raise Corrupt(f"this node may lack what it has confirmed of volume {volume}: {lost}")
        return home.with_records(generation)

    async def show(self, volume: str, *, tree: int | Generation, at: Path) -> None:
        home = self._home(volume)
        content = (
            home.generations[tree] if isinstance(tree, Generation) else home.live[tree].content
        )
        for file, value in content.items():
            (at / file).write_bytes(value)

    @asynccontextmanager
    async def opened(self, volume: str, *, tree: int | Generation) -> AsyncIterator[int]:
        with tempfile.TemporaryDirectory() as folder:
            await self.show(volume, tree=tree, at=Path(folder))
            root = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            try:
                yield root
            finally:
                os.close(root)

    async def has_files(self, volume: str, *, epoch: int) -> bool:
        return bool(self._home(volume).live[epoch].content)

    async def check_file_system(
        self, volume: str, generation: Generation | None
    ) -> tuple[str, ...]:
        home = self._home(volume)
        if not (generation in home.generations if generation else home.live):
            raise StorageError(f"generation {generation} is not here")
        return ("Inode 12 has an invalid size.",) if generation in home.damaged else ()

    async def space(self, volume: str) -> Space | None:
        if volume not in self.disk.attached:
            return None
        return Space(
            size_bytes=1 << 30, free_bytes=1 << 29, inodes=1 << 17, free_inodes=1 << 16, direct=True
        )

    async def room(self, *, note_used: bool) -> Room:
        self.noted = note_used
        return Room(
            total_bytes=1 << 40,
            free_bytes=self.disk.free_bytes,
            dirty_bytes=1 << 30,
            images=len(self.disk.attached),
        )

    async def gives_back(self) -> bool:
        return self.disk.gives_back

    async def parts(self) -> frozenset[str]:
        return frozenset(self.disk.parts)

    async def drop_part(self, volume: str) -> None:
        self.disk.parts.discard(volume)

    async def restrict(
        self, *, full: bool, limits: ImageLimits | None, frozen: frozenset[str]
    ) -> None:
        assert limits is None or self.noted, "what each image had was not noted before the look"
        self.full, self.limits = full, limits
        self.frozen = set(frozen & self.disk.attached.keys())

    async def write_out(self, volume: str) -> None:
        if volume in self.disk.refused:
            raise StorageError(f"the disk refused something that was written to volume {volume}")

    async def thaw(self, volume: str) -> None:
        self.frozen.discard(volume)
        self.held.pop(volume, None)

    async def hold_still(self, volume: str, *, epoch: int, seconds: float) -> bool:
        if self.disk.attached.get(volume) != epoch:
            return False
        now = asyncio.get_running_loop().time()
        if volume in self.frozen or self.held.get(volume, now) > now:
            raise Conflict(f"volume {volume} is frozen already")
        await self.write_out(volume)
        self.held[volume] = now + seconds
        return True

    async def let_go(self, volume: str, *, epoch: int) -> bool:
        now = asyncio.get_running_loop().time()
        return self.held.pop(volume, now) > now

    async def trim(self, volume: str, *, go_on: Callable[[], bool]) -> None:
        """Nothing is in no file."""

    async def failed(self) -> frozenset[str]:
        return frozenset(self.disk.refused & self.disk.attached.keys())

    async def refused(self, volume: str, *, epoch: int) -> bool:
        return volume in self.disk.refused

    async def note_refused(self, volume: str, *, epoch: int) -> None:
        self.disk.refused.add(volume)
