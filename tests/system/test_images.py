"""Volumes as images, as their users see them: sizes, a full pool, mounts that were copied, checks."""

from __future__ import annotations

import json

import pytest
from cluster_world import IMAGES, MOUNTS, STAGING, World, check_sequence
from demo import story
from pool_room import nearly_full

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]


def test_a_size_is_what_files_can_fill(three: World) -> None:
    """``df`` says it, a write beyond it is told so, and the file is gone again."""
    name = three.create("node1", size="64M", copies="2")
    looks = "df -k /data | tail -n 1 | awk '{print $4}'; ls -A /data"
    room = int(three.container("node1", name, "sh", "-c", looks))  # nothing else is printed
    assert 64 << 10 <= room < 65 << 10
    fill = "dd if=/dev/zero of=/data/bulk bs=64k 2>&1; stat -c %s /data/bulk; rm /data/bulk; sync"
    said = three.container("node1", name, "sh", "-c", fill).splitlines()
    assert "No space left on device" in said[0]
    assert 63 << 20 < int(said[-1]) <= 64 << 20
    shown = three.json("node1", "volume", "show", name)
    assert shown["options"]["layout"] == "image"
    assert 64 << 20 <= shown["size_bytes"] < 68 << 20
    assert shown["inodes"] > 64 << 7


def test_a_size_becomes_larger_and_never_smaller(three: World) -> None:
    """Asked of a node that does not hold it; in use, it grows where the kernel allows that, or the command says when."""
    name = three.create("node1", size="32M", copies="2")
    looks = ("sh", "-c", "df -k /data | tail -n 1 | awk '{print $4}'")
    assert int(three.container("node1", name, *looks)) < 33 << 10
    three.run("node2", "pannier", "volume", "set", name, "size=64M")
    assert "size=64M" in three.run("node3", "pannier", "volume", "set", name, "labels=a=b")
    three.move(name, "node2")
    assert int(three.container("node2", name, *looks)) >= 64 << 10
    sleeper = three.sleeper("node2", name)
    said = three.attempt("node1", "pannier", "volume", "set", name, "size=128M")
    assert said.status == 0
    room = int(three.run("node2", "docker", "exec", sleeper, *looks))
    assert (room >= 127 << 10) != ("half a minute" in said.err)
    change = ("pannier", "volume", "set", name)
    three.refused("node1", *change, "size=64M", says=["never shrinks", "volume export"])
    smaller, place = three.name(), f"/srv/{name}"
    three.run("node2", "pannier", "volume", "export", name, "--to", f"dir:{place}")
    imports = ("pannier", "volume", "import", smaller, "--from", f"dir:{place}", "-o", "size=64M")
    three.run("node2", *imports)
    assert 64 << 10 <= int(three.container("node2", smaller, *looks)) < 65 << 10
    three.refused("node1", *change, "size=1P", says=["more than the pool of node node2"])
    rows = [each for each in three.printed("node3", "volume", "df") if each["volume"] == name]
    assert [each["node"] for each in rows if each["holds"]] == ["node2"]
    assert len(rows) >= 2
    assert all(each["files_bytes"] and not each["error"] for each in rows)


def test_without_a_size_it_is_as_large_as_the_pool(three: World) -> None:
    name = three.create("node1")
    said = three.container("node1", name, "sh", "-c", "df -k /data | tail -n 1 | awk '{print $2}'")
    pool = three.json("node1", "node", "show", "node1")["pool_total_bytes"]
    assert 0.95 * pool < int(said) << 10 <= pool
    assert three.json("node1", "volume", "show", name)["used_bytes"] < pool / 100


@pytest.mark.faults
def test_one_large_file_fits_where_the_pool_has_room(three: World) -> None:
    name = three.create("node1")
    write = (
        "dd if=/dev/zero of=/data/large bs=4M count=2560 2>/dev/null; sync; stat -c %s /data/large"
    )
    assert three.container("node1", name, "sh", "-c", write) == f"{10 << 30}\n"
    three.container("node1", name, "rm", "/data/large")


def test_what_an_image_brings_is_handed_out(three: World) -> None:
    """Docker copies the image's files up, with their owner and mode; nothing else is there."""
    name = three.create("node1")
    script = "mkdir /up; echo hello >/up/file; chown 1000:1001 /up /up/file; chmod 2750 /up"
    made = f"copy-up-{name}"
    three.run(
        "node1", "docker", "run", "--name", made, "localhost:5000/busybox:1", "sh", "-c", script
    )
    three.run("node1", "docker", "commit", made, made)
    command = ["docker", "run", "--rm", "-v", f"{name}:/up", "--volume-driver", "pannier", made]
    looks = "cat /up/file; ls -A /up; stat -c '%u %g %a' /up"
    said = three.run("node1", *command, "sh", "-c", looks)
    three.run("node1", "docker", "rm", made)
    three.run("node1", "docker", "rmi", made)
    assert said.splitlines() == ["hello", "file", "1000 1001 2750"]


def stands_still(world: World, name: str) -> str:
    """Why nobody can write to a volume now; empty where they can."""
    return str(world.json("node1", "volume", "show", name)["stands_still"])


def happened(world: World, name: str) -> list[str]:
    return [entry["kind"] for entry in world.json("node1", "volume", "history", name)]


def test_a_pool_that_gets_full_stops_who_writes_and_loses_nothing(three: World) -> None:
    """At the disk's full speed beside synced lines; it goes on by itself when there is room."""
    name, bulk = three.create("node1", copies="2"), three.create("node1")
    writer = three.writer("node1", name)
    flood = f"flood-{bulk}"
    with nearly_full(three, "node1", left="2G"):
        command = three.docker_run(bulk, "-d", "--name", flood)
        three.run("node1", *command, "sh", "-c", "cat /dev/zero >/data/bulk")
        story.wait_until("writers stand still", lambda: stands_still(three, name))
        told = [finding["what"] for finding in three.json("node1", "doctor")]
        assert any("room" in what for what in told), told
        three.refused("node1", "docker", "run", "--rm", "-v", f"{three.name()}:/data",
                      "--volume-driver", "pannier", "localhost:5000/busybox:1", "true",
                      says=["nearly full"])  # fmt: skip
        three.run("node1", "docker", "stop", "-t", "1", flood)
        before = three.acknowledged("node1", writer)
    story.wait_until("it goes on", lambda: not stands_still(three, name))
    story.wait_until("lines", lambda: three.acknowledged("node1", writer) > before + 10)
    three.run("node1", "docker", "rm", flood)
    last = three.acknowledged("node1", writer)
    three.stop("node1", writer)
    lines = three.log("node1", name)
    check_sequence(lines)
    assert len(lines) >= last
    assert {"volume.stopped", "volume.continued"} <= set(happened(three, name))
    checked = three.printed("node1", "volume", "check", name)
    assert [each["state"] for each in checked] == ["sound", "sound"]


def test_a_volume_that_stands_still_moves_away(three: World) -> None:
    """``docker stop`` works, and the container starts on a node that has room."""
    name = three.create("node1", copies="2")
    writer = three.writer("node1", name)
    with nearly_full(three, "node1", left="60M"):
        story.wait_until("it stands still", lambda: stands_still(three, name))
        last = three.acknowledged("node1", writer)
        three.stop("node1", writer)
        lines = three.log("node2", name)
        check_sequence(lines)
        assert len(lines) >= last
        assert three.holder(name) == "node2"


@pytest.mark.faults
def test_what_is_moved_away_gives_its_room_to_who_stands_still(three: World) -> None:
    """What a move leaves behind only saves the way back: it gives way, and the volume's history says so.

    The filler's room went at once, so the pool keeps 1.7 GiB free before anybody goes on.
    """
    away, bulk = three.create("node1"), three.create("node1")
    flood = f"flood-{bulk}"
    write = "dd if=/dev/zero of=/data/bulk bs=1M count=1500 conv=fsync 2>&1"
    three.container("node1", away, "sh", "-c", write)
    with nearly_full(three, "node1", left="2G"):
        command = three.docker_run(bulk, "-d", "--name", flood)
        three.run("node1", *command, "sh", "-c", "cat /dev/zero >/data/bulk")
        story.wait_until("writers stand still", lambda: stands_still(three, bulk))
        three.move(away, "node2")
        story.wait_until("it goes on", lambda: "volume.continued" in happened(three, bulk))
        assert "volume.freed" in happened(three, away)
        three.run("node1", "docker", "rm", "-f", flood)
    assert three.container("node2", away, "stat", "-c", "%s", "/data/bulk") == f"{1500 << 20}\n"


@pytest.mark.faults
def test_a_file_of_ten_gibibytes_is_written_at_once(three: World) -> None:
    """A volume without a size takes what the pool has room for, and nobody stands still for it."""
    name = three.create("node1")
    write = (
        "tr '\\0' x </dev/zero | dd of=/data/bulk bs=1M count=10240 iflag=fullblock conv=fsync 2>&1"
    )
    three.container("node1", name, "sh", "-c", write)
    assert three.container("node1", name, "tail", "-c", "1", "/data/bulk") == "x"
    assert three.container("node1", name, "stat", "-c", "%s", "/data/bulk") == f"{10 << 30}\n"
    assert "volume.stopped" not in happened(three, name)


def test_a_daemon_that_ends_leaves_nothing_frozen(three: World) -> None:
    """Nobody would let it go on: what stands still is ended, and comes back with the room."""
    name = three.create("node1")
    writer = three.writer("node1", name, "--restart", "always")
    with nearly_full(three, "node1", left="60M"):
        story.wait_until("it stands still", lambda: stands_still(three, name))
        three.run("node1", "systemctl", "restart", "pannierd")
        three.wait_for_pannier("node1")
        before = three.acknowledged("node1", writer)
    story.wait_until("it writes on", lambda: three.acknowledged("node1", writer) > before + 5)
    three.stop("node1", writer)
    check_sequence(three.log("node1", name))


def test_a_mount_that_was_copied_elsewhere_takes_no_write_after_a_move(three: World) -> None:
    """A service with mounts of its own keeps the file system that the volume was: it is shut down."""
    name = three.create("node1")
    sleeper = three.sleeper("node1", name)
    copy = "systemd-run --unit=copied-mounts -p PrivateMounts=yes -p MountFlags=private sleep 600"
    three.sh("node1", copy)
    there = "nsenter -m -t $(systemctl show -p MainPID --value copied-mounts)"
    write = f"{there} sh -c 'echo $0 >>{MOUNTS}/{name}/note'"
    try:
        three.sh("node1", f"{write} kept; sync -f {MOUNTS}/{name}")
        three.stop("node1", sleeper)
        three.move(name, "node2")
        late = three.attempt("node1", "sh", "-c", f"{write} late")
        assert late.status
        assert "error" in late.text.lower(), late.text
        assert three.container("node2", name, "cat", "/data/note") == "kept\n"
    finally:
        three.run("node1", "systemctl", "stop", "copied-mounts")
    three.move(name, "node1")
    assert three.container("node1", name, "cat", "/data/note") == "kept\n"


def test_a_damaged_file_system_is_told_and_never_mended_on_the_only_copy(three: World) -> None:
    name = three.create("node1", size="64M")
    three.container("node1", name, "sh", "-c", "mkdir /data/d; echo kept >/data/d/note; sync")
    shown = three.json("node1", "volume", "show", name)
    image = f"{IMAGES}/{shown['id']}/live-1/image"
    three.stop_pannier("node1")  # it has the mount open
    three.sh(
        "node1",
        f"umount {MOUNTS}/{name} {STAGING}/{shown['id']}.1; "
        f"while losetup -j {image} | grep -q .; do sleep 0.1; done; "
        f"debugfs -w -R 'clri /data/d' {image} 2>/dev/null",
    )
    three.start_pannier("node1")
    said = []
    for _ in range(2):  # it is as damaged after the first look as before
        outcome = three.attempt("node1", "pannier", "volume", "check", name, "-o", "json")
        assert outcome.status == 10
        (checked,) = json.loads(outcome.out)
        assert checked["state"] == "damaged"
        said.append([line for line in checked["findings"] if "WARNING" not in line])
    assert said[0]
    assert said[0] == said[1]


def test_a_former_state_is_looked_into_while_its_containers_go_on(three: World) -> None:
    name = three.create("node1", copies="2")
    writer = three.writer("node1", name)
    first = three.json("node1", "volume", "show", name)["generations"][-1]

    def newest() -> str:
        return str(three.json("node1", "volume", "show", name)["generations"][-1])

    story.wait_until("there is a newer generation", lambda: newest() != first)
    seen = three.former("node1", name, "log", tree=newest())
    assert seen
    assert three.log("node1", name)[: len(seen.splitlines())] == [
        (host, int(number)) for host, number in map(str.split, seen.splitlines())
    ]
    three.refused("node1", "pannier", "volume", "mount", f"{name}@77", "--at", MOUNTS,
                  says=["nothing of volume"], status=3)  # fmt: skip
    three.stop("node1", writer)


def test_who_reads_the_image_of_a_volume_in_use_is_told(three: World) -> None:
    """As a backup program on the host might; a generation may be read."""
    name = three.create("node1")
    sleeper = three.sleeper("node1", name)
    shown = three.json("node1", "volume", "show", name)
    image = f"{IMAGES}/{shown['id']}/live-1/image"
    three.sh("node1", f"systemd-run --unit=backup sh -c 'exec 3<{image}; sleep 600'")
    try:
        three.refused("node1", "pannier", "doctor", says=[name, "reads its image"], status=10)
    finally:
        three.run("node1", "systemctl", "stop", "backup")
    told = [finding["what"] for finding in three.json("node1", "doctor")]
    assert not any("reads its image" in what for what in told)
    three.stop("node1", sleeper)
