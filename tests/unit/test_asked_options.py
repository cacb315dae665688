"""Services that ask for a volume with other options than it has: told once in the log and the history, and by doctor."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
import structlog
from structlog.testing import capture_logs
from world import Machine, World, event_loop_policy

from pannier.core.pace import SwarmPace
from pannier.core.swarm import Availability, ServiceMount, SwarmNode, SwarmService
from pannier.swarm.asked_options import ASKED, AskedOptions, asked_otherwise
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


async def look(machine: Machine, *, seconds: float = 60.0) -> list[str]:
    """Run the work for a while, which begins as after a start. Returns what it logged."""
    node = machine.up.node
    work = AskedOptions(
        cluster=node.cluster,
        custody=node.custody,
        swarm=machine.engine.swarm,
        pace=SwarmPace(),
    )
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    with capture_logs() as lines:
        task = asyncio.create_task(work.run())
        await asyncio.sleep(seconds)
        task.cancel()
    told = [line for line in lines if line["event"] == "volume.asked-otherwise"]
    return [f"{line['service']} {line['volume']} {line['difference']}" for line in told]


def history(world: World) -> list[str]:
    record = world.record("vol")
    assert record is not None
    return [line.detail for line in record.history if line.what == ASKED]


async def test_each_difference_is_told_once(world: World) -> None:
    swarm = swarm_of(world)
    swarm.services = [
        service("web", "{{.Service.Labels}}", copies="2"),
        service("vol", "{{.Service.Name}}", copies="2", size="1G"),
        service("same", "vol", copies="1"),
        service("none", "vol"),
        service("new", "other", copies="2"),
    ]
    wanted = "copies is 1, not 2, size is none, not 1G"
    assert await look(world.a) == [f"vol vol {wanted}"]
    assert history(world) == [f"by service vol: {wanted}"]
    assert await look(world.a) == [f"vol vol {wanted}"], "a new run of the daemon"
    assert history(world) == [f"by service vol: {wanted}"]
    swarm.services.append(service("late", "vol", copies="3"))
    assert len(await look(world.a)) == 2
    assert history(world)[1:] == ["by service late: copies is 1, not 3"]


async def test_only_the_leader_s_daemon_tells_it(world: World) -> None:
    swarm_of(world).services = [service("web", "vol", copies="2")]
    assert await look(world.b) == []
    swarm = swarm_of(world)
    for node in list(swarm.nodes.values()):
        swarm.put(replace(node, leader=node.hostname == "b"))
    assert len(await look(world.b)) == 1
    assert await look(world.a) == []
    assert len(history(world)) == 1


async def test_what_could_not_be_written_is_written_later(world: World) -> None:
    swarm_of(world).services = [service("web", "vol", copies="2")]
    world.cut_store("a")
    assert len(await look(world.a)) == 1
    assert history(world) == []
    world.mend_store()
    await look(world.a)
    assert len(history(world)) == 1


async def test_options_that_cannot_be_read_are_told_and_no_leader_is_waited_for(
    world: World,
) -> None:
    swarm_of(world).services = [service("web", "vol", copis="2"), service("db", "vol", copies="x")]
    swarm_of(world).has_leader = False
    assert await look(world.a) == []
    swarm_of(world).has_leader = True
    told = await look(world.a)
    assert "unknown option 'copis'" in told[0]
    assert "copies=x is not allowed" in told[1]


async def test_doctor_warns_of_it(world: World) -> None:
    swarm_of(world).services = [service("web", "vol", copies="2")]
    findings = await world.a.up.service.doctor()
    (finding,) = [each for each in findings if "service web" in each.what]
    assert (finding.level, finding.subject) == ("warning", "volume vol")
    assert "copies is 1, not 2" in finding.what
    swarm = world.b.engine.swarm
    swarm.data = None
    assert await asked_otherwise(swarm, world.b.up.catalog) == []
