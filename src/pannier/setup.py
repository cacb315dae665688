"""Making a machine a node: ``pannier init``, ``pannier join`` and ``pannier ca``.

A repeated try finds and uses what a failed one has made. The configuration is written last, after the
units were enabled: without it they do nothing, and with it they start at the next boot at the latest.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import shlex
import shutil
import socket
import sys
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TypeVar

from pannier import __version__
from pannier.api.client import ApiClient
from pannier.api.connection import TlsEndpoint, UnixEndpoint
from pannier.cluster.registry import ClusterRecord, Registry
from pannier.config import (
    CONFIG_DIRECTORY,
    RUN_DIRECTORY,
    STATE_DIRECTORY,
    Config,
    load_config,
    save_config,
)
from pannier.contract.bodies import JoinOrder
from pannier.core.errors import (
    AlreadyExists,
    Conflict,
    Denied,
    InvalidInput,
    OutcomeUnknown,
    PannierError,
    Unavailable,
)
from pannier.core.node import API_PORT, Node, check_node_name
from pannier.core.removals import REMOVALS_FILE, Removals, node_of
from pannier.core.size import parse_size
from pannier.engine.configuration import PROGRAM
from pannier.engine.docker import DockerEngine
from pannier.engine.registration import Registration
from pannier.engine.service import DockerService
from pannier.host.files import keep_private, write_file
from pannier.host.process import Failing, run
from pannier.host.records import read_file
from pannier.host.state_files import HostFiles
from pannier.pki.authority import CA_CERTIFICATE, STORE_DIRECTORY, STORE_NAME, Authority
from pannier.pki.credentials import Credentials, new_request, store_credentials
from pannier.pki.issued import IssuedToUsers
from pannier.pki.pin import pin
from pannier.pki.token import Token
from pannier.storage.btrfs.pool import create_pool, grow_pool
from pannier.storage.directory.root import create_directory
from pannier.store.address import open_store

AUTHORITY_DIRECTORY = CONFIG_DIRECTORY / "ca"
POOL_MOUNTPOINT = STATE_DIRECTORY / "pool"
DEFAULT_POOL = STATE_DIRECTORY / "pool.img"
UNITS = ("pannierd.socket", "pannierd-barrier.socket", "pannierd.service")
UNIT_DIRECTORY = Path("/etc/systemd/system")
UDEV_RULES = Path("/etc/udev/rules.d")
UDEV_RULE = "61-pannier.rules"
START_SECONDS = 30.0
RUNTIME_NOTE = STATE_DIRECTORY / "docker-before.json"
POOL_SHARE = 0.8
"""The size of a sparse pool where none was given, as a share of what is free when it is made."""

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Storage:
    """What a person asked for as this machine's storage. Paths and sizes are as typed."""

    driver: str
    pool: str | None
    pool_size: str | None
    force_format: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Runtime:
    """What a person asked for as to pannier-runtime.

    Attributes:
        register: whether it becomes Docker's default runtime, if there is a Docker.
        before: the runtime before which it goes; None for runc.
    """

    register: bool
    before: str | None


def init(
    *,
    name: str | None,
    address: str | None,
    store: str,
    pool: str | None,
    pool_size: str | None,
    driver: str,
    force_format: str | None,
    runtime: bool = True,
    runtime_before: str | None = None,
) -> None:
    """Make a new cluster with this machine as its first node.

    Raises:
        Denied: the caller is not root, or the files of the CA do not belong together or are too open.
        Conflict: the machine or the store belongs to a cluster already, the machine is not run by
            systemd, another pool is mounted, or Docker has another default runtime.
        InvalidInput: a name, address, size or Docker's configuration file cannot be accepted; the runtime
            that was asked for cannot be chained to.
        NotFound: the CA's key is missing, or Docker has no such runtime.
        StorageError: the pool, the directory or the store's file cannot be made or used.
        ProgramFailed: systemd or a program that makes the pool fails, or Docker does not take its settings in.
        Unavailable: the store does not answer, or the daemon does not after its start.
        Stale, OutcomeUnknown: the first records may not have been written.
        OSError: a file cannot be written.
    """
    _check_machine()
    name = check_node_name(name or socket.gethostname())
    address = address or _own_address()
    if store == "sqlite":
        store = f"sqlite:{STATE_DIRECTORY / 'store.db'}"
    storage = Storage(driver=driver, pool=pool, pool_size=pool_size, force_format=force_format)
    wish = Runtime(register=runtime, before=runtime_before)
    asyncio.run(_init(name, address, store, storage, wish))


async def _init(name: str, address: str, store: str, storage: Storage, runtime: Runtime) -> None:
    authority = _authority()
    pool = await _prepare_storage(storage)
    request = new_request(name)
    credentials = Credentials.save(
        CONFIG_DIRECTORY,
        ca=authority.certificate_pem,
        certificate=authority.issue_node(request.csr_pem, node=name, addresses=[address]),
        key=request.key_pem,
    )
    if (AUTHORITY_DIRECTORY / STORE_DIRECTORY).is_dir():
        theirs = Authority.load(AUTHORITY_DIRECTORY / STORE_DIRECTORY)
        certificate = theirs.issue_store_client(
            request.csr_pem, node=name, membership=_removals().membership(name)
        )
        _save_for_store(theirs.certificate_pem, certificate, request.key_pem)
    config = Config(
        node=name,
        cluster=authority.cluster,
        address=address,
        store=store,
        drivers=(storage.driver,),
        pool=pool,
    )
    await _found(config, credentials)
    await _install_units()
    await _register_runtime(runtime)
    save_config(config)
    await _start_daemon()


def _save_for_store(ca: str, certificate: str, key: str) -> None:
    Credentials.save(CONFIG_DIRECTORY / STORE_DIRECTORY, ca=ca, certificate=certificate, key=key)


def _removals() -> Removals:
    """Which nodes were removed, as this machine knows."""
    found = read_file(
        HostFiles(state=STATE_DIRECTORY, run=RUN_DIRECTORY).durable(REMOVALS_FILE),
        Removals,
        remedy="move it away; the other nodes know it, too",
    )
    return found or Removals()


def _authority() -> Authority:
    if not (AUTHORITY_DIRECTORY / "ca.crt").exists():
        ca_create(directory=str(AUTHORITY_DIRECTORY))
    return Authority.load(AUTHORITY_DIRECTORY)


async def _found(config: Config, credentials: Credentials) -> None:
    """Write the cluster's identity and the first node's record, unless an earlier try did."""
    store = open_store(config.store, tls=store_credentials(credentials).client_context())
    registry = Registry(store)
    node = Node(
        name=config.node,
        address=config.address,
        drivers=config.drivers,
        version=__version__,
        joined_at=time.time(),
        certificate=credentials.fingerprints.certificate,
        key=credentials.fingerprints.key,
        authority=True,
    )
    async with store.session():
        there = await registry.cluster()
        if there is None:
            await registry.found(ClusterRecord(config.cluster, time.time()))
        elif there.id != config.cluster:
            raise Conflict(
                f"the store {config.store} belongs to the cluster {there.id}, not to "
                f"{config.cluster}",
                remedy="use an empty store, or join that cluster instead",
            )
        found = await registry.node(config.node)
        if found is None:
            await registry.put_node(node)
        else:
            await registry.put_node(found.record.started_as(node), expect=found.revision)


def join(
    *,
    address: str,
    token: str,
    name: str | None,
    own_address: str | None,
    pool: str | None,
    pool_size: str | None,
    driver: str,
    force_format: str | None,
    runtime: bool = True,
    runtime_before: str | None = None,
) -> None:
    """Make this machine a node of the cluster that ``address`` belongs to.

    Raises:
        Denied: the caller is not root, the token is not accepted, or another cluster answers.
        AlreadyExists: the name is taken.
        Conflict: the machine belongs to a cluster already or is not run by systemd, the member cannot
            let it in, another pool is mounted, or Docker has another default runtime.
        InvalidInput: a name, address, size, the token's form or Docker's configuration file cannot be
            accepted; the runtime that was asked for cannot be chained to.
        NotFound: Docker has no such runtime.
        StorageError: the pool or the directory cannot be made or used.
        ProgramFailed: systemd or a program that makes the pool fails, or Docker does not take its settings in.
        Unavailable: nobody answers at ``address``, the cluster's store does not answer, or the daemon
            does not after its start.
        Stale, OutcomeUnknown: the node's record may not have been written.
        OSError: a file cannot be written.
    """
    _check_machine()
    name = check_node_name(name or socket.gethostname())
    parsed = Token.parse(token)
    own_address = own_address or _own_address(towards=address)
    storage = Storage(driver=driver, pool=pool, pool_size=pool_size, force_format=force_format)
    wish = Runtime(register=runtime, before=runtime_before)
    asyncio.run(_join(address, parsed, name, own_address, storage, wish))


async def _join(
    address: str, token: Token, name: str, own_address: str, storage: Storage, runtime: Runtime
) -> None:
    pinned = await pin(address, port=API_PORT, ca_fingerprint=token.ca_fingerprint)
    pool = await _prepare_storage(storage)
    request = new_request(name)
    endpoint = TlsEndpoint(address=address, context=pinned.context, node=pinned.member.name)
    order = JoinOrder(
        token=token.text(),
        name=name,
        address=own_address,
        csr=request.csr_pem,
        version=__version__,
    )
    async with ApiClient(endpoint) as client:
        try:
            reply = await client.join(order)
        except OutcomeUnknown as error:
            raise OutcomeUnknown(
                f"{error.message}; the token may have been used up, and this machine is no node",
                remedy=f"on a node of the cluster: pannier node rm {name}, if pannier node ls shows it; "
                "then join with a new token: pannier token create",
            ) from error
    Credentials.save(
        CONFIG_DIRECTORY, ca=reply.ca, certificate=reply.certificate, key=request.key_pem
    )
    if reply.store_certificate:
        _save_for_store(reply.store_ca, reply.store_certificate, request.key_pem)
    await _install_units()
    await _register_runtime(runtime)
    save_config(
        Config(
            node=name,
            cluster=reply.cluster,
            address=own_address,
            store=reply.store,
            drivers=(storage.driver,),
            pool=pool,
        )
    )
    await _start_daemon()


def _check_machine() -> None:
    """Refuse a machine on which the daemon could not be started, before anything is made."""
    _check_root("make this machine a node")
    if not Path("/run/systemd/system").is_dir():
        raise Conflict(
            "this machine is not run by systemd, which starts and watches pannierd",
            remedy="use a machine with systemd; to try Pannier on this one: pannier lab up",
        )
    if (CONFIG_DIRECTORY / "pannierd.toml").exists():
        config = load_config()
        raise Conflict(
            f"this machine is node {config.node} of the cluster {config.cluster} already",
            remedy="see pannier status; to leave, remove the node there and move /etc/pannier away",
        )


def _check_root(what: str) -> None:
    if os.geteuid() != 0:
        raise Denied(f"only root can {what}", remedy="run it with sudo")


def _own_address(towards: str = "192.0.2.1") -> str:
    """The address that this machine's routing picks; no packet is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((towards, 9))
        except OSError as error:
            raise InvalidInput(
                "this machine's address cannot be found out", remedy="say it: --address IP"
            ) from error
        return str(probe.getsockname()[0])


async def _prepare_storage(wish: Storage) -> str | None:
    """Make the pool, or find the one that is there. Returns its device or file."""
    STATE_DIRECTORY.mkdir(mode=0o700, parents=True, exist_ok=True)
    keep_private(STATE_DIRECTORY)
    if wish.driver == "directory":
        if wish.pool or wish.pool_size or wish.force_format:
            raise InvalidInput(
                "the directory driver has no pool", remedy="leave the pool's options out"
            )
        await create_directory(STATE_DIRECTORY / "directory")
        return None
    source = Path(wish.pool) if wish.pool else DEFAULT_POOL
    if wish.force_format is not None and wish.force_format != str(source):
        raise InvalidInput(
            f"--force-format {wish.force_format} is not the pool {source}",
            remedy="repeat the pool's own path, to show that you mean that device",
        )
    size = parse_size(wish.pool_size) if wish.pool_size else None
    if size is None and not source.exists():
        size = int(shutil.disk_usage(STATE_DIRECTORY).free * POOL_SHARE)
    await create_pool(
        source,
        mountpoint=POOL_MOUNTPOINT,
        size_bytes=size,
        force_format=wish.force_format is not None,
    )
    return str(source)


async def _systemctl(*words: str) -> None:
    failing = Failing(
        remedy="see what `journalctl -b` says of it, then do the same again",
        slow="see `systemctl list-jobs`, then do the same again",
        install="a node needs systemd",
    )
    await run(["systemctl", *words], timeout_s=START_SECONDS, failing=failing)


async def _install_units() -> None:
    daemon = shutil.which("pannierd") or str(Path(sys.argv[0]).with_name("pannierd"))
    for unit in UNITS:
        text = resources.files("pannier").joinpath("systemd", unit).read_text()
        text = text.replace("/usr/local/bin/pannierd", daemon)
        write_file(UNIT_DIRECTORY / unit, text.encode(), mode=0o644)
    install_runtime()
    install_udev_rule()
    await _systemctl("daemon-reload")
    await _systemctl("enable", "--quiet", *UNITS)


def install_runtime(target: Path = PROGRAM, next_program: str | None = None) -> None:
    """Install ``pannier-runtime``, the OCI runtime for Docker's daemon.json; it may be in use.

    Args:
        next_program: absolute path of the runtime that it becomes; None for runc.
    """
    directory = resources.files("pannier").joinpath("runtime")
    text = directory.joinpath("pannier-runtime.sh").read_text()
    text = text.replace("@PYTHON@", sys.executable)
    text = text.replace("@EDIT@", str(directory.joinpath("edit.py")))
    text = text.replace("@NEXT@", shlex.quote(next_program or ""))
    # Whole, also after a power cut: without its runtime Docker starts no container at all.
    write_file(target, text.encode(), mode=0o755)


def install_udev_rule(rules: Path = UDEV_RULES) -> None:
    """Hide our loop devices from programs that look into new disks, where there is udev.

    udev reads its rules again by itself when their directory has changed.
    """
    if rules.is_dir():
        text = resources.files("pannier").joinpath("udev", UDEV_RULE).read_text()
        write_file(rules / UDEV_RULE, text.encode(), mode=0o644)


def pool_grow(*, size: str | None) -> int:
    """Enlarge this node's pool, which goes on being used: a file to ``size``, a device to what it has now.

    Returns its size, in bytes.

    Raises:
        Denied: the caller is not root. InvalidInput: the node has no pool; a size for a device, or one that is
            smaller than the pool. PoolMissing: it is not mounted. StorageError: the disk refused.
    """
    _check_root("enlarge the pool")
    config = load_config()
    if config.pool is None:
        raise InvalidInput(
            "this node has no pool", remedy="its driver keeps volumes in a directory"
        )
    wanted = parse_size(size) if size is not None else None
    asyncio.run(grow_pool(Path(config.pool), mountpoint=POOL_MOUNTPOINT, size_bytes=wanted))
    found = os.statvfs(POOL_MOUNTPOINT)
    return found.f_blocks * found.f_frsize


def runtime_register(*, before: str | None) -> bool:
    """Install pannier-runtime and make it Docker's default runtime.

    Returns whether Docker's configuration was changed.

    Args:
        before: the runtime before which it goes, as Docker calls it; None keeps what is registered, else
            it is runc.

    Raises:
        Denied: the caller is not root.
        Conflict, NotFound, InvalidInput, ProgramFailed, StorageError, OSError: as
            :meth:`~pannier.engine.registration.Registration.register`.
    """
    _check_root("register a runtime")
    return asyncio.run(_registered(lambda registration: registration.register(before=before)))


def runtime_unregister() -> bool:
    """Bring back what Docker had before. Returns whether its configuration was changed.

    Raises:
        Denied: the caller is not root.
        Conflict, InvalidInput, ProgramFailed, StorageError, OSError: as
            :meth:`~pannier.engine.registration.Registration.unregister`.
    """
    _check_root("unregister a runtime")
    return asyncio.run(_registered(lambda registration: registration.unregister()))


def refresh() -> None:
    """Bring a node's units and, if it is registered, its runtime up to this version; for a deployment.

    The daemon is not restarted. May be repeated.
    """
    asyncio.run(_refresh())


async def _refresh() -> None:
    await _install_units()
    await _registered(lambda registration: registration.refresh())


async def _register_runtime(wish: Runtime) -> None:
    if wish.register and (wish.before is not None or shutil.which("dockerd")):
        await _registered(lambda registration: registration.register(before=wish.before))


async def _registered(work: Callable[[Registration], Awaitable[_T]]) -> _T:
    engine = DockerEngine()
    try:
        return await work(
            Registration(DockerService(engine), note=RUNTIME_NOTE, install=install_runtime)
        )
    finally:
        await engine.close()


async def _start_daemon() -> None:
    """Start the units, and wait until the daemon answers."""
    # An old daemon may still run, such as on a node that was removed and joins again.
    await _systemctl("stop", *UNITS)
    await _systemctl("start", *UNITS)
    deadline = time.monotonic() + START_SECONDS
    last: PannierError = Unavailable("pannierd does not answer")
    while time.monotonic() < deadline:
        try:
            async with ApiClient(UnixEndpoint(RUN_DIRECTORY / "api.sock")) as client:
                await client.nodes()
                return
        except PannierError as error:
            last = error
        await asyncio.sleep(0.1)
    raise Unavailable(
        f"pannierd was started and does not answer: {last.message}",
        remedy="see journalctl -u pannierd",
    )


def ca_create(*, directory: str) -> None:
    """Make a new cluster's authorities, before ``init``: its own, and that of its etcd.

    A cluster of an earlier version has the first, and gets the second.

    Raises:
        AlreadyExists: there are both.
        NotFound, Denied: a key from an earlier try is missing, too open, or damaged.
        OSError: a file cannot be written.
    """
    own, etcds = Path(directory), Path(directory) / STORE_DIRECTORY
    if (own / CA_CERTIFICATE).exists() and not (etcds / CA_CERTIFICATE).exists():
        cluster = Authority.load(own).cluster
    else:
        cluster = Authority.create(own, cluster=secrets.token_hex(6)).cluster
    Authority.create(etcds, cluster=cluster, name=STORE_NAME)


def ca_issue_etcd(
    *, name: str, addresses: Sequence[str], out_directory: str, ca_directory: str
) -> None:
    """Write ``ca.crt``, ``tls.crt`` and ``tls.key`` for an etcd member.

    Raises:
        AlreadyExists: there is such a file.
        NotFound: there is no authority of etcd's in ``ca_directory``.
        Denied: its files do not belong together or are too open.
        InvalidInput: the name or an address cannot be accepted.
        OSError: a file cannot be read or written.
        Corrupt, NewerFormat, StorageError: which nodes were removed cannot be read.
    """
    authority = Authority.load(Path(ca_directory) / STORE_DIRECTORY)
    request = new_request(name)
    certificate = authority.issue_etcd(
        request.csr_pem,
        member=name,
        addresses=addresses,
        membership=_removals().membership(node_of(name)),
    )
    _write_new(
        Path(out_directory),
        {"ca.crt": authority.certificate_pem, "tls.crt": certificate, "tls.key": request.key_pem},
    )


def ca_issue_store(*, name: str, out_directory: str, ca_directory: str) -> None:
    """Write ``ca.crt``, ``node.crt`` and ``node.key``, with which the node NAME uses etcd.

    Raises:
        AlreadyExists, NotFound, Denied, InvalidInput, OSError, Corrupt, NewerFormat, StorageError: as
            :func:`ca_issue_etcd`.
    """
    authority = Authority.load(Path(ca_directory) / STORE_DIRECTORY)
    request = new_request(name)
    certificate = authority.issue_store_client(
        request.csr_pem, node=name, membership=_removals().membership(name)
    )
    _write_new(
        Path(out_directory),
        {"ca.crt": authority.certificate_pem, "node.crt": certificate, "node.key": request.key_pem},
    )


def ca_issue_user(*, name: str, out_directory: str, ca_directory: str) -> None:
    """Write ``ca.crt``, ``user.crt`` and ``user.key``: for ``pannier --host --certificates``.

    An earlier certificate of that user counts until its end, and is not renewed any more.

    Raises:
        AlreadyExists: there is such a file.
        NotFound: there is no CA in ``ca_directory``.
        Denied: its files do not belong together or are too open.
        InvalidInput: the name cannot be accepted.
        OSError: a file cannot be read or written.
    """
    authority = Authority.load(Path(ca_directory))
    request = new_request(name)
    certificate = authority.issue_user(request.csr_pem, user=name)
    texts = {
        "ca.crt": authority.certificate_pem,
        "user.crt": certificate,
        "user.key": request.key_pem,
    }
    _refuse_existing(Path(out_directory), texts)
    IssuedToUsers(Path(ca_directory)).note(name, certificate)
    _write_new(Path(out_directory), texts)


def _write_new(directory: Path, texts: dict[str, str]) -> None:
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    _refuse_existing(directory, texts)
    for name, text in texts.items():
        try:
            write_file(directory / name, text.encode(), replace=False)
        except FileExistsError as error:
            raise _there_already(directory / name) from error


def _refuse_existing(directory: Path, names: Iterable[str]) -> None:
    for file in (directory / name for name in names):
        if file.exists():
            raise _there_already(file)


def _there_already(file: Path) -> AlreadyExists:
    return AlreadyExists(f"{file} exists", remedy="choose another --out, or move it away")
