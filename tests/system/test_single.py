"""One node without etcd: its pool, its boots, and what must hold when either is not as it should be."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from cluster_world import IMAGES, MOUNTS, PLUGIN_SOCKET, STAGING, World, check_sequence
from demo import looks, story

pytestmark = [pytest.mark.system, pytest.mark.timeout(400)]


def test_one_node_needs_no_etcd(single: World) -> None:
    story.one_node(single.lab)
    node = single.nodes[0]
    assert single.printed(node, "status")["store_ok"] is True
    assert single.json(node, "volume", "show", "notes")["holder"] == node


def test_f32_a_volume_whose_data_is_gone_is_an_error(single: World) -> None:
    """As after a lost pool: never an empty directory instead."""
    name = single.create("node1")
    single.container("node1", name, "sh", "-c", "echo kept >/data/note")
    shown = single.json("node1", "volume", "show", name)
    single.stop_pannier("node1")
    single.sh(
        "node1",
        f"umount {MOUNTS}/{name} {STAGING}/{shown['id']}.1; "
        f"mv {IMAGES}/{shown['id']} /var/lib/pannier/pool/away",
    )
    single.start_pannier("node1")
    single.refused(
        "node1", *single.docker_run(name, "--rm"), "ls", "/data",
        says=[name, "not on its disk", "an empty directory is never given"],
    )  # fmt: skip
    single.refused("node1", "pannier", "doctor", says=[name], status=10)
    single.sh("node1", f"mv /var/lib/pannier/pool/away {IMAGES}/{shown['id']}")
    assert single.container("node1", name, "cat", "/data/note") == "kept\n"


@contextmanager
def pool_at(world: World, place: str, *, make: str = "true") -> Iterator[None]:
    """The node's configuration names another place for its pool, and the pool is not mounted."""
    settings = "/etc/pannier/pannierd.toml"
    world.stop_pannier("node1")
    world.sh(
        "node1",
        f"umount {MOUNTS}/* {STAGING}/* 2>/dev/null || :; umount /var/lib/pannier/pool; {make}; "
        f"cp {settings} /root/settings; sed -i 's,/dev/pannier-pool,{place},' {settings}",
    )
    world.start_pannier("node1")
    try:
        yield
    finally:
        world.stop_pannier("node1")
        world.sh("node1", f"mv /root/settings {settings}")
        world.start_pannier("node1")


def test_f54_a_pool_that_is_not_there_is_an_error_and_comes_back(single: World) -> None:
    name = single.create("node1")
    single.container("node1", name, "sh", "-c", "echo kept >/data/note")
    read = [*single.docker_run(name, "--rm"), "cat", "/data/note"]
    with pool_at(single, "/dev/pannier-gone"):
        single.lab.flush()
        single.lab.crash("node1")
        single.lab.boot("node1")
        single.wait_for_pannier("node1")
        assert single.attempt("node1", "docker", "ps").status == 0
        assert name in single.run("node1", "docker", "volume", "ls")
        says = ["/dev/pannier-gone is not there", "attach the device"]
        single.refused("node1", *read, says=says)
        create = ["pannier", "volume", "create", single.name()]
        single.refused("node1", *create, says=says, status=7)
        single.refused("node1", "docker", "volume", "create", "-d", "pannier", "new", says=says)
        single.refused("node1", "pannier", "doctor", says=says[:1], status=10)
        assert single.json("node1", "node", "show", "node1")["pool_total_bytes"] is None
        single.run("node1", "ln", "-s", "/dev/pannier-pool", "/dev/pannier-gone")
        story.wait_until(
            "the pool is opened", lambda: single.attempt("node1", *read).out == "kept\n"
        )
        single.run("node1", "rm", "/dev/pannier-gone")


def test_f55_a_pool_that_was_replaced_is_an_error(single: World) -> None:
    """Another, empty file system in its place is neither used nor formatted."""
    name = single.create("node1")
    single.container("node1", name, "sh", "-c", "echo kept >/data/note")
    other = "/root/other.img"
    make = f"truncate -s 200M {other}; mkfs.ext4 -q -F -L precious {other}"
    with pool_at(single, other, make=make):
        before = single.run("node1", "sha256sum", other)
        says = [f'{other} is not a Pannier pool but ext4 "precious"', "not touched"]
        single.refused("node1", *single.docker_run(name, "--rm"), "ls", "/data", says=says)
        single.refused("node1", "pannier", "volume", "create", single.name(), says=says, status=7)
        assert single.run("node1", "sha256sum", other) == before
    assert single.container("node1", name, "cat", "/data/note") == "kept\n"


def test_f12_a_boot_brings_everything_back(single: World) -> None:
    """restart=always gets its volume, whatever starts first."""
    name = single.create("node1")
    writer = single.writer("node1", name, "--restart", "always")
    single.lab.flush()
    before = single.acknowledged("node1", writer)
    single.lab.crash("node1")
    single.lab.boot("node1")
    single.wait_for_pannier("node1")
    story.wait_until("it writes on", lambda: single.acknowledged("node1", writer) > before + 5)
    assert single.json("node1", "volume", "show", name)["in_use_by"] == [f"container {writer}"]
    single.stop("node1", writer)
    check_sequence(single.log("node1", name))


def waiting_connections(world: World) -> int:
    """How many callers of the plugin's socket have not been let in yet."""
    shown = world.run("node1", "ss", "--no-header", "--unix", "--listening", "src", PLUGIN_SOCKET)
    return int(shown.split()[2])


def test_f35_docker_starts_before_pannierd_can_answer(single: World) -> None:
    """The socket is there first: Docker waits, and the container gets its volume."""
    name = single.create("node1")
    writer = single.writer("node1", name, "--restart", "always")
    single.run("node1", "systemctl", "stop", "docker.service", "docker.socket")
    before = len(single.run("node1", "cat", f"{MOUNTS}/{name}/log").splitlines())
    single.run("node1", "systemctl", "kill", "--kill-who=main", "-s", "STOP", "pannierd")
    single.run("node1", "systemctl", "start", "--no-block", "docker.service")
    story.wait_until(
        "Docker waits for its volumes",
        lambda: waiting_connections(single) > 0,
    )
    single.run("node1", "systemctl", "kill", "--kill-who=main", "-s", "CONT", "pannierd")
    story.wait_until(
        "it writes on",
        lambda: (
            looks.engine(single.lab, "node1").answers()
            and single.acknowledged("node1", writer) > before
        ),
    )
    single.stop("node1", writer)
    check_sequence(single.log("node1", name))
