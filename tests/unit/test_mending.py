"""Single blocks that a disk changed are mended with bytes that a stored checksum proves; nothing is guessed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from copies_world import CopiesWorld
from fake_driver import Home, place_of, sum_of
from world import Fault, Machine, SparseSnapshotDriver, event_loop_policy

from pannier.contract.views import CheckView
from pannier.copies import differences
from pannier.core.errors import NotHolder, StorageError, VolumeNotFound
from pannier.core.generation import Generation
from pannier.core.pace import Pace
from pannier.core.volume import Volume
from pannier.storage.blocks import MendingDriver

USUAL = Pace()
"""The times that the daemon uses."""

__all__ = ["event_loop_policy"]


@pytest_asyncio.fixture
async def world(tmp_path: Path) -> AsyncIterator[CopiesWorld]:
    async with CopiesWorld(tmp_path, with_upkeep=True, driver=SparseSnapshotDriver) as world:
        await asyncio.sleep(USUAL.holding.promise)
        yield world


def home_of(machine: Machine, volume: Volume) -> Home:
    return machine.disk.homes[volume.id]


def mending(machine: Machine, volume: Volume) -> MendingDriver:
    """The driver that has a volume there, whose methods a test may replace."""
    driver = machine.up.drivers.of(volume)
    assert isinstance(driver, MendingDriver)
    return driver


def change(machine: Machine, volume: Volume, file: str = "synced", value: bytes = b"?") -> None:
    """The disk of a node gives back one block otherwise, in whatever generation has it."""
    home = home_of(machine, volume)
    for generation, content in home.generations.items():
        if file in content:
            home.changed[generation, file] = value


async def verify(
    world: CopiesWorld, name: str = "vol", *, trust_holder: bool = False
) -> dict[str, CheckView]:
    """``pannier volume verify``, typed on ``c``."""
    checks = await world.c.ask(
        lambda run: run.service.verify_volume(name, trust_holder=trust_holder)
    )
    return {check.node: check for check in checks}


def states(checks: dict[str, CheckView]) -> dict[str, str]:
    return {node: str(check.state) for node, check in checks.items()}


def told(world: CopiesWorld) -> list[tuple[str, str]]:
    """What the volume's history says of damage."""
    words = ("damaged", "proved right", "differs", "mended", "made anew", "whole again")
    return [(line.node, line.what) for line in world.now_record().history if line.what in words]


async def rewrite(world: CopiesWorld, volume: Volume) -> None:
    """The container writes the block anew, and syncs it; a generation has that."""
    world.synced[volume.id].clear()
    world.put(world.a, volume, "synced", b"2")
    await world.sync(world.a)
    await world.save(world.a)


async def make_due(world: CopiesWorld, machine: Machine, volume: Volume) -> None:
    """It is a week since the node has read its copy."""
    await asyncio.sleep(2 * USUAL.copies.verify_turn)
    machine.up.verification._at[volume.id] -= USUAL.copies.verify_every


def whole_sends(world: CopiesWorld) -> int:
    return sum(transfer.base is None for transfer in world.sent)


# -- a copy ------------------------------------------------------------------------------------------


async def test_a_damaged_block_of_a_copy_is_mended_and_nothing_else_is_sent(
    world: CopiesWorld,
) -> None:
    volume = await world.saved_volume(world.a)
    change(world.b, volume)
    before = whole_sends(world)
    checks = await verify(world)
    assert checks["b"].state == "mended"
    assert str(place_of("synced")) in checks["b"].error
    assert world.now_record().in_sync == ("b",)
    assert not home_of(world.b, volume).changed
    assert not home_of(world.b, volume).quarantined
    assert told(world) == [("b", "mended")]
    assert states(await verify(world)) == {"a": "whole", "b": "whole"}
    assert whole_sends(world) == before
    assert told(world) == [("b", "mended")]


async def test_a_copy_is_mended_by_its_own_reading_too(world: CopiesWorld) -> None:
    volume = await world.saved_volume(world.a)
    await make_due(world, world.b, volume)
    change(world.b, volume)
    await world.until(lambda: not home_of(world.b, volume).changed)
    assert world.now_record().in_sync == ("b",)


async def test_another_copy_gives_what_the_holder_has_no_more(world: CopiesWorld) -> None:
    volume = await world.saved_volume(world.a, copies="3")
    change(world.a, volume)
    change(world.b, volume)
    checks = await verify(world)
    assert checks["b"].state == "mended"
    assert not home_of(world.b, volume).changed
    again = await verify(world)
    assert states(again) == {"a": "damaged", "b": "whole", "c": "whole"}


async def test_records_on_top_of_a_damaged_block_stay_and_need_not_be_compared(
    world: CopiesWorld,
) -> None:
    volume = await world.saved_volume(world.a)
    saved = max(world.generations(world.b, volume))
    world.put(world.a, volume, "more", b"2")
    await world.sync(world.a)
    assert "more" not in home_of(world.b, volume).generations[saved]
    change(world.b, volume)
    assert states(await verify(world))["b"] == "mended"
    checks = await verify(world)
    assert states(checks) == {"a": "whole", "b": "whole"}
    assert {check.generation for check in checks.values()} == {str(saved)}
    world.losing(volume)
    await world.down(world.a)
    await asyncio.sleep(USUAL.holding.promise)
    await world.mount(world.b, "vol")
    held = home_of(world.b, volume).live[world.now_record().grant.epoch].content
    assert held == {"synced": b"1", "more": b"2"}


async def test_what_cannot_be_mended_is_made_anew_with_the_records_on_top(
    world: CopiesWorld,
) -> None:
    """The holder sends what they had in a generation; sync calls wait for the copy only then."""
    volume = await world.saved_volume(world.a)
    world.put(world.a, volume, "more", b"2")
    await world.sync(world.a)
    home = home_of(world.b, volume)
    assert home.records
    home.damaged |= set(home.generations)
    assert states(await verify(world))["b"] == "made anew"
    assert world.now_record().in_sync == ()
    world.put(world.a, volume, "third", b"3")
    await world.sync(world.a)
    await world.until(lambda: world.now_record().in_sync == ("b",))
    assert world.current(world.b, volume)
    assert not home.records
    world.losing(volume)
    await world.down(world.a)
    await asyncio.sleep(USUAL.holding.promise)
    await world.mount(world.b, "vol")
    held = home_of(world.b, volume).live[world.now_record().grant.epoch].content
    assert held == {"synced": b"1", "more": b"2", "third": b"3"}


async def test_a_generation_that_comes_before_the_holder_is_told_is_not_all_that_was_confirmed(
    world: CopiesWorld,
) -> None:
    """It was on its way while a record after it was confirmed. The copy is set aside, and nobody hears of that."""
    volume = await world.saved_volume(world.a)
    world.put(world.a, volume, "more", b"2")
    await world.sync(world.a)
    world.slow["b"] = 1.0
    coming = asyncio.ensure_future(world.save(world.a))
    await world.until(lambda: len(world.generations(world.a, volume)) > 2)
    world.put(world.a, volume, "third", b"3")
    await world.sync(world.a)
    home = home_of(world.b, volume)
    home.damaged |= set(home.generations)
    world.fail_at_label("peer.lost_copy", Fault.LOSE_REQUEST, of="b")
    assert states(await verify(world))["b"] == "made anew"
    await coming
    assert world.now_record().in_sync == ("b",)
    world.losing(volume)
    await world.down(world.a)
    await asyncio.sleep(USUAL.holding.promise)
    await world.mount(world.b, "vol")
    held = home.live[world.now_record().grant.epoch].content
    assert held == {"synced": b"1", "more": b"2", "third": b"3"}


async def test_what_nobody_has_is_told_and_left_as_it_is(world: CopiesWorld) -> None:
    """The copy's checksum proves that the holder is wrong as well; made anew, it would prove the holder's."""
    volume = await world.saved_volume(world.a)
    change(world.a, volume, value=b"a")
    change(world.b, volume, value=b"b")
    checks = await verify(world)
    assert checks["b"].state == "differs"
    assert "no node that answers has what was received" in checks["b"].error
    assert "--trust-holder" in checks["b"].remedy
    assert home_of(world.b, volume).generations
    assert told(world) == [("b", "differs")]
    await verify(world)
    assert told(world) == [("b", "differs")]  # once
    assert states(await verify(world, trust_holder=True))["b"] == "made anew"
    await world.until(lambda: world.now_record().in_sync == ("b",))
    assert told(world) == [("b", "differs"), ("b", "made anew")]


async def test_what_stays_damaged_is_read_again_when_it_is_due_and_not_before(
    world: CopiesWorld,
) -> None:
    volume = await world.saved_volume(world.a)
    change(world.a, volume, value=b"a")
    change(world.b, volume, value=b"b")
    await make_due(world, world.b, volume)
    await world.until(lambda: told(world) == [("b", "differs")])
    read = [step for step in world.steps if step.label == "driver.verify"]
    await asyncio.sleep(5 * USUAL.copies.verify_turn)
    assert [step for step in world.steps if step.label == "driver.verify"] == read


async def test_more_than_blocks_is_made_anew(world: CopiesWorld) -> None:
    volume = await world.saved_volume(world.a)
    home = home_of(world.b, volume)
    home.damaged |= set(home.generations)
    assert (await verify(world))["b"].state == "made anew"
    assert home.quarantined
    await world.until(lambda: world.now_record().in_sync == ("b",))
    assert told(world) == [("b", "made anew")]


async def test_a_holder_that_does_not_answer_leaves_a_copy_that_is_made_anew(
    world: CopiesWorld,
) -> None:
    """It must not take over as it is."""
    volume = await world.saved_volume(world.a)
    change(world.b, volume)
    world.cut_link("a", "b")
    assert (await verify(world))["b"].state == "made anew"
    assert home_of(world.b, volume).quarantined
    assert not home_of(world.b, volume).generations
    world.mend_links()
    await world.until(lambda: world.current(world.b, volume))
    await world.until(lambda: world.now_record().in_sync == ("b",))


async def test_a_holder_that_answers_late_is_not_waited_for(
    world: CopiesWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it says then is not taken: the copy is another one by that time."""
    volume = await world.saved_volume(world.a)
    change(world.b, volume)
    held: list[Volume] = []

    async def late(*_: object) -> None:
        held.append(volume)
        await asyncio.sleep(10 * USUAL.copies.mend)

    driver = mending(world.a, volume)
    find = driver.find

    async def slow(*args: Any) -> object:
        await late()
        return await find(*args)

    monkeypatch.setattr(driver, "find", slow)
    began = asyncio.get_running_loop().time()
    assert (await verify(world))["b"].state == "made anew"
    assert held
    assert asyncio.get_running_loop().time() - began < 2 * USUAL.copies.mend
    await world.until(lambda: world.now_record().in_sync == ("b",))
    await asyncio.sleep(12 * USUAL.copies.mend)
    assert world.current(world.b, volume)
    monkeypatch.setattr(driver, "find", find)
    assert states(await verify(world)) == {"a": "whole", "b": "whole"}


async def test_a_generation_that_is_deleted_while_it_is_read_matters_to_nobody(
    world: CopiesWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The block was written anew, and the generations that had it are gone."""
    volume = await world.saved_volume(world.a)
    change(world.b, volume)
    driver = mending(world.b, volume)
    verify_it = driver.verify

    async def slow(volume_id: str, generation: Generation | None) -> object:
        found = await verify_it(volume_id, generation)
        await rewrite(world, volume)
        home = home_of(world.b, volume)
        for old in sorted(home.generations)[:-1]:
            del home.generations[old]
        home.changed.clear()
        return found

    monkeypatch.setattr(driver, "verify", slow)
    assert (await verify(world))["b"].state == "mended"
    monkeypatch.setattr(driver, "verify", verify_it)
    assert world.current(world.b, volume)
    assert world.now_record().in_sync == ("b",)


async def test_an_older_generation_that_nobody_can_mend_is_deleted(
    world: CopiesWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = await world.saved_volume(world.a)
    old = max(world.generations(world.b, volume))
    driver = mending(world.b, volume)
    verify_it = driver.verify

    async def slow(volume_id: str, generation: Generation | None) -> object:
        found = await verify_it(volume_id, generation)
        await rewrite(world, volume)
        home = home_of(world.a, volume)
        for each in [g for g in home.generations if g <= old]:
            del home.generations[each]
        return found

    change(world.b, volume)
    monkeypatch.setattr(driver, "verify", slow)
    assert (await verify(world))["b"].state == "mended"
    monkeypatch.setattr(driver, "verify", verify_it)
    assert old not in home_of(world.b, volume).generations
    assert world.current(world.b, volume)
    assert (await verify(world))["b"].state in ("whole", "read")


async def test_nothing_is_mended_when_nothing_is_there_any_more(
    world: CopiesWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = await world.saved_volume(world.a)
    change(world.b, volume)
    driver = mending(world.b, volume)
    verify_it = driver.verify

    async def removed(volume_id: str, generation: Generation | None) -> object:
        found = await verify_it(volume_id, generation)
        world.careless.add("b")
        home_of(world.b, volume).generations.clear()
        return found

    monkeypatch.setattr(driver, "verify", removed)
    assert (await verify(world))["b"].state == "made anew"
    monkeypatch.setattr(driver, "verify", verify_it)
    await world.until(lambda: world.current(world.b, volume))


async def test_a_copy_that_takes_over_meanwhile_is_mended_before(world: CopiesWorld) -> None:
    """The takeover waits for the lock; who asks for the volume is shown what was synced."""
    volume = await world.saved_volume(world.a, copies="3")
    change(world.b, volume)
    world.losing(volume)
    found = asyncio.ensure_future(verify(world))
    await world.until(lambda: any(step.label == "driver.mend" for step in world.steps))
    world.a.power_off()
    await found
    await world.until(lambda: not world.b.up.catalog.is_up("a"))
    await asyncio.sleep(USUAL.holding.promise)
    await world.mount(world.b, "vol")
    assert world.copy(world.b, volume)["synced"] == b"1"
    held = home_of(world.b, volume).live[world.now_record().grant.epoch].content
    assert held["synced"] == b"1"


async def test_a_holder_that_was_replaced_meanwhile_is_asked_as_a_copy(
    world: CopiesWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = await world.saved_volume(world.a, copies="3")
    change(world.b, volume)
    driver = mending(world.b, volume)
    verify_it = driver.verify

    async def moved(volume_id: str, generation: Generation | None) -> object:
        found = await verify_it(volume_id, generation)
        await world.mount(world.c, "vol")
        return found

    monkeypatch.setattr(driver, "verify", moved)
    check = await world.b.ask(lambda run: run.verification.here("vol"))
    monkeypatch.setattr(driver, "verify", verify_it)
    assert world.now_record().grant.node == "c"
    assert check.state == "mended"
    assert not home_of(world.b, volume).changed


@pytest.mark.parametrize("fault", [Fault.CUT_BEFORE, Fault.CUT_AFTER])
@pytest.mark.parametrize("label", ["peer.blocks", "driver.mend"])
async def test_power_fails_in_the_middle(world: CopiesWorld, label: str, fault: Fault) -> None:
    volume = await world.saved_volume(world.a)
    change(world.b, volume)
    world.fail_at_label(label, fault, of="b")
    assert (await verify(world))["b"].state == "unknown"
    await world.b.start()
    await world.until(lambda: world.c.up.catalog.is_up("b"))
    done = (label, fault) == ("driver.mend", Fault.CUT_AFTER)
    assert bool(home_of(world.b, volume).changed) is not done
    assert (await verify(world))["b"].state == ("whole" if done else "mended")
    assert not home_of(world.b, volume).changed
    await world.until(lambda: world.now_record().in_sync == ("b",))


async def test_power_of_the_node_that_gives_fails_in_the_middle(world: CopiesWorld) -> None:
    volume = await world.saved_volume(world.a)
    change(world.b, volume)
    world.fail_at_label("driver.find", Fault.CUT_BEFORE, of="a")
    assert (await verify(world))["b"].state == "made anew"
    await world.a.start()
    await world.until(lambda: world.current(world.b, volume))
    await world.until(lambda: world.now_record().in_sync == ("b",))


async def test_two_readings_at_once_mend_it_once(world: CopiesWorld) -> None:
    volume = await world.saved_volume(world.a)
    change(world.b, volume)
    first, second = await asyncio.gather(verify(world), verify(world))
    assert "mended" in {first["b"].state, second["b"].state}
    assert {first["b"].state, second["b"].state} <= {"mended", "whole"}
    assert not home_of(world.b, volume).changed
    assert world.now_record().in_sync == ("b",)


async def test_a_disk_that_refuses_to_be_mended_is_made_anew(
    world: CopiesWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = await world.saved_volume(world.a)
    change(world.b, volume)
    driver = mending(world.b, volume)

    async def refuses(*_: object) -> None:
        raise StorageError("Input/output error")

    monkeypatch.setattr(driver, "mend", refuses)
    assert (await verify(world))["b"].state == "made anew"
    await world.until(lambda: world.now_record().in_sync == ("b",))


# -- the holder --------------------------------------------------------------------------------------


async def test_a_holder_whose_block_changed_is_told_and_left_as_it_is(world: CopiesWorld) -> None:
    volume = await world.saved_volume(world.a)
    change(world.a, volume)
    checks = await verify(world)
    assert states(checks) == {"a": "damaged", "b": "whole"}
    assert checks["a"].remedy == "pannier volume move vol b"
    assert str(place_of("synced")) in checks["a"].error
    assert home_of(world.a, volume).changed
    assert told(world) == [("a", "damaged"), ("b", "proved right")]
    view = await world.c.ask(lambda run: run.service.volume("vol"))
    assert view.damage is not None
    assert any("not what node b was sent" in line for line in view.damage)
    findings = await world.a.ask(lambda run: run.service.doctor())
    assert any("not what node b was sent" in finding.what for finding in findings)
    explained = await world.c.ask(lambda run: run.service.explain_volume("vol"))
    assert any("not what node b was sent" in finding.what for finding in explained)


async def test_a_copy_proves_single_blocks_although_not_all(world: CopiesWorld) -> None:
    """Before, such a copy was made anew from the holder's damaged bytes."""
    volume = await world.saved_volume(world.a)
    world.put(world.a, volume, "other", b"1")
    await world.sync(world.a)
    await world.save(world.a)
    home = home_of(world.b, volume)
    for known in home.sums.values():
        known.pop("other", None)
    change(world.a, volume)
    assert states(await verify(world)) == {"a": "damaged", "b": "whole"}
    change(world.a, volume, "synced", b"1")
    change(world.a, volume, "other")
    checks = await verify(world)
    assert states(checks) == {"a": "read", "b": "differs"}


async def test_a_holder_does_not_mend_what_its_live_image_shares(world: CopiesWorld) -> None:
    """It has checksums of the generation that it began with. Mended alone, that would differ from what is written
    on top of it: the next difference would bring the damaged block to all copies as something new."""
    volume = await world.saved_volume(world.a)
    await world.mount(world.b, "vol")
    change(world.b, volume)
    first = max(home_of(world.b, volume).sums.keys() & world.generations(world.b, volume))
    check = await world.b.ask(lambda run: run.verification.here("vol", wanted=first))
    assert check.state == "damaged"
    assert home_of(world.b, volume).changed
    assert told(world) == [("b", "damaged")]


async def test_the_holder_compares_now_and_then(world: CopiesWorld) -> None:
    volume = await world.saved_volume(world.a)
    await make_due(world, world.a, volume)
    change(world.a, volume)
    await world.until(lambda: told(world)[:1] == [("a", "damaged")])


async def test_what_is_right_again_is_told(world: CopiesWorld) -> None:
    """The container has written the block anew."""
    volume = await world.saved_volume(world.a)
    change(world.a, volume)
    await verify(world)
    home_of(world.a, volume).changed.clear()
    await verify(world)
    assert told(world) == [
        ("a", "damaged"),
        ("b", "proved right"),
        ("a", "whole again"),
    ]
    assert not (await world.c.ask(lambda run: run.service.volume("vol"))).damage


async def test_after_the_move_what_the_damaged_node_has_is_made_anew(world: CopiesWorld) -> None:
    """The new holder has no checksums of what it writes, so nothing else would prove it any more."""
    volume = await world.saved_volume(world.a)
    change(world.a, volume)
    assert (await verify(world))["a"].remedy == "pannier volume move vol b"
    await world.mount(world.b, "vol")
    assert world.now_record().grant.node == "b"
    await world.until(lambda: ("a", "made anew") in told(world), seconds=300)
    await world.until(lambda: world.now_record().in_sync == ("a",), seconds=300)
    assert states(await verify(world)) == {"a": "whole", "b": "whole"}
    assert told(world) == [
        ("a", "damaged"),
        ("b", "proved right"),
        ("a", "made anew"),
    ]


async def test_what_a_former_holder_wrote_is_dropped_before_its_copy_is_set_aside(
    world: CopiesWorld,
) -> None:
    volume = await world.saved_volume(world.a)
    change(world.a, volume)
    await verify(world)
    await world.mount(world.b, "vol")
    assert home_of(world.a, volume).live
    await world.a.up.verification._finish("vol")
    assert not home_of(world.a, volume).quarantined
    await world.until(lambda: not home_of(world.a, volume).live)
    await world.a.up.verification._finish("vol")
    assert home_of(world.a, volume).quarantined


async def test_a_node_that_was_down_after_the_move_is_made_anew_later(world: CopiesWorld) -> None:
    volume = await world.saved_volume(world.a)
    change(world.a, volume)
    await verify(world)
    await world.mount(world.b, "vol")
    await world.down(world.a)
    await world.a.start()
    await world.until(lambda: ("a", "made anew") in told(world), seconds=300)
    await world.until(lambda: world.now_record().in_sync == ("a",), seconds=300)
    home = home_of(world.a, volume)
    assert not home.changed


async def test_a_node_that_is_not_proved_right_does_not_make_others_anew(
    world: CopiesWorld,
) -> None:
    """The volume was moved to a node that had nothing. What that was sent proves it wrong, and what it has made since
    has no checksums: nobody can prove that, and all is left."""
    volume = await world.saved_volume(world.a)
    change(world.a, volume)
    await verify(world)
    await world.mount(world.c, "vol")
    change(world.c, volume)
    await asyncio.sleep(2 * USUAL.copies.verify_turn)
    change(world.c, volume)  # a generation that was made meanwhile shares the block
    assert ("a", "made anew") not in told(world)
    sent = max(home_of(world.c, volume).sums)
    check = await world.c.ask(lambda run: run.verification.here("vol", wanted=sent))
    assert (check.state, check.generation) == ("damaged", str(sent))
    assert states(await verify(world)) == {"c": "read", "a": "differs"}
    await asyncio.sleep(2 * USUAL.copies.verify_turn)
    assert ("a", "made anew") not in told(world)


async def test_what_was_sent_by_a_damaged_holder_does_not_make_it_whole(world: CopiesWorld) -> None:
    """The copy that proved it is made anew, from the damaged bytes: all have the same then."""
    volume = await world.saved_volume(world.a)
    change(world.a, volume)
    await verify(world)
    await world.b.ask(lambda run: run.verification.set_aside("vol", epoch=1))
    await world.until(lambda: world.now_record().in_sync == ("b",))
    change(world.b, volume)
    for known in home_of(world.b, volume).sums.values():
        known["synced"] = sum_of(b"?")
    assert states(await verify(world)) == {"a": "whole", "b": "whole"}
    assert [line for line, _ in told(world)] == ["a", "b", "b"]
    assert (await world.c.ask(lambda run: run.service.volume("vol"))).damage


# -- nobody can prove theirs ---------------------------------------------------------------------------


async def two_unproved(world: CopiesWorld) -> Volume:
    """A copy that is not what the holder has, without checksums: as after a move."""
    volume = await world.saved_volume(world.a)
    home_of(world.b, volume).unproved |= set(world.generations(world.b, volume))
    change(world.a, volume)
    return volume


async def test_where_nobody_can_prove_theirs_both_are_left(world: CopiesWorld) -> None:
    volume = await two_unproved(world)
    checks = await verify(world)
    assert states(checks) == {"a": "read", "b": "differs"}
    assert str(place_of("synced")) in checks["b"].error
    assert "nobody can prove" in checks["b"].error
    assert "--trust-holder" in checks["b"].remedy
    assert world.now_record().in_sync == ("b",)
    assert not home_of(world.b, volume).quarantined
    assert told(world) == [("b", "differs")]


async def test_a_person_who_trusts_the_holder_has_the_copy_made_anew(world: CopiesWorld) -> None:
    await two_unproved(world)
    assert states(await verify(world, trust_holder=True))["b"] == "made anew"
    await world.until(lambda: world.now_record().in_sync == ("b",))
    assert told(world)[-1] == ("b", "made anew")


async def test_nobody_trusts_a_holder_that_is_proved_to_be_wrong(world: CopiesWorld) -> None:
    volume = await world.saved_volume(world.a)
    change(world.a, volume)
    checks = await verify(world, trust_holder=True)
    assert states(checks) == {"a": "damaged", "b": "whole"}
    assert not home_of(world.b, volume).quarantined


async def test_where_two_prove_different_bytes_both_are_left(world: CopiesWorld) -> None:
    """The third copy was made when the holder's disk had changed already."""
    volume = await world.saved_volume(world.a, copies="3")
    change(world.a, volume)
    change(world.c, volume)
    for known in home_of(world.c, volume).sums.values():
        known["synced"] = sum_of(b"?")
    checks = await verify(world)
    assert states(checks)["b"] == "differs"
    assert not home_of(world.b, volume).quarantined
    assert not home_of(world.c, volume).quarantined


async def test_a_copy_that_a_third_one_proves_wrong_is_made_anew(world: CopiesWorld) -> None:
    volume = await world.saved_volume(world.a, copies="3")
    home_of(world.b, volume).unproved |= set(world.generations(world.b, volume))
    change(world.b, volume)
    checks = await verify(world)
    assert states(checks) == {"a": "whole", "b": "made anew", "c": "whole"}
    await world.until(lambda: set(world.now_record().in_sync) == {"b", "c"})


async def test_where_holder_and_copy_are_wrong_nothing_is_made_anew_from_either(
    world: CopiesWorld,
) -> None:
    volume = await world.saved_volume(world.a, copies="3")
    home_of(world.b, volume).unproved |= set(world.generations(world.b, volume))
    change(world.a, volume, value=b"a")
    change(world.b, volume, value=b"b")
    checks = await verify(world)
    assert states(checks) == {"a": "damaged", "b": "differs", "c": "whole"}
    again = await verify(world, trust_holder=True)
    assert states(again) == states(checks)
    assert not home_of(world.b, volume).quarantined
    assert checks["a"].remedy == "pannier volume move vol c"


async def test_a_node_that_cannot_say_what_it_has_leaves_all_as_it_is(
    world: CopiesWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An older version, or one that went away meanwhile."""
    volume = await two_unproved(world)
    driver = mending(world.b, volume)

    async def refuses(*_: object, **__: object) -> None:
        raise StorageError("not here")

    monkeypatch.setattr(driver, "pieces", refuses)
    checks = await verify(world)
    assert states(checks)["b"] == "differs"
    assert "not here" in checks["b"].error
    assert not home_of(world.b, volume).quarantined


async def test_copies_that_differ_in_more_than_blocks_are_told(
    world: CopiesWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    await two_unproved(world)
    monkeypatch.setattr(differences, "MOST_PIECES", 0)
    checks = await verify(world)
    assert "more than 0 places" in checks["b"].error


async def test_what_was_written_anew_while_it_was_looked_for_is_no_difference(
    world: CopiesWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = await two_unproved(world)
    driver = mending(world.b, volume)
    pieces = driver.pieces

    async def busy(*args: object, **named: object) -> object:
        monkeypatch.setattr(driver, "pieces", pieces)
        await rewrite(world, volume)
        home = home_of(world.b, volume)
        for old in sorted(home.generations)[:-1]:
            del home.generations[old]
        raise StorageError("not here")

    monkeypatch.setattr(driver, "pieces", busy)
    checks = await verify(world)
    assert states(checks) == {"a": "whole", "b": "whole"}


# -- what nodes ask of each other ----------------------------------------------------------------------


async def test_only_what_is_kept_in_blocks_is_asked_for(tmp_path: Path) -> None:
    async with CopiesWorld(tmp_path) as world:
        await world.saved_volume(world.a)
        peer = world.a.up.peer_service.by("b")
        with pytest.raises(NotHolder):
            await peer.peer_blocks("vol", generation="1.1", blocks=[])
        with pytest.raises(NotHolder):
            await peer.peer_pieces("vol", generation="1.1", start=0, end=None, piece_bytes=4096)
        with pytest.raises(VolumeNotFound):
            await peer.peer_blocks("other", generation="1.1", blocks=[])
