"""`pannier volume`: volumes and their lives."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

import click

from pannier.cli import output
from pannier.cli.command import CommandGroup, output_options
from pannier.cli.converting import convert
from pannier.cli.exporting import export_volume
from pannier.cli.importing import import_volume
from pannier.cli.move import follow_move
from pannier.cli.parameters import read_duration, read_pairs
from pannier.cli.session import Session, pass_session
from pannier.cli.snapshot import snapshot
from pannier.cli.status import UNHEALTHY
from pannier.cli.take_out import take_out
from pannier.cli.trash import show_trash
from pannier.cli.usage import show_use
from pannier.contract.views import (
    CheckView,
    CopyView,
    EventView,
    FileSystemView,
    SpreadView,
    SyncView,
)
from pannier.contract.words import CheckState, FileSystemState
from pannier.core.clone_source import CloneSource
from pannier.core.errors import InvalidInput, NeedsCopy, OutcomeUnknown
from pannier.core.room import ways_out
from pannier.core.size import parse_size

if TYPE_CHECKING:
    from pannier.contract.operations import Operations
    from pannier.contract.volumes import LiveVolumeView, RememberedVolumeView, VolumeView


_GROWS_LOOKS = 10
_GROWS_LOOK_SECONDS = 0.3
"""For three seconds: the holder hears of the new size, and the kernel grows the file system, within one."""


@click.group(cls=CommandGroup)
def volume() -> None:
    """Volumes."""


volume.add_command(snapshot)
volume.add_command(import_volume)
volume.add_command(show_use)
volume.add_command(export_volume)
volume.add_command(take_out)


@volume.command(
    "create",
    examples=(
        "pannier volume create jenkins_home",
        "pannier volume create jenkins_home -o size=10G -o nodes=node2,node1 --format json",
    ),
)
@click.argument("name")
@click.option(
    "-o",
    "--option",
    "options",
    multiple=True,
    metavar="KEY=VALUE",
    callback=read_pairs,
    help="A volume option, as with 'docker volume create'; may be repeated.",
)
@output_options("--output")
@pass_session
def create_volume(session: Session, name: str, options: dict[str, str]) -> None:
    """Create a volume.

    Here -o gives a volume option, as it does with docker; use --format json for JSON.
    """
    made = session.ask(lambda client: client.create_volume(name, options))
    session.show(made, line=f"created: {made.name} on {made.holder}")


@volume.command(
    "set",
    examples=(
        "pannier volume set jenkins_home size=20G copies=2",
        "pannier volume set jenkins_home interval=5s labels=team=web",
        "pannier volume set old_data layout=image --stop-service",
    ),
)
@click.argument("name")
@click.argument("pairs", metavar="KEY=VALUE...", nargs=-1, callback=read_pairs)
@click.option(
    "-o",
    "--option",
    "options",
    multiple=True,
    metavar="KEY=VALUE",
    callback=read_pairs,
    help="The same as KEY=VALUE by itself; may be repeated.",
)
@click.option(
    "--stop-service",
    is_flag=True,
    help="Where that needs a copy: stop the Swarm service that uses it for the last part. On a Swarm manager.",
)
@output_options("--output")
@pass_session
def set_volume(
    session: Session,
    name: str,
    pairs: dict[str, str],
    options: dict[str, str],
    stop_service: bool,
) -> None:
    """Change options of a volume that is there.

    What is not named stays. Which options can be changed: see the volume options. It holds until the
    options in a service's spec are changed.

    driver and layout, and durability=none with copies=1, need a copy: the files are copied into a new volume while the old one is
    used, its users stop once, the rest is copied, all is compared, and the new one gets the name. The old one is in the trash
    then, with its snapshots. While somebody uses it, this is refused without --stop-service. A service that was stopped is
    started again also when it fails.
    """
    if twice := pairs.keys() & options.keys():
        raise InvalidInput(f"{', '.join(sorted(twice))} is given twice", remedy="give it once")
    asked = pairs | options
    if not asked:
        raise InvalidInput(
            "nothing is to be changed", remedy=f"pannier volume set {name} KEY=VALUE"
        )

    async def change(client: Operations) -> tuple[VolumeView, bool]:
        try:
            changed = await client.set_volume(name, asked)
        except NeedsCopy as error:
            output.print_hint(error.message)
            await convert(client, name, asked, stop_service=stop_service, json=session.json)
            shown = await client.volume(name)
            return shown, True
        return changed, "size" not in asked or await _has_grown(client, name, asked["size"])

    changed, has_grown = session.ask(change)
    said = " ".join(f"{key}={value}" for key, value in changed.options.items())
    session.show(changed, line=f"{changed.name}: {said}")
    if not has_grown:
        session.hint(
            "the kernel does not let it grow while it is in use: it grows once nobody has used it for half a minute"
        )


async def _has_grown(client: Operations, name: str, size: str) -> bool:
    """Whether a volume is as large as it shall be, or nobody uses it; its holder has a moment for that."""
    wanted = parse_size(size)
    for _ in range(_GROWS_LOOKS):
        shown = await client.volume(name)
        # What the file system keeps for itself is not in what it shows.
        if shown.size_bytes is None or shown.size_bytes >= wanted:
            return True
        await asyncio.sleep(_GROWS_LOOK_SECONDS)
    return False


@volume.command("ls", examples=("pannier volume ls", "pannier volume ls -o json"))
@output_options()
@pass_session
def list_volumes(session: Session) -> None:
    """List all volumes."""
    found = session.ask(lambda client: client.volumes())
    session.show(found, table=_volumes_table(found))


@volume.command(
    "show",
    examples=("pannier volume show jenkins_home", "pannier volume show jenkins_home -o json"),
)
@click.argument("name")
@output_options()
@pass_session
def show_volume(session: Session, name: str) -> None:
    """Show one volume, with what only its holder knows.

    "sync calls" says by what they are made durable now: by records, or by generations, which is slower. The
    times are of the last groups of sync calls, at most 100: the median and the worst of the whole ("time"), and of its
    parts. "local" is the holder's own disk, "turn" the wait for the group before, "cut" the making of a record or a
    generation, and "copies" the slowest copy in sync.
    """
    found = session.ask(lambda client: client.volume(name))
    session.show_details(found, _details(found))


@volume.command(
    "move",
    examples=(
        "pannier volume move jenkins_home node2",
        "pannier volume move jenkins_home node2 --wait 10m",
    ),
)
@click.argument("name")
@click.argument("node")
@click.option(
    "--wait",
    "wait_seconds",
    default="100s",
    show_default=True,
    metavar="DURATION",
    callback=read_duration,
    help="How long to wait for the containers that use the volume to stop.",
)
@output_options()
@pass_session
def move_volume(session: Session, name: str, node: str, wait_seconds: float) -> None:
    """Move a volume to another NODE.

    The bulk is copied while containers use the volume; the move then waits for them to stop. What
    is copied is kept when it waits in vain, so that the next move is short. As JSON, each step is
    one line.
    """

    async def move() -> None:
        async with session.client() as client:
            progress = client.move_volume(name, node, wait_seconds=wait_seconds)
            await follow_move(progress, json=session.json)

    asyncio.run(move())


@volume.command(
    "clone",
    examples=(
        "pannier volume clone shop_db@nightly test_db",
        "pannier volume clone shop_db try_upgrade -o copies=1 -o labels=stage=test",
    ),
)
@click.argument("what", metavar="NAME[@SNAPSHOT]")
@click.argument("new")
@click.option(
    "-o",
    "--option",
    "options",
    multiple=True,
    metavar="KEY=VALUE",
    callback=read_pairs,
    help="A volume option that is to be another one than NAME has; may be repeated.",
)
@output_options("--output")
@pass_session
def clone_volume(session: Session, what: str, new: str, options: dict[str, str]) -> None:
    """Make a volume NEW that begins as what NAME was in a snapshot, or is now.

    NAME may be in use. Both share what neither of them changes, so a clone takes a moment and no room, whatever the size.
    It is made on the node that holds NAME, and has its options, but for labels, protected, snapshots, backup and drill.

    Here -o gives a volume option; use --format json for JSON.
    """
    source = CloneSource.parse(what)
    made = session.ask(
        lambda client: client.clone_volume(
            source.volume, new=new, snapshot=source.snapshot or None, options=options
        )
    )
    session.show(made, line=f"cloned: {made.name} from {source} on {made.holder}")


@volume.command(
    "rollback",
    examples=(
        "pannier volume rollback jenkins_home before-upgrade",
        "pannier volume rollback jenkins_home before-upgrade --stop-service",
    ),
)
@click.argument("name")
@click.argument("snapshot")
@click.option(
    "--stop-service",
    is_flag=True,
    help="Stop the Swarm service that uses it, and start it again afterwards. On a Swarm manager.",
)
@output_options()
@pass_session
def roll_back_volume(session: Session, name: str, snapshot: str, stop_service: bool) -> None:
    """Take a volume that nobody uses back to a SNAPSHOT.

    What it was before becomes a snapshot itself, and all other snapshots stay: so this can be undone in the same way.

    A service that was stopped is started again also when the rollback fails.
    """
    try:
        kept = session.ask(
            lambda client: client.roll_back_volume(name, snapshot, stop_service=stop_service)
        )
    except OutcomeUnknown:
        if stop_service:
            session.hint("whether the service still stands still: pannier doctor, on a manager")
        raise
    session.show(kept, line=f"rolled back: {name} to {snapshot}")
    session.hint(f"what it was before: pannier volume rollback {name} {kept.name}")


@volume.command(
    "recover",
    examples=("pannier volume recover jenkins_home", "pannier volume recover web --accept-loss"),
)
@click.argument("name")
@click.option(
    "--accept-loss",
    is_flag=True,
    help="Go on without what the lost node wrote last; it is switched off and shall stay so.",
)
@output_options()
@pass_session
def recover_volume(session: Session, name: str, accept_loss: bool) -> None:
    """Give a volume whose node is lost to the newest of its other copies.

    Without --accept-loss nothing is changed: the answer says which copy there is. When the lost node
    comes back, what it wrote last is kept there as a stray, and its containers are stopped.

    A node that is up, and cannot begin with a volume since something of what it took over is lost, begins without that.
    """
    found = session.ask(lambda client: client.recover_volume(name, accept_loss=accept_loss))
    session.show(found, line=f"recovered: {found.name} on {found.holder}, epoch {found.epoch}")


@volume.command("verify", examples=("pannier volume verify jenkins_home",))
@click.argument("name")
@click.option(
    "--trust-holder",
    is_flag=True,
    help="Have copies made anew that are not what the holder has, although nobody can prove theirs.",
)
@output_options()
@pass_session
@click.pass_context
def verify_volume(context: click.Context, session: Session, name: str, trust_holder: bool) -> None:
    """Read every copy to the last byte, and have damaged ones mended or made anew.

    Each node does so with its own copy, once a week anyway, from the disk and not from memory, at
    100 MB/s at most. A copy that is not what was written is set aside, and the holder sends all of it
    again. The exit status is 10 where the holder's own is damaged, a copy differs, or a node does not answer.

    Images have no checksums of the file system: a copy is compared with those of what it was sent, and
    single blocks are mended with the bytes that fit. Copies of one generation are compared with each other. One
    that "differs" is left as it is, since nobody can prove which is right. A copy that is "read" could not be
    compared.
    """
    with output.waiting(f"reading every copy of {name}"):
        found = session.ask(lambda client: client.verify_volume(name, trust_holder=trust_holder))
    session.show(found, table=_checks_table(found))
    bad = (CheckState.DAMAGED, CheckState.DIFFERS, CheckState.UNKNOWN)
    if any(check.state in bad for check in found):
        context.exit(UNHEALTHY)


@volume.command("check", examples=("pannier volume check jenkins_home",))
@click.argument("name")
@output_options()
@pass_session
@click.pass_context
def check_volume(context: click.Context, session: Session, name: str) -> None:
    """Check the file system in every copy of a volume; nothing is mended.

    Each node checks a snapshot of its own copy, while containers go on, and says what e2fsck would mend.
    The exit status is 10 where one is damaged, or a node does not answer. Volumes that are trees of
    files have no file system of their own.
    """
    with output.waiting(f"checking every copy of {name}"):
        found = session.ask(lambda client: client.check_volume(name))
    session.show(found, table=_file_systems_table(found))
    bad = (FileSystemState.DAMAGED, FileSystemState.UNKNOWN)
    if any(copy.state in bad for copy in found):
        context.exit(UNHEALTHY)


@volume.command(
    "mount",
    examples=(
        "pannier volume mount jenkins_home@before-upgrade --at /mnt/before",
        "pannier volume mount jenkins_home@3 --at /mnt/stray",
    ),
)
@click.argument("what", metavar="NAME@STATE")
@click.option("--at", required=True, help="An empty directory on this node.")
@output_options()
@pass_session
def mount_tree(session: Session, what: str, at: str) -> None:
    """Look into a former state of a volume, read-only, on this node.

    STATE is a snapshot, an epoch, as `pannier doctor` names strays by, or a generation, as `pannier volume show` lists
    them. What looks like an epoch or a generation is one. A copy of its own is mounted, so containers go on and nothing
    changes. It goes with `umount`.
    """
    name, _, tree = what.partition("@")
    if not tree:
        raise InvalidInput(
            f"{what!r} does not say which state of the volume", remedy=f"write {name}@SNAPSHOT"
        )
    at = os.path.abspath(at)
    session.ask(lambda client: client.show_tree(name, tree=tree, at=at))
    session.show({"volume": name, "tree": tree, "at": at}, line=f"mounted: {name}@{tree} at {at}")
    session.hint(f"umount {at} ends it")


@volume.command("clean", examples=("pannier volume clean jenkins_home caches builds/17",))
@click.argument("name")
@click.argument("paths", metavar="PATH...", nargs=-1, required=True)
@output_options()
@pass_session
def clean_volume(session: Session, name: str, paths: tuple[str, ...]) -> None:
    """Remove files of a volume that stands still for want of room, on this node.

    Containers that stand still cannot do it. PATH is a file or a directory in the volume, from its root;
    a directory is removed with all in it. Everybody goes on by themselves once there is room.
    """
    with output.waiting(f"removing files of {name}"):
        session.ask(lambda client: client.clean_volume(name, paths=list(paths)))
    session.show(
        {"volume": name, "removed": list(paths)}, line=f"removed from {name}: {' '.join(paths)}"
    )


@volume.command("rm", examples=("pannier volume rm jenkins_home",))
@click.argument("name")
@output_options()
@pass_session
def remove_volume(session: Session, name: str) -> None:
    """Move a volume to the trash, from which it can be restored for a time."""
    trashed = session.ask(lambda client: client.remove_volume(name))
    session.show(trashed, line=f"removed: {trashed.name}")
    session.hint(f"until {trashed.expires_at}: pannier volume restore {trashed.name}")


@volume.command("restore", examples=("pannier volume restore jenkins_home",))
@click.argument("name_or_id", metavar="NAME")
@output_options()
@pass_session
def restore_volume(session: Session, name_or_id: str) -> None:
    """Bring a volume back from the trash.

    NAME may be an id, where several of one name are there.
    """
    found = session.ask(lambda client: client.restore_volume(name_or_id))
    session.show(found, line=f"restored: {found.name} on {found.holder}")


@volume.command("trash", examples=("pannier volume trash",))
@output_options()
@pass_session
def list_trash(session: Session) -> None:
    """List the removed volumes that can still be restored."""
    show_trash(session)


@volume.command("history", examples=("pannier volume history jenkins_home",))
@click.argument("name")
@output_options()
@pass_session
def show_history(session: Session, name: str) -> None:
    """Show what happened to a volume, oldest first."""
    found = session.ask(lambda client: client.history(name))
    session.show(found, table=_history_table(found))


def _volumes_table(volumes: list[VolumeView]) -> output.Table:
    return output.Table(
        ("NAME", "HOLDER", "STATE", "EPOCH", "DRIVER", "OPTIONS"),
        [
            (
                each.name,
                each.holder,
                each.holder_state,
                str(each.epoch),
                each.driver,
                _options(each) or output.NOTHING,
            )
            for each in volumes
        ],
        right=frozenset({"EPOCH"}),
        empty="no volumes",
    )


def _options(found: VolumeView) -> str:
    # The driver has a column of its own.
    return " ".join(f"{key}={text}" for key, text in found.options.items() if key != "driver")


def _space(found: LiveVolumeView | RememberedVolumeView) -> list[tuple[str, str]]:
    if found.size_bytes is None:
        return []
    return [
        (
            "size",
            f"{output.show_size(found.size_bytes)}, {output.show_size(found.free_bytes)} free",
        ),
        ("files", f"{found.inodes}, {found.free_inodes} free"),
    ]


def _attached(found: LiveVolumeView | RememberedVolumeView) -> str:
    if found.size_bytes is None:
        return "nowhere: nobody uses it"
    return f"on {found.holder}" + (
        ", through the page cache: writes past it were refused twice"
        if found.direct is False
        else ""
    )


def _details(found: LiveVolumeView | RememberedVolumeView) -> list[tuple[str, str]]:
    details = [
        ("name", found.name),
        ("id", found.id),
        ("holder", f"{found.holder} ({found.holder_state})"),
        ("epoch", str(found.epoch)),
        ("generation", found.generation or "-"),
        *([("cloned from", found.cloned_from)] if found.cloned_from else []),
        *(
            [
                (
                    "schedule",
                    f"{found.schedule}, the last is {found.last_scheduled or output.NOTHING}",
                )
            ]
            if found.schedule
            else []
        ),
        *([("store is older", found.doubt)] if found.doubt else []),
        *([("quarantined", found.quarantine)] if found.quarantine else []),
        *(
            [("stands still", found.stands_still), ("ways out", ways_out(found.name))]
            if found.stands_still
            else []
        ),
        *[("not replicated", f"sync calls of {each}") for each in found.not_held or []],
        *[("not held", each) for each in found.unheld_writes or []],
        *[("damage", each) for each in found.damage or []],
        ("in use by", output.show_names(found.in_use_by)),
        *(("copy", _copy_line(copy)) for copy in found.copies or []),
        *(_sync_lines(found.sync) if found.sync is not None else []),
        *(
            [("waiting", f"{found.sync_calls} sync calls, for {found.sync_waiting_seconds:.1f} s")]
            if found.sync_calls
            else []
        ),
        ("copies on", output.show_names(found.copies_on)),
        ("driver", found.driver),
        ("options", _options(found) or output.NOTHING),
        ("used", output.show_size(found.used_bytes)),
        *_space(found),
        *([("attached", _attached(found))] if found.options.get("layout") == "image" else []),
        ("created", found.created_at),
    ]
    if found.mountpoint is not None:
        details.append(("mountpoint", found.mountpoint))
    if found.transfer is not None:
        transfer = found.transfer
        sent = output.show_size(transfer.sent_bytes)
        details.append(
            (
                "moving",
                f"to {transfer.target} since {transfer.started_at}: "
                f"{transfer.phase}, round {transfer.round}, {sent} sent",
            )
        )
    return details


def _checks_table(checks: list[CheckView]) -> output.Table:
    return output.Table(
        ("NODE", "STATE", "GENERATION", "WHY", "NEXT"),
        [(c.node, c.state, c.generation or output.NOTHING, c.error, c.remedy) for c in checks],
        empty="there is no copy",
    )


def _file_systems_table(copies: list[FileSystemView]) -> output.Table:
    return output.Table(
        ("NODE", "STATE", "GENERATION", "FINDINGS"),
        [
            (c.node, c.state, c.generation or output.NOTHING, "\n".join(c.findings) or c.error)
            for c in copies
        ],
        empty="there is no copy",
    )


def _history_table(history: list[EventView]) -> output.Table:
    return output.Table(
        ("AT", "WHAT", "NODE", "DETAIL"),
        [(each.at, each.kind, each.node, each.detail) for each in history],
        empty="nothing happened",
    )


def _sync_lines(sync: SyncView) -> list[tuple[str, str]]:
    """How sync calls are made durable, and what the last groups of them waited for."""
    why = f", because {sync.reason}" if sync.reason else ""
    lines = [("sync calls", f"durable by {sync.way}{why}")]
    times = (
        ("sync time", sync.total),
        ("sync local", sync.local),
        ("sync turn", sync.turn),
        ("sync cut", sync.cut),
        ("sync copies", sync.copies),
    )
    lines += [(label, _milliseconds(found)) for label, found in times if found is not None]
    if sync.groups:
        last = f", the last because {sync.last_reason}" if sync.last_reason else ""
        lines.append(
            ("by generation", f"{sync.by_generation} of the last {sync.groups} groups{last}")
        )
    return lines


def _milliseconds(found: SpreadView) -> str:
    return f"{found.median * 1000:.2f} ms, at worst {found.worst * 1000:.2f} ms"


def _copy_line(copy: CopyView) -> str:
    """Where a copy is and how far behind."""
    if copy.generation is None:
        state = "nothing confirmed yet"
    elif copy.lag_seconds is None:
        state = f"generation {copy.generation}"
    else:
        state = f"generation {copy.generation}, {copy.lag_seconds:.0f} s behind"
    if copy.in_sync:
        state += ", in sync"
    if copy.record_error:
        state += f", kept no record: {copy.record_error}"
    elif copy.follows:
        state += ", follows the records"
    if copy.sent_anew:
        state += f", sent anew as a whole, since {copy.sent_anew}"
    if copy.room_percent is not None:
        state += f", at least {copy.room_percent} % of its pool free"
    return f"{copy.node}: {state}" + (f" ({copy.error})" if copy.error else "")
