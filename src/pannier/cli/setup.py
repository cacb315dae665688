"""`pannier init`, `join` and `ca`: what makes a machine a node. These run here, not in the daemon."""

from __future__ import annotations

from importlib import import_module
from typing import Any, Protocol, cast

import click

from pannier.cli import output
from pannier.cli.command import Command, CommandGroup, Decorated, output_options
from pannier.cli.session import Session, pass_session
from pannier.core.errors import InvalidInput

DEFAULT_POOL = "/var/lib/pannier/pool.img"
CA_DIRECTORY = "/etc/pannier/ca"


class Setup(Protocol):
    """The functions of :mod:`pannier.setup` that the commands use; imported when used, as it is large.

    Each method raises what the function of its name lists there. All of them may raise OSError, where
    a file cannot be read or written.
    """

    def init(
        self,
        *,
        name: str | None,
        address: str | None,
        store: str,
        pool: str | None,
        pool_size: str | None,
        driver: str,
        force_format: str | None,
        runtime: bool,
        runtime_before: str | None,
    ) -> None:
        """Make a new cluster with this machine as its first node.

        Raises:
            Denied, Conflict, InvalidInput, NotFound, StorageError, ProgramFailed, Unavailable, Stale,
                OutcomeUnknown: see :func:`pannier.setup.init`.
        """
        ...

    def join(
        self,
        *,
        address: str,
        token: str,
        name: str | None,
        own_address: str | None,
        pool: str | None,
        pool_size: str | None,
        driver: str,
        force_format: str | None,
        runtime: bool,
        runtime_before: str | None,
    ) -> None:
        """Make this machine a node of the cluster that ``address`` belongs to.

        Raises:
            Denied, AlreadyExists, Conflict, InvalidInput, NotFound, StorageError, ProgramFailed,
                Unavailable, Stale, OutcomeUnknown: see :func:`pannier.setup.join`.
        """
        ...

    def pool_grow(self, *, size: str | None) -> int:
        """Enlarge this node's pool; returns its size in bytes.

        Raises:
            Denied, InvalidInput, StorageError: see :func:`pannier.setup.pool_grow`.
        """
        ...

    def runtime_register(self, *, before: str | None) -> bool:
        """Make pannier-runtime Docker's default runtime; returns whether that changed anything.

        Raises:
            Denied, Conflict, NotFound, InvalidInput, ProgramFailed, StorageError: see
                :func:`pannier.setup.runtime_register`.
        """
        ...

    def runtime_unregister(self) -> bool:
        """Bring back what Docker had before; returns whether that changed anything.

        Raises:
            Denied, Conflict, InvalidInput, ProgramFailed, StorageError: see
                :func:`pannier.setup.runtime_unregister`.
        """
        ...

    def ca_create(self, *, directory: str) -> None:
        """Make a new cluster's authorities.

        Raises:
            AlreadyExists: there are both.
            NotFound, Denied: a key from an earlier try is missing, too open, or damaged.
        """
        ...

    def ca_issue_etcd(
        self, *, name: str, addresses: tuple[str, ...], out_directory: str, ca_directory: str
    ) -> None:
        """Write the files of an etcd member.

        Raises:
            AlreadyExists, NotFound, Denied, InvalidInput, StorageError: see
                :func:`pannier.setup.ca_issue_etcd`.
        """
        ...

    def ca_issue_store(self, *, name: str, out_directory: str, ca_directory: str) -> None:
        """Write the files with which a node uses etcd.

        Raises:
            AlreadyExists, NotFound, Denied, InvalidInput, StorageError: see
                :func:`pannier.setup.ca_issue_store`.
        """
        ...

    def ca_issue_user(self, *, name: str, out_directory: str, ca_directory: str) -> None:
        """Write the files of a user.

        Raises:
            AlreadyExists, NotFound, Denied, InvalidInput: see :func:`pannier.setup.ca_issue_user`.
        """
        ...


class Refusing(Protocol):
    """The function of :mod:`pannier.refusing`; imported when used, as that is large."""

    def write_refused(self, *, out: str) -> list[str]:
        """Write the list of certificates that etcd refuses; returns which other nodes answered.

        Raises:
            StorageError: what this node knows cannot be read.
        """
        ...


def _refusing() -> Refusing:
    return cast("Refusing", import_module("pannier.refusing"))


def _setup() -> Setup:
    return cast("Setup", import_module("pannier.setup"))


def _machine_options(command: Decorated) -> Decorated:
    """The options that describe this machine; the same for its first and its later nodes."""
    options = [
        click.option("--name", help="The node's name; the host name if not given."),
        click.option("--address", help="Address at which the other nodes reach this one."),
        click.option(
            "--pool",
            metavar="PATH",
            help=f"Device or file of the btrfs pool; a sparse file {DEFAULT_POOL} if not given.",
        ),
        click.option("--pool-size", metavar="SIZE", help="Size of a new pool file, such as 50G."),
        click.option(
            "--driver",
            type=click.Choice(["btrfs", "directory"]),
            default="btrfs",
            show_default=True,
            help="Where the bytes live.",
        ),
        click.option(
            "--force-format",
            metavar="DEVICE",
            help="Erase what is on the pool's device; its path must be given again here.",
        ),
        click.option(
            "--runtime/--no-runtime",
            default=True,
            show_default=True,
            help="Make pannier-runtime Docker's default, which durability=fsync needs.",
        ),
        click.option(
            "--runtime-before",
            metavar="NAME",
            help="Docker's runtime before which pannier-runtime goes; runc if not given.",
        ),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def _check_force(pool: str | None, force_format: str | None) -> None:
    if force_format is not None and force_format != pool:
        raise InvalidInput(
            f"--force-format {force_format} is not the pool, which is {pool or DEFAULT_POOL}",
            remedy="repeat the path that --pool names, if it is really to be erased",
        )


def _check_runtime(runtime: bool, runtime_before: str | None) -> None:
    if runtime_before is not None and not runtime:
        raise InvalidInput(
            "--no-runtime leaves pannier-runtime out, so it goes before no other",
            remedy="leave out --no-runtime or --runtime-before",
        )


@click.command(
    cls=Command,
    examples=(
        "pannier init",
        "pannier init --name node1 --address 10.0.0.1 --pool-size 50G",
        "pannier init --store etcd://10.0.0.1:2379,10.0.0.2:2379 --pool /dev/vdb",
    ),
)
@click.option(
    "--store",
    default="sqlite",
    show_default=True,
    metavar="STORE",
    help="The cluster's memory: sqlite (one node) or etcd://HOST:PORT,HOST:PORT,...",
)
@_machine_options
@output_options()
@pass_session
def init(session: Session, /, store: str, **machine: Any) -> None:
    """Make this machine the first node of a new cluster. Needs root."""
    _check_force(machine["pool"], machine["force_format"])
    _check_runtime(machine["runtime"], machine["runtime_before"])
    _setup().init(store=store, **machine)
    session.show({"done": "init"}, line="this machine is the first node of a new cluster")
    session.hint("its daemon runs; see: pannier status")


@click.command(
    cls=Command,
    examples=(
        "pannier join 10.0.0.1 --token pannier1-...",
        "PANNIER_TOKEN=pannier1-... pannier join 10.0.0.1 --name node2",
    ),
)
@click.argument("member", metavar="ADDRESS")
@click.option(
    "--token",
    required=True,
    envvar="PANNIER_TOKEN",
    help="A token from 'pannier token create'; or set PANNIER_TOKEN, which 'ps' does not show.",
)
@_machine_options
@output_options()
@pass_session
def join(session: Session, /, member: str, token: str, **machine: Any) -> None:
    """Make this machine a node of the cluster that has a node at ADDRESS. Needs root."""
    _check_force(machine["pool"], machine["force_format"])
    _check_runtime(machine["runtime"], machine["runtime_before"])
    own_address = machine.pop("address")
    _setup().join(address=member, token=token, own_address=own_address, **machine)
    session.show({"done": "join"}, line="this machine is a node of the cluster")
    session.hint("its daemon runs; see: pannier status")


@click.group(cls=CommandGroup)
def runtime() -> None:
    """The container runtime that holds sync calls until every copy has what was written."""


@runtime.command(
    "register", examples=("pannier runtime register", "pannier runtime register --before nvidia")
)
@click.option(
    "--before",
    metavar="NAME",
    help="Docker's runtime before which it goes; if not given, the one that is registered, else runc.",
)
@output_options()
@pass_session
def register(session: Session, before: str | None) -> None:
    """Make pannier-runtime Docker's default runtime on this machine. Needs root.

    It is runc, with a barrier before the sync calls of containers that use a volume with
    durability=fsync. Other containers are handed to runc untouched. Running ones stay as they are.

    With --before it is another runtime in place of runc, such as NVIDIA's or crun. That one must be in Docker's
    configuration, and must hand sync calls over as runc does.

    What Docker does not take in is undone.
    """
    changed = _setup().runtime_register(before=before)
    line = "Docker's default runtime is pannier-runtime" + ("" if changed else ", as it was")
    session.show({"done": "register", "changed": changed}, line=line)


@runtime.command("unregister", examples=("pannier runtime unregister",))
@output_options()
@pass_session
def unregister(session: Session) -> None:
    """Bring back the default runtime that Docker had. Needs root.

    Docker's configuration file is as it was before 'register', to the byte if nobody changed it since. Volumes
    with durability=fsync are then refused here.
    """
    changed = _setup().runtime_unregister()
    line = "Docker has no pannier-runtime" + ("" if not changed else " any more")
    session.show({"done": "unregister", "changed": changed}, line=line)


@click.group(cls=CommandGroup)
def pool() -> None:
    """The disk space of this node's volumes."""


@pool.command("grow", examples=("pannier pool grow --size 80G", "pannier pool grow"))
@click.option(
    "--size", metavar="SIZE", help="Of a pool in a file, such as 80G; a device has its own."
)
@output_options()
@pass_session
def grow(session: Session, size: str | None) -> None:
    """Enlarge this node's pool while it is used. Needs root.

    A pool on a device takes over what the device has now, after a partition or a virtual disk was
    enlarged. Volumes without a size grow with it at their next Mount.
    """
    total = _setup().pool_grow(size=size)
    session.show({"total_bytes": total}, line=f"the pool has {output.show_size(total)} now")


@click.group(cls=CommandGroup)
def ca() -> None:
    """Certificates beyond those that 'init' and 'join' make."""


@ca.command("create", examples=("pannier ca create",))
@click.option(
    "--directory", default=CA_DIRECTORY, show_default=True, help="Where the authority's files go."
)
@output_options()
@pass_session
def create_authority(session: Session, directory: str) -> None:
    """Make the cluster's certificate authorities before its first node: its own, and that of its etcd.

    Needed for a store in etcd; else 'init' makes them. A cluster of an earlier version gets the second one.
    """
    _setup().ca_create(directory=directory)
    session.show({"directory": directory}, line=f"created: {directory}")


@ca.command(
    "issue",
    examples=(
        "pannier ca issue etcd1 --address 10.0.0.1 --out /etc/etcd/tls",
        "pannier ca issue anna --for user --out ./anna",
    ),
)
@click.argument("name")
@click.option(
    "--for",
    "purpose",
    type=click.Choice(["etcd", "store", "user"]),
    default="etcd",
    show_default=True,
    help="What the certificate is for.",
)
@click.option(
    "--address",
    "addresses",
    multiple=True,
    help="For etcd: IP address or host name at which it is reached; may be repeated.",
)
@click.option("--out", required=True, metavar="DIRECTORY", help="Where key and certificate go.")
@click.option(
    "--ca", "ca_directory", default=CA_DIRECTORY, show_default=True, help="The authority's files."
)
@output_options()
@pass_session
def issue(
    session: Session,
    name: str,
    purpose: str,
    addresses: tuple[str, ...],
    out: str,
    ca_directory: str,
) -> None:
    """Issue a certificate for the etcd member, or the user, NAME; or one with which the node NAME uses etcd (store).

    A user reaches the cluster from any machine with: pannier --host URL --certificates DIRECTORY
    It is renewed as it is used. A new one for the same user ends that for the one before, which counts until its end.
    """
    if (purpose == "etcd") != bool(addresses):
        raise InvalidInput(
            "an etcd member needs --address, and others have none",
            remedy="see 'pannier ca issue --help'",
        )
    if purpose == "user":
        _setup().ca_issue_user(name=name, out_directory=out, ca_directory=ca_directory)
    elif purpose == "store":
        _setup().ca_issue_store(name=name, out_directory=out, ca_directory=ca_directory)
    else:
        _setup().ca_issue_etcd(
            name=name, addresses=addresses, out_directory=out, ca_directory=ca_directory
        )
    session.show({"name": name, "for": purpose, "directory": out}, line=f"issued: {name} in {out}")


@ca.command("refused", examples=("pannier ca refused --out /etc/etcd/pki/refused.crl",))
@click.option("--out", required=True, metavar="FILE", help="Where the list goes (CRL, DER).")
@output_options()
@pass_session
def refused(session: Session, out: str) -> None:
    """Write the list of certificates that an etcd member must refuse: those of removed nodes. Needs root.

    etcd runs it before each start, which 'pannier deploy' sees to. It asks the other nodes what this one has missed.
    """
    heard = _refusing().write_refused(out=out)
    session.show({"file": out, "heard": heard}, line=f"written: {out}")
