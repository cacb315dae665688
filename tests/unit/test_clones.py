"""Clones: made where the other volume is held, all or nothing, and their copies begin with what is there; in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio
from copies_world import CopiesWorld
from fake_driver import SparseSnapshotDriver
from world import ACTOR, Died, Fault, Machine, event_loop_policy

from pannier.cluster.registry import Versioned, purged_key
from pannier.contract.volumes import VolumeView
from pannier.core.clone_source import CloneSource
from pannier.core.clones import place_clone, spec_of_clone, taken_over
from pannier.core.declarations import Declaration, Means, settle, settle_for
from pannier.core.errors import (
    AlreadyExists,
    Conflict,
    InvalidInput,
    NotFound,
    OutcomeUnknown,
    PannierError,
    PeerUnavailable,
    PoolFull,
    Stale,
    StoreUnavailable,
    VolumeNotFound,
)
from pannier.core.generation import Generation
from pannier.core.options import check_same_options, parse_options
from pannier.core.placement import Candidate
from pannier.core.volume import Durability, Grant, HistoryEntry, Volume

__all__ = ["event_loop_policy"]


@pytest_asyncio.fixture
async def world(tmp_path: Path) -> AsyncIterator[CopiesWorld]:
    async with CopiesWorld(tmp_path, driver=SparseSnapshotDriver) as world:
        yield world


async def clone(
    machine: Machine, what: str = "vol", new: str = "new", **options: str
) -> VolumeView:
    """``pannier volume clone``, typed on ``machine``."""
    source = CloneSource.parse(what)
    return await machine.ask(
        lambda run: run.service.by(ACTOR).clone_volume(
            source.volume, new=new, snapshot=source.snapshot or None, options=options
        )
    )


async def snap(machine: Machine, snapshot: str = "first") -> Generation:
    made = await machine.ask(
        lambda run: run.service.by(ACTOR).create_snapshot(
            "vol", snapshot, keep_seconds=None, labels={}
        )
    )
    return Generation.parse(made.generation)


async def with_snapshot(world: CopiesWorld, **options: str) -> Volume:
    """A volume in use on ``a``, which had ``synced`` in its snapshot ``first`` and has ``later`` as well by now."""
    volume = await world.synced_volume(world.a, **options)
    await snap(world.a)
    world.put(world.a, volume, "later", b"2")
    await world.sync(world.a)
    return world.now_record()


def other(world: CopiesWorld, volume: Volume) -> Machine:
    """A node that has nothing of a volume."""
    return next(m for m in (world.b, world.c) if m.name not in volume.replicas)


def homes(world: CopiesWorld, name: str) -> list[str]:
    """On which nodes' disks there is anything of a volume of that name."""
    return [
        machine.name
        for machine in world.machines.values()
        if any(each.rpartition(".")[0] == name for each in machine.disk.homes)
    ]


async def in_sync(world: CopiesWorld, name: str = "new") -> Volume:
    def is_so() -> bool:
        record = world.now_record(name)
        return set(record.in_sync) == set(record.replicas)

    await world.until(is_so)
    return world.now_record(name)


# -- what it is ---------------------------------------------------------------------------------------


async def test_a_clone_is_what_the_snapshot_is_and_goes_its_own_way(world: CopiesWorld) -> None:
    """Asked of a node that has neither; the other volume goes on."""
    volume = await with_snapshot(world)
    made = await clone(other(world, volume), "vol@first")
    assert (made.holder, made.epoch, made.options["copies"]) == ("a", 1, "2")
    record = world.now_record("new")
    assert record.origin is not None
    assert made.cloned_from == "vol@first"
    (line,) = record.history
    generation = volume.snapshot("first").generation
    assert line.detail == f"as a clone of vol@first, generation {generation}, by {ACTOR}"
    assert world.contents("new") == {"synced": b"1"}
    container = await world.run_container(world.a, "new")
    world.write(world.a, container, "own", b"3")
    assert world.contents("vol") == {"synced": b"1", "later": b"2"}
    assert world.contents("new") == {"synced": b"1", "own": b"3"}
    world.put(world.a, volume, "more", b"4")
    assert "more" not in world.contents("new")


async def test_without_a_snapshot_it_has_all_that_was_written_before_the_call(
    world: CopiesWorld,
) -> None:
    volume = await with_snapshot(world)
    world.put(world.a, volume, "unsynced", b"4")
    await clone(world.a)
    assert world.contents("new") == world.contents("vol")
    assert [each.name for each in world.now_record().snapshots] == ["first"]


async def test_of_a_volume_that_nobody_uses_and_that_has_one_copy(world: CopiesWorld) -> None:
    await world.create(world.a, "vol")
    await world.write_once(world.a, "vol")
    await clone(world.b)
    assert world.contents("new") == world.contents("vol") != {}
    assert homes(world, "new") == ["a"]
    await world.write_once(world.c, "new")
    assert world.now_record("new").grant == Grant("c", 2)


async def test_it_stays_when_the_other_one_is_gone_for_ever(tmp_path: Path) -> None:
    async with CopiesWorld(tmp_path, driver=SparseSnapshotDriver, with_upkeep=True) as world:
        await with_snapshot(world)
        await clone(world.a, "vol@first")
        await in_sync(world)
        await world.unmount(world.a, "vol")
        await asyncio.sleep(120)
        await world.a.ask(lambda run: run.service.by(ACTOR).remove_volume("vol"))
        await world.a.ask(lambda run: run.service.by(ACTOR).empty_trash())
        await world.until(lambda: homes(world, "vol") == [])
        assert world.contents("new") == {"synced": b"1"}


# -- its copies ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["vol@first", "vol"])
async def test_copies_are_made_of_what_is_there_and_nothing_of_it_is_sent(
    world: CopiesWorld, what: str
) -> None:
    volume = await with_snapshot(world, copies="3")
    if what == "vol":
        world.put(world.a, volume, "unsynced", b"5" * 100)
    world.sent.clear()
    await clone(world.a, what)
    record = await in_sync(world)
    assert record.origin is not None
    for machine in (world.b, world.c):
        assert record.origin.base in world.generations(machine, record)
        assert world.copy(machine, record) == world.contents("new")
        sent = [
            each for each in world.sent_to(machine.name) if each.generation == record.origin.base
        ]
        assert [each.bytes for each in sent] in ([], [0])
    container = await world.run_container(world.a, "new")
    world.write(world.a, container, "own", b"3")
    await world.sync(world.a, "new")
    assert all(world.current(machine, record) for machine in (world.b, world.c))


async def test_a_node_without_it_is_sent_everything(world: CopiesWorld) -> None:
    volume = await world.volume(world.a, copies="1")
    world.put(world.a, volume, "file", b"1")
    await clone(world.a, copies="2")
    record = await in_sync(world)
    copy = world.machines[record.replicas[0]]
    assert world.copy(copy, record) == world.contents("new") != {}
    assert sum(each.bytes for each in world.sent_to(copy.name)) > 0


async def test_another_generation_under_the_same_number_is_not_taken_for_it(
    world: CopiesWorld,
) -> None:
    """The copy's disk was set back, and its numbers were given again."""
    volume = await with_snapshot(world)
    replica = world.replica(volume)
    world.careless.add(replica.name)
    snapshot = volume.snapshot("first").generation
    home = replica.disk.homes[volume.id]
    false = replace(snapshot, identity="00000000")
    home.generations[false] = home.described[false] = {"other": b"bytes"}
    del home.generations[snapshot]
    await clone(world.a, "vol@first", nodes=f"a,{replica.name}")
    record = await in_sync(world)
    assert world.copy(replica, record) == {"synced": b"1"}


async def test_a_copy_that_was_damaged_is_not_made_of_the_same_bytes_again(
    world: CopiesWorld,
) -> None:
    volume = await with_snapshot(world)
    replica = world.replica(volume)
    await clone(world.a, "vol@first")
    record = await in_sync(world)
    home = replica.disk.homes[record.id]
    assert record.origin is not None
    home.quarantined[record.origin.base] = home.generations.pop(record.origin.base)
    await replica.ask(lambda run: run.reception._cloned.begin(record))
    assert record.origin.base not in home.generations


async def test_a_copy_takes_it_over(world: CopiesWorld) -> None:
    await with_snapshot(world)
    await clone(world.a, "vol@first")
    record = await in_sync(world)
    replica = world.replica(record)
    for lost in (record, world.now_record()):
        world.losing(lost)
    await world.down(world.a)
    await world.mount(replica, "new")
    assert world.now_record("new").grant == Grant(replica.name, 2)
    assert world.contents("new") == {"synced": b"1"}


# -- what cannot be -----------------------------------------------------------------------------------


async def test_what_is_not_there_is_not_cloned_and_nothing_is_made(world: CopiesWorld) -> None:
    await with_snapshot(world)
    for what, error in (("nothing", VolumeNotFound), ("vol@second", NotFound)):
        for machine in (world.a, world.b, world.c):
            with pytest.raises(error):
                await clone(machine, what)
            with pytest.raises(error):
                await world.create(machine, "new", **{"from": what})
    assert (world.record("new"), homes(world, "new")) == (None, [])


async def test_a_name_that_is_taken_is_refused(world: CopiesWorld) -> None:
    await with_snapshot(world)
    await world.create(world.b, "new")
    with pytest.raises(AlreadyExists, match="volume new exists"):
        await clone(world.a)
    with pytest.raises(AlreadyExists, match="volume vol exists"):
        await clone(world.a, "vol", "vol")
    assert homes(world, "new") == ["b"]


async def test_of_a_snapshot_that_is_removed_at_that_moment_there_is_a_clone_or_none(
    world: CopiesWorld,
) -> None:
    await with_snapshot(world)
    remove = world.a.up.service.by(ACTOR).remove_snapshot
    made, _ = await asyncio.gather(
        clone(world.a, "vol@first"),
        world.a.ask(lambda run: remove("vol", "first")),
        return_exceptions=True,
    )
    if isinstance(made, VolumeView):
        assert world.contents("new") == {"synced": b"1"}
    else:
        assert isinstance(made, NotFound)
        assert homes(world, "new") == []


@pytest.mark.parametrize("step", ["driver.clone", "driver.promote"])
async def test_a_disk_without_room_leaves_nothing(
    world: CopiesWorld, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    await with_snapshot(world)

    async def full(*_: object, **__: object) -> None:
        raise PoolFull("no room")

    monkeypatch.setattr(world.a.up.driver, step.removeprefix("driver."), full)
    with pytest.raises(PoolFull):
        await clone(world.b, "vol@first")
    assert (world.record("new"), homes(world, "new")) == (None, [])


async def test_the_other_volume_is_used_while_a_clone_becomes_larger(
    world: CopiesWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A check of the file system takes as long as it takes."""
    await world.create(world.a, "vol", size="1G")
    begun, go_on = asyncio.Event(), asyncio.Event()
    enlarge = world.a.up.driver.enlarge  # type: ignore[attr-defined]

    async def slowly(*arguments: object, **named: object) -> None:
        begun.set()
        await go_on.wait()
        await enlarge(*arguments, **named)

    monkeypatch.setattr(world.a.up.driver, "enlarge", slowly)
    making = asyncio.ensure_future(clone(world.b, size="2G"))
    await begun.wait()
    await world.write_once(world.a, "vol")
    await world.write_once(world.c, "vol")
    assert not making.done()
    go_on.set()
    assert (await making).options["size"] == "2G"
    assert world.contents("new") == {}


async def test_a_holder_that_is_down_or_drained_makes_none(world: CopiesWorld) -> None:
    volume = await with_snapshot(world)
    world.losing(volume)
    await world.b.ask(lambda run: run.service.by(ACTOR).drain_node("a", drained=True))
    with pytest.raises(Conflict, match="that node is drained"):
        await clone(world.a, "vol@first")
    await world.down(world.a)
    with pytest.raises(PeerUnavailable):
        await clone(other(world, volume), "vol@first")
    assert world.record("new") is None


# -- asked for by a creation --------------------------------------------------------------------------


async def test_a_creation_asked_for_twice_makes_one_clone(world: CopiesWorld) -> None:
    """Also with an option that goes only with those that were taken over."""
    await with_snapshot(world, copies="3")
    options = {"from": "vol@first", "interval": "5s"}
    made = await asyncio.gather(
        *(world.create(machine, "new", **options) for machine in world.machines.values())
    )
    assert len({volume.id for volume in made}) == 1
    assert homes(world, "new")[0] == "a"
    assert made[0].spec.interval == 5.0
    assert (await world.create(world.b, "new")).id == made[0].id
    for wrong in ("vol", "vol@second", "else"):
        with pytest.raises(AlreadyExists, match=f"from is vol@first, not {wrong}"):
            await world.create(world.b, "new", **{"from": wrong})
    with pytest.raises(AlreadyExists, match="from is none, not vol"):
        await world.create(world.b, "vol", **{"from": "vol"})


# -- power and answers --------------------------------------------------------------------------------


async def settled(world: CopiesWorld) -> None:
    """All nodes run again, and have had time to tidy."""
    world.faults = lambda step: None
    for machine in world.machines.values():
        if machine.run is None:
            await machine.start()
    await asyncio.sleep(3 * world.pace.holding.unborn_look)


def check_all_or_nothing(world: CopiesWorld) -> bool:
    """Whether there is a clone; what there is, is whole."""
    record = world.record("new")
    if record is None:
        assert homes(world, "new") == []
        return False
    assert world.contents("new") == {"synced": b"1"}
    assert not any(
        m.disk.homes[record.id].unborn for m in world.machines.values() if record.id in m.disk.homes
    )
    return True


@pytest.mark.parametrize("number", range(0, 44, 2))
@pytest.mark.parametrize("fault", [Fault.CUT_BEFORE, Fault.CUT_AFTER])
async def test_power_fails_at_any_step(tmp_path: Path, number: int, fault: Fault) -> None:
    """There is a clone, or nothing of one. The command, given again, makes it."""
    async with CopiesWorld(tmp_path, driver=SparseSnapshotDriver) as world:
        await with_snapshot(world)
        world.fail_at(number, fault)
        answered = False
        try:
            await asyncio.wait_for(clone(world.a, "vol@first"), 30)
            answered = True
        except (PannierError, Died, TimeoutError):
            pass
        await settled(world)
        there = check_all_or_nothing(world)
        assert there or not answered
        await world.create(world.b, "new", **{"from": "vol@first"})
        assert check_all_or_nothing(world)
        await in_sync(world)


@pytest.mark.parametrize("fault", [Fault.LOSE_REQUEST, Fault.LOSE_ANSWER, Fault.LATE])
async def test_the_store_gives_no_answer(world: CopiesWorld, fault: Fault) -> None:
    await with_snapshot(world)
    world.fail_at_label("store.commit", fault, of="a")
    try:
        await clone(world.a, "vol@first")
    except (OutcomeUnknown, StoreUnavailable):
        assert fault is not Fault.LOSE_ANSWER
    await settled(world)
    check_all_or_nothing(world)
    await world.create(world.a, "new", **{"from": "vol@first"})
    assert check_all_or_nothing(world)


async def test_a_record_that_is_on_its_way_for_long_never_comes_once_it_was_given_up(
    world: CopiesWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    await with_snapshot(world)
    monkeypatch.setattr(world, "late_seconds", lambda: 600.0)
    world.fail_at_label("store.commit", Fault.LATE, of="a")
    with pytest.raises(OutcomeUnknown):
        await clone(world.a, "vol@first")
    await settled(world)
    assert homes(world, "new") == []
    await asyncio.sleep(600)
    assert world.record("new") is None
    said = await world.b.ask(lambda run: run.service.history("new"))
    assert "cut off" in said[-1].detail


async def test_what_was_cut_off_is_given_up_also_where_another_has_the_name_by_now(
    world: CopiesWorld,
) -> None:
    await with_snapshot(world)
    world.fail_at_label("driver.clone", Fault.CUT_AFTER, of="a")
    with pytest.raises(Died):
        await clone(world.a, "vol@first")
    (left,) = (each for each in world.a.disk.homes if each.startswith("new."))
    await world.until(lambda: not world.b.up.catalog.is_up("a"))
    await world.create(world.b, "new")
    await settled(world)
    assert left not in world.a.disk.homes
    assert world.data.get(purged_key(left)) is not None
    assert world.now_record("new").grant.node == "b"


async def test_in_an_empty_store_nothing_is_given_up(world: CopiesWorld) -> None:
    await with_snapshot(world)
    run = world.a.up
    await run.driver.clone(  # type: ignore[attr-defined]
        world.now_record().id,
        world.now_record().snapshot("first").generation,
        volume="new.00000000",
        base=Generation(0, 1, "0f3a94c1"),
        unborn=True,
    )
    catalog = run.volumes._clones._cluster.catalog
    catalog._cluster = "another"
    await asyncio.sleep(3 * world.pace.holding.unborn_look)
    assert "new.00000000" in world.a.disk.homes
    found = await world.a.ask(lambda run: run.service.doctor())
    assert not [each for each in found if "new.00000000" in each.subject]
    catalog._cluster = None
    await asyncio.sleep(3 * world.pace.holding.unborn_look)
    assert "new.00000000" not in world.a.disk.homes


async def test_giving_up_is_refused_when_the_record_has_come_meanwhile(world: CopiesWorld) -> None:
    made = await world.create(world.a, "vol")
    entry = HistoryEntry(at=0.0, what="purged", node="a", epoch=1)
    registry = world.a.up.volumes._clones._cluster.registry
    found = await registry.volume("vol")
    assert found is not None
    with pytest.raises(Stale):
        await registry.give_up_unborn("vol", made.id, beside=None, entry=entry)
    older = Versioned(found.record, found.revision - 1)
    with pytest.raises(Stale):
        await registry.give_up_unborn("vol", "vol.1", beside=older, entry=entry)
    await registry.give_up_unborn("gone", "gone.1", beside=None, entry=entry)
    await world.a.ask(lambda run: run.volumes.remove("vol", actor="anna"))
    with pytest.raises(Stale):  # it is in the trash, from which it may come back
        await registry.give_up_unborn("vol", made.id, beside=None, entry=entry)
    with pytest.raises(Stale):
        await registry.add_volume(replace(made, name="gone", id="gone.1"))


# -- the options of a clone: pure ---------------------------------------------------------------------


def volume(**options: str) -> Volume:
    return Volume(
        name="shop",
        id="shop.1",
        spec=parse_options(options),
        grant=Grant("a", 3),
        replicas=("c",),
        created_at=0.0,
    )


OF_THE_OTHER_ALONE = ("labels", "protected", "snapshots", "backup", "drill")
FULL = {
    "size": "1000000007",
    "copies": "3",
    "min_copies": "2",
    "interval": "5s",
    "unheld_writes": "refuse",
    "uid": "5",
    "mode": "0700",
    "labels": "team=web",
    "protected": "true",
    "snapshots": "hourly:2",
    "backup": "offsite:daily:30",
    "drill": "offsite:weekly",
    "nodes": "a,b",
}


def test_a_clone_has_the_options_of_the_other_one_but_for_what_was_said_of_that_alone() -> None:
    source = volume(**FULL)
    spec = spec_of_clone(source, {"from": "shop@x"})
    other = volume(**{name: text for name, text in FULL.items() if name not in OF_THE_OTHER_ALONE})
    assert spec == replace(other.spec, size=source.spec.size)


def test_what_goes_with_what_is_asked_for() -> None:
    """Of options as a backup has them, too: nobody has checked these."""
    there = {"copies": "3", "durability": "fsync", "min_copies": "3", "size": "1G"}
    assert taken_over(there, {"copies": "1"}) == {"copies": "3", "size": "1G"}
    assert taken_over(there, {"copies": "2"}) == {
        k: v for k, v in there.items() if k != "min_copies"
    }
    assert taken_over(there, {}) == there
    assert taken_over({"copies": "x", "min_copies": "y"}, {}) == {"copies": "x", "min_copies": "y"}


@pytest.mark.parametrize(
    ("options", "asked", "expected"),
    [
        (FULL, {"copies": "1"}, {"copies": 1, "durability": Durability.NONE, "min_copies": 1}),
        (FULL, {"copies": "2"}, {"copies": 2, "durability": Durability.FSYNC, "min_copies": 2}),
        ({"copies": "3", "min_copies": "3"}, {"copies": "2"}, {"copies": 2, "min_copies": 1}),
        (FULL, {"durability": "interval"}, {"durability": Durability.INTERVAL, "min_copies": 1}),
        ({}, {"copies": "2"}, {"copies": 2, "durability": Durability.FSYNC}),
        (FULL, {"labels": "a=b", "protected": "true"}, {"labels": {"a": "b"}, "protected": True}),
        (FULL, {"size": "2G"}, {"size": 2 << 30}),
        (FULL, {"uid": "5", "driver": "btrfs", "layout": "image"}, {"uid": 5, "driver": "image"}),
    ],
)
def test_what_is_asked_for_comes_before_what_is_taken_over(
    options: dict[str, str], asked: dict[str, str], expected: dict[str, object]
) -> None:
    spec = spec_of_clone(volume(**options), asked)
    assert {name: getattr(spec, name) for name in expected} == expected


@pytest.mark.parametrize(
    ("options", "asked", "says", "remedy"),
    [
        (FULL, {"size": "900M"}, "is less than volume shop has", "pannier volume export shop"),
        ({}, {"size": "1G"}, "has no size of its own", "leave size out"),
        (FULL, {"uid": "6"}, "uid of a clone of volume shop is 5", "in a container"),
        (FULL, {"layout": "tree"}, "layout of a clone of volume shop is image", "leave layout out"),
        (FULL, {"driver": "directory", "copies": "1"}, "driver of a clone", "leave driver out"),
        (FULL, {"copies": "many"}, "copies=many is not allowed", ""),
        (FULL, {"min_copies": "4"}, "could never be met", ""),
        (FULL, {"sise": "1G"}, "unknown option 'sise'", ""),
        ({}, {"interval": "5s"}, "more than one copy", ""),
    ],
)
def test_what_a_clone_cannot_be_is_refused(
    options: dict[str, str], asked: dict[str, str], says: str, remedy: str
) -> None:
    with pytest.raises(InvalidInput) as caught:
        spec_of_clone(volume(**options), asked)
    assert says in caught.value.message
    assert remedy in caught.value.remedy


def test_only_images_are_cloned() -> None:
    for options in ({"layout": "tree"}, {"driver": "directory"}):
        with pytest.raises(Conflict, match="only images have clones"):
            spec_of_clone(volume(**options), {})


def node(name: str, *, drained: bool = False, copies: int = 0) -> Candidate:
    return Candidate(name=name, up=True, drained=drained, drivers=("image",), copies=copies)


def placed(*nodes: Candidate, nodes_asked: bool = False, **options: str) -> tuple[str, ...]:
    source = volume(copies="2")
    spec = spec_of_clone(source, options)
    return place_clone(
        source, spec, nodes, wanted=CloneSource("shop", "x"), nodes_asked=nodes_asked
    )


def test_its_copies_are_where_those_of_the_other_one_are() -> None:
    nodes = [node("a"), node("b"), node("c", copies=9)]
    assert placed(*nodes) == ("c",)
    assert placed(*nodes, copies="3") == ("c", "b")
    assert placed(*nodes, copies="1") == ()
    assert placed(*nodes, nodes="a,b", nodes_asked=True) == ("b",)


def test_it_is_not_made_where_the_other_one_is_not_held() -> None:
    nodes = [node("a"), node("b"), node("c")]
    with pytest.raises(Conflict, match="nodes=b asks for node b") as caught:
        placed(*nodes, nodes="b", nodes_asked=True)
    assert "name a first" in caught.value.remedy
    with pytest.raises(InvalidInput, match="no node of this cluster"):
        placed(*nodes, nodes="a,x", nodes_asked=True)
    with pytest.raises(Conflict, match="that node is drained"):
        placed(node("a", drained=True), node("b"))
    with pytest.raises(Conflict, match="needs 3 nodes beside a"):
        placed(*nodes, copies="4")


@pytest.mark.parametrize("text", ["", "@", "vol@", "vol@a@b", "../x", "vol@../x", "v ol", "vol@ x"])
def test_a_source_that_cannot_be_one(text: str) -> None:
    with pytest.raises(InvalidInput):
        CloneSource.parse(text)
    with pytest.raises(InvalidInput):
        parse_options({"from": text})


def test_from_is_no_option_that_can_be_changed() -> None:
    there, means = volume(), Means(nodes=3, in_sync=1)
    with pytest.raises(Conflict, match="says how a volume is made"):
        settle_for("by anna", there, {"from": "shop"}, means)
    found = settle(there, [Declaration("service web", {"from": "shop@x"})], means)
    assert (found.spec, found.taken) == (there.spec, ())
    assert [left.what for left in found.left] == [
        "from is none, not shop@x (it stays as it was created)"
    ]
    check_same_options(there, {})
