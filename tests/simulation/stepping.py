"""Steps: every call that leaves a node's memory has a label and a number, and may be its last.

A test runs a scenario once to learn its steps, then again with the power cut before or after one of
them, or with the answer to it lost.
"""

from __future__ import annotations

import asyncio
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Collection,
    Iterable,
    Mapping,
    Sequence,
)
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Protocol, TypeVar

from fake_driver import SparseSnapshotDriver

from pannier.agent.freezing import Freezer
from pannier.agent.mounts import Mounts
from pannier.agent.usage import Contact, User
from pannier.core.errors import Conflict, OutcomeUnknown, StorageError, VolumeInUse
from pannier.core.generation import Generation
from pannier.core.line import Buffer, Cut, Doubt, LinePlace, OnTop
from pannier.core.room import ImageLimits, Room
from pannier.storage.base import (
    Capacity,
    CheckedDriver,
    CloningDriver,
    Driver,
    FileSystemDriver,
    LocalCopy,
    Reading,
    RollingBackDriver,
    RootAttributes,
    Space,
    SparseDriver,
)
from pannier.storage.blocks import MendingDriver, Piece
from pannier.storage.image.driver import ImageDriver
from pannier.storage.lines import JournalState, LineDriver
from pannier.store.base import Change, Entry, MemberHealth, Store, WatchEvent
from pannier.testing.store import MemoryStore

T = TypeVar("T")


class PowerCut(BaseException):
    """The process that runs this is no more: nothing may catch it and go on."""


class Fault(Enum):
    """What may go wrong at a step."""

    CUT_BEFORE = "power cut before it"
    CUT_AFTER = "power cut after it"
    LOSE_REQUEST = "request lost"
    LOSE_ANSWER = "answer lost"
    LATE = "no answer, and done later"


@dataclass(frozen=True, slots=True)
class Step:
    """One call: ``of`` is the node that makes it."""

    of: str
    label: str

    @property
    def is_commit(self) -> bool:
        return self.label == "store.commit"


class Life(Protocol):
    """What the stand-ins need of the run of a node's daemon in which they are."""

    def check(self) -> None:
        """Raise PowerCut where the run has ended."""

    async def before(self, label: str) -> Fault | None:
        """A step begins: may cut, may wait; returns a fault for the stand-in to play."""

    async def after(self, label: str, fault: Fault | None) -> None:
        """The step has had its effect."""

    def at_once(self, label: str, effect: Callable[[], T]) -> T:
        """A step that is a plain call."""


async def stepped(life: Life, label: str, effect: Callable[[], Awaitable[T]]) -> T:
    """Do one step."""
    fault = await life.before(label)
    result = await effect()
    await life.after(label, fault)
    return result


class SteppedDriver(Driver):
    """A driver whose every call is a step."""

    def __init__(self, life: Life, inner: Driver) -> None:
        self._life = life
        self._inner = inner
        self.name = inner.name
        self.pool = inner.pool
        self.generations_in_use = inner.generations_in_use

    async def open(self) -> None:
        await self._inner.open()

    async def close(self) -> None:
        await self._inner.close()

    async def volumes(self) -> tuple[str, ...]:
        return await stepped(self._life, "driver.volumes", self._inner.volumes)

    async def quarantined(self) -> Mapping[str, StorageError]:
        return await self._inner.quarantined()

    async def set_apart(self, volume: str) -> Path:
        return await stepped(self._life, "driver.set_apart", lambda: self._inner.set_apart(volume))

    async def apart(self) -> Mapping[str, Path]:
        return await self._inner.apart()

    async def inspect(self, volume: str) -> LocalCopy:
        return await stepped(self._life, "driver.inspect", lambda: self._inner.inspect(volume))

    async def create(
        self, volume: str, *, epoch: int, root: RootAttributes, size_bytes: int | None
    ) -> None:
        await stepped(
            self._life,
            "driver.create",
            lambda: self._inner.create(volume, epoch=epoch, root=root, size_bytes=size_bytes),
        )

    def data_path(self, volume: str, epoch: int) -> Path:
        return self._inner.data_path(volume, epoch)

    async def attach(self, volume: str, *, epoch: int, grow: bool) -> None:
        await stepped(
            self._life, "driver.attach", lambda: self._inner.attach(volume, epoch=epoch, grow=grow)
        )

    async def attached(self) -> frozenset[str]:
        return await self._inner.attached()

    async def detach(self, volume: str, *, epoch: int) -> None:
        await stepped(self._life, "driver.detach", lambda: self._inner.detach(volume, epoch=epoch))

    async def snapshot(self, volume: str, *, epoch: int) -> Generation:
        return await stepped(
            self._life, "driver.snapshot", lambda: self._inner.snapshot(volume, epoch=epoch)
        )

    async def seal(self, volume: str, *, epoch: int) -> Generation:
        return await stepped(
            self._life, "driver.seal", lambda: self._inner.seal(volume, epoch=epoch)
        )

    async def unseal(self, volume: str, *, epoch: int) -> None:
        await stepped(self._life, "driver.unseal", lambda: self._inner.unseal(volume, epoch=epoch))

    async def promote(
        self,
        volume: str,
        generation: Generation,
        *,
        epoch: int,
        size_bytes: int | None,
        on_top: OnTop,
    ) -> None:
        await stepped(
            self._life,
            "driver.promote",
            lambda: self._inner.promote(
                volume, generation, epoch=epoch, size_bytes=size_bytes, on_top=on_top
            ),
        )

    async def drop_live(self, volume: str, *, epoch: int) -> None:
        await stepped(
            self._life, "driver.drop_live", lambda: self._inner.drop_live(volume, epoch=epoch)
        )

    def send(
        self, volume: str, generation: Generation, *, base: Generation | None
    ) -> AbstractAsyncContextManager[int]:
        return self._streaming("driver.send", self._inner.send(volume, generation, base=base))

    def receive(
        self, volume: str, generation: Generation, *, base: Generation | None
    ) -> AbstractAsyncContextManager[int]:
        return self._streaming("driver.receive", self._inner.receive(volume, generation, base=base))

    @asynccontextmanager
    async def _streaming(
        self, label: str, stream: AbstractAsyncContextManager[int]
    ) -> AsyncIterator[int]:
        async with stream as fd:
            yield fd
            fault = await self._life.before(label)
        await self._life.after(label, fault)

    async def delete_generation(self, volume: str, generation: Generation) -> None:
        await stepped(
            self._life,
            "driver.delete_generation",
            lambda: self._inner.delete_generation(volume, generation),
        )

    async def delete(self, volume: str) -> None:
        await stepped(self._life, "driver.delete", lambda: self._inner.delete(volume))

    async def used_bytes(self, volume: str) -> int:
        return await stepped(
            self._life, "driver.used_bytes", lambda: self._inner.used_bytes(volume)
        )

    async def capacity(self) -> Capacity:
        return await self._inner.capacity()

    async def check_disk(self, *, by_writing: bool = False) -> None:
        await self._inner.check_disk(by_writing=by_writing)

    def writes_done(self) -> int | None:
        return self._inner.writes_done()


class SteppedCheckedDriver(SteppedDriver, CheckedDriver):
    """The same of one that notices what the disk does not give back."""

    def __init__(self, life: Life, inner: CheckedDriver) -> None:
        super().__init__(life, inner)
        self._checked = inner
        self.compares = inner.compares

    async def verify(self, volume: str, generation: Generation | None) -> Reading:
        return await stepped(
            self._life, "driver.verify", lambda: self._checked.verify(volume, generation)
        )

    async def quarantine(self, volume: str) -> None:
        await stepped(self._life, "driver.quarantine", lambda: self._checked.quarantine(volume))

    async def drop_quarantined(self, volume: str) -> None:
        await stepped(
            self._life, "driver.drop_quarantined", lambda: self._checked.drop_quarantined(volume)
        )


class SteppedSparseDriver(
    SteppedCheckedDriver,
    SparseDriver,
    FileSystemDriver,
    RollingBackDriver,
    CloningDriver,
    MendingDriver,
    LineDriver,
):
    """The same of one whose pool may get full. What only looks, or is done at any moment, is no step."""

    def __init__(self, life: Life, inner: SparseSnapshotDriver | ImageDriver) -> None:
        super().__init__(life, inner)
        self.sparse = inner

    async def roll_back(self, volume: str, generation: Generation, *, epoch: int) -> None:
        await stepped(
            self._life,
            "driver.roll_back",
            lambda: self.sparse.roll_back(volume, generation, epoch=epoch),
        )

    async def clone(
        self, source: str, generation: Generation, *, volume: str, base: Generation, unborn: bool
    ) -> None:
        await stepped(
            self._life,
            "driver.clone",
            lambda: self.sparse.clone(source, generation, volume=volume, base=base, unborn=unborn),
        )

    async def enlarge(
        self, volume: str, generation: Generation, *, epoch: int, size_bytes: int, more_bytes: int
    ) -> None:
        await stepped(
            self._life,
            "driver.enlarge",
            lambda: self.sparse.enlarge(
                volume, generation, epoch=epoch, size_bytes=size_bytes, more_bytes=more_bytes
            ),
        )

    async def unborn(self) -> frozenset[str]:
        return await self.sparse.unborn()

    async def born(self, volume: str) -> None:
        await stepped(self._life, "driver.born", lambda: self.sparse.born(volume))

    async def watch(self, volume: str, *, epoch: int) -> Doubt | None:
        return await stepped(
            self._life, "driver.watch", lambda: self.sparse.watch(volume, epoch=epoch)
        )

    async def renew(self, volume: str, *, epoch: int) -> None:
        await stepped(self._life, "driver.renew", lambda: self.sparse.renew(volume, epoch=epoch))

    async def snapshot_disk(self, volume: str, *, epoch: int) -> Generation:
        return await stepped(
            self._life, "driver.snapshot", lambda: self.sparse.snapshot_disk(volume, epoch=epoch)
        )

    async def cut(self, place: LinePlace) -> Cut | Doubt:
        fault = await self._life.before("driver.cut")
        found = await self.sparse.cut(place)
        await self._life.after("driver.cut", fault)
        if fault is Fault.LOSE_ANSWER:
            raise StorageError("what was written since the last cut was told, and nobody heard it")
        return found

    def cut_now(self, place: LinePlace) -> Cut | Doubt:
        return self.sparse.cut_now(place)

    def note(self, place: LinePlace) -> None:
        self.sparse.note(place)

    def keep(self, place: LinePlace, encoded: Buffer) -> None:
        self.sparse.keep(place, encoded)

    async def settle(self, volume: str, generation: Generation) -> None:
        await stepped(self._life, "driver.settle", lambda: self.sparse.settle(volume, generation))

    async def drop_records(self, volume: str) -> None:
        await stepped(self._life, "driver.drop_records", lambda: self.sparse.drop_records(volume))

    async def missing(self, volume: str) -> str:
        return await self.sparse.missing(volume)

    async def lack(self, volume: str) -> None:
        await stepped(self._life, "driver.lack", lambda: self.sparse.lack(volume))

    async def mend_records(self, volume: str) -> None:
        await stepped(self._life, "driver.mend_records", lambda: self.sparse.mend_records(volume))

    async def lost(self, volume: str, generation: Generation) -> str:
        return await self.sparse.lost(volume, generation)

    async def end_journal(self) -> None:
        await self.sparse.end_journal()

    async def journal(self) -> JournalState:
        return await self.sparse.journal()

    async def pieces(
        self, volume: str, generation: Generation, *, start: int, end: int | None, piece_bytes: int
    ) -> tuple[Piece, ...]:
        return await self.sparse.pieces(
            volume, generation, start=start, end=end, piece_bytes=piece_bytes
        )

    async def wanted(
        self, volume: str, generation: Generation, blocks: Iterable[int]
    ) -> Mapping[int, int | None]:
        return await self.sparse.wanted(volume, generation, blocks)

    async def find(self, volume: str, sums: Mapping[int, int]) -> Mapping[int, bytes]:
        return await stepped(self._life, "driver.find", lambda: self.sparse.find(volume, sums))

    async def mend(self, volume: str, blocks: Mapping[int, bytes]) -> None:
        await stepped(self._life, "driver.mend", lambda: self.sparse.mend(volume, blocks))

    def behind(self, volume: str, epoch: int) -> Path:
        return self.sparse.behind(volume, epoch)

    async def space(self, volume: str) -> Space | None:
        return await self.sparse.space(volume)

    async def show(self, volume: str, *, tree: int | Generation, at: Path) -> None:
        await self.sparse.show(volume, tree=tree, at=at)

    async def has_files(self, volume: str, *, epoch: int) -> bool:
        return await self.sparse.has_files(volume, epoch=epoch)

    def opened(self, volume: str, *, tree: int | Generation) -> AbstractAsyncContextManager[int]:
        return self.sparse.opened(volume, tree=tree)

    async def check_file_system(
        self, volume: str, generation: Generation | None
    ) -> tuple[str, ...]:
        return await self.sparse.check_file_system(volume, generation)

    async def room(self, *, note_used: bool) -> Room:
        return await self.sparse.room(note_used=note_used)

    async def gives_back(self) -> bool:
        return await self.sparse.gives_back()

    async def parts(self) -> frozenset[str]:
        return await self.sparse.parts()

    async def drop_part(self, volume: str) -> None:
        await stepped(self._life, "driver.drop_part", lambda: self.sparse.drop_part(volume))

    async def restrict(
        self, *, full: bool, limits: ImageLimits | None, frozen: frozenset[str]
    ) -> None:
        await self.sparse.restrict(full=full, limits=limits, frozen=frozen)

    async def write_out(self, volume: str) -> None:
        await self.sparse.write_out(volume)

    async def hold_still(self, volume: str, *, epoch: int, seconds: float) -> bool:
        return await stepped(
            self._life,
            "driver.hold_still",
            lambda: self.sparse.hold_still(volume, epoch=epoch, seconds=seconds),
        )

    async def let_go(self, volume: str, *, epoch: int) -> bool:
        return await stepped(
            self._life, "driver.let_go", lambda: self.sparse.let_go(volume, epoch=epoch)
        )

    async def thaw(self, volume: str) -> None:
        await self.sparse.thaw(volume)

    async def trim(self, volume: str, *, go_on: Callable[[], bool]) -> None:
        await self.sparse.trim(volume, go_on=go_on)

    async def failed(self) -> frozenset[str]:
        return await self.sparse.failed()

    async def refused(self, volume: str, *, epoch: int) -> bool:
        return await self.sparse.refused(volume, epoch=epoch)

    async def note_refused(self, volume: str, *, epoch: int) -> None:
        await self.sparse.note_refused(volume, epoch=epoch)


def stepped_driver(life: Life, inner: Driver) -> SteppedDriver:
    """A driver whose every call is a step, of the kind that ``inner`` is."""
    if isinstance(inner, SparseSnapshotDriver | ImageDriver):
        return SteppedSparseDriver(life, inner)
    if isinstance(inner, CheckedDriver):
        return SteppedCheckedDriver(life, inner)
    return SteppedDriver(life, inner)


class SteppedStore(Store):
    """A store whose reads and commits are steps; watches and leases go straight through.

    Args:
        do_late: carries a change out some time after the node was told that nobody knows.
    """

    def __init__(
        self, life: Life, inner: MemoryStore, do_late: Callable[[Sequence[Change]], None]
    ) -> None:
        self._life = life
        self.inner = inner
        self._do_late = do_late

    async def get(self, key: str) -> Entry | None:
        return await stepped(self._life, "store.get", lambda: self.inner.get(key))

    async def list(self, prefix: str) -> tuple[Entry, ...]:
        return await stepped(self._life, "store.list", lambda: self.inner.list(prefix))

    async def commit(self, *changes: Change) -> int:
        if all(change.key.startswith(("alive/", "nodes/")) for change in changes):
            return await self.inner.commit(*changes)
        fault = await self._life.before("store.commit")
        match fault:
            case Fault.LOSE_REQUEST:
                self.inner.lose_requests()
            case Fault.LOSE_ANSWER:
                self.inner.lose_answers()
            case Fault.LATE:
                self._do_late(changes)
                raise OutcomeUnknown("the store did not answer; it may do it yet")
        try:
            revision = await self.inner.commit(*changes)
        except OutcomeUnknown:
            await self._life.after("store.commit", fault)
            raise
        await self._life.after("store.commit", fault)
        return revision

    def watch(self, prefix: str) -> AsyncIterator[WatchEvent]:
        return self.inner.watch(prefix)

    async def grant_lease(self, ttl_seconds: float) -> str:
        return await self.inner.grant_lease(ttl_seconds)

    async def renew_lease(self, lease: str) -> None:
        await self.inner.renew_lease(lease)

    async def revoke_lease(self, lease: str) -> None:
        await self.inner.revoke_lease(lease)

    @asynccontextmanager
    async def session(self) -> AsyncIterator[Store]:
        async with self.inner.session():
            yield self

    async def health(self) -> dict[str, MemberHealth]:
        return await self.inner.health()


class Table:
    """A machine's mounts and the processes on it: the kernel's memory, not the daemon's."""

    def __init__(self) -> None:
        self.mounts: dict[str, Path] = {}
        self.containers: dict[str, Path] = {}
        """Running containers: the id, and the tree that its mount shows."""
        self.onlookers: set[str] = set()
        """Those of them that have files open for reading only, through a mount of somebody else."""
        self.frozen: dict[str, set[str]] = {}
        """By volume id, containers that stand still for its sake; the daemon's tmpfs remembers it."""
        self._pids: dict[str, int] = {}

    def stands_still(self, container: str) -> bool:
        """Whether a container makes no step."""
        return any(container in frozen for frozen in self.frozen.values())

    def users_of(self, paths: Sequence[Path]) -> list[User]:
        """What /proc would say."""
        found = [c for c, tree in sorted(self.containers.items()) if tree in paths]
        return [
            User(
                self._pids.setdefault(c, 100 + len(self._pids)),
                c,
                "app",
                Contact.LOOKS_ON if c in self.onlookers else Contact.WRITES,
                filtered=True,
            )
            for c in found
        ]

    def kill(self, pids: Collection[int], *, found: Callable[[], Collection[int]]) -> list[int]:
        """Kill processes, and their containers with them; a number is never another one's here."""
        still = set(pids) & set(found())
        there = {c: pid for c, pid in self._pids.items() if c in self.containers and pid in still}
        for container in there:
            del self.containers[container]
        return list(there.values())


class SteppedFreezer(Freezer):
    """The freezer of a machine's kernel."""

    def __init__(self, life: Life, table: Table) -> None:
        self._life = life
        self._table = table

    def freeze(self, volume_id: str, users: Sequence[User]) -> list[User]:
        """All of them are containers."""
        self._life.check()
        for user in users:
            assert user.container
            self._table.frozen.setdefault(volume_id, set()).add(user.container)
        return []

    def keep(self, volume_id: str) -> None:
        """Nobody else thaws them."""

    def thaw(self, volume_id: str) -> None:
        """They go on."""
        self._life.at_once("freezer.thaw", lambda: self._table.frozen.pop(volume_id, None))

    def holds(self, volume_id: str) -> bool:
        """Also after a restart of the daemon."""
        return volume_id in self._table.frozen


class SteppedMounts(Mounts):
    """The mounts of a machine, each change a step."""

    def __init__(self, life: Life, table: Table, root: Path) -> None:
        self._life = life
        self._table = table
        self._root = root

    @property
    def root(self) -> Path:
        return self._root

    @property
    def unguarded(self) -> frozenset[str]:
        return frozenset()

    def path(self, name: str) -> Path:
        return self._root / name

    def mount(self, name: str, source: Path) -> Path:
        shown = self._table.mounts.get(name)
        if shown not in (None, source):
            raise Conflict(f"{name} shows {shown}, not {source}")
        return self.replace(name, source)

    def replace(self, name: str, source: Path) -> Path:
        self._life.at_once("mounts.mount", lambda: self._table.mounts.update({name: source}))
        return self.path(name)

    def unmount(self, name: str, *, detach: bool = False) -> None:
        if f"process in {name}" in self._table.containers and not detach:
            raise VolumeInUse(f"a process uses {name}")
        self._life.at_once("mounts.unmount", lambda: self._table.mounts.pop(name, None))

    def prepared(self) -> frozenset[str]:
        return frozenset(self._table.mounts)  # a path without a mount is not played

    def forget(self, name: str) -> bool:
        return name not in self._table.mounts

    def users_of(self, paths: Sequence[Path], *, mount_root: Path) -> list[User]:
        """What /proc would say."""
        self._life.check()
        return self._table.users_of(paths)


async def pause(seconds: float) -> None:
    """Let time pass, virtually."""
    if seconds > 0:
        await asyncio.sleep(seconds)
