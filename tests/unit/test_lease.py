"""The lease: until when a node may believe that it holds a volume, whatever the clocks do."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from math import inf

import pytest
import pytest_asyncio
from world import event_loop_policy

from pannier.agent.lease import Lease
from pannier.agent.own_name import OwnName, StoreUnderName
from pannier.agent.renewal import Held, Renewal
from pannier.core.errors import InvalidInput, StoreUnavailable, Unavailable
from pannier.core.lease import Standing, Terms, held_until, promised_until
from pannier.core.volume import Durability, Grant, Volume, VolumeSpec
from pannier.host.clock import Clock
from pannier.store.base import ABSENT, Change, Entry
from pannier.testing.store import MemoryData, MemoryStore

__all__ = ["event_loop_policy"]

TERMS = Terms(8.0)
VOLUME = Volume(
    name="vol",
    id="vol.1",
    spec=VolumeSpec(copies=2, durability=Durability.FSYNC),
    grant=Grant("a", 1),
    replicas=("b",),
    in_sync=("b",),
    created_at=0.0,
)
SINGLE = replace(VOLUME, spec=VolumeSpec(), replicas=(), in_sync=())


class Node:
    """A lease with its own clock, and its connection to the store."""

    def __init__(self, data: MemoryData, *, boot_id: str = "x") -> None:
        self.store = MemoryStore(data)
        self.name = OwnName("a", boot_id)
        self.rate = 1.0
        self.wanted = True
        self.renewal = self.new_renewal()
        self.lease = Lease(
            self.store, keeper=self.renewal, name=self.name, terms=TERMS, clock=self.clock
        )

    @property
    def clock(self) -> Clock:
        return Clock(now=self.now, unix=self.now)

    def new_renewal(self) -> Renewal:
        """As of a daemon that was started again."""
        return Renewal(
            self.store,
            node="a",
            boot_id=self.name.boot_id,
            terms=TERMS,
            clock=self.clock,
            wanted=lambda: self.wanted,
        )

    def now(self) -> float:
        return self.rate * asyncio.get_running_loop().time()

    def is_up(self) -> bool:
        """What everybody else sees."""
        return self.store.data.get("alive/a") is not None


@pytest_asyncio.fixture
async def node() -> AsyncIterator[Node]:
    node = Node(MemoryData())
    async with node.store.session():
        keeping = asyncio.create_task(node.renewal.run())
        await asyncio.sleep(0.1)
        yield node
        keeping.cancel()


# -- arithmetic ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("ttl", [2.0, 4.0, 60.0])
def test_two_renewals_may_be_lost(ttl: float) -> None:
    terms = Terms(ttl)
    assert terms.trusted_until(100.0) - 100.0 == ttl - terms.margin
    assert 3 * terms.renewal <= ttl - terms.margin


@pytest.mark.parametrize("ttl", [1.9, 60.1, 0.0, -4.0])
def test_a_lease_too_short_or_too_long_is_refused(ttl: float) -> None:
    with pytest.raises(InvalidInput, match="is not possible"):
        Terms(ttl)


def test_a_promise_ends_early_here() -> None:
    assert promised_until(100.0, 10.0) == 109.0


def test_without_rivals_nothing_ends() -> None:
    assert held_until((), lease_until=-inf, promises={}) == inf


def test_the_lease_or_the_promises_of_all_rivals_count() -> None:
    until = {"b": 20.0, "c": 10.0}
    assert held_until(("b", "c"), lease_until=5.0, promises=until) == 10.0
    assert held_until(("b", "c"), lease_until=15.0, promises=until) == 15.0
    assert held_until(("b", "c", "d"), lease_until=5.0, promises=until) == 5.0
    assert held_until(("b",), lease_until=-inf, promises={}) == -inf


@pytest.mark.parametrize(
    ("lease_until", "promised_until", "expected"),
    [
        (100.001, -inf, True),
        (100.0, -inf, False),  # its end itself is over
        (-inf, 100.001, True),
        (-inf, 100.0, False),
        (100.0, 100.001, True),
        (-inf, -inf, False),
    ],
)
def test_what_a_node_can_show_at_a_moment(
    lease_until: float, promised_until: float, expected: bool
) -> None:
    standing = Standing(
        now=100.0, read=True, lease_until=lease_until, promises={"b": promised_until}
    )
    assert standing.holds({"b"}) is expected
    assert standing.holds(()), "nobody could take it over"
    unread = replace(standing, read=False)
    assert not unread.holds({"b"})
    assert not unread.holds(()), "an earlier run may have known of a rival"


# -- keeping it ----------------------------------------------------------------------------------------


async def test_it_is_renewed_for_as_long_as_the_store_answers(node: Node) -> None:
    for _ in range(200):
        await asyncio.sleep(0.7)
        assert node.is_up()
        assert node.lease.until - node.now() >= TERMS.ttl - TERMS.margin - TERMS.renewal - 0.1
        assert node.lease.term == 1
        assert not node.lease.in_danger


@pytest.mark.parametrize("rate", [0.8, 0.9, 1.0, 1.1, 1.25])
async def test_it_is_over_here_before_it_is_over_in_the_store(node: Node, rate: float) -> None:
    """With a clock that runs wrong by a fifth, too; and a renewal is counted from its question."""
    node.rate = rate
    await asyncio.sleep(20)
    for latency in (0.0, 0.5, 1.5):
        node.store.latency_seconds = latency
        await asyncio.sleep(20)
        node.store.cut()
        while node.now() < node.lease.until:
            assert node.is_up()
            await asyncio.sleep(0.01)
        await asyncio.sleep(10)
        assert not node.is_up()
        node.store.mend()
        node.store.latency_seconds = 0.0
        await asyncio.sleep(10)
        assert node.is_up()


async def test_a_node_that_does_not_work_any_more_lets_its_lease_run_out(node: Node) -> None:
    node.lease.proven(VOLUME, term=1)
    await asyncio.sleep(20)
    node.wanted = False
    await asyncio.sleep(TERMS.ttl + 0.1)
    assert not node.is_up()
    assert not node.lease.holds(VOLUME)
    node.wanted = True
    await asyncio.sleep(TERMS.renewal + 0.1)
    assert node.lease.term == 2
    assert not node.lease.holds(VOLUME)


async def test_what_one_lease_proved_is_never_served_on_another_one_that_comes_meanwhile(
    node: Node,
) -> None:
    """Renewals come from another process: between any two looks of a decision, the next term may begin."""

    class Changing(Renewal):
        """Has another answer each time."""

        def held(self) -> Held:
            return next(answers)

    ended, first = Held(term=1, ended_early_until=-inf), Held(lease="1", term=1, until=inf)
    anew = Held(lease="2", term=2, until=inf)
    keeper = Changing(node.store, node="a", boot_id="x", terms=TERMS, clock=node.clock)
    lease = Lease(node.store, keeper=keeper, name=node.name, terms=TERMS, clock=node.clock)
    lease.proven(VOLUME, term=1)
    answers: Iterator[Held] = itertools.repeat(first)
    assert lease.holds(VOLUME)
    for decide in (lease.holds, lambda volume: lease.covers(volume, frozenset({"b"}))):
        for order in itertools.product((ended, anew), repeat=4):
            answers = itertools.chain(order, itertools.repeat(anew))
            assert not decide(VOLUME), order


async def test_a_lease_that_ran_out_begins_another_term(node: Node) -> None:
    node.lease.proven(VOLUME, term=node.lease.term)
    assert node.lease.holds(VOLUME)
    node.store.cut()
    await asyncio.sleep(10)
    assert not node.lease.holds(VOLUME)
    assert node.lease.in_danger
    node.store.mend()
    await asyncio.sleep(5)
    assert node.lease.term == 2
    assert node.lease.until > node.now()
    assert node.lease.needs_proof(VOLUME)
    assert not node.lease.holds(VOLUME), "another node may have taken it over between the terms"
    node.lease.proven(VOLUME, term=1)
    assert not node.lease.holds(VOLUME), "that was read before the term began"
    node.lease.proven(VOLUME, term=2)
    assert node.lease.holds(VOLUME)


async def test_a_lease_that_is_known_to_be_gone_counts_no_more(node: Node) -> None:
    """The store ended it early, and cannot be asked for another one."""
    node.lease.proven(VOLUME, term=1)
    node.store.data.revoke("lease-1")

    async def no_lease(ttl_seconds: float) -> str:
        raise StoreUnavailable("not now")

    node.store.grant_lease = no_lease  # type: ignore[method-assign]
    await asyncio.sleep(TERMS.renewal + 0.1)
    assert not node.lease.holds(VOLUME)


async def test_a_restarted_daemon_takes_the_key_over_and_has_everything_to_prove(
    node: Node,
) -> None:
    renewal = node.new_renewal()
    again = Lease(node.store, keeper=renewal, name=node.name, terms=TERMS, clock=node.clock)
    async with asyncio.timeout(5):
        await renewal._renew()
    assert again.term == 1
    assert not again.holds(VOLUME)
    node.store.data.revoke("lease-1")
    assert node.is_up(), "the former run's lease has nothing to do with it any more"


async def test_of_a_volume_with_copies_nothing_is_believed_before_it_was_proven(
    node: Node,
) -> None:
    """That nobody is in sync may be old news: it was remembered by an earlier run."""
    alone = replace(VOLUME, in_sync=())
    assert not node.lease.holds(alone)
    node.lease.proven(alone, term=1)
    assert node.lease.holds(alone)
    node.lease.forget(alone)
    assert not node.lease.holds(alone)


async def test_a_volume_with_one_copy_needs_no_lease(node: Node) -> None:
    node.store.cut()
    await asyncio.sleep(100)
    assert node.lease.holds(SINGLE)


async def test_promises_of_an_earlier_run_are_none(node: Node) -> None:
    node.store.cut()
    await asyncio.sleep(10)
    node.lease.promised(VOLUME, {"b": node.now() + 9})
    assert not node.lease.holds(VOLUME), "who its rivals are was never read"
    node.store.mend()
    await asyncio.sleep(5)
    node.lease.proven(VOLUME, term=node.lease.term)
    node.store.cut()
    await asyncio.sleep(10)
    node.lease.promised(VOLUME, {"b": node.now() + 9})
    assert node.lease.holds(VOLUME)
    assert not node.lease.holds(VOLUME, frozenset({"b", "c"}))


async def test_its_end_can_be_said_at_once(node: Node) -> None:
    node.lease.proven(VOLUME, term=1)
    await node.lease.end()
    assert not node.is_up()
    assert not node.lease.holds(VOLUME)


# -- one name, two machines ----------------------------------------------------------------------------


def machine(node: Node, boot_id: str) -> Node:
    """Another boot under the same name, at the same store: a copy, or the machine after a restart."""
    return Node(node.store.data, boot_id=boot_id)


@asynccontextmanager
async def keeping(node: Node) -> AsyncIterator[None]:
    async with node.store.session():
        task = asyncio.create_task(node.renewal.run())
        try:
            yield
        finally:
            task.cancel()


async def until_held(node: Node, *, within: float) -> None:
    async with asyncio.timeout(within):
        while node.lease.until < node.now():
            await asyncio.sleep(0.05)


async def test_a_copy_of_a_living_machine_never_gets_its_lease(node: Node) -> None:
    copy = machine(node, "y")
    node.lease.proven(VOLUME, term=1)
    async with keeping(copy):
        for _ in range(1000):
            await asyncio.sleep(0.1)
            assert copy.lease.term == 0
            assert node.lease.holds(VOLUME)
        assert copy.lease.name_taken
        assert copy.lease.name_taken_by_machine
        assert not copy.lease.holds(SINGLE), "not even what no other node could take over"
        assert not copy.lease.covers(SINGLE, frozenset())
        with pytest.raises(Unavailable, match="boot x has that name"):
            await copy.lease.check_name_not_taken()
    assert node.lease.term == 1


async def test_it_asks_for_no_lease_while_it_waits(node: Node) -> None:
    copy = machine(node, "y")
    before = set(node.store.data._leases)
    async with keeping(copy):
        await asyncio.sleep(100)
    assert set(node.store.data._leases) == before


async def test_a_machine_that_was_restarted_waits_for_its_own_lease_and_goes_on(node: Node) -> None:
    node.wanted = False  # its power failed right after a renewal
    after = machine(node, "y")
    async with keeping(after):
        await asyncio.sleep(0.1)
        assert after.lease.name_taken
        assert not after.lease.name_taken_by_machine, "nobody is told of a copy"
        assert node.is_up()
        await until_held(after, within=TERMS.ttl + TERMS.renewal)
        assert not after.lease.name_taken
        assert after.lease.term == 1
        await after.lease.check_name_not_taken()


async def test_a_daemon_that_is_restarted_within_the_boot_waits_for_nothing(node: Node) -> None:
    node.wanted = False
    again = machine(node, "x")
    async with keeping(again):
        await until_held(again, within=0.5)


async def test_whoever_has_the_lease_serves_and_the_first_one_is_told_when_it_comes_back(
    node: Node,
) -> None:
    """The copy is started while the first machine is cut off."""
    node.lease.proven(VOLUME, term=1)
    node.store.cut()
    copy = machine(node, "y")
    async with keeping(copy):
        await until_held(copy, within=2 * TERMS.ttl)
        copy.lease.proven(VOLUME, term=1)
        node.store.mend()
        for _ in range(500):
            await asyncio.sleep(0.1)
            assert not node.lease.holds(VOLUME)
            assert copy.lease.holds(VOLUME)
        assert node.lease.name_taken_by_machine
        assert not node.lease.holds(SINGLE)
    await until_held(node, within=2 * TERMS.ttl)
    assert node.lease.term == 2
    assert node.lease.holds(SINGLE)
    assert not node.lease.holds(VOLUME), "its record must be read again"


@pytest.mark.parametrize("value", [b"y", b"x", None])
async def test_a_key_that_its_lease_did_not_make_ends_the_term(
    node: Node, value: bytes | None
) -> None:
    """As an older version overwrites it, or an earlier run whose change was on its way, or somebody deletes it."""
    node.lease.proven(VOLUME, term=1)
    entry = node.store.data.get("alive/a")
    assert entry is not None
    node.store.data.commit((Change("alive/a", value, entry.revision),))
    await asyncio.sleep(TERMS.renewal + 0.1)
    assert not node.lease.holds(VOLUME)
    assert not node.lease.covers(VOLUME, frozenset({"b"})), "its users stand still at once"
    assert node.lease.name_taken == (value == b"y")
    assert node.lease.term == (1 if value == b"y" else 2)


async def test_a_key_that_cannot_be_read_prolongs_nothing(node: Node) -> None:
    until = node.lease.until

    async def get(key: str) -> Entry | None:
        raise StoreUnavailable("not now")

    node.store.get = get  # type: ignore[method-assign]
    await asyncio.sleep(2 * TERMS.ttl)
    assert node.lease.until <= until + TERMS.renewal


@pytest.mark.parametrize("lose", [MemoryStore.lose_requests, MemoryStore.lose_answers])
async def test_an_answer_that_never_comes_is_found_out_by_reading(
    node: Node, lose: Callable[[MemoryStore, int], None]
) -> None:
    node.store.data.revoke("lease-1")
    lose(node.store, 3)
    async with asyncio.timeout(6 * TERMS.renewal):
        while node.lease.term < 2:
            await asyncio.sleep(0.05)
    copy = machine(node, "y")
    async with keeping(copy):
        await asyncio.sleep(5 * TERMS.ttl)
        assert copy.lease.term == 0


async def test_of_two_that_ask_at_the_same_moment_one_gets_it() -> None:
    data = MemoryData()
    both = [Node(data, boot_id=boot) for boot in ("x", "y")]
    for one in both:
        one.store.latency_seconds = 0.1  # both have read that nobody has the name
    async with keeping(both[0]), keeping(both[1]):
        await asyncio.sleep(5 * TERMS.ttl)
        assert sorted(one.lease.term for one in both) == [0, 1]


async def test_before_the_first_answer_the_store_is_asked(node: Node) -> None:
    copy = machine(node, "y")
    async with copy.store.session():
        with pytest.raises(Unavailable, match="boot x has that name"):
            await copy.lease.check_name()
        with pytest.raises(Unavailable, match="boot x has that name"):
            await copy.lease.check_name_not_taken()
        copy.store.cut()
        with pytest.raises(StoreUnavailable):
            await copy.lease.check_name()
        with pytest.raises(StoreUnavailable):
            await copy.lease.check_sender()
        await copy.lease.check_name_not_taken()  # losing the store stops nothing
    node.store.cut()
    await asyncio.sleep(2 * TERMS.ttl)
    await node.lease.check_sender()


async def test_a_change_waits_for_the_lease_from_before_a_restart(node: Node) -> None:
    node.wanted = False
    after = machine(node, "y")
    async with keeping(after):
        store = StoreUnderName(after.store, check=after.lease.check_name)
        await store.commit(Change("volumes/vol", b"{}", ABSENT))
        has_it = after.store.data.get("alive/a")
        assert has_it is None or has_it.value == b"y"


async def test_one_that_had_the_lease_waits_for_no_earlier_boot(node: Node) -> None:
    entry = node.store.data.get("alive/a")
    assert entry is not None
    node.store.data.commit((Change("alive/a", b"y", entry.revision),))
    await asyncio.sleep(TERMS.renewal + 0.1)
    began = node.now()
    with pytest.raises(Unavailable, match="boot y has that name"):
        await node.lease.check_name()
    assert node.now() == began


async def test_what_goes_out_under_the_name_is_refused(node: Node) -> None:
    copy = machine(node, "y")
    store = StoreUnderName(copy.store, check=copy.lease.check_name)
    async with store.session():
        with pytest.raises(Unavailable, match="boot x has that name"):
            await store.commit(Change("volumes/vol", b"{}", ABSENT))
    assert node.store.data.get("volumes/vol") is None
    await StoreUnderName(node.store, check=node.lease.check_name).commit(
        Change("volumes/vol", b"{}", ABSENT)
    )
