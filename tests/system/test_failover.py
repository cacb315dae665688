"""A node dies: what its containers were told is on disk is there, on another node, once.

Power is cut for real: the lost node's disks forget what was not flushed. The steps are the demo's.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from cluster_world import World
from demo import failover, story
from demo.failover import DATABASE, DRAFTS, LEDGER, VOLUMES, Cast
from demo.ledger import Line, check_whole, read
from laboratory import world_on

from pannier.lab import Lab

pytestmark = [pytest.mark.system, pytest.mark.timeout(600)]

COUNT = "n=$(cat /data/n || echo 0); echo $((n + 1)) >/data/n && sync /data/n && cat /data/n"


@pytest.fixture
def world(power_lab: Lab) -> Iterator[World]:
    """The three nodes for one test; the story's volumes go when it ends."""
    with world_on(power_lab) as world:
        world.wait_until_all_take_tasks()
        world.volumes += VOLUMES
        yield world


def cast_with(world: World, victim: str) -> Cast:
    """Somebody for each part."""
    copy, witness = world.others(victim)
    return Cast(victim=victim, copy=copy, witness=witness)


def leader(world: World) -> str:
    """The node that leads the Swarm."""
    listed = world.run(
        "node1", "docker", "node", "ls", "--format", "{{.Hostname}} {{.ManagerStatus}}"
    )
    return next(line.split()[0] for line in listed.splitlines() if line.endswith("Leader"))


def told(world: World, node: str, name: str) -> str:
    """What ``pannier doctor NAME`` says on a node, a line for each finding."""
    found = json.loads(world.attempt(node, "pannier", "doctor", name, "-o", "json").out)
    lines = (f"{each['level']}: {each['what']} -> {each.get('remedy', '')}" for each in found)
    return "\n".join(lines)


def count(world: World, node: str, name: str) -> int:
    """A container that counts itself in the volume, and syncs that."""
    return int(world.container(node, name, "sh", "-c", COUNT))


def wait_until_down(world: World, *nodes: str, seen_by: str) -> None:
    def down() -> bool:
        shown = (world.json(seen_by, "node", "show", node) for node in nodes)
        return all(each["state"] == "down" for each in shown)

    story.wait_until(f"{seen_by} sees {' and '.join(nodes)} down", down)


# -- services ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "leads",
    [
        pytest.param(False, id="follower"),
        pytest.param(True, id="swarm-leader", marks=pytest.mark.faults),
    ],
)
def test_f01_nothing_that_was_acknowledged_is_lost_with_a_node(world: World, leads: bool) -> None:
    """A ledger and a Postgres under load: both are back elsewhere, whole, without a person's help."""
    first = leader(world)
    cast = cast_with(world, first if leads else world.others(first)[0])
    scene = failover.set_the_scene(world.lab, cast)
    before = told(world, cast.witness, DATABASE)
    assert f"held by node {cast.victim}, epoch 1" in before
    assert f"used on {cast.victim} by container {DATABASE}.1." in before
    assert f"ok: copy on {cast.copy}: in sync" in before

    loss = failover.lose_power(world.lab, scene, transactions=20)
    after = failover.wait_for_both(world.lab, cast)
    for event in failover.timeline(world.lab, after, loss):
        print(f"{event.seconds:+6.1f} s  {event.what}")
    print(failover.check(world.lab, after, loss))
    now = told(world, cast.witness, DATABASE)
    assert f"(taken over from {cast.victim}, whose lease ran out, with generation 1." in now
    assert f"warning: copy on {cast.victim}: not in sync" in now

    strays = failover.come_back(world.lab, after)
    assert f"volume {DRAFTS}: node {cast.victim} has a stray of epoch 1" in "\n".join(strays)
    assert f"copy on {cast.victim}: in sync" in told(world, cast.witness, DATABASE)
    failover.check(world.lab, after, loss)
    kept = read(world.former(cast.victim, LEDGER, "lines", tree="1"), synced=True)
    # What it had written and was never told to be synced may be there as well: it is no copy.
    common = kept[: loss.lines]
    assert len(common) == loss.lines
    assert common == failover.written(world.lab, after.ledger, LEDGER)[: loss.lines]


def ledger_on(world: World, cast: Cast, *flags: str) -> story.Task:
    """The ledger alone, on the node that is going to be lost."""
    for name in (LEDGER, DRAFTS):
        failover.create(world.lab, cast, name)
    return failover.start(world.lab, cast, LEDGER, *flags)


def lines_elsewhere(world: World, cast: Cast) -> list[Line]:
    """The ledger, once somebody else has written in it."""

    def look() -> list[Line]:
        task = story.running_task(world.lab, LEDGER, not_on=cast.victim)
        lines = failover.written(world.lab, task, LEDGER) if task else []
        return lines if lines and lines[-1].host != cast.victim else []

    return story.wait_until("the ledger goes on elsewhere", look)


@pytest.mark.faults
def test_a_node_without_a_copy_gets_the_service(world: World) -> None:
    """The copy becomes the holder, and hands the volume on."""
    cast = cast_with(world, world.others(leader(world))[0])
    task = ledger_on(world, cast)
    with failover.hearing(world.lab, task) as said:
        story.wait_until("the ledger is written", lambda: said() > 20)
        story.set_availability(world.lab, cast.copy, "pause", asked=cast.witness)
        assert world.lab.crash(cast.victim)
        acknowledged = said()
    lines = lines_elsewhere(world, cast)
    story.set_availability(world.lab, cast.copy, "active", asked=cast.witness)
    assert lines[-1].host == cast.witness
    check_whole(lines, first=cast.victim, acknowledged=acknowledged)
    shown = world.json(cast.copy, "volume", "show", LEDGER)
    assert (shown["holder"], shown["epoch"]) == (cast.witness, 3)
    failover.wait_for_copy(world.lab, LEDGER, on=cast.copy, asked=cast.witness)


@pytest.mark.faults  # tests/system/faults has both on every merge, without a Swarm
@pytest.mark.parametrize("fault", ["cut", "pause"])
def test_f20_a_holder_that_lives_and_is_not_heard_acknowledges_nothing_more(
    world: World, fault: str
) -> None:
    """Its service runs elsewhere by then. All that it has said, before and after, is true."""
    cast = cast_with(world, world.others(leader(world))[0])
    label = f"--constraint=node.labels.pannier.volume.{LEDGER}==copy"
    task = ledger_on(world, cast, label)
    begin, end = {
        "cut": (world.lab.cut, world.lab.mend),
        "pause": (world.lab.pause, world.lab.resume),
    }[fault]
    with failover.hearing(world.lab, task) as said:
        story.wait_until("the ledger is written", lambda: said() > 20)
        begin(cast.victim)
        lines_elsewhere(world, cast)
        end(cast.victim)
        story.wait_until(
            "the old container ends", lambda: not world.is_running(cast.victim, task.container)
        )
        acknowledged = said()
    world.wait_until_all_up()
    check_whole(lines_elsewhere(world, cast), first=cast.victim, acknowledged=acknowledged)
    failover.wait_for_copy(world.lab, LEDGER, on=cast.victim, asked=cast.witness)


# -- plain containers -------------------------------------------------------------------------------


@pytest.mark.faults
def test_a_mount_waits_for_no_person_and_is_refused_where_no_copy_in_sync_answers(
    world: World,
) -> None:
    holder, copy = "node2", "node3"
    name = world.create(holder, copies="2", nodes=f"{holder},{copy}")
    assert count(world, holder, name) == 1
    failover.wait_for_copy(world.lab, name, on=copy, asked="node1")
    assert "not in use: the next Mount gets it, on whatever node" in told(world, "node1", name)
    world.lab.crash(holder)
    wait_until_down(world, holder, seen_by="node1")
    assert (
        f"warning: node {holder} is down; the next Mount on any node makes {copy} its holder, with "
        f"everything that was acknowledged -> nothing need be done"
    ) in told(world, "node1", name)

    world.stop_pannier(copy)
    wait_until_down(world, copy, seen_by="node1")
    world.refused(
        "node1", *world.docker_run(name, "--rm"), "true",
        says=[f"node {holder}", f"volume {name}", "is down", copy],
    )  # fmt: skip
    assert (
        f"problem: node {holder} is down, and so is every node with all of it; a Mount is refused "
        f"-> start one of {holder}, {copy}"
    ) in told(world, "node1", name)
    shown = world.json("node1", "volume", "show", name)
    assert (shown["holder"], shown["epoch"], shown["in_sync"]) == (holder, 1, [copy])

    world.start_pannier(copy)
    assert count(world, "node1", name) == 2
    assert world.holder(name) == "node1"


@pytest.mark.faults
def test_f62_a_copy_that_lacks_something_takes_nothing_over_by_itself(world: World) -> None:
    """It was away when the last record was synced: only a person may go on without that."""
    holder, copy = "node2", "node3"
    name = world.create(holder, copies="2", nodes=f"{holder},{copy}")
    assert count(world, holder, name) == 1
    failover.wait_for_copy(world.lab, name, on=copy, asked="node1")
    world.stop_pannier(copy)
    assert count(world, holder, name) == 2
    assert world.json("node1", "volume", "show", name)["in_sync"] == []
    world.lab.crash(holder)
    wait_until_down(world, holder, seen_by="node1")
    world.start_pannier(copy)

    command = [*world.docker_run(name, "--rm"), "sh", "-c", COUNT]
    world.refused(copy, *command, says=[f"volume {name}", f"node {holder}"])
    assert (
        f"problem: node {holder} is down, and alone had everything; {copy} lacks what was written "
        f"last. A Mount is refused -> start {holder}; if it is lost for ever: pannier volume recover "
    ) in told(world, "node1", name)
    world.refused(
        "node1",
        "pannier",
        "volume",
        "recover",
        name,
        says=[holder, copy, "--accept-loss"],
        status=4,
    )
    world.lab.boot(holder)
    world.wait_until_all_up()
    assert count(world, copy, name) == 3
