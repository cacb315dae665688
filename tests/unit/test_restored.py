"""A store that was restored from an older backup is not believed, and gets the newer records back."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest
from world import World, event_loop_policy

from pannier.core.errors import Conflict, PannierError, StoreIsOlder
from pannier.core.generation import Generation
from pannier.core.line import OnTop
from pannier.core.restored import Knowledge, is_behind, is_news, may_put_back, parted
from pannier.core.volume import Durability, Grant, Volume, VolumeSpec
from pannier.testing.store import Backup
from pannier.transport.base import Offer

__all__ = ["event_loop_policy"]

NAME = "vol"


def record(node: str = "a", epoch: int = 3, changes: int = 10) -> Volume:
    return Volume(
        name=NAME,
        id="vol.1",
        spec=VolumeSpec(copies=2, durability=Durability.FSYNC),
        grant=Grant(node, epoch),
        base=Generation(epoch - 1, 4),
        replicas=("b",),
        created_at=0.0,
        changes=changes,
    )


def given(volume: Volume, node: str, base: Generation) -> Volume:
    after = volume.granted(node, base=base, on_top=OnTop.ALL, replicas=("a",))
    return replace(after, changes=volume.changes + 1)


# -- the decisions -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("found", "older"),
    [
        (record(), False),
        (record(changes=11), False),
        (record(changes=9), True),
        (record(epoch=2, changes=30), True),
        (record("b", epoch=3, changes=11), True),
    ],
)
def test_a_record_with_a_lower_epoch_or_fewer_changes_is_older(found: Volume, older: bool) -> None:
    assert is_behind(found, record()) is older


def test_two_histories_that_parted_after_the_backup_are_never_taken_for_one() -> None:
    one = given(record(), "b", Generation(3, 7, "aaaaaaaa"))
    other = given(record(), "c", Generation(3, 7, "bbbbbbbb"))
    later = given(given(record(), "b", Generation(3, 7, "bbbbbbbb")), "c", Generation(4, 1))
    assert parted(one, other)
    assert parted(one, later)
    assert is_behind(later, one)
    assert not is_news(later, one)
    assert not parted(record(), one)
    assert is_news(one, record())
    assert is_news(one, None)
    assert not is_news(record(), one)


def test_only_a_holder_that_has_the_data_puts_it_back_and_only_if_nobody_can_know_more() -> None:
    known = Knowledge(known=record("b", 4), found=record(), silent=(), whole=True)
    assert may_put_back(known, node="b")
    assert may_put_back(replace(known, found=None), node="b")
    assert not may_put_back(known, node="a")
    assert not may_put_back(replace(known, silent=("c",)), node="b")
    assert not may_put_back(replace(known, whole=False), node="b")
    assert not may_put_back(replace(known, found=record("c", 4, 12)), node="b"), "they have parted"


# -- between nodes -----------------------------------------------------------------------------------


class RestoredWorld(World):
    """What a container is shown is compared with what was written; not all disks with the store, which is older for a while."""

    def inspect(self) -> None:
        pass


async def settled(world: World) -> None:
    await asyncio.sleep(5.0)


async def moved_after_the_backup(world: World) -> tuple[Volume, Backup]:
    """A volume that went from a to b after the backup was made."""
    await world.create(world.a, NAME, copies="2")
    await world.write_once(world.a, NAME)
    await settled(world)
    backup = world.data.backup()
    await world.move(world.a, NAME, "b")
    await world.write_once(world.b, NAME, b"later")
    await settled(world)
    found = world.record(NAME)
    assert found is not None
    return found, backup


@pytest.mark.parametrize("goes_on", [True, False])
async def test_the_holder_puts_its_record_back(tmp_path: Path, goes_on: bool) -> None:
    async with RestoredWorld(tmp_path, with_replication=True) as world:
        found, backup = await moved_after_the_backup(world)
        world.data.restore(backup, goes_on=goes_on)
        await settled(world)
        back = world.record(NAME)
        assert back is not None
        assert (back.grant, back.in_sync) == (found.grant, found.in_sync)
        assert back.history[-1].what == "put back"
        assert back.changes > found.changes
        await world.write_once(world.a, NAME, b"latest")
        assert all(not m.up.catalog.doubted() for m in world.machines.values())


async def test_a_volume_that_was_created_after_the_backup_comes_back(tmp_path: Path) -> None:
    async with RestoredWorld(tmp_path, with_replication=True, with_upkeep=True) as world:
        backup = world.data.backup()
        volume = await world.create(world.a, NAME)
        await world.write_once(world.a, NAME)
        await settled(world)
        world.data.restore(backup, goes_on=False)
        await settled(world)
        back = world.record(NAME)
        assert back is not None
        assert back.id == volume.id
        await world.write_once(world.c, NAME, b"more")


async def test_a_volume_that_was_taken_out_of_the_trash_after_the_backup_is_not_given_up(
    tmp_path: Path,
) -> None:
    async with RestoredWorld(tmp_path, with_replication=True, with_upkeep=True) as world:
        volume = await world.create(world.a, NAME)
        await world.write_once(world.a, NAME)
        await world.a.ask(lambda run: run.volumes.remove(NAME, actor="me"))
        backup = world.data.backup()
        await world.a.ask(lambda run: run.volumes.restore(NAME, actor="me"))
        await settled(world)
        for name in "bc":
            world.machines[name].power_off()
        world.data.restore(backup, goes_on=False)
        await settled(world)
        with pytest.raises(StoreIsOlder):
            await world.a.ask(lambda run: run.trash.give_up(volume.id, actor="me"))
        for name in "bc":
            await world.machines[name].start()
        await settled(world)
        back = world.record(NAME)
        assert back is not None
        assert not world.data.list("trash/")
        await world.write_once(world.a, NAME, b"more")


async def test_a_former_holder_that_knows_of_nothing_learns_it_before_it_serves(
    tmp_path: Path,
) -> None:
    """a was off when b took its volume over, and starts with the restored store: only b knows."""
    async with RestoredWorld(tmp_path, with_replication=True) as world:
        await world.create(world.a, NAME, copies="2")
        await world.write_once(world.a, NAME)
        await settled(world)
        backup = world.data.backup()
        holder = world.record(NAME)
        assert holder is not None
        (copy,) = holder.in_sync
        world.a.power_off()
        await asyncio.sleep(10.0)
        await world.write_once(world.machines[copy], NAME, b"later")
        third = next(name for name in "bc" if name != copy)
        world.machines[third].power_off()  # so that the record is not put back by itself
        world.data.restore(backup, goes_on=False)
        await settled(world)
        await world.a.start()
        with pytest.raises((PannierError, TimeoutError)):
            async with asyncio.timeout(10.0):
                await world.mount(world.a, NAME)
        assert world.a.up.catalog.volume(NAME).grant == Grant(copy, 2)  # type: ignore[union-attr]
        findings = await world.a.ask(lambda run: run.service.doctor())
        [told] = [each for each in findings if "older backup" in each.what]
        assert "volume recover" in told.remedy
        shown = await world.a.ask(lambda run: run.service.volume(NAME))
        assert "older backup" in shown.doubt
        with pytest.raises(Conflict, match=f"no answer from {third}"):
            await world.a.ask(
                lambda run: run.service.by("me").recover_volume(NAME, accept_loss=False)
            )
        await world.a.ask(lambda run: run.service.by("me").recover_volume(NAME, accept_loss=True))
        back = world.record(NAME)
        assert back is not None
        assert back.grant == Grant(copy, 2)
        await settled(world)
        await world.write_once(world.a, NAME, b"latest")


async def test_an_offer_of_an_older_epoch_is_refused_by_what_the_disk_has(tmp_path: Path) -> None:
    """The node remembers nothing, as after its state was lost: its pool knows."""
    async with RestoredWorld(tmp_path, with_replication=True) as world:
        found, backup = await moved_after_the_backup(world)
        for machine in world.machines.values():
            machine.power_off()
        world.data.restore(backup, goes_on=False)
        for machine in world.machines.values():
            (machine.state / "catalog.json").unlink(missing_ok=True)
        await world.b.start()
        await asyncio.sleep(12.0)  # it may have promised something before
        offer = Offer(
            volume_id=found.id,
            volume_name=NAME,
            driver=world.b.up.driver.name,
            epoch=1,
            generation=Generation(1, 99),
        )
        with pytest.raises(StoreIsOlder, match="data of epoch 2"):
            await world.b.ask(lambda run: run.reception.admit(offer, peer="a"))
        with pytest.raises(StoreIsOlder):
            await world.b.ask(lambda run: run.takeover.take(NAME, epoch=1))
