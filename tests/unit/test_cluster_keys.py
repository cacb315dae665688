"""Keys of encrypted volumes: who has them, another key in the place of the cluster's, and passphrases; in virtual time."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from copies_world import CopiesWorld
from fake_driver import SparseSnapshotDriver
from test_clones import clone, snap
from world import ACTOR, Died, Fault, Machine, event_loop_policy

from pannier.cluster.passphrases import lock, unlocked
from pannier.contract.bodies import RotateOrder, UnlockOrder
from pannier.contract.views import ClusterKeyView
from pannier.core.encryption import ClusterKey, check_passphrase
from pannier.core.errors import (
    Conflict,
    Corrupt,
    Denied,
    InvalidInput,
    KeyMissing,
    NotFound,
    OutcomeUnknown,
    PannierError,
    Unavailable,
)
from pannier.core.options import describe_spec, parse_options
from pannier.core.volume import Volume
from pannier.holding.cluster_keys import ClusterKeys
from pannier.host.records import decode, encode
from pannier.store.base import Change

__all__ = ["event_loop_policy"]

PASSPHRASE = "a horse, a battery"
KEYS = frozenset(("cluster-keys", "sealing-anew"))


class KeyWorld(CopiesWorld):
    """Nodes look after their keys."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory, driver=SparseSnapshotDriver)
        self.without -= KEYS

    async def __aenter__(self) -> KeyWorld:
        await super().__aenter__()
        return self


@pytest_asyncio.fixture
async def world(tmp_path: Path) -> AsyncIterator[KeyWorld]:
    async with KeyWorld(tmp_path) as world:
        yield world


def key_at(machine: Machine, volume: Volume) -> bytes | None:
    """What a node's driver is told."""
    return machine.up.volume_keys.key_of(volume.id)


def has_key(machine: Machine, volume: Volume) -> bool:
    try:
        return key_at(machine, volume) is not None
    except KeyMissing:
        return False


async def all_have(world: KeyWorld, volume: Volume) -> bytes:
    """The volume's key, as soon as all nodes have it."""
    await world.until(lambda: all(has_key(each, volume) for each in world.machines.values()))
    (key,) = {key_at(each, volume) for each in world.machines.values()}
    assert key is not None
    return key


async def rotate(machine: Machine, passphrase: str | None = None) -> ClusterKeyView:
    """``pannier key rotate``."""
    order = RotateOrder(passphrase=passphrase)
    return await machine.ask(lambda run: run.service.by(ACTOR).rotate_key(order))


async def unlock(machine: Machine, passphrase: str = PASSPHRASE) -> ClusterKeyView:
    order = UnlockOrder(passphrase=passphrase)
    return await machine.ask(lambda run: run.service.by(ACTOR).unlock_key(order))


async def show(machine: Machine) -> ClusterKeyView:
    return await machine.ask(lambda run: run.service.by(ACTOR).cluster_key())


async def set_encrypted(machine: Machine, name: str, wanted: str) -> None:
    options = {"encrypted": wanted}
    await machine.ask(lambda run: run.service.by(ACTOR).set_volume(name, options))


async def told(machine: Machine) -> list[str]:
    """What ``pannier doctor`` says of keys."""
    found = await machine.ask(lambda run: run.service.by(ACTOR).doctor())
    return [each.what for each in found if "key" in each.subject]


def in_file(machine: Machine) -> dict[str, str]:
    """The keys on a node's disk."""
    file = machine.state / "backup-keys.json"
    found: dict[str, str] = json.loads(file.read_text())["keys"] if file.exists() else {}
    return found


def on_disks(world: KeyWorld) -> bytes:
    """All that nodes' own files and the store have."""
    files = [each for m in world.machines.values() for each in m.state.rglob("*") if each.is_file()]
    stored = b"".join(entry.value for entry in world.data._entries.values())
    return b"".join(each.read_bytes() for each in files) + stored


def key_record(world: KeyWorld) -> ClusterKey:
    raw = world.data._entries["backup-key"].value
    return decode(raw, ClusterKey, what="the key", remedy="")


async def restart(world: KeyWorld) -> None:
    """A power cut of all nodes."""
    for machine in world.machines.values():
        machine.power_off()
    for machine in world.machines.values():
        await machine.start()


# -- what a volume has --------------------------------------------------------------------------------


async def test_an_encrypted_volume_has_a_key_that_all_nodes_have_and_the_store_has_not(
    world: KeyWorld,
) -> None:
    volume = await world.create(world.a, "vol", copies="2", encrypted="true")
    key = await all_have(world, volume)
    assert (len(key), volume.format) == (64, 2)
    assert not volume.is_newer
    assert base64.b64encode(key) not in on_disks(world)
    assert key.hex().encode() not in on_disks(world)
    (cluster_key,) = in_file(world.a).values()
    stored = b"".join(entry.value for entry in world.data._entries.values())
    assert cluster_key.encode() not in stored
    other = await world.create(world.b, "plain")
    assert (key_at(world.a, other), other.format, other.key) == (None, 1, None)


async def test_a_volume_has_a_key_of_its_own(world: KeyWorld) -> None:
    one = await world.create(world.a, "one", encrypted="true")
    two = await world.create(world.a, "two", encrypted="true")
    assert await all_have(world, one) != await all_have(world, two)


async def test_a_clone_has_the_same_key_and_says_so(world: KeyWorld) -> None:
    volume = await world.synced_volume(world.a, encrypted="true")
    await snap(world.a)
    await clone(world.b, "vol@first")
    made = world.now_record("new")
    assert await all_have(world, made) == await all_have(world, volume)
    assert made.key != volume.key
    assert "with the same key" in made.history[0].detail
    with pytest.raises(InvalidInput, match="encrypted of a clone of volume vol is true"):
        await clone(world.b, "vol@first", "other", encrypted="false")


async def test_a_key_of_another_volume_is_not_taken(world: KeyWorld) -> None:
    """Whoever can write the store cannot exchange them."""
    one = await world.create(world.a, "one", encrypted="true")
    two = await world.create(world.a, "two", encrypted="true")
    assert two.key is not None
    entry = world.data._entries["volumes/one"]
    forged = encode(world.now_record("one").encrypted_with(two.key))
    await world.a.up.cluster.registry.store.commit(Change("volumes/one", forged, entry.revision))
    await world.until(lambda: world.a.up.catalog.volume("one").key == two.key)  # type: ignore[union-attr]
    with pytest.raises(Corrupt, match="not the one that was put there"):
        key_at(world.a, one)


async def test_what_is_encrypted_stays_so(world: KeyWorld) -> None:
    await world.create(world.a, "vol", encrypted="true")
    await world.create(world.a, "plain")
    for name, wanted in (("vol", "false"), ("plain", "true")):
        with pytest.raises(Conflict, match="stays encrypted or not") as refused:
            await set_encrypted(world.a, name, wanted)
        assert f"-o encrypted={wanted}" in refused.value.remedy


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"encrypted": "yes"}, "encrypted=yes is not allowed"),
        ({"encrypted": "true", "layout": "tree"}, "only images are encrypted"),
        ({"encrypted": "true", "driver": "directory"}, "only images are encrypted"),
    ],
)
def test_what_cannot_be_encrypted(options: dict[str, str], says: str) -> None:
    with pytest.raises(InvalidInput, match=says):
        parse_options(options)
    assert parse_options({"encrypted": "true"}).encrypted
    assert describe_spec(parse_options({"encrypted": "true"}))["encrypted"] == "true"
    assert not parse_options({"encrypted": "false", "layout": "tree"}).encrypted


async def test_without_the_cluster_key_no_encrypted_volume_is_made(world: KeyWorld) -> None:
    await world.create(world.a, "vol", encrypted="true")
    world.b.power_off()
    (world.b.state / "backup-keys.json").unlink(missing_ok=True)
    world.a.power_off()
    world.c.power_off()
    await world.b.start()
    with pytest.raises(KeyMissing, match="no node that answers"):
        await world.create(world.b, "new", encrypted="true", copies="1")
    assert world.record("new") is None
    assert not any(each.startswith("new.") for each in world.b.disk.homes)


async def test_a_volume_is_not_served_where_its_key_is_missing_and_is_when_it_comes(
    world: KeyWorld,
) -> None:
    volume = await world.create(world.a, "vol", encrypted="true")
    await all_have(world, volume)
    for machine in (world.a, world.b, world.c):
        machine.power_off()
    (world.a.state / "backup-keys.json").unlink()
    await world.a.start()
    with pytest.raises(KeyMissing, match=r"node a does not have the cluster's key") as missing:
        key_at(world.a, volume)
    assert "pannier key unlock" in missing.value.remedy
    assert await told(world.a) == [
        "is not here, so these volumes cannot be opened on this node: vol"
    ]
    await world.c.start()
    await world.until(lambda: has_key(world.a, volume))
    assert await told(world.a) == []
    assert in_file(world.a) == in_file(world.c)


# -- another one in its place -------------------------------------------------------------------------


async def sealed_by(world: KeyWorld, key_id: str | None, *names: str) -> None:
    def are() -> bool:
        keys = [world.now_record(name).key for name in names]
        return all(key is not None and key.by == key_id for key in keys)

    await world.until(are)


async def test_a_rotation_seals_everything_anew_and_changes_no_volume_key(world: KeyWorld) -> None:
    one = await world.create(world.a, "one", encrypted="true")
    two = await world.create(world.b, "two", encrypted="true")
    gone = await world.create(world.b, "gone", encrypted="true")
    await world.b.ask(lambda run: run.service.by(ACTOR).remove_volume("gone"))
    before = [await all_have(world, each) for each in (one, two)]
    first = (await show(world.a)).id
    done = await rotate(world.c)
    assert (done.locked, done.earlier, done.missing, done.volumes) == (False, [], [], 3)
    assert done.id != first
    await sealed_by(world, done.id, "one", "two")
    in_trash = world.trashed(gone.id)
    assert in_trash is not None
    assert in_trash.key is not None
    assert in_trash.key.by == done.id
    assert [await all_have(world, each) for each in (one, two)] == before
    new = await world.create(world.a, "new", encrypted="true")
    assert new.key is not None
    assert new.key.by == done.id


async def test_a_node_that_was_away_during_rotations_asks_for_what_it_lacks(
    world: KeyWorld,
) -> None:
    volume = await world.create(world.a, "vol", copies="2", encrypted="true")
    before = await all_have(world, volume)
    await world.down(world.c)
    await rotate(world.a)
    done = await rotate(world.b)
    await world.c.start()
    await sealed_by(world, done.id, "vol")
    assert await all_have(world, world.now_record()) == before


async def test_a_node_that_does_not_take_the_new_key_keeps_it_from_being_named(
    world: KeyWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one of an earlier version does."""
    volume = await world.create(world.a, "vol", encrypted="true")
    await all_have(world, volume)
    before = key_record(world)

    async def refuse(_: ClusterKeys, key_id: str) -> None:
        raise NotFound(f"there is no such call, for {key_id[:8]}")

    monkeypatch.setattr(ClusterKeys, "take", refuse)
    with pytest.raises(Conflict, match="node b counts as up, and does not take the new key"):
        await rotate(world.a)
    assert key_record(world) == before
    assert world.now_record().key == volume.key


@pytest.mark.parametrize("passphrase", ["", PASSPHRASE])
async def test_the_node_that_rotates_is_lost_as_soon_as_the_new_key_is_named(
    world: KeyWorld, passphrase: str
) -> None:
    volume = await world.create(world.b, "vol", encrypted="true")
    before = await all_have(world, volume)
    first = key_record(world).id
    world.fail_at_label("store.commit", Fault.CUT_AFTER, of="a")
    with pytest.raises(Died):
        await rotate(world.a, passphrase)
    world.faults = lambda step: None
    assert key_record(world).id != first
    world.a.disk.homes.clear()
    if passphrase:
        await unlock(world.c)
    new = await world.create(world.b, "new", encrypted="true")
    assert new.key is not None
    assert new.key.by == key_record(world).id
    await sealed_by(world, key_record(world).id, "vol", "new")
    assert key_at(world.b, world.now_record()) == before


@pytest.mark.parametrize("passphrase", ["", PASSPHRASE])
@pytest.mark.parametrize("number", range(0, 30, 3))
@pytest.mark.parametrize("fault", [Fault.CUT_BEFORE, Fault.CUT_AFTER])
async def test_power_fails_at_any_step_of_a_rotation(
    tmp_path: Path, number: int, fault: Fault, passphrase: str
) -> None:
    """No volume's key is ever lost, and all are sealed with one key in the end."""
    async with KeyWorld(tmp_path) as world:
        volumes = [
            await world.create(world.a, "one", copies="2", encrypted="true"),
            await world.create(world.b, "two", encrypted="true"),
        ]
        before = [await all_have(world, each) for each in volumes]
        world.fail_at(number, fault)
        try:
            await asyncio.wait_for(rotate(world.a, passphrase), 30)
        except (PannierError, Died, TimeoutError):
            pass
        world.faults = lambda step: None
        await restart(world)
        if key_record(world).locked is not None:
            await unlock(world.b)
        await sealed_by(world, key_record(world).id, "one", "two")
        now = [world.now_record(name) for name in ("one", "two")]
        assert [await all_have(world, each) for each in now] == before
        assert (await show(world.c)).earlier == []


@pytest.mark.parametrize("fault", [Fault.LOSE_REQUEST, Fault.LOSE_ANSWER, Fault.LATE])
async def test_the_store_gives_no_answer_to_a_rotation(world: KeyWorld, fault: Fault) -> None:
    volume = await world.create(world.a, "vol", encrypted="true")
    before = await all_have(world, volume)
    world.fail_at_label("store.commit", fault, of="a")
    with pytest.raises((OutcomeUnknown, Unavailable)):
        await rotate(world.a)
    await asyncio.sleep(3 * world.pace.holding.key_look)
    assert await all_have(world, world.now_record()) == before
    done = await rotate(world.b)
    await sealed_by(world, done.id, "vol")
    assert await all_have(world, world.now_record()) == before


# -- passphrases --------------------------------------------------------------------------------------


async def test_locked_keys_are_on_no_disk_and_come_back_with_the_passphrase(
    world: KeyWorld,
) -> None:
    volume = await world.create(world.a, "vol", copies="2", encrypted="true")
    before = await all_have(world, volume)
    done = await rotate(world.a, PASSPHRASE)
    assert done.locked
    await world.until(lambda: not any(in_file(each) for each in world.machines.values()))
    assert await all_have(world, world.now_record()) == before
    await restart(world)
    volume = world.now_record()
    assert not any(has_key(each, volume) for each in world.machines.values())
    assert (await show(world.c)).missing
    with pytest.raises(Denied, match="not the passphrase"):
        await unlock(world.a, "another horse, and no battery")
    assert not has_key(world.a, volume)
    assert (await unlock(world.a)).missing == []
    assert await all_have(world, volume) == before, "the others ask the one that was unlocked"
    assert not any(in_file(each) for each in world.machines.values())


@pytest.mark.parametrize("fault", [None, Fault.LATE])
async def test_a_key_that_is_to_be_locked_is_on_no_disk_before_the_store_names_it(
    world: KeyWorld, monkeypatch: pytest.MonkeyPatch, fault: Fault | None
) -> None:
    volume = await world.create(world.a, "vol", encrypted="true")
    await all_have(world, volume)
    await rotate(world.a, "")
    before, seen = in_file(world.a).keys(), set[str]()

    def look(step: object) -> Fault | None:
        seen.update(*(in_file(each) for each in world.machines.values()))
        return None

    if fault is None:
        world.slow_steps["a", "store.commit"] = 3 * world.pace.holding.key_look
        world.faults = look
        await rotate(world.a, PASSPHRASE)
    else:
        monkeypatch.setattr(world, "late_seconds", lambda: 3 * world.pace.holding.key_look)
        world.fail_at_label("store.commit", fault, of="a")
        with pytest.raises(OutcomeUnknown):
            await rotate(world.a, PASSPHRASE)
        world.faults = look
    await world.until(lambda: key_record(world).locked is not None, seconds=600)
    assert seen == before


async def test_the_passphrase_opens_keys_while_the_store_does_not_answer_or_has_lost_them(
    world: KeyWorld,
) -> None:
    volume = await world.create(world.a, "vol", encrypted="true")
    await all_have(world, volume)
    await rotate(world.a, PASSPHRASE)
    await world.until(lambda: not any(in_file(each) for each in world.machines.values()))
    volume = world.now_record()
    await restart(world)
    world.cut_store("a")
    await unlock(world.a)
    assert has_key(world.a, volume)
    world.mend_store()
    await restart(world)
    entry = world.data._entries["backup-key"]
    store = world.b.up.cluster.registry.store
    await store.commit(Change("backup-key", None, entry.revision))
    await unlock(world.b)
    await all_have(world, volume)
    await world.create(world.b, "new", encrypted="true")
    assert volume.key is not None
    assert not any(volume.key.by in in_file(each) for each in world.machines.values())


async def test_a_node_that_starts_alone_asks_another_nodes_daemon(world: KeyWorld) -> None:
    volume = await world.create(world.a, "vol", encrypted="true")
    await all_have(world, volume)
    await rotate(world.a, PASSPHRASE)
    world.b.power_off()
    await world.b.start()
    await all_have(world, world.now_record())
    assert in_file(world.b) == {}


async def test_locked_keys_get_into_files_again_only_if_that_is_said(world: KeyWorld) -> None:
    volume = await world.create(world.a, "vol", encrypted="true")
    before = await all_have(world, volume)
    await rotate(world.a, PASSPHRASE)
    with pytest.raises(InvalidInput, match="none was given"):
        await rotate(world.b)
    assert key_record(world).locked is not None
    await rotate(world.b, "")
    assert (key_record(world).locked, key_record(world).format) == (None, 1)
    await world.until(lambda: all(in_file(each) for each in world.machines.values()))
    await restart(world)
    assert await all_have(world, world.now_record()) == before
    with pytest.raises(Conflict, match="not locked"):
        await unlock(world.a)


async def test_a_node_that_lacks_locked_keys_does_not_replace_them(world: KeyWorld) -> None:
    """Else the new lock would not have them, and what is sealed with them could not be read after the next power cut."""
    await world.create(world.a, "vol", encrypted="true")
    await rotate(world.a, PASSPHRASE)
    before = key_record(world)
    await restart(world)
    with pytest.raises(KeyMissing):
        await rotate(world.a, PASSPHRASE)
    assert key_record(world) == before


async def test_earlier_keys_stay_locked_with_the_new_ones(world: KeyWorld) -> None:
    """Something that is not in the store yet, as an import, may need them."""
    volume = await world.create(world.a, "vol", encrypted="true")
    await all_have(world, volume)
    await rotate(world.a, PASSPHRASE)
    locked = key_record(world).locked
    await rotate(world.b, PASSPHRASE)
    world.c.power_off()
    await world.c.start()
    await all_have(world, world.now_record())
    await rotate(world.c, PASSPHRASE)
    now = key_record(world).locked
    assert locked is not None
    assert now is not None
    assert set(locked.ids) < set(now.ids)


async def test_a_volume_is_used_where_its_key_came_from_a_passphrase(world: KeyWorld) -> None:
    volume = await world.synced_volume(world.a, encrypted="true")
    await rotate(world.a, PASSPHRASE)
    for name in (world.a.name, *volume.replicas):
        assert has_key(world.machines[name], world.now_record())


def test_what_is_locked_says_nothing_without_its_passphrase() -> None:
    keys = [bytes([one]) * 32 for one in (1, 2)]
    locked = lock(keys, PASSPHRASE)
    assert unlocked(locked, PASSPHRASE) == keys
    assert base64.b64encode(keys[0]).decode() not in locked.sealed
    assert lock(keys, PASSPHRASE).sealed != locked.sealed
    with pytest.raises(Denied):
        unlocked(locked, f"{PASSPHRASE} ")


@pytest.mark.parametrize(
    "passphrase",
    ["", "short", "two lines\nof a passphrase", "one line and its end\n", "größer als zwölf"],
)
def test_what_is_no_passphrase(passphrase: str) -> None:
    with pytest.raises(InvalidInput, match="letters"):
        check_passphrase(passphrase)


def test_nothing_shows_a_passphrase() -> None:
    assert PASSPHRASE not in repr(RotateOrder(passphrase=PASSPHRASE))
    assert PASSPHRASE not in repr(UnlockOrder(passphrase=PASSPHRASE))
