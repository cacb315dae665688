"""Nodes of one process: a machine, the run of a daemon on it, and what lies between machines."""

from __future__ import annotations

import asyncio
import contextvars
import os
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Coroutine, Mapping
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass, replace
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from fake_driver import Disk
from stepping import (
    Fault,
    PowerCut,
    Step,
    SteppedFreezer,
    SteppedMounts,
    Table,
    pause,
    stepped_driver,
)
from virtual_time import OWNER, VirtualLoop

from pannier.agent.renewal import Renewal
from pannier.assembly import Outside, Settings, assemble
from pannier.backups.workroom import Workroom
from pannier.barrier.barrier import UNKNOWN
from pannier.barrier.calls import Strategy
from pannier.barrier.groups import Backlog
from pannier.barrier.syncwrites import UnheldWriter
from pannier.contract.bodies import RenewalOrder
from pannier.contract.operation import Operation
from pannier.contract.peers import PEER_OPERATIONS, Peer, Peers
from pannier.contract.views import RenewalReply
from pannier.core.errors import (
    Conflict,
    Denied,
    OutcomeUnknown,
    PannierError,
    PeerUnavailable,
)
from pannier.core.generation import Generation
from pannier.core.line import decode
from pannier.core.node import Fingerprints, Node
from pannier.core.volume import UnheldWrites
from pannier.engine.base import EngineFacts
from pannier.host.clock import Clock
from pannier.host.state_files import StateFile, StateFiles
from pannier.node.barrier_admission import RUNTIME
from pannier.node.certificate_ports import CertificatePorts
from pannier.pki.facts import CertificateFacts
from pannier.pki.issued import IssuedToUsers
from pannier.pki.renewal import Proved, RenewalRequest
from pannier.storage.base import Driver, LocalCopy
from pannier.storage.keys import VolumeKeys
from pannier.testing.engine import FakeEngine
from pannier.testing.store import MemoryStore
from pannier.transport.agreement import agree
from pannier.transport.base import ChooseBase, ChoosingSender, Offer, Parcel, SendsRecords, Sent

if TYPE_CHECKING:
    from world import World

T = TypeVar("T")
RUN: contextvars.ContextVar[Run] = contextvars.ContextVar("run")
"""The run of a daemon to which a task belongs; inherited by the tasks that it makes."""


class Died(Exception):
    """The node lost its power, or its daemon, while it was asked."""


class Machine:
    """A computer: its disk survives everything here, its kernel's memory does not survive a cut.

    Attributes:
        name: the node's that its daemon is.
        host: the computer's own; another one only where it was copied from another computer.
    """

    def __init__(
        self, world: World, name: str, directory: Path, disk: Disk, *, host: str = ""
    ) -> None:
        self.world = world
        self.name = name
        self.host = host or name
        self.disk = disk
        self.table = Table()
        self.engine = HoldingEngine()
        self.state = directory / name / "state"
        self.tmpfs = directory / name / "run"
        world.make_room(self)
        self.run: Run | None = None
        self.boots = 0
        self.rate = 1.0
        self._booted_at = asyncio.get_running_loop().time()

    @property
    def up(self) -> Run:
        """The run of its daemon; Died where there is none."""
        if self.run is None:
            raise Died(f"{self.name} is off")
        return self.run

    def clock(self) -> float:
        """Seconds since boot, as this computer counts them: ``rate`` for each one that passes."""
        return self.rate * (asyncio.get_running_loop().time() - self._booted_at)

    def skip(self, seconds: float) -> None:
        """Its clock misses some time, as when a hypervisor stops a machine."""
        self._booted_at += seconds

    def world_time(self) -> float:
        """What a right clock says."""
        return asyncio.get_running_loop().time()

    def kill(self, pids: Collection[int], *, found: Callable[[], Collection[int]]) -> list[int]:
        """Processes are killed; their containers end with them."""
        return self.table.kill(pids, found=found)

    def freeze(self) -> None:
        """The daemon makes no step; its containers go on."""
        _loop().freeze(self.up)

    def thaw(self) -> None:
        """It goes on as if nothing had been."""
        if self.run is not None:
            _loop().thaw(self.run)

    async def start(self) -> Run:
        """Start the daemon. Raises Died where it is cut off meanwhile."""
        assert self.run is None
        run = self.run = Run(self.world, self)
        await self.ask(lambda _: run.start())
        return run

    def crash(self) -> None:
        """The daemon is killed; containers and mounts stay."""
        if self.run is not None:
            run, self.run = self.run, None
            run.end()
            self.world.drop_calls(self.name)

    def power_off(self) -> None:
        """The power fails; the disk is all that stays."""
        self.crash()
        self.boots += 1
        self._booted_at = asyncio.get_running_loop().time()
        self.table.mounts.clear()
        self.table.containers.clear()
        self.table.frozen.clear()
        self.disk.attached.clear()
        self.world.clear_tmpfs(self)

    async def ask(self, question: Callable[[Run], Coroutine[Any, Any, T]]) -> T:
        """Let the daemon do something, as an edge does it.

        Raises:
            Died: it did not live to answer.
        """
        run = self.up
        task = run.spawn(question(run))
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError:
            task.cancel()
            raise
        if task.cancelled() or isinstance(task.exception(), PowerCut):
            raise Died(f"{self.name} died")
        return task.result()


@dataclass(frozen=True)
class LivingFile:
    """A file of a daemon. What ends with its daemon writes nothing any more: not even what it does while it is cut off."""

    run: Run
    file: StateFile

    @property
    def path(self) -> Path:
        return self.file.path

    def read(self) -> bytes | None:
        return self.file.read()

    def write(self, content: bytes) -> None:
        if self.run.dead:
            raise OSError("the daemon is dead")
        self.file.write(content)


@dataclass(frozen=True)
class LivingFiles:
    """Those of a daemon."""

    run: Run
    files: StateFiles

    def durable(self, name: str) -> StateFile:
        return LivingFile(self.run, self.files.durable(name))

    def unsynced(self, name: str) -> StateFile:
        return LivingFile(self.run, self.files.unsynced(name))

    def until_boot(self, name: str) -> StateFile:
        return LivingFile(self.run, self.files.until_boot(name))


class Run:
    """One run of the daemon: the product's own assembly, on stand-ins for the outside."""

    def __init__(self, world: World, machine: Machine) -> None:
        self.world = world
        self.machine = machine
        self.name = machine.name
        self.dead = False
        self.serving = False
        self.began = machine.world_time()
        self.tasks: list[asyncio.Task[Any]] = []
        self._background: list[asyncio.Task[None]] = []
        self._stack = AsyncExitStack()
        self._claims: dict[str, tuple[int, asyncio.Task[Any]]] = {}
        self.line = MemoryStore(world.data, name=f"store-of-{self.name}")
        if self.name in world.storeless:
            self.line.cut()
        self.driver = stepped_driver(self, world.make_driver(machine))
        self.mounts = SteppedMounts(self, machine.table, Path("/mounts") / self.name)
        self.node = node = assemble(self._outside(), self._settings())
        self.cluster = node.cluster
        self.catalog = node.cluster.catalog
        self.registry = node.cluster.registry
        self.drivers = node.drivers
        self.use = node.use
        self.custody = node.custody
        self.lease = node.lease
        self.promises = node.promises
        self.replicator = node.replicator
        self.acknowledging = node.acknowledging
        self.reception = node.reception
        self.verification = node.verification
        self.handovers = node.handovers
        self.takeover = node.takeover
        self.promising = node.promising
        self.recovery = node.recovery
        self.volumes = node.volumes
        self.docker = node.docker
        self.membership = node.membership
        self.leaving = node.leaving
        self.trash = node.trash
        self.forgetting = node.forgetting
        self.service = node.service
        self.peer_service = node.peer_service

    def _outside(self) -> Outside[NoCalls]:
        machine, world = self.machine, self.world
        store, settings = world.make_store(self), self._settings()
        clock = Clock(now=machine.clock, unix=world.wall_time)
        return Outside(
            store=store,
            keeper=Renewal(
                store,
                node=self.name,
                boot_id=settings.boot_id,
                terms=settings.terms,
                clock=clock,
                publish=lambda held: world.heard(self, held),
            ),
            drivers=self._drivers,
            engine=machine.engine,
            peers=PeersOf(self),
            sender=world.make_sender(self),
            record_sender=world.make_record_sender(self),
            mounts=self.mounts,
            users_of=self.mounts.users_of,
            kill=machine.kill,
            freezer=SteppedFreezer(self, machine.table),
            files=LivingFiles(self, world.make_files(machine)),
            clock=clock,
            sync_calls=NoCalls,
            configured_runtime=lambda: RUNTIME,
            authority=_no_authority,
            store_authority=lambda: None,
            store_member=NoMember(),
            pool_problems=_no_pool_problems,
            certificates=CertificatePorts(
                own=LastingCertificate(settings.me.certificate),
                store_client=None,
                store_member=lambda: None,
                prove=_prove,
                issued=IssuedToUsers(machine.state),
                stranger=_no_stranger,
                store=_no_store_certificates,
            ),
            workroom=Workroom(run=machine.tmpfs / "backups", cache=machine.state / "restic-cache"),
        )

    def _drivers(self, keys: VolumeKeys) -> Mapping[str, Driver]:
        self.volume_keys = keys
        return {self.driver.name: self.driver}

    def _settings(self) -> Settings:
        return Settings(
            cluster=None,
            me=self.world.make_record(self.machine),
            default_driver=self.driver.name,
            boot_id=f"{self.machine.host} {self.machine.boots}",
            terms=self.world.terms,
            store_address="memory",
            evacuate=False,
            pace=self.world.pace,
            trash_bytes=self.world.trash_bytes,
        )

    async def start(self) -> None:
        """As the daemon starts."""
        node, world = self.node, self.world
        await self._stack.enter_async_context(self.line.session())
        self.catalog.load()
        without = world.without
        node.start([work for work in node.first if work.name not in without], self._start)
        try:
            await asyncio.wait_for(self.catalog.synced.wait(), world.pace.node.memory)
        except TimeoutError:
            pass
        self.serving = True
        self.began = self.machine.world_time()
        node.start([work for work in node.then if work.name not in without], self._start)
        if world.with_settling:
            node.follow_handovers(self._start)

    def _start(self, work: Coroutine[Any, Any, None], name: str) -> None:
        self._background.append(self.spawn(work))

    async def leave(self) -> None:
        """As the daemon ends when it is told to; it is to be ended after that."""
        await self.leaving.prepare()
        for task in self._background:
            task.cancel()
        self.began = inf  # nobody looks after its containers, as when the daemon is off
        await self.leaving.announce()

    def spawn(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """A task of this run."""
        context = contextvars.copy_context()
        context.run(RUN.set, self)
        context.run(OWNER.set, self)
        return asyncio.get_running_loop().create_task(work, context=context)

    def end(self) -> None:
        """Nothing that this run has begun goes on."""
        self.dead = True
        loop = asyncio.get_running_loop()
        if isinstance(loop, VirtualLoop):
            loop.thaw(self)
        for task in self.tasks:
            task.cancel()

    # -- steps ----------------------------------------------------------------------------------

    def check(self) -> None:
        """See :class:`stepping.Life`."""
        if self.dead:
            raise PowerCut

    def _begin(self, label: str) -> Fault | None:
        self.check()
        fault = self.world.next_step(Step(self.name, label))
        if fault is Fault.CUT_BEFORE:
            self._cut()
        return fault

    def _cut(self) -> None:
        self.machine.power_off()
        raise PowerCut

    async def before(self, label: str) -> Fault | None:
        """See :class:`stepping.Life`."""
        fault = self._begin(label)
        await pause(self.world.delay() + self.world.slow_steps.get((self.name, label), 0.0))
        if label.startswith("driver."):
            await self.machine.disk.answers()
        self.check()
        return fault

    async def after(self, label: str, fault: Fault | None) -> None:
        """See :class:`stepping.Life`."""
        self.world.inspect_after(label)
        if fault is Fault.CUT_AFTER:
            self._cut()
        await pause(self.world.delay())
        self.check()

    def at_once(self, label: str, effect: Callable[[], T]) -> T:
        """See :class:`stepping.Life`."""
        fault = self._begin(label)
        result = effect()
        self.world.inspect_after(label)
        if fault is Fault.CUT_AFTER:
            self._cut()
        return result

    # -- receiving --------------------------------------------------------------------------------

    async def receive(self, offer: Offer, peer: str, talk: Talk) -> Sent:
        """As the transport's server does it."""
        driver = await self.reception.admit(offer, peer=peer)
        async with self._claim(offer):
            have = await driver.inspect(offer.volume_id)
            talk.tell(LocalCopy(generations=have.generations, last=have.last))
            if offer.generation in have.generations:
                await self.reception.confirm(offer, peer=peer)
                return Sent(bytes=0, base=None, seconds=0.0)
            base, stream = await talk.stream
            async with driver.receive(offer.volume_id, offer.generation, base=base) as fd:
                os.write(fd, stream)
        await self.reception.confirm(offer, peer=peer)
        return Sent(bytes=len(stream), base=base, seconds=0.0)

    async def take_record(self, encoded: bytes, *, volume_name: str, peer: str) -> None:
        """As :meth:`Reception.take`, with a step in the midst."""
        place = decode(encoded).place
        driver = self.reception.admit_record(place, volume_name=volume_name, peer=peer)
        fault = await self.before("driver.keep")
        driver.keep(place, encoded)
        await self.after("driver.keep", fault)
        self.reception.confirm_record(place, volume_name=volume_name, peer=peer)

    @asynccontextmanager
    async def _claim(self, offer: Offer) -> AsyncIterator[None]:
        task = asyncio.current_task()
        assert task is not None
        while (other := self._claims.get(offer.volume_id)) is not None:
            if offer.epoch < other[0]:
                raise Conflict(f"volume {offer.volume_name} is being received already")
            other[1].cancel()
            await asyncio.wait({other[1]})
        self._claims[offer.volume_id] = (offer.epoch, task)
        try:
            yield
        finally:
            del self._claims[offer.volume_id]


def _loop() -> VirtualLoop:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop)
    return loop


class HoldingEngine(FakeEngine):
    """Its containers' sync calls are held: pannier-runtime is its default."""

    async def facts(self) -> EngineFacts:
        return replace(await super().facts(), default_runtime=RUNTIME)


class NoCalls:
    """There is no runtime here that would look at marks, and no sync call that would wait."""

    def __init__(self, strategy: Strategy) -> None:
        self.writers: list[UnheldWriter] = []

    def waiting(self, volume: str) -> Backlog:
        return Backlog(0, 0.0)

    def containers(self, volume: str) -> frozenset[str]:
        return frozenset((UNKNOWN,))

    def held(self) -> frozenset[str]:
        return frozenset()

    def unheld_writers(self, volume: str) -> list[UnheldWriter]:
        return [each for each in self.writers if volume in each.volumes]

    def hold(self, volume: str, unheld_writes: UnheldWrites) -> None:
        pass

    def release(self, volume: str) -> None:
        pass


class NoMember:
    """No member of the store runs on these machines."""

    def lets_in(self, serials: frozenset[int]) -> bool:
        """See :class:`pannier.node.removing.StoreMember`."""
        return False

    async def start_again(self, serials: frozenset[int]) -> None:
        """See :class:`pannier.node.removing.StoreMember`."""
        raise AssertionError


def _no_authority() -> Any:
    raise Conflict("no CA here")


async def _no_pool_problems() -> list[str]:
    return []


_FAR = 2.0**34
"""Unix time in some hundred years."""


@dataclass(frozen=True, slots=True)
class LastingCertificate:
    """A certificate that ends after every history, so nobody renews it."""

    fingerprint: str
    path: Path = Path("node.crt")

    def facts(self) -> CertificateFacts:
        return CertificateFacts(
            name=self.fingerprint,
            subject="",
            serial="1",
            begins=0.0,
            ends=_FAR,
            fingerprints=Fingerprints(self.fingerprint, ""),
        )

    def authority(self) -> CertificateFacts:
        return self.facts()

    def request(self) -> RenewalRequest:
        raise AssertionError("nobody asks")

    def keep(self, chain: str) -> None:
        raise AssertionError("nobody answers")

    def refresh(self) -> bool:
        return False


def _prove(request: RenewalRequest) -> Proved:
    raise Denied("this proves nothing")


async def _no_stranger(_: str, __: int, ___: str | None, order: RenewalOrder) -> RenewalReply:
    raise PeerUnavailable("nobody answers")


async def _no_store_certificates() -> dict[str, CertificateFacts | PannierError]:
    return {}


class Talk:
    """What sender and receiver tell each other in the middle of a transfer."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.have: asyncio.Future[LocalCopy] = loop.create_future()
        self.stream: asyncio.Future[tuple[Generation | None, bytes]] = loop.create_future()

    def tell(self, have: LocalCopy) -> None:
        """The receiver's first word; the sender may have gone."""
        if not self.have.done():
            self.have.set_result(have)

    def end(self) -> None:
        """The sender is gone, perhaps before its first word."""
        self.stream.cancel()


class SenderOf(ChoosingSender):
    """A node's sender: the receiver is another object of this process."""

    def __init__(self, run: Run) -> None:
        self._run = run

    async def send(
        self,
        offer: Offer,
        *,
        to: Node,
        driver: Driver,
        progress: Callable[[int], None] | None = None,
        may_wait: Callable[[], bool] | None = None,
        choose_base: ChooseBase | None = None,
    ) -> Sent:
        run, talk = self._run, Talk()
        reading = asyncio.ensure_future(self._read(offer, driver, talk, choose_base))
        reading.add_done_callback(lambda done: talk.end())
        try:
            sent = await run.world.call(
                run,
                to.name,
                "sender.send",
                lambda there: there.receive(offer, run.name, talk),
                lost=PeerUnavailable(f"the connection to {to.name} broke"),
                abort=True,
            )
            await asyncio.wait({reading})
            if talk.stream.done() and not talk.stream.cancelled():
                talk.stream.result()  # what the receiver had may be an error here
            return sent
        except PeerUnavailable:
            if reading.done() and not reading.cancelled():
                reading.result()  # a mistake here, of which the receiver only hears that the stream ended
            raise
        finally:
            reading.cancel()

    async def _read(
        self, offer: Offer, driver: Driver, talk: Talk, choose_base: ChooseBase | None
    ) -> None:
        try:
            theirs = await talk.have
            ours = await driver.inspect(offer.volume_id)
            agreed = agree(offer, driver, ours, theirs, choose_base=choose_base)
            if agreed.there:
                return
            base = agreed.base
            async with driver.send(offer.volume_id, offer.generation, base=base) as fd:
                stream = b"".join(iter(lambda: os.read(fd, 1 << 20), b""))
        except PannierError as error:
            if not talk.stream.done():
                talk.stream.set_exception(error)
        except Exception:
            if not talk.stream.done():
                talk.stream.set_exception(PeerUnavailable("the sender went away"))
            raise
        else:
            if not talk.stream.done():
                talk.stream.set_result((base, stream))


class RecordSenderOf(SendsRecords):
    """A node's sender of records."""

    def __init__(self, run: Run) -> None:
        self._run = run

    async def send(self, parcel: Parcel, *, to: Node, volume_name: str) -> None:
        run, encoded = self._run, b"".join(parcel.pieces)
        await run.world.call(
            run,
            to.name,
            "record.send",
            lambda there: there.take_record(encoded, volume_name=volume_name, peer=run.name),
            lost=PeerUnavailable(f"the connection to {to.name} broke"),
        )


class PeersOf(Peers):
    """How a node reaches the others."""

    def __init__(self, run: Run) -> None:
        self._run = run

    def to(self, node: Node) -> Peer:
        return PEER_OPERATIONS.stand_in(PeerAt(self._run, node.name))


class PeerAt:
    """Another node, as this one calls it: each operation is a numbered step."""

    CHANGE_NOTHING = frozenset(
        {"peer_volume", "peer_node", "peer_promise", "peer_memory", "peer_removals"}
    )
    LIVE = frozenset({"peer_together"})

    def __init__(self, run: Run, name: str) -> None:
        self._run = run
        self._name = name

    async def ask(self, operation: Operation, values: Mapping[str, Any]) -> Any:
        """See :class:`pannier.contract.operation.Wire`."""

        async def there(run: Run) -> Any:
            return await getattr(run.peer_service.by(self._run.name), operation.name)(**values)

        return await self._call(operation, there)

    async def stream(
        self, operation: Operation, values: Mapping[str, Any]
    ) -> AsyncGenerator[Any, None]:
        """See :class:`pannier.contract.operation.Wire`; but for those that are :attr:`LIVE`, all of it is heard at its end."""
        if operation.name in self.LIVE:
            async with aclosing(self._live(operation, values)) as items:
                async for item in items:
                    yield item
            return

        async def there(run: Run) -> list[Any]:
            stream = getattr(run.peer_service.by(self._run.name), operation.name)(**values)
            return [item async for item in stream]

        for item in await self._call(operation, there):
            yield item

    async def _live(
        self, operation: Operation, values: Mapping[str, Any]
    ) -> AsyncGenerator[Any, None]:
        """What is heard as it comes. The other side is ended when nobody hears it any more."""
        items: asyncio.Queue[Any] = asyncio.Queue()
        pumps: list[asyncio.Task[Any]] = []

        async def there(run: Run) -> None:
            pump = asyncio.current_task()
            assert pump is not None
            pumps.append(pump)
            stream = getattr(run.peer_service.by(self._run.name), operation.name)(**values)
            async with aclosing(stream):
                async for item in stream:
                    items.put_nowait(item)

        call = asyncio.ensure_future(self._call(operation, there))
        try:
            while not (call.done() and items.empty()):
                heard = asyncio.ensure_future(items.get())
                await asyncio.wait({call, heard}, return_when=asyncio.FIRST_COMPLETED)
                if heard.done():
                    yield heard.result()
                heard.cancel()
            call.result()
        finally:
            call.cancel()
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(call, *pumps, return_exceptions=True)

    async def _call(
        self, operation: Operation, there: Callable[[Run], Coroutine[Any, Any, T]]
    ) -> T:
        lost: PannierError = OutcomeUnknown(f"{self._name} did not answer; it may have done it")
        if operation.name in self.CHANGE_NOTHING:
            lost = PeerUnavailable(f"{self._name} did not answer")
        label = operation.name.replace("peer_", "peer.", 1)
        return await self._run.world.call(self._run, self._name, label, there, lost=lost)
