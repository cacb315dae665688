"""Encrypted volumes on machines: what their disks have, and a start of all daemons with locked keys."""

from __future__ import annotations

import pytest
from cluster_world import IMAGES, World
from demo import story

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]

SECRET = "nobody-else-reads-this"
PASSPHRASE = "a horse, a battery"
JOURNAL = "/var/lib/pannier/pool/journal"
KEYS = "/var/lib/pannier/backup-keys.json"


def made(world: World, word: str, **options: str) -> str:
    """A volume with the secret in the name and in the content of a file, and a snapshot on both of its nodes."""
    name = world.create("node1", word, copies="2", size="64M", **options)
    script = f"echo {SECRET}-{name} >/data/{SECRET}; sync -f /data"
    world.container("node1", name, "sh", "-c", script)

    def in_sync() -> bool:
        return bool(world.json("node1", "volume", "show", name)["in_sync"])

    story.wait_until("its copy is in sync", in_sync)
    world.run("node1", "pannier", "volume", "snapshot", "create", name, "first")
    return name


def in_clear_text(world: World, name: str) -> list[str]:
    """The nodes whose generations or journal have the secret. An image in use must not be read."""
    images = f"find {IMAGES}/{name}.* -path '*generations*' -name image 2>/dev/null"
    script = (
        f"for f in $({images}); do grep -q -a -F {SECRET} $f && echo yes; done; "
        f"grep -q -a -F {SECRET}-{name} {JOURNAL} && echo yes; true"
    )
    said = world.on_all(lambda node: world.sh(node, script))
    return [node for node, lines in zip(world.nodes, said, strict=True) if lines]


@pytest.mark.faults  # tests/contract has it on every merge, from driver to driver
def test_no_node_has_it_in_clear_text_and_whoever_holds_it_reads_it(three: World) -> None:
    making = [
        three.start(made, three, "secret", encrypted="true"),
        three.start(made, three, "plain"),
    ]
    name, plain = (each.result() for each in making)
    shown = three.json("node1", "volume", "show", plain)
    assert in_clear_text(three, plain) == sorted(["node1", *shown["in_sync"]]), "it is searched"
    assert in_clear_text(three, name) == []
    (replica,) = three.json("node1", "volume", "show", name)["in_sync"]
    (third,) = three.others("node1", replica)
    three.run(replica, "mkdir", f"/root/{name}")
    three.run(replica, "pannier", "volume", "cp", f"{name}@first:{SECRET}", f"/root/{name}")
    assert three.run(replica, "cat", f"/root/{name}/{SECRET}") == f"{SECRET}-{name}\n"
    three.run(replica, "rm", "-r", f"/root/{name}")
    three.move(name, third)
    assert three.container(third, name, "cat", f"/data/{SECRET}") == f"{SECRET}-{name}\n"
    assert in_clear_text(three, name) == []


def test_locked_keys_are_asked_for_after_a_start_of_all_daemons(three: World) -> None:
    """A container that was started meanwhile waits, and goes on when a node has the passphrase."""
    name = made(three, "locked", encrypted="true")
    (replica,) = three.json("node1", "volume", "show", name)["in_sync"]
    assert in_clear_text(three, name) == []
    passphrase = ("--passphrase-file", "-")
    three.run("node2", "pannier", "key", "rotate", *passphrase, input=PASSPHRASE)
    try:
        for node in three.nodes:
            story.wait_until("no disk has a key", lambda node=node: empty(three, node))  # type: ignore[misc]
        three.on_all(three.stop_pannier)
        three.on_all(three.start_pannier)
        copying = ("pannier", "volume", "cp", f"{name}@first:{SECRET}", f"/root/{name}")
        three.run(replica, "mkdir", f"/root/{name}")
        three.refused(replica, *copying, says=[name, "pannier key unlock"])
        three.run(replica, "rmdir", f"/root/{name}")  # nothing is in it
        said = three.json("node1", "doctor")
        assert [each["what"] for each in said if each["subject"] == "cluster key on node1"]
        wrong = three.attempt("node3", "pannier", "key", "unlock", *passphrase, input="no horse")
        assert "not the passphrase" in wrong.text
        reading = three.start(three.container, "node1", name, "cat", f"/data/{SECRET}")
        three.run("node3", "pannier", "key", "unlock", *passphrase, input=PASSPHRASE)
        assert reading.result() == f"{SECRET}-{name}\n"
    finally:
        three.run("node3", "pannier", "key", "rotate", "--in-files")
    assert three.printed("node1", "key", "show")["locked"] is False


@pytest.mark.faults
def test_the_holder_loses_power_and_then_all_machines_do(three: World) -> None:
    """What was synced is there after the takeover, and after the boot once somebody has given the passphrase."""
    name = made(three, "dark", encrypted="true")
    (replica,) = three.json("node1", "volume", "show", name)["in_sync"]
    passphrase = ("--passphrase-file", "-")
    three.run("node2", "pannier", "key", "rotate", *passphrase, input=PASSPHRASE)
    try:
        three.lab.crash("node1")
        said = three.container(
            replica, name, "sh", "-c", f"cat /data/{SECRET}; echo {SECRET}-more >/data/more; sync"
        )
        assert said == f"{SECRET}-{name}\n"
        assert three.holder(name) == replica
        three.lab.boot("node1")
        three.wait_until_all_up()
        for node in three.nodes:
            three.lab.crash(node)
        for node in three.nodes:
            three.lab.boot(node, wait=False)
        three.wait_until_all_up()
        assert three.printed("node3", "key", "show")["missing"]
        assert in_clear_text(three, name) == []
        reading = three.start(three.container, "node1", name, "cat", "/data/more")
        three.run("node3", "pannier", "key", "unlock", *passphrase, input=PASSPHRASE)
        assert reading.result() == f"{SECRET}-more\n"
    finally:
        three.run("node3", "pannier", "key", "rotate", "--in-files")


def empty(world: World, node: str) -> bool:
    """Whether a node's file has no key."""
    return '"keys":{}' in world.sh(node, f"cat {KEYS} 2>/dev/null || echo '\"keys\":{{}}'")
