"""The service that uses a volume is stopped, and runs again whatever happens; a Swarm in memory, in virtual time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio
from swarm_world import SwarmWorld, event_loop_policy, volume

from pannier.core.errors import (
    Conflict,
    DeadlineExceeded,
    InvalidInput,
    NotFound,
    OutcomeUnknown,
    PannierError,
    Stale,
    StorageError,
    Unavailable,
    VolumeInUse,
)
from pannier.core.pace import Pace
from pannier.core.service_stop import STOPPED, Stop, labels_with, stop_by, stop_of
from pannier.core.swarm import ServiceMount, SwarmService, SwarmTask
from pannier.host.clock import Clock
from pannier.host.state_files import UnsyncedFile
from pannier.swarm.hooks import Hooks
from pannier.swarm.service_stops import ServiceStops, stopped_services
from pannier.swarm.services import Services
from pannier.testing.engine import FakeEngine, FakeSwarm

__all__ = ["event_loop_policy"]

PACE = Pace().swarm


class ScalingSwarm(FakeSwarm):
    """It ends the tasks of a service that is scaled to nothing after its grace, and begins new ones.

    Attributes:
        mishaps: what the next changes of a service answer; Stale changes nothing, others are made.
        grace: how long tasks take to end.
        refused: the id of a service that Swarm does not change.
    """

    mishaps: list[PannierError]
    refused = ""
    grace = 5.0

    async def scale_service(
        self, service: SwarmService, *, replicas: int, labels: Mapping[str, str]
    ) -> None:
        mishap = self.mishaps.pop(0) if self.mishaps else None
        if isinstance(mishap, Stale):
            raise mishap
        if service.id == self.refused:
            raise InvalidInput("Swarm refuses it: network gone not found")
        await super().scale_service(service, replicas=replicas, labels=labels)
        assert self.data is not None
        self.data.tasks[:] = [replace(task, wanted=False) for task in self.data.tasks]
        if replicas:
            self.data.tasks.append(task_of(service.id))
        else:
            asyncio.get_running_loop().call_later(self.grace, self.end)
        if mishap is not None:
            raise mishap

    def end(self) -> None:
        assert self.data is not None
        self.data.tasks[:] = [
            task if task.wanted else replace(task, state="shutdown") for task in self.data.tasks
        ]


def task_of(service: str) -> SwarmTask:
    return SwarmTask(id="t", service=service, node="id-a", state="running", wanted=True, slot=1)


class StopWorld:
    """A service ``ci`` with the volume ``home``, which its task uses while it runs."""

    def __init__(self, swarms: SwarmWorld, directory: Path) -> None:
        self.swarms = swarms
        self.data = swarms.swarm
        self.swarm = ScalingSwarm(self.data, node="id-a")
        self.swarm.mishaps = []
        self.rolled_back = 0
        self.directory = directory
        self.stops = self.started()
        self.data.services.append(
            SwarmService(
                id="id-ci",
                name="ci",
                constraints=(),
                mounts=(ServiceMount(source="home"),),
                replicas=2,
                labels={"mine": "1"},
            )
        )
        self.data.tasks.append(task_of("id-ci"))

    def started(self) -> ServiceStops:
        """What a daemon on node a has of it."""
        clock = Clock(now=asyncio.get_running_loop().time, unix=time.time)
        catalog = self.swarms.catalogs["a"]
        hooks = Hooks(
            node="a", engine=FakeEngine(), catalog=catalog, file=UnsyncedFile(self.directory / "h"), pace=PACE,
        )  # fmt: skip
        services = Services(
            node="a", swarm=self.swarm, catalog=catalog, hooks=hooks, peers=self, cluster=self, clock=clock, pace=PACE,  # type: ignore[arg-type]
        )  # fmt: skip
        return ServiceStops(node="a", swarm=self.swarm, services=services, clock=clock, pace=PACE)

    @property
    def service(self) -> SwarmService:
        return next(each for each in self.data.services if each.name == "ci")

    async def work(self) -> str:
        """Take the volume back."""
        if not all(task.ended for task in self.data.tasks):
            raise VolumeInUse("volume home is in use on node a by ci.1")
        assert self.service.replicas == 0
        self.rolled_back += 1
        return "done"

    async def roll_back(self, work: Callable[[], object] | None = None) -> str:
        return await self.stops.around("home", work or self.work, actor="anna")  # type: ignore[arg-type]

    def runs_as_before(self) -> bool:
        return (self.service.replicas, self.service.labels) == (2, {"mine": "1"})


@pytest_asyncio.fixture
async def world(tmp_path: Path) -> AsyncIterator[StopWorld]:
    async with SwarmWorld(tmp_path, "abc", managers=1) as swarms:
        await swarms.put_volume(volume("home", "a", "b"))
        while not swarms.catalogs["a"].volumes():
            await asyncio.sleep(0.1)
        yield StopWorld(swarms, tmp_path)


async def test_it_is_stopped_and_runs_again_as_before(world: StopWorld) -> None:
    assert await world.roll_back() == "done"
    assert world.rolled_back == 1
    assert world.runs_as_before()


async def test_it_runs_again_when_the_work_fails(world: StopWorld) -> None:
    async def fail() -> None:
        raise StorageError("the disk refused")

    with pytest.raises(StorageError):
        await world.roll_back(fail)
    assert world.runs_as_before()


async def test_it_runs_again_when_it_does_not_end(world: StopWorld) -> None:
    world.swarm.grace = PACE.stop + 60
    with pytest.raises(DeadlineExceeded, match=r"service ci has not ended within 300 s: .*ci\.1"):
        await world.roll_back()
    assert world.runs_as_before()
    assert world.rolled_back == 0


async def test_somebody_else_who_uses_the_volume_is_not_waited_for_so_long(
    world: StopWorld,
) -> None:
    async def used() -> None:
        raise VolumeInUse("volume home is in use on node a by other")

    began = asyncio.get_running_loop().time()
    with pytest.raises(VolumeInUse, match="by other"):
        await world.roll_back(used)
    assert asyncio.get_running_loop().time() - began < world.swarm.grace + PACE.stop_rest + 2
    assert world.runs_as_before()


@pytest.mark.parametrize("at", [0, 1])
@pytest.mark.parametrize("mishap", [Stale("changed"), OutcomeUnknown("no answer")])
async def test_swarm_gives_no_answer_or_somebody_is_faster(
    world: StopWorld, mishap: PannierError, at: int
) -> None:
    """``at``: when it is stopped, or when it is started."""

    async def work() -> str:
        world.swarm.mishaps.extend([mishap] * at)
        return await world.work()

    world.swarm.mishaps.extend([mishap] * (1 - at))
    assert await world.roll_back(work) == "done"
    assert world.runs_as_before()


def leave_stopped(world: StopWorld, node: str) -> None:
    """As a daemon on ``node`` leaves it that has died in between."""
    stopped = replace(world.service, replicas=0, labels={"mine": "1", STOPPED: f"2 {node}"})
    world.data.services[:] = [stopped]
    world.data.tasks.clear()


async def test_the_node_dies_in_between_and_starts_it_when_it_is_back(world: StopWorld) -> None:
    leave_stopped(world, "a")
    world.data.has_leader = False
    run = asyncio.create_task(world.started().run())
    await asyncio.sleep(60)
    assert world.service.replicas == 0
    world.data.has_leader = True
    await asyncio.sleep(60)
    assert world.runs_as_before()
    assert run.done()


async def test_one_that_cannot_be_started_does_not_keep_the_others_from_it(
    world: StopWorld,
) -> None:
    leave_stopped(world, "a")
    bad = replace(world.service, id="id-bad", name="bad")
    world.data.services.insert(0, bad)
    world.swarm.refused = "id-bad"
    started = ServiceStops(
        node="a", swarm=world.swarm, services=world.stops._services, clock=world.stops._clock, pace=PACE
    )  # fmt: skip
    run = asyncio.create_task(started.run())
    await asyncio.sleep(60)
    assert world.runs_as_before()
    assert not run.done(), "it is tried again"
    world.swarm.refused = ""
    await asyncio.sleep(60)
    assert [each.replicas for each in world.data.services] == [2, 2]
    assert run.done()


async def test_the_doctor_tells_how_a_person_goes_on(world: StopWorld) -> None:
    assert [each async for each in stopped_services(world.swarm)] == []
    leave_stopped(world, "b")
    (found,) = [each async for each in stopped_services(world.swarm)]
    assert (found.subject, found.level) == ("service ci", "warning")
    assert "node b leads" in found.what
    assert found.remedy.endswith("docker service scale ci=2")
    assert [each async for each in stopped_services(FakeSwarm(world.data, node="id-b"))] == []


async def test_what_another_node_has_stopped_is_left_to_it(world: StopWorld) -> None:
    leave_stopped(world, "b")
    await world.started().run()
    assert world.service.replicas == 0


async def test_the_same_command_again_brings_it_to_its_end(world: StopWorld) -> None:
    leave_stopped(world, "b")
    assert await world.roll_back() == "done"
    assert world.runs_as_before()


async def test_what_a_person_has_stopped_stays_stopped(world: StopWorld) -> None:
    world.data.services[:] = [replace(world.service, replicas=0)]
    world.data.tasks.clear()
    assert await world.roll_back() == "done"
    assert world.service.replicas == 0


async def test_what_a_person_starts_meanwhile_runs_as_that_one_says(world: StopWorld) -> None:
    """And nothing is left that would be taken for ours when that person stops it later."""

    async def work() -> str:
        done = await world.work()
        world.data.services[:] = [replace(world.service, replicas=5, version=99)]
        assert STOPPED in world.service.labels
        return done

    assert await world.roll_back(work) == "done"
    assert world.service.replicas == 5
    assert STOPPED not in world.service.labels


async def test_one_that_cannot_be_started_is_told(world: StopWorld) -> None:
    async def work() -> str:
        done = await world.work()
        world.data.has_leader = False
        return done

    with pytest.raises(
        Unavailable, match="volume home was rolled back, and service ci could not be started"
    ) as caught:
        await world.roll_back(work)
    assert caught.value.remedy == "start it: docker service scale ci=2"


@pytest.mark.parametrize(
    ("raised", "says"),
    [
        (OutcomeUnknown("no answer"), "it is not known whether volume home was rolled back"),
        (KeyError("a fault of ours"), "it is not known whether volume home was rolled back"),
        (StorageError("the disk refused"), "volume home was not rolled back"),
    ],
)
async def test_what_became_of_the_volume_is_said_only_where_it_is_known(
    world: StopWorld, raised: Exception, says: str
) -> None:
    async def work() -> str:
        await world.work()
        world.data.has_leader = False
        raise raised

    with pytest.raises(Unavailable, match=f"^{says}, and service ci could not be") as caught:
        await world.roll_back(work)
    assert caught.value.remedy.endswith("start it: docker service scale ci=2")
    assert ("pannier volume history home" in caught.value.remedy) is ("not known" in says)


async def test_what_is_refused(world: StopWorld) -> None:
    with pytest.raises(Conflict, match="no service of this Swarm uses volume other"):
        await world.stops.around("other", world.work, actor="anna")
    other = replace(world.service, id="id-two", name="two")
    world.data.services.append(other)
    with pytest.raises(Conflict, match="several services use volume home: ci, two"):
        await world.roll_back()
    world.data.services[:] = [replace(other, mode="global")]
    world.data.tasks.clear()
    with pytest.raises(Conflict, match="service two is global"):
        await world.roll_back()
    assert world.rolled_back == 0


async def test_only_one_at_a_time(world: StopWorld) -> None:
    first = asyncio.create_task(world.roll_back())
    await asyncio.sleep(1)
    with pytest.raises(Conflict, match="stopped for something else"):
        await world.roll_back()
    assert await first == "done"


async def test_one_that_is_removed_meanwhile_is_not_started(world: StopWorld) -> None:
    async def work() -> str:
        world.data.services.clear()
        return "done"

    assert await world.roll_back(work) == "done"
    with pytest.raises(NotFound):
        await world.stops._start("id-ci")


def test_the_label_says_how_it_ran() -> None:
    service = SwarmService(name="ci", constraints=(), replicas=3, labels={"mine": "1"})
    stop = stop_by(service, "a")
    assert stop == Stop(3, "a")
    stopped = replace(service, replicas=0, labels=labels_with(service, stop))
    assert stop_of(stopped) == stop
    assert stop_of(replace(stopped, replicas=3)) is None, "somebody has started it"
    assert labels_with(stopped, None) == service.labels
    for text in ("", "a", "3", "x a", "-3 a"):
        assert stop_of(replace(stopped, labels={STOPPED: text})) is None
