"""A service is given a volume in place of what was imported, or gets back what it had; in virtual time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import replace

import pytest
from swarm_world import event_loop_policy

from pannier.core.errors import (
    Conflict,
    DeadlineExceeded,
    EngineUnavailable,
    NotFound,
    OutcomeUnknown,
    Stale,
)
from pannier.core.importing import ImportSource
from pannier.core.pace import SwarmPace
from pannier.core.service_spec import MountOf, Spec, with_mounts_of, with_replicas, with_volume
from pannier.core.swarm import Availability, ServiceMount, SwarmNode, SwarmService, SwarmTask
from pannier.host.clock import Clock
from pannier.swarm.service_switch import ServiceSwitches
from pannier.testing.engine import FakeSwarm, FakeSwarmData

__all__ = ["event_loop_policy"]

OLD = MountOf(ImportSource.parse("local:old"), frozenset({"old"}))
WEB = SwarmService(
    id="s1",
    name="web",
    version=1,
    constraints=(),
    mounts=(ServiceMount(source="old", driverless=True), ServiceMount(source="other")),
)


class Acting(FakeSwarm):
    """A Swarm that ends and starts the service's task as it is asked.

    Attributes:
        good: volumes with which the service runs; with others its tasks fail after a second.
        deaf: a task that does not end when it is told to.
        mishaps: what the next changes answer; Stale changes nothing, others are made.
    """

    def __init__(self) -> None:
        data = FakeSwarmData()
        data.put(
            SwarmNode(
                id="n1", hostname="n1", state="ready", availability=Availability.ACTIVE,
                role="manager", version=0,
            )
        )  # fmt: skip
        data.services = [WEB]
        super().__init__(data, node="n1")
        self.good = {"old", "new"}
        self.deaf = False
        self.mishaps: list[Exception] = []
        self.was: list[tuple[int, str]] = []
        self._tasks = 0
        self._start()

    @property
    def swarm(self) -> FakeSwarmData:
        assert self.data is not None
        return self.data

    @property
    def service(self) -> SwarmService:
        return self.swarm.services[0]

    async def replace_service(self, service: SwarmService, spec: Spec) -> None:
        mishap = self.mishaps.pop(0) if self.mishaps else None
        if isinstance(mishap, Stale | EngineUnavailable):
            raise mishap
        await super().replace_service(service, spec)
        self.was.append((self.service.replicas, self.service.mounts[0].source))
        if not self.deaf:
            self.swarm.tasks = [replace(each, state="shutdown") for each in self.swarm.tasks]
        if self.service.replicas:
            self._start()
        if mishap is not None:
            raise mishap

    async def tasks(self, *, service: str | None = None) -> list[SwarmTask]:
        if self.service.mounts[0].source not in self.good:
            last = self.swarm.tasks[-1]
            if last.state == "running":
                self.swarm.tasks[-1] = replace(last, state="failed", message="no such file")
                self._start()
        return await super().tasks(service=service)

    def _start(self) -> None:
        self._tasks += 1
        self.swarm.tasks.append(
            SwarmTask(id=f"t{self._tasks}", service="s1", node="n1", state="running", wanted=True)
        )


@pytest.fixture
def swarm() -> Acting:
    return Acting()


def switches(swarm: Acting) -> ServiceSwitches:
    clock = Clock(now=lambda: asyncio.get_running_loop().time(), unix=time.time)
    return ServiceSwitches(swarm=swarm, clock=clock, pace=SwarmPace())


async def test_it_is_stopped_and_runs_with_the_volume(swarm: Acting) -> None:
    parts = switches(swarm)
    switch = await parts.find("web", OLD)
    await parts.stop(switch, within=10)
    assert all(task.ended for task in swarm.swarm.tasks)
    known = await parts.switch(switch, "new")
    assert await parts.why_down(switch.service, known) == ""
    assert swarm.was == [(0, "old"), (1, "new")]
    new, other = swarm.service.mounts
    assert (new.source, new.driverless, other) == ("new", False, WEB.mounts[1])


@pytest.mark.parametrize(
    "mishap", [Stale("changed"), OutcomeUnknown("no answer"), EngineUnavailable("no leader")]
)
async def test_somebody_else_changes_it_or_no_answer_comes(
    swarm: Acting, mishap: Exception
) -> None:
    """Each change is made once."""
    parts = switches(swarm)
    switch = await parts.find("web", OLD)
    swarm.mishaps = [mishap]
    await parts.stop(switch, within=10)
    swarm.mishaps = [mishap]
    known = await parts.switch(switch, "new")
    assert await parts.why_down(switch.service, known) == ""
    assert swarm.was == [(0, "old"), (1, "new")]


async def test_what_does_not_come_up_gets_back_what_it_had(swarm: Acting) -> None:
    swarm.good = {"old"}
    parts = switches(swarm)
    switch = await parts.find("web", OLD)
    await parts.stop(switch, within=10)
    known = await parts.switch(switch, "new")
    assert "no such file" in await parts.why_down(switch.service, known)
    await parts.put_back(switch)
    assert swarm.service.mounts == WEB.mounts
    assert swarm.service.replicas == 1


async def test_a_task_that_does_not_end_is_waited_for_in_vain(swarm: Acting) -> None:
    swarm.deaf = True
    parts = switches(swarm)
    switch = await parts.find("web", OLD)
    with pytest.raises(DeadlineExceeded, match="30 s"):
        await parts.stop(switch, within=30)


async def test_after_a_power_cut_it_has_tasks_again(swarm: Acting) -> None:
    """Also if that is done twice, and not where somebody has given it tasks, or has removed it."""
    parts = switches(swarm)
    await parts.stop(await parts.find("web", OLD), within=10)
    for _ in range(2):
        await parts.start_again("s1", 1)
    assert swarm.was == [(0, "old"), (1, "old")]
    await parts.start_again("gone", 1)


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        (replace(WEB, mounts=(ServiceMount(source="other"),)), "does not mount local:old"),
        (replace(WEB, mounts=(ServiceMount(source="old"),)), "does not mount local:old"),
        (replace(WEB, mode="global"), "global"),
        (replace(WEB, replicas=2), "2 replicas"),
        (replace(WEB, order="start-first"), "start-first"),
    ],
)
async def test_services_that_cannot_be_switched(
    swarm: Acting, changed: SwarmService, says: str
) -> None:
    swarm.swarm.services = [changed]
    with pytest.raises(Conflict, match=says):
        await switches(swarm).find("web", OLD)
    assert swarm.was == []


async def test_one_that_runs_elsewhere_has_another_volume(swarm: Acting) -> None:
    swarm.swarm.tasks = [replace(each, node="n2") for each in swarm.swarm.tasks]
    with pytest.raises(Conflict, match="another node"):
        await switches(swarm).find("web", OLD)
    with pytest.raises(NotFound, match="did you mean web"):
        await switches(swarm).find("wep", OLD)


def spec_with(*mounts: Mapping[str, object]) -> Spec:
    return {
        "Name": "web",
        "Labels": {"a": "b"},
        "Mode": {"Replicated": {"Replicas": 1}},
        "TaskTemplate": {"ContainerSpec": {"Image": "x", "Mounts": list(mounts)}, "Networks": [1]},
    }


BIND = {
    "Type": "bind",
    "Source": "/srv/data",
    "Target": "/a",
    "BindOptions": {"Propagation": "rshared"},
}
LOCAL = {
    "Type": "volume", "Source": "old", "Target": "/b", "ReadOnly": True,
    "VolumeOptions": {"NoCopy": True, "Labels": {"l": "1"}, "DriverConfig": {"Name": "local"}},
}  # fmt: skip


def test_a_local_volume_becomes_ours_and_all_else_stays() -> None:
    former = spec_with(BIND, LOCAL)
    changed = with_volume(former, OLD, "new")
    ours = {
        "Type": "volume", "Source": "new", "Target": "/b", "ReadOnly": True,
        "VolumeOptions": {"NoCopy": True, "DriverConfig": {"Name": "pannier"}},
    }  # fmt: skip
    assert changed == spec_with(BIND, ours)
    assert with_mounts_of(with_replicas(changed, 0), former) == {
        **former,
        "Mode": {"Replicated": {"Replicas": 0}},
    }


def test_a_directory_becomes_ours() -> None:
    old = MountOf(ImportSource.parse("dir:/srv/data"), frozenset({"/srv/data"}))
    changed = with_volume(spec_with(BIND, LOCAL), old, "new")
    ours = {
        "Type": "volume", "Source": "new", "Target": "/a",
        "VolumeOptions": {"DriverConfig": {"Name": "pannier"}},
    }  # fmt: skip
    assert changed == spec_with(ours, LOCAL)
