"""Random histories: users, crashes, partitions and outages on three nodes, from one seed.

The same seed gives the same history, step by step. See :meth:`world.World.inspect` for what is
checked after each step; at the end everything is mended, and every volume must be of use everywhere.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any

from fake_driver import SingleTreeDriver, SnapshotDriver, SparseSnapshotDriver
from machines import SenderOf
from world import Died, Fault, Machine, Step, World, run_virtual

from pannier.core.errors import PannierError
from pannier.core.pace import AgentPace, HoldingPace, NodePace, Pace
from pannier.transport.base import Offer

NAMES = ("web", "db")
DRIVERS = (SparseSnapshotDriver, SingleTreeDriver, SparseSnapshotDriver, SnapshotDriver)
OPERATIONS = 24
SPANS_SECONDS = (12.0, 80.0, 240.0)
"""Over which time the operations are spread: all at once, or one by one."""
REFUSED = (PannierError, Died)
"""What a user may hear while things fail."""


class History:
    """One history."""

    def __init__(self, world: World, seed: int) -> None:
        self.world = world
        self.random = random.Random(f"history {seed}")
        self.log: list[str] = []
        self.done = 0
        self._values = 0
        self._uses = 0
        world.faults = self._fault
        world.delay = self._delay
        self._fault_rate = self.random.choice((0.0, 0.005, 0.02))
        self._commit_fault_rate = self.random.choice((0.01, 0.05, 0.4))
        self._span = self.random.choice(SPANS_SECONDS)
        self._pauses = self.random.choice(((0.0,), (0.0, 0.01), (0.0, 0.001, 0.1, 2.0)))

    def _delay(self) -> float:
        return self.random.choice(self._pauses)

    def _fault(self, step: Step) -> Fault | None:
        rate = self._commit_fault_rate if step.is_commit else self._fault_rate
        if self.random.random() >= rate:
            return None
        choices = [Fault.CUT_BEFORE, Fault.CUT_AFTER]
        if step.is_commit:
            choices += [Fault.LOSE_REQUEST, Fault.LOSE_ANSWER, Fault.LATE, Fault.LATE] * 2
        elif step.label.startswith(("peer.", "sender.", "record.")):
            choices += [Fault.LOSE_REQUEST, Fault.LOSE_ANSWER] * 2
        fault = self.random.choice(choices)
        self._say(f"{step.of}:{step.label}: {fault.value}")
        return fault

    def _say(self, what: str) -> None:
        now = asyncio.get_running_loop().time()
        self.log.append(f"{now:9.3f} step {len(self.world.steps)}: {what}")

    async def play(self) -> None:
        """From the first operation to the last look."""
        for name in NAMES:
            await self._try(self.world.create(self._machine(), name), f"create {name}")
        doings: list[tuple[Callable[[], Awaitable[None]], int]] = [
            (self._use, 10),
            (self._move, 4),
            (self._remove, 2),
            (self._restore, 2),
            (self._create, 3),
            (self._drain, 1),
            (self._power_off, 2),
            (self._crash_daemon, 2),
            (self._partition, 2),
            (self._store_outage, 2),
            (self._confused_sender, 3),
            (self._clock_jump, 1),
        ]
        kinds, weights = zip(*doings, strict=True)
        chosen = self.random.choices(kinds, weights, k=OPERATIONS)
        await asyncio.gather(*(self._at_some_time(kind) for kind in chosen))
        await self._end_well()

    async def _at_some_time(self, doing: Callable[[], Awaitable[None]]) -> None:
        await asyncio.sleep(self.random.uniform(0, self._span))
        await doing()

    def _machine(self) -> Machine:
        return self.random.choice(tuple(self.world.machines.values()))

    def _name(self) -> str:
        return self.random.choice(NAMES)

    async def _try(self, asked: Awaitable[object], what: str) -> bool:
        self._say(f"{what} begins")
        try:
            await asked
        except REFUSED as error:
            self._say(f"{what}: {type(error).__name__}: {error}")
            return False
        self.done += 1
        self._say(f"{what} is done")
        return True

    # -- users ----------------------------------------------------------------------------------

    async def _use(self) -> None:
        """A container, from its Mount to its Unmount; the last is sometimes never heard of."""
        world, machine, name = self.world, self._machine(), self._name()
        self._uses += 1
        mount_id = f"m{self._uses}"
        boots = machine.boots
        if not await self._try(
            world.mount(machine, name, mount_id), f"{machine.name} mounts {name}"
        ):
            return
        table = machine.table
        await asyncio.sleep(self.random.choice((0.0, 1.0, 20.0)))
        if machine.boots != boots:
            return  # the engine died too
        container = world.start_container(machine, name)
        for _ in range(self.random.randrange(5)):
            if container not in table.containers:
                return
            self._values += 1
            file, value = self.random.choice("fgh"), str(self._values).encode()
            world.write(machine, container, file, value)
            await asyncio.sleep(self.random.choice((0.0, 0.5, 7.0, 40.0)))
            if self.random.random() < 0.2:  # docker cp: the same id again, and given back
                await self._try(world.mount(machine, name, mount_id), f"docker cp of {name}")
                await self._try(world.unmount(machine, name, mount_id), f"docker cp of {name} ends")
        world.stop_container(machine, container)
        if self.random.random() < 0.8:
            await self._try(
                world.unmount(machine, name, mount_id), f"{machine.name} unmounts {name}"
            )

    async def _move(self) -> None:
        machine, name, target = self._machine(), self._name(), self._machine().name
        wait = self.random.choice((1.0, 30.0, 120.0))
        await self._try(
            self.world.move(machine, name, target, wait_seconds=wait), f"move {name} to {target}"
        )

    async def _create(self) -> None:
        machine, name = self._machine(), self._name()
        options = self.random.choice(({}, {"nodes": self._machine().name}))
        await self._try(self.world.create(machine, name, **options), f"create {name}")

    async def _remove(self) -> None:
        name = self._name()
        await self._try(self.world.remove(self._machine(), name), f"remove {name}")

    async def _restore(self) -> None:
        name = self._name()
        await self._try(self.world.restore(self._machine(), name), f"restore {name}")

    async def _drain(self) -> None:
        asked, name = self._machine(), self._machine().name

        def drain(drained: bool) -> Coroutine[Any, Any, object]:
            return asked.ask(lambda run: run.service.drain_node(name, drained=drained))

        for drained in (True, False):
            await self._try(drain(drained), f"{'drain' if drained else 'undrain'} {name}")
            await asyncio.sleep(100.0)

    # -- faults ---------------------------------------------------------------------------------

    async def _power_off(self) -> None:
        machine = self._machine()
        self._say(f"{machine.name} loses its power")
        machine.power_off()
        await self._start_later(machine)

    async def _crash_daemon(self) -> None:
        machine = self._machine()
        self._say(f"the daemon of {machine.name} is killed")
        machine.crash()
        await self._start_later(machine)

    async def _start_later(self, machine: Machine) -> None:
        await asyncio.sleep(self.random.choice((0.0, 2.0, 30.0)))
        await self._start(machine)

    async def _start(self, machine: Machine) -> None:
        if machine.run is None:
            await self._try(machine.start(), f"{machine.name} starts")

    async def _partition(self) -> None:
        name = self._machine().name
        self._say(f"{name} is isolated")
        self.world.isolate(name)
        await asyncio.sleep(self.random.choice((1.0, 15.0, 40.0)))
        self.world.mend_links()

    async def _store_outage(self) -> None:
        names = self.random.choice(((), (self._machine().name,)))
        self._say(f"the store cannot be reached from {names or 'anywhere'}")
        self.world.cut_store(*names)
        await asyncio.sleep(self.random.choice((0.5, 10.0, 60.0)))
        self.world.mend_store()

    async def _confused_sender(self) -> None:
        """A node that does not hold a volume offers a generation all the same."""
        world, machine, target = self.world, self._machine(), self._machine()
        record = world.record(self._name())
        if record is None or machine.run is None or record.grant.node == machine.name:
            return
        home = machine.disk.homes.get(record.id)
        if home is None or not home.generations or machine is target:
            return
        offer = Offer(
            volume_id=record.id,
            volume_name=record.name,
            driver=record.spec.driver,
            epoch=record.grant.epoch - 1,
            generation=max(home.generations),
        )
        node = machine.run.catalog.node(target.name)
        assert node is not None
        what = f"{machine.name} offers {offer.generation} of {record.name} to {target.name}"
        sending = machine.ask(lambda run: SenderOf(run).send(offer, to=node, driver=run.driver))
        if await self._try(sending, what):
            world.violations.append(f"{what}, which it does not hold, and it was taken")

    async def _clock_jump(self) -> None:
        self.world.wall += self.random.choice((-1e6, 1e6))
        self._say("the wall clock jumps")

    # -- the end --------------------------------------------------------------------------------

    async def _end_well(self) -> None:
        """Mend everything; then each volume must serve on each node, with all its bytes."""
        world = self.world
        world.faults = lambda step: None
        await asyncio.sleep(5.0)  # a fault that was chosen may still be about to happen
        self._say("all is mended")
        world.mend_links()
        world.mend_store()
        for machine in world.machines.values():
            await self._start(machine)
            for container in tuple(machine.table.containers):
                world.stop_container(machine, container)
        await asyncio.sleep(150.0)
        for name in NAMES:
            if world.record(name) is None:
                continue
            for machine in world.machines.values():
                self._say(f"{machine.name} uses {name} at last")
                await world.write_once(machine, name, str(len(self.log)).encode())


PACE = Pace(
    agent=AgentPace(prove_look=5.0, disk_look=5.0),
    holding=HoldingPace(promise_look=5.0),
    node=NodePace(trash=120.0),
)
"""The trash is short, and nodes look seldom for what these volumes of one copy never need."""


def play(seed: int, directory: Path) -> tuple[History, World]:
    """Play the history of a seed. Raises AssertionError where something does not hold."""

    async def work() -> tuple[History, World]:
        driver = DRIVERS[seed % len(DRIVERS)]
        world = World(directory, driver=driver, seed=seed, with_upkeep=True, pace=PACE)
        async with world:
            history = History(world, seed)
            try:
                await history.play()
            except Exception as error:
                raise AssertionError(
                    _story(seed, history, f"{type(error).__name__}: {error}")
                ) from error
            if world.violations:
                raise AssertionError(_story(seed, history, "\n".join(world.violations)))
        return history, world

    return run_virtual(work())


def _story(seed: int, history: History, what: str) -> str:
    return "\n".join((*history.log[-60:], what, f"replay it with PANNIER_SEED={seed}"))
