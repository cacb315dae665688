"""`pannier backup`: volumes off-site, and back again."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from pannier.cli import output
from pannier.cli.backup_progress import follow_work, result_of
from pannier.cli.command import CommandGroup, output_options
from pannier.cli.parameters import read_pairs
from pannier.cli.restoring_all import restore_all
from pannier.cli.secret_files import read_s3_keys, read_secret
from pannier.cli.session import Session, pass_session
from pannier.core.errors import InvalidInput

if TYPE_CHECKING:
    from pannier.contract.views import BackupTargetView, BackupView, DrillView


@click.group(cls=CommandGroup)
def backup() -> None:
    """Backups of volumes off-site, in repositories of restic.

    They stay readable with restic alone.
    """


backup.add_command(restore_all)


@backup.group(cls=CommandGroup)
def target() -> None:
    """Where backups go."""


@target.command(
    "add",
    examples=(
        "pannier backup target add nas /mnt/nas/backups --password-file password",
        "pannier backup target add offsite sftp:pannier@backup.example.org:/srv/backups "
        "--password-file password --ssh-key id_ed25519 --known-hosts known_hosts",
        "pannier backup target add cloud s3:https://s3.example.org/bucket --password-file password --s3-key-file s3.env",
    ),
)
@click.argument("name")
@click.argument("url")
@click.option(
    "--password-file",
    metavar="FILE",
    required=True,
    help="Has the repository's password, in one line. Keep it elsewhere, too: without it no backup can be read.",
)
@click.option(
    "--s3-key-file",
    metavar="FILE",
    help="Has two lines: AWS_ACCESS_KEY_ID=... and AWS_SECRET_ACCESS_KEY=...",
)
@click.option("--ssh-key", metavar="FILE", help="The private key to log in with, for sftp.")
@click.option(
    "--known-hosts", metavar="FILE", help="The server's public keys, as `ssh-keyscan HOST` prints."
)
@click.option(
    "--read-only", is_flag=True, help="Only to restore from it, such as another cluster's."
)
@output_options()
@pass_session
def add_target(
    session: Session,
    name: str,
    url: str,
    password_file: str,
    s3_key_file: str | None,
    ssh_key: str | None,
    known_hosts: str | None,
    read_only: bool,
) -> None:
    """Add a target: a path, sftp:USER@HOST:/PATH or s3:https://HOST/BUCKET.

    Where there is no repository yet, one is made. A FILE may be -, which is stdin. A path is used by the nodes that have
    it, such as a share that is mounted on all of them.
    """
    from pannier.contract.bodies import BackupTargetOrder

    s3_key_id, s3_key = read_s3_keys(s3_key_file)
    order = BackupTargetOrder(
        name=name,
        url=url,
        password=read_secret(password_file).rstrip("\r\n"),
        s3_key_id=s3_key_id,
        s3_key=s3_key,
        ssh_key=read_secret(ssh_key),
        known_hosts=read_secret(known_hosts),
        read_only=read_only,
    )
    made = session.ask(lambda client: client.add_backup_target(order))
    session.show(made, line=f"target: {made.name} at {made.url}, repository {made.repository[:8]}")
    session.hint("keep the password elsewhere, too: without it no backup can be read")


@target.command("ls", examples=("pannier backup target ls",))
@output_options()
@pass_session
def list_targets(session: Session) -> None:
    """List all targets. Their secrets are not shown."""
    found = session.ask(lambda client: client.backup_targets())
    session.show(found, table=_targets_table(found))


@target.command("rm", examples=("pannier backup target rm nas",))
@click.argument("name")
@output_options()
@pass_session
def remove_target(session: Session, name: str) -> None:
    """Forget a target with its secrets. The backups there stay."""
    gone = session.ask(lambda client: client.remove_backup_target(name))
    session.show(gone, line=f"forgotten: {gone.name}; its backups stay at {gone.url}")


@backup.command(
    "run", examples=("pannier backup run data", "pannier backup run data --target offsite")
)
@click.argument("volume")
@click.option("--target", "name", metavar="NAME", help="Where to; without it the only target.")
@output_options()
@pass_session
def run_backup(session: Session, volume: str, name: str | None) -> None:
    """Back a volume up, also one that is in use.

    It is read on a node that does not hold it, where one has a copy.
    """
    done = follow_work(session, volume, lambda client: client.back_up_volume(volume, target=name))
    made = result_of(done.backup)
    added = output.show_size(made.added_bytes or 0)
    facts = f"read on {made.node}, {added} new, {made.read_files} files read, {made.unchanged_files} unchanged"
    session.show(made, line=f"backup: {volume} {made.id} at {made.target}; {facts}")


@backup.command("ls", examples=("pannier backup ls", "pannier backup ls data --target offsite"))
@click.argument("volume", required=False)
@click.option(
    "--target", "name", metavar="NAME", help="Only what is there; without it, all targets."
)
@output_options()
@pass_session
def list_backups(session: Session, volume: str | None, name: str | None) -> None:
    """List backups, of a volume or of all, also of volumes that are gone."""
    found = [
        each
        for at in _targets(session, name)
        for each in session.ask(lambda client, at=at: client.backups(at))  # type: ignore[misc]
        if volume in (None, each.volume)
    ]
    session.show(found, table=_backups_table(found))


@backup.command(
    "restore",
    examples=(
        "pannier backup restore data data-again",
        "pannier backup restore data@1f0c5a2e data-again --target offsite -o size=20G --format json",
    ),
)
@click.argument("volume", metavar="VOLUME[@BACKUP]")
@click.argument("new")
@click.option("--target", "name", metavar="NAME", help="From where; without it the only target.")
@click.option(
    "-o",
    "--option",
    "options",
    multiple=True,
    metavar="KEY=VALUE",
    callback=read_pairs,
    help="An option that shall be other than it was; may be repeated.",
)
@output_options("--output")
@pass_session
def restore_backup(
    session: Session, volume: str, new: str, name: str | None, options: dict[str, str]
) -> None:
    """Make a volume NEW of a backup, with the options that VOLUME had; of its newest one, where none is named.

    All bytes are compared with the backup after that. It is made on the node that is asked. Here -o gives a volume option; use
    --format json for JSON.
    """
    (at,) = _only(_targets(session, name))
    was, _, chosen = volume.partition("@")
    done = follow_work(
        session,
        new,
        lambda client: client.restore_backup(
            at, volume=was, backup=chosen or None, new=new, options=options
        ),
    )
    made = result_of(done.restored)
    session.show(made, line=f"restored: {made.name} on {made.holder}, from {at}")


@backup.command(
    "drill",
    examples=(
        "pannier backup drill data",
        "pannier backup drill pgdata --image postgres:16 --check 'pg_controldata /data'",
    ),
)
@click.argument("volume", metavar="VOLUME[@BACKUP]")
@click.option("--target", "name", metavar="NAME", help="From where; without it the only target.")
@click.option(
    "--check",
    "check_command",
    metavar="COMMAND",
    help="Run this by a shell, with what came back at /data; it ends with 0 if that is good.",
)
@click.option("--image", metavar="IMAGE", help="In a container of this image, without network.")
@output_options()
@pass_session
def drill_backup(
    session: Session, volume: str, name: str | None, check_command: str | None, image: str | None
) -> None:
    """Try whether a backup can be brought back: of VOLUME's newest one, where none is named.

    It becomes a scratch volume on the node that is asked. All bytes are compared with the backup, and a check may look at
    them. Then it is removed again.
    """
    (at,) = _only(_targets(session, name))
    was, _, chosen = volume.partition("@")
    last = follow_work(
        session,
        f"drill of {was}",
        lambda client: client.drill_backup(
            at, volume=was, backup=chosen or None, check_command=check_command, image=image
        ),
    )
    done = result_of(last.drill)
    session.show(done, line=f"good: {was} {done.backup} from {at}, in {done.seconds or 0:.1f} s")


@backup.command("drills", examples=("pannier backup drills",))
@output_options()
@pass_session
def list_drills(session: Session) -> None:
    """List the last drill of each volume at each target, and when the last good one was."""
    found = session.ask(lambda client: client.backup_drills())
    session.show(found, table=_drills_table(found))


@backup.command("verify", examples=("pannier backup verify offsite",))
@click.argument("name", metavar="TARGET")
@output_options()
@pass_session
def verify_backups(session: Session, name: str) -> None:
    """Read all that is at a target, and find each changed byte. This may take hours."""
    last = follow_work(session, name, lambda client: client.verify_backups(name))
    found = result_of(last.verified)
    session.show(found, line=f"sound: {found.name}, repository {found.repository[:8]}")


@backup.command(
    "prune", examples=("pannier backup prune offsite --keep-daily 30 --keep-monthly 12",)
)
@click.argument("name", metavar="TARGET")
@click.option("--keep-last", type=int, default=0, metavar="N", help="The newest N of each volume.")
@click.option("--keep-daily", type=int, default=0, metavar="N", help="The last of each of N days.")
@click.option("--keep-weekly", type=int, default=0, metavar="N", help="The same for weeks.")
@click.option("--keep-monthly", type=int, default=0, metavar="N", help="The same for months.")
@output_options()
@pass_session
def prune_backups(
    session: Session,
    name: str,
    keep_last: int,
    keep_daily: int,
    keep_weekly: int,
    keep_monthly: int,
) -> None:
    """Remove this cluster's backups that need not stay, and free their room."""
    found = session.ask(
        lambda client: client.prune_backups(
            name,
            keep_last=keep_last,
            keep_daily=keep_daily,
            keep_weekly=keep_weekly,
            keep_monthly=keep_monthly,
        )
    )
    session.show(
        found, line=f"pruned: {name}, {len(found.kept)} stay, {len(found.removed)} removed"
    )


def _targets(session: Session, name: str | None) -> list[str]:
    if name is not None:
        return [name]
    return [each.name for each in session.ask(lambda client: client.backup_targets())]


def _only(names: list[str]) -> list[str]:
    if len(names) == 1:
        return names
    raise InvalidInput(
        f"there are {len(names)} backup targets",
        remedy="name one: --target NAME" if names else "add one: pannier backup target add",
    )


def _targets_table(found: list[BackupTargetView]) -> output.Table:
    return output.Table(
        ("NAME", "URL", "REPOSITORY", "ADDED", "USE"),
        [
            (
                each.name,
                each.url,
                each.repository[:8],
                each.added_at,
                "restore only" if each.read_only else "all",
            )
            for each in found
        ],
        empty="no backup targets",
    )


def _drills_table(found: list[DrillView]) -> output.Table:
    return output.Table(
        ("TARGET", "VOLUME", "BACKUP", "LAST", "LAST GOOD", "FAILURE"),
        [
            (
                each.target,
                each.volume,
                each.backup or output.NOTHING,
                each.at,
                each.last_good or "never",
                each.failure or output.NOTHING,
            )
            for each in found
        ],
        empty="no drills",
    )


def _backups_table(found: list[BackupView]) -> output.Table:
    return output.Table(
        ("TARGET", "BACKUP", "VOLUME", "MADE", "SIZE", "GENERATION"),
        [
            (
                each.target,
                each.id,
                each.volume,
                each.made_at,
                output.NOTHING if each.bytes is None else output.show_size(each.bytes),
                each.generation,
            )
            for each in found
        ],
        empty="no backups",
    )
