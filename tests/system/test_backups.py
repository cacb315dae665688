"""Backups off-site: by SFTP and by a path, read where the application does not feel it, and brought back."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from cluster_world import IMAGE, World
from demo import story
from offsite import AT, HELD, add, add_sftp, left_behind
from test_quiet_snapshots import KINDS, WRITE

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]

FLIP = """
import os, pathlib, sys
pack = max(pathlib.Path(sys.argv[1], "data").rglob("*"), key=lambda each: each.stat().st_size)
pack.chmod(0o600)
content = bytearray(pack.read_bytes())
content[len(content) // 2] ^= 1
pack.write_bytes(content)
"""


@pytest.fixture
def backed(three: World) -> Iterator[World]:
    """Three nodes for one test, which adds targets."""
    yield three
    for target in three.printed("node1", "backup", "target", "ls"):
        three.run("node1", "pannier", "backup", "target", "rm", target["name"])


def in_sync(world: World, name: str) -> str:
    """The node of the one copy beside the holder's, once it counts."""

    def found() -> str | None:
        copies = world.json("node1", "volume", "show", name)["copies"]
        return next((each["node"] for each in copies if each["in_sync"]), None)

    return str(story.wait_until(f"{name} has a copy in sync", found))


def backed_up(world: World, name: str) -> bool:
    """Whether the volume's history says so of its last backup."""
    kinds = [each["kind"] for each in world.json("node1", "volume", "history", name)]
    return [each for each in kinds if each.startswith("volume.back")][-1:] == ["volume.backed up"]


def told(world: World, name: str) -> str:
    """What doctor says of the volume's backups."""
    found = world.json("node1", "doctor")
    return " ".join(each["what"] for each in found if each["subject"].endswith(f"volume {name}"))


def test_a_backup_is_read_on_another_node_and_comes_back_whole(backed: World) -> None:
    """Made under a writer; brought back on a node that never had the volume, after that is gone for ever."""
    name = backed.filled("node1", mebibytes=4, files=50, copies="2")
    replica = in_sync(backed, name)
    third = next(iter(backed.others("node1", replica)))
    writer = backed.writer("node1", name)
    add_sftp(backed, replica, "offsite", server=third)
    first = backed.printed(third, "backup", "run", name)
    assert (first["node"], first["unchanged_files"]) == (replica, 0)
    backed.stop("node1", writer)
    before = backed.manifest("node1", name)
    second = backed.printed("node1", "backup", "run", name, "--target", "offsite")
    assert (second["node"], second["unchanged_files"]) == (replica, 51)
    assert second["added_bytes"] < 1 << 20
    listed = backed.printed(third, "backup", "ls", name)
    assert [each["id"] for each in listed] == [first["id"], second["id"]]
    assert left_behind(backed, name) == []
    backed.refused(
        third, "pannier", "backup", "restore", name, name, says=["already", "another name"]
    )
    backed.run("node1", "docker", "volume", "rm", name)
    backed.run("node1", "pannier", "trash", "rm", name)
    new = backed.name("back")
    made = backed.run(third, "pannier", "backup", "restore", name, new)
    assert f"restored: {new} on {third}" in made
    assert backed.manifest(third, new) == before
    shown = backed.json(third, "volume", "show", new)
    assert shown["options"]["copies"] == "2"
    assert in_sync(backed, new) != third
    check = ("--image", IMAGE, "--check", "test -s /data/bulk && echo x >/data/new")
    good = backed.printed(third, "backup", "drill", name, *check)
    assert (good["backup"], good["last_good"]) == (second["id"], good["at"])
    bad = ("--image", IMAGE, "--check", "echo it is not there >&2; exit 3")
    backed.refused(
        third, "pannier", "backup", "drill", name, *bad, says=["ended with 3", "it is not there"]
    )
    (drill,) = backed.printed("node1", "backup", "drills")
    assert (drill["last_good"], "ended with 3" in drill["failure"]) == (good["at"], True)
    assert not [each for each in backed.volumes_known() if each.startswith("drill-")]
    assert "drill-" not in backed.run(third, "docker", "ps", "-a", "--format", "{{.Names}}")
    pruned = backed.printed(replica, "backup", "prune", "offsite", "--keep-last", "1")
    assert (pruned["kept"], pruned["removed"]) == ([second["id"]], [first["id"]])
    backed.run("node1", "pannier", "backup", "verify", "offsite")


def test_a_changed_byte_is_found_and_what_cannot_be_brought_back_leaves_nothing(
    backed: World,
) -> None:
    """At a path that only the holder has: so it is the one that reads."""
    name = backed.filled("node1", mebibytes=4, files=5, copies="2")
    at = f"{AT}/{name}"
    backed.run("node1", "mkdir", "-p", at)
    add(backed, "node1", "local", at)
    made = backed.printed("node2", "backup", "run", name)
    assert made["node"] == "node1"
    backed.run("node1", "pannier", "backup", "verify", "local")
    backed.run("node1", "python3", "-", at, input=FLIP)
    backed.refused("node1", "pannier", "backup", "verify", "local", says=["local", "damaged"])
    new = backed.name("back")
    backed.refused("node1", "pannier", "backup", "restore", name, new, says=["local"])
    assert new not in backed.volumes_known()
    assert new not in {each["name"] for each in backed.json("node1", "volume", "trash")}
    backed.run("node1", "rm", "-r", at)
    backed.refused("node1", "pannier", "backup", "run", name, says=["no node", "no directory"])
    assert left_behind(backed, name) == []
    kinds = [each["kind"] for each in backed.json("node1", "volume", "history", name)]
    assert kinds[-1] == "volume.backup failed"
    assert "volume.backed up" in kinds


def test_a_service_is_backed_up_and_cloned_as_of_one_moment(backed: World) -> None:
    """Its task writes the same numbers to two volumes, one after the other."""
    service = backed.name("pair")
    volumes = [f"{service}-{kind}" for kind in KINDS]
    backed.volumes += [
        *volumes,
        *(f"{each}-{word}" for each in volumes for word in ("test", "back")),
    ]
    mounts = [
        f"--mount=type=volume,source={service}-{kind},target=/{kind},volume-driver=pannier"
        for kind in KINDS
    ]
    at = f"{AT}/{service}"
    backed.run("node1", "mkdir", "-p", at)
    add(backed, "node1", "local", at)
    backed.run(
        "node1", "docker", "service", "create", "--detach", "--no-resolve-image", "--name", service,
        "--endpoint-mode", "dnsrr", "--constraint", "node.hostname==node1", "--stop-grace-period", "0s",
        *mounts, IMAGE, "sh", "-c", WRITE,
    )  # fmt: skip
    try:
        last = f"/var/lib/pannier/mounts/{volumes[1]}/numbers"
        story.wait_until(
            "it writes", lambda: backed.attempt("node1", "test", "-s", last).status == 0
        )
        made = backed.printed("node1", "service", "backup", service)
        clone = ("service", "clone", service, "--name-as", "{}-test", "--format", "json")
        clones = json.loads(backed.run("node1", "pannier", *clone))
    finally:
        backed.run("node1", "docker", "service", "rm", service)
    assert [each["volume"] for each in made] == volumes
    assert len({each["snapshot"] for each in made}) == 1
    assert [each["name"] for each in clones] == [f"{each}-test" for each in volumes]
    for each in volumes:
        backed.run("node1", "pannier", "backup", "restore", each, f"{each}-back")
    for word in ("test", "back"):
        one, two = (
            int(
                backed.container("node1", f"{each}-{word}", "tail", "-n1", "/data/numbers").split()[
                    1
                ]
            )
            for each in volumes
        )
        assert 0 <= one - two <= 1, f"those of {word} are of one moment"


def test_a_daemon_that_dies_while_it_reads_leaves_nothing(backed: World) -> None:
    name = backed.filled("node1", mebibytes=64)
    at = f"{AT}/{name}"
    backed.run("node1", "mkdir", "-p", at)
    add(backed, "node1", "local", at)
    running = backed.start(backed.attempt, "node1", "pannier", "backup", "run", name)
    story.wait_until(
        "restic reads", lambda: backed.attempt("node1", "pgrep", "-f", "^restic backup").out
    )
    backed.kill("node1", "pannierd")
    assert running.result().status != 0
    backed.wait_for_pannier("node1")
    story.wait_until("nothing is mounted", lambda: not backed.sh("node1", HELD).split())
    backed.run("node1", "pannier", "volume", "set", name, "-o", "backup=local:hourly:1")
    backed.run("node1", "systemctl", "restart", "pannierd")  # it looks for what is due
    backed.wait_for_pannier("node1")
    story.wait_until("it is backed up by itself", lambda: backed_up(backed, name))
    backed.printed("node1", "backup", "run", name)
    assert len(backed.printed("node1", "backup", "ls", name, "--target", "local")) == 2
    backed.run("node1", "rm", "-r", at)
    backed.run("node1", "pannier", "volume", "set", name, "-o", "backup=local:daily:1")
    backed.run("node1", "systemctl", "restart", "pannierd")
    backed.wait_for_pannier("node1")
    story.wait_until("doctor tells", lambda: "no directory" in told(backed, name))
