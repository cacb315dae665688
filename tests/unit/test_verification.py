"""Copies that are not what was written are found, and made anew; nothing that was synced is lost."""

from __future__ import annotations

import asyncio
import errno
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from copies_world import CopiesWorld
from world import Fault, Machine, SparseSnapshotDriver, event_loop_policy

from pannier.contract.views import CheckView
from pannier.copies.verification import Verification
from pannier.core.errors import NotHolder, Stale
from pannier.core.pace import Pace
from pannier.core.volume import Volume
from pannier.host.files import write_file

USUAL = Pace()
"""The times that the daemon uses."""

__all__ = ["event_loop_policy"]


@pytest_asyncio.fixture
async def world(tmp_path: Path) -> AsyncIterator[CopiesWorld]:
    async with CopiesWorld(tmp_path, with_upkeep=True) as world:
        await asyncio.sleep(USUAL.holding.promise)
        yield world


def damage(machine: Machine, volume: Volume) -> None:
    """The disk of a node changes some byte of all that it has of a volume."""
    home = machine.disk.homes[volume.id]
    home.damaged |= {*home.generations, None}


def taken_by(world: CopiesWorld) -> list[str]:
    """The nodes that took the volume over."""
    return [entry.node for entry in world.now_record().history if entry.what == "taken over"]


async def verify(world: CopiesWorld) -> dict[str, CheckView]:
    """``pannier volume verify vol``, typed on a node without a copy."""
    checks = await world.c.ask(lambda run: run.service.verify_volume("vol"))
    return {check.node: check for check in checks}


async def test_whole_copies_are_said_to_be(world: CopiesWorld) -> None:
    volume = await world.synced_volume(world.a)
    checks = await verify(world)
    assert {name: check.state for name, check in checks.items()} == {"a": "whole", "b": "whole"}
    assert world.now_record().in_sync == ("b",)
    assert checks["a"].generation is None  # its tree as it is now
    assert checks["b"].generation == str(max(world.generations(world.b, volume)))


async def test_the_only_copy_is_read_as_well(world: CopiesWorld) -> None:
    volume = await world.volume(world.a, copies="1")
    assert [check.state for check in (await verify(world)).values()] == ["whole"]
    damage(world.a, volume)
    (check,) = (await verify(world)).values()
    assert (check.state, check.generation) == ("damaged", None)
    assert "only copy" in check.remedy


async def test_a_damaged_copy_is_made_anew(world: CopiesWorld) -> None:
    volume = await world.synced_volume(world.a)
    damage(world.b, volume)
    checks = await verify(world)
    assert (checks["a"].state, checks["b"].state) == ("whole", "made anew")
    assert "damaged" in checks["b"].error
    assert world.now_record().in_sync == ()
    assert world.b.disk.homes[volume.id].quarantined
    await world.until(lambda: world.now_record().in_sync == ("b",))
    assert world.current(world.b, volume)
    assert world.sent_to("b")[-1].base is None
    await world.until(lambda: not world.b.disk.homes[volume.id].quarantined)
    assert (await verify(world))["b"].state == "whole"


async def test_sync_calls_wait_for_what_is_whole_only(world: CopiesWorld) -> None:
    """With three copies of which one is damaged, the third node has everything all the time."""
    volume = await world.synced_volume(world.a, copies="3")
    damage(world.b, volume)
    world.slow["b"] = 30.0
    await verify(world)
    world.put(world.a, volume, "more", b"1")
    await world.sync(world.a)
    assert world.now_record().in_sync == ("c",)
    world.losing(volume)
    await world.down(world.a)
    await world.mount(world.b, "vol")
    assert taken_by(world) == ["c"]


async def test_the_holders_own_damage_is_told_and_nothing_is_touched(world: CopiesWorld) -> None:
    volume = await world.synced_volume(world.a)
    damage(world.a, volume)
    check = (await verify(world))["a"]
    assert check.state == "damaged"
    assert check.remedy == "pannier volume move vol b"
    assert world.generations(world.a, volume)


@pytest.mark.parametrize("fault", [Fault.CUT_BEFORE, Fault.CUT_AFTER])
@pytest.mark.parametrize("label", ["driver.quarantine", "peer.lost_copy"])
async def test_power_fails_in_the_middle(world: CopiesWorld, label: str, fault: Fault) -> None:
    volume = await world.synced_volume(world.a)
    damage(world.b, volume)
    world.fail_at_label(label, fault, of="b")
    assert (await verify(world))["b"].state == "unknown"
    await world.b.start()
    if fault is Fault.CUT_BEFORE and label == "driver.quarantine":
        assert (await verify(world))["b"].state == "made anew"
    await world.until(lambda: not world.b.disk.homes[volume.id].damaged)
    await world.until(lambda: world.current(world.b, volume))
    await world.until(lambda: world.now_record().in_sync == ("b",))
    await world.until(lambda: not world.b.disk.homes[volume.id].quarantined)


async def test_a_holder_that_cannot_be_told_is_told_later(world: CopiesWorld) -> None:
    volume = await world.synced_volume(world.a)
    damage(world.b, volume)
    world.cut_link("a", "b")
    assert (await verify(world))["b"].state == "made anew"
    await asyncio.sleep(20)
    world.mend_links()
    await world.until(lambda: world.current(world.b, volume))
    await world.until(lambda: world.now_record().in_sync == ("b",))


async def test_a_copy_that_somebody_removed_is_made_anew(world: CopiesWorld) -> None:
    volume = await world.synced_volume(world.a)
    world.careless.add("b")
    world.b.disk.homes[volume.id].generations.clear()
    assert (await verify(world))["b"].state == "nothing"
    await world.until(lambda: world.current(world.b, volume))


async def test_a_damaged_copy_never_takes_over(world: CopiesWorld) -> None:
    """Its holder dies before the copy is there again: another one in sync goes on."""
    volume = await world.synced_volume(world.a, copies="3")
    damage(world.b, volume)
    world.cut_link("a", "b")
    await verify(world)
    assert set(world.now_record().in_sync) == {"b", "c"}
    world.losing(volume)
    await world.down(world.a)
    await asyncio.sleep(USUAL.holding.promise)
    await world.mount(world.b, "vol")
    assert taken_by(world) == ["c"]
    assert world.now_record().grant.node == "b"
    assert world.copy(world.b, volume)["synced"] == b"1"


async def test_copies_are_read_now_and_then(world: CopiesWorld) -> None:
    volume = await world.synced_volume(world.a)
    await asyncio.sleep(2 * USUAL.copies.verify_turn)
    verification: Verification = world.b.up.verification
    assert not [s for s in world.steps if s.label == "driver.verify"]
    damage(world.b, volume)
    verification._at[volume.id] -= USUAL.copies.verify_every
    await world.until(lambda: not world.b.disk.homes[volume.id].damaged)
    await world.until(lambda: world.now_record().in_sync == ("b",))


async def test_a_time_noted_by_a_clock_that_was_ahead_counts_from_now(world: CopiesWorld) -> None:
    volume = await world.synced_volume(world.a)
    verification: Verification = world.b.up.verification
    verification._at[volume.id] = time.time() + 10 * USUAL.copies.verify_every
    await asyncio.sleep(2 * USUAL.copies.verify_turn)
    assert verification._at[volume.id] <= time.time()


async def test_times_that_cannot_be_noted_or_read_end_nothing(
    world: CopiesWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = await world.synced_volume(world.a)
    damage(world.b, volume)

    def full(path: Path, content: bytes, **how: Any) -> None:
        if path.name == "verified.json":
            raise OSError(errno.ENOSPC, "No space left on device")
        write_file(path, content, **how)

    monkeypatch.setattr("pannier.host.state_files.write_file", full)
    await asyncio.sleep(2 * USUAL.copies.verify_turn)
    assert (await verify(world))["b"].state == "made anew"
    await world.until(lambda: world.now_record().in_sync == ("b",))
    file: Path = world.b.up.verification._file.path
    await world.down(world.b)
    file.unlink(missing_ok=True)
    file.mkdir()
    await world.b.start()
    await world.until(lambda: world.c.up.catalog.is_up("b"))
    assert (await verify(world))["b"].state == "whole"


async def test_only_the_holder_at_that_epoch_listens(world: CopiesWorld) -> None:
    await world.synced_volume(world.a)
    with pytest.raises(Stale):
        await world.a.ask(lambda run: run.peer_service.by("b").peer_lost_copy("vol", epoch=9))
    with pytest.raises(NotHolder):
        await world.b.ask(lambda run: run.peer_service.by("c").peer_lost_copy("vol", epoch=1))
    await world.a.ask(lambda run: run.peer_service.by("c").peer_lost_copy("vol", epoch=1))
    assert world.now_record().in_sync == ("b",)


# -- where the file system has no checksums ---------------------------------------------------------


@pytest_asyncio.fixture
async def images(tmp_path: Path) -> AsyncIterator[CopiesWorld]:
    async with CopiesWorld(tmp_path, with_upkeep=True, driver=SparseSnapshotDriver) as world:
        await asyncio.sleep(USUAL.holding.promise)
        yield world


async def test_equal_copies_are_whole(images: CopiesWorld) -> None:
    volume = await images.saved_volume(images.a)
    checks = await verify(images)
    assert {name: check.state for name, check in checks.items()} == {"a": "whole", "b": "whole"}
    newest = str(max(images.generations(images.b, volume)))
    assert {check.generation for check in checks.values()} == {newest}


async def test_the_only_image_is_read(images: CopiesWorld) -> None:
    await images.volume(images.a, copies="1")
    assert [check.state for check in (await verify(images)).values()] == ["read"]


async def test_a_copy_that_is_not_what_was_sent_is_made_anew(images: CopiesWorld) -> None:
    volume = await images.saved_volume(images.a)
    damage(images.b, volume)
    assert (await verify(images))["b"].state == "made anew"
    await images.until(lambda: images.now_record().in_sync == ("b",))
    assert (await verify(images))["b"].state == "whole"


async def test_a_holder_whose_disk_changed_is_found_by_a_copy(images: CopiesWorld) -> None:
    volume = await images.saved_volume(images.a)
    damage(images.a, volume)
    checks = await verify(images)
    assert (checks["a"].state, checks["b"].state) == ("damaged", "whole")
    assert checks["a"].remedy == "pannier volume move vol b"
    assert images.now_record().in_sync == ("b",)


async def test_copies_of_a_busy_volume_are_compared_by_a_generation_that_both_have(
    images: CopiesWorld,
) -> None:
    volume = await images.saved_volume(images.a)
    images.slow["b"] = 3.0
    images.put(images.a, volume, "more", b"2")
    newest = max(images.generations(images.b, volume))
    await images.until(lambda: max(images.generations(images.a, volume)) > newest)
    checks = await verify(images)
    assert {check.generation for check in checks.values()} == {str(newest)}
    assert {check.state for check in checks.values()} == {"whole"}
    damage(images.a, volume)
    assert (await verify(images))["a"].state == "damaged"
