"""``pannierd``: the adapters of a real machine, and the order of starting."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, Self

import structlog

from pannier import __version__
from pannier.agent.freezing import CgroupFreezer
from pannier.agent.keeper import KeeperProcess, keeper_command
from pannier.agent.mounts import MountTable
from pannier.agent.renewal import Renewal
from pannier.agent.usage import users_of
from pannier.api.caller import NodeCaller, UserCaller, identify_local, identify_tls
from pannier.api.client import ApiClient, PeerClient
from pannier.api.connection import TlsEndpoint
from pannier.api.listen import serve_tls, serve_unix
from pannier.api.server import build_application
from pannier.assembly import Outside, Settings, assemble
from pannier.backups.workroom import Workroom
from pannier.barrier.barrier import Barrier
from pannier.barrier.calls import Strategy
from pannier.config import PATHS, Config, Paths, load_config
from pannier.contract.bodies import RenewalOrder
from pannier.contract.peers import Peer
from pannier.contract.views import RenewalReply
from pannier.core.errors import Conflict, Denied, PannierError
from pannier.core.lease import Terms
from pannier.core.node import Fingerprints, Node
from pannier.core.pace import NodePace, Pace
from pannier.engine.docker import DockerEngine
from pannier.engine.file import configured_default
from pannier.host.activation import fd_named, inherited_fds, listening_socket
from pannier.host.clock import machine_clock
from pannier.host.files import keep_private
from pannier.host.killing import kill
from pannier.host.logs import log_to_journal
from pannier.host.state_files import HostFiles
from pannier.host.systemd import notify
from pannier.node.certificate_ports import CertificatePorts
from pannier.pki.authority import STORE_DIRECTORY, Authority
from pannier.pki.credentials import Credentials, store_credentials
from pannier.pki.identity import fingerprints
from pannier.pki.issued import IssuedToUsers
from pannier.pki.own import OwnCertificate
from pannier.pki.renewal import Prover
from pannier.plugin.server import PluginServer
from pannier.storage.base import Driver
from pannier.storage.btrfs import pool
from pannier.storage.btrfs.driver import BtrfsDriver
from pannier.storage.directory.driver import DirectoryDriver
from pannier.storage.image.driver import ImageDriver
from pannier.storage.keys import VolumeKeys
from pannier.store.address import SqliteAddress, open_store, parse_address
from pannier.store.etcd_member import SystemdMember, member_certificate
from pannier.store.shown import shown_by_store
from pannier.transport.client import TransportClient
from pannier.transport.rate import Rate
from pannier.transport.record_sender import RecordSender
from pannier.transport.record_server import RecordServer
from pannier.transport.server import TransportServer

log = structlog.get_logger(__name__)


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
        return self._clients[key].calls

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
    """The adapters of a real machine, and the order of starting."""

    def __init__(self, config: Config, *, paths: Paths) -> None:
        self.config = config
        self.paths = paths
        keep_private(paths.state)
        self.credentials = Credentials.load(paths.config)
        self.store_credentials = store_credentials(self.credentials)
        self.store = open_store(config.store, tls=self.store_credentials.client_context())
        self.peers = PeerDirectory(self.credentials)
        rate = config.catch_up_bytes_per_second()
        self.sender = TransportClient(self.credentials, rate=Rate(rate) if rate else None)
        self.record_sender = RecordSender(self.credentials)
        self.clock = machine_clock()
        self.pace = Pace(node=NodePace(trash=config.trash_seconds()))
        self.keeper = self._make_keeper()
        self.workroom = Workroom(run=paths.run / "backups", cache=paths.state / "restic-cache")
        self.node = assemble(self._outside(), self._settings())
        self.catalog = self.node.cluster.catalog
        self.ready = asyncio.Event()
        self.inherited = inherited_fds(os.environ, pid=os.getpid())

    @property
    def _drivers(self) -> tuple[str, ...]:
        """What this node has: on a btrfs pool also volumes as images, whatever was said at its setup."""
        images = ("image",) if "btrfs" in self.config.drivers else ()
        return (*self.config.drivers, *images)

    @property
    def _default_driver(self) -> str:
        """A volume for which nothing was said is an image where there is a btrfs pool."""
        first = self.config.drivers[0]
        return "image" if first == "btrfs" else first

    @property
    def _staging(self) -> Path:
        """Where images are mounted."""
        return self.paths.run / "images"

    def _outside(self) -> Outside[Barrier]:
        mounts = MountTable(self.paths.mounts, ours=[self.paths.pool, self._staging])
        files = HostFiles(state=self.paths.state, run=self.paths.run)
        return Outside(
            store=self.store,
            keeper=self.keeper,
            drivers=lambda keys: {name: self._driver(name, keys) for name in self._drivers},
            engine=DockerEngine(),
            peers=self.peers,
            sender=self.sender,
            record_sender=self.record_sender,
            mounts=mounts,
            users_of=users_of,
            kill=kill,
            freezer=CgroupFreezer(files.until_boot("frozen.json")),
            files=files,
            clock=self.clock,
            sync_calls=self._make_barrier,
            configured_runtime=configured_default,
            authority=self._authority,
            store_authority=self._store_authority,
            store_member=SystemdMember(),
            pool_problems=self._pool_problems,
            certificates=self._certificates(),
            workroom=self.workroom,
        )

    def _certificates(self) -> CertificatePorts:
        mine, theirs = self.credentials, self.store_credentials
        store_ca = theirs.ca_path if self._store_has_authority else None
        return CertificatePorts(
            own=OwnCertificate(mine),
            store_client=OwnCertificate(theirs) if store_ca is not None else None,
            store_member=lambda: member_certificate(store_ca=store_ca) if store_ca else None,
            prove=Prover(ca=mine.ca_path, store_ca=store_ca).prove,
            issued=IssuedToUsers(self.paths.config / "ca"),
            stranger=self._ask_as_stranger,
            store=partial(shown_by_store, self.config.store),
        )

    def _settings(self) -> Settings:
        config = self.config
        return Settings(
            cluster=config.cluster,
            me=Node(
                name=config.node,
                address=config.address,
                drivers=self._drivers,
                version=__version__,
                joined_at=0.0,
                certificate=self.credentials.fingerprints.certificate,
                key=self.credentials.fingerprints.key,
                authority=self._has_authority,
                api_port=config.api_port,
                transport_port=config.transport_port,
                trash_seconds=config.trash_seconds(),
            ),
            default_driver=self._default_driver,
            boot_id=_boot_id(),
            terms=self._terms,
            store_address=config.store,
            evacuate=config.evacuate,
            pace=self.pace,
            trash_bytes=config.trash_bytes(),
            store_trusts_all=self._store_trusts_all,
        )

    @property
    def _store_trusts_all(self) -> bool:
        in_etcd = not isinstance(parse_address(self.config.store), SqliteAddress)
        return in_etcd and not self._store_has_authority

    @property
    def _store_has_authority(self) -> bool:
        return self.store_credentials is not self.credentials

    def _make_barrier(self, strategy: Strategy) -> Barrier:
        return Barrier(
            strategy,
            mount_root=self.paths.mounts,
            directory=self.paths.run / "barrier",
            clock=self.clock,
        )

    @property
    def _terms(self) -> Terms:
        return Terms(self.config.lease_seconds)

    def _make_keeper(self) -> Renewal | KeeperProcess:
        """A store in a file is open in one process only, and there nobody could take anything over."""
        node, boot_id = self.config.node, _boot_id()
        if isinstance(parse_address(self.config.store), SqliteAddress):
            return Renewal(
                self.store, node=node, boot_id=boot_id, terms=self._terms, clock=self.clock
            )
        return KeeperProcess(
            keeper_command(
                self.config.store,
                credentials=self.paths.config,
                node=node,
                boot_id=boot_id,
                terms=self._terms,
            )
        )

    def _driver(self, name: str, keys: VolumeKeys) -> Driver:
        source = Path(self.config.pool) if self.config.pool else None
        if name == "btrfs":
            return BtrfsDriver(self.paths.pool, source=source)
        if name == "image":
            return ImageDriver(
                self.paths.pool,
                staging=self._staging,
                source=source,
                trace=f"pannier-{self.config.cluster}-{self.config.node}",
                keys=keys,
            )
        return DirectoryDriver(self.paths.state / "directory")

    async def run(self) -> None:
        """Serve until SIGTERM or SIGINT."""
        node, stop = self.node, asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        async with AsyncExitStack() as stack:
            if isinstance(self.keeper, KeeperProcess):
                self.keeper.start()  # it gets ready meanwhile
            plugin = await stack.enter_async_context(self._plugin())
            # Docker may ask from now on, and waits for `ready`; nothing slow comes before this.
            notify("READY=1", f"STATUS=node {self.config.node}, version {__version__}")
            await stack.enter_async_context(self.store.session())
            stack.push_async_callback(self.peers.close)
            stack.push_async_callback(self.sender.close)
            stack.push_async_callback(self.record_sender.close)
            stack.push_async_callback(node.handovers.close)
            stack.push_async_callback(node.drivers.end_journals)
            stack.push_async_callback(node.leaving.announce)
            stack.push_async_callback(node.services.close)
            tasks = await stack.enter_async_context(Tasks(stop))
            node.start(node.first, tasks.start)
            await self._wait_for_memory()
            await self.workroom.tidy()
            await stack.enter_async_context(self._edges())
            node.start(node.then, tasks.start)
            tasks.start(self._hold_sync_calls(), "barrier")
            node.follow_handovers(tasks.start)
            await stop.wait()
            notify("STOPPING=1")
            if (
                plugin is not None
            ):  # before containers are ended, which Docker may start again at once
                await plugin.close_door()
            await node.leaving.prepare()

    @asynccontextmanager
    async def _plugin(self) -> AsyncIterator[PluginServer | None]:
        """Serve Docker, if systemd gave us its socket."""
        fd = fd_named(self.inherited, "plugin")
        if fd is None:
            log.warning("plugin.no-socket", remedy="start pannierd by its systemd socket unit")
            yield None
            return
        self.catalog.load()
        server = PluginServer(self.node.docker, ready=self.ready)
        await server.start(listening_socket(fd))
        try:
            yield server
        finally:
            await server.stop()

    async def _hold_sync_calls(self) -> None:
        """Serve containers' sync calls; first those that an earlier run has left waiting."""
        self.node.sync_calls.restore((item.name, item.fd) for item in self.inherited)
        fd = fd_named(self.inherited, "barrier")
        if fd is None:
            log.warning(
                "barrier.no-socket", remedy="systemctl enable --now pannierd-barrier.socket"
            )
        else:
            await self.node.sync_calls.run(listening_socket(fd))

    async def _wait_for_memory(self) -> None:
        """Let Docker's calls through when we know the volumes: from the store or, if it does not answer
        in time, from the copy that an earlier run saved.
        """
        try:
            async with asyncio.timeout(self.pace.node.memory):
                await self.catalog.synced.wait()
        except TimeoutError:
            log.warning("catalog.not-synced", volumes=len(self.catalog.volumes()))
        self.ready.set()

    @asynccontextmanager
    async def _edges(self) -> AsyncIterator[None]:
        node = self.node
        local = build_application(
            node.service.by, peers=node.peer_service.by, identify=identify_local
        )
        remote = build_application(
            node.service.by,
            peers=node.peer_service.by,
            identify=identify_tls(self.config.cluster, admit=self._admit),
        )
        transport = TransportServer(
            self.credentials,
            node.reception,
            port=self.config.transport_port,
            check_peer=self._check_peer,
            records=RecordServer(node.reception),
        )
        context = self.credentials.server_context(client_certificate_required=False)
        async with (
            serve_unix(local, path=self.paths.run / "api.sock"),
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
        return self.catalog.knows(caller.name, shown=fingerprints(certificate))

    async def _check_peer(self, name: str, shown: Fingerprints) -> None:
        if not self.catalog.knows(name, shown=shown):
            raise Denied(
                f"node {name} is not known here, or has another certificate by now",
                remedy="a removed node must join again",
            )

    async def _ask_as_stranger(
        self, address: str, port: int, node: str | None, order: RenewalOrder
    ) -> RenewalReply:
        context = self.credentials.anonymous_context()
        endpoint = TlsEndpoint(address=address, port=port, context=context, node=node)
        async with ApiClient(endpoint) as client:
            return await client.renew_certificate(order)

    async def _pool_problems(self) -> list[str]:
        if "btrfs" not in self.node.drivers:
            return []
        try:
            await asyncio.to_thread(pool.check, self.paths.pool)
        except PannierError as error:
            return [error.message]
        return []

    def _store_authority(self) -> Authority | None:
        directory = self.paths.config / "ca" / STORE_DIRECTORY
        return Authority.load(directory) if directory.is_dir() else None

    @property
    def _has_authority(self) -> bool:
        return (self.paths.config / "ca" / "ca.key").exists()

    def _authority(self) -> Authority:
        directory = self.paths.config / "ca"
        if not self._has_authority:
            raise Conflict(
                "the cluster's CA key is not on this node",
                remedy="make the token, and join, at the node on which 'pannier init' was run",
            )
        return Authority.load(directory)


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def main() -> None:
    """The daemon's entry point; systemd starts it."""
    log_to_journal()
    try:
        PATHS.run.mkdir(mode=0o755, exist_ok=True)
        asyncio.run(_main())
    except PannierError as error:
        log.error("daemon.ended", code=error.code, error=str(error))
        sys.exit(error.exit_status)


async def _main() -> None:
    await Daemon(load_config(), paths=PATHS).run()
