"""The faults that the store in memory can play."""

from __future__ import annotations

import asyncio

import pytest
from watcher import watching

from pannier.core.errors import OutcomeUnknown, StoreUnavailable
from pannier.store.base import ABSENT, Change
from pannier.testing.store import MemoryData, MemoryStore


async def test_cut_store_is_unavailable_to_its_node_only() -> None:
    data = MemoryData()
    mine, theirs = MemoryStore(data, name="mine"), MemoryStore(data)
    async with mine.session(), theirs.session():
        mine.cut()
        with pytest.raises(StoreUnavailable):
            await mine.commit(Change("a", b"1", ABSENT))
        assert await theirs.get("a") is None
        assert (await mine.health())["mine"].problem
        mine.mend()
        await mine.commit(Change("a", b"1", ABSENT))


async def test_lost_request_changes_nothing_and_lost_answer_does() -> None:
    async with MemoryStore().session() as store:
        store.lose_requests()
        with pytest.raises(OutcomeUnknown):
            await store.commit(Change("a", b"1", ABSENT))
        assert await store.get("a") is None
        store.lose_answers()
        with pytest.raises(OutcomeUnknown):
            await store.commit(Change("a", b"1", ABSENT))
        assert await store.get("a") is not None
        await store.commit(Change("b", b"1", ABSENT))


async def test_watch_begins_again_after_a_cut_and_tells_what_is_gone() -> None:
    data = MemoryData()
    mine, theirs = MemoryStore(data), MemoryStore(data)
    async with mine.session(), theirs.session():
        revision = await theirs.commit(Change("w/gone", b"1", ABSENT), Change("w/a", b"1", ABSENT))
        async with watching(mine, "w/") as watcher:
            mine.cut()
            await theirs.commit(Change("w/gone", None, revision))
            await theirs.commit(Change("w/b", b"1", ABSENT))
            await asyncio.sleep(0)
            assert set(watcher.present) == {"w/gone", "w/a"}
            mine.mend()
            await watcher.until_synced(times=2)
            await watcher.until_present("w/a", "w/b")


async def test_leases_follow_a_clock_that_the_test_owns() -> None:
    now = 0.0
    data = MemoryData(clock=lambda: now)
    async with MemoryStore(data).session() as store:
        lease = await store.grant_lease(10)
        await store.commit(Change("leased", b"1", ABSENT, lease))
        now = 9.0
        await store.renew_lease(lease)
        now = 18.0
        assert await store.get("leased") is not None
        async with watching(store, "") as watcher:
            now = 19.0
            data.expire_due()
            await watcher.until_present()
