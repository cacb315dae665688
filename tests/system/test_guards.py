"""What must hold when things are not as they should be: no empty directory, no hang, nothing lost."""

from __future__ import annotations

import json
from functools import partial

import pytest
from cluster_world import IMAGE, MOUNTS, World, check_sequence
from demo import looks, story

pytestmark = [pytest.mark.system, pytest.mark.timeout(400)]

CREATE_MANY = """
import asyncio, sys
from pathlib import Path
from pannier.api.client import ApiClient
from pannier.api.connection import UnixEndpoint

async def main(verb, prefix, count):
    gate = asyncio.Semaphore(8)
    async with ApiClient(UnixEndpoint(Path("/run/pannier/api.sock"))) as client:
        async def one(number):
            async with gate:
                name = f"{prefix}-{number}"
                if verb == "create":
                    await client.create_volume(name, {})
                else:
                    await client.remove_volume(name)
        await asyncio.gather(*map(one, range(count)))

asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
"""


# -- never an empty directory -----------------------------------------------------------------------


def test_nothing_can_be_written_where_a_volume_is_not_mounted(three: World) -> None:
    name = three.create("node1")
    three.container("node1", name, "sh", "-c", "echo kept >/data/note")
    three.move(name, "node2")
    for verb in (["touch"], ["mkdir"], ["cp", "/etc/hostname"]):
        three.refused("node1", *verb, f"{MOUNTS}/{name}/new", says=["not permitted"])
    assert three.sh("node1", f"ls -A {MOUNTS}/{name}") == ""
    assert three.container("node2", name, "cat", "/data/note") == "kept\n"


def test_an_unknown_volume_is_made_only_where_the_store_can_be_asked(three: World) -> None:
    name = three.name()
    with three.cut("node1"):
        outcome = three.refused(
            "node1", *three.docker_run(name, "--rm"), "true", says=[name, "nothing was created"]
        )
        assert "store" in outcome.text
    three.wait_until_all_up()
    three.refused("node2", "pannier", "volume", "show", name, says=["there is no volume"], status=3)


def test_a_volume_that_is_named_without_its_driver_is_never_empty(three: World) -> None:
    """Docker makes a local one of the same name while the plugin is away, and keeps to it for ever."""
    name = three.create("node1")
    three.container("node1", name, "sh", "-c", "echo kept >/data/note")
    saved = ["grep", "-q", f'"{name}"', "/var/lib/pannier/catalog.json"]
    story.wait_until("node2 knows it", lambda: three.attempt("node2", *saved).status == 0)
    bare = ["docker", "run", "--rm", "--network", "none", "--mount", f"source={name},target=/data"]
    three.stop_pannier("node2")
    outcome = three.refused("node2", *bare, IMAGE, "true", says=[name, "local volume"])
    assert f"docker volume rm {name}" in outcome.text
    three.start_pannier("node2")
    doctor = ["pannier", "doctor", name]
    story.wait_until(
        "the empty one is gone", lambda: "local volume" not in three.attempt("node2", *doctor).text
    )
    assert three.run("node2", *bare, IMAGE, "cat", "/data/note") == "kept\n"


def test_what_is_used_past_the_barrier_is_not_called_replicated(three: World) -> None:
    name = three.create("node1", copies="2")
    held = three.sleeper("node1", name)

    def not_held() -> list[str]:
        return list(three.json("node1", "volume", "show", name)["not_held"])

    past = three.run("node1", *three.docker_run(name, "-d", "--runtime", "runc"), "sleep", "600")
    (told,) = story.wait_until("it is told", not_held)
    assert told.startswith("container ")
    problems = three.attempt("node1", "pannier", "status").text
    assert f"volume {name}: sync calls of {told} are not held" in problems
    three.run("node1", "docker", "rm", "-f", past.strip())
    story.wait_until("it is gone", lambda: not not_held())
    pid = three.run("node1", "docker", "inspect", "-f", "{{.State.Pid}}", held).strip()
    inside = f"systemd-run -q --unit past nsenter -t {pid} -m sleep 600"
    three.sh("node1", inside)
    (told,) = story.wait_until("who came from outside is told", not_held)
    assert "sleep 600" in told
    three.sh("node1", "systemctl stop past")
    three.stop("node1", held)


def listed(world: World, node: str) -> list[str]:
    """The volumes that an engine knows."""
    found = looks.engine(world.lab, node).get("/volumes")["Volumes"] or []
    return [str(each["Name"]) for each in found]


# -- Docker never hangs on Pannier ------------------------------------------------------------------


@pytest.mark.faults
def test_f37_a_node_that_is_all_alone_uses_its_volumes(three: World) -> None:
    """No store, no peers: Docker lists, inspects, and starts a container with a volume held here."""
    name = three.create("node1")
    away = three.create("node2")
    three.container("node1", name, "sh", "-c", "echo kept >/data/note")
    story.wait_until("node1 knows both", lambda: away in listed(three, "node1"))
    with three.cut("node1"):
        assert {name, away} <= set(three.run("node1", "docker", "volume", "ls", "-q").split())
        shown = json.loads(three.run("node1", "docker", "volume", "inspect", name))
        assert shown[0]["Status"]["holder"] == "node1"
        assert three.container("node1", name, "cat", "/data/note") == "kept\n"
        three.refused("node1", *three.docker_run(away, "--rm"), "true", says=[away, "node node2"])
        three.refused("node1", "pannier", "volume", "rm", name, says=["no etcd endpoint"], status=6)
    three.wait_until_all_up()
    assert three.container("node2", name, "cat", "/data/note") == "kept\n"


@pytest.mark.parametrize("count", [50, pytest.param(1000, marks=pytest.mark.faults)])
def test_f37_many_volumes_are_listed_without_the_store(three: World, count: int) -> None:
    prefix = three.name("many")
    create = ["/opt/pannier/venv/bin/python3", "-", "create", prefix, str(count)]
    three.run("node1", *create, input=CREATE_MANY)

    def knows_all(node: str) -> bool:
        return sum(name.startswith(prefix) for name in listed(three, node)) == count

    def printed(node: str) -> int:
        return three.run(node, "docker", "volume", "ls", "-q").count(prefix)

    for node in three.nodes:
        story.wait_until(f"{node} has heard of all", partial(knows_all, node))
    three.on_all(lambda node: three.run(node, "systemctl", "stop", "etcd"))
    assert three.on_all(printed) == [count] * 3
    shown = json.loads(three.run("node3", "docker", "volume", "inspect", f"{prefix}-{count - 1}"))
    assert shown[0]["Status"]["holder"] == "node1"
    three.on_all(lambda node: three.run(node, "systemctl", "restart", "pannierd"))
    assert three.on_all(printed) == [count] * 3
    three.on_all(lambda node: three.run(node, "systemctl", "--no-block", "start", "etcd"))
    three.wait_until_all_up()
    remove = [word.replace("create", "remove") for word in create]
    three.run("node1", *remove, input=CREATE_MANY)


@pytest.mark.faults
def test_f84_hundreds_of_volumes_and_containers_leave_nothing_open(three: World) -> None:
    """Created, used on all nodes at once, and removed: the daemons end with what they began with."""
    count = 500
    prefix = three.name("crowd")
    create = ["/opt/pannier/venv/bin/python3", "-", "create", prefix, str(count)]

    def open_files() -> list[int]:
        count = "ls /proc/$(systemctl show -P MainPID pannierd)/fd | wc -l"
        return [int(three.sh(node, count)) for node in three.nodes]

    def use(number: str) -> str:
        node = three.nodes[int(number) % 3]
        script = f"echo {number} >>/data/note; tail -n 1 /data/note"
        return three.container(node, f"{prefix}-{number}", "sh", "-c", script).strip()

    before = open_files()
    three.run("node1", *create, input=CREATE_MANY)
    numbers = [str(number) for number in range(0, count, 5)]
    assert three.on_all(use, numbers) == numbers
    remove = [word.replace("create", "remove") for word in create]
    three.run("node1", *remove, input=CREATE_MANY)
    story.wait_until(
        "the daemons have closed everything",
        lambda: all(now <= then + 10 for now, then in zip(open_files(), before, strict=True)),
    )


@pytest.mark.parametrize("how", ["stands still", "is stopped"])
def test_f36_docker_answers_while_pannierd(three: World, how: str) -> None:
    if how == "stands still":
        three.run("node1", "systemctl", "kill", "--kill-who=main", "-s", "STOP", "pannierd")
    else:
        three.stop_pannier("node1")
    assert three.attempt("node1", "docker", "ps").status == 0
    run = ["docker", "run", "--rm", "--network", "none", "localhost:5000/busybox:1", "echo", "on"]
    assert three.run("node1", *run) == "on\n"


def test_f30_a_container_goes_on_while_pannierd_is_killed(three: World) -> None:
    """Its I/O does not stop, it can be stopped afterwards, and the volume still moves."""
    name = three.create("node1")
    writer = three.writer("node1", name)
    for _ in range(3):
        before = three.acknowledged("node1", writer)
        three.kill("node1", "pannierd")
        story.wait_until("it goes on", partial(three.has_more, "node1", writer, before))
        three.wait_for_pannier("node1")
    assert three.json("node1", "volume", "show", name)["in_use_by"] == [f"container {writer}"]
    three.stop("node1", writer)
    assert three.run("node1", "docker", "ps", "-aq", "--filter", f"name={writer}") == ""
    check_sequence(three.log("node2", name))


def test_f34_dockerd_is_killed_while_a_container_uses_its_volume(three: World) -> None:
    name = three.create("node1")
    writer = three.writer("node1", name, "--restart", "always")
    three.kill("node1", "docker")
    story.wait_until("docker answers", looks.engine(three.lab, "node1").answers)
    before = story.wait_until("it runs", lambda: three.acknowledged("node1", writer))
    story.wait_until("it writes on", lambda: three.acknowledged("node1", writer) > before)
    three.stop("node1", writer)
    check_sequence(three.log("node2", name))


@pytest.mark.faults
def test_f31_an_unmount_that_is_lost_does_not_keep_the_volume(three: World) -> None:
    """pannierd is away while the container stops; all the same the volume moves afterwards."""
    name = three.create("node1")
    writer = three.writer("node1", name)
    three.stop_pannier("node1")
    three.run("node1", "docker", "kill", writer)
    story.wait_until(
        "the container has stopped",
        lambda: not three.is_running("node1", writer),
    )
    three.start_pannier("node1")
    check_sequence(three.log("node2", name))
    assert three.holder(name) == "node2"


def test_f33_mounts_and_unmounts_that_do_not_match(three: World) -> None:
    """Twice the same id, unknown ids, one Unmount too many: /proc alone tells who uses it."""
    name = three.create("node1")

    def call(verb: str, mount_id: str) -> dict[str, str]:
        return three.plugin("node1", verb, json.dumps({"Name": name, "ID": mount_id}))

    for _ in range(2):
        assert call("Mount", "a" * 64) == {"Mountpoint": f"{MOUNTS}/{name}", "Err": ""}
    for mount_id in ("a" * 64, "a" * 64, "never seen"):
        assert call("Unmount", mount_id)["Err"] == ""
    writer = three.writer("node1", name)
    call("Unmount", "a" * 64)
    three.refused(
        "node1", "pannier", "volume", "move", name, "node2", "--wait", "2s",
        says=[f"in use on node node1 by container {writer}"], status=4,
    )  # fmt: skip
    three.stop("node1", writer)
    check_sequence(three.log("node2", name))


def test_f33_docker_cp_is_a_use_and_leaves_none(three: World) -> None:
    name = three.create("node1")
    run = three.docker_run(name, "--name", name)
    three.run("node1", *run, "sh", "-c", "echo kept >/data/note")
    three.run("node1", "docker", "cp", f"{name}:/data/note", "/root/copied")
    three.run("node1", "docker", "cp", "/root/copied", f"{name}:/data/again")
    assert three.run("node1", "cat", "/root/copied") == "kept\n"
    three.run("node1", "docker", "rm", name)
    assert three.container("node2", name, "cat", "/data/again") == "kept\n"


# -- nothing is deleted silently --------------------------------------------------------------------


@pytest.mark.parametrize("by", ["docker", "pannier"])
def test_f77_what_was_removed_can_be_restored(three: World, by: str) -> None:
    name = three.filled("node1", mebibytes=2)
    before = three.manifest("node1", name)
    remove = (
        ["docker", "volume", "rm", name] if by == "docker" else ["pannier", "volume", "rm", name]
    )
    three.run("node2", *remove)
    three.refused("node3", "pannier", "volume", "show", name, says=["there is no volume"], status=3)
    trash = three.json("node3", "volume", "trash")
    assert [item["holder"] for item in trash if item["name"] == name] == ["node1"]
    three.run("node3", "pannier", "volume", "restore", name)
    assert three.manifest("node1", name) == before
    three.move(name, "node2")
    assert three.manifest("node2", name) == before


def test_f77_a_new_volume_of_the_same_name_hides_no_trash(three: World) -> None:
    name = three.create("node1")
    three.container("node1", name, "sh", "-c", "echo old >/data/note")
    three.run("node1", "pannier", "volume", "rm", name)
    three.run("node2", "pannier", "volume", "create", name)
    assert three.container("node2", name, "ls", "-A", "/data") == ""
    three.refused(
        "node1", "pannier", "volume", "restore", name,
        says=[f"there is another volume {name}", "stays in the trash"], status=4,
    )  # fmt: skip
    three.run("node1", "pannier", "volume", "rm", name)
    old = next(
        item["id"]
        for item in three.json("node1", "volume", "trash")
        if item["name"] == name and item["holder"] == "node1"
    )
    three.run("node1", "pannier", "volume", "restore", old)
    assert three.container("node3", name, "cat", "/data/note") == "old\n"


@pytest.mark.parametrize("asked", ["node1", "node2"], ids=["here", "elsewhere"])
def test_f77_a_volume_in_use_is_not_removed(three: World, asked: str) -> None:
    name = three.create("node1")
    writer = three.writer("node1", name)
    says = [f"volume {name} is in use on node node1 by container {writer}"]
    three.refused(asked, "pannier", "volume", "rm", name, says=says, status=4)
    if asked == "node2":  # on node1 Docker itself refuses
        three.refused(asked, "docker", "volume", "rm", name, says=says)
    three.stop("node1", writer)
    check_sequence(three.log("node2", name))
