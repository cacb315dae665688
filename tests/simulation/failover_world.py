"""A cluster in which everything may fail, and what must hold there all the same: see docs/guarantees.md.

**The argument.** A sync call is acknowledged when each node that *any possibly committed* record names
in ``in_sync`` has confirmed a generation that was made after the call. A takeover happens only on a
node that the committed record names there. That node first refuses to confirm the old epoch, then sees
that the holder's lease is gone, then chooses its newest generation, and then changes the record, on
condition that it is as it was read and the lease still gone. Whatever it had confirmed before the refusal is in
what it chose; nothing that it had not confirmed was acknowledged. So what was acknowledged is in the
new epoch, and no clock has a part in that.

What a node in sync has confirmed is a generation, or a record that its journal keeps on top of one: a record
only where everything before it is there, and a generation frees those before it only when it is confirmed itself.
So whatever a takeover begins with, the records that the journal has on top of it hold the rest.

Clocks are the second line: a holder stops to acknowledge, and ends its containers, a margin before
the store can end its lease; so there is one running writer. Where it has lost the store, the promises
of all who could take over stand in for the lease. A lease that was granted anew proves nothing: the
record is read and written again first, so that a takeover which was on its way is known, or void.

A taker's refusal outlives it (it is on disk before the store is asked), since the change may arrive
after it has died; and its promises outlive it, since after a start it waits as long as they last.

Only a person's ``--accept-loss`` passes by ``in_sync``; only then may something be lost.

**The attack.** Machines lose their power, daemons crash, both are paused; links are cut in one direction
or both, slow, or repeat what they carry; the store is away for some or all, loses questions or answers,
carries changes out late, tells its watchers late, gives leases more time, or, as some versions did, ends
them early; clocks run unevenly up to the margin; the wall clock jumps. Records are lost, late, repeated, and refused
by a full journal; what is written is not always told. A power cut takes what was written since the last sync call
from the disk of the holder, also where copies have a record of it.

Contents are a few files that are written in turn, and each write remembers what it was made on top of. A state
must be what a tree was at one moment, and either has a write or has not.
"""

from __future__ import annotations

import asyncio
import contextvars
import copy
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from fake_driver import Content, Home, SnapshotDriver
from machines import Machine, Run, SenderOf
from stepping import Fault, PowerCut, SteppedStore, pause
from world import World, _volume

from pannier.agent.renewal import Held
from pannier.core.errors import OutcomeUnknown, PannierError, PeerUnavailable, StoreUnavailable
from pannier.core.generation import Generation
from pannier.core.lease import Terms
from pannier.core.node import Node
from pannier.core.pace import Pace
from pannier.core.volume import Volume
from pannier.store.base import Change, Entry, WatchEvent
from pannier.testing.store import Backup
from pannier.transport.base import Offer, Sent

T = TypeVar("T")
FILES = 3
"""Written in turn: a record that is missing or out of order gives what no tree ever was."""
SILENCE_SECONDS = 3.0
"""After so long without a word a node gives up a question to another one."""
KEPT_SECONDS = 3.0
"""What a node wrote to its disk without waiting for it may be lost for so long by a power cut."""
_CHANGES = frozenset(
    ("store.commit", "driver.receive", "driver.promote", "driver.drop_live", "driver.delete",
     "driver.delete_generation", "driver.seal", "driver.keep", "driver.settle", "mounts.mount", "freezer.thaw")
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Moment:
    """What a tree was right after one write, and all writes that it had then, as a set of bits."""

    content: Content
    writes: int


class SmallFiles:
    """A machine's small files, on a disk and a tmpfs that are none.

    What nobody waited for may be lost by a power cut, back to some seconds ago.
    """

    def __init__(self) -> None:
        self.durable: dict[str, bytes] = {}
        self.unsynced: dict[str, list[tuple[float, bytes]]] = {}
        self.tmpfs: dict[str, bytes] = {}

    def cut(self, *, now: float, lost: float) -> None:
        """The power fails; the last ``lost`` seconds of what was not flushed are gone."""
        self.tmpfs.clear()
        for contents in self.unsynced.values():
            while contents and contents[-1][0] > now - lost:
                contents.pop()


class KeptFile:
    """One of them that is replaced at once."""

    def __init__(self, files: dict[str, bytes], name: str) -> None:
        self.path = Path(name)
        self._files = files

    def read(self) -> bytes | None:
        return self._files.get(self.path.name)

    def write(self, content: bytes) -> None:
        self._files[self.path.name] = content


class LateFile:
    """One whose content arrives some time after it was written, also where the daemon has died."""

    def __init__(self, machine: Machine, contents: list[tuple[float, bytes]], name: str) -> None:
        self.path = Path(name)
        self._contents = contents
        self._now = machine.world_time
        self._random = machine.world.random

    def read(self) -> bytes | None:
        while self._contents and self._contents[-1][0] > self._now():
            self._contents.pop()
        return self._contents[-1][1] if self._contents else None

    def write(self, content: bytes) -> None:
        self._contents.append((self._now() + self._random.choice((0.0, 0.0, 0.3, 1.0)), content))


class KeptFiles:
    """The small files of one run of a daemon."""

    def __init__(self, machine: Machine, disk: SmallFiles) -> None:
        self._machine = machine
        self._disk = disk

    def durable(self, name: str) -> KeptFile:
        return KeptFile(self._disk.durable, name)

    def unsynced(self, name: str) -> LateFile:
        return LateFile(self._machine, self._disk.unsynced.setdefault(name, []), name)

    def until_boot(self, name: str) -> KeptFile:
        return KeptFile(self._disk.tmpfs, name)


class FaultyStore(SteppedStore):
    """A way to the store on which also leases and the node's own key meet faults."""

    def __init__(self, run: Run, world: FailoverWorld) -> None:
        super().__init__(run, run.line, world.do_late)
        self._run = run
        self._world = world

    async def _asked(self, label: str, effect: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """A question that changes nothing which could not be changed again."""
        world, name = self._world, self._run.name
        await self._run.before(label)
        if world.loses_questions(name):
            await asyncio.sleep(world.patience())
            raise StoreUnavailable(f"{label}: no answer")
        result = await effect()
        if world.loses_answers(name):
            await asyncio.sleep(world.patience())
            raise StoreUnavailable(f"{label}: no answer")
        await self._run.after(label, None)
        return result

    async def get(self, key: str) -> Entry | None:
        return await self._asked("store.get", lambda: self.inner.get(key))

    async def list(self, prefix: str) -> tuple[Entry, ...]:
        return await self._asked("store.list", lambda: self.inner.list(prefix))

    async def grant_lease(self, ttl_seconds: float) -> str:
        return await self._asked("store.grant", lambda: self.inner.grant_lease(ttl_seconds))

    async def renew_lease(self, lease: str) -> None:
        await self._asked("store.renew", lambda: self.inner.renew_lease(lease))

    async def revoke_lease(self, lease: str) -> None:
        await self._asked("store.revoke", lambda: self.inner.revoke_lease(lease))

    async def commit(self, *changes: Change) -> int:
        world, name = self._world, self._run.name
        fault = await self._run.before("store.commit")
        if name == world.hanging and _hangs(changes, world.hanging_takes):
            world.hanging, fault = "", Fault.LATE
        if fault is Fault.LATE:
            self._do_late(changes)
        if fault in (Fault.LATE, Fault.LOSE_REQUEST) or world.loses_questions(name):
            await asyncio.sleep(world.patience())
            self._run.check()
            raise OutcomeUnknown("the store did not answer; it may do it yet")
        revision = await self.inner.commit(*changes)
        world.inspect_after("store.commit")
        if fault is Fault.LOSE_ANSWER or world.loses_answers(name):
            await asyncio.sleep(world.patience())
            self._run.check()
            raise OutcomeUnknown("the store did not answer; it has done it")
        await self._run.after("store.commit", fault)
        return revision

    async def watch(self, prefix: str) -> AsyncIterator[WatchEvent]:
        async for event in self.inner.watch(prefix):
            await pause(self._world.news_delay(self._run.name))
            yield event


class FrugalSender(SenderOf):
    """Sends as :class:`SenderOf`; and whoever keeps a copy for long must not get all of it again."""

    async def send(self, offer: Offer, *, to: Node, **named: Any) -> Sent:
        world = self._run.world
        assert isinstance(world, FailoverWorld)
        has = world.has.setdefault((to.name, offer.volume_id), set())
        known = {g for g in has & world.generations(to.name, offer) if g.epoch == offer.epoch}
        try:
            sent = await super().send(offer, to=to, **named)
        finally:
            if world.keeps_a_copy(to.name, offer) and offer.generation in world.generations(
                to.name, offer
            ):
                has.add(offer.generation)
        if not world.frugal:
            return sent
        if known and sent.bytes and sent.base is None and world.keeps_a_copy(to.name, offer):
            world._wrong(f"{to.name} had {max(known)}, and got all of {offer.generation}")
        return sent


def newest_of(content: Content) -> bytes:
    """The value in a content that was written last; empty where nothing was."""
    return max(content.values(), key=lambda value: int(value.rpartition(b" ")[2]), default=b"")


def _age(record: Volume) -> tuple[int, int]:
    """Which of two records of a volume is the newer one."""
    return record.grant.epoch, record.changes


def _hangs(changes: Sequence[Change], takes: bool) -> bool:
    """Whether that is a change of a volume, and a takeover if one is wanted."""
    guarded = any(change.key.startswith("alive/") for change in changes)
    return changes[0].key.startswith("volumes/") and (guarded or not takes)


class FailoverWorld(World):
    """See the module.

    Attributes:
        acknowledged: by volume id, the writes that some sync call was answered for, as a set of bits.
        moments: by the newest value in a content, what the tree was that has it.
        kept: records that were on top of what a takeover began with.
        shaken: the store ended a lease early, or a machine's clock stood still: then what was
            acknowledged must be safe still, and nothing is said of who runs.
        lost_ways: pairs (from, to) between which nothing arrives; "store" is a place, too, and so are
            the ports of a node: "b:peer" for questions, "b:sender" for generations, "b:record" for records.
        late_records: how many of those that are lost arrive later all the same.
        unsound: by volume id, nodes whose disk does not give back what they had confirmed.
        unaware: those of them that cannot know it, since no holder has told them yet.
    """

    def __init__(
        self,
        *,
        seed: int,
        ttl: float,
        pace: Pace,
        driver: type[SnapshotDriver],
        names: Sequence[str] = ("a", "b", "c"),
    ) -> None:
        self._files = {name: SmallFiles() for name in names}
        self.terms = Terms(ttl)
        super().__init__(
            Path("none"), names=names, seed=seed, driver=driver, with_replication=True, pace=pace
        )
        self.moments: dict[bytes, Moment] = {b"": Moment({}, 0)}
        self._unsynced: dict[tuple[str, str, int], list[bytes]] = {}
        self.kept = 0
        self.late_records = 0.0
        self.bits: dict[str, int] = {}
        self.acknowledged: dict[str, int] = {}
        self.shaken = False
        self.unsound: set[tuple[str, str]] = set()
        self.unaware: set[tuple[str, str]] = set()
        self.broken = asyncio.Event()
        self.changes: Counter[str] = Counter()
        self.lost_ways: set[tuple[str, str]] = set()
        self.slow: dict[tuple[str, str], float] = {}
        self.late_news: dict[str, float] = {}
        self.repeats = 0.0
        self.still: set[str] = set()
        self.has: dict[tuple[str, str], set[Generation]] = {}
        self.frugal = True
        """Whether nobody gets all of a volume who keeps a copy of it: none says that it has lost its copy."""
        self.hanging = ""
        self.hanging_takes = False
        self._late_seconds: tuple[float, ...] = (0.001, 0.5, 3.0, 8.0)
        self.frozen_until: dict[str, float] = {}
        self._promised: dict[tuple[str, str], float] = {}
        self._last: dict[str, Volume] = {}
        self._newest: dict[str, Volume] = {}
        self._strays: list[tuple[str, str, int, int]] = []
        self._lost: list[tuple[Machine, str]] = []
        self._seen_revision = -1

    # -- what machines are made of -----------------------------------------------------------------

    def make_room(self, machine: Machine) -> None:
        pass

    def clear_tmpfs(self, machine: Machine) -> None:
        lost = self.random.uniform(0, KEPT_SECONDS)
        self._files[machine.host].cut(now=machine.world_time(), lost=lost)
        self._lose_unsynced(machine)

    def _lose_unsynced(self, machine: Machine) -> None:
        """Of what was written since the last sync call, the disk has what was there at some moment."""
        for each in machine.disk.homes.values():
            each.notes[:] = [self.random.choice(each.notes)]
        for (name, volume_id, epoch), values in list(self._unsynced.items()):
            home = machine.disk.homes.get(volume_id)
            tree = home.live.get(epoch) if home else None
            if (
                name != machine.host
                or tree is None
                or home is None
                or self._driver is SnapshotDriver
            ):
                continue
            saved = {newest_of(g) for at, g in home.described.items() if at.epoch == epoch}
            first = max((n for n, value in enumerate(values) if value in saved), default=0)
            there = self.random.choice(values[first:])
            tree.content = dict(self.moments[there].content)
            tree.saved_as = next(
                (at for at, g in sorted(home.described.items()) if g == tree.content), None
            )
            self._unsynced[name, volume_id, epoch] = [there]
            self._strays = [
                (who, which, when, mask & self.moments[there].writes)
                if (who, which, when) == (name, volume_id, epoch)
                else (who, which, when, mask)
                for who, which, when, mask in self._strays
            ]

    def make_store(self, run: Run) -> FaultyStore:
        return FaultyStore(run, self)

    def make_files(self, machine: Machine) -> KeptFiles:
        return KeptFiles(machine, self._files[machine.host])

    def copy_of(self, machine: Machine) -> Machine:
        """Another computer with all that is on this one's disk; switched off."""
        host = f"copy of {machine.host}"
        self._files[host] = files = copy.deepcopy(self._files[machine.host])
        files.tmpfs.clear()
        disk = copy.deepcopy(machine.disk)
        disk.attached.clear()
        return Machine(self, machine.name, Path("none"), disk, host=host)

    def heard(self, run: Run, held: Held) -> None:
        """Where a copied computer gets the lease, the one that it was copied from must know that it has none.

        The copy is switched off then: its disk is an older one, and what it would do with that is another story.
        """
        original = self.machines[run.name]
        if run.machine is original or held.lease is None:
            return
        first = original.run
        if first is not None and not self.shaken and first.lease.until > original.clock():
            self._wrong(f"two computers have the lease of {run.name}")
        asyncio.get_running_loop().call_soon(run.machine.power_off, context=contextvars.Context())

    def make_sender(self, run: Run) -> FrugalSender:
        return FrugalSender(run)

    # -- the network ---------------------------------------------------------------------------------

    def loses_questions(self, name: str) -> bool:
        return (name, "store") in self.lost_ways

    def loses_answers(self, name: str) -> bool:
        return ("store", name) in self.lost_ways

    def news_delay(self, name: str) -> float:
        return self.late_news.get(name, 0.0)

    def hang_takeover(self, name: str, seconds: float) -> None:
        """The next takeover by this node hears nothing, and happens so much later."""
        self.hanging, self.hanging_takes, self._late_seconds = name, True, (seconds,)

    def hang_next_commit(self, name: str, seconds: float) -> None:
        """The next change of a volume by this node hears nothing, and happens so much later."""
        self.hanging, self.hanging_takes, self._late_seconds = name, False, (seconds,)

    def late_seconds(self) -> float:
        seconds, self._late_seconds = self._late_seconds, (0.001, 0.5, 3.0, 8.0)
        return self.random.choice(seconds)

    def patience(self) -> float:
        """How long a node waits for the store before it gives up a question."""
        return self.random.choice((0.1, 0.5, 1.0))

    async def call(
        self,
        caller: Run,
        to: str,
        label: str,
        question: Callable[[Run], Coroutine[Any, Any, T]],
        *,
        lost: PannierError,
        abort: bool = False,
    ) -> T:
        """One node asks another; either direction may be cut, and a question may arrive twice."""
        await caller.before(label)
        way, back = (caller.name, to), (to, caller.name)
        await pause(self.slow.get(way, 0.0) if abort or label == "record.send" else 0.0)
        caller.check()
        there = self.machines[to].run
        port = (caller.name, f"{to}:{label.partition('.')[0]}")
        cut = way in self.lost_ways or port in self.lost_ways
        if label == "record.send" and self.random.random() < self.late_records:
            self._ask_late(self.machines[to], question, self.random.choice((0.01, 0.3, 1.0, 3.0)))
            cut = True
        if cut or there is None or not there.serving:
            silent = cut and self.random.random() < 0.5
            await pause(SILENCE_SECONDS if silent else 0.0)
            raise lost if silent else PeerUnavailable(f"node {to} cannot be reached")
        task = there.spawn(question(there))
        broken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._calls[broken] = frozenset(way)
        either: set[asyncio.Future[Any]] = {task, broken}
        try:
            await asyncio.wait(either, timeout=SILENCE_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        finally:
            del self._calls[broken]
            if not task.done() and abort and self.random.random() < 0.7:
                task.cancel()
        if not task.done() or task.cancelled() or isinstance(task.exception(), PowerCut):
            caller.check()
            raise lost
        if not abort and self.random.random() < self.repeats:
            self._ask_late(there.machine, question, 0.0)
        if back in self.lost_ways:
            await asyncio.sleep(SILENCE_SECONDS)
            raise lost
        result = task.result()
        if label == "peer.promise":
            self._note_promises(to, result)
        await caller.after(label, None)
        return result

    def _ask_late(
        self, machine: Machine, question: Callable[[Run], Coroutine[Any, Any, T]], seconds: float
    ) -> None:
        """A question arrives, and nobody waits for the answer any more."""

        async def ask() -> None:
            await pause(seconds)
            if machine.run is not None and machine.run.serving:
                again = machine.run.spawn(question(machine.run))
                again.add_done_callback(lambda done: done.cancelled() or done.exception())

        nobodys = contextvars.Context()
        self._late.append(asyncio.get_running_loop().create_task(ask(), context=nobodys))

    def _note_promises(self, by: str, volumes: Any) -> None:
        machine = self.machines[by]
        if machine.run is None:
            return
        for volume_id in volumes:
            left = machine.run.promises._until[volume_id] - machine.clock()
            self._promised[(by, volume_id)] = machine.world_time() + left / machine.rate

    # -- disks that lose what they had ---------------------------------------------------------------

    def set_back(self, machine: Machine, older: dict[str, Home]) -> None:
        """A machine whose power is off has the disk of an earlier time."""
        there = {(volume_id, machine.name) for volume_id in machine.disk.homes}
        self.unsound |= there
        self.unaware |= there
        machine.disk.homes = older
        # Holders keep nothing for it that it had so long ago.
        self.has = {key: each for key, each in self.has.items() if key[0] != machine.name}
        self._unsynced = {
            key: each for key, each in self._unsynced.items() if key[0] != machine.name
        }
        self._strays = [stray for stray in self._strays if stray[0] != machine.name]

    @contextmanager
    def without_a_record(self, volume_id: str) -> Iterator[None]:
        """Within the block, the journal of a holder that has made no live tree yet does not give back its newest record."""
        grant = self.records()[volume_id].grant
        disk, key = self.machines[grant.node].disk, (volume_id, grant.node)
        home = disk.homes.get(volume_id)
        if home is None or grant.epoch in home.live or not home.records:
            yield
            return
        *home.records, lost = home.records
        disk.journal_lost.add(volume_id)
        self.unsound.add(key)
        try:
            yield
        finally:
            self.unsound.discard(key)
            if self.records()[volume_id].grant == grant and grant.epoch not in home.live:
                home.records.append(lost)
                disk.journal_lost.discard(volume_id)

    # -- contents ------------------------------------------------------------------------------------

    def mask(self, content: Content | None) -> int:
        """The writes that a content has, which must be what a tree was at one moment."""
        if not content:
            return 0
        moment = self.moments[newest_of(content)]
        if content != moment.content:
            self._wrong(f"there never was what is there now: {content}")
        return moment.writes

    def append(self, machine: Machine, volume_id: str, epoch: int) -> int:
        """A container writes; OSError where it cannot. Returns what its tree has now."""
        tree = (
            machine.disk.homes[volume_id].live.get(epoch)
            if volume_id in machine.disk.homes
            else None
        )
        content = dict(tree.content) if tree else {}
        before = self.mask(content)
        number = self.bits[volume_id] = self.bits.get(volume_id, 0) + 1
        file, value = f"file-{number % FILES}", b"%s %d" % (volume_id.encode(), number)
        machine.disk.write(volume_id, epoch, file, value)
        self.moments[value] = moment = Moment(content | {file: value}, before | 1 << number)
        values = self._unsynced.setdefault((machine.name, volume_id, epoch), [newest_of(content)])
        values.append(value)
        return moment.writes

    def _flush(self, machine: Machine, volume_id: str) -> None:
        """The disk has all that was written to it by now."""
        if (home := machine.disk.homes.get(volume_id)) is not None:
            del home.notes[:-1]
        for (name, which, _), values in self._unsynced.items():
            if (name, which) == (machine.name, volume_id):
                del values[:-1]

    async def sync(self, run: Run, name: str, volume_id: str, written: int) -> None:
        """A sync call of a container that has written all that, as the daemon answers it."""
        self._flush(run.machine, volume_id)
        await run.acknowledging.make_durable(name)
        self.acknowledge(run, volume_id, written)

    def acknowledge(self, run: Run, volume_id: str, written: int) -> None:
        """At this very moment a container is told that what it has written is durable."""
        self.acknowledged[volume_id] = self.acknowledged.get(volume_id, 0) | written
        record = self.records().get(volume_id)
        if record is not None and not self.shaken:
            if record.grant.node != run.name:
                self._wrong(f"{run.name} acknowledged after {record.grant} took over")
            for rival in record.in_sync:
                if not self._is_up(run.name) and self._could_take_over(rival, volume_id):
                    self._wrong(f"{run.name} acknowledged while {rival} could take over")
        self.inspect()

    def _is_up(self, name: str) -> bool:
        return self.data.get(f"alive/{name}") is not None

    def _could_take_over(self, name: str, volume_id: str) -> bool:
        """As far as its promises go; whoever is off waits after its start."""
        machine = self.machines[name]
        promised = self._promised.get((name, volume_id), -1.0)
        if machine.run is None or machine.world_time() < promised:
            return False
        return machine.clock() >= machine.run.promises._not_before

    # -- what must hold --------------------------------------------------------------------------------

    def restore_store(self, backup: Backup, *, goes_on: bool) -> None:
        """The store is what it was when a backup was made; all leases are gone."""
        self.shaken = True
        self.data.restore(backup, goes_on=goes_on)

    def records(self) -> dict[str, Volume]:
        """The committed records, by volume id. A store that was restored makes nothing undone."""
        for entry in self.data.list("volumes/"):
            record = _volume(entry.value)
            last = self._newest.get(record.id)
            if last is None or _age(record) >= _age(last):
                self._newest[record.id] = record
            elif self._grants.get((record.id, record.grant.epoch), record.grant.node) != (
                record.grant.node
            ):
                self._wrong(f"two nodes were given epoch {record.grant.epoch}")
        return self._newest

    def inspect_after(self, label: str) -> None:
        if label in _CHANGES:
            self.inspect()

    def inspect(self) -> None:
        """What must hold at every moment, whatever failed:

        1. whoever holds a volume, and whoever could take it over, has all that was acknowledged;
        2. an epoch belongs to one node for ever, and rises;
        3. only a node in sync takes over, while the holder's lease is gone, and against no promise;
        4. what stood still on the former holder then never goes on;
        5. a stray stays.
        """
        records = self.records()
        for volume_id, record in records.items():
            last = self._last.get(volume_id)
            if last is not record:
                self._last[volume_id] = record
                if last is not None and last.grant != record.grant:
                    self._inspect_change(last, record)
                for name in self.machines.keys() - set(record.replicas):
                    self.has.pop((name, volume_id), None)
                if self._grants.setdefault((volume_id, record.grant.epoch), record.grant.node) != (
                    record.grant.node
                ):
                    self._wrong(f"two nodes were given epoch {record.grant.epoch}")
            self._inspect_contents(record)
        for machine, container in self._lost:
            if container in machine.table.containers and not machine.table.stands_still(container):
                self._wrong(f"{container} goes on on {machine.name}, which lost its volume")

    def _inspect_contents(self, record: Volume) -> None:
        acked = self.acknowledged.get(record.id, 0)
        if not acked:
            return
        held, holder = self._held(record), (record.id, record.grant.node)
        if holder in self.unaware:  # what it lacks is lost, and nobody could prevent it
            acked &= self.mask(held) if held is not None else acked
            self.acknowledged[record.id] = acked
        elif held is None or acked & ~self.mask(held):
            home = self.machines[record.grant.node].disk.homes.get(record.id)
            if holder not in self.unsound or home is None or record.grant.epoch in home.live:
                self._wrong(f"holder {record.grant} has not all that was acknowledged: {held}")
        for name in record.in_sync:
            home = self.machines[name].disk.homes.get(record.id)
            ours = [g for g in home.generations if record.grew_out_of(g)] if home else []
            if ours and home is not None and not acked & ~self.mask(home.with_records(max(ours))):
                self.unsound.discard((record.id, name))  # it has caught up
                self.unaware.discard((record.id, name))
            elif (record.id, name) not in self.unsound:
                self._wrong(f"{name}, in sync at {record.grant}, has not all that was acknowledged")

    def _inspect_change(self, last: Volume, record: Volume) -> None:
        what, former, new = record.history[-1].what, last.grant, record.grant
        self.changes[what] += 1
        if new.epoch != former.epoch + 1:
            self._wrong(f"{former} was followed by {new}")
        if what == "moved":
            return
        if what == "taken over" and new.node not in last.in_sync:
            self._wrong(f"{new.node} took over, and in sync were {last.in_sync}")
        if self._is_up(former.node):
            self._wrong(f"{new.node} took over while {former.node} had its lease")
        now = self.machines[new.node].world_time()
        if now < self._promised.get((new.node, record.id), -1.0):
            self._wrong(f"{new.node} took over against its promise to {former.node}")
        base = self.mask(self._held(record))
        home = self.machines[new.node].disk.homes[record.id]
        if record.base in home.generations and base & ~self.mask(home.generations[record.base]):
            self.kept += 1
        if what == "recovered":
            self.acknowledged[record.id] = self.acknowledged.get(record.id, 0) & base
        self._inspect_former(record.id, former.node, former.epoch, base)

    def _inspect_former(self, volume_id: str, name: str, epoch: int, base: int) -> None:
        """What was left on the former holder, which did not give the volume away."""
        machine = self.machines[name]
        home = machine.disk.homes.get(volume_id)
        tree = home.live.get(epoch) if home else None
        if tree is None:
            return
        if self.mask(tree.content) & ~base:
            self._strays.append((name, volume_id, epoch, self.mask(tree.content)))
        # The margin is for slow clocks and for ending containers; not for both at their worst.
        worked = (
            machine.run is not None
            and machine.rate > 0.9
            and (
                machine.world_time() - max(self.frozen_until.get(name, 0.0), machine.run.began)
                > 1.5 * self.terms.ttl
            )
        )
        table = machine.table
        users = [
            container
            for container, path in table.containers.items()
            if path.parts[-3:-1] == (volume_id, str(epoch))
        ]
        still = [container for container in users if table.stands_still(container)]
        self._lost += [(machine, container) for container in still]
        if worked and still != users and not self.shaken:
            self._wrong(f"a container runs on {name}, which lost epoch {epoch}")

    def _wrong(self, what: str) -> None:
        super()._wrong(what)
        self.broken.set()

    def inspect_strays(self) -> None:
        """At the end: what only a former holder has is there still."""
        for name, volume_id, epoch, mask in self._strays:
            disk = self.machines[name].disk
            homes = [home for at in (disk.homes, disk.apart) if (home := at.get(volume_id))]
            trees = [home.live[epoch].content for home in homes if epoch in home.live]
            kept = [*trees, *(each for home in homes for each in home.generations.values())]
            if not any(self.mask(content) & mask == mask for content in kept):
                self._wrong(f"the stray of epoch {epoch} on {name} is gone")

    def keeps_a_copy(self, name: str, offer: Offer) -> bool:
        """Whether a node is one of those that the record names for the volume's copies."""
        record = self.record(offer.volume_name)
        return record is not None and name in record.replicas

    def generations(self, name: str, offer: Offer) -> set[Generation]:
        """What is on a node's disk."""
        home = self.machines[name].disk.homes.get(offer.volume_id)
        return set(home.generations) if home else set()
