"""A cluster of several complete nodes in one process, in virtual time, with every fault as a verb.

Product code runs unchanged, wired as the daemon does it; disks, mounts, containers, the network
and the store's connections are stand-ins whose every call is a numbered step (tests/simulation).
After each step :meth:`World.inspect` looks at all disks and records: see there for what must hold.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
import random
import shutil
import sys
from collections.abc import Callable, Coroutine, Generator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeVar
from unittest.mock import patch

import msgspec
import pytest
import structlog

sys.path.append(str(Path(__file__).parents[1] / "simulation"))

from fake_driver import Disk, SnapshotDriver, SparseSnapshotDriver
from machines import RUN, Died, Machine, RecordSenderOf, Run, SenderOf
from stepping import Fault, PowerCut, Step, SteppedSparseDriver, SteppedStore
from virtual_time import VirtualTimePolicy, run_virtual

from pannier.agent.renewal import Held
from pannier.cluster.registry import encode, trash_key, volume_key
from pannier.contract.views import MoveProgress
from pannier.core.errors import PannierError, PeerUnavailable, Stale
from pannier.core.lease import Terms
from pannier.core.node import Node
from pannier.core.pace import Pace
from pannier.core.volume import Volume
from pannier.host.state_files import HostFiles, StateFiles
from pannier.storage.base import Driver
from pannier.store.base import ABSENT, Change, Store
from pannier.testing.store import MemoryData
from pannier.transport.base import ChoosingSender, SendsRecords

__all__ = [
    "ACTOR",
    "Died",
    "Fault",
    "Machine",
    "Run",
    "SenderOf",
    "Step",
    "World",
    "event_loop_policy",
    "run_virtual",
]

T = TypeVar("T")
ACTOR = "tester"
USUAL = Pace()
"""The times that the daemon uses."""
_NOT_PLAYED = frozenset(
    ("introduction", "admission", "activation", "swarm-node", "free-space", "evacuation", "labels",
     "asked-options", "asked-by-containers", "hooks", "service-stops", "unheld", "twins", "schedules",
     "cluster-keys", "sealing-anew", "backup-schedule", "usage")
)  # fmt: skip
"""Work of a node that has nothing to do with who holds what; its tests have worlds of their own."""


@pytest.fixture
def event_loop_policy() -> VirtualTimePolicy:
    """Import this into a test module: its tests run in virtual time."""
    return VirtualTimePolicy()


class World:
    """Machines ``a``, ``b`` and ``c`` with a store; ``async with`` starts and ends it.

    Attributes:
        faults: given each step, says what goes wrong there; a test sets it.
        delay: seconds that each step's request, and its answer, take.
        slow_steps: by node and label, seconds that a step takes before it has its effect.
        acked: what containers were told is written, by volume id: the truth to compare with.
        violations: what was found broken; empty at the end, or the test fails.
    """

    def __init__(
        self,
        directory: Path,
        *,
        names: Sequence[str] = ("a", "b", "c"),
        driver: type[SnapshotDriver] = SnapshotDriver,
        seed: int = 0,
        with_upkeep: bool = False,
        with_settling: bool = True,
        with_replication: bool = False,
        pace: Pace = USUAL,
    ) -> None:
        self._driver = driver
        self.pace = pace
        self.random = random.Random(seed)
        self.with_settling = with_settling
        self.without = _NOT_PLAYED
        if not with_upkeep:
            self.without |= {"trash", "freeing", "upkeep", "forgetting", "verification"}
        if not with_replication:
            self.without |= {"fencing", "replication", "in-sync"}
        self.data = Data()
        self.data.feed._subscriptions = _InOrder()  # type: ignore[assignment]
        self.steps: list[Step] = []
        self.faults: Callable[[Step], Fault | None] = lambda step: None
        self.delay: Callable[[], float] = lambda: 0.0
        self.slow_steps: dict[tuple[str, str], float] = {}
        self.wall = 1_700_000_000.0
        self.storeless: set[str] = set()
        self.acked: dict[str, dict[str, bytes]] = {}
        self.violations: list[str] = []
        self._cut_links: set[frozenset[str]] = set()
        self._calls: dict[asyncio.Future[None], frozenset[str]] = {}
        self._grants: dict[tuple[str, int], str] = {}
        self._epochs: dict[str, int] = {}
        self._purged: set[str] = set()
        self._containers = 0
        self._late: list[asyncio.Task[None]] = []
        self._stack = ExitStack()
        self.machines = {name: Machine(self, name, directory, Disk()) for name in names}
        for name, machine in self.machines.items():
            setattr(self, name, machine)

    a: Machine
    b: Machine
    c: Machine

    # -- what machines are made of; a kind of world may have it otherwise ------------------------

    terms = Terms()
    trash_bytes: int | None = None

    def make_room(self, machine: Machine) -> None:
        """The directories of its own files."""
        machine.state.mkdir(parents=True)
        machine.tmpfs.mkdir()

    def clear_tmpfs(self, machine: Machine) -> None:
        """Its power failed."""
        shutil.rmtree(machine.tmpfs, ignore_errors=True)
        machine.tmpfs.mkdir()

    def make_store(self, run: Run) -> Store:
        """A node's way to the store, over ``run.line``."""
        return SteppedStore(run, run.line, self.do_late)

    def make_sender(self, run: Run) -> ChoosingSender:
        """A node's way of sending generations."""
        return SenderOf(run)

    def make_record_sender(self, run: Run) -> SendsRecords:
        """A node's way of sending records."""
        return RecordSenderOf(run)

    def make_files(self, machine: Machine) -> StateFiles:
        """What a node must not forget, on its disk and on its tmpfs."""
        return HostFiles(state=machine.state, run=machine.tmpfs)

    def heard(self, run: Run, held: Held) -> None:
        """A run has heard what the store granted it."""

    def make_record(self, machine: Machine) -> Node:
        """With what a node introduces itself."""
        return _record(machine.name, self.make_driver(machine).name)

    def wall_time(self) -> float:
        """What people's clocks say on all machines."""
        return self.wall + asyncio.get_running_loop().time()

    def make_driver(self, machine: Machine) -> Driver:
        """A driver on the machine's disk; a test may put a real one there."""
        return self._driver(machine.disk, where=Path("/disk") / machine.name)

    async def __aenter__(self) -> World:
        loop = asyncio.get_running_loop()
        loop.set_task_factory(self._make_task)
        self._stack.callback(loop.set_task_factory, None)
        before = structlog.get_config()
        structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
        self._stack.callback(lambda: structlog.configure(**before))
        self._stack.enter_context(patch("secrets.token_hex", self._token))
        for name, machine in self.machines.items():
            self._put(f"nodes/{name}", _record(name, self.make_driver(machine).name))
        for machine in self.machines.values():
            await machine.start()
        while not all(
            m.up.catalog.is_up(name) for m in self.machines.values() for name in self.machines
        ):
            assert not self.violations, "\n".join(self.violations[:3])
            await asyncio.sleep(0.1)
        self.steps.clear()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        ending = [task for m in self.machines.values() if m.run for task in m.run.tasks]
        for machine in self.machines.values():
            machine.power_off()
        await asyncio.sleep(0)
        if left := [task for task in ending if not task.done()]:
            await asyncio.wait(left, timeout=10.0)
        for task in self._late:
            task.cancel()
        self._stack.close()
        if kind is None:
            assert not self.violations, "\n".join(self.violations)

    def _all_know_all(self) -> bool:
        runs = [machine.up for machine in self.machines.values()]
        return all(run.catalog.is_up(name) for run in runs for name in self.machines)

    def _token(self, size: int) -> str:
        return self.random.randbytes(size).hex()

    def _put(self, key: str, record: Node) -> None:
        found = self.data.get(key)
        self.data.commit((Change(key, encode(record), found.revision if found else ABSENT),))

    def _make_task(
        self,
        loop: asyncio.AbstractEventLoop,
        work: Coroutine[Any, Any, T] | Generator[Any, None, T],
        context: Any = None,
        **options: Any,
    ) -> asyncio.Task[T]:
        """Each task belongs to the run of the daemon that made it, and ends with that."""
        task = asyncio.Task(work, loop=loop, context=context, **options)
        run = context.get(RUN) if context is not None else RUN.get(None)
        if run is not None:
            run.tasks.append(task)
            task.add_done_callback(self._task_ended)
            if run.dead:
                task.cancel()
        return task

    def _task_ended(self, task: asyncio.Task[Any]) -> None:
        error = None if task.cancelled() else task.exception()
        if error is not None and not isinstance(error, PannierError | PowerCut):
            self.violations.append(f"a task of the daemon failed: {error!r}")

    # -- faults as verbs --------------------------------------------------------------------------

    def next_step(self, step: Step) -> Fault | None:
        """Called by the nodes at each of their steps."""
        self.steps.append(step)
        return self.faults(step)

    def fail_at(self, number: int, fault: Fault) -> None:
        """Play ``fault`` at the step of that number, counted from 0 now."""
        at = len(self.steps) + number
        self.faults = lambda step: fault if len(self.steps) - 1 == at else None

    def fail_at_label(self, label: str, fault: Fault, *, of: str | None = None) -> None:
        """Play ``fault`` at the next step of that label, once."""

        def choose(step: Step) -> Fault | None:
            if step.label != label or of not in (None, step.of):
                return None
            self.faults = lambda step: None
            return fault

        self.faults = choose

    def cut_link(self, one: str, other: str) -> None:
        """Nothing goes between two nodes; what they ask each other stays without an answer."""
        self._cut_links.add(frozenset((one, other)))
        self._break(lambda link: link == frozenset((one, other)))

    def isolate(self, name: str) -> None:
        """A node reaches no other node; the store it does."""
        for other in self.machines:
            if other != name:
                self.cut_link(name, other)

    def mend_links(self) -> None:
        """Undo :meth:`cut_link` for all."""
        self._cut_links.clear()

    def cut_store(self, *names: str) -> None:
        """The store cannot be reached from these nodes; from all without any."""
        for name in names or tuple(self.machines):
            self.storeless.add(name)
            if run := self.machines[name].run:
                run.line.cut()

    def mend_store(self) -> None:
        """Undo :meth:`cut_store` for all."""
        self.storeless.clear()
        for machine in self.machines.values():
            if machine.run:
                machine.run.line.mend()

    def late_seconds(self) -> float:
        """When a change that nobody heard of arrives."""
        return self.random.choice((0.001, 0.5, 3.0, 30.0))

    def do_late(self, changes: Sequence[Change]) -> None:
        """Carry out later what a node was told nothing about."""
        late, nobodys = self._do_late(tuple(changes)), contextvars.Context()
        self._late.append(asyncio.get_running_loop().create_task(late, context=nobodys))

    async def _do_late(self, changes: tuple[Change, ...]) -> None:
        await asyncio.sleep(self.late_seconds())
        with contextlib.suppress(Stale):
            self.data.commit(changes)
            self.inspect()

    def drop_calls(self, name: str) -> None:
        """A node is no more: whoever waits for it waits in vain."""
        self._break(lambda link: name in link)

    def _break(self, which: Callable[[frozenset[str]], bool]) -> None:
        for broken, link in self._calls.items():
            if which(link) and not broken.done():
                broken.set_result(None)

    # -- the network --------------------------------------------------------------------------------

    async def call(
        self,
        caller: Run,
        to: str,
        label: str,
        question: Callable[[Run], Coroutine[Any, Any, T]],
        *,
        lost: PannierError,
        abort: bool = False,
    ) -> T:
        """One node asks another.

        Args:
            lost: raised where it was asked and no answer came.
            abort: the other side stops, or may do so, when the caller has gone.
        """
        fault = await caller.before(label)
        link = frozenset((caller.name, to))
        there = self.machines[to].run
        if fault is Fault.LOSE_REQUEST:
            raise lost
        if link in self._cut_links or there is None or not there.serving:
            raise PeerUnavailable(f"node {to} cannot be reached")
        task = there.spawn(question(there))
        broken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._calls[broken] = link
        either: set[asyncio.Future[Any]] = {task, broken}
        try:
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        finally:
            del self._calls[broken]
            if abort and not task.done() and self.random.random() < 0.7:
                task.cancel()
        if broken.done() or task.cancelled() or isinstance(task.exception(), PowerCut):
            caller.check()
            raise lost
        if fault is Fault.LOSE_ANSWER:
            raise lost
        result = task.result()
        await caller.after(label, fault)
        return result

    # -- users ----------------------------------------------------------------------------------------

    async def create(self, machine: Machine, name: str, **options: str) -> Volume:
        """``pannier volume create``."""
        return await machine.ask(lambda run: run.volumes.create(name, options, actor=ACTOR))

    async def mount(self, machine: Machine, name: str, mount_id: str = "m") -> Path:
        """Docker's Mount."""
        return await machine.ask(lambda run: run.docker.mount(name, mount_id))

    async def run_container(self, machine: Machine, name: str, mount_id: str = "m") -> str:
        """Mount and start a container. Returns its id."""
        await self.mount(machine, name, mount_id)
        return self.start_container(machine, name)

    def start_container(self, machine: Machine, name: str) -> str:
        """Start a container on whatever is mounted. What it is shown must be all of the volume."""
        self._containers += 1
        container = f"app{self._containers}"
        tree = machine.table.mounts.get(name)
        if tree is None:
            self.violations.append(f"container on {machine.name} got an unmounted {name}")
            return container
        volume, epoch = _parts(tree)
        shown = machine.disk.readable(volume, epoch, None)
        if shown != self.acked.get(volume, {}):
            self.violations.append(f"container on {machine.name} was shown {shown} for {volume}")
        machine.table.containers[container] = tree
        return container

    def write(self, machine: Machine, container: str, file: str, value: bytes) -> None:
        """A container writes and is told that it is on disk."""
        assert not machine.table.stands_still(container)
        volume, epoch = _parts(machine.table.containers[container])
        try:
            machine.disk.write(volume, epoch, file, value)
        except OSError as error:
            self.violations.append(f"container {container} on {machine.name}: {error}")
            return
        self.acked.setdefault(volume, {})[file] = value

    def stop_container(self, machine: Machine, container: str) -> None:
        """It ends."""
        machine.table.containers.pop(container, None)

    async def unmount(self, machine: Machine, name: str, mount_id: str = "m") -> None:
        """Docker's Unmount."""
        await machine.ask(lambda run: run.docker.unmount(name, mount_id))

    def sparse_driver(self, machine: Machine) -> SparseSnapshotDriver:
        """The driver of a running node, in a world of such drivers."""
        driver = machine.up.driver
        assert isinstance(driver, SteppedSparseDriver)
        assert isinstance(driver.sparse, SparseSnapshotDriver)
        return driver.sparse

    async def write_once(self, machine: Machine, name: str, value: bytes = b"x") -> None:
        """A container that writes something and ends."""
        container = await self.run_container(machine, name)
        self.write(machine, container, f"by-{machine.name}", value)
        self.stop_container(machine, container)
        await self.unmount(machine, name)

    async def move(
        self, machine: Machine, name: str, node: str, *, wait_seconds: float = 60
    ) -> list[MoveProgress]:
        """``pannier volume move``, typed on ``machine``."""

        async def all_steps(run: Run) -> list[MoveProgress]:
            steps = run.service.move_volume(name, node, wait_seconds=wait_seconds)
            return [step async for step in steps]

        return await machine.ask(all_steps)

    async def remove(self, machine: Machine, name: str) -> None:
        """``docker volume rm``."""
        await machine.ask(lambda run: run.docker.remove(name))

    async def restore(self, machine: Machine, name: str) -> Volume:
        """``pannier volume restore``."""
        return await machine.ask(lambda run: run.volumes.restore(name, actor=ACTOR))

    # -- looking --------------------------------------------------------------------------------------

    def record(self, name: str) -> Volume | None:
        """The store's record of a volume."""
        entry = self.data.get(volume_key(name))
        return _volume(entry.value) if entry else None

    def now_record(self, name: str = "vol") -> Volume:
        """The store's record, which must be there."""
        record = self.record(name)
        assert record is not None
        return record

    def trashed(self, volume_id: str) -> Volume | None:
        """The store's record of a removed volume."""
        entry = self.data.get(trash_key(volume_id))
        return _volume(entry.value) if entry else None

    def contents(self, name: str) -> dict[str, bytes]:
        """What the holder has of a volume."""
        return dict(self._held(self.now_record(name)) or {})

    def _held(self, record: Volume) -> Any:
        disk = self.machines[record.grant.node].disk
        return disk.readable(record.id, record.grant.epoch, record.base)

    def inspect_after(self, label: str) -> None:
        """A step has had its effect."""
        self.inspect()

    def inspect(self) -> None:
        """What must hold at every moment, whatever failed:

        1. the holder that the record names has every byte that a container was told is written;
        2. no other tree of that volume can be written, on any disk;
        3. an epoch belongs to one node for ever, and rises;
        4. what was once recorded is a volume, or in the trash, or was purged; and while any node of the
           cluster has something of what was purged, the store says so;
        5. nobody takes a tree away, or makes it read-only, under a running container.
        """
        records: dict[str, Volume] = {}
        for entry in (*self.data.list("volumes/"), *self.data.list("trash/")):
            record = _volume(entry.value)
            records[record.id] = record
        purged = {entry.key.removeprefix("purged/") for entry in self.data.list("purged/")}
        for record in records.values():
            self._inspect_one(record)
        self._purged |= purged
        for missing in self._epochs.keys() - records.keys() - self._purged:
            self._wrong(f"{missing} was recorded once and is nowhere now")
        for forgotten in self._purged - purged - records.keys():
            for machine in self._members():
                if forgotten in machine.disk.homes:
                    self._wrong(f"{machine.name} has {forgotten}, and may never delete it")
        for machine in self.machines.values():
            self._inspect_containers(machine)

    def _members(self) -> list[Machine]:
        nodes = {entry.key.removeprefix("nodes/") for entry in self.data.list("nodes/")}
        return [machine for machine in self.machines.values() if machine.name in nodes]

    def _inspect_one(self, record: Volume) -> None:
        grant, held = record.grant, self._held(record)
        self._promise_clone(record)
        if held is None or dict(held) != self.acked.get(record.id, {}):
            acked = self.acked.get(record.id, {})
            self._wrong(f"{record.id}: holder {grant} has {held}, and {acked} was promised")
        for machine in self.machines.values():
            home = machine.disk.homes.get(record.id)
            for epoch, tree in home.live.items() if home else ():
                if not tree.sealed and (machine.name, epoch) != (grant.node, grant.epoch):
                    self._wrong(f"{record.id}: {machine.name} can write {epoch}, holder is {grant}")
        if self._grants.setdefault((record.id, grant.epoch), grant.node) != grant.node:
            self._wrong(f"{record.id}: two nodes were given epoch {grant.epoch}")
        if grant.epoch < self._epochs.get(record.id, 0):
            self._wrong(f"{record.id}: its epoch went back to {grant.epoch}")
        self._epochs[record.id] = grant.epoch

    def _promise_clone(self, record: Volume) -> None:
        """A clone that is recorded has what it is a clone of."""
        origin = record.origin
        if origin is not None and record.id not in self.acked:
            homes = [machine.disk.homes.get(origin.volume_id) for machine in self.machines.values()]
            made = [
                home.described for home in homes if home and origin.generation in home.described
            ]
            self.acked[record.id] = dict(made[0][origin.generation]) if made else {}

    def _inspect_containers(self, machine: Machine) -> None:
        for container, path in machine.table.containers.items():
            if container in machine.table.onlookers:
                continue
            volume, epoch = _parts(path)
            home = machine.disk.homes.get(volume)
            tree = home.live.get(epoch) if home else None
            if tree is None or tree.sealed:
                what = "sealed" if tree else "taken away"
                self._wrong(f"{volume}: {what} under {container} on {machine.name}")

    def _wrong(self, what: str) -> None:
        if len(self.violations) < 5:
            last = ", ".join(f"{s.of}:{s.label}" for s in self.steps[-12:])
            self.violations.append(f"after step {len(self.steps)} ({last}): {what}")


class Data(MemoryData):
    """Leases run out whoever asked for them, and whatever became of that one."""

    def _set_timer(self) -> None:
        contextvars.Context().run(super()._set_timer)


class _InOrder(dict[Any, None]):
    """A set that is walked in the order of its making, so that a run can be repeated."""

    def add(self, item: Any) -> None:
        self[item] = None

    def discard(self, item: Any) -> None:
        self.pop(item, None)


_read: dict[bytes, Volume] = {}


def _volume(value: bytes) -> Volume:
    if value not in _read:
        if len(_read) > 1000:
            _read.clear()
        _read[value] = msgspec.json.decode(value, type=Volume)
    return _read[value]


def _parts(tree: Path) -> tuple[str, int]:
    """The volume's id and the epoch of a live tree's data path."""
    return tree.parts[-3], int(tree.parts[-2])


def _record(name: str, driver: str) -> Node:
    return Node(
        name=name,
        address="127.0.0.1",
        drivers=(driver,),
        version="0",
        joined_at=0.0,
        certificate=name,
    )
