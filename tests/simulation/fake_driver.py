"""A driver in memory whose disk outlives it: fast, and its power can be cut anywhere.

Two kinds, as there are two real ones: :class:`SnapshotDriver` keeps generations beside the live
tree and makes them in use (btrfs); :class:`SingleTreeDriver` has one tree that is either live or a
generation (directory). Both pass the driver contract, see test_fake_driver.py.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from pannier.core.errors import Corrupt, DiskFailed, InvalidInput, StorageError
from pannier.core.generation import Generation
from pannier.storage.base import (
    Capacity,
    CheckedDriver,
    LiveTree,
    LocalCopy,
    RootAttributes,
)

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
    ``damaged`` those of which the disk gives back other bytes, None the live tree.
    """

    live: dict[int, Tree] = field(default_factory=dict)
    generations: dict[Generation, Content] = field(default_factory=dict)
    described: dict[Generation, Content] = field(default_factory=dict)
    quarantined: dict[Generation, Content] = field(default_factory=dict)
    damaged: set[Generation | None] = field(default_factory=set)

    def next_generation(self, epoch: int) -> Generation:
        known = [g.sequence for g in self.described if g.epoch == epoch]
        return Generation(epoch, max(known, default=0) + 1)


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
        self.spoilt: dict[str, StorageError] = {}
        """Volumes of which something can be neither tidied nor removed, and why."""

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
            return home.generations[base]
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

    def __init__(self, disk: Disk, *, name: str = "btrfs", where: Path = Path("/disk")) -> None:
        self.name = name
        self.disk = disk
        self._where = where

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

    async def close(self) -> None:
        """Nothing was taken."""

    async def volumes(self) -> tuple[str, ...]:
        homes = self.disk.homes
        return tuple(sorted(name for name, home in homes.items() if home.live or home.generations))

    async def quarantined(self) -> Mapping[str, StorageError]:
        return dict(self.disk.spoilt)

    async def inspect(self, volume: str) -> LocalCopy:
        if volume in self.disk.spoilt:
            raise self.disk.spoilt[volume]
        home = self._home(volume)
        live = (LiveTree(epoch, sealed=home.live[epoch].sealed) for epoch in sorted(home.live))
        return LocalCopy(live=tuple(live), generations=self._listed(home))

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

    async def snapshot(self, volume: str, *, epoch: int) -> Generation:
        return self._save(volume, epoch)

    def _save(self, volume: str, epoch: int) -> Generation:
        home, tree = self._home(volume), self._tree(volume, epoch)
        tree.content = self._gather(volume, epoch, tree)
        if tree.saved_as is not None and home.described.get(tree.saved_as) == tree.content:
            return tree.saved_as
        generation = home.next_generation(epoch)
        home.described[generation] = dict(tree.content)
        self._keep(home, generation)
        tree.saved_as = generation
        return generation

    def _keep(self, home: Home, generation: Generation) -> None:
        home.generations[generation] = home.described[generation]

    async def seal(self, volume: str, *, epoch: int) -> Generation:
        tree = self._tree(volume, epoch)
        tree.sealed = True
        return self._save(volume, epoch)

    async def unseal(self, volume: str, *, epoch: int) -> None:
        self._tree(volume, epoch).sealed = False

    async def promote(
        self, volume: str, generation: Generation, *, epoch: int, size_bytes: int | None
    ) -> None:
        home = self._home(volume)
        if epoch in home.live:
            return
        content = dict(self._take(volume, home, generation))
        self._add_live(volume, epoch, Tree(content, saved_as=generation))

    def _take(self, volume: str, home: Home, generation: Generation) -> Content:
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
        home = self._home(volume)
        if generation in self._listed(home):
            return
        content = _apply(stream, base, home.described)
        self.disk.homes[volume] = home
        self._received(home, base)
        home.described[generation] = home.generations[generation] = content

    def _received(self, home: Home, base: Generation | None) -> None:
        """What becomes of the base."""

    async def delete_generation(self, volume: str, generation: Generation) -> None:
        self._home(volume).generations.pop(generation, None)

    async def verify(self, volume: str, generation: Generation | None) -> None:
        home = self._home(volume)
        if not (generation in home.generations if generation else home.live):
            raise StorageError(f"generation {generation} is not here")
        if generation in home.damaged:
            raise Corrupt(f"generation {generation} of volume {volume} is damaged: file")

    async def quarantine(self, volume: str) -> None:
        home = self._home(volume)
        home.quarantined.update(home.generations)
        home.generations.clear()
        home.damaged.clear()

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
        if self.disk.failed:
            raise DiskFailed("the disk takes no writes any more")

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

    def _take(self, volume: str, home: Home, generation: Generation) -> Content:
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
