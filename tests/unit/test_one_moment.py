"""Snapshots of all volumes of a service at one moment, on one holder and on several; whole nodes, in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio
from copies_world import CopiesWorld
from fake_driver import SparseSnapshotDriver
from world import ACTOR, Died, Fault, Machine, Step, event_loop_policy

from pannier.contract.views import SnapshotView
from pannier.core.errors import (
    AlreadyExists,
    Conflict,
    NotFound,
    OutcomeUnknown,
    PannierError,
    StorageError,
    Unavailable,
)
from pannier.core.line import Doubt
from pannier.core.pace import Pace
from pannier.core.swarm import (
    Availability,
    ServiceMount,
    SwarmNode,
    SwarmService,
    SwarmTask,
)
from pannier.core.volume import Volume
from pannier.engine.base import Container, Executed
from pannier.node.peer_service import PeerService
from pannier.testing.engine import FakeSwarmData

__all__ = ["event_loop_policy"]

PACE = Pace().holding
LABELS = {"pannier.hook.pre-snapshot": "quiet", "pannier.hook.post-snapshot": "loud"}


@pytest_asyncio.fixture
async def world(tmp_path: Path) -> AsyncIterator[CopiesWorld]:
    async with CopiesWorld(tmp_path, driver=SparseSnapshotDriver) as world:
        yield world


async def service(world: CopiesWorld, holders: str) -> dict[str, Volume]:
    """The service ``web`` with a task and a volume on each of the holders, each by a container with hooks. All nodes are managers."""
    data = FakeSwarmData()
    for name, machine in world.machines.items():
        machine.engine.swarm.data, machine.engine.swarm.node = data, f"id-{name}"
        machine.engine.commands |= {"quiet": Executed(0, ""), "loud": Executed(0, "")}
        node = SwarmNode(
            id=f"id-{name}", hostname=name, state="ready", availability=Availability.ACTIVE, role="manager", version=0,
        )  # fmt: skip
        data.put(node)
    mount = ServiceMount(source="web-{{.Task.Slot}}")
    data.services.append(SwarmService(id="id-web", name="web", constraints=(), mounts=(mount,)))
    volumes = {}
    for slot, holder in enumerate(holders, 1):
        name, machine = f"web-{slot}", world.machines[holder]
        volumes[name] = await world.synced_volume(machine, name)
        data.tasks.append(
            SwarmTask(
                id=f"t{slot}",
                service="id-web",
                node=f"id-{holder}",
                state="running",
                wanted=True,
                slot=slot,
            )
        )
        container = Container(
            id=f"id-{name}", name=name, service="web", running=True, labels=LABELS
        )
        machine.engine.put(container, volumes=(name,))
    return volumes


async def snap(machine: Machine, snapshot: str | None = "now") -> list[SnapshotView]:
    return await machine.ask(
        lambda run: run.service.by(ACTOR).create_service_snapshot(
            "web", snapshot=snapshot, keep_seconds=None, labels={"by": "test"}
        )
    )


def named(world: CopiesWorld, volumes: dict[str, Volume]) -> list[list[str]]:
    return [[each.name for each in world.now_record(name).snapshots] for name in volumes]


def executed(world: CopiesWorld) -> list[tuple[str, str]]:
    return sorted(one for machine in world.machines.values() for one in machine.engine.executed)


def hooks_of(volumes: dict[str, Volume], *, times: int = 1) -> list[tuple[str, str]]:
    return sorted(
        (f"id-{name}", command) for name in volumes for command in ("quiet", "loud") * times
    )


def held(world: CopiesWorld) -> dict[str, float]:
    """The volumes that stand still now, on nodes that are up."""
    return {
        volume: until
        for machine in world.machines.values()
        if machine.run is not None
        for volume, until in world.sparse_driver(machine).held.items()
    }


def at_step(world: CopiesWorld, label: str, act: Callable[[Step], None]) -> None:
    """Let something happen at each step of that label."""

    def look(step: Step) -> None:
        if step.label == label:
            act(step)

    world.faults = look


@pytest.mark.parametrize("holders", ["aa", "ab", "abc"])
async def test_all_volumes_of_a_service_have_snapshots(world: CopiesWorld, holders: str) -> None:
    volumes = await service(world, holders)
    made = await snap(world.c)
    assert [(each.volume, each.name, each.labels) for each in made] == [
        (name, "now", {"by": "test"}) for name in volumes
    ]
    for each in made:
        assert set(each.on or ()) == {
            volumes[each.volume].grant.node,
            *world.now_record(each.volume).in_sync,
        }
    assert named(world, volumes) == [["now"]] * len(holders)
    assert executed(world) == hooks_of(volumes)
    assert held(world) == {}


async def test_each_generation_is_made_while_all_stand_still(world: CopiesWorld) -> None:
    await service(world, "abc")
    still: list[int] = []
    at_step(world, "driver.snapshot", lambda step: still.append(len(held(world))))
    await snap(world.a)
    # Others are made in the background: those of this snapshot are the ones with any that stand still.
    assert [each for each in still if each] == [3, 3, 3]


async def test_one_that_is_not_attached_changes_not_and_holds_nobody_up(world: CopiesWorld) -> None:
    """As of a task that does not run now."""
    volumes = await service(world, "ab")
    volume = volumes["web-2"]
    world.b.engine.take("id-web-2")
    await world.unmount(world.b, volume.name)
    await world.until(lambda: volume.id not in world.b.disk.attached)
    made = await snap(world.a)
    assert [each.volume for each in made] == ["web-1", "web-2"]
    assert named(world, volumes) == [["now"], ["now"]]


async def test_the_name_is_made_of_the_service_and_the_time(world: CopiesWorld) -> None:
    await service(world, "ab")
    (first, second) = await snap(world.b, None)
    assert first.name == second.name
    assert first.name.startswith("web-20")


async def test_all_names_come_in_one_change_of_the_store(world: CopiesWorld) -> None:
    volumes = await service(world, "abc")
    seen: set[tuple[int, ...]] = set()
    inspect = world.inspect

    def look() -> None:
        seen.add(tuple(len(names) for names in named(world, volumes)))
        inspect()

    world.inspect = look  # type: ignore[method-assign]
    await snap(world.a)
    assert seen == {(0, 0, 0), (1, 1, 1)}


async def test_one_that_went_on_early_ends_the_whole(world: CopiesWorld) -> None:
    volumes = await service(world, "abc")
    world.slow_steps["b", "driver.snapshot"] = PACE.still + 1
    with pytest.raises(Unavailable, match=r"web-2 went on before all volumes had"):
        await snap(world.a)
    world.slow_steps.clear()
    await world.until(lambda: executed(world) == hooks_of(volumes))
    assert named(world, volumes) == [[], [], []]
    await snap(world.a)
    assert named(world, volumes) == [["now"]] * 3


async def test_one_that_somebody_let_go_ends_the_whole(world: CopiesWorld) -> None:
    volumes = await service(world, "ab")
    driver = world.sparse_driver(world.b)
    at_step(world, "driver.snapshot", lambda step: driver.held.clear())
    with pytest.raises(Unavailable, match="went on before"):
        await snap(world.a)
    assert named(world, volumes) == [[], []]


async def test_one_that_cannot_be_frozen_ends_the_whole(world: CopiesWorld) -> None:
    volumes = await service(world, "abc")
    world.sparse_driver(world.c).frozen.add(volumes["web-3"].id)
    at_step(world, "driver.hold_still", lambda step: None)
    world.machines["c"].disk.refused.add(volumes["web-3"].id)
    with pytest.raises((Conflict, StorageError)):
        await snap(world.a)
    world.machines["c"].disk.refused.clear()
    await world.until(lambda: executed(world) == hooks_of(volumes))
    assert (named(world, volumes), held(world)) == ([[], [], []], {})


async def test_a_hook_that_hangs_ends_the_whole(world: CopiesWorld) -> None:
    volumes = await service(world, "ab")
    del world.b.engine.commands["quiet"]
    with pytest.raises(Conflict, match=r"hook failed: it was ended .* in web-2 \(service web\)"):
        await snap(world.a)
    await world.until(lambda: executed(world) == hooks_of(volumes))
    assert named(world, volumes) == [[], []]


async def test_one_that_has_a_snapshot_of_that_name_ends_the_whole(world: CopiesWorld) -> None:
    volumes = await service(world, "ab")
    await world.a.ask(
        lambda run: run.service.by(ACTOR).create_snapshot(
            "web-2", "now", keep_seconds=None, labels={}
        )
    )
    world.b.engine.executed.clear()
    with pytest.raises(AlreadyExists):
        await snap(world.a)
    assert named(world, volumes) == [[], ["now"]]


async def test_what_is_refused(world: CopiesWorld) -> None:
    await service(world, "ab")
    with pytest.raises(NotFound, match="the Swarm has no service nosuch"):
        await world.a.ask(
            lambda run: run.service.create_service_snapshot(
                "nosuch", snapshot=None, keep_seconds=None, labels={}
            )
        )
    await world.down(world.b)
    with pytest.raises(PannierError, match="held by node b"):
        await snap(world.a)


async def test_a_holder_of_an_earlier_version_is_told(
    world: CopiesWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    volumes = await service(world, "ab")

    async def unknown(self: object, order: object) -> AsyncIterator[object]:
        raise NotFound("there is no POST /v1/peer/snapshots")
        yield

    monkeypatch.setattr(PeerService, "peer_together", unknown)
    with pytest.raises(Conflict, match="the holder of volume web-2 has an earlier version"):
        await snap(world.a)
    assert named(world, volumes) == [[], []]


@pytest.mark.parametrize("who", ["leader", "holder"])
@pytest.mark.parametrize("number", range(0, 40, 2))
async def test_power_fails_at_any_step(tmp_path: Path, number: int, who: str) -> None:
    """All have the snapshot or none, nothing stands still, and the second hooks run where the containers go on."""
    async with CopiesWorld(tmp_path, driver=SparseSnapshotDriver) as world:
        volumes = await service(world, "bc")
        of = "a" if who == "leader" else "b"
        steps = iter(range(1000))

        def cut(step: Step) -> Fault | None:
            return Fault.CUT_BEFORE if step.of == of and next(steps) == number else None

        world.faults = cut
        try:
            await asyncio.wait_for(snap(world.a), 300)
        except (PannierError, Died, TimeoutError):
            pass
        world.faults = lambda step: None
        await asyncio.sleep(PACE.still + PACE.kept)
        assert held(world) == {}
        assert named(world, volumes) in ([[], []], [["now"], ["now"]])
        begun = [one for one in world.c.engine.executed if one[1] == "quiet"]
        assert len(world.c.engine.executed) == 2 * len(begun)
        for machine in world.machines.values():
            if machine.run is None:
                await machine.start()
        if named(world, volumes) == [[], []]:
            return
        for name, volume in volumes.items():
            (made,) = world.now_record(name).snapshots
            copies = [world.machines[each].disk for each in world.now_record(name).in_sync]
            assert all(made.generation in disk.homes[volume.id].generations for disk in copies)


@pytest.mark.parametrize("fault", [Fault.LOSE_ANSWER, Fault.LOSE_REQUEST, Fault.LATE])
async def test_a_store_whose_answer_never_comes(world: CopiesWorld, fault: Fault) -> None:
    volumes = await service(world, "bc")
    made: list[Step] = []

    def lose(step: Step) -> Fault | None:
        if step.label == "driver.let_go":
            made.append(step)
        return fault if made and step.label == "store.commit" and step.of in "bc" else None

    world.faults = lose
    with pytest.raises((OutcomeUnknown, Unavailable)):
        await snap(world.a)
    world.faults = lambda step: None
    assert len(made) == 2
    await asyncio.sleep(60)
    assert named(world, volumes) in ([[], []], [["now"], ["now"]])
    for name, volume in volumes.items():
        home = world.machines[volume.grant.node].disk.homes[volume.id]
        assert all(each.generation in home.generations for each in world.now_record(name).snapshots)


@pytest.mark.parametrize("of_the_service", [True, False])
async def test_what_may_still_get_its_name_is_not_tidied_away_while_the_store_is_gone(
    world: CopiesWorld, monkeypatch: pytest.MonkeyPatch, of_the_service: bool
) -> None:
    """The change comes late, and meanwhile there are newer generations, as without the kernel's trace."""
    volumes = await service(world, "b")
    (volume,) = volumes.values()
    world.b.disk.untraced = Doubt("there is no trace")
    monkeypatch.setattr(world, "late_seconds", lambda: 25.0)
    made: list[Step] = []
    named_by: list[Step] = []

    def late(step: Step) -> Fault | None:
        if step.label in ("driver.let_go", "driver.snapshot"):
            made.append(step)
        if not made or step.of != "b" or not step.label.startswith("store."):
            return None
        if named_by or not step.is_commit:
            return Fault.LOSE_REQUEST if named_by else None
        named_by.append(step)
        return Fault.LATE

    async def alone() -> object:
        return await world.b.ask(
            lambda run: run.service.by(ACTOR).create_snapshot(
                volume.name, "now", keep_seconds=None, labels={}
            )
        )

    world.faults = late
    taking = asyncio.create_task(snap(world.a) if of_the_service else alone())
    await world.until(lambda: bool(named_by))
    for number in range(24):
        world.put(world.b, volume, "file", str(number).encode())
        await asyncio.sleep(1)
    await asyncio.sleep(2)
    there = set(world.b.disk.homes[volume.id].generations)
    world.faults = lambda step: None
    with suppress(PannierError):
        await taking
    assert named(world, volumes) == [["now"]]
    assert world.now_record(volume.name).named <= there


async def test_records_that_the_store_would_not_take_are_told_before_a_hook_runs(
    world: CopiesWorld,
) -> None:
    """Each can be written alone, but not both in one step."""
    volumes = await service(world, "ab")
    before = await snap(world.a, "first")
    ran = executed(world)
    for view in before:
        await filled(world, view.volume)
    with pytest.raises(
        Conflict, match=r"2 volumes would have [0-9]+ KiB, of which web-\d with 902"
    ) as told:
        await snap(world.a, "second")
    assert "snapshot rm" in told.value.remedy
    assert executed(world) == ran
    assert not held(world)
    assert all("second" not in names for names in named(world, volumes))


async def filled(world: CopiesWorld, name: str) -> None:
    """Give a volume's newest generation with a name 900 more of them, with long labels."""
    registry = world.a.up.volumes._clones._cluster.registry
    found = await registry.volume(name)
    assert found is not None
    one = found.record.snapshots[0]
    more = [replace(one, name=f"n{each}", labels={"why": "x" * 480}) for each in range(900)]
    full = replace(found.record, snapshots=(one, *more))
    await registry.replace_volume(full, expect=found.revision)
