"""Where a volume can start, as Swarm is told; and services that may run nowhere near their data."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest
from swarm_world import SwarmWorld, event_loop_policy, volume

from pannier.core.constraints import matches
from pannier.core.errors import EngineUnavailable
from pannier.core.swarm import Availability, ServiceMount, SwarmNode, SwarmService, volume_label
from pannier.swarm.labels import excluded, excluded_services
from pannier.testing.engine import FakeSwarm

__all__ = ["event_loop_policy"]

LABEL = {volume_label("v"): "copy"}


def labels(world: SwarmWorld) -> dict[str, dict[str, str]]:
    """The labels of all nodes that have some."""
    found = {node.hostname: dict(node.labels) for node in world.swarm.nodes.values()}
    return {name: labels for name, labels in sorted(found.items()) if labels}


# -- constraints ------------------------------------------------------------------------------------

NODE = SwarmNode(
    id="x5raibq31w8jr0ggo2epnqvrb",
    hostname="Node-1.example",
    state="ready",
    availability=Availability.ACTIVE,
    role="manager",
    version=1,
    labels={"rack": "R1", "Rack": "other", **LABEL},
    engine_labels={"storage": "ssd"},
    os="linux",
    arch="x86_64",
)


@pytest.mark.parametrize(
    ("constraint", "met"),
    [
        ("node.hostname==Node-1.example", True),
        ("node.hostname == node-1.EXAMPLE", True),
        ("node.hostname!=Node-1.example", False),
        ("node.hostname==node", False),
        ("NODE.HOSTNAME==node-1.example", True),
        ("node.id==x5raibq31w8jr0ggo2epnqvrb", True),
        ("node.id!=x5raibq31w8jr0ggo2epnqvrb", False),
        ("node.role==manager", True),
        ("node.role == worker", False),
        ("node.role!=worker", True),
        ("node.labels.rack==r1", True),
        ("node.labels.rack!=r1", False),
        ("node.labels.Rack==other", True),
        ("Node.Labels.RACK==r1", False),
        ("node.labels.RACK!=r1", True),
        ("node.labels.missing==x", False),
        ("node.labels.missing!=x", True),
        ("node.labels.pannier.volume.v == copy", True),
        ("node.labels.pannier.volume.w==copy", False),
        ("engine.labels.storage==SSD", True),
        ("engine.labels.storage!=ssd", False),
        ("engine.labels.missing!=ssd", True),
        ("node.platform.os==linux", True),
        ("node.platform.arch==aarch64", False),
        ("node.something.new==1", True),
        ("node.ip!=10.0.0.0/8", True),
        ("nonsense", True),
        ("", True),
    ],
)
def test_constraints_are_evaluated_as_swarm_does(constraint: str, met: bool) -> None:
    assert matches(NODE, [constraint]) is met


def test_all_constraints_must_be_met() -> None:
    assert matches(NODE, [])
    assert matches(NODE, ["node.role==manager", "node.labels.rack==r1"])
    assert not matches(NODE, ["node.role==manager", "node.labels.rack==r2"])


# -- services that exclude all copies -------------------------------------------------------------------


def service(
    *constraints: str, name: str = "web", volumes: tuple[str, ...] = ("v",)
) -> SwarmService:
    mounts = tuple(ServiceMount(source=volume) for volume in volumes)
    return SwarmService(id=f"id-{name}", name=name, constraints=constraints, mounts=mounts)


def test_a_service_that_may_run_on_no_copy_is_warned_of() -> None:
    copies = [NODE, replace(NODE, id="2", hostname="node2", role="worker", labels={})]
    record = volume("v", "a", "b")
    for fine in (
        service(),
        service("node.role==worker"),
        service("node.role==manager"),
        service("node.labels.pannier.volume.v==copy"),
    ):
        assert excluded(fine, record, copies) is None
    finding = excluded(service("node.hostname==node3", "node.role!=x"), record, copies)
    assert finding is not None
    assert (finding.level, finding.subject) == ("warning", "service web")
    assert "node.hostname==node3, node.role!=x" in finding.what
    assert "volume v (Node-1.example, node2)" in finding.what
    assert "node.labels.pannier.volume.v==copy" in finding.remedy
    assert excluded(service("node.hostname==node3"), record, []) is None, "nothing is known"


async def test_services_are_held_against_the_nodes_that_have_a_copy(tmp_path: Path) -> None:
    async with SwarmWorld(tmp_path) as world:
        await world.put_volume(volume("v", "d", "b"))
        world.swarm.services = [
            service("node.hostname==b", name="on-a-copy"),
            service("node.hostname==c", name="apart"),
            service("node.hostname==c", name="v", volumes=("{{.Service.Name}}", "unknown")),
            service("node.hostname==c", name="untold", volumes=('{{printf "v"}}',)),
        ]
        await asyncio.sleep(5)
        catalog, manager = world.catalogs["a"], FakeSwarm(world.swarm, node="id-a")
        found = [finding async for finding in excluded_services(manager, catalog)]
        assert [finding.subject for finding in found] == ["service apart", "service v"]
        worker = FakeSwarm(world.swarm, node="id-d")
        assert [finding async for finding in excluded_services(worker, catalog)] == []
        world.swarm.has_leader = False
        with pytest.raises(EngineUnavailable):
            await anext(excluded_services(manager, catalog))


# -- labels -------------------------------------------------------------------------------------------------


async def test_the_holder_and_those_in_sync_are_labelled(tmp_path: Path) -> None:
    async with SwarmWorld(tmp_path) as world:
        lagging = replace(volume("v", "d", "b"), replicas=("b", "e"))
        await world.put_volume(lagging)
        await world.put_volume(volume("My_vol.1-x", "c"))
        await asyncio.sleep(5)
        other = {volume_label("My_vol.1-x"): "copy"}
        assert labels(world) == {"b": LABEL, "c": other, "d": LABEL}
        await world.put_volume(replace(lagging, in_sync=("b", "e")))
        await asyncio.sleep(5)
        assert labels(world) == {"b": LABEL, "c": other, "d": LABEL, "e": LABEL}


async def test_other_labels_and_nodes_are_not_touched(tmp_path: Path) -> None:
    async with SwarmWorld(tmp_path) as world:
        theirs = {"rack": "r1", "pannier": "x", "pannier.volumes.v": "copy"}
        world.swarm.put(replace(world.node("d"), labels=theirs))
        await world.put_volume(volume("v", "d"))
        await asyncio.sleep(300)
        assert labels(world) == {"d": {**theirs, **LABEL}}
        assert [node.hostname for node in world.swarm.writes] == ["d"]
        assert world.availabilities("d") == []


async def test_a_label_that_is_wrong_for_a_moment_stays(tmp_path: Path) -> None:
    """Swarm would end a task that is just about to start there."""
    async with SwarmWorld(tmp_path) as world:
        await world.put_volume(volume("v", "d", "b"))
        await asyncio.sleep(10)
        for _ in range(5):
            await world.put_volume(replace(volume("v", "d", "b"), in_sync=()))
            await asyncio.sleep(6)
            assert labels(world) == {"b": LABEL, "d": LABEL}
            await world.put_volume(volume("v", "d", "b"))
            await asyncio.sleep(6)
        assert len(world.swarm.writes) == 2
        await world.put_volume(replace(volume("v", "d", "b"), in_sync=()))
        await asyncio.sleep(20)
        assert labels(world) == {"d": LABEL}


async def test_wrong_and_foreign_values_are_mended(tmp_path: Path) -> None:
    async with SwarmWorld(tmp_path) as world:
        await world.put_volume(volume("v", "d"))
        await asyncio.sleep(10)
        world.swarm.put(replace(world.node("d"), labels={volume_label("v"): "mine"}))
        world.swarm.put(replace(world.node("e"), labels={volume_label("gone"): "copy"}))
        await asyncio.sleep(100)
        assert labels(world) == {"d": LABEL}


async def test_only_the_daemon_beside_the_leader_sets_labels(tmp_path: Path) -> None:
    async with SwarmWorld(tmp_path) as world:
        await world.kill_daemon("a")
        await world.put_volume(volume("v", "d"))
        await asyncio.sleep(100)
        assert labels(world) == {}
        world.swarm.put(replace(world.node("a"), leader=False))
        world.swarm.put(replace(world.node("b"), leader=True))
        await asyncio.sleep(100)
        assert labels(world) == {"d": LABEL}


async def test_many_changes_of_many_volumes_are_few_changes_of_nodes(tmp_path: Path) -> None:
    async with SwarmWorld(tmp_path) as world:
        for number in range(200):
            await world.put_volume(volume(f"v{number}", "d", "b"))
            await asyncio.sleep(0.1)
        await asyncio.sleep(10)
        assert len(labels(world)["d"]) == len(labels(world)["b"]) == 200
        assert len(world.swarm.writes) <= 2 * 11, "two nodes, every three seconds at most"


async def test_a_daemon_that_has_not_heard_the_store_yet_takes_no_label_away(
    tmp_path: Path,
) -> None:
    async with SwarmWorld(tmp_path, managers=1) as world:
        await world.put_volume(volume("v", "d"))
        await asyncio.sleep(10)
        await world.kill_daemon("a")
        await world.start_daemon("a", cut=True)
        await asyncio.sleep(300)
        assert labels(world) == {"d": LABEL}
        world.stores["a"].mend()
        await asyncio.sleep(300)
        assert labels(world) == {"d": LABEL}
