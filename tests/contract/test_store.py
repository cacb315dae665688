"""The contract of :class:`pannier.store.base.Store`, run against every implementation."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from etcd_server import EtcdCluster
from watcher import watching

from pannier.core.errors import InvalidInput, Stale
from pannier.store.base import ABSENT, Change, Deleted, Entry, Put, Store, Synced
from pannier.store.changes import MAX_BYTES, MAX_CHANGES
from pannier.store.etcd import EtcdStore
from pannier.store.sqlite import SqliteStore
from pannier.testing.store import MemoryData, MemoryStore

_namespaces = itertools.count()


@pytest.fixture(scope="module")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdCluster]:
    with EtcdCluster(tmp_path_factory.mktemp("etcd"), size=1).running() as cluster:
        yield cluster


@pytest.fixture(params=["memory", "sqlite", "etcd"])
def closed(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Store, Store]:
    """Two nodes' stores of the same data, not open (SQLite: one node, so twice the same)."""
    if request.param == "memory":
        data = MemoryData()
        return MemoryStore(data), MemoryStore(data)
    if request.param == "sqlite":
        only = SqliteStore(tmp_path / "store.db")
        return only, only
    cluster: EtcdCluster = request.getfixturevalue("etcd")
    namespace = f"/test-{next(_namespaces)}/"
    tls = cluster.certificates.client()
    return (
        EtcdStore(cluster.endpoints, tls=tls, namespace=namespace),
        EtcdStore(cluster.endpoints, tls=tls, namespace=namespace),
    )


@pytest.fixture
async def stores(closed: tuple[Store, Store]) -> AsyncIterator[tuple[Store, Store]]:
    async with AsyncExitStack() as stack:
        for store in dict.fromkeys(closed):
            await stack.enter_async_context(store.session())
        yield closed


@pytest.fixture
def store(stores: tuple[Store, Store]) -> Store:
    return stores[0]


@pytest.fixture
def other(stores: tuple[Store, Store]) -> Store:
    return stores[1]


async def put(store: Store, key: str, value: bytes = b"v", *, lease: str | None = None) -> int:
    """Set a key, whatever it is now."""
    present = await store.get(key)
    expect = present.revision if present else ABSENT
    return await store.commit(Change(key, value, expect, lease))


async def delete(store: Store, key: str) -> None:
    """Delete a key that is there."""
    present = await store.get(key)
    assert present is not None
    await store.commit(Change(key, None, present.revision))


# Reading and writing


async def test_absent_key_is_none(store: Store) -> None:
    assert await store.get("nothing") is None
    assert await store.list("nothing") == ()


async def test_committed_entry_is_read_back_with_the_revision_of_its_commit(
    store: Store, other: Store
) -> None:
    revision = await store.commit(Change("a", b"1", ABSENT))
    assert revision >= 1
    assert await other.get("a") == Entry("a", b"1", revision)


async def test_revision_rises_with_each_change_also_across_a_deletion(store: Store) -> None:
    first = await store.commit(Change("a", b"1", ABSENT))
    second = await store.commit(Change("a", b"1", first))
    await store.commit(Change("a", None, second))
    third = await store.commit(Change("a", b"1", ABSENT))
    assert first < second < third


async def test_a_change_leaves_other_keys_at_their_revision(store: Store) -> None:
    revision = await put(store, "a")
    await put(store, "b")
    assert await store.get("a") == Entry("a", b"v", revision)


@pytest.mark.parametrize("value", [b"", b"\0", bytes(range(256)) * 40, b'{"a": "\xff"}', b"\n\n"])
async def test_values_are_bytes_and_come_back_unchanged(store: Store, value: bytes) -> None:
    await put(store, "binary", value)
    entry = await store.get("binary")
    assert entry is not None
    assert entry.value == value
    assert (await store.list("binary"))[0].value == value


ODD_KEYS = [
    "volumes/a b",
    "volumes/%2F",
    "volumes/ä€😀",
    "volumes/_%*?[x]",
    "volumes/'\";--",
    "volumes/\n",
    "volumes/a\0b",
    "volumes//",
    "/",
    "volumes/" + "k" * 1000,
]


@pytest.mark.parametrize("key", ODD_KEYS)
async def test_keys_may_have_odd_characters(store: Store, key: str) -> None:
    async with watching(store, key) as watcher:
        revision = await store.commit(Change(key, b"1", ABSENT))
        entry = Entry(key, b"1", revision)
        assert await store.get(key) == entry
        assert await store.list(key) == (entry,)
        await watcher.until_present(key)
        await store.commit(Change(key, None, revision))
        await watcher.until_present()
    assert await store.get(key) is None


async def test_list_gives_exactly_the_keys_with_the_prefix_sorted(store: Store) -> None:
    keys = ["a", "a/", "a/b", "a0", "ab", "b", "A", "a/\U0010ffff", "a/é", "a/z"]
    for key in keys:
        await put(store, key)

    async def listed(prefix: str) -> list[str]:
        return [entry.key for entry in await store.list(prefix)]

    assert await listed("a/") == ["a/", "a/b", "a/z", "a/é", "a/\U0010ffff"]
    assert await listed("ab") == ["ab"]
    assert await listed("a/\U0010ffff") == ["a/\U0010ffff"]
    assert await listed("") == sorted(keys)
    assert await listed("c") == []


async def test_a_thousand_keys_are_listed_and_watched(store: Store, other: Store) -> None:
    keys = [f"many/{number:04}" for number in range(1000)]
    async with watching(other, "many/") as watcher:
        for first in range(0, len(keys), 100):
            await store.commit(*(Change(key, b"x" * 200, 0) for key in keys[first : first + 100]))
        assert [entry.key for entry in await other.list("many/")] == keys
        await watcher.until_present(*keys)
    async with watching(other, "many/") as late:
        assert list(late.present) == keys


async def test_large_record_is_written_read_and_watched(store: Store) -> None:
    value = b"\xff" * (MAX_BYTES - 100)
    async with watching(store, "large") as watcher:
        await put(store, "large", value)
        entry = await store.get("large")
        assert entry is not None
        assert entry.value == value
        await watcher.until_present("large")
        assert watcher.present["large"].value == value


# Compare and swap


async def test_create_of_a_present_key_is_stale(store: Store) -> None:
    await put(store, "a", b"1")
    with pytest.raises(Stale):
        await store.commit(Change("a", b"2", ABSENT))
    entry = await store.get("a")
    assert entry is not None
    assert entry.value == b"1"


async def test_change_at_an_old_revision_is_stale(store: Store) -> None:
    old = await put(store, "a", b"1")
    new = await put(store, "a", b"2")
    for value in (b"3", None):
        with pytest.raises(Stale):
            await store.commit(Change("a", value, old))
    assert await store.get("a") == Entry("a", b"2", new)


async def test_change_of_a_deleted_key_is_stale(store: Store) -> None:
    revision = await put(store, "a")
    await delete(store, "a")
    with pytest.raises(Stale):
        await store.commit(Change("a", b"2", revision))
    assert await store.get("a") is None


async def test_deletion_may_demand_that_the_key_is_absent(store: Store) -> None:
    await store.commit(Change("guard", None, ABSENT), Change("a", b"1", ABSENT))
    await put(store, "guard")
    with pytest.raises(Stale):
        await store.commit(Change("guard", None, ABSENT), Change("b", b"1", ABSENT))
    assert await store.get("b") is None


async def test_of_many_writers_exactly_one_wins_each_round(store: Store, other: Store) -> None:
    revision = ABSENT
    for _ in range(15):
        outcomes = await asyncio.gather(
            *(
                (store if number % 2 else other).commit(Change("race", b"%d" % number, revision))
                for number in range(10)
            ),
            return_exceptions=True,
        )
        winners = {
            number: outcome for number, outcome in enumerate(outcomes) if isinstance(outcome, int)
        }
        assert len(winners) == 1
        assert sum(isinstance(outcome, Stale) for outcome in outcomes) == 9
        ((winner, revision),) = winners.items()
        assert await other.get("race") == Entry("race", b"%d" % winner, revision)


async def test_counting_by_compare_and_swap_loses_no_step(store: Store, other: Store) -> None:
    async def count(mine: Store) -> None:
        for _ in range(10):
            while True:
                entry = await mine.get("counter")
                value = int(entry.value) + 1 if entry else 1
                expect = entry.revision if entry else ABSENT
                try:
                    await mine.commit(Change("counter", b"%d" % value, expect))
                except Stale:
                    continue
                break

    await asyncio.gather(count(store), count(other), count(store), count(other))
    entry = await store.get("counter")
    assert entry is not None
    assert entry.value == b"40"


# Transactions


async def test_transaction_changes_all_keys_at_one_revision(store: Store, other: Store) -> None:
    a = await put(store, "a")
    b = await put(store, "b")
    revision = await store.commit(
        Change("a", b"new", a), Change("b", None, b), Change("c", b"new", ABSENT)
    )
    assert await other.list("") == (Entry("a", b"new", revision), Entry("c", b"new", revision))


async def test_transaction_with_one_stale_key_changes_nothing(store: Store) -> None:
    await put(store, "a")
    await put(store, "b")
    before = await store.list("")
    a = before[0].revision
    with pytest.raises(Stale):
        await store.commit(
            Change("a", b"new", a), Change("b", b"new", a), Change("c", b"new", ABSENT)
        )
    assert await store.list("") == before


async def test_readers_never_see_half_a_transaction(store: Store, other: Store) -> None:
    expect = await store.commit(Change("x/a", b"0", ABSENT), Change("x/b", b"0", ABSENT))
    done = False

    async def write() -> None:
        nonlocal expect, done
        for number in range(1, 40):
            value = b"%d" % number
            expect = await store.commit(Change("x/a", value, expect), Change("x/b", value, expect))
        done = True

    async def read() -> None:
        while not done:
            a, b = await other.list("x/")
            assert a.value == b.value

    await asyncio.gather(write(), read())


async def test_impossible_transactions_are_the_callers_mistake(store: Store) -> None:
    wrong = [
        (),
        (Change("a", b"1", ABSENT), Change("a", b"2", ABSENT)),
        (Change("", b"1", ABSENT),),
        (Change("a", b"1", -1),),
        (Change("a", None, ABSENT, lease="1"),),
    ]
    for changes in wrong:
        with pytest.raises(ValueError, match=r"."):
            await store.commit(*changes)
    assert await store.list("") == ()


async def test_too_large_a_transaction_is_refused_and_the_largest_is_not(store: Store) -> None:
    with pytest.raises(InvalidInput):
        await store.commit(Change("a", b"x" * (MAX_BYTES + 1), ABSENT))
    many = [Change(f"k{number}", b"", ABSENT) for number in range(MAX_CHANGES + 1)]
    with pytest.raises(InvalidInput):
        await store.commit(*many)
    assert await store.list("") == ()
    await store.commit(*many[:-1])
    assert len(await store.list("")) == MAX_CHANGES


# Watches


async def test_watch_begins_with_what_is_there_and_synced(store: Store) -> None:
    first = await put(store, "w/a", b"1")
    second = await put(store, "w/b", b"2")
    await put(store, "x")
    async with watching(store, "w/") as watcher:
        assert watcher.events == [
            Put(Entry("w/a", b"1", first)),
            Put(Entry("w/b", b"2", second)),
            Synced(frozenset({"w/a", "w/b"})),
        ]


async def test_watch_of_nothing_is_synced_at_once(store: Store) -> None:
    async with watching(store, "w/") as watcher:
        assert watcher.events == [Synced(frozenset())]


async def test_watch_tells_every_change_in_order(store: Store, other: Store) -> None:
    async with watching(other, "w/") as watcher:
        expected: list[Put | Deleted] = []
        for number in range(30):
            value = b"%d" % number
            revision = await put(store, "w/a", value)
            expected.append(Put(Entry("w/a", value, revision)))
            if number % 3 == 0:
                await delete(store, "w/a")
                expected.append(Deleted("w/a"))
        await put(store, "w/end")
        await watcher.until(lambda: "w/end" in watcher.present)
        assert watcher.events[1:-1] == expected


async def test_watch_tells_only_of_its_prefix(store: Store) -> None:
    async with watching(store, "w/a") as watcher:
        for key in ("w/", "w/A", "w/b", "w/a", "w/ab", "x", "w/a/c"):
            await put(store, key)
        await delete(store, "w/b")
        await watcher.until_present("w/a", "w/ab", "w/a/c")
        assert len(watcher.events) == 4


async def test_each_watch_tells_everything(store: Store, other: Store) -> None:
    async with watching(store, "") as first, watching(other, "w/") as second:
        await put(store, "w/a")
        await put(other, "w/b")
        await first.until_present("w/a", "w/b")
        await second.until_present("w/a", "w/b")


async def test_transaction_that_changed_nothing_is_not_told(store: Store) -> None:
    revision = await put(store, "w/a")
    async with watching(store, "w/") as watcher:
        with pytest.raises(Stale):
            await store.commit(Change("w/a", b"2", revision), Change("w/b", b"2", revision))
        await put(store, "w/end")
        await watcher.until(lambda: "w/end" in watcher.present)
        assert [type(event) for event in watcher.events] == [Put, Synced, Put]


async def test_no_change_is_missed_while_a_watch_begins(store: Store, other: Store) -> None:
    async def write() -> None:
        for number in range(50):
            await put(store, f"w/{number}")

    writing = asyncio.create_task(write())
    for _ in range(5):
        async with watching(other, "w/") as watcher:
            await put(other, "w/mark")
            await watcher.until(lambda: "w/mark" in watcher.present)
    async with watching(other, "w/") as last:
        await writing
        await last.until_present("w/mark", *(f"w/{number}" for number in range(50)))
        assert [tuple(last.values(f"w/{number}")) for number in range(50)] == [(b"v",)] * 50


# Leases


async def test_lease_that_runs_out_deletes_its_keys_and_a_watch_tells(
    store: Store, other: Store
) -> None:
    lease = await store.grant_lease(1)
    await put(store, "nodes/a", lease=lease)
    await put(store, "nodes/b", lease=lease)
    await put(store, "nodes/c")
    async with watching(other, "nodes/") as watcher:
        await watcher.until_present("nodes/c")
        assert watcher.values("nodes/a")[-1] is None
        assert await store.get("nodes/a") is None
    with pytest.raises(Stale):
        await store.renew_lease(lease)
    with pytest.raises(Stale):
        await put(store, "nodes/a", lease=lease)


async def test_revoked_lease_deletes_its_keys_and_cannot_be_renewed(
    store: Store, other: Store
) -> None:
    lease = await store.grant_lease(60)
    await put(store, "nodes/a", lease=lease)
    async with watching(other, "nodes/") as watcher:
        await store.revoke_lease(lease)
        await watcher.until_present()
    with pytest.raises(Stale):
        await other.renew_lease(lease)


async def test_revoking_again_or_an_unknown_lease_is_no_error(store: Store) -> None:
    lease = await store.grant_lease(60)
    for _ in range(2):
        await store.revoke_lease(lease)
    await store.revoke_lease("12345")
    await store.revoke_lease("no-such-lease")


@pytest.mark.parametrize("lease", ["12345", "no-such-lease", "0", "-1", "9" * 40])
async def test_unknown_lease_is_stale(store: Store, lease: str) -> None:
    with pytest.raises(Stale):
        await store.renew_lease(lease)
    with pytest.raises(Stale):
        await store.commit(Change("a", b"1", ABSENT), Change("b", b"1", ABSENT, lease))
    assert await store.list("") == ()


async def test_key_written_again_without_a_lease_outlives_it(store: Store) -> None:
    lease = await store.grant_lease(60)
    await put(store, "a", lease=lease)
    await put(store, "b", lease=lease)
    await put(store, "a")
    await store.revoke_lease(lease)
    assert [entry.key for entry in await store.list("")] == ["a"]


async def test_key_moved_to_another_lease_ends_with_that_one(store: Store) -> None:
    first, second = await store.grant_lease(60), await store.grant_lease(60)
    assert first != second
    await put(store, "a", lease=first)
    await put(store, "a", lease=second)
    await store.revoke_lease(first)
    assert await store.get("a") is not None
    await store.revoke_lease(second)
    assert await store.get("a") is None


async def test_deleted_and_recreated_key_is_free_of_its_old_lease(store: Store) -> None:
    lease = await store.grant_lease(60)
    await put(store, "a", lease=lease)
    await delete(store, "a")
    await put(store, "a")
    await store.revoke_lease(lease)
    assert await store.get("a") is not None


# Sessions and health


async def test_data_outlives_the_session(closed: tuple[Store, Store]) -> None:
    store, _ = closed
    async with store.session():
        lease = await store.grant_lease(60)
        await put(store, "leased", lease=lease)
        revision = await put(store, "a", b"1")
    async with store.session():
        assert await store.get("a") == Entry("a", b"1", revision)
        await store.renew_lease(lease)
        assert await put(store, "b") > revision
        await store.revoke_lease(lease)
        assert await store.get("leased") is None


async def test_use_outside_a_session_is_the_callers_mistake(closed: tuple[Store, Store]) -> None:
    store, _ = closed
    with pytest.raises(RuntimeError):
        await store.get("a")
    with pytest.raises(RuntimeError):
        await store.commit(Change("a", b"1", ABSENT))
    with pytest.raises(RuntimeError):
        await anext(store.watch(""))


async def test_healthy_store_is_ok(store: Store) -> None:
    health = await store.health()
    assert {one.in_short for one in health.values()} == {"ok"}
