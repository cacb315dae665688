"""``pannierd``: the only place that wires adapters to protocols, and the order of starting."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Self

import structlog

from pannier import __version__
from pannier.agent.custody import Custody
from pannier.agent.disks import Disks
from pannier.agent.fencing import Fencing
from pannier.agent.freezing import CgroupFreezer
from pannier.agent.lease import Lease
from pannier.agent.mountids import MountIds
from pannier.agent.mounts import MountTable
from pannier.agent.promises import Promises
from pannier.api.caller import NodeCaller, UserCaller, identify_local, identify_tls
from pannier.api.client import PeerClient
from pannier.api.connection import TlsEndpoint
from pannier.api.listen import serve_tls, serve_unix
from pannier.api.server import build_application
from pannier.barrier.barrier import Barrier
from pannier.cluster.catalog import Catalog
from pannier.cluster.registry import Registry
from pannier.config import CONFIG_DIRECTORY, RUN_DIRECTORY, STATE_DIRECTORY, Config, load_config
from pannier.contract.peers import Peer
from pannier.copies.acknowledging import Durable
from pannier.copies.receiving import Reception
from pannier.copies.replication import Replicator
from pannier.copies.verification import Verification
from pannier.core.errors import Conflict, Denied, EngineUnavailable, PannierError, StorageError
from pannier.core.lease import Terms
from pannier.core.node import Node
from pannier.engine.configuration import default_runtime
from pannier.engine.docker import DockerEngine
from pannier.holding.after_handover import Settling
from pannier.holding.handover import Handovers
from pannier.holding.promising import Failsafe
from pannier.holding.recovery import Recovery
from pannier.holding.takeover import Takeover
from pannier.holding.volumes import Volumes
from pannier.host.activation import fd_named, inherited_fds, listening_socket
from pannier.host.files import keep_private
from pannier.host.systemd import notify
from pannier.node.barrier_admission import SyncGuard
from pannier.node.docker_volumes import DockerUse
from pannier.node.doctor import Doctor
from pannier.node.facade import NodeService
from pannier.node.free_space import keep_room
from pannier.node.leaving import Leaving
from pannier.node.membership import Membership
from pannier.node.swarm_node import keep_swarm_node
from pannier.node.upkeep import Upkeep
from pannier.pki.authority import Authority
from pannier.pki.credentials import Credentials
from pannier.pki.identity import fingerprint
from pannier.plugin.server import PluginServer
from pannier.storage.base import Driver
from pannier.storage.btrfs import pool
from pannier.storage.btrfs.driver import BtrfsDriver
from pannier.storage.directory.driver import DirectoryDriver
from pannier.store.address import open_store
from pannier.swarm.evacuation import Evacuation
from pannier.swarm.hooks import Hooks
from pannier.swarm.labels import Labels
from pannier.swarm.services import Services
from pannier.transport.client import TransportClient
from pannier.transport.server import TransportServer

log = structlog.get_logger(__name__)

SYNC_PATIENCE_SECONDS = 5.0
"""So long Docker's questions wait for the store at start; then memory alone answers."""
RETRY_SECONDS = 5.0
ANSWER_SECONDS = 0.7


class PeerDirectory:
    """Clients to the other nodes, one for each address."""

    def __init__(self, credentials: Credentials) -> None:
        self._credentials = credentials
        self._clients: dict[tuple[str, str, int], PeerClient] = {}

    def to(self, node: Node) -> Peer:
        """See :class:`~pannier.contract.peers.Peers`."""
        key = (node.name, node.address, node.api_port)
        if key not in self._clients:
            endpoint = TlsEndpoint(
                address=node.address,
                port=node.api_port,
                context=self._credentials.client_context(),
                node=node.name,
            )
            self._clients[key] = PeerClient(endpoint)
        return self._clients[key]

    async def close(self) -> None:
        """Close all connections."""
        for client in self._clients.values():
            await client.close()


class Tasks:
    """The daemon's background work. A task that fails ends the daemon, and systemd starts it anew."""

    def __init__(self, stop: asyncio.Event) -> None:
        self._stop = stop
        self._running: set[asyncio.Task[None]] = set()
        self._failure: BaseException | None = None

    def start(self, work: Coroutine[Any, Any, None], name: str) -> None:
        """Run ``work`` until it ends or the daemon does."""
        task = asyncio.create_task(work, name=name)
        self._running.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        if not task.cancelled() and (error := task.exception()):
            log.error("daemon.task-failed", task=task.get_name(), exc_info=error)
            self._failure = error
            self._stop.set()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        running = list(self._running)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        if self._failure:
            raise self._failure


class Daemon:
    """One node's parts, put together from its configuration."""

    def __init__(self, config: Config) -> None:
        self.config = config
        keep_private(STATE_DIRECTORY)
        self.credentials = Credentials.load(CONFIG_DIRECTORY)
        self.store = open_store(config.store, tls=self.credentials.client_context())
        self.catalog = Catalog(
            file=STATE_DIRECTORY / "catalog.json", cluster=config.cluster, boot_id=_boot_id()
        )
        self.engine = DockerEngine()
        self.peers = PeerDirectory(self.credentials)
        self.drivers: dict[str, Driver] = {}
        registry = Registry(self.store)
        self.lease = Lease(
            self.store, node=config.node, boot_id=_boot_id(), terms=Terms(config.lease_seconds)
        )
        self.custody = Custody(
            node=config.node,
            registry=registry,
            catalog=self.catalog,
            drivers=self.drivers,
            mounts=MountTable(STATE_DIRECTORY / "mounts", pool=STATE_DIRECTORY / "pool"),
            mount_ids=MountIds(RUN_DIRECTORY / "mounts.json"),
            engine=self.engine,
            lease=self.lease,
            freezer=CgroupFreezer(RUN_DIRECTORY / "frozen.json"),
        )
        self.sender = sender = TransportClient(self.credentials)
        self.handovers = Handovers(self.custody, sender)
        self.membership = Membership(
            node=config.node,
            registry=registry,
            catalog=self.catalog,
            authority=_authority,
            store_address=config.store,
        )
        volumes = Volumes(self.custody, self.handovers, self.peers)
        self.promises = Promises()
        takeover = Takeover(self.custody, self.peers, self.promises)
        self.replicator = Replicator(self.custody, sender, moving=self.handovers.switching)
        self.handovers.replicate_by(self.replicator)
        self.durable = Durable(self.custody, self.replicator)
        self.barrier = Barrier(self.durable, mount_root=STATE_DIRECTORY / "mounts")
        self.guard = SyncGuard(self.engine, self.barrier, configured=default_runtime)
        self.docker = DockerUse(self.custody, volumes, self.peers, takeover, self.guard)
        self.fencing = Fencing(self.custody, self.durable.rivals)
        self.failsafe = Failsafe(
            self.custody, self.peers, self.promises, rivals=self.durable.rivals
        )
        self.disks = Disks(self.custody)
        self.leaving = Leaving(self.custody, self.durable, self.membership)
        self.verification = Verification(
            self.custody, self.peers, self.durable, state=STATE_DIRECTORY
        )
        self.hooks = Hooks(
            node=config.node,
            engine=self.engine,
            catalog=self.catalog,
            file=RUN_DIRECTORY / "hooks.json",
        )
        self.services = Services(
            node=config.node,
            swarm=self.engine.swarm,
            catalog=self.catalog,
            hooks=self.hooks,
            peers=self.peers,
        )
        self.service = NodeService(
            cluster=config.cluster,
            custody=self.custody,
            volumes=volumes,
            handovers=self.handovers,
            membership=self.membership,
            doctor=Doctor(self.custody, self._pool_problems),
            docker=self.docker,
            peers=self.peers,
            replicator=self.replicator,
            recovery=Recovery(self.custody, self.peers, self.promises, takeover),
            takeover=takeover,
            failsafe=self.failsafe,
            verification=self.verification,
            services=self.services,
            backlog=self._backlog,
        )
        self.upkeep = Upkeep(self.custody, self.handovers, state=STATE_DIRECTORY)
        self.evacuation = Evacuation(
            node=config.node,
            registry=registry,
            catalog=self.catalog,
            swarm=self.engine.swarm,
            enabled=config.evacuate,
            answers=self._answers,
        )
        self.labels = Labels(
            node=config.node,
            registry=registry,
            catalog=self.catalog,
            swarm=self.engine.swarm,
        )
        self.ready = asyncio.Event()
        self.inherited = inherited_fds(os.environ, pid=os.getpid())

    async def run(self) -> None:
        """Serve until SIGTERM or SIGINT."""
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self._plugin())
            # Docker may ask from now on, and waits for `ready`; nothing slow comes before this.
            notify("READY=1", f"STATUS=node {self.config.node}, version {__version__}")
            await stack.enter_async_context(self.store.session())
            stack.push_async_callback(self.peers.close)
            stack.push_async_callback(self.sender.close)
            stack.push_async_callback(self.handovers.close)
            stack.push_async_callback(self.leaving.announce)
            stack.push_async_callback(self.services.close)
            tasks = await stack.enter_async_context(Tasks(stop))
            tasks.start(self.catalog.follow(self.store), name="catalog")
            tasks.start(self.catalog.keep_saved(), name="catalog-copy")
            tasks.start(self._keep_open(), name="pool")
            tasks.start(self.fencing.run(), name="fencing")  # without the store, too
            await self._wait_for_memory()
            await stack.enter_async_context(self._edges())
            for name, work in (
                ("introduce", self._introduce()),
                ("lease", self.lease.keep()),
                ("disks", self.disks.run()),
                ("proof", self.custody.prove_all()),
                ("failsafe", self.failsafe.run()),
                ("durable", self.durable.run()),
                ("barrier", self._hold_sync_calls()),
                ("guard", self.guard.run()),
                ("upkeep", self.upkeep.run()),
                ("verification", self.verification.run()),
                ("replication", self.replicator.run()),
                ("activation", self._keep_activated()),
                ("adoption", self._adopt()),
                ("swarm-node", keep_swarm_node(self.engine.swarm, self.membership)),
                ("room", keep_room(self.custody, self.membership)),
                ("evacuation", self.evacuation.run()),
                ("labels", self.labels.run()),
                ("hooks", self.hooks.run()),
            ):
                tasks.start(work, name=name)
            self.catalog.listen(Settling(self.custody, tasks.start).hear)
            await stop.wait()
            notify("STOPPING=1")
            await self.leaving.prepare()

    @asynccontextmanager
    async def _plugin(self) -> AsyncIterator[None]:
        """Serve Docker, if systemd gave us its socket."""
        fd = fd_named(self.inherited, "plugin")
        if fd is None:
            log.warning("plugin.no-socket", remedy="start pannierd by its systemd socket unit")
            yield
            return
        self.catalog.load()
        server = PluginServer(self.docker, ready=self.ready)
        await server.start(listening_socket(fd))
        try:
            yield
        finally:
            await server.stop()

    async def _answers(self, node: Node) -> bool:
        """Whether its daemon answers, and has a disk that works."""
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                view = await self.peers.to(node).peer_node()
        except (PannierError, TimeoutError):
            return False
        return not view.disk_error

    def _backlog(self, volume: str) -> tuple[int, float]:
        waiting = self.barrier.waiting(volume)
        return waiting.calls, waiting.oldest_seconds

    async def _hold_sync_calls(self) -> None:
        """Serve containers' sync calls, those first that an earlier run has left waiting."""
        self.barrier.restore((item.name, item.fd) for item in self.inherited)
        fd = fd_named(self.inherited, "barrier")
        if fd is None:
            log.warning(
                "barrier.no-socket", remedy="systemctl enable --now pannierd-barrier.socket"
            )
        else:
            await self.barrier.run(listening_socket(fd))

    async def _open_drivers(self) -> None:
        for name in self.config.drivers:
            if name in self.drivers:
                continue
            driver = self._driver(name)
            try:
                await driver.open()
            except (PannierError, OSError) as failure:
                error = (
                    failure
                    if isinstance(failure, PannierError)
                    else StorageError(
                        f"the {name} driver cannot be opened: {failure}",
                        remedy="see dmesg and the disk",
                    )
                )
                self.custody.broken[name] = error
                log.error("driver.not-open", driver=name, error=str(error))
            else:
                self.custody.broken.pop(name, None)
                self.drivers[name] = driver

    def _driver(self, name: str) -> Driver:
        if name == "btrfs":
            source = Path(self.config.pool) if self.config.pool else None
            return BtrfsDriver(STATE_DIRECTORY / "pool", source=source)
        return DirectoryDriver(STATE_DIRECTORY / "directory")

    async def _keep_open(self) -> None:
        """Open the drivers; a pool whose disk comes late is opened when it is there.

        In the background: a disk that hangs must not keep Docker's listings from their answers.
        """
        while True:
            await self._open_drivers()
            self.custody.opened.set()
            await asyncio.sleep(RETRY_SECONDS)

    async def _adopt(self) -> None:
        await self.custody.opened.wait()
        await self.catalog.synced.wait()
        await self.custody.adopt()

    async def _wait_for_memory(self) -> None:
        """Answer Docker only when we know the volumes: from the store, or else from the last time."""
        try:
            await asyncio.wait_for(self.catalog.synced.wait(), SYNC_PATIENCE_SECONDS)
        except TimeoutError:
            log.warning("catalog.not-synced", volumes=len(self.catalog.volumes()))
        self.ready.set()

    @asynccontextmanager
    async def _edges(self) -> AsyncIterator[None]:
        local = build_application(self.service, peers=self.service, identify=identify_local)
        remote = build_application(
            self.service,
            peers=self.service,
            identify=identify_tls(self.config.cluster, admit=self._admit),
        )
        transport = TransportServer(
            self.credentials,
            Reception(self.custody, self.promises),
            port=self.config.transport_port,
            check_peer=self._check_peer,
        )
        context = self.credentials.server_context(client_certificate_required=False)
        async with (
            serve_unix(local, path=RUN_DIRECTORY / "api.sock"),
            serve_tls(remote, context=context, host="", port=self.config.api_port),
        ):
            await transport.start()
            try:
                yield
            finally:
                await transport.close()

    def _admit(self, caller: NodeCaller | UserCaller, certificate: bytes) -> bool:
        """A node's certificate counts for as long as the node's record names it."""
        if isinstance(caller, UserCaller):
            return True
        node = self.catalog.node(caller.name)
        return node is not None and node.certificate == fingerprint(certificate)

    async def _check_peer(self, name: str, certificate: str) -> None:
        node = self.catalog.node(name)
        if node is None or node.certificate != certificate:
            raise Denied(
                f"node {name} is not known here, or has another certificate by now",
                remedy="a removed node must join again",
            )

    async def _introduce(self) -> None:
        mine = Node(
            name=self.config.node,
            address=self.config.address,
            drivers=self.config.drivers,
            version=__version__,
            joined_at=0.0,
            certificate=self.credentials.fingerprint,
            api_port=self.config.api_port,
            transport_port=self.config.transport_port,
        )
        while True:
            try:
                await self.membership.introduce(mine)
            except PannierError as error:
                log.warning("node.not-introduced", error=str(error))
                await asyncio.sleep(RETRY_SECONDS)
            else:
                return

    async def _keep_activated(self) -> None:
        """Make each engine that comes up look at our socket: Swarm schedules only where it did."""
        async for _ in self.engine.starts():
            try:
                await self.engine.activate_plugin()
            except EngineUnavailable as error:
                log.warning("engine.not-activated", error=str(error))

    async def _pool_problems(self) -> list[str]:
        problems = [error.message for error in self.custody.broken.values()]
        if "btrfs" in self.drivers:
            try:
                await asyncio.to_thread(pool.check, STATE_DIRECTORY / "pool")
            except PannierError as error:
                problems.append(error.message)
        problems += [
            f"{self.custody.mounts.path(name)} could not be made immutable: its file system has "
            f"no such flag"
            for name in self.custody.mounts.unguarded
        ]
        return problems


def _authority() -> Authority:
    directory = CONFIG_DIRECTORY / "ca"
    if not (directory / "ca.key").exists():
        raise Conflict(
            "the cluster's CA key is not on this node",
            remedy="make the token, and join, at the node on which 'pannier init' was run",
        )
    return Authority.load(directory)


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _configure_logging() -> None:
    """One line for each event, on stderr: the journal adds the time."""
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.format_exc_info,
            structlog.processors.LogfmtRenderer(key_order=["level", "event", "volume"]),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s %(message)s")


def main() -> None:
    """The daemon's entry point; systemd starts it."""
    _configure_logging()
    try:
        RUN_DIRECTORY.mkdir(mode=0o755, exist_ok=True)
        asyncio.run(_main())
    except PannierError as error:
        log.error("daemon.ended", code=error.code, error=str(error))
        sys.exit(error.exit_status)


async def _main() -> None:
    await Daemon(load_config()).run()
