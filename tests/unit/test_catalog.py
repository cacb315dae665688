"""What a node remembers: fed by the store's watch, kept on disk."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

from pannier.cluster.catalog import Catalog, Changed
from pannier.cluster.registry import ClusterRecord, Registry, encode, purged_key
from pannier.core.volume import Grant, Volume, VolumeSpec
from pannier.host.state_files import DurableFile
from pannier.store.base import Deleted, Entry, Put, Synced, WatchEvent
from pannier.testing.store import MemoryData, MemoryStore


def volume(name: str = "v", epoch: int = 1) -> Volume:
    return Volume(
        name=name, id=f"{name}.1", spec=VolumeSpec(), grant=Grant("a", epoch), created_at=0.0
    )


def put(record: Volume, revision: int) -> Put:
    return Put(Entry(f"volumes/{record.name}", encode(record), revision))


class Script:
    """A store whose watch plays given events and then waits for ever."""

    def __init__(self, *events: WatchEvent) -> None:
        self._events = events
        self.done = asyncio.Event()

    async def watch(self, prefix: str) -> AsyncIterator[WatchEvent]:
        for event in self._events:
            yield event
        self.done.set()
        await asyncio.Event().wait()


async def play(catalog: Catalog, *events: WatchEvent) -> None:
    script = Script(*events)
    task = asyncio.create_task(catalog.follow(script))  # type: ignore[arg-type]
    await script.done.wait()
    task.cancel()


def names(catalog: Catalog) -> list[str]:
    return [volume.name for volume in catalog.volumes()]


async def test_what_vanished_while_nobody_listened_is_forgotten_at_the_next_sync(
    tmp_path: Path,
) -> None:
    catalog = Catalog(file=DurableFile(tmp_path / "c"), cluster=None, boot_id="b")
    gone = {purged_key(volume("w").id)}
    await play(
        catalog, put(volume("v"), 1), put(volume("w"), 2), Synced(frozenset({"volumes/v"} | gone))
    )
    assert names(catalog) == ["v"]
    gone.add(purged_key(volume("v").id))
    await play(catalog, put(volume("x"), 5), Synced(frozenset({"volumes/x"} | gone)))
    assert names(catalog) == ["x"]
    assert not catalog.doubted()


async def test_what_vanished_without_a_trace_is_kept_and_doubted(tmp_path: Path) -> None:
    """As after the store was restored from a backup that was made before the volume was created."""
    catalog = Catalog(file=DurableFile(tmp_path / "c"), cluster=None, boot_id="b")
    await play(catalog, put(volume("v"), 1), put(volume("w"), 2), Synced(frozenset({"volumes/v"})))
    assert (names(catalog), catalog.doubted()) == (["v", "w"], ["w"])
    await play(catalog, Put(Entry("trash/w.1", encode(replace(volume("w"), changes=1)), 3)))
    await play(catalog, Synced(frozenset({"volumes/v", "trash/w.1"})))
    assert (names(catalog), catalog.doubted()) == (["v"], [])


async def test_what_was_taken_out_of_the_trash_after_the_backup_is_not_in_the_trash(
    tmp_path: Path,
) -> None:
    catalog = Catalog(file=DurableFile(tmp_path / "c"), cluster=None, boot_id="b")
    catalog.remember(replace(volume(), changes=5), revision=9)
    removed = Put(Entry("trash/v.1", encode(replace(volume(), changes=4)), 8))
    await play(catalog, removed, Synced(frozenset({"trash/v.1"})))
    await play(catalog, removed, Synced(frozenset({"trash/v.1"})))
    assert (names(catalog), catalog.doubted(), catalog.trashed()) == (["v"], ["v"], [])


async def test_an_older_record_never_replaces_a_newer_one(tmp_path: Path) -> None:
    catalog = Catalog(file=DurableFile(tmp_path / "c"), cluster=None, boot_id="b")
    catalog.remember(volume(epoch=7), revision=9)
    await play(catalog, put(volume(epoch=6), 8))
    assert catalog.volume("v") == volume(epoch=7)


async def test_a_list_older_than_a_creation_does_not_hide_it(tmp_path: Path) -> None:
    catalog = Catalog(file=DurableFile(tmp_path / "c"), cluster=None, boot_id="b")
    catalog.remember(volume(), revision=9)
    await play(catalog, Synced(frozenset()))
    assert names(catalog) == ["v"]
    await play(catalog, Synced(frozenset()))
    assert catalog.doubted() == ["v"], "only one list can be older"


async def test_deleted_and_put_again_is_there(tmp_path: Path) -> None:
    catalog = Catalog(file=DurableFile(tmp_path / "c"), cluster=None, boot_id="b")
    await play(catalog, put(volume(), 9), Deleted("volumes/v"), put(volume(epoch=3), 10))
    assert catalog.volume("v") == volume(epoch=3)


async def test_an_unreadable_record_is_left_out_and_the_rest_stays(tmp_path: Path) -> None:
    catalog = Catalog(file=DurableFile(tmp_path / "c"), cluster=None, boot_id="b")
    await play(catalog, Put(Entry("volumes/bad", b"{", 1)), put(volume(), 2))
    assert names(catalog) == ["v"]


def of_cluster(name: str) -> Put:
    return Put(Entry("cluster", encode(ClusterRecord(name, 0.0)), 1))


async def test_a_store_that_lost_its_memory_does_not_make_us_lose_ours(tmp_path: Path) -> None:
    catalog = Catalog(file=DurableFile(tmp_path / "c"), cluster="ours", boot_id="b")
    keys = frozenset({"cluster", "volumes/v"})
    await play(catalog, of_cluster("ours"), put(volume(), 5), Synced(keys))
    await play(catalog, Synced(frozenset()))
    assert names(catalog) == ["v"], "an emptied store"
    await play(catalog, Deleted("cluster"), Deleted("volumes/v"))
    assert names(catalog) == ["v"], "a store that is being emptied"
    theirs = frozenset({"cluster", "volumes/w"})
    await play(catalog, of_cluster("theirs"), put(volume("w"), 9), Synced(theirs))
    assert names(catalog) == ["v"], "another cluster's"
    await play(
        catalog,
        of_cluster("ours"),
        put(volume("x"), 9),
        Synced(frozenset({"cluster", "volumes/x", purged_key(volume().id)})),
    )
    assert names(catalog) == ["x"]


async def test_a_strange_store_never_counts_as_heard(tmp_path: Path) -> None:
    catalog = Catalog(file=DurableFile(tmp_path / "c"), cluster="ours", boot_id="b1")
    await play(catalog, Synced(frozenset()))
    assert not catalog.synced.is_set()
    assert not catalog.trusted


async def test_an_older_store_is_doubted_and_followed_once_the_record_was_put_back(
    tmp_path: Path,
) -> None:
    """Revisions begin lower there."""
    catalog = Catalog(file=DurableFile(tmp_path / "c"), cluster=None, boot_id="b")
    keys = frozenset({"volumes/v"})
    await play(catalog, put(volume(epoch=4), 90), Synced(keys))
    await play(catalog, put(volume(epoch=3), 20), Synced(keys))
    assert catalog.volume("v") == volume(epoch=4)
    assert catalog.doubts("v")
    await play(catalog, put(replace(volume(epoch=4), changes=1), 21), Synced(keys))
    await play(catalog, put(volume(epoch=5), 22), Synced(keys))
    assert catalog.volume("v") == volume(epoch=4), "that one has fewer changes"
    await play(catalog, put(replace(volume(epoch=5), changes=2), 23), Synced(keys))
    assert catalog.volume("v") == volume(epoch=5)
    assert not catalog.doubts("v")


async def test_memory_of_the_same_boot_is_trusted_and_of_an_earlier_one_is_not(
    tmp_path: Path,
) -> None:
    first = Catalog(file=DurableFile(tmp_path / "c"), cluster=None, boot_id="b1")
    first.remember(volume(), revision=3)
    first._save()
    for boot, trusted in (("b1", True), ("b2", False)):
        again = Catalog(file=DurableFile(tmp_path / "c"), cluster=None, boot_id=boot)
        again.load()
        assert names(again) == ["v"]
        assert again.trusted is trusted


async def test_a_restart_without_the_store_remembers(tmp_path: Path) -> None:
    first = Catalog(file=DurableFile(tmp_path / "c"), cluster=None, boot_id="b")
    first.remember(volume(), revision=3)
    saver = asyncio.create_task(first.keep_saved())
    while not (tmp_path / "c").exists():
        await asyncio.sleep(0.01)
    saver.cancel()
    second = Catalog(file=DurableFile(tmp_path / "c"), cluster=None, boot_id="b")
    second.load()
    assert second.volumes() == first.volumes()
    assert not second.synced.is_set()


async def test_a_spoilt_copy_on_disk_is_an_empty_memory(tmp_path: Path) -> None:
    (tmp_path / "c").write_bytes(b"\0\1garbage")
    catalog = Catalog(file=DurableFile(tmp_path / "c"), cluster=None, boot_id="b")
    catalog.load()
    assert catalog.volumes() == []


async def test_listeners_hear_each_difference_once(tmp_path: Path) -> None:
    catalog = Catalog(file=DurableFile(tmp_path / "c"), cluster=None, boot_id="b")
    heard: list[Changed] = []
    stop = catalog.listen(heard.append)
    await play(catalog, put(volume(), 1), put(volume(), 1), put(volume(epoch=2), 2))
    await play(catalog, Put(Entry("alive/a", b"boot", 3)), Deleted("alive/a"))
    stop()
    catalog.forget("v")
    assert [(c.kind, c.present) for c in heard] == [
        ("volumes", True),
        ("volumes", True),
        ("alive", True),
        ("alive", False),
    ]


async def test_a_volume_whose_name_another_one_has_now_is_not_doubted(tmp_path: Path) -> None:
    """The store tells the two changes of one step in their order: the trash has the one before the other has the name."""
    data = MemoryData()
    async with MemoryStore(data).session() as store:
        registry = Registry(store)
        before = await registry.add_volume(volume())
        catalog = Catalog(file=DurableFile(tmp_path / "c"), cluster=None, boot_id="b")
        heard: list[Changed] = []
        following = asyncio.create_task(catalog.follow(store))
        while not catalog.synced.is_set():
            await asyncio.sleep(0)
        catalog.listen(heard.append)
        await registry.exchange_volume(
            replace(volume(), id="v.2"),
            expect=before.revision,
            removed=replace(before.record, removed_at=1.0),
        )
        while len(heard) < 2:
            await asyncio.sleep(0)
        following.cancel()
    assert [(each.kind, each.after and each.after.id) for each in heard] == [  # type: ignore[union-attr]
        ("trash", "v.1"),
        ("volumes", "v.2"),
    ]
    assert not catalog.doubted()
    assert [each.id for each in catalog.trashed()] == ["v.1"]
