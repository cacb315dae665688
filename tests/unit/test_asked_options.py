"""Services that ask for a volume with other options than it has: what is taken over, and what is told, once."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest
import structlog
from structlog.testing import capture_logs
from world import Fault, Machine, World, event_loop_policy

from pannier.copies.option_changes import ASKED, CHANGED, OptionChanges
from pannier.core.pace import NodePace, SwarmPace
from pannier.core.swarm import Availability, ServiceMount, SwarmNode, SwarmService
from pannier.core.volume import Durability, Volume
from pannier.host.clock import Clock
from pannier.node.asked_by_containers import AskedByContainers
from pannier.swarm.asked_options import AskedOptions, declared_now
from pannier.testing.engine import FakeSwarmData

__all__ = ["event_loop_policy"]
pytestmark = pytest.mark.filterwarnings("ignore:Overriding the .event_loop_policy. fixture")


def service(name: str, source: str, **options: str) -> SwarmService:
    mounts = (ServiceMount(source=source, options=options),)
    return SwarmService(id=f"id-{name}", name=name, constraints=(), mounts=mounts)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    """Both machines are managers; ``a`` leads. ``vol`` is on ``b``."""
    swarm = FakeSwarmData()
    async with World(tmp_path) as world:
        for machine in (world.a, world.b):
            node = SwarmNode(
                id=f"id-{machine.name}",
                hostname=machine.name,
                state="ready",
                availability=Availability.ACTIVE,
                role="manager",
                version=0,
                leader=machine is world.a,
            )
            swarm.put(node)
            machine.engine.swarm.data, machine.engine.swarm.node = swarm, node.id
        await world.create(world.b, "vol")
        await asyncio.sleep(1)
        yield world


def swarm_of(world: World) -> FakeSwarmData:
    data = world.a.engine.swarm.data
    assert data is not None
    return data


def changes_of(machine: Machine) -> OptionChanges:
    node, clock = machine.up.node, Clock(now=machine.clock, unix=time.time)
    return OptionChanges(cluster=node.cluster, custody=node.custody, clock=clock)


@asynccontextmanager
async def at_work(machine: Machine) -> AsyncIterator[None]:
    """The work runs, which begins as after a start."""
    node = machine.up.node
    work = AskedOptions(
        cluster=node.cluster,
        swarm=machine.engine.swarm,
        changes=changes_of(machine),
        pace=SwarmPace(),
    )
    task = asyncio.create_task(work.run())
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def look(machine: Machine, *, seconds: float = 60.0) -> list[str]:
    """Work for a while. Returns what it logged of what stays."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    with capture_logs() as lines:
        async with at_work(machine):
            await asyncio.sleep(seconds)
    told = [line for line in lines if line["event"] == "volume.asked-otherwise"]
    return [f"{line['by']} {line['volume']} {line['difference']}" for line in told]


def record(world: World) -> Volume:
    found = world.record("vol")
    assert found is not None
    return found


def history(world: World, what: str = ASKED) -> list[str]:
    return [line.detail for line in record(world).history if line.what == what]


async def test_what_stays_is_told_once(world: World) -> None:
    swarm = swarm_of(world)
    swarm.services = [
        service("web", "{{.Service.Labels}}", size="2G"),
        service("vol", "{{.Service.Name}}", size="1G"),
        service("same", "vol", copies="1"),
        service("none", "vol"),
        service("new", "other", copies="2"),
    ]
    wanted = "size is none, not 1G (it stays as it was created)"
    assert await look(world.a) == [f"service vol vol {wanted}"]
    assert history(world) == [f"by service vol: {wanted}"]
    assert await look(world.a) == [f"service vol vol {wanted}"], "a new run of the daemon"
    assert history(world) == [f"by service vol: {wanted}"]
    swarm.services.append(service("late", "vol", mode="0700"))
    assert len(await look(world.a)) == 2
    assert len(history(world)) == 2
    assert history(world, CHANGED) == []


async def test_a_second_copy_is_made_when_a_service_is_deployed_that_asks_for_it(
    world: World,
) -> None:
    async with at_work(world.a):
        await asyncio.sleep(1.0)
        await swarm_of(world).deploy(service("web", "vol", copies="2"))
        await asyncio.sleep(1.0)
        spec = record(world).spec
        assert (spec.copies, spec.durability) == (2, Durability.FSYNC), "before the next look"
    assert len(record(world).replicas) == 1
    changed = ["by service web: copies is 2, was 1, durability is fsync, was none"]
    assert history(world, CHANGED) == changed
    assert await look(world.a) == []
    assert history(world, CHANGED) == changed
    assert history(world) == []


async def test_two_services_that_contradict_each_other_never_take_turns(world: World) -> None:
    swarm_of(world).services = [
        service("one", "vol", copies="2", interval="5s"),
        service("two", "vol", interval="9s"),
    ]
    assert len(await look(world.a)) == 2
    assert record(world).spec.interval == 1.0
    before = record(world)
    await look(world.a, seconds=600.0)
    assert record(world) == before


async def test_what_a_person_sets_stays_until_the_service_says_something_new(world: World) -> None:
    swarm_of(world).services = [service("web", "vol", copies="2", interval="5s")]
    await look(world.a)
    await world.b.up.service.by("anna").set_volume("vol", {"interval": "2s"})
    assert history(world, CHANGED)[-1] == "by anna: interval is 2s, was 5s"
    assert await look(world.a) == [
        "service web vol interval is 2s, not 5s (it was set otherwise since)"
    ]
    swarm_of(world).services = [service("web", "vol", copies="2", interval="6s")]
    await look(world.a)
    assert record(world).spec.interval == 6.0


async def test_only_the_leader_s_daemon_works(world: World) -> None:
    swarm_of(world).services = [service("web", "vol", size="1G", labels="a=b")]
    assert await look(world.b) == []
    assert record(world).spec.labels == {}
    swarm = swarm_of(world)
    for node in list(swarm.nodes.values()):
        swarm.put(replace(node, leader=node.hostname == "b"))
    assert len(await look(world.b)) == 1
    assert record(world).spec.labels == {"a": "b"}
    assert await look(world.a) == []
    assert len(history(world)) == 1


async def test_what_could_not_be_written_is_written_later(world: World) -> None:
    swarm_of(world).services = [service("web", "vol", size="1G", labels="a=b")]
    world.cut_store("a")
    await look(world.a)
    assert (history(world), history(world, CHANGED)) == ([], [])
    world.mend_store()
    await look(world.a)
    assert (len(history(world)), len(history(world, CHANGED))) == (1, 1)


@pytest.mark.parametrize("fault", [Fault.LOSE_REQUEST, Fault.LOSE_ANSWER, Fault.LATE])
async def test_a_change_without_an_answer_is_made_once(world: World, fault: Fault) -> None:
    swarm_of(world).services = [service("web", "vol", copies="2")]
    world.fail_at_label("store.commit", fault, of="a")
    await look(world.a)
    assert record(world).spec.copies == 2
    assert len(history(world, CHANGED)) == 1


async def test_a_hand_over_beside_it_loses_neither(world: World) -> None:
    """Both change the record: whoever comes second reads it again."""
    swarm_of(world).services = [service("web", "vol", copies="2")]
    async with at_work(world.a):
        await world.mount(world.c, "vol")
        await asyncio.sleep(30.0)
    found = record(world)
    assert (found.grant.node, found.spec.copies) == ("c", 2)
    assert len(found.replicas) == 1
    assert found.grant.node not in found.replicas


async def test_options_that_cannot_be_read_are_told_and_no_leader_is_waited_for(
    world: World,
) -> None:
    swarm_of(world).services = [service("web", "vol", copis="2"), service("db", "vol", copies="x")]
    swarm_of(world).has_leader = False
    assert await look(world.a) == []
    swarm_of(world).has_leader = True
    told = await look(world.a)
    assert "copies=x is not allowed" in told[0]
    assert "unknown option 'copis'" in told[1]


async def test_an_engine_that_is_in_no_swarm_is_left_alone(world: World) -> None:
    world.a.engine.swarm.data = None
    assert await look(world.a) == []


async def test_doctor_tells_what_stays_and_what_is_on_its_way(world: World) -> None:
    swarm_of(world).services = [service("web", "vol", copies="2", size="1G")]
    findings = await world.a.up.service.doctor()
    stays, coming = [each for each in findings if "service web" in each.what]
    assert {(each.level, each.subject) for each in (stays, coming)} == {("warning", "volume vol")}
    assert "size is none, not 1G" in stays.what
    assert "being changed by service web: copies is 2, was 1" in coming.what
    await look(world.a)
    findings = await world.a.up.service.doctor()
    assert [each.what for each in findings if "service web" in each.what] == [stays.what]
    swarm = world.b.engine.swarm
    swarm.data = None
    assert await declared_now(swarm, world.b.up.node.cluster) == []


async def test_what_a_container_asks_for_is_told_once_and_not_applied(world: World) -> None:
    node, engine = world.c.up.node, world.c.engine
    engine.declared = [ServiceMount(source="vol", options={"copies": "2"})] * 2
    work = AskedByContainers(
        engine=engine, cluster=node.cluster, changes=changes_of(world.c), pace=NodePace()
    )
    task = asyncio.create_task(work.run())
    await asyncio.sleep(60.0)
    task.cancel()
    told = (
        "copies is 1, not 2 (a container's options are not applied; pannier volume set does that)"
    )
    assert history(world) == [f"by a container on c: {told}"]
    assert record(world).spec.copies == 1
    findings = await world.c.up.service.doctor()
    (finding,) = [each for each in findings if "a container on c" in each.what]
    assert (finding.level, finding.subject) == ("warning", "volume vol")
