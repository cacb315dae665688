"""Backup targets of the lab's machines, and what backups may leave on them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cluster_world import World

AT = "/srv/backups"
PASSWORD = "of-the-repository"
HELD = "ls -A /run/pannier/backups 2>/dev/null || true"


def add(world: World, node: str, name: str, url: str, *words: str) -> Any:
    """A target, with the password from stdin."""
    command = ("backup", "target", "add", name, url, "--password-file", "-", *words, "-o", "json")
    return world.run(node, "pannier", *command, input=PASSWORD + "\n")


def add_sftp(world: World, node: str, name: str, *, server: str) -> None:
    """A target on another machine, by the lab's own key."""
    where = next(each for each in world.lab.nodes if each.name == server)
    world.run(server, "mkdir", "-p", AT)
    for file, path in (("/root/key", where.ssh_key), ("/root/known", world.lab.names.known_hosts)):
        text = Path(path).read_text()
        world.run(node, "sh", "-c", f"umask 077; cat >{file}", input=text)
    url = f"sftp://root@{where.address}/{AT}/{name}"
    add(world, node, name, url, "--ssh-key", "/root/key", "--known-hosts", "/root/known")
    world.run(node, "rm", "/root/key", "/root/known")


def left_behind(world: World, name: str) -> list[str]:
    """What backups of a volume have left: snapshots, mounts and files."""
    snapshots = world.printed("node1", "volume", "snapshot", "ls", name)
    files = world.on_all(lambda node: world.sh(node, HELD).split())
    return [each["name"] for each in snapshots] + [each for names in files for each in names]
