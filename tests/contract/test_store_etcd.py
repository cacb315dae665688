"""What only a store on several servers can get wrong: lost answers, lost members, lost history."""

from __future__ import annotations

import asyncio
import itertools
import json
import shutil
import ssl
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web
from etcd_server import EtcdCluster, FaultyLink, Member, free_ports
from watcher import PATIENCE_SECONDS, Watcher, watching

from pannier.core.errors import OutcomeUnknown, Stale, StorageError, StoreUnavailable
from pannier.store.base import ABSENT, Change, Entry, Store
from pannier.store.etcd import EtcdStore
from pannier.store.etcd_gateway import Timing

IMPATIENT = Timing(deadline_seconds=1.0, try_seconds=0.5, quiet_seconds=0.3)
"""For faults that never end by themselves."""

_namespaces = itertools.count()


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdCluster]:
    with EtcdCluster(tmp_path_factory.mktemp("single"), size=1).running() as cluster:
        yield cluster


@pytest.fixture(scope="module")
def three_members(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdCluster]:
    with EtcdCluster(tmp_path_factory.mktemp("three"), size=3).running() as cluster:
        yield cluster


@pytest.fixture
def three(three_members: EtcdCluster) -> EtcdCluster:
    """Three members, all up: what the test before broke is mended first."""
    for member in three_members.members:
        if not member.is_running:
            three_members.start(member)
    for member in three_members.members:
        three_members.wait_until_serving(member)
    return three_members


@asynccontextmanager
async def connected(
    cluster: EtcdCluster,
    *,
    endpoints: list[str] | None = None,
    timing: Timing | None = None,
    namespace: str | None = None,
    tls: ssl.SSLContext | None = None,
) -> AsyncIterator[EtcdStore]:
    """An open store, with a namespace of its own unless one is given."""
    store = EtcdStore(
        endpoints or cluster.endpoints,
        tls=tls or cluster.certificates.client(),
        namespace=namespace or f"/test-{next(_namespaces)}/",
        timing=timing,
    )
    async with store.session():
        yield store


@asynccontextmanager
async def links(cluster: EtcdCluster, count: int = 1) -> AsyncIterator[list[FaultyLink]]:
    """Links to the only member."""
    (member,) = cluster.members
    async with AsyncExitStack() as stack:
        opened = []
        for _ in range(count):
            link = FaultyLink(member.client_port)
            await link.open()
            stack.push_async_callback(link.cut)
            opened.append(link)
        yield opened


async def create_in_spite_of_faults(store: Store, key: str) -> None:
    """What a careful caller does: after an unknown outcome, read; after any other, try again."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while True:
            try:
                if await store.get(key) is None:
                    await store.commit(Change(key, b"v", ABSENT))
            except (StoreUnavailable, OutcomeUnknown):
                continue
            return


# Certificates


@pytest.mark.parametrize("who", ["client_without_certificate", "stranger"])
async def test_client_that_the_cluster_does_not_know_is_refused(
    single: EtcdCluster, who: str
) -> None:
    tls = getattr(single.certificates, who)()
    async with connected(single, tls=tls) as store:
        with pytest.raises(StoreUnavailable, match="certificate"):
            await store.get("a")
        with pytest.raises(StoreUnavailable, match="certificate"):
            await store.commit(Change("a", b"1", ABSENT))
        assert "certificate" in (await store.health())[single.endpoints[0]].problem


async def test_member_with_another_ca_is_not_trusted(single: EtcdCluster) -> None:
    async with connected(single, tls=ssl.create_default_context()) as store:
        with pytest.raises(StoreUnavailable, match="certificate"):
            await store.commit(Change("a", b"1", ABSENT))


# The three answers


async def test_commit_whose_answer_is_lost_is_unknown_and_may_have_happened(
    single: EtcdCluster,
) -> None:
    async with (
        links(single) as (link,),
        connected(single, endpoints=[link.endpoint], timing=IMPATIENT) as store,
    ):
        await store.get("a")
        link.lose_answers()
        with pytest.raises(OutcomeUnknown):
            await store.commit(Change("a", b"1", ABSENT))
        link.mend()
        entry = await store.get("a")
        assert entry is not None
        assert entry.value == b"1"


async def test_commit_cut_off_after_it_was_sent_is_unknown(single: EtcdCluster) -> None:
    async with (
        links(single) as (link,),
        connected(single, endpoints=[link.endpoint, *single.endpoints]) as store,
    ):
        await store.get("a")
        link.lose_answers()
        commit = asyncio.create_task(store.commit(Change("a", b"1", ABSENT)))
        await link.swallowed.wait()
        await link.cut()
        with pytest.raises(OutcomeUnknown):
            await commit
        assert await store.get("a") is not None


async def test_commit_that_reached_nobody_goes_to_the_next_endpoint(single: EtcdCluster) -> None:
    nobody = f"127.0.0.1:{free_ports(1)[0]}"
    async with connected(single, endpoints=[nobody, *single.endpoints]) as store:
        revision = await store.commit(Change("a", b"1", ABSENT))
        assert await store.get("a") == Entry("a", b"1", revision)


async def test_commit_over_a_connection_that_cannot_be_made_is_not_unknown(
    single: EtcdCluster,
) -> None:
    async with (
        links(single) as (link,),
        connected(single, endpoints=[link.endpoint], timing=IMPATIENT) as store,
    ):
        link.stall()
        with pytest.raises(StoreUnavailable):
            await store.commit(Change("a", b"1", ABSENT))


async def test_nobody_there_is_unavailable_for_each_call(single: EtcdCluster) -> None:
    nobody = [f"127.0.0.1:{port}" for port in free_ports(2)]
    async with connected(single, endpoints=nobody) as store:
        calls: list[Callable[[], object]] = [
            lambda: store.get("a"),
            lambda: store.list(""),
            lambda: store.commit(Change("a", b"1", ABSENT)),
            lambda: store.grant_lease(5),
            lambda: store.renew_lease("1"),
            lambda: store.revoke_lease("1"),
        ]
        for call in calls:
            with pytest.raises(StoreUnavailable, match=nobody[0]):
                await call()  # type: ignore[misc]
        assert all(each.problem for each in (await store.health()).values())


async def test_reads_and_renewals_move_on_from_a_silent_endpoint(single: EtcdCluster) -> None:
    timing = Timing(deadline_seconds=20, try_seconds=0.5)
    async with (
        links(single) as (link,),
        connected(single, endpoints=[link.endpoint, *single.endpoints], timing=timing) as store,
    ):
        lease = await store.grant_lease(60)
        link.stall()
        await store.renew_lease(lease)
        link.mend()
        link.stall()
        assert await store.get("a") is None


async def test_who_gives_up_on_a_silent_endpoint_asks_another_one_the_next_time(
    single: EtcdCluster,
) -> None:
    """A lease is renewed with less patience than the store has: it must not ask in vain until its end."""
    async with (
        links(single) as (link,),
        connected(single, endpoints=[link.endpoint, *single.endpoints]) as store,
    ):
        lease = await store.grant_lease(60)
        link.stall()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await store.renew_lease(lease)
        async with asyncio.timeout(0.9):  # the silent one would be waited for longer
            await store.renew_lease(lease)


@asynccontextmanager
async def pretended_etcd(message: str, *, code: int) -> AsyncIterator[str]:
    """A server that answers everything with one of etcd's errors."""

    async def answer(_request: web.Request) -> web.Response:
        return web.json_response({"error": message, "message": message, "code": code}, status=500)

    app = web.Application()
    app.router.add_post("/{path:.*}", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


ERRORS = [
    ("etcdserver: no leader", 14, StoreUnavailable),
    ("etcdserver: too many requests", 8, StoreUnavailable),
    ("etcdserver: request timed out", 14, OutcomeUnknown),
    ("etcdserver: request timed out, possibly due to connection lost", 14, OutcomeUnknown),
    ("etcdserver: leader changed", 14, OutcomeUnknown),
    ("etcdserver: server stopped", 14, OutcomeUnknown),
    ("etcdserver: mvcc: database space exceeded", 8, OutcomeUnknown),
    ("context deadline exceeded", 4, OutcomeUnknown),
    ("transport is closing", 14, OutcomeUnknown),
    ("etcdserver: requested lease not found", 5, Stale),
    ("etcdserver: permission denied", 7, StorageError),
]


@pytest.mark.parametrize(("message", "code", "error"), ERRORS)
async def test_commit_is_unknown_exactly_where_etcd_may_have_done_it(
    message: str, code: int, error: type[Exception]
) -> None:
    timing = Timing(deadline_seconds=0.3)
    async with pretended_etcd(message, code=code) as endpoint:
        store = EtcdStore([endpoint], tls=None, timing=timing)
        async with store.session():
            with pytest.raises(error):
                await store.commit(Change("a", b"1", ABSENT))


async def test_reads_go_to_the_next_member_after_an_error() -> None:
    async with (
        pretended_etcd("etcdserver: leader changed", code=14) as first,
        pretended_etcd("etcdserver: permission denied", code=7) as second,
    ):
        store = EtcdStore([first, second], tls=None)
        async with store.session():
            with pytest.raises(StorageError, match="permission denied"):
                await store.get("a")


# Leases


async def test_renewed_lease_outlives_one_that_is_not(single: EtcdCluster) -> None:
    async with connected(single) as store:
        kept, left = await store.grant_lease(2), await store.grant_lease(2)
        await store.commit(Change("kept", b"", ABSENT, kept), Change("left", b"", ABSENT, left))
        async with asyncio.timeout(PATIENCE_SECONDS):
            while await store.get("left") is not None:
                await store.renew_lease(kept)
                await asyncio.sleep(0.1)
        assert await store.get("kept") is not None


# Watches


async def test_watch_resumes_after_a_lost_connection_and_misses_nothing(
    single: EtcdCluster,
) -> None:
    namespace = "/resumed/"
    async with (
        links(single) as (link,),
        connected(single, endpoints=[link.endpoint], namespace=namespace) as cut_off,
        connected(single, namespace=namespace) as store,
        watching(cut_off, "w/") as watcher,
    ):
        revision = await store.commit(Change("w/a", b"1", ABSENT))
        await watcher.until_present("w/a")
        await link.cut()
        revision = await store.commit(Change("w/a", b"2", revision))
        await store.commit(Change("w/a", None, revision))
        await store.commit(Change("w/a", b"3", ABSENT), Change("w/b", b"1", ABSENT))
        await link.open()
        await watcher.until_present("w/a", "w/b")
        assert watcher.values("w/a") == [b"1", b"2", None, b"3"]
        assert watcher.begun() == 1


async def test_watch_begins_again_where_the_missed_changes_were_compacted(
    single: EtcdCluster,
) -> None:
    namespace = "/compacted/"
    async with (
        links(single) as (link,),
        connected(single, endpoints=[link.endpoint], namespace=namespace) as cut_off,
        connected(single, namespace=namespace) as store,
    ):
        revision = await store.commit(Change("w/gone", b"1", ABSENT), Change("w/a", b"1", ABSENT))
        async with watching(cut_off, "w/") as watcher:
            await link.cut()
            await store.commit(Change("w/gone", None, revision))
            last = await store.commit(Change("w/b", b"1", ABSENT))
            body = b'{"revision": %d}' % last
            await asyncio.to_thread(single.post, single.members[0], "kv/compaction", body)
            await link.open()
            await watcher.until_synced(times=2)
            await watcher.until_present("w/a", "w/b")


async def test_watch_moves_on_from_a_half_dead_connection(single: EtcdCluster) -> None:
    namespace = "/half-dead/"
    async with (
        links(single, 2) as (first, second),
        connected(
            single,
            endpoints=[first.endpoint, second.endpoint],
            namespace=namespace,
            timing=IMPATIENT,
        ) as store,
        connected(single, namespace=namespace) as other,
        watching(store, "w/") as watcher,
    ):
        first.stall()
        await other.commit(Change("w/a", b"1", ABSENT))
        await watcher.until_present("w/a")
        second.stall()
        first.mend()
        await other.commit(Change("w/b", b"1", ABSENT))
        await watcher.until_present("w/a", "w/b")
        assert watcher.values("w/a") == [b"1"]


async def test_quiet_watch_stays_on_its_connection(single: EtcdCluster) -> None:
    timing = Timing(quiet_seconds=0.05)
    async with connected(single, timing=timing) as store, watching(store, "w/") as watcher:
        await asyncio.sleep(0.3)  # Several quiet spells.
        await store.commit(Change("w/a", b"1", ABSENT))
        await watcher.until_present("w/a")
        assert watcher.begun() == 1


async def test_watch_begins_again_where_etcd_lost_its_history(tmp_path: Path) -> None:
    with EtcdCluster(tmp_path, size=1).running() as cluster:
        (member,) = cluster.members
        async with (
            connected(cluster, timing=IMPATIENT) as store,
            watching(store, "w/") as watcher,
        ):
            revision = ABSENT
            for _ in range(10):
                revision = await store.commit(Change("w/a", b"1", revision))
            await watcher.until(lambda: len(watcher.values("w/a")) == 10)
            member.kill()
            shutil.rmtree(tmp_path / member.name)
            cluster.start(member)
            await watcher.until_synced(times=2)
            await watcher.until_present()


async def test_watch_begins_again_where_a_restored_etcd_has_gone_further_than_before(
    tmp_path: Path,
) -> None:
    """Its revision does not tell then."""
    backup, namespace = tmp_path / "backup.db", "/restored/"
    with EtcdCluster(tmp_path, size=1).running() as cluster:
        (member,) = cluster.members
        async with (
            links(cluster) as (link,),
            connected(cluster, endpoints=[link.endpoint], namespace=namespace) as cut_off,
            connected(cluster, namespace=namespace) as store,
            watching(cut_off, "w/") as watcher,
        ):
            await store.commit(Change("w/old", b"1", ABSENT))
            await asyncio.to_thread(cluster.etcdctl, member, "snapshot", "save", str(backup))
            await store.commit(Change("w/lost", b"1", ABSENT))
            await watcher.until_present("w/old", "w/lost")
            await link.cut()
            member.kill()
            shutil.rmtree(tmp_path / member.name)
            await asyncio.to_thread(cluster.restore, member, backup)
            cluster.start(member)
            await asyncio.to_thread(cluster.wait_until_serving, member)
            for number in range(10):
                await create_in_spite_of_faults(store, f"w/new-{number}")
            await link.open()
            await watcher.until_synced(times=2)
            await watcher.until_present("w/old", *(f"w/new-{number}" for number in range(10)))


async def test_watch_waits_for_a_store_that_is_not_there_yet(single: EtcdCluster) -> None:
    link = FaultyLink(single.members[0].client_port)
    await link.open()
    await link.cut()
    async with connected(single, endpoints=[link.endpoint]) as store:
        watcher = Watcher()
        task = asyncio.create_task(watcher.follow(store, ""))
        await asyncio.sleep(0.2)
        assert not task.done()
        await link.open()
        await watcher.until_synced()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    await link.cut()


async def test_namespaces_do_not_see_each_other(single: EtcdCluster) -> None:
    async with (
        connected(single, namespace="/one/") as one,
        connected(single, namespace="/one/two/") as two,
        connected(single, namespace="/three/") as three,
        watching(three, "") as watcher,
    ):
        await two.commit(Change("a", b"2", ABSENT))
        await three.commit(Change("b", b"3", ABSENT))
        assert [entry.key for entry in await two.list("")] == ["a"]
        assert [entry.key for entry in await one.list("")] == ["two/a"]
        await watcher.until_present("b")


# Three members


async def test_leader_killed_commits_lease_and_watches_go_on(three: EtcdCluster) -> None:
    leader = await asyncio.to_thread(three.leader)
    async with connected(three, endpoints=first_of(three, leader)) as store:
        lease = await store.grant_lease(60)
        await store.commit(Change("w/leased", b"1", ABSENT, lease))
        async with watching(store, "w/") as watcher:
            leader.kill()
            await create_in_spite_of_faults(store, "w/a")
            await watcher.until_present("w/leased", "w/a")
            await renew_in_spite_of_faults(store, lease)
            assert watcher.values("w/a") == [b"v"]
        health = await store.health()
        assert health[leader.endpoint].problem
        assert [each.in_short for each in health.values()].count("ok") == 2


@pytest.mark.parametrize("leads", [True, False])
async def test_stopped_member_in_use_is_left_by_calls_and_watches(
    three: EtcdCluster, leads: bool
) -> None:
    leader = await asyncio.to_thread(three.leader)
    stopped = leader if leads else next(each for each in three.members if each is not leader)
    namespace = f"/stopped-{leads}/"
    async with (
        connected(
            three,
            endpoints=first_of(three, stopped),
            namespace=namespace,
            timing=Timing(quiet_seconds=1.0),
        ) as store,
        watching(store, "w/") as watcher,
    ):
        stopped.stop()
        try:
            await create_in_spite_of_faults(store, "w/a")
            await watcher.until_present("w/a")
            assert (await store.health())[stopped.endpoint].problem
        finally:
            stopped.go_on()
        await create_in_spite_of_faults(store, "w/b")
        await watcher.until_present("w/a", "w/b")
        assert watcher.values("w/a") == [b"v"]


async def test_a_full_database_is_told_with_the_way_out_and_that_way_is_right(
    tmp_path: Path,
) -> None:
    full = EtcdCluster(tmp_path, size=1, options=("--quota-backend-bytes", str(1 << 20)))
    (member,) = full.members
    with full.running():
        async with connected(full) as store:
            with pytest.raises((StoreUnavailable, OutcomeUnknown)):
                await write_for_ever(store)
            told = (await store.health())[member.endpoint]
            assert "takes no writes" in told.problem
            assert all(word in told.remedy for word in ("compact", "defrag", "alarm disarm"))
            await asyncio.to_thread(give_room, full, member)
            assert (await store.health())[member.endpoint].problem == ""
            await store.commit(Change("b", b"1", ABSENT))


async def write_for_ever(store: Store) -> None:
    """One key, again and again: each time leaves the one before behind."""
    revision = ABSENT
    while True:
        revision = await store.commit(Change("a", b"x" * 500_000, revision))


def give_room(cluster: EtcdCluster, member: Member) -> None:
    """What the remedy says."""
    status = json.loads(cluster.post(member, "maintenance/status", b"{}"))
    for command in (("compact", status["header"]["revision"]), ("defrag",), ("alarm", "disarm")):
        cluster.etcdctl(member, *command)


async def test_minority_neither_reads_nor_writes_nor_renews(three: EtcdCluster) -> None:
    async with connected(three) as store:
        lease = await store.grant_lease(60)
    first, second, last = three.members
    first.kill()
    second.kill()
    async with connected(three, endpoints=[last.endpoint], timing=IMPATIENT) as store:
        with pytest.raises(StoreUnavailable):
            await store.get("a")
        with pytest.raises(StoreUnavailable):
            await store.renew_lease(lease)
        with pytest.raises((StoreUnavailable, OutcomeUnknown)):
            await store.commit(Change("a", b"1", ABSENT))
        assert (await store.health())[last.endpoint].problem


def first_of(cluster: EtcdCluster, member: Member) -> list[str]:
    """All endpoints, this member's first."""
    others = [each.endpoint for each in cluster.members if each is not member]
    return [member.endpoint, *others]


async def renew_in_spite_of_faults(store: Store, lease: str) -> None:
    """Renew until it is confirmed."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while True:
            try:
                return await store.renew_lease(lease)
            except StoreUnavailable:
                continue
