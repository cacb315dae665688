"""Random histories of holders that are lost, from one seed: see :mod:`failover_world`.

Each history draws which faults it has at all and how often: few kinds at a time, often, find more
than all kinds seldom. Containers write, sync, and end; others are started elsewhere, as Swarm does it.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from unittest.mock import patch

from failover_world import FailoverWorld
from fake_driver import SnapshotDriver, SparseSnapshotDriver
from machines import Died, Machine
from plots import PLOTS, QUARANTINE, RESTORED, Plot
from stepping import Fault, Step
from virtual_time import run_virtual

from pannier.cluster.registry import decode
from pannier.core.errors import PannierError
from pannier.core.node import Node
from pannier.core.pace import Pace
from pannier.store.base import Entry

REFUSED = (PannierError, Died, TimeoutError)
"""What a user may hear while things fail."""
SECONDS = (5.0, 8.0, 16.0)
WELL_SECONDS = 25.0
NAME = "vol"


class History:
    """One history."""

    def __init__(self, world: FailoverWorld, seed: int, plot: Plot | None) -> None:
        self.world = world
        self._plot = plot
        self.random = random.Random(f"failover {seed}")
        self.log: list[str] = []
        self.done = 0
        self.synced = 0
        self._uses = 0
        self.seconds = self.random.choice(SECONDS)
        self._end = asyncio.get_running_loop().time() + self.seconds
        self._delays = self.random.choice(((0.0,), (0.0,), (0.0, 0.002, 0.02), (0.0, 0.01, 0.4)))
        self._step_faults = self.random.choice((0.0, 0.0, 0.002, 0.01))
        self._commit_faults = self.random.choice((0.0, 0.02, 0.3))
        self._record_faults = self.random.choice((0.0, 0.0, 0.01, 0.05))
        if plot in RESTORED:
            # Who knows better than the store must stay up; a machine that never heard of it cannot know.
            self._step_faults = self._commit_faults = self._record_faults = 0.0
        self._sync_rate = self.random.choice((0.2, 0.5, 1.0))
        self._thoughts = self.random.choice(((0.0, 0.05), (0.1, 0.5), (0.05, 1.0, 3.0)))
        together = self.random.choice((1.0, 1.0, 0.8, 1.2))
        for machine in world.machines.values():
            machine.rate = together * self.random.choice((1.0, 1.0, 0.953, 1.047))
        if self.random.random() < 0.3:
            world.late_news = {n: self.random.choice((0.0, 0.1, 0.7, 3.0)) for n in world.machines}

    def _now(self) -> float:
        return asyncio.get_running_loop().time()

    def say(self, what: str) -> None:
        """A line for whoever reads what happened."""
        self.log.append(f"{self._now():9.3f} {what}")

    def _fault(self, step: Step) -> Fault | None:
        rate = self._commit_faults if step.is_commit else self._step_faults
        if step.label in ("driver.keep", "driver.settle", "driver.cut"):
            rate = self._record_faults
        if rate == 0.0 or self.random.random() >= rate:
            return None
        choices = [Fault.CUT_BEFORE, Fault.CUT_AFTER]
        if step.is_commit:
            choices = [*choices, Fault.LOSE_REQUEST, Fault.LOSE_ANSWER, Fault.LATE, Fault.LATE]
        elif step.label == "driver.cut":
            choices = [Fault.LOSE_ANSWER]
        fault = self.random.choice(choices)
        self.say(f"{step.of}:{step.label}: {fault.value}")
        return fault

    # -- one history -------------------------------------------------------------------------------

    async def play(self) -> None:
        """From the first container to the last look."""
        options = {"copies": self.random.choice("223"), "interval": "1s"}
        if self.random.random() < 0.1:
            options["durability"] = "interval"
        elif self.random.random() < 0.15:
            options["min_copies"] = "2"
        await self.world.create(self.world.a, NAME, **options)
        if self._delays != (0.0,):
            self.world.delay = lambda: self.random.choice(self._delays)
        if self._step_faults or self._commit_faults or self._record_faults:
            self.world.faults = self._fault
        faults = [
            self._power_off, self._crash, self._stop, self._pause, self._stand_still, self._cut_way,
            self._isolate, self._store_away, self._store_away_for_all, self._new_leader,
            self._end_lease_early, self._slow_way, self._late_news, self._cut_one_port,
            self._disk_fails, self._journal_full, self._untold,
        ]  # fmt: skip
        if self._plot in RESTORED:
            faults = [self._slow_way, self._late_news, self._untold]
        kinds = self.random.sample(faults, self.random.randint(0, 3))
        users = [self._service() for _ in range(self.random.choice((1, 2, 2, 3)))]
        doings = [self._repeatedly(kind, self.random.uniform(1, 6)) for kind in kinds]
        doings.append(self._repeatedly(self._wall_clock, 1.0))
        plot = self._plot or self.random.choice(PLOTS)
        if self._plot or self.random.random() < 0.4:
            self.say(f"the plot is {plot.__name__}")
            doings.append(self._repeatedly(lambda: plot(self), 2.0))
        doings.append(self._repeatedly(self._move, self.random.choice((4.0, 20.0, 100.0))))
        doings.append(self._repeatedly(self._recover, self.random.choice((3.0, 50.0))))
        if self.random.random() < 0.15:
            doings.append(self._repeatedly(self._drain, 3.0))
        if self._record_faults:
            doings.append(self._repeatedly(self._start_one, 2.0))
        tasks = [asyncio.ensure_future(work) for work in (*users, *doings)]
        await asyncio.wait([asyncio.ensure_future(self.world.broken.wait())], timeout=self.seconds)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._mend()
        self.world.inspect()

    async def _repeatedly(self, doing: Callable[[], Awaitable[None]], every: float) -> None:
        while True:
            await asyncio.sleep(self.random.expovariate(1 / every))
            await doing()

    def _mend(self) -> None:
        world = self.world
        world.faults = lambda step: None
        world.delay = lambda: 0.0
        world.lost_ways.clear()
        world.slow.clear()
        world.late_news.clear()
        world.late_records = 0.0
        world.slow_steps.clear()
        for machine in world.machines.values():
            machine.disk.failed = machine.disk.journal_full = False
            machine.disk.spoilt.clear()
            self.go_on(machine)

    async def end_well(self) -> None:
        """When all is mended, every volume is of use again, and every copy in sync."""
        world = self.world
        await asyncio.sleep(2.0)  # a fault that was chosen may still be about to happen
        self.say("all is mended")
        for name in world.machines:
            entry = world.data.get(f"nodes/{name}")
            if entry is not None:
                world._put(entry.key, replace(decode(entry, Node), drained=False))
        for machine in world.machines.values():
            for container in tuple(machine.table.containers):
                machine.table.containers.pop(container)
            if machine.run is None or not machine.run.serving:
                machine.crash()  # it was just about to start
                await machine.start()
            for mount_id in tuple(machine.up.use._mount_ids.ages(NAME, 0.0)):
                await world.unmount(machine, NAME, mount_id)
        await asyncio.sleep(WELL_SECONDS)
        machine = self.random.choice(tuple(world.machines.values()))
        self._end = self._now() + 1000
        await asyncio.wait_for(self._use(machine, writes=1, sync=True), 60.0)
        record = world.record(NAME)
        assert record is not None
        await world_until(lambda: self._all_in_sync(), 60.0)

    def _all_in_sync(self) -> bool:
        record = self.world.record(NAME)
        return record is not None and set(record.in_sync) == set(record.replicas)

    # -- users -------------------------------------------------------------------------------------

    def _machine(self) -> Machine:
        return self.random.choice(tuple(self.world.machines.values()))

    def _victim(self) -> Machine:
        """Whom a fault shall meet: most of all the holder."""
        record = self.world.record(NAME)
        if record is not None and self.random.random() < 0.5:
            return self.world.machines[record.grant.node]
        return self._machine()

    async def _service(self) -> None:
        """One container after the other, on whatever node looks fit."""
        while True:
            machine = self._machine()
            up = [m for m in self.world.machines.values() if m.run is not None]
            if machine.run is None and up:
                machine = self.random.choice(up)
            await self.try_use(machine, self.random.randint(1, 12))
            await asyncio.sleep(self.random.choice((0.05, 0.3)))

    async def try_use(self, machine: Machine, writes: int) -> None:
        """Start a container, if that is possible, and let it write and sync."""
        try:
            await self._use(machine, writes=writes)
        except Died:
            await asyncio.sleep(0.5)
        except REFUSED as error:
            self.say(f"{machine.name}: {type(error).__name__}: {error}")

    async def _use(self, machine: Machine, *, writes: int, sync: bool = False) -> None:
        world = self.world
        self._uses += 1
        use, boots = f"app{self._uses}", machine.boots
        async with asyncio.timeout(self.random.choice((3.0, 12.0)) if not sync else 60.0):
            await world.mount(machine, NAME, use)
        tree = machine.table.mounts.get(NAME)
        if machine.boots != boots or tree is None:
            return
        self.done += 1
        self.say(f"{use} starts on {machine.name} with epoch {tree.parts[-2]}")
        machine.table.containers[use] = tree
        try:
            for _ in range(writes):
                await self._write(machine, use, sync=sync or self.random.random() < self._sync_rate)
                if use not in machine.table.containers:
                    self.say(f"{use} was ended")
                    return
                await asyncio.sleep(self.random.choice(self._thoughts))
        finally:
            machine.table.containers.pop(use, None)
        self.say(f"{use} ends")
        await world.unmount(machine, NAME, use)

    async def _write(self, machine: Machine, use: str, *, sync: bool) -> None:
        world, containers = self.world, machine.table.containers
        while machine.name in world.still or machine.table.stands_still(use):
            await asyncio.sleep(0.1)
        if use not in containers:
            return
        volume_id, epoch = containers[use].parts[-3], int(containers[use].parts[-2])
        try:
            written = world.append(machine, volume_id, epoch)
        except OSError:
            return
        while sync and use in containers:
            try:
                await machine.ask(lambda run: world.sync(run, NAME, volume_id, written))
            except (PannierError, Died):
                await asyncio.sleep(0.2)
            else:
                self.synced += 1
                self.say(f"{use} has synced {written.bit_length() - 1}")
                return

    async def _move(self) -> None:
        await self.move(self._machine(), self._machine().name)

    async def move(self, machine: Machine, target: str) -> None:
        """A person moves the volume, if that is possible."""
        self.say(f"move to {target}, asked on {machine.name}")
        try:
            async with asyncio.timeout(10.0):
                await self.world.move(machine, NAME, target, wait_seconds=5.0)
        except REFUSED as error:
            self.say(f"not moved: {error}")

    async def _recover(self) -> None:
        """A person recovers the volume of a node that is switched off, without loss or with."""
        world, record = self.world, self.world.record(NAME)
        if record is None or world.machines[record.grant.node].run is not None:
            return
        accept = self.random.random() < 0.3 and self._plot not in RESTORED
        holder = world.machines[record.grant.node]
        if accept and holder.table.containers:
            return  # only its daemon is off
        self.say(f"recover, {'accepting loss' if accept else 'without loss'}")
        try:
            async with asyncio.timeout(10.0):
                await self._machine().ask(
                    lambda run: run.service.by("me").recover_volume(NAME, accept_loss=accept)
                )
        except REFUSED as error:
            self.say(f"not recovered: {error}")

    async def _drain(self) -> None:
        """A node shall keep no copies: where another one can, it does instead. Or that is undone."""
        world, name = self.world, self._machine().name
        entry = world.data.get(f"nodes/{name}")
        assert entry is not None
        node = decode(entry, Node)
        self.say(f"{name} is {'in use again' if node.drained else 'drained'}")
        world._put(entry.key, replace(node, drained=not node.drained))

    # -- faults ------------------------------------------------------------------------------------

    def _span(self) -> float:
        return self.random.choice((0.2, 1.0, 3.0, 6.0, 12.0))

    async def _power_off(self) -> None:
        machine = self._victim()
        self.say(f"{machine.name} loses its power")
        self.go_on(machine)
        machine.power_off()
        await self._start_later(machine)

    async def _disk_fails(self) -> None:
        """Its disk takes and gives nothing, until the machine is switched off and on with a sound one."""
        machine = self._victim()
        self.say(f"the disk of {machine.name} fails")
        machine.disk.failed = True
        await asyncio.sleep(self._span())
        machine.disk.failed = False
        self.go_on(machine)
        machine.power_off()
        await self._start_later(machine)

    async def _journal_full(self) -> None:
        machine = self._machine()
        self.say(f"the journal of {machine.name} is full")
        machine.disk.journal_full = True
        await asyncio.sleep(self._span())
        machine.disk.journal_full = False

    async def _untold(self) -> None:
        """The trace of what is written has a gap."""
        record = self.world.record(NAME)
        if record is not None:
            self.world.machines[record.grant.node].disk.untold.add(record.id)

    async def _start_one(self) -> None:
        await self.start(self._machine())

    async def _crash(self) -> None:
        machine = self._victim()
        self.say(f"the daemon of {machine.name} is killed")
        self.go_on(machine)
        machine.crash()
        await self._start_later(machine)

    async def _stop(self) -> None:
        """The daemon is told to end; what nobody uses here may go on elsewhere at once."""
        machine = self._victim()
        if machine.run is None or machine.name in self.world.frozen_until:
            return
        self.say(f"the daemon of {machine.name} is stopped")
        try:
            await machine.ask(lambda run: run.leave())
        except Died:
            return
        except asyncio.CancelledError:
            machine.crash()
            raise
        machine.crash()
        await self._start_later(machine)

    async def _start_later(self, machine: Machine) -> None:
        await asyncio.sleep(self._span())
        await self.start(machine)

    async def start(self, machine: Machine) -> None:
        """Start a daemon, if it does not run."""
        if machine.run is None:
            self.say(f"{machine.name} starts")
            try:
                await machine.start()
            except Died:
                pass

    async def _pause(self) -> None:
        """The daemon makes no step; its containers go on."""
        machine = self._victim()
        if machine.run is None:
            return
        self.freeze(machine)
        await asyncio.sleep(self._span())
        self.go_on(machine)

    def freeze(self, machine: Machine) -> None:
        """The daemon makes no step from now on."""
        if machine.run is not None:
            self.say(f"the daemon of {machine.name} stands still")
            machine.freeze()
            self.world.frozen_until[machine.name] = float("inf")

    async def _stand_still(self) -> None:
        """The whole machine stands still; its clock does not, or does."""
        machine, span = self._victim(), self._span()
        self.world.still.add(machine.name)
        if self.random.random() < 0.3:
            self.say(f"the clock of {machine.name} will stand still, too, for {span} s")
            self.world.shaken = True
            machine.skip(span)
        await self._pause()

    def go_on(self, machine: Machine) -> None:
        """A machine that stands still does so no longer."""
        self.world.still.discard(machine.name)
        if machine.name in self.world.frozen_until:
            self.say(f"{machine.name} goes on")
            self.world.frozen_until[machine.name] = self._now()
            machine.thaw()

    @contextmanager
    def lost(self, *ways: tuple[str, str]) -> Iterator[None]:
        """Nothing arrives on these ways within the block."""
        self.say(f"lost are {ways}")
        self.world.lost_ways.update(ways)
        try:
            yield
        finally:
            self.world.lost_ways.difference_update(ways)
            self.say(f"mended are {ways}")

    @contextmanager
    def slow(self) -> Iterator[None]:
        """Each step takes some time within the block."""
        before, self.world.delay = self.world.delay, lambda: self.random.choice((0.0, 0.05, 0.2))
        try:
            yield
        finally:
            self.world.delay = before

    @contextmanager
    def busy(self) -> Iterator[None]:
        """Containers write and sync without a pause within the block."""
        before = self._thoughts, self._sync_rate
        self._thoughts, self._sync_rate = (0.0, 0.02), 1.0
        try:
            yield
        finally:
            self._thoughts, self._sync_rate = before

    async def _cut_way(self) -> None:
        one, other = self.random.sample(sorted(self.world.machines), 2)
        ways = self.random.choice((((one, other),), ((one, other), (other, one))))
        with self.lost(*ways):
            await asyncio.sleep(self._span())

    async def _cut_one_port(self) -> None:
        """Of what two nodes say to each other, questions, generations or records are lost."""
        one, other = self._victim().name, self._machine().name
        port = self.random.choice(("peer", "sender", "record"))
        with self.lost((one, f"{other}:{port}")):
            await asyncio.sleep(self._span())

    async def _isolate(self) -> None:
        """A node reaches no other one; the store perhaps."""
        name = self._victim().name
        others = [other for other in self.world.machines if other != name]
        if self.random.random() < 0.5:
            others.append("store")
        ways = [(name, other) for other in others] + [(other, name) for other in others]
        with self.lost(*ways):
            await asyncio.sleep(self._span())

    async def _store_away(self) -> None:
        name = self._victim().name
        both = ((name, "store"), ("store", name))
        ways = self.random.choice((both, both[:1], both[1:]))
        with self.lost(*ways):
            await asyncio.sleep(self._span())

    async def _store_away_for_all(self) -> None:
        with self.lost(*((name, "store") for name in self.world.machines)):
            await asyncio.sleep(self._span())

    async def _new_leader(self) -> None:
        """All leases have their full time again."""
        self.say("the store has a new leader")
        data = self.world.data
        for lease in data._leases.values():
            lease.deadline = self._now() + lease.ttl_seconds
        data._set_timer()

    async def _end_lease_early(self) -> None:
        self.end_lease(self._victim().name)

    def end_lease(self, name: str) -> None:
        """The store ends a node's lease before its time."""
        world = self.world
        lease = world.data._lease_of.get(f"alive/{name}")
        if lease is not None:
            self.say(f"the store ends the lease of {name} early")
            world.shaken = True
            world.data.revoke(lease)

    async def _slow_way(self) -> None:
        one, other = self.random.sample(sorted(self.world.machines), 2)
        self.world.slow[(one, other)] = seconds = self.random.choice((0.3, 1.5, 6.0))
        self.say(f"from {one} to {other} it takes {seconds} s")
        await asyncio.sleep(self._span())
        self.world.slow.pop((one, other), None)

    async def _late_news(self) -> None:
        name = self._victim().name
        self.world.late_news[name] = self.random.choice((0.1, 0.7, 3.0))
        self.say(f"news reaches {name} late")
        await asyncio.sleep(self._span())
        self.world.late_news.pop(name, None)

    async def _wall_clock(self) -> None:
        self.world.wall += self.random.choice((-1e6, -3.0, 3.0, 1e6))


async def world_until(what: Callable[[], bool], seconds: float) -> None:
    """Wait until something is so."""
    deadline = asyncio.get_running_loop().time() + seconds
    while not what():
        assert asyncio.get_running_loop().time() < deadline, "it never happened"
        await asyncio.sleep(0.1)


_decoded: dict[tuple[Any, ...], Any] = {}


def _decode(entry: Entry, kind: type[Any], **how: Any) -> Any:
    key = (entry.value, kind, *how.values())
    if key not in _decoded:
        if len(_decoded) > 1000:
            _decoded.clear()
        _decoded[key] = decode(entry, kind, **how)
    return _decoded[key]


def quicker(seed: int, ttl: float) -> Pace:
    """Shorter patience, and eyes that look less often: what a step costs is what a history costs."""
    chosen = random.Random(f"pace {seed}")
    look = chosen.choice((0.2, 0.4))
    usual = Pace()
    return Pace(
        agent=replace(usual.agent, prove_look=look, fence_look=look),
        copies=replace(
            usual.copies,
            patience=chosen.choice((0.5, 2.0, 5.0)),
            lag=chosen.choice((3.0, 10.0)),
            retry_limit=3.0,
            generation=chosen.choice((1.5, 3.0, 10.0)),
            most_waiting=chosen.choice((2, 8)),
        ),
        holding=replace(usual.holding, poll=look, promise=2 * ttl, promise_look=look),
        node=replace(usual.node, mount_look=look),
    )


@contextmanager
def decoded_once() -> Iterator[None]:
    """Records are values: what was read once is not read again."""
    with (
        patch("pannier.cluster.registry.decode", _decode),
        patch("pannier.cluster.catalog.decode", _decode),
    ):
        yield


def play(seed: int, plot: Plot | None = None) -> History:
    """Play the history of a seed, with a plot or with what it draws.

    Raises:
        AssertionError: something does not hold.
    """
    draw = random.Random(f"world {seed}")
    ttl = draw.choice((2.0, 4.0))

    async def work() -> History:
        driver = SparseSnapshotDriver if seed % 4 else SnapshotDriver
        pace = quicker(seed, ttl)
        if plot in QUARANTINE:
            soon = replace(pace.copies, quarantine_look=0.5, quarantine_lasts=0.5)
            pace = replace(pace, copies=soon)
        world = FailoverWorld(seed=seed, ttl=ttl, pace=pace, driver=driver)
        world.frugal = plot not in QUARANTINE
        world.repeats = draw.choice((0.0, 0.3))
        world.late_records = draw.choice((0.0, 0.0, 0.02, 0.2))
        async with world:
            for machine in world.machines.values():
                machine.up.promises._not_before = 0.0  # they are up since long
            history = History(world, seed, plot)
            try:
                await history.play()
                if draw.random() < 0.06 and not world.violations:
                    await history.end_well()
                world.inspect_strays()
            except Exception as error:
                raise AssertionError(
                    _story(seed, history, f"{type(error).__name__}: {error}")
                ) from error
            if world.violations:
                raise AssertionError(_story(seed, history, "\n".join(world.violations)))
        return history

    with decoded_once():
        return run_virtual(work())


def _story(seed: int, history: History, what: str) -> str:
    return "\n".join((*history.log[-80:], what, f"replay it with PANNIER_SEED={seed}"))
