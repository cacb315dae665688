"""Changes of the store's records: lost races, later versions beside this one, damage."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from alone import removing_alone

from pannier.cluster.catalog import Catalog
from pannier.cluster.registry import TRIES, ClusterRecord, Registry, Versioned, encode
from pannier.core.errors import (
    Conflict,
    Corrupt,
    NewerFormat,
    OutcomeUnknown,
    Stale,
    StoreUnavailable,
)
from pannier.core.generation import Generation
from pannier.core.line import OnTop
from pannier.core.node import Node
from pannier.core.volume import Grant, HistoryEntry, Volume, VolumeSpec
from pannier.host.clock import machine_clock
from pannier.host.state_files import UnsyncedFile
from pannier.node.membership import Membership
from pannier.node.tokens import Tokens
from pannier.pki.authority import Authority
from pannier.store.base import ABSENT, Change, Entry, Put, Synced
from pannier.testing.store import MemoryData, MemoryStore

ENTRY = HistoryEntry(at=1.0, what="purged", node="n1", epoch=1)
VOLUME = Volume(name="web", id="web.1", spec=VolumeSpec(), grant=Grant("n1", 1), created_at=0.0)
NODE = Node(
    name="n1", address="192.0.2.1", drivers=(), version="1", joined_at=1.0, certificate="ab"
)


class World:
    """An older node's registry, and the store as a newer node sees it."""

    def __init__(self, store: MemoryStore, data: MemoryData, directory: Path) -> None:
        self.store, self.data = store, data
        self.registry = Registry(store)
        self.catalog = Catalog(file=UnsyncedFile(directory / "catalog"), cluster=None, boot_id="b")
        self.membership = Membership(
            node="n1",
            registry=self.registry,
            catalog=self.catalog,
            authority=lambda: Authority.create(directory / "ca", cluster="c0ffee"),
            tokens=Tokens(file=UnsyncedFile(directory / "tokens")),
            store_authority=lambda: None,
            removing=removing_alone(
                "n1", self.registry, self.catalog, file=UnsyncedFile(directory / "removals")
            ),
            store_address="etcd://a:2379",
            clock=machine_clock(),
        )

    def write(self, key: str, value: dict[str, Any] | bytes) -> int:
        raw = value if isinstance(value, bytes) else json.dumps(value).encode()
        found = self.data.get(key)
        return self.data.commit((Change(key, raw, found.revision if found else ABSENT),))

    def read(self, key: str) -> Any:
        found = self.data.get(key)
        return json.loads(found.value) if found else None

    async def found_volume(self) -> Versioned[Volume]:
        found = await self.registry.volume("web")
        assert found is not None
        return found


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    data = MemoryData()
    store = MemoryStore(data)
    async with store.session():
        yield World(store, data, tmp_path)


def later(record: Volume | Node, **fields: Any) -> dict[str, Any]:
    return {**json.loads(encode(record)), **fields}


# -- lost races ---------------------------------------------------------------------------------------


def one_more(volume: Volume) -> Volume:
    entry = HistoryEntry(at=0.0, what="counted", node="n1", epoch=1)
    return volume.with_entry(entry)


async def test_a_change_that_lost_its_race_is_decided_again(world: World) -> None:
    await world.registry.add_volume(VOLUME)
    losses = 3

    async def read() -> Versioned[Volume]:
        nonlocal losses
        found = await world.found_volume()
        if losses:
            losses -= 1
            await world.registry.replace_volume(one_more(found.record), expect=found.revision)
        return found

    changed = await world.registry.change(read, one_more)
    assert len(changed.record.history) == 4, "nobody's change is lost"
    assert changed == await world.found_volume()


async def test_a_change_that_loses_every_race_says_so(world: World) -> None:
    await world.registry.add_volume(VOLUME)
    reads = 0

    async def read() -> Versioned[Volume]:
        nonlocal reads
        reads += 1
        found = await world.found_volume()
        await world.registry.replace_volume(found.record, expect=found.revision)
        return found

    with pytest.raises(Stale, match="volumes/web"):
        await world.registry.change(read, one_more)
    assert reads == TRIES
    assert (await world.found_volume()).record == VOLUME


async def test_nothing_is_written_where_nothing_is_to_be_changed(world: World) -> None:
    revision = (await world.registry.add_volume(VOLUME)).revision
    found = await world.registry.change(world.found_volume, lambda _: None)
    assert found == Versioned(VOLUME, revision)
    assert (await world.found_volume()).revision == revision
    anew = await world.registry.change(world.found_volume, lambda volume: volume)
    assert anew.revision > revision, "the same record is written anew"


@pytest.mark.parametrize(
    ("fault", "error", "done"),
    [
        (MemoryStore.cut, StoreUnavailable, 0),
        (MemoryStore.lose_requests, OutcomeUnknown, 0),
        (MemoryStore.lose_answers, OutcomeUnknown, 1),
    ],
)
async def test_unreachable_and_unknown_are_not_tried_again(
    world: World, fault: Callable[[MemoryStore], None], error: type[Exception], done: int
) -> None:
    await world.registry.add_volume(VOLUME)

    async def read() -> Versioned[Volume]:
        found = await world.found_volume()
        fault(world.store)
        return found

    with pytest.raises(error):
        await world.registry.change(read, one_more)
    assert len(world.read("volumes/web")["history"]) == done


# -- an older node beside newer ones ----------------------------------------------------------------------


async def test_what_a_newer_node_wrote_survives_all_that_an_older_one_does(world: World) -> None:
    record = later(VOLUME, colour="red")
    record["spec"]["compress"] = {"level": 3}
    world.write("volumes/web", record)
    found = await world.found_volume()
    given = found.record.granted("n2", base=Generation(1, 1), on_top=OnTop.ALL, replicas=("n1",))
    given_at = await world.registry.replace_volume(one_more(given), expect=found.revision)
    removed = replace((await world.found_volume()).record, removed_at=5.0)
    await world.registry.trash_volume(removed, expect=given_at.revision)
    [trashed] = await world.registry.trash()
    restored = replace(trashed.record, removed_at=None)
    await world.registry.restore_volume(restored, expect=trashed.revision)
    kept = world.read("volumes/web")
    assert kept["colour"] == "red"
    assert kept["spec"]["compress"] == {"level": 3}
    assert kept["grant"] == {"node": "n2", "epoch": 2}


async def test_a_nodes_record_keeps_what_a_newer_version_wrote_into_it(world: World) -> None:
    """Also where the node starts with an older version than before."""
    world.write("nodes/n1", later(NODE, zone="a"))
    await world.membership.drain("n1", drained=True)
    await world.membership.report_free_space(3)
    await world.membership.announce_stop()
    await world.membership.introduce(replace(NODE, drivers=("btrfs",), version="0.9"))
    kept = world.read("nodes/n1")
    assert (kept["zone"], kept["drained"], kept["room"]) == ("a", True, 3)
    assert (kept["drivers"], kept["version"], kept["stopping"]) == (["btrfs"], "0.9", False)


async def test_a_record_of_a_newer_format_is_listed_and_not_changed(world: World) -> None:
    record = later(VOLUME, format=3, sealed_with="key-1")
    revision = world.write("volumes/web", record)
    [listed] = await world.registry.volumes()
    with pytest.raises(NewerFormat, match=r"volumes/web.*format 3"):
        await world.registry.volume("web")
    for change in (
        world.registry.replace_volume(listed, expect=revision),
        world.registry.take_volume(listed, expect=revision, former="n1"),
        world.registry.trash_volume(replace(listed, removed_at=1.0), expect=revision),
    ):
        with pytest.raises(NewerFormat):
            await change
    world.write("trash/web.1", later(replace(VOLUME, removed_at=1.0), format=3))
    [trashed] = await world.registry.trash()
    with pytest.raises(NewerFormat):
        await world.registry.restore_volume(trashed.record, expect=trashed.revision)
    with pytest.raises(NewerFormat):
        await world.registry.purge_volume(trashed.record, expect=trashed.revision, entry=ENTRY)
    assert world.read("volumes/web") == record
    assert "web.1" in await world.registry.known_ids()


# -- damage ---------------------------------------------------------------------------------------------


async def test_a_damaged_record_is_named(world: World) -> None:
    world.write("volumes/web", b"{")
    with pytest.raises(Corrupt, match=r"the store's entry volumes/web cannot be read.*snapshot"):
        await world.registry.volume("web")


async def test_a_damaged_record_in_the_trash_hides_no_other_one(world: World) -> None:
    world.write("trash/bad.1", b"{")
    world.write("trash/web.1", later(replace(VOLUME, removed_at=1.0)))
    assert [found.record.id for found in await world.registry.trash()] == ["web.1"]
    with pytest.raises(Corrupt, match=r"trash/bad.1"):
        await world.registry.known_ids()


async def follow(catalog: Catalog, *events: Any) -> None:
    class Script:
        async def watch(self, prefix: str) -> AsyncIterator[Any]:
            for event in events:
                yield event

    await catalog.follow(Script())  # type: ignore[arg-type]


async def test_a_damaged_record_is_told_until_it_is_mended(world: World) -> None:
    good = encode(VOLUME)
    catalog = world.catalog
    await follow(catalog, Put(Entry("volumes/web", good, 1)), Put(Entry("volumes/bad", b"{", 2)))
    await follow(catalog, Put(Entry("volumes/web", b"{", 3)))
    assert catalog.damaged.keys() == {"volumes/bad", "volumes/web"}
    assert catalog.volume("web") == VOLUME, "as it was known last"
    await follow(catalog, Put(Entry("volumes/web", good, 4)), Synced(frozenset({"volumes/web"})))
    assert catalog.damaged == {}


async def test_a_damaged_cluster_record_makes_the_store_a_strange_one(tmp_path: Path) -> None:
    catalog = Catalog(file=UnsyncedFile(tmp_path / "c"), cluster="ours", boot_id="b")
    ours = Put(Entry("cluster", encode(ClusterRecord("ours", 0.0)), 1))
    there = Put(Entry("volumes/web", encode(VOLUME), 2))
    await follow(catalog, ours, there, Synced(frozenset({"cluster", "volumes/web"})))
    await follow(catalog, Put(Entry("cluster", b"{", 3)), Synced(frozenset({"cluster"})))
    assert catalog.volume("web") == VOLUME


async def test_a_volume_of_a_newer_format_is_known_by_name(world: World) -> None:
    raw = json.dumps(later(VOLUME, format=3)).encode()
    await follow(world.catalog, Put(Entry("volumes/web", raw, 1)))
    known = world.catalog.volume("web")
    assert known is not None
    assert known.is_newer
    assert world.catalog.damaged == {}


async def test_a_purged_volume_leaves_its_name_and_why_and_older_marks_say_nothing(
    world: World,
) -> None:
    world.write("trash/web.1", later(replace(VOLUME, removed_at=1.0)))
    world.write("purged/old.1", {"format": 1})
    world.write("purged/bad.1", b"{")
    [trashed] = await world.registry.trash()
    await world.registry.purge_volume(trashed.record, expect=trashed.revision, entry=ENTRY)
    assert await world.registry.trashed("web.1") is None
    mark = await world.registry.purge_of("web.1")
    assert mark is not None
    assert (mark.name, mark.entry) == ("web", ENTRY)
    assert [(key, mark.record.name) for key, mark in (await world.registry.purges()).items()] == [
        ("old.1", ""), ("web.1", "web"),
    ]  # fmt: skip
    assert await world.registry.purged() == {"old.1", "web.1", "bad.1"}


async def test_a_name_changes_hands_in_one_step(world: World) -> None:
    found = await world.registry.add_volume(VOLUME)
    new, removed = replace(VOLUME, id="web.2"), replace(found.record, removed_at=1.0)
    with pytest.raises(Stale):
        await world.registry.exchange_volume(new, expect=found.revision - 1, removed=removed)
    assert (await world.found_volume()).record.id == "web.1"
    assert await world.registry.trashed("web.1") is None
    await world.registry.exchange_volume(new, expect=found.revision, removed=removed)
    assert (await world.found_volume()).record.id == "web.2"
    assert await world.registry.trashed("web.1") is not None


async def test_a_name_is_not_taken_by_what_was_given_up(world: World) -> None:
    found = await world.registry.add_volume(VOLUME)
    await world.registry.give_up_unborn("web", "web.2", beside=found, entry=ENTRY)
    now = await world.found_volume()
    new, removed = replace(VOLUME, id="web.2"), replace(now.record, removed_at=1.0)
    with pytest.raises(Stale):
        await world.registry.exchange_volume(new, expect=now.revision, removed=removed)


async def test_a_protected_volume_does_not_give_its_name(world: World) -> None:
    kept = replace(VOLUME, spec=VolumeSpec(protected=True))
    found = await world.registry.add_volume(kept)
    with pytest.raises(Conflict, match="protected"):
        await world.registry.exchange_volume(
            replace(kept, id="web.2"), expect=found.revision, removed=found.record
        )
