"""`pannier lab`: the lab's command line."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TypeVar

import click
import msgspec
from rich.console import Console

from pannier.core.errors import PannierError
from pannier.lab import dockerimage, rootfs, state
from pannier.lab import inventory as hosts
from pannier.lab.disk import FAULTS, ROLES, DiskFault, Role
from pannier.lab.lab import Cluster, Lab, LabNode
from pannier.lab.paths import DEFAULT_NAME
from pannier.lab.preflight import check_host
from pannier.lab.state import CgroupKind, DiskKind, DriverKind, Release, StoreKind

F = TypeVar("F", bound=Callable[..., Any])

_notes = Console(stderr=True, highlight=False)


class _Group(click.Group):
    """Shows our errors as a sentence and what to do next, not as a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except PannierError as error:
            _notes.print("[bold red]Error:[/]", end=" ")
            _notes.print(error.message, markup=False)
            if error.remedy:
                _notes.print(f"Next: {error.remedy}", markup=False)
            ctx.exit(error.exit_status)


@contextmanager
def _progress() -> Iterator[Callable[[str], None]]:
    """Shows what is being done and how long each step took; plain lines if nobody watches."""
    begin = step_begin = time.monotonic()
    current = ""

    def finish_step() -> None:
        if current:
            _notes.print(f"  {time.monotonic() - step_begin:6.1f} s  {current}", markup=False)

    with _notes.status("...") as status:

        def report(text: str) -> None:
            nonlocal current, step_begin
            finish_step()
            current, step_begin = text, time.monotonic()
            status.update(f"{text} ...")

        yield report
        finish_step()
    if current:
        _notes.print(f"  {time.monotonic() - begin:6.1f} s  in all", markup=False)


def _name_option(command: F) -> F:
    return click.option(
        "--name",
        default=DEFAULT_NAME,
        show_default=True,
        envvar="PANNIER_LAB",
        show_envvar=True,
        help="Which lab.",
    )(command)


@click.group(cls=_Group)
def lab() -> None:
    """Real machines on this machine, to try Pannier and to break things.

    Each has its own systemd, sshd, Docker engine, network and disks. Root is needed.

    \b
    Examples:
      pannier lab up
      pannier lab run node1 -- docker node ls
      pannier lab crash node1
      pannier lab down
    """


@lab.command()
@_name_option
@click.option("--nodes", default=3, show_default=True, help="How many machines.")
@click.option(
    "--release",
    type=click.Choice(["bookworm", "trixie", "mixed"]),
    default="bookworm",
    show_default=True,
    help="Of Debian: Docker 20.10, Docker 26.1, or in turn.",
)
@click.option(
    "--disks",
    type=click.Choice(["plain", "cuttable"]),
    default="plain",
    show_default=True,
    help="Cuttable disks can lose power, fail, crawl and hang; plain ones are faster.",
)
@click.option(
    "--store",
    type=click.Choice(["etcd", "sqlite"]),
    default="etcd",
    show_default=True,
    help="Where Pannier keeps its records; sqlite is for one node.",
)
@click.option(
    "--driver",
    type=click.Choice(["btrfs", "directory"]),
    default="btrfs",
    show_default=True,
    help="Where the volumes' bytes live.",
)
@click.option(
    "--cgroups",
    type=click.Choice(["v2", "host"]),
    default="v2",
    show_default=True,
    help="Control groups: version 2 alone, as Debian has it, or as on this machine. Where this "
    "machine has controllers in version 1, v2 leaves them out: limits of memory, CPU and processes "
    "then do nothing.",
)
@click.option(
    "--disk-size", default="20G", show_default=True, help="Of each disk; they are sparse."
)
@click.option("--bare", is_flag=True, help="Nothing but sshd, Python and a mirror for apt.")
@click.option("--no-pannier", is_flag=True, help="A Swarm, but no etcd and no Pannier.")
@click.option("--no-cluster", is_flag=True, help="Docker engines, but no Swarm, etcd or Pannier.")
def up(
    name: str,
    nodes: int,
    release: Literal["bookworm", "trixie", "mixed"],
    disks: DiskKind,
    store: StoreKind,
    driver: DriverKind,
    cgroups: CgroupKind,
    disk_size: str,
    bare: bool,
    no_pannier: bool,
    no_cluster: bool,
) -> None:
    """Make machines, boot them and form a cluster of them.

    The first time this installs Debian and takes some minutes, later some seconds.

    \b
    Examples:
      pannier lab up
      pannier lab up --disks cuttable --release mixed
      pannier lab up --name one --nodes 1 --store sqlite
    """
    cluster_kind: Cluster = "none" if no_cluster else "swarm" if no_pannier else "full"
    try:
        with _progress() as report:
            Lab(name, report=report).up(
                nodes=nodes,
                release=release,
                disks=disks,
                store=store,
                driver=driver,
                cgroups=cgroups,
                bare=bare,
                cluster_kind=cluster_kind,
                disk_size=disk_size,
            )
    except KeyboardInterrupt:
        _notes.print(f"Interrupted. Next: `pannier lab down --name {name}` removes what was made.")
        sys.exit(130)
    _show(Lab(name).nodes)


@lab.command()
@_name_option
def down(name: str) -> None:
    """Remove the lab with all its data, whatever state it is in.

    \b
    Example:
      pannier lab down --name one
    """
    with _progress() as report:
        found = Lab(name, report=report).down()
    _notes.print(f"Lab {name} removed." if found else f"There was nothing left of lab {name}.")


@lab.command()
@click.option(
    "--release",
    type=click.Choice(["bookworm", "trixie", "mixed"]),
    default="bookworm",
    show_default=True,
    help="Of Debian; mixed builds both.",
)
@click.option("--bare", is_flag=True, help="The machines without Docker and Pannier.")
def build(release: Literal["bookworm", "trixie", "mixed"], bare: bool) -> None:
    """Make the machines' root file system now, so that the next `up` is quick.

    \b
    Example:
      pannier lab build --release mixed
    """
    check_host("plain")
    releases: tuple[Release, ...] = ("bookworm", "trixie") if release == "mixed" else (release,)
    with _progress() as report:
        for each in releases:
            for layer in reversed(rootfs.build(each, bare=bare, report=report)):
                click.echo(layer)


@lab.command("ls")
@_name_option
@click.option(
    "--all", "all_labs", is_flag=True, help="List the labs instead of one lab's machines."
)
@click.option("-o", "--output", type=click.Choice(["table", "json"]), default="table")
def list_nodes(name: str, all_labs: bool, output: str) -> None:
    """List the lab's machines: address, state, SSH key and Docker socket.

    \b
    Examples:
      pannier lab ls -o json
      export DOCKER_HOST=$(pannier lab ls -o json | jq -r '.[0].docker_host')
    """
    if all_labs:
        names = state.all_names()
        click.echo(msgspec.json.encode(names).decode() if output == "json" else "\n".join(names))
        return
    nodes = Lab(name).nodes
    if output == "json":
        click.echo(msgspec.json.format(msgspec.json.encode(nodes), indent=2).decode())
    else:
        _show(nodes)


@lab.command()
@_name_option
def inventory(name: str) -> None:
    """Print the lab's machines as an inventory for Ansible.

    \b
    Example:
      pannier lab inventory >hosts.yml
    """
    click.echo(hosts.inventory(Lab(name)), nl=False)


@lab.command(context_settings={"allow_interspersed_args": False})
@_name_option
@click.argument("node")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def run(name: str, node: str, command: tuple[str, ...]) -> None:
    """Run a command as root in a machine; input, output and exit status are passed through.

    \b
    Examples:
      pannier lab run node1 -- docker ps
      pannier lab run node2 -- bash
      tar -c stacks | pannier lab run --name one node1 -- tar -x -C /root
    """
    # Options before NODE are ours, those after it the command's. A -- in between is only for readers.
    Lab(name).become(node, command[1:] if command[0] == "--" else command)


@lab.command()
@_name_option
@click.argument("node")
def crash(name: str, node: str) -> None:
    """Cut a machine's power.

    Cuttable disks forget what was not flushed to them.

    \b
    Example:
      pannier lab crash node1
    """
    if not Lab(name).crash(node):
        _notes.print(
            f"{node} is off, but its plain disks did not forget what was unflushed. "
            "Start the lab with --disks cuttable for that."
        )


@lab.command()
@_name_option
@click.option("--no-wait", is_flag=True, help="Return as soon as it has begun to boot.")
@click.argument("node")
def boot(name: str, node: str, no_wait: bool) -> None:
    """Switch a machine on again, with the disks as it left them.

    This waits for its Docker engine, which takes half a minute if the Swarm has no majority.

    \b
    Example:
      pannier lab boot node1
    """
    with _progress() as report:
        report(f"booting {node}")
        Lab(name, report=report).boot(node, wait=not no_wait)


@lab.command()
@_name_option
@click.argument("node")
def cut(name: str, node: str) -> None:
    """Pull a machine's network cable; `run` still reaches it.

    \b
    Example:
      pannier lab cut node1
    """
    Lab(name).cut(node)


@lab.command()
@_name_option
@click.argument("node")
def mend(name: str, node: str) -> None:
    """Plug a machine's network cable in again.

    \b
    Example:
      pannier lab mend node1
    """
    Lab(name).mend(node)


@lab.command()
@_name_option
@click.argument("node")
def pause(name: str, node: str) -> None:
    """Let everything in a machine stand still, as a hypervisor does.

    \b
    Example:
      pannier lab pause node1
    """
    Lab(name).pause(node)


@lab.command()
@_name_option
@click.argument("node")
def resume(name: str, node: str) -> None:
    """Let a paused machine go on.

    \b
    Example:
      pannier lab resume node1
    """
    Lab(name).resume(node)


@lab.command()
@_name_option
@click.argument("node")
@click.argument("fault", type=click.Choice(FAULTS))
@click.option("--disk", "role", type=click.Choice(ROLES), default="pool", show_default=True)
@click.option(
    "--rate", default="1M", show_default=True, help="Bits per second of a slow disk; K, M or G."
)
def disk(name: str, node: str, fault: DiskFault, role: Role, rate: str) -> None:
    """Let a machine's disk fail, crawl, hang or recover (cuttable disks only).

    \b
    Examples:
      pannier lab disk node1 fail
      pannier lab disk node1 slow --rate 500K --disk system
      pannier lab disk node1 heal
    """
    Lab(name).disk(node, fault, role=role, rate=rate)


@lab.group()
def image() -> None:
    """Put Docker images into the machines, which reach no registry."""


@image.command("load")
@_name_option
@click.option("--tag", help="Name of the image, for a root file system.")
@click.argument("source")
def image_load(name: str, tag: str | None, source: str) -> None:
    """Load an image into every machine.

    Where the cluster has a registry (`pannier stack deploy registry`), the image goes to one machine,
    and the others pull it, if its name begins with localhost:5000/.

    SOURCE is a tar of `docker save`, a tar or a folder with a root file system, or - for a tar
    from the standard input.

    \b
    Examples:
      docker save jenkins:lts | pannier lab image load -
      pannier lab image load ./rootfs --tag localhost:5000/mine:1
    """
    with _progress() as report:
        target = Lab(name, report=report)
        if source == "-":
            with dockerimage.spooled(sys.stdin.buffer) as spool:
                target.load_image(spool, tag=tag)
        else:
            target.load_image(Path(source), tag=tag)


@image.command("build-busybox")
@_name_option
@click.argument("tag", default=dockerimage.DEFAULT_BUSYBOX)
def image_build_busybox(name: str, tag: str) -> None:
    """Make a small image with a shell and the usual commands in every machine.

    \b
    Example:
      pannier lab image build-busybox localhost:5000/busybox:1
    """
    with _progress() as report:
        Lab(name, report=report).build_busybox(tag)
    click.echo(tag)


def _show(nodes: list[LabNode]) -> None:
    rows = [("NODE", "STATE", "ADDRESS", "RELEASE", "DOCKER_HOST")]
    rows += [(n.name, n.state, n.address, n.release, n.docker_host or "-") for n in nodes]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        click.echo("  ".join(map(str.ljust, row, widths)).rstrip())
    if nodes:
        _notes.print(f"ssh -i {nodes[0].ssh_key} root@{nodes[0].address}", style="dim")
